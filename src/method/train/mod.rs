//! Training of the network, so that leaving images out changes nothing but their absence.
//!
//! A *visit* is one use of an image: all of its draws are keyed by (seed, image id, epoch). The order of an epoch is a
//! permutation of all images, those that are left out too; step s takes the next `batch_size` visits of the endless stream
//! of epochs, and drops those of images that are left out. So two models that differ in a set left out share every other draw.

mod adamw;
mod init;
mod visits;

use std::collections::{BTreeMap, BTreeSet};

use attrflow_engine::config::param::Validate;
use attrflow_engine::{choice, params};
use tch::{Device, Kind, Tensor};

use super::data::{DataSet, to_device};
use super::diffusion_loss::{DenoisingRows, check};
use super::error::MathError;
use super::objective::Objective;
use super::schedule::NoiseSchedule;
use super::selection::Selection;
use crate::models::lora::Adapters;
use crate::models::unet::UNet;
pub use adamw::{AdamW, Moments, average, learning_rate};
pub use init::{new_adapters, random_weights};
pub use visits::{Draws, Stream, Visit};

choice! {
    /// Where training begins.
    pub enum Init {
        /// At random weights.
        Scratch = "scratch",
        /// At those of the network that is given.
        Checkpoint = "checkpoint",
    }
}

choice! {
    /// The learning rate after the warm-up.
    pub enum LrScheduler {
        /// It stays.
        Constant = "constant",
        /// It falls along half a cosine.
        Cosine = "cosine",
    }
}

choice! {
    /// What takes the place of images that are left out.
    pub enum LeaveOut {
        /// Nothing: batches have fewer rows, and every other draw stays.
        Drop = "drop",
        /// The images that stay: epochs are shorter, and the order is another.
        Compact = "compact",
    }
}

params! {
    /// Maps of low rank that are trained beside weights of the network, which stay as they are.
    pub struct TrainLora {
        /// The rank of the maps.
        rank: usize [1..=1024] = 4,
        /// The maps count alpha / rank times; by default as much as the rank, so that they count once.
        alpha: Option<f64> = None,
        /// The linear layers that get them, by the names of their weights.
        targets: Selection = Selection::Attn,
    }
}

impl Validate for TrainLora {
    fn validate(&self) -> Vec<(&'static str, String)> {
        let mut faults = Vec::new();
        if let Some(alpha) = self.alpha.filter(|alpha| *alpha <= 0.0) {
            faults.push(("alpha", format!("`alpha` is {alpha}, expected a number above 0")));
        }
        if self.targets.adapters() == Adapters::Layers {
            faults
                .push(("targets", format!("`targets` is {}, expected weights of the network", self.targets)));
        }
        faults
    }
}

impl TrainLora {
    /// The factor of the maps' product.
    pub fn scale(&self) -> f64 {
        self.alpha.map_or(1.0, |alpha| alpha / self.rank as f64)
    }
}

