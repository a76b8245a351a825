//! Unlearning a generated image: a step up its loss, weighed so that what matters to the training set stays.
//!
//! Wang et al. 2024, section 4: p += lr * grad / (N F), F being the Fisher diagonal and N the number of training
//! images. The sign is plus: the image's loss goes up.

use std::collections::BTreeMap;
use std::ops::Range;

use attrflow_engine::config::param::Validate;
use attrflow_engine::params;
use serde_json::Value as Json;
use tch::{Device, Kind, Tensor};

use super::curvature::{Curvature, CurvatureKind};
use super::damping::Damping;
use super::diffusion_loss::{DenoisingRows, check};
use super::error::MathError;
use super::identity::hashed;
use super::micro_batches::in_micro_batches;
use super::noise::{Generator, derived_seed};
use super::objective::Objective;
use super::schedule::NoiseSchedule;
use super::selection::Selection;
use crate::models::unet::conditioning::Conditioning;
use crate::models::unet::{Precision, UNet};

params! {
    /// Parameters of `unlearn`.
    pub struct UnlearnParams {
        /// Steps of gradient ascent.
        steps: usize [1..=10_000] = 1,
        /// Batches whose gradients are accumulated in a step.
        grad_accum_steps: usize [1..=1_000_000] = 625,
        /// Rows per batch, at distinct timesteps: at most as many as the model has.
        batch_size: usize [1..=100_000] = 80,
        /// Learning rate, 0.01 as published where neither it nor `rise` is given.
        lr: Option<f64> = None,
        /// In place of `lr`: how much the step should raise the query's loss, to first order, as a share of that loss. The learning
        /// rate follows from it, so one value fits data sets, models and selections of any size.
        rise: Option<f64> = None,
        /// Seed of timesteps and noise.
        seed: u32 = 0,
        /// Added to the Fisher information, which can contain zeros: with 0, as published, a zero is an error.
        damping: f64 = 0.0,
        /// The same as a share of the mean of each weight tensor's Fisher information, or of each layer's eigenvalues, so that one
        /// value fits any scale: without it 0 for `diagonal`, as published, and 0.1 for `ekfac`. Maps of a LoRA need it where a rank
        /// is unused: its Fisher information is zero.
        relative_damping: Option<f64> = None,
        /// `diagonal`: the Fisher information's diagonal, of the input `fisher`; `ekfac`: Kronecker factors with corrected
        /// eigenvalues (George et al. 2018, arXiv 1806.03884), of the input `ekfac`, which know how weights depend on each other.
        curvature: CurvatureKind = CurvatureKind::Diagonal,
        /// The weights to change.
        select: Selection = Selection::CrossAttnKv,
        /// The row of `latents` and `text_embeddings` that is the query.
        index: usize = 0,
        /// Number of training images N, for Fisher information without that number in its metadata, such as the
        /// published file. If the metadata has it, another number is an error.
        images: Option<usize> = None,
        /// What the model was trained to minimise; the same for all stages.
        objective: Objective = Objective::default(),
        /// `fp32`, or `tf32`: products of factors rounded to 10 bits on a GPU, faster there. On a CPU both are the same.
        precision: Precision = Precision::Fp32,
    }
}

impl Validate for UnlearnParams {
    fn validate(&self) -> Vec<(&'static str, String)> {
        let mut faults = Vec::new();
        if self.images == Some(0) {
            faults.push(("images", "`images` is 0, expected 1 or more".to_owned()));
        }
        faults.extend(self.precision.of_gradients().map(|message| ("precision", message)));
        let relative = self.relative_damping.unwrap_or(0.0);
        for (key, value) in [("damping", self.damping), ("relative_damping", relative)] {
            if value < 0.0 {
                faults.push((key, format!("`{key}` is {value}, expected a number of at least 0")));
            }
        }
        for (key, value) in [("lr", self.lr), ("rise", self.rise)] {
            if let Some(value) = value.filter(|value| *value <= 0.0) {
                faults.push((
                    key,
                    format!("`{key}` is {value}, expected a number above 0: the loss has to rise"),
                ));
            }
        }
        if self.lr.is_some() && self.rise.is_some() {
            let message = "`rise` and `lr` exclude each other: `rise` sets the learning rate; remove one";
            faults.push(("rise", message.to_owned()));
        }
        faults
    }
}

/// The learning rate as published.
const LR: f64 = 0.01;

