//! The diagonal of the empirical Fisher information: how much each parameter matters to the training set.
//!
//! The mean over rows (a latent, a timestep, a caption, noise) of the squared gradient of the row's loss. The
//! work is a sequence of batches, numbered through all epochs; each has its own seed, so that any range of them
//! can be computed alone, and the sums of ranges add up.

use std::collections::BTreeMap;
use std::ops::Range;

use attrflow_engine::config::param::Validate;
use attrflow_engine::{choice, params};
use serde_json::Value as Json;
use tch::{Device, Tensor};

use super::data::DataSet;
use super::diffusion_loss::DenoisingRows;
use super::error::MathError;
use super::identity::hashed;
use super::layer_gradients::{Quantity, layer_gradients};
use super::micro_batches::in_micro_batches;
use super::noise::{Generator, derived_seed};
use super::objective::Objective;
use super::per_sample::sums_of_squares;
use super::schedule::NoiseSchedule;
use super::selection::Selection;
use crate::models::tape::LayerRecord;
use crate::models::unet::{Precision, UNet};

choice! {
    /// The rows that share a caption index.
    pub enum CaptionDraw {
        /// All rows of a batch, as published.
        Batch = "batch",
        /// None: every row draws its own.
        Row = "row",
    }
}

choice! {
    /// The mean over rows or over batches.
    pub enum Weighting {
        /// The mean of batch means, as published: rows of a short last batch have a larger weight.
        Batch = "batch",
        /// The mean over rows.
        Row = "row",
    }
}

choice! {
    /// Of which gradients the information is the mean square.
    pub enum FisherType {
        /// Of the rows' losses, as published: the empirical Fisher information.
        Empirical = "empirical",
        /// Of losses whose errors are drawn anew: the Gauss-Newton matrix, in expectation.
        Sampled = "sampled",
    }
}

params! {
    /// Parameters of `fisher`.
    pub struct FisherParams {
        /// Epochs over the latents.
        epochs: usize [1..=10_000] = 5,
        /// Rows per batch.
        batch_size: usize [1..=100_000] = 32,
        /// Seed of timesteps, captions and noise.
        seed: u32 = 0,
        /// `batch`: one caption index for all rows of a batch, as published, although the paper describes one for each
        /// row; `row`: one for each row.
        caption_draw: CaptionDraw = CaptionDraw::Batch,
        /// `batch`: mean of batch means, as published, in which rows of a short last batch have a larger weight; `row`:
        /// mean over rows.
        weighting: Weighting = Weighting::Batch,
        /// `empirical`: from the gradients of the rows' losses, as published; `sampled`: of losses whose errors are drawn anew from
        /// what the model expects, which is the Gauss-Newton matrix (Martens 2020, arXiv 1412.1193) up to the error of sampling.
        fisher_type: FisherType = FisherType::Empirical,
        /// The weights to compute it for; must include those that `unlearn` changes.
        select: Selection = Selection::All,
        /// What the model was trained to minimise; the same for all stages.
        objective: Objective = Objective::default(),
        /// `fp32`, or `tf32`: products of factors rounded to 10 bits on a GPU, faster there. On a CPU both are the same.
        precision: Precision = Precision::Fp32,
    }
}

impl Validate for FisherParams {
    fn validate(&self) -> Vec<(&'static str, String)> {
        self.precision.of_gradients().map(|message| ("precision", message)).into_iter().collect()
    }
}

impl FisherParams {
    /// What is hashed.
    pub fn identity(&self) -> Json {
        let later = [
            ("objective", self.objective.is_plain()),
            ("fisher_type", self.fisher_type == FisherType::Empirical),
            ("precision", self.precision == Precision::Fp32),
        ];
        hashed(self, &later)
    }

    /// How many batches go through the network at once. A GPU is slow with few rows; on a CPU it would change the last bits of results
    /// and gain nothing.
    pub fn joined(&self, device: Device, micro_batch: usize) -> usize {
        const MOST: usize = 16;
        if device == Device::Cpu { 1 } else { (micro_batch / self.batch_size).clamp(1, MOST) }
    }

    /// The number of batches of all epochs over `latents` rows.
    pub fn batches(&self, latents: usize) -> usize {
        self.epochs * latents.div_ceil(self.batch_size)
    }

    /// The latents of a batch; every epoch goes through them in the same order.
    pub fn rows_of(&self, batch: usize, latents: usize) -> Range<usize> {
        let start = batch % latents.div_ceil(self.batch_size) * self.batch_size;
        start..latents.min(start + self.batch_size)
    }
}

