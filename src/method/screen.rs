//! The first-order screen: how the step of each of many queries changes every training image's loss, from one backward pass.
//!
//! The influence of an image is the rise of its loss after the step M that unlearned a query. To first order in the step it is
//! <M, G>, G being the gradient of the loss (Wang et al. 2024, appendix A.3). Gradients are contracted with the steps of all queries
//! layer by layer, and dropped, so one pass serves any number of queries. An image's captions are summed before that, which leaves
//! one product for each image and timestep.
//!
//! Rows and noise are those of the loss pass: this is the derivative of what the exact influence is the difference of.
//! Shapes: B rows in groups of one image each, Q queries, a parameter has P numbers, S tokens, I inputs, O outputs.

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
use super::per_sample::{bias, in_chunks, room, tokens};
use super::selection::Selection;
use crate::models::tape::{LayerRecord, Op};
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

impl<U: Unlearned> Unlearned for &U {
    fn queries(&self) -> usize {
        (**self).queries()
    }

    fn names(&self) -> &[String] {
        (**self).names()
    }

    fn read(&self, query: usize, name: &str) -> Result<Tensor, DataError> {
        (**self).read(query, name)
    }
}

/// The steps of Q queries: unlearned weights less the network's own.
pub struct Steps<'a> {
    unlearned: Box<dyn Unlearned + 'a>,
    /// The network's own weights.
    own: BTreeMap<String, Tensor>,
    /// The steps [Q, P] by name, if all of them fit.
    kept: Option<BTreeMap<String, Tensor>>,
    selection: Selection,
    /// Numbers that may be in memory at once: steps, and gradients that wait for steps.
    room: usize,
}

