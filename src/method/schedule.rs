//! The forward process and one step back: how much noise each timestep has.
//!
//! Ho et al. 2020 (arXiv 2006.11239), with the numbers of diffusers' `DDPMScheduler` to the last bit: everything
//! is float32, as there. Shapes: latents and noise [B, C, H, W], timesteps [B] int64.

use std::path::Path;

use serde::Deserialize;
use tch::{Device, Kind, Tensor};

use super::error::MathError;
use super::objective::Objective;
use crate::models::weights::config::{self, ModelError, OptionGuard};

/// What `DDPMScheduler` could compute but this crate does not.
const GUARDS: &[OptionGuard] = &[
    // Schedulers for models that were trained with DDPM's noise; they differ in their steps, which are DDPM's here.
    OptionGuard(
        "_class_name",
        &[
            "\"DDPMScheduler\"",
            "\"DDIMScheduler\"",
            "\"PNDMScheduler\"",
            "\"LMSDiscreteScheduler\"",
            "\"EulerDiscreteScheduler\"",
            "\"EulerAncestralDiscreteScheduler\"",
            "\"HeunDiscreteScheduler\"",
            "\"KDPM2DiscreteScheduler\"",
            "\"KDPM2AncestralDiscreteScheduler\"",
            "\"DEISMultistepScheduler\"",
            "\"DPMSolverMultistepScheduler\"",
            "\"DPMSolverSinglestepScheduler\"",
            "\"DPMSolverSDEScheduler\"",
            "\"UniPCMultistepScheduler\"",
            "\"DDPMParallelScheduler\"",
            "\"DDIMParallelScheduler\"",
        ],
    ),
    // Keys of flow matching and EDM, whatever the class.
    OptionGuard("shift", &["null"]),
    OptionGuard("base_shift", &["null"]),
    OptionGuard("max_shift", &["null"]),
    OptionGuard("sigma_min", &["null"]),
    OptionGuard("sigma_max", &["null"]),
    OptionGuard("timestep_type", &["\"discrete\"", "null"]),
    OptionGuard("sigma_data", &["null"]),
    OptionGuard("use_dynamic_shifting", &["false"]),
    OptionGuard("use_flow_sigmas", &["false", "null"]),
    OptionGuard("beta_schedule", &["\"linear\"", "\"scaled_linear\""]),
    OptionGuard("prediction_type", &["\"epsilon\"", "\"v_prediction\""]),
    OptionGuard("thresholding", &["false"]),
    OptionGuard("timestep_spacing", &["\"leading\"", "\"trailing\""]),
    OptionGuard("trained_betas", &["null"]),
    OptionGuard("variance_type", &["\"fixed_small\""]),
];

/// The keys of `scheduler_config.json` that matter here, with the defaults of `DDPMScheduler`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "named and documented by diffusers' DDPMScheduler")]
pub struct ScheduleConfig {
    pub num_train_timesteps: i64,
    pub beta_start: f64,
    pub beta_end: f64,
    pub beta_schedule: BetaSchedule,
    pub clip_sample: bool,
    pub clip_sample_range: f64,
    pub steps_offset: i64,
    pub prediction_type: Prediction,
    pub rescale_betas_zero_snr: bool,
    pub timestep_spacing: Spacing,
}

/// What the network predicts.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
pub enum Prediction {
    /// The noise.
    #[serde(rename = "epsilon")]
    Epsilon,
    /// v = sqrt(a_t) eps - sqrt(1 - a_t) x0 (Salimans and Ho 2022, arXiv 2202.00512).
    #[serde(rename = "v_prediction")]
    V,
}

/// How the timesteps of a drawing are spread.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
pub enum Spacing {
    /// From the first one up.
    Leading,
    /// From the last one down.
    Trailing,
}

/// How beta grows from its start to its end.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
pub enum BetaSchedule {
    /// In a straight line.
    Linear,
    /// Its square root does.
    ScaledLinear,
}

impl Default for ScheduleConfig {
    fn default() -> ScheduleConfig {
        ScheduleConfig {
            num_train_timesteps: 1000,
            beta_start: 1e-4,
            beta_end: 0.02,
            beta_schedule: BetaSchedule::Linear,
            clip_sample: true,
            clip_sample_range: 1.0,
            steps_offset: 0,
            prediction_type: Prediction::Epsilon,
            rescale_betas_zero_snr: false,
            timestep_spacing: Spacing::Leading,
        }
    }
}