params! {
    /// Parameters of `train`.
    pub struct TrainParams {
        /// Where it begins: `scratch` draws the weights, `checkpoint` takes those on `unet`.
        init: Init = Init::Scratch,
        /// Steps of the optimiser.
        steps: usize [1..=100_000_000] = 1000,
        /// Steps between two checkpoints, at which an interrupted training goes on.
        checkpoint_every: usize [1..=1_000_000] = 500,
        /// Visits of a step. Those of images that are left out are dropped.
        batch_size: usize [1..=100_000] = 64,
        /// Learning rate of AdamW.
        lr: f64 = 1e-4,
        /// The learning rate after the warm-up: `constant`, or `cosine` down to `lr_min`.
        lr_scheduler: LrScheduler = LrScheduler::Constant,
        /// Steps in which the learning rate rises to `lr`.
        lr_warmup_steps: usize [0..=100_000_000] = 500,
        /// Of `cosine`: the lowest learning rate, as a share of `lr`.
        lr_min: f64 [0.0..=1.0] = 0.0,
        /// AdamW: decay of the mean of gradients.
        adam_beta1: f64 [0.0..=1.0] = 0.9,
        /// AdamW: decay of the mean of squared gradients.
        adam_beta2: f64 [0.0..=1.0] = 0.999,
        /// AdamW: added to the root of that mean.
        adam_epsilon: f64 = 1e-8,
        /// AdamW: decay of the weights.
        adam_weight_decay: f64 = 0.01,
        /// The norm to which a larger gradient is scaled down.
        max_grad_norm: f64 = 1.0,
        /// The largest decay of the mean of weights that is the result; without it, the last weights are.
        ema_decay: Option<f64> = None,
        /// Probability of the empty text in place of a caption.
        caption_dropout: f64 [0.0..=1.0] = 0.1,
        /// Whether half of the visits see the mirror image.
        flips: bool = true,
        /// Seed of weights, order and draws.
        seed: u32 = 0,
        /// The weights that are trained.
        select: Selection = Selection::All,
        /// Train a LoRA in place of weights: `{ rank, alpha, targets }`. The output is then `lora` in place of `unet`.
        lora: Option<TrainLora> = None,
        /// What takes the place of images that are left out: nothing (`drop`), or the images that stay (`compact`).
        leave_out: LeaveOut = LeaveOut::Drop,
        /// What the model is trained to minimise.
        objective: Objective = Objective::default(),
    }
}

impl Validate for TrainParams {
    fn validate(&self) -> Vec<(&'static str, String)> {
        let above =
            [("lr", self.lr), ("adam_epsilon", self.adam_epsilon), ("max_grad_norm", self.max_grad_norm)];
        let above = above.into_iter().filter(|(_, value)| *value <= 0.0);
        let mut faults: Vec<_> = above
            .map(|(key, value)| (key, format!("`{key}` is {value}, expected a number above 0")))
            .collect();
        for (key, beta) in [("adam_beta1", self.adam_beta1), ("adam_beta2", self.adam_beta2)] {
            if beta == 1.0 {
                faults.push((key, format!("`{key}` is 1, expected a number below 1")));
            }
        }
        if self.adam_weight_decay < 0.0 {
            let found = self.adam_weight_decay;
            faults
                .push(("adam_weight_decay", format!("`adam_weight_decay` is {found}, expected at least 0")));
        }
        if self.lora.is_some() && self.init == Init::Scratch {
            let message =
                "`lora` needs `init = \"checkpoint\"`: it is trained beside weights that stay as they are";
            faults.push(("lora", message.to_owned()));
        }
        if self.lora.is_none() && self.select.adapters() == Adapters::Layers {
            faults.push((
                "select",
                format!("`select` is {}: a LoRA is trained by the table `lora`", self.select),
            ));
        }
        if self.lora.is_some() && self.select != Selection::All {
            faults.push((
                "select",
                "`select` has no effect with `lora`, whose `targets` say what is trained: remove it"
                    .to_owned(),
            ));
        }
        if let Some(decay) = self.ema_decay.filter(|decay| !(0.0..1.0).contains(decay)) {
            let message = format!("`ema_decay` is {decay}, expected a number from 0 to below 1");
            faults.push(("ema_decay", message));
        }
        faults
    }
}

impl TrainParams {
    /// What is trained.
    pub fn trained(&self) -> &Selection {
        if self.lora.is_some() { &Selection::Lora } else { &self.select }
    }
}

/// Rows that go through the network at once. Fixed: the sum of gradients depends on it.
pub const SLICE: usize = 16;

/// What one step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// The step, from 0.
    pub step: usize,
    /// Rows that were kept.
    pub rows: usize,
    /// The mean loss over them; none without rows.
    pub loss: Option<f64>,
    /// The norm of the gradient before it is scaled.
    pub grad_norm: f64,
    /// The learning rate.
    pub lr: f64,
}

/// The training set of a model.
pub struct TrainingData<'a> {
    /// Rows [2, C, H, W]: mean and standard deviation of an image's scaled latent, the mirror images after the images; and texts.
    pub moments: DataSet<'a>,
    /// The row of the empty text [1, L, D].
    pub empty: Tensor,
    /// The images' ids.
    pub ids: &'a [String],
    /// Those that are left out.
    pub left_out: &'a BTreeSet<String>,
}