impl<'a> Steps<'a> {
    /// Reads and checks the weights of all queries. Steps of more than `room` numbers are not kept, but read again, a group of queries
    /// at a time, for as many rows as the other half of that room holds.
    ///
    /// # Errors
    /// [`MathError::Step`]: weights that cannot be read, have another shape than the network's or are not finite, or a step of zero.
    /// [`MathError::NothingSelected`]: no weight is named.
    pub fn new(unet: &UNet, unlearned: impl Unlearned + 'a, room: usize) -> Result<Self, MathError> {
        let names = unlearned.names().to_vec();
        let selection = Selection::Patterns(names.clone());
        let mut own = BTreeMap::new();
        for name in &names {
            let Some(weight) = unet.parameters().get(name) else {
                let what = format!("`{name}` is no weight of the network");
                return Err(MathError::Step { query: 0, what });
            };
            own.insert(name.clone(), weight.to_kind(Kind::Float));
        }
        if own.is_empty() {
            return Err(MathError::NothingSelected { selection: selection.to_string() });
        }
        let steps = Self { unlearned: Box::new(unlearned), own, kept: None, selection, room };
        let fits = steps.size().saturating_mul(steps.queries()) <= room;
        let mut kept: BTreeMap<String, Vec<Tensor>> = BTreeMap::new();
        for query in 0..steps.queries() {
            let mut moved = false;
            for name in &names {
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

    /// Numbers in the step of one query.
    pub fn size(&self) -> usize {
        self.own.values().map(Tensor::numel).sum()
    }

    /// The groups of queries whose steps are in memory at once: one, of all queries, if all steps are kept.
    pub fn groups(&self) -> Vec<Range<usize>> {
        let queries = self.queries();
        let at_once = match self.kept {
            Some(_) => queries,
            None => self.room / 2 / self.size(),
        };
        let at_once = at_once.clamp(1, queries);
        (0..queries).step_by(at_once).map(|start| start..queries.min(start + at_once)).collect()
    }

    /// Numbers of gradients that wait until steps are read for them all.
    fn waiting(&self) -> usize {
        if self.kept.is_some() { 0 } else { self.room / 2 }
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

    /// A group's steps by weight: [queries, P].
    fn of_group(&self, queries: &Range<usize>) -> Result<BTreeMap<String, Tensor>, MathError> {
        if let Some(kept) = &self.kept {
            return Ok(kept.iter().map(|(name, steps)| (name.clone(), steps.shallow_clone())).collect());
        }
        let of = |name: &String| {
            let steps: Vec<Tensor> =
                queries.clone().map(|query| self.of_query(query, name)).collect::<Result<_, _>>()?;
            Ok((name.clone(), Tensor::stack(&steps, 0)))
        };
        self.own.keys().map(of).collect()
    }
}

/// Rows that went through the network forward and backward: what the gradients of the chosen layers are contractions of.
pub struct Passed {
    /// The place of the first row among the block's pairs of image and caption.
    first: usize,
    rows: usize,
    /// Rows of an image that follow each other: their gradients are summed.
    per_image: usize,
    /// Which of the points.
    place: usize,
    layers: Vec<(LayerRecord, Tensor)>,
}

impl Passed {
    /// Numbers that are in memory as long as this is.
    fn size(&self) -> usize {
        // Layers may have one input: the texts.
        let inputs: BTreeMap<_, _> = self
            .layers
            .iter()
            .map(|(record, _)| (record.input.data_ptr() as usize, record.input.numel()))
            .collect();
        self.layers.iter().map(|(_, gradient)| gradient.numel()).chain(inputs.into_values()).sum()
    }

    /// The products of each image's gradient with steps [queries, P]: [images, queries], in float64.
    fn products(&self, steps: &BTreeMap<String, Tensor>) -> Tensor {
        let queries = steps.values().next().map_or(0, |steps| steps.size()[0]);
        let device = self.layers.first().map_or(Device::Cpu, |(_, gradient)| gradient.device());
        let mut sums = Tensor::zeros([(self.rows / self.per_image) as i64, queries], (Kind::Double, device));
        for (record, gradient) in &self.layers {
            let of = |end: &str| steps.get(&format!("{}.{end}", record.layer));
            let linear = matches!(record.op, Op::Linear | Op::Pointwise);
            match tokens(record.op, &record.input, gradient).filter(|_| linear) {
                Some(tokens) => self.of_linear(tokens, of("weight").filter(|_| record.weight), &mut sums),
                None => {
                    self.row_by_row(record, gradient, steps, &mut sums);
                    continue;
                }
            }
            if let Some(steps) = of("bias").filter(|_| record.bias) {
                let gradients = bias(record.op, gradient); // [B, O]
                let gradients = gradients.view([sums.size()[0], -1, gradients.size()[1]]);
                sums += gradients.sum_dim_intlist(1, false, None).matmul(&steps.tr()).to_kind(Kind::Double);
            }
        }
        sums
    }

    /// Adds the products of a linear map's weight with `steps`. A few outputs at a time, for all images: so few gradients are made
    /// at once that they stay in the cache, and every step is read once.
    fn of_linear(&self, [x, d]: [Tensor; 2], steps: Option<&Tensor>, sums: &mut Tensor) {
        let Some(steps) = steps else { return };
        let images = sums.size()[0];
        // The tokens of all rows of an image, one after the other: the sum over tokens is that over rows too.
        let of_images = |x: &Tensor| x.contiguous().view([images, -1, x.size()[2]]);
        let [x, d] = [of_images(&x), of_images(&d)]; // [images, S, I], [images, S, O]
        let (inputs, outputs) = (x.size()[2], d.size()[2]);
        let at_once = room(x.device(), (images * inputs) as usize);
        for start in (0..outputs).step_by(at_once as usize) {
            let some = at_once.min(outputs - start);
            let gradients = d.narrow(2, start, some).transpose(1, 2).bmm(&x).flatten(1, 2);
            let steps = steps.narrow(1, start * inputs, some * inputs);
            *sums += gradients.matmul(&steps.tr()).to_kind(Kind::Double);
        }
    }

    /// The same from gradients of whole layers, of a few rows at a time.
    fn row_by_row(
        &self,
        record: &LayerRecord,
        gradient: &Tensor,
        steps: &BTreeMap<String, Tensor>,
        sums: &mut Tensor,
    ) {
        let [images, queries] = [sums.size()[0], sums.size()[1]];
        let rows = Tensor::zeros([self.rows as i64, queries], (Kind::Double, sums.device()));
        let done = in_chunks(record, gradient, |start, found| {
            for (name, gradients) in found {
                let Some(steps) = steps.get(&name) else { continue };
                let products = gradients.flatten(1, -1).matmul(&steps.tr());
                let mut place = rows.narrow(0, start, gradients.size()[0]);
                place += products.to_kind(Kind::Double);
            }
            Ok::<_, std::convert::Infallible>(())
        });
        let Ok(()) = done;
        *sums += rows.view([images, -1, queries]).sum_dim_intlist(1, false, Kind::Double);
    }
}

/// How many of at most `most` rows from this one on go through the network together, and how many of each image: whole images,
/// or a part of one.
fn whole_images(row: usize, most: usize, captions: usize) -> (usize, usize) {
    match row % captions {
        0 if most >= captions => (most - most % captions, captions),
        done => {
            let rows = most.min(captions - done);
            (rows, rows)
        }
    }
}

impl LossPass<'_> {
    /// The first-order rises of the losses of a block at some of its points, for each query: a mean over captions, float64
    /// [images, points, Q] on the CPU.
    ///
    /// Neither the choice of points nor the other queries change more than rounding. `progress` hears of which point (its place) how
    /// many images are done.
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
        let (images, captions) = (block.images.len() as i64, self.params.captions as i64);
        let shape = [images * captions, points.len() as i64, steps.queries() as i64];
        // The products of an image's rows together are in the place of the first. Written over, not added to: rows may be computed
        // again where memory ran out.
        let products = Tensor::zeros(shape, (Kind::Double, Device::Cpu));
        let (groups, waiting) = (steps.groups(), steps.waiting());
        let mut held: Vec<Passed> = Vec::new();
        let contract = |held: &mut Vec<Passed>| {
            if held.is_empty() {
                return Ok(());
            }
            let _guard = tch::no_grad_guard(); // unlike `no_grad`, it ends when memory runs out inside
            for queries in &groups {
                let steps = steps.of_group(queries)?;
                for passed in held.iter() {
                    let rows = products.narrow(0, passed.first as i64, passed.rows as i64);
                    let rows = rows.select(1, passed.place as i64);
                    let mut rows = rows.narrow(1, queries.start as i64, queries.len() as i64);
                    let _ = rows.zero_();
                    let mut firsts = rows.slice(0, None, None, passed.per_image as i64);
                    firsts.copy_(&passed.products(&steps));
                }
            }
            held.clear();
            Ok::<_, MathError>(())
        };
        self.backward(
            block,
            points,
            &steps.selection,
            &mut |passed| {
                // Without those of the same rows, if memory ran out after them.
                held.retain(|held| (held.first, held.place) < (passed.first, passed.place));
                held.push(passed);
                match held.iter().map(Passed::size).sum::<usize>() >= waiting {
                    true => contract(&mut held),
                    false => Ok(()),
                }
            },
            progress,
        )?;
        contract(&mut held)?;
        Ok(products.view([images, captions, shape[1], shape[2]]).sum_dim_intlist(1, false, None)
            / captions as f64)
    }

    /// Sends a block's rows at some points forward and backward through the network, and hands out what gradients of the chosen
    /// parameters are contractions of. A pass holds rows of one timestep, each with a condition of its own.
    ///
    /// Where memory runs out, in `each` too, rows are computed again, fewer at once.
    ///
    /// # Errors
    /// A loss is not finite, or an error of `each`.
    pub fn backward(
        &self,
        block: &Block,
        points: &[impl Copy + Into<Point>],
        selection: &Selection,
        each: &mut dyn FnMut(Passed) -> Result<(), MathError>,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<(), MathError> {
        let (device, captions) = (self.unet.device(), self.params.captions);
        let pairs = block.images.len() * captions;
        let parts = in_micro_batches(pairs, self.micro_batch, |first, most| {
            let (rows, per_image) = whole_images(first, most, captions);
            let some = |x: &Tensor| x.narrow(0, first as i64, rows as i64).to_device(device);
            let (latents, texts) = (some(&block.latents), some(&block.texts));
            for (place, &point) in points.iter().enumerate() {
                let point: Point = point.into();
                let inputs = DenoisingRows {
                    latents: latents.shallow_clone(),
                    noise: some(&block.noise[&point]),
                    timesteps: self.timesteps_tensor(&[point.timestep]).repeat([rows as i64]),
                    conditioning: self.unet.conditioning(texts.shallow_clone()),
                };
                let image_of = |row: usize| (block.images[(first + row) / captions], point.timestep);
                let (unet, schedule) = (self.unet, self.schedule);
                let layers = layer_gradients(unet, schedule, &inputs, selection, &Quantity::Loss, image_of)?;
                // Not the output itself, which holds on to the graph.
                let free = |(record, gradient): (LayerRecord, Tensor)| {
                    (LayerRecord { output: gradient.shallow_clone(), ..record }, gradient)
                };
                let layers = layers.into_iter().map(free).collect();
                each(Passed { first, rows, per_image, place, layers })?;
                progress(place, (first + rows) / captions);
            }
            Ok::<_, MathError>((rows, ()))
        });
        parts.map(drop).map_err(|error| self.data.named(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_go_together_by_whole_images_where_these_fit() {
        let all = |most: usize| {
            let (mut row, mut found) = (0, Vec::new());
            while row < 10 {
                let (rows, per_image) = whole_images(row, most.min(10 - row), 5);
                found.push([rows, per_image]);
                row += rows;
            }
            found
        };
        assert_eq!(all(100), [[10, 5]]);
        assert_eq!(all(9), [[5, 5], [5, 5]]);
        assert_eq!(all(3), [[3, 3], [2, 2], [3, 3], [2, 2]]);
        assert_eq!(all(1), [[1, 1]; 10]);
    }
}