impl UnlearnParams {
    /// What is hashed: `lr` or `rise`, whichever counts.
    pub fn identity(&self) -> Json {
        let lr = self.lr.or(self.rise.is_none().then_some(LR));
        let damping = self.damping();
        let later = [
            ("lr", lr.is_none()),
            ("rise", self.rise.is_none()),
            ("relative_damping", damping.relative == 0.0),
            ("curvature", self.curvature == CurvatureKind::Diagonal),
            ("objective", self.objective.is_plain()),
            ("precision", self.precision == Precision::Fp32),
        ];
        // Hashed as a number where it counts.
        let relative_damping = Some(damping.relative);
        hashed(&UnlearnParams { lr, relative_damping, ..self.clone() }, &later)
    }

    /// What is added to the Fisher information.
    pub fn damping(&self) -> Damping {
        /// As kronfluence and the published EK-FAC step have it.
        const EKFAC: f64 = 0.1;
        let usual = if self.curvature == CurvatureKind::Ekfac { EKFAC } else { 0.0 };
        Damping { absolute: self.damping, relative: self.relative_damping.unwrap_or(usual) }
    }
}

/// A model about to unlearn one generated image, which changes the network's parameters.
pub struct Unlearning<'a> {
    unet: &'a mut UNet,
    schedule: &'a NoiseSchedule,
    latent: Tensor,
    conditioning: Conditioning,
    params: &'a UnlearnParams,
    chosen: Vec<String>,
    micro_batch: usize,
    /// See [`Unlearning::predicted_rise`].
    predicted: f64,
    /// See [`Unlearning::quadratic_form`].
    form: f64,
    /// See [`Unlearning::lr`].
    lr: f64,
    /// See [`Unlearning::loss_before`].
    before: Option<f64>,
}

/// Rows of the loss that is measured before and after.
pub const RISE_ROWS: i64 = 100;

