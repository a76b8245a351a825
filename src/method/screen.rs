//! The first-order screen: how the step of each of many queries changes every training image's loss, from one backward pass.
//!
//! The influence of an image is the rise of its loss after the step M that unlearned a query. To first order in the step it is
//! <M, G>, G being the gradient of the loss (Wang et al. 2024, appendix A.3). Per-sample gradients are contracted with the steps of
//! all queries layer by layer, and dropped, so one pass serves any number of queries.
//!
//! Rows and noise are those of the loss pass: this is the derivative of what the exact influence is the difference of.
//! Shapes: B rows, Q queries, a parameter has P numbers.

use std::collections::BTreeMap;
use std::ops::Range;

use tch::{Device, Kind, Tensor};

use super::blocks::Block;
use super::diffusion_loss::DenoisingRows;
use super::error::{DataError, MathError};
use super::layer_gradients::{Quantity, layer_gradients};
use super::loss::LossPass;
use super::micro_batches::in_micro_batches;
use super::noise::Point;
use super::per_sample::in_chunks;
use super::selection::Selection;
use crate::models::tape::LayerRecord;
use crate::models::unet::UNet;

/// The weights after unlearning each of several queries.
pub trait Unlearned {
    /// Q.
    fn queries(&self) -> usize;

    /// The names of the changed weights, the same for all queries.
    fn names(&self) -> &[String];

    /// One weight after unlearning one query, in its own shape and any float type.
    ///
    /// # Errors
    /// It cannot be read.
    fn read(&self, query: usize, name: &str) -> Result<Tensor, DataError>;
}

/// The steps of Q queries: unlearned weights less the network's own.
pub struct Steps<'a> {
    unlearned: &'a dyn Unlearned,
    /// The network's own weights.
    own: BTreeMap<String, Tensor>,
    /// The steps [Q, P] by name, if all of them fit.
    kept: Option<BTreeMap<String, Tensor>>,
    selection: Selection,
    /// Numbers that steps may take at once.
    room: usize,
}

impl<'a> Steps<'a> {
    /// Reads and checks the weights of all queries. Steps of more than `room` numbers are not kept, but read again, a part of the
    /// queries at a time, whenever they are needed.
    ///
    /// # Errors
    /// [`MathError::Step`]: weights that cannot be read, have another shape than the network's or are not finite, or a step of zero.
    /// [`MathError::NothingSelected`]: no weight is named.
    pub fn new(unet: &UNet, unlearned: &'a dyn Unlearned, room: usize) -> Result<Self, MathError> {
        let names = unlearned.names();
        let selection = Selection::Patterns(names.to_vec());
        let mut own = BTreeMap::new();
        for name in names {
            let Some(weight) = unet.parameters().get(name) else {
                let what = format!("`{name}` is no weight of the network");
                return Err(MathError::Step { query: 0, what });
            };
            own.insert(name.clone(), weight.to_kind(Kind::Float));
        }
        if own.is_empty() {
            return Err(MathError::NothingSelected { selection: selection.to_string() });
        }
        let size: usize = own.values().map(Tensor::numel).sum();
        let fits = size.saturating_mul(unlearned.queries()) <= room;
        let steps = Self { unlearned, own, kept: None, selection, room };
        let mut kept: BTreeMap<String, Vec<Tensor>> = BTreeMap::new();
        for query in 0..unlearned.queries() {
            let mut moved = false;
            for name in names {
                let step = steps.of_query(query, name)?;
                moved |= step.count_nonzero(None).int64_value(&[]) > 0;
                if fits {
                    kept.entry(name.clone()).or_default().push(step);
                }
            }
            if !moved {
                let what = "its weights are the network's own: nothing was unlearned".to_owned();
                return Err(MathError::Step { query, what });
            }
        }
        let kept = kept.into_iter().map(|(name, steps)| (name, Tensor::stack(&steps, 0))).collect();
        Ok(Self { kept: fits.then_some(kept), ..steps })
    }

    /// Q.
    pub fn queries(&self) -> usize {
        self.unlearned.queries()
    }

    /// Whether all steps are in memory.
    pub fn are_kept(&self) -> bool {
        self.kept.is_some()
    }

    /// A query's step of a weight: [P].
    fn of_query(&self, query: usize, name: &str) -> Result<Tensor, MathError> {
        let own = &self.own[name];
        let weight = self
            .unlearned
            .read(query, name)
            .map_err(|error| MathError::Step { query, what: error.to_string() })?;
        if weight.size() != own.size() {
            let what = format!("`{name}` has the shape {:?}, expected {:?}", weight.size(), own.size());
            return Err(MathError::Step { query, what });
        }
        let step = weight.to_device(own.device()).to_kind(Kind::Float) - own;
        if step.isfinite().all().int64_value(&[]) == 0 {
            let what = format!("`{name}` holds values that are not finite");
            return Err(MathError::Step { query, what });
        }
        Ok(step.flatten(0, -1))
    }