/// A network in training.
pub struct Training<'a> {
    unet: UNet,
    schedule: &'a NoiseSchedule,
    data: TrainingData<'a>,
    params: &'a TrainParams,
    stream: Stream,
    optimizer: AdamW,
    chosen: Vec<String>,
    /// The shape of a latent, [C, H, W].
    shape: Vec<i64>,
    /// The mean of weights.
    ema: Option<BTreeMap<String, Tensor>>,
}

impl<'a> Training<'a> {
    /// A training that has not begun, or the one whose state was kept.
    ///
    /// # Errors
    /// Nothing is selected, nothing is left of the training set, or it cannot be read.
    pub fn new(
        unet: UNet,
        schedule: &'a NoiseSchedule,
        data: TrainingData<'a>,
        params: &'a TrainParams,
        state: Option<TrainingState>,
    ) -> Result<Training<'a>, MathError> {
        let chosen = params.trained().of(unet.parameters().keys())?;
        let stream = Stream::new(params, data.ids, data.left_out)?;
        let shape = data.moments.latents(&[0], Device::Cpu)?.size()[2..].to_vec();
        let (optimizer, ema) = (AdamW::default(), None);
        let mut training = Training { unet, schedule, data, params, stream, optimizer, chosen, shape, ema };
        match state {
            Some(TrainingState { weights, moments, ema, skipped }) => {
                weights.iter().for_each(|(name, values)| training.unet.update(name, values));
                training.optimizer = AdamW { moments, skipped };
                training.ema = ema;
            }
            None if params.ema_decay.is_some() => training.ema = Some(training.weights()),
            None => {}
        }
        Ok(training)
    }

    /// One step.
    ///
    /// # Errors
    /// Data that cannot be read, and a loss or a weight that is not finite.
    pub fn step(&mut self, step: usize) -> Result<StepReport, MathError> {
        let lr = learning_rate(self.params, step);
        let (gradient, rows, loss) = self.gradient(step)?;
        if rows == 0 {
            self.optimizer.skipped += 1;
            return Ok(StepReport { step, rows, loss: None, grad_norm: 0.0, lr });
        }
        let (names, parameters) = (&self.chosen, self.unet.parameters());
        let (moved, grad_norm) =
            tch::no_grad(|| self.optimizer.step(self.params, step, lr, names, parameters, &gradient));
        for (name, values) in &moved {
            if values.isfinite().all().int64_value(&[]) == 0 {
                let what = "after a step of the optimiser";
                return Err(MathError::ParameterNotFinite { parameter: name.clone(), what });
            }
            self.unet.update(name, values);
        }
        if let (Some(ema), Some(most)) = (&mut self.ema, self.params.ema_decay) {
            let count = step - self.optimizer.skipped;
            tch::no_grad(|| average(ema, self.unet.parameters(), most, count));
        }
        Ok(StepReport { step, rows, loss: Some(loss), grad_norm, lr })
    }

    /// The gradient of the mean loss over a step's rows, how many they are, and the loss.
    ///
    /// # Errors
    /// Data that cannot be read, and a loss that is not finite.
    pub fn gradient(&self, step: usize) -> Result<(BTreeMap<String, Tensor>, usize, f64), MathError> {
        let visits = self.stream.visits(step);
        let count = visits.len();
        let slices = visits
            .chunks(SLICE)
            .map(|some| Ok((self.rows(some)?, some.iter().map(|visit| visit.image).collect())));
        let (total, loss) = mean_gradient(&self.unet, self.schedule, &self.chosen, count, slices)?;
        Ok((total, count, loss))
    }

    /// What some visits see.
    fn rows(&self, visits: &[Visit]) -> Result<DenoisingRows, MathError> {
        let device = self.unet.device();
        let (images, data) = (self.data.moments.images(), &self.data.moments);
        let draws: Vec<Draws> = visits
            .iter()
            .map(|visit| {
                visit.draws(self.params, data.captions(), self.schedule.train_timesteps(), &self.shape)
            })
            .collect();
        let latent = |(visit, draws): (&Visit, &Draws)| visit.image + if draws.flipped { images } else { 0 };
        let latents: Vec<usize> = visits.iter().zip(&draws).map(latent).collect();
        let moments = data.latents(&latents, device)?; // [B, 2, C, H, W]
        let stack = |part: fn(&Draws) -> &Tensor| {
            Tensor::stack(&draws.iter().map(part).collect::<Vec<_>>(), 0).to_device(device)
        };
        let latents = moments.select(1, 0) + moments.select(1, 1) * stack(|draws| &draws.posterior);
        let pairs: Vec<_> =
            visits.iter().zip(&draws).map(|(visit, draws)| (visit.image, draws.caption)).collect();
        let conditioning = self.unet.conditioning(data.texts(&pairs, device)?);
        let empty = self.unet.conditioning(to_device(&self.data.empty, device));
        for (row, _) in draws.iter().enumerate().filter(|(_, draws)| draws.without_text) {
            conditioning.set_text(row as i64, &empty);
        }
        let timesteps: Vec<i64> = draws.iter().map(|draws| draws.timestep).collect();
        Ok(DenoisingRows {
            latents,
            noise: stack(|draws| &draws.noise),
            timesteps: Tensor::from_slice(&timesteps).to_device(device),
            conditioning,
        })
    }

    /// Copies of the trained weights.
    fn weights(&self) -> BTreeMap<String, Tensor> {
        self.chosen.iter().map(|name| (name.clone(), self.unet.parameters()[name].copy())).collect()
    }

    /// What it takes to go on.
    pub fn state(&self) -> TrainingState {
        let copies = |tensors: &BTreeMap<String, Tensor>| {
            tensors.iter().map(|(name, tensor)| (name.clone(), tensor.copy())).collect()
        };
        TrainingState {
            weights: self.weights(),
            moments: self.optimizer.copy(),
            skipped: self.optimizer.skipped,
            ema: self.ema.as_ref().map(copies),
        }
    }
}