/// A part of the mean: sums of squared gradients, and their divisor.
#[derive(Default)]
pub struct FisherSum {
    /// By parameter, in float64 on the network's device.
    pub sums: BTreeMap<String, Tensor>,
    /// Batches, or rows, according to the weighting.
    pub weight: f64,
}

impl FisherSum {
    /// Adds another part.
    pub fn add(&mut self, other: FisherSum) {
        self.weight += other.weight;
        for (name, sum) in other.sums {
            self.sums.entry(name).and_modify(|own| *own += &sum).or_insert(sum);
        }
    }

    /// The Fisher diagonal, by parameter in float64.
    pub fn mean(self) -> BTreeMap<String, Tensor> {
        self.sums.into_iter().map(|(name, sum)| (name, sum / self.weight)).collect()
    }
}

/// Sums over the rows of one backward pass, by name in float64, from each layer's record and the gradient at its output.
pub type Contraction<'a> =
    &'a dyn Fn(&[(LayerRecord, Tensor)]) -> Result<BTreeMap<String, Tensor>, MathError>;

/// The sums of squared gradients of the chosen parameters, for [`sum_over_batches`].
///
/// # Errors
/// None.
pub fn squares(found: &[(LayerRecord, Tensor)]) -> Result<BTreeMap<String, Tensor>, MathError> {
    Ok(found.iter().flat_map(|(record, gradient)| sums_of_squares(record, gradient)).collect())
}

/// Batches of the training set to differentiate.
#[derive(Clone, Copy)]
pub struct FisherPass<'a> {
    /// The network.
    pub unet: &'a UNet,
    /// Its schedule, with the objective.
    pub schedule: &'a NoiseSchedule,
    /// The training set.
    pub data: DataSet<'a>,
    /// Which rows, and which parameters.
    pub params: &'a FisherParams,
    /// How many rows go through the network at once.
    pub micro_batch: usize,
    /// How many batches of equal size are computed together, if they follow each other: see [`FisherParams::joined`].
    pub joined: usize,
}

impl FisherPass<'_> {
    /// Contracts the gradients of some batches. `progress` receives the number of finished batches.
    ///
    /// # Errors
    /// Nothing is selected, the data can't be read, a loss or a sum is not finite, or an error of the contraction.
    pub fn sum(
        &self,
        batches: impl IntoIterator<Item = usize>,
        contract: Contraction<'_>,
        progress: &mut dyn FnMut(usize),
    ) -> Result<FisherSum, MathError> {
        let FisherPass { unet, schedule, data, params, micro_batch, joined } = *self;
        params.select.of(unet.parameters().keys())?;
        let (mut total, mut done) = (FisherSum::default(), 0);
        let batches: Vec<usize> = batches.into_iter().collect();
        let images_of = |batch: usize| params.rows_of(batch, data.latents_len());
        let alike = batches.chunk_by(|a, b| images_of(*a).len() == images_of(*b).len());
        for batches in alike.flat_map(|alike| alike.chunks(joined)) {
            let images: Vec<usize> = batches.iter().flat_map(|&batch| images_of(batch)).collect();
            let (rows, sampled) = self.drawn(batches)?;
            let mut sum = FisherSum { weight: batches.len() as f64, sums: BTreeMap::new() };
            let slices = in_micro_batches(rows.len(), micro_batch, |row, most| {
                let sampled = sampled.as_ref().map(|x| x.narrow(0, row as i64, most as i64));
                let quantity = sampled.as_ref().map_or(Quantity::Loss, Quantity::Sampled);
                let some = rows.slice(row..row + most);
                let image_of = |place: usize| images[row + place];
                let sums = of_rows(unet, schedule, &some, &params.select, &quantity, image_of, contract)?;
                // Contracted per slice: keeping all gradients would need the memory that slicing saves.
                sum.add(FisherSum { sums, weight: 0.0 });
                Ok::<_, MathError>((most, ()))
            });
            slices.map_err(|error| data.named(error))?;
            let a_batch = (rows.len() / batches.len()) as f64;
            match params.weighting {
                Weighting::Batch => sum.sums.values_mut().for_each(|sum| *sum /= a_batch),
                Weighting::Row => sum.weight *= a_batch,
            }
            total.add(sum);
            done += batches.len();
            progress(done);
        }
        for (parameter, sum) in &total.sums {
            if sum.isfinite().all().int64_value(&[]) == 0 {
                let what = "its squared gradients";
                return Err(MathError::ParameterNotFinite { parameter: parameter.clone(), what });
            }
        }
        Ok(total)
    }
}