    /// Some queries' steps of a weight: [queries, P].
    fn of_queries(&self, queries: &Range<usize>, name: &str) -> Result<Tensor, MathError> {
        if let Some(kept) = &self.kept {
            return Ok(kept[name].narrow(0, queries.start as i64, queries.len() as i64));
        }
        let steps: Vec<Tensor> =
            queries.clone().map(|query| self.of_query(query, name)).collect::<Result<_, _>>()?;
        Ok(Tensor::stack(&steps, 0))
    }

    /// Groups of queries whose steps of a layer fit at once.
    fn groups(&self, layer: usize) -> impl Iterator<Item = Range<usize>> {
        let queries = self.queries();
        let at_once = match self.kept {
            Some(_) => queries,
            None => (self.room / layer.max(1)).clamp(1, queries),
        };
        (0..queries).step_by(at_once.max(1)).map(move |start| start..queries.min(start + at_once))
    }

    /// Adds to `sums` [B, Q], float64, the products of each row's gradient of a layer with the steps.
    fn contract(&self, record: &LayerRecord, grad: &Tensor, sums: &Tensor) -> Result<(), MathError> {
        let chosen = [("weight", record.weight), ("bias", record.bias)];
        let names = chosen.into_iter().filter(|(_, chosen)| *chosen);
        let names: Vec<String> = names
            .map(|(end, _)| format!("{}.{end}", record.layer))
            .filter(|name| self.own.contains_key(name))
            .collect();
        let size = names.iter().map(|name| self.own[name].numel()).sum();
        for queries in self.groups(size) {
            let steps: BTreeMap<&String, Tensor> = names
                .iter()
                .map(|name| Ok((name, self.of_queries(&queries, name)?)))
                .collect::<Result<_, MathError>>()?;
            in_chunks(record, grad, |start, found| {
                for (name, gradients) in found {
                    let Some(steps) = steps.get(&name) else { continue };
                    let products = gradients.flatten(1, -1).matmul(&steps.tr()); // [rows, queries]
                    let mut place = sums.narrow(0, start, gradients.size()[0]).narrow(
                        1,
                        queries.start as i64,
                        queries.len() as i64,
                    );
                    place += products.to_kind(Kind::Double);
                }
                Ok::<_, MathError>(())
            })?;
        }
        Ok(())
    }
}

impl LossPass<'_> {
    /// The first-order rises of the losses of a block at some of its points, for each query: a mean over captions, float64
    /// [images, points, Q] on the CPU.
    ///
    /// A pass holds rows of one timestep, each with a condition of its own. Neither the choice of points nor the other queries change
    /// more than rounding. `progress` hears of which point (its place) how many images are done.
    ///
    /// # Errors
    /// A loss is not finite; or steps that are read again cannot be.
    pub fn screen(
        &self,
        block: &Block,
        points: &[impl Copy + Into<Point>],
        steps: &Steps<'_>,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Tensor, MathError> {
        let (device, captions) = (self.unet.device(), self.params.captions);
        let (pairs, queries) = (block.images.len() * captions, steps.queries() as i64);
        let parts = in_micro_batches(pairs, self.micro_batch, |pair, most| {
            let some = |x: &Tensor| x.narrow(0, pair as i64, most as i64).to_device(device);
            let (latents, texts) = (some(&block.latents), some(&block.texts));
            let mut at_each = Vec::new();
            for (place, &point) in points.iter().enumerate() {
                let point: Point = point.into();
                let rows = DenoisingRows {
                    latents: latents.shallow_clone(),
                    noise: some(&block.noise[&point]),
                    timesteps: self.timesteps_tensor(&[point.timestep]).repeat([most as i64]),
                    conditioning: self.unet.conditioning(texts.shallow_clone()),
                };
                let image_of = |row: usize| (block.images[(pair + row) / captions], point.timestep);
                let (unet, schedule, selection) = (self.unet, self.schedule, &steps.selection);
                let layers = layer_gradients(unet, schedule, &rows, selection, &Quantity::Loss, image_of)?;
                let _guard = tch::no_grad_guard(); // unlike `no_grad`, it ends when memory runs out inside
                let sums = Tensor::zeros([most as i64, queries], (Kind::Double, device));
                for (record, grad) in &layers {
                    steps.contract(record, grad, &sums)?;
                }
                at_each.push(sums.to_device(Device::Cpu));
                progress(place, (pair + most) / captions);
            }
            Ok::<_, MathError>((most, Tensor::stack(&at_each, 1))) // [most, points, Q]
        });
        let parts = parts.map_err(|error| self.data.named(error))?;
        let shape = [block.images.len() as i64, captions as i64, points.len() as i64, queries];
        Ok(Tensor::cat(&parts, 0).view(shape).mean_dim(1, false, None))
    }
}
