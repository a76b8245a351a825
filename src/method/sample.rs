//! Generating latents from noise, step by step, guided by a text.
//!
//! Ancestral sampling (Ho et al. 2020, algorithm 2) with classifier-free guidance (Ho and Salimans 2022, arXiv
//! 2207.12598): e = e_uncond + scale (e_text - e_uncond).

use std::convert::Infallible;

use attrflow_engine::config::param::Validate;
use attrflow_engine::params;
use tch::{Device, Tensor};

use super::error::MathError;
use super::micro_batches::in_micro_batches;
use super::noise::{Generator, Noise, drawing_noise};
use super::schedule::NoiseSchedule;
use crate::models::unet::UNet;
use crate::models::unet::conditioning::{Conditioning, EncodedConditioning};

params! {
    /// Parameters of `generate`.
    pub struct SampleParams {
        /// The prompt, without the input `captions`.
        caption: Option<String> = None,
        /// Denoising steps, at most as many as the model has timesteps.
        steps: usize [1..=100_000] = 1000,
        /// The guidance scale: 0 ignores the caption, 1 is the plain conditional prediction.
        guidance_scale: f64 = 7.5,
        /// Seed of the initial latents and of the noise at each step.
        seed: u32 = 0,
        /// `per_batch`: one stream of random numbers through all batches, as published, so that an image depends on
        /// `batch_size` and its index; `per_image`: a stream for each index, so that the batch size changes no image;
        /// `per_image_philox`: the same by a generator that counts.
        noise: Noise = Noise::PerBatch,
        /// Captions per batch. With `noise = "per_batch"` a batch draws its noise at once, and a short last batch draws it
        /// for a full one, as published (with 500); with `per_image` it is only the size of a unit of work.
        batch_size: usize [1..=100_000] = 1,
        /// With two text encoders: whether the empty text of the guidance is zeros, as diffusers has it for SDXL, or is encoded.
        force_zeros_for_empty_prompt: bool = true,
        /// Stops at the first step at this timestep or below, and gives the latents without noise that the model predicts there, as
        /// latents and pictures: a drawing on its way, for the baseline `journey-trak`.
        denoised_at: Option<usize> = None,
    }
}

impl Validate for SampleParams {}

/// Generates latents [n, C, H, W] for the n conditions `cond`, n being at most the batch size.
///
/// `uncond` is one condition, that of the empty text. The CPU's stream `draws` gives the initial latents of the whole batch,
/// then a tensor of that shape at each step with t > 0; it continues from batch to batch. Published scripts pad a
/// short batch with zero texts and discard those rows; computing only its own rows gives the same result.
///
/// `micro_batch` rows go through the network at once. `progress` receives the number of finished steps.
///
/// # Errors
/// There are too many steps or texts, the configuration gives no latent size, or a latent is not finite.
#[expect(
    clippy::too_many_arguments,
    reason = "each is of its own kind, and a bundle would be unpacked at once"
)]
pub fn sample(
    unet: &UNet,
    schedule: &NoiseSchedule,
    cond: &Conditioning,
    uncond: &Conditioning,
    params: &SampleParams,
    draws: &mut Generator,
    micro_batch: usize,
    progress: &mut dyn FnMut(usize),
) -> Result<Tensor, MathError> {
    let shape = batch_shape(unet, params)?;
    let count = cond.count();
    if count > shape[0] {
        let expected = format!("at most the batch size {}", shape[0]);
        return Err(MathError::Rows { what: "texts", found: count as usize, expected });
    }
    let mut noise = |_| draws.normal(&shape, Device::Cpu).narrow(0, 0, count);
    denoise(unet, schedule, cond, uncond, params, &mut noise, micro_batch, progress)
}

/// Generates latents [n, C, H, W] for the n conditions `cond` at the indices `first`, `first + 1`, …, each from its own
/// random numbers: neither the other texts nor the batch size change an image.
///
/// # Errors
/// As [`sample`].
#[expect(clippy::too_many_arguments, reason = "as for `sample`")]
pub fn sample_each(
    unet: &UNet,
    schedule: &NoiseSchedule,
    cond: &Conditioning,
    uncond: &Conditioning,
    params: &SampleParams,
    first: usize,
    micro_batch: usize,
    progress: &mut dyn FnMut(usize),
) -> Result<Tensor, MathError> {
    let shape = batch_shape(unet, params)?;
    let mut noise = |timestep| {
        let places = first..first + cond.count() as usize;
        let drawn: Vec<Tensor> = places
            .map(|place| drawing_noise(params.noise, params.seed.into(), place, timestep, &shape[1..]))
            .collect();
        Tensor::stack(&drawn, 0)
    };
    denoise(unet, schedule, cond, uncond, params, &mut noise, micro_batch, progress)
}