impl FisherPass<'_> {
    /// The rows of some batches, and what `fisher_type = "sampled"` takes in place of the errors.
    fn drawn(&self, batches: &[usize]) -> Result<(DenoisingRows, Option<Tensor>), MathError> {
        let parts = batches.iter().map(|&batch| self.drawn_one(batch)).collect::<Result<Vec<_>, _>>()?;
        let join = |of: fn(&Drawn) -> Option<&Tensor>| match parts.as_slice() {
            [one] => of(one).map(Tensor::shallow_clone),
            parts => {
                let all: Vec<&Tensor> = parts.iter().filter_map(of).collect();
                (!all.is_empty()).then(|| Tensor::cat(&all, 0))
            }
        };
        let whole = |of| join(of).expect("of every batch");
        let rows = DenoisingRows {
            latents: whole(|part| Some(&part.latents)),
            noise: whole(|part| Some(&part.noise)),
            timesteps: whole(|part| Some(&part.timesteps)),
            conditioning: self.unet.conditioning(whole(|part| Some(&part.texts))),
        };
        Ok((rows, join(|part| part.sampled.as_ref())))
    }

    /// The rows of a batch. The CPU draws, in this order, timesteps, captions, noise, and what is sampled: the same on every device.
    fn drawn_one(&self, batch: usize) -> Result<Drawn, MathError> {
        let FisherPass { unet, schedule, data, params, .. } = *self;
        let (device, images) = (unet.device(), params.rows_of(batch, data.latents_len()));
        let latents = data.latents(&images.clone().collect::<Vec<_>>(), device)?;
        let (count, captions) = (images.len() as i64, data.captions() as i64);
        let mut draws = Generator::seeded(derived_seed("fisher", &[params.seed.into(), batch as i64]));
        let timesteps = draws.randint(schedule.train_timesteps(), count);
        let drawn = match params.caption_draw {
            CaptionDraw::Batch => draws.randint(captions, 1).repeat([count]),
            CaptionDraw::Row => draws.randint(captions, count),
        };
        let noise = draws.noise(&latents.size(), params.objective.noise_offset, Device::Cpu);
        let sampled = (params.fisher_type == FisherType::Sampled)
            .then(|| draws.normal(&latents.size(), Device::Cpu).to_device(device));
        drop(draws);
        let caption = |row: usize| drawn.int64_value(&[row as i64]) as usize;
        let pairs: Vec<_> = images.enumerate().map(|(row, image)| (image, caption(row))).collect();
        let [noise, timesteps] = [noise, timesteps].map(|x| x.to_device(device));
        Ok(Drawn { latents, noise, timesteps, texts: data.texts(&pairs, device)?, sampled })
    }
}

/// The rows of a batch.
struct Drawn {
    latents: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    texts: Tensor,
    sampled: Option<Tensor>,
}

/// The sums over rows of the squared gradients of each row's loss, by parameter in float64; see [`of_rows`].
///
/// # Errors
/// A loss is not finite.
pub fn squared_gradients(
    unet: &UNet,
    schedule: &NoiseSchedule,
    rows: &DenoisingRows,
    selection: &Selection,
    first_image: usize,
) -> Result<BTreeMap<String, Tensor>, MathError> {
    of_rows(unet, schedule, rows, selection, &Quantity::Loss, |row| first_image + row, &squares)
}

/// What `contract` makes of the gradients of some rows.
///
/// Every row needs a condition of its own (the network would share keys and values otherwise). `image_of` tells the
/// image of a row for an error.
///
/// # Errors
/// A loss is not finite, or an error of the contraction.
pub fn of_rows(
    unet: &UNet,
    schedule: &NoiseSchedule,
    rows: &DenoisingRows,
    selection: &Selection,
    quantity: &Quantity<'_>,
    image_of: impl Fn(usize) -> usize,
    contract: Contraction<'_>,
) -> Result<BTreeMap<String, Tensor>, MathError> {
    assert_eq!(rows.conditioning.count() as usize, rows.len(), "each row needs a condition of its own");
    let place = |row: usize| (image_of(row), rows.timesteps.int64_value(&[row as i64]));
    let found = layer_gradients(unet, schedule, rows, selection, quantity, place)?;
    tch::no_grad(|| contract(&found))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_goes_through_all_rows_in_order() {
        for (latents, batch_size) in [(10, 4), (8, 4), (3, 5)] {
            let params = FisherParams { epochs: 3, batch_size, ..FisherParams::default() };
            let rows: Vec<usize> =
                (0..params.batches(latents)).flat_map(|b| params.rows_of(b, latents)).collect();
            assert_eq!(rows, (0..latents).cycle().take(3 * latents).collect::<Vec<_>>());
        }
    }
}
