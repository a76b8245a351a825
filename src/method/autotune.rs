//! The number of rows to send through a network at once: the fastest one on this device, by a trial.

use std::time::Instant;

use tch::{Device, Kind, Tensor};

use super::diffusion_loss::losses;
use super::micro_batches::catch_oom;
use super::noise::Generator;
use super::schedule::NoiseSchedule;
use crate::models::unet::UNet;

/// The candidates, in rows.
const TRIED: [i64; 5] = [500, 1000, 2000, 4000, 8000];

/// A larger number must be faster by this factor, since it needs more memory.
const WORTH: f64 = 1.03;

/// The number of rows with which loss passes are fastest on the network's device, within its memory.
///
/// Latents are [C, H, W], texts [L, D], and `times` rows share a text. It takes about a second on a large GPU. The number
/// changes results only by rounding. On a CPU, where results must be reproducible bit by bit, it must not be used.
pub fn micro_batch(
    unet: &UNet,
    schedule: &NoiseSchedule,
    latent: &[i64],
    text: &[i64],
    times: usize,
) -> usize {
    let device = unet.device();
    let rate = |rows: i64| {
        let texts = (rows / times as i64).max(1);
        let rows = texts * times as i64;
        let mut draws = Generator::seeded(0);
        let noise = draws.normal(&[&[rows], latent].concat(), device);
        let conditioning = unet.conditioning(draws.normal(&[&[texts], text].concat(), device));
        drop(draws);
        let timesteps = Tensor::arange(times as i64, (Kind::Int64, device));
        let pass = || {
            let _guard = tch::no_grad_guard(); // unlike `no_grad`, it ends when memory runs out inside
            let texts = unet.encode(&conditioning);
            // Reading the sum waits for the device.
            losses(unet, schedule, [&noise, &noise], &timesteps, &texts).sum(Kind::Float).double_value(&[])
        };
        pass();
        let begun = Instant::now();
        pass();
        rows as f64 / begun.elapsed().as_secs_f64()
    };
    let (mut best, mut fastest) = (TRIED[0] / 2, 0.0);
    for rows in TRIED {
        match catch_oom(|| rate(rows)) {
            Some(rate) if rate > fastest * WORTH => (best, fastest) = (rows, rate),
            _ => break,
        }
    }
    if let Device::Cuda(_) = device {
        tracing::debug!("{best} rows at once: {fastest:.0} rows a second in a trial");
    }
    best as usize
}