/// Reverse diffusion. `noise(t)` gives the initial latents [n, C, H, W] for t = T, then the noise of the step at each t.
#[expect(clippy::too_many_arguments, reason = "as for `sample`")]
fn denoise(
    unet: &UNet,
    schedule: &NoiseSchedule,
    cond: &Conditioning,
    uncond: &Conditioning,
    params: &SampleParams,
    noise: &mut dyn FnMut(i64) -> Tensor,
    micro_batch: usize,
    progress: &mut dyn FnMut(usize),
) -> Result<Tensor, MathError> {
    let timesteps = schedule.timesteps(params.steps)?;
    let mut noise = |timestep| noise(timestep).to_device(unet.device());
    let mut x = noise(schedule.train_timesteps()); // [n, C, H, W]
    let uncond = tch::no_grad(|| unet.encode(uncond));
    let mut guidance = Guidance { unet, cond, uncond, scale: params.guidance_scale, encoded: None };
    for (i, &t) in timesteps.iter().enumerate() {
        let predicted = guidance.predict(&x, t, micro_batch);
        if params.denoised_at.is_some_and(|at| t <= at as i64) {
            let x = schedule.denoised(&x, &predicted, t);
            check(&x, t)?;
            progress(timesteps.len());
            return Ok(x);
        }
        let noise = NoiseSchedule::draws_noise(t).then(|| noise(t));
        x = schedule.step(&x, &predicted, t, timesteps.get(i + 1).copied(), noise.as_ref());
        check(&x, t)?;
        progress(i + 1);
    }
    Ok(x)
}

/// Skips the random numbers of one batch, so that a later one can be generated alone.
///
/// # Errors
/// As [`sample`].
pub fn skip_batch(
    unet: &UNet,
    schedule: &NoiseSchedule,
    params: &SampleParams,
    draws: &mut Generator,
) -> Result<(), MathError> {
    let shape = batch_shape(unet, params)?;
    let noisy =
        schedule.timesteps(params.steps)?.into_iter().filter(|&t| NoiseSchedule::draws_noise(t)).count();
    for _ in 0..=noisy {
        let _ = draws.normal(&shape, Device::Cpu);
    }
    Ok(())
}

fn batch_shape(unet: &UNet, params: &SampleParams) -> Result<Vec<i64>, MathError> {
    let rule = "the model's config.json must give the size of its latents";
    let latent =
        unet.config().latent_shape().ok_or_else(|| MathError::parameter("sample_size", "missing", rule))?;
    Ok([&[params.batch_size as i64], latent.as_slice()].concat())
}

/// Predicts the noise or v, as the network was trained to, with classifier-free guidance.
struct Guidance<'a> {
    unet: &'a UNet,
    cond: &'a Conditioning,
    uncond: EncodedConditioning,
    scale: f64,
    /// The encoded conditions of the last micro batch, by its rows. If it holds all rows, they are encoded once for all steps.
    encoded: Option<([i64; 2], EncodedConditioning)>,
}

impl Guidance<'_> {
    /// The prediction for `x` at timestep `t`, [n, C, H, W].
    fn predict(&mut self, x: &Tensor, t: i64, micro_batch: usize) -> Tensor {
        let Guidance { unet, cond, uncond, scale, encoded } = self;
        let parts = in_micro_batches(x.size()[0] as usize, micro_batch, |row, most| {
            let (start, count) = (row as i64, most as i64);
            let xt = x.narrow(0, start, count);
            let timesteps = Tensor::full([count], t, (tch::Kind::Int64, x.device()));
            let _guard = tch::no_grad_guard(); // unlike `no_grad`, it ends when memory runs out inside
            let cond = match encoded {
                Some((known, encoded)) if *known == [start, count] => &*encoded,
                _ => {
                    // Drop the old ones first, for memory may be short.
                    *encoded = None;
                    let cond = unet.encode(&cond.narrow(start, count));
                    &encoded.insert(([start, count], cond)).1
                }
            };
            // Two passes, since the empty text is shared by all rows.
            let without = unet.denoise(&xt, &timesteps, uncond);
            let with = unet.denoise(&xt, &timesteps, cond);
            Ok::<_, Infallible>((most, &without + (with - &without) * *scale))
        });
        let Ok(parts) = parts;
        Tensor::cat(&parts, 0)
    }
}

/// Stops at the first latent that is not finite: further steps would be wasted.
fn check(x: &Tensor, timestep: i64) -> Result<(), MathError> {
    let finite = x.isfinite();
    if finite.all().int64_value(&[]) == 1 {
        return Ok(());
    }
    let row = finite.logical_not().nonzero().int64_value(&[0, 0]) as usize;
    Err(MathError::LatentsNotFinite { row, timestep })
}