impl ScheduleConfig {
    /// Reads `scheduler_config.json` from a folder in the diffusers layout; no number is computed.
    ///
    /// # Errors
    /// As [`NoiseSchedule::load`].
    pub fn load(folder: &Path) -> Result<ScheduleConfig, ModelError> {
        let file = folder.join("scheduler_config.json");
        let config: ScheduleConfig = config::read(&file, GUARDS)?;
        if !(1..=100_000).contains(&config.num_train_timesteps) {
            return Err(config::unsupported(
                &file,
                "num_train_timesteps",
                config.num_train_timesteps,
                "1 to 100000",
            ));
        }
        if config.rescale_betas_zero_snr && config.prediction_type == Prediction::Epsilon {
            let supported = "false with prediction_type \"epsilon\": the last timestep is all noise, and tells nothing of the image";
            return Err(config::unsupported(&file, "rescale_betas_zero_snr", true, supported));
        }
        if config.rescale_betas_zero_snr && config.num_train_timesteps < 2 {
            return Err(config::unsupported(
                &file,
                "num_train_timesteps",
                1,
                "2 or more with rescale_betas_zero_snr",
            ));
        }
        for (key, beta) in [("beta_start", config.beta_start), ("beta_end", config.beta_end)] {
            if !(beta > 0.0 && beta < 1.0) {
                return Err(config::unsupported(&file, key, beta, "a number between 0 and 1"));
            }
        }
        Ok(config)
    }
}

/// The share of signal that is left at each timestep.
pub struct NoiseSchedule {
    config: ScheduleConfig,
    snr_gamma: Option<f64>,
    alphas_cumprod: Tensor,
}

impl NoiseSchedule {
    /// Reads `scheduler_config.json` from a folder in the diffusers layout.
    ///
    /// # Errors
    /// The file can't be read, or asks for what is not supported.
    pub fn load(folder: &Path) -> Result<NoiseSchedule, ModelError> {
        ScheduleConfig::load(folder).map(NoiseSchedule::new)
    }

    /// The schedule of a configuration.
    pub fn new(config: ScheduleConfig) -> NoiseSchedule {
        let float = (Kind::Float, Device::Cpu);
        let line = |start: f64, end: f64| Tensor::linspace(start, end, config.num_train_timesteps, float);
        let betas = match config.beta_schedule {
            BetaSchedule::Linear => line(config.beta_start, config.beta_end),
            BetaSchedule::ScaledLinear => line(config.beta_start.sqrt(), config.beta_end.sqrt()).square(),
        };
        let mut alphas_cumprod = (1f64 - betas).cumprod(0, None::<Kind>);
        if config.rescale_betas_zero_snr {
            alphas_cumprod = zero_terminal_snr(&alphas_cumprod);
        }
        NoiseSchedule { config, snr_gamma: None, alphas_cumprod }
    }

    /// The same, with the timesteps' weights of an objective.
    pub fn with_objective(self, objective: &Objective) -> NoiseSchedule {
        NoiseSchedule { snr_gamma: objective.snr_gamma, ..self }
    }

    /// The configuration as read.
    pub fn config(&self) -> &ScheduleConfig {
        &self.config
    }

    /// The number of timesteps that the model was trained with, T.
    pub fn train_timesteps(&self) -> i64 {
        self.config.num_train_timesteps
    }

    /// Products of 1 - beta up to each timestep: [T] float32 on the CPU.
    pub fn alphas_cumprod(&self) -> &Tensor {
        &self.alphas_cumprod
    }

    /// Moves clean latents forward: sqrt(a_t) x0 + sqrt(1 - a_t) eps, a_t being `alphas_cumprod` at t.
    pub fn add_noise(&self, x0: &Tensor, noise: &Tensor, timesteps: &Tensor) -> Tensor {
        let a = self.at_each(timesteps).view([-1, 1, 1, 1]);
        a.sqrt() * x0 + (1f64 - a).sqrt() * noise // [B, C, H, W]
    }

    /// What the network should predict of noised latents: [B, C, H, W].
    pub fn target(&self, x0: &Tensor, noise: &Tensor, timesteps: &Tensor) -> Tensor {
        match self.config.prediction_type {
            Prediction::Epsilon => noise.shallow_clone(),
            Prediction::V => {
                let a = self.at_each(timesteps).view([-1, 1, 1, 1]);
                a.sqrt() * noise - (1f64 - a).sqrt() * x0
            }
        }
    }

    /// Losses [B] times the weights of their timesteps [B].
    pub fn weigh(&self, losses: Tensor, timesteps: &Tensor) -> Tensor {
        let Some(gamma) = self.snr_gamma else { return losses };
        let a = self.at_each(timesteps);
        let snr = &a / (1f64 - &a);
        let divisor = match self.config.prediction_type {
            Prediction::Epsilon => snr.shallow_clone(),
            Prediction::V => &snr + 1f64,
        };
        losses * (snr.clamp_max(gamma) / divisor)
    }