impl<'a> Unlearning<'a> {
    /// The query is a latent [C, H, W] and its condition, one.
    ///
    /// # Errors
    /// A batch has more rows than the model has timesteps, or nothing is selected.
    pub fn new(
        unet: &'a mut UNet,
        schedule: &'a NoiseSchedule,
        latent: &Tensor,
        conditioning: &Conditioning,
        params: &'a UnlearnParams,
        micro_batch: usize,
    ) -> Result<Unlearning<'a>, MathError> {
        if params.batch_size as i64 > schedule.train_timesteps() {
            let rule =
                format!("its timesteps are distinct, and the model has {}", schedule.train_timesteps());
            return Err(MathError::parameter("batch_size", params.batch_size, rule));
        }
        let chosen = params.select.of(unet.parameters().keys())?;
        let device = unet.device();
        let to_device = |x: &Tensor| x.to_kind(Kind::Float).to_device(device);
        let (latent, conditioning) = (to_device(latent).unsqueeze(0), conditioning.map(to_device));
        let (predicted, form, lr, before) = (0.0, 0.0, params.lr.unwrap_or(LR), None);
        Ok(Unlearning {
            unet,
            schedule,
            latent,
            conditioning,
            params,
            chosen,
            micro_batch,
            predicted,
            form,
            lr,
            before,
        })
    }

    /// All steps; returns the changed parameters in float32.
    ///
    /// `curvature` is an estimate of the Fisher information, `images` the number N of training images (without mirror images).
    /// `progress` receives the number of finished batches.
    ///
    /// # Errors
    /// The information doesn't fit the parameters or holds zeros, or a number is not finite.
    pub fn run(
        &mut self,
        curvature: &Curvature,
        images: usize,
        progress: &mut dyn FnMut(usize),
    ) -> Result<BTreeMap<String, Tensor>, MathError> {
        self.check(curvature)?;
        let rise = match self.params.rise {
            Some(share) => Some(share * self.loss_before()? / self.params.steps as f64),
            None => None,
        };
        for step in 0..self.params.steps {
            let done = step * self.params.grad_accum_steps;
            let batches = 0..self.params.grad_accum_steps;
            let gradient = self.gradient(step, batches, &mut |batches| progress(done + batches))?;
            if let Some(wanted) = rise {
                self.lr = wanted / self.rise_per_lr(&gradient, curvature, images)?;
            }
            self.apply(&gradient, curvature, images)?;
        }
        Ok(self.changed())
    }

    /// The sum over a range of a step's batches of the gradient of the mean loss, in float64.
    ///
    /// Each batch has its own seed, so that the sums of ranges add up.
    ///
    /// # Errors
    /// A loss is not finite.
    pub fn gradient(
        &self,
        step: usize,
        batches: Range<usize>,
        progress: &mut dyn FnMut(usize),
    ) -> Result<BTreeMap<String, Tensor>, MathError> {
        let (mut total, mut next) = (BTreeMap::new(), batches.start);
        // As many whole batches at once as the device has room for: small passes leave most of a GPU idle.
        let at_once = (self.micro_batch / self.params.batch_size).max(1);
        while next < batches.end {
            let some = next..batches.end.min(next + at_once);
            next = some.end;
            let rows: Vec<DenoisingRows> = some.map(|batch| self.draw(step, batch)).collect();
            add(&mut total, self.gradient_of_batches(&rows)?);
            progress(next - batches.start);
        }
        Ok(total)
    }

    /// The rows of a batch: distinct timesteps and noise. The CPU draws, in this order: the same on every device.
    pub fn draw(&self, step: usize, batch: usize) -> DenoisingRows {
        let (count, device) = (self.params.batch_size as i64, self.unet.device());
        let mut shape = self.latent.size();
        shape[0] = count;
        let mut draws =
            Generator::seeded(derived_seed("unlearn", &[self.params.seed.into(), step as i64, batch as i64]));
        let timesteps = draws.permutation(self.schedule.train_timesteps()).narrow(0, 0, count);
        let noise = draws.noise(&shape, self.params.objective.noise_offset, Device::Cpu);
        self.rows(timesteps.to_device(device), noise.to_device(device))
    }

    /// The query at given timesteps [B] with given noise [B, C, H, W].
    pub fn rows(&self, timesteps: Tensor, noise: Tensor) -> DenoisingRows {
        let latents = self.latent.expand(noise.size(), false);
        DenoisingRows { latents, noise, timesteps, conditioning: self.conditioning.narrow(0, 1) }
    }

    /// The sum of the gradients of the mean losses over batches of the same size.
    fn gradient_of_batches(&self, batches: &[DenoisingRows]) -> Result<BTreeMap<String, Tensor>, MathError> {
        let size = batches[0].len();
        let together = |part: fn(&DenoisingRows) -> &Tensor| {
            Tensor::cat(&batches.iter().map(part).collect::<Vec<_>>(), 0)
        };
        let rows = &DenoisingRows {
            latents: together(|rows| &rows.latents),
            noise: together(|rows| &rows.noise),
            timesteps: together(|rows| &rows.timesteps),
            conditioning: batches[0].conditioning.narrow(0, 1),
        };
        // Only the chosen parameters require grad, so there is no graph below the first of them.
        let parameters: Vec<Tensor> =
            self.chosen.iter().map(|name| self.unet.parameters()[name].set_requires_grad(true)).collect();
        let mut total = BTreeMap::new();
        let slices = in_micro_batches(rows.len(), self.micro_batch, |row, most| {
            let some = rows.slice(row..row + most);
            let losses = tch::with_grad(|| some.losses(self.unet, self.schedule));
            check(&losses, |row| (0, some.timesteps.int64_value(&[row as i64])))?;
            let mean = losses.sum(Kind::Float) / size as f64;
            let grads = Tensor::run_backward(&[mean], &parameters, false, false);
            let doubles = grads.iter().map(|grad| grad.to_kind(Kind::Double));
            // Summed at once: the gradients of many slices would take what the slices were cut for.
            add(&mut total, self.chosen.iter().cloned().zip(doubles).collect());
            Ok::<_, MathError>((most, ()))
        });
        for parameter in &parameters {
            let _ = parameter.set_requires_grad(false);
        }
        slices?;
        Ok(total)
    }

    /// The mean gradient over batches, and the step with a learning rate of 1: the inverse of N F times the gradient, in float64.
    fn direction(
        &self,
        gradient: &BTreeMap<String, Tensor>,
        curvature: &Curvature,
        images: usize,
    ) -> [BTreeMap<String, Tensor>; 2] {
        let batches = self.params.grad_accum_steps as f64;
        let mean: BTreeMap<_, _> =
            gradient.iter().map(|(name, sum)| (name.clone(), sum.to_kind(Kind::Double) / batches)).collect();
        let solved = curvature.solve(&mean, self.params.damping());
        let step = solved.into_iter().map(|(name, step)| (name, step / images as f64)).collect();
        [mean, step]
    }

    /// How much a step with a learning rate of 1 would raise the query's loss, to first order: gradient times step.
    fn rise_per_lr(
        &self,
        gradient: &BTreeMap<String, Tensor>,
        curvature: &Curvature,
        images: usize,
    ) -> Result<f64, MathError> {
        let [mean, step] = self.direction(gradient, curvature, images);
        let rise = product(&mean, &step);
        if rise.is_finite() && rise > 0.0 { Ok(rise) } else { Err(MathError::NoRise { rise }) }
    }

    /// Moves the parameters: p += lr * (N F)^-1 gradient / grad_accum_steps, in float64, rounded to float32.
    ///
    /// # Errors
    /// As [`Unlearning::run`].
    pub fn apply(
        &mut self,
        gradient: &BTreeMap<String, Tensor>,
        curvature: &Curvature,
        images: usize,
    ) -> Result<(), MathError> {
        self.check(curvature)?;
        let [mean, step] = self.direction(gradient, curvature, images);
        let step: BTreeMap<_, _> = step.into_iter().map(|(name, step)| (name, step * self.lr)).collect();
        self.predicted += product(&mean, &step);
        self.form += images as f64 / 2.0 * curvature.form(&step);
        for (name, step) in &step {
            let parameter = &self.unet.parameters()[name];
            // Checked as it is stored: what is finite in float64 may not be in float32.
            let moved = (parameter.to_kind(Kind::Double) + step).to_kind(parameter.kind());
            if moved.isfinite().all().int64_value(&[]) == 0 {
                let what = "after the step";
                return Err(MathError::ParameterNotFinite { parameter: name.clone(), what });
            }
            self.unet.update(name, &moved);
        }
        Ok(())
    }

    fn check(&self, curvature: &Curvature) -> Result<(), MathError> {
        let chosen = |name: &String| (name.clone(), self.unet.parameters()[name].shallow_clone());
        curvature.check(&self.chosen.iter().map(chosen).collect(), self.params.damping())
    }

    /// N / 2 times the quadratic form s^T F s of each step s so far, without damping: how much the steps raise the sum of the training
    /// images' losses to second order, if F is the Hessian of their mean. It compares steps of different curvatures.
    pub fn quadratic_form(&self) -> f64 {
        self.form
    }

    /// The learning rate: as given, or of the last step, from `rise`.
    pub fn lr(&self) -> f64 {
        self.lr
    }

    /// How much the steps so far raise the query's loss to first order: the sum of gradient times step.
    pub fn predicted_rise(&self) -> f64 {
        self.predicted
    }

    /// The query's loss before the first step, measured once: to be asked for before it.
    ///
    /// # Errors
    /// As [`Unlearning::query_loss`].
    pub fn loss_before(&mut self) -> Result<f64, MathError> {
        match self.before {
            Some(loss) => Ok(loss),
            None => Ok(*self.before.insert(self.query_loss()?)),
        }
    }

    /// The query's loss now: the mean over timesteps spread over all, each with noise that is always the same.
    ///
    /// # Errors
    /// A loss is not finite.
    pub fn query_loss(&self) -> Result<f64, MathError> {
        let (train, device) = (self.schedule.train_timesteps(), self.unet.device());
        let count = RISE_ROWS.min(train);
        let timesteps: Vec<i64> = (0..count).map(|row| (2 * row + 1) * train / (2 * count)).collect();
        let mut shape = self.latent.size();
        shape[0] = count;
        let seed = derived_seed("rise", &[self.params.seed.into()]);
        let offset = self.params.objective.noise_offset;
        let noise = Generator::seeded(seed).noise(&shape, offset, Device::Cpu).to_device(device);
        let rows = self.rows(Tensor::from_slice(&timesteps).to_device(device), noise);
        let sums = in_micro_batches(rows.len(), self.micro_batch, |row, most| {
            let some = rows.slice(row..row + most);
            let _guard = tch::no_grad_guard(); // unlike `no_grad`, it ends when memory runs out inside
            let losses = some.losses(self.unet, self.schedule);
            check(&losses, |row| (0, some.timesteps.int64_value(&[row as i64])))?;
            Ok::<_, MathError>((most, losses.sum(Kind::Double).double_value(&[])))
        })?;
        Ok(sums.into_iter().sum::<f64>() / count as f64)
    }

    /// Copies of the chosen parameters as they are now.
    pub fn changed(&self) -> BTreeMap<String, Tensor> {
        self.chosen.iter().map(|name| (name.clone(), self.unet.parameters()[name].copy())).collect()
    }
}

/// The sum of the products of two sets of tensors with the same names.
fn product(a: &BTreeMap<String, Tensor>, b: &BTreeMap<String, Tensor>) -> f64 {
    a.iter().map(|(name, a)| (a * &b[name]).sum(Kind::Double).double_value(&[])).sum()
}

/// Adds `part` to `total`, parameter by parameter.
fn add(total: &mut BTreeMap<String, Tensor>, part: BTreeMap<String, Tensor>) {
    for (name, grad) in part {
        total.entry(name).and_modify(|sum| *sum += &grad).or_insert(grad);
    }
}
