//! The training objective, a row at a time: how well the network tells the noise from the latent.
//!
//! A row is a latent, a timestep, a draw of noise and a condition. Shapes: B rows, latents [C, H, W], K conditions.

use std::ops::Range;

use tch::Tensor;

use super::error::MathError;
use super::schedule::NoiseSchedule;
use crate::models::unet::UNet;
use crate::models::unet::conditioning::{Conditioning, EncodedConditioning};

/// Rows for one pass through the network, all on its device.
pub struct DenoisingRows {
    /// Clean latents [B, C, H, W].
    pub latents: Tensor,
    /// Standard normal noise [B, C, H, W].
    pub noise: Tensor,
    /// Timesteps [B], int64.
    pub timesteps: Tensor,
    /// K conditions, each for B/K consecutive rows.
    pub conditioning: Conditioning,
}

impl DenoisingRows {
    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.latents.size()[0] as usize
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The loss of each row, see [`losses`]. [B]
    pub fn losses(&self, unet: &UNet, schedule: &NoiseSchedule) -> Tensor {
        let conditioning = unet.encode(&self.conditioning);
        losses(unet, schedule, [&self.latents, &self.noise], &self.timesteps, &conditioning)
    }

    /// What the network predicts of each row, of the noise or of v: [B, C, H, W].
    pub fn predictions(&self, unet: &UNet, schedule: &NoiseSchedule) -> Tensor {
        let noised = schedule.add_noise(&self.latents, &self.noise, &self.timesteps);
        unet.denoise(&noised, &self.timesteps, &unet.encode(&self.conditioning))
    }

    /// Some of the rows; they must have a condition each, or all the same.
    pub fn slice(&self, rows: Range<usize>) -> DenoisingRows {
        let (start, count) = (rows.start as i64, rows.len() as i64);
        let own = self.conditioning.count() as usize == self.len();
        assert!(own || self.conditioning.count() == 1, "rows cannot be sliced where some share a condition");
        let narrow = |x: &Tensor| x.narrow(0, start, count);
        DenoisingRows {
            latents: narrow(&self.latents),
            noise: narrow(&self.noise),
            timesteps: narrow(&self.timesteps),
            conditioning: if own {
                self.conditioning.narrow(start, count)
            } else {
                self.conditioning.narrow(0, 1)
            },
        }
    }
}

/// The loss of each row (Ho et al. 2020, equation 14): the mean over C, H, W of the squared error of the prediction, which is of the
/// noise or of v, times the timestep's weight. [B]
///
/// Latents and noise are [B, C, H, W], timesteps [T] and the K conditions as [`UNet::denoise`] takes them.
pub fn losses(
    unet: &UNet,
    schedule: &NoiseSchedule,
    [latents, noise]: [&Tensor; 2],
    timesteps: &Tensor,
    conditioning: &EncodedConditioning,
) -> Tensor {
    let repeats = latents.size()[0] / timesteps.size()[0];
    let all = timesteps.repeat([repeats]);
    let xt = schedule.add_noise(latents, noise, &all); // [B, C, H, W]
    let predicted = unet.denoise(&xt, timesteps, conditioning); // [B, C, H, W]
    let error = predicted - schedule.target(latents, noise, &all);
    schedule.weigh(error.square().mean_dim([1i64, 2, 3].as_slice(), false, None), &all)
}

/// Checks losses (in any shape, row after row) for NaN and infinity; `place` tells a row's image and timestep.
///
/// # Errors
/// The first loss that is not finite.
pub fn check(losses: &Tensor, place: impl Fn(usize) -> (usize, i64)) -> Result<(), MathError> {
    // One number crosses from the device, unless something is wrong.
    if losses.isfinite().all().int64_value(&[]) == 1 {
        return Ok(());
    }
    let wrong = losses.flatten(0, -1).isfinite().logical_not().nonzero().int64_value(&[0, 0]);
    let (image, timestep) = place(wrong as usize);
    let value = losses.flatten(0, -1).double_value(&[wrong]);
    Err(MathError::LossNotFinite { image, mirrored: false, timestep, value })
}