    /// The timesteps of a drawing in `steps` steps, falling, and evenly spaced from the offset up or from the last one down.
    ///
    /// # Errors
    /// There are no steps, or more than the model was trained with.
    pub fn timesteps(&self, steps: usize) -> Result<Vec<i64>, MathError> {
        let (train, offset) = (self.config.num_train_timesteps, self.config.steps_offset);
        if self.config.timestep_spacing == Spacing::Trailing && (1..=train as usize).contains(&steps) {
            let stride = train as f64 / steps as f64;
            return Ok((0..steps)
                .map(|step| (train as f64 - step as f64 * stride).round_ties_even() as i64 - 1)
                .collect());
        }
        let stride = i64::try_from(steps).ok().filter(|&steps| steps > 0).map_or(0, |steps| train / steps);
        let timesteps: Vec<i64> = (0..steps as i64).rev().map(|i| i * stride + offset).collect();
        if stride == 0 || timesteps[0] >= train {
            return Err(MathError::parameter(
                "steps",
                steps,
                format!("must be from 1 to {}", train - offset),
            ));
        }
        Ok(timesteps)
    }

    /// One step back (Ho et al. 2020, equations 6 and 7) from `x` at `t`, where `previous` is the timestep that
    /// comes next in the drawing, none after the last.
    ///
    /// `noise` is what [`NoiseSchedule::draws_noise`] asks for, of the shape of `x`.
    pub fn step(
        &self,
        x: &Tensor,
        predicted: &Tensor,
        t: i64,
        previous: Option<i64>,
        noise: Option<&Tensor>,
    ) -> Tensor {
        let a = self.at(t);
        let a_prev = previous.map_or(1.0, |t| self.at(t));
        let (alpha, beta) = (a / a_prev, 1.0 - a / a_prev);
        let x0 = self.denoised(x, predicted, t);
        let toward_x0 = a_prev.sqrt() * beta / (1.0 - a);
        let toward_x = alpha.sqrt() * (1.0 - a_prev) / (1.0 - a);
        let mean = x0 * scalar(toward_x0) + x * scalar(toward_x);
        match noise {
            Some(noise) => mean + noise * scalar(((1.0 - a_prev) / (1.0 - a) * beta).max(1e-20).sqrt()),
            None => mean,
        }
    }

    /// What `x` at `t` would be without noise, by a prediction: [B, C, H, W].
    pub fn denoised(&self, x: &Tensor, predicted: &Tensor, t: i64) -> Tensor {
        let a = self.at(t);
        let (signal, noise_share) = (scalar(a.sqrt()), scalar((1.0 - a).sqrt()));
        let x0 = match self.config.prediction_type {
            Prediction::Epsilon => (x - predicted * noise_share) / signal,
            Prediction::V => x * signal - predicted * noise_share,
        };
        if !self.config.clip_sample {
            return x0;
        }
        x0.clamp(-self.config.clip_sample_range, self.config.clip_sample_range)
    }

    /// Whether the step at `t` adds noise.
    pub fn draws_noise(t: i64) -> bool {
        t > 0
    }

    /// `alphas_cumprod` at timesteps [B], on their device: [B].
    fn at_each(&self, timesteps: &Tensor) -> Tensor {
        self.alphas_cumprod.to_device(timesteps.device()).index_select(0, timesteps)
    }

    fn at(&self, t: i64) -> f32 {
        self.alphas_cumprod.double_value(&[t]) as f32
    }
}

/// The same schedule, shifted and scaled so that nothing of the signal is left at the last timestep (Lin et al. 2023, arXiv
/// 2305.08891, algorithm 1), in the order in which diffusers computes it.
fn zero_terminal_snr(alphas_cumprod: &Tensor) -> Tensor {
    let root = alphas_cumprod.sqrt();
    let (first, last) = (root.get(0), root.get(-1));
    let scaled: Tensor = (&root - &last) * (&first / (&first - &last));
    let squares = scaled.square();
    let count = squares.size()[0];
    let ratios = squares.narrow(0, 1, count - 1) / squares.narrow(0, 0, count - 1);
    let betas: Tensor = 1f64 - Tensor::cat(&[squares.narrow(0, 0, 1), ratios], 0);
    (1f64 - betas).cumprod(0, None::<Kind>)
}

/// A float32 number as tch takes scalars; the arithmetic before was done in float32, as diffusers does it.
fn scalar(value: f32) -> f64 {
    f64::from(value)
}
