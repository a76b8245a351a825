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
    let rate = |rows: i64| 1.0 / trial(unet, schedule, [latent, text], times as i64, rows);
    let (mut best, mut fastest) = (TRIED[0] / 2, 0.0);
    for rows in TRIED {
        match catch_oom(|| rate(rows)) {
            Some(rate) if rate > fastest * WORTH => (best, fastest) = (rows, rate),
            _ => break,
        }
    }
    if let Device::Cuda(_) = unet.device() {
        tracing::debug!("{best} rows at once: {fastest:.0} rows a second in a trial");
    }
    best as usize
}

/// Seconds of a row of its own text, of so many at once.
pub fn seconds_a_row(
    unet: &UNet,
    schedule: &NoiseSchedule,
    latent: &[i64],
    text: &[i64],
    rows: usize,
) -> f64 {
    trial(unet, schedule, [latent, text], 1, rows as i64)
}

/// Seconds of a row in the second of two passes with about so many, `times` of which share a text.
fn trial(unet: &UNet, schedule: &NoiseSchedule, [latent, text]: [&[i64]; 2], times: i64, rows: i64) -> f64 {
    let device = unet.device();
    let texts = (rows / times).max(1);
    let rows = texts * times;
    let mut draws = Generator::seeded(0);
    let noise = draws.normal(&[&[rows], latent].concat(), device);
    let conditioning = unet.conditioning(draws.normal(&[&[texts], text].concat(), device));
    drop(draws);
    let timesteps = Tensor::arange(times, (Kind::Int64, device));
    let pass = || {
        let _guard = tch::no_grad_guard(); // unlike `no_grad`, it ends when memory runs out inside
        let texts = unet.encode(&conditioning);
        // Reading the sum waits for the device.
        losses(unet, schedule, [&noise, &noise], &timesteps, &texts).sum(Kind::Float).double_value(&[])
    };
    pass();
    let begun = Instant::now();
    pass();
    begun.elapsed().as_secs_f64() / rows as f64
}
