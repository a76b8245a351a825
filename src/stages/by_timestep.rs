//! The loss pass with the loss at each timestep beside its mean, for whoever goes on from single timesteps.

use std::path::{Path, PathBuf};

use super::arrays::{TrainingSet, values};
use super::loss::{LOSSES, LossParams};
use super::spans;
use crate::io::npy_writer;
use crate::math::loss::LossPass;
use crate::math::schedule::NoiseSchedule;
use crate::nn::unet::UNet;
use crate::stage::{Context, Inputs, Unit};

/// The file that a unit writes besides that of the means: float32 [n, T].
const TIMESTEPS: &str = "timesteps.npy";

/// Computes one unit as [`super::loss::run`] does, and its losses at each timestep, a mean over captions.
pub(super) fn run(
    unet: &UNet,
    params: &LossParams,
    inputs: &Inputs,
    unit: Option<&Unit>,
    out: &Path,
    cx: &Context<'_>,
) -> anyhow::Result<()> {
    let set = TrainingSet::open(inputs, unet)?;
    let schedule = NoiseSchedule::load(inputs.path("scheduler"))?;
    let (spec, range) = (params.spec(), spans::range(unit, "latents")?);
    let pass = LossPass::new(unet, &schedule, set.data()?, &spec, cx.micro_batch)?;
    let per_batch = spec.images_per_batch();
    let (mut means, mut timesteps) = (Vec::new(), Vec::new());
    for batch in range.start / per_batch..range.end.div_ceil(per_batch) {
        let rows = pass.rows_of_batch(batch)?; // [images, captions, timesteps]
        means.extend(values(&rows.mean_dim(2, false, None).mean_dim(1, false, None)));
        timesteps.extend(values(&rows.mean_dim(1, false, None)));
        (cx.progress)(means.len() as u64, range.len() as u64);
    }
    npy_writer::write_f32(out.join(LOSSES), &[means.len()], &means)?;
    npy_writer::write_f32(out.join(TIMESTEPS), &[means.len(), spec.time_samples], &timesteps)?;
    Ok(())
}

/// Joins the losses of the units at each timestep, in order, into the file `out`: float32 [2N, T].
pub(super) fn merge(parts: &[PathBuf], out: &Path) -> anyhow::Result<()> {
    let parts: Vec<PathBuf> = parts.iter().map(|part| part.join(TIMESTEPS)).collect();
    Ok(npy_writer::concat(&parts, out)?)
}