/// The gradient of the mean loss over `count` rows that come in slices, and that loss. The gradients of slices are added in
/// their order, in float32.
///
/// # Errors
/// Rows that cannot be read, and a loss that is not finite: each slice comes with the images of its rows.
pub fn mean_gradient(
    unet: &UNet,
    schedule: &NoiseSchedule,
    chosen: &[String],
    count: usize,
    mut slices: impl Iterator<Item = Result<(DenoisingRows, Vec<usize>), MathError>>,
) -> Result<(BTreeMap<String, Tensor>, f64), MathError> {
    let parameters: Vec<Tensor> =
        chosen.iter().map(|name| unet.parameters()[name].set_requires_grad(true)).collect();
    let (mut total, mut sum): (BTreeMap<String, Tensor>, f64) = (BTreeMap::new(), 0.0);
    let result = slices.try_for_each(|slice| {
        let (rows, images) = slice?;
        let losses = tch::with_grad(|| rows.losses(unet, schedule)); // [B]
        check(&losses, |row| (images[row], rows.timesteps.int64_value(&[row as i64])))?;
        let loss = losses.sum(Kind::Float);
        sum += loss.double_value(&[]);
        let grads = Tensor::run_backward(&[loss / count as f64], &parameters, false, false);
        for (name, grad) in chosen.iter().zip(grads) {
            match total.get_mut(name) {
                Some(total) => *total += grad,
                None => _ = total.insert(name.clone(), grad),
            }
        }
        Ok::<_, MathError>(())
    });
    for parameter in &parameters {
        let _ = parameter.set_requires_grad(false);
    }
    result?;
    Ok((total, sum / count.max(1) as f64))
}

/// What it takes to go on after a step.
pub struct TrainingState {
    /// The trained weights.
    pub weights: BTreeMap<String, Tensor>,
    /// What the optimiser knows of their gradients.
    pub moments: Moments,
    /// The mean of weights, if there is one.
    pub ema: Option<BTreeMap<String, Tensor>>,
    /// Steps without a row, which moved nothing.
    pub skipped: usize,
}
