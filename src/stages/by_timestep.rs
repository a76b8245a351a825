//! The losses at each timestep beside their means, for whoever goes on from single timesteps.

use std::path::{Path, PathBuf};

use super::loss::LossParams;
use super::{arrays, blocks};
use crate::io::npy::Dtype;
use crate::io::npy_writer::NpyWriter;
use crate::stage::Inputs;

/// Joins the rows of the units into the file `out`, float32 [2N, T]: a mean over captions.
///
/// Summed in float64 and rounded once, as the means over all are.
pub(super) fn merge(
    params: &LossParams,
    inputs: &Inputs,
    parts: &[PathBuf],
    out: &Path,
) -> anyhow::Result<()> {
    let (latents, _) = arrays::open(inputs)?;
    let timesteps = blocks::timesteps(params, inputs)?.len();
    let captions = params.captions as usize;
    let mut writer = NpyWriter::create(out, Dtype::F32, &[latents.rows(), timesteps])?;
    for block in parts.chunks(timesteps) {
        let rows = blocks::read(block, captions)?;
        let images = rows.first().map_or(0, Vec::len) / captions;
        for image in 0..images {
            let of = |row: &Vec<f32>| mean(&row[image * captions..(image + 1) * captions]) as f32;
            writer.write_f32(&rows.iter().map(of).collect::<Vec<_>>())?;
        }
    }
    Ok(writer.finish()?)
}

/// The mean of an image's losses at one timestep, or of others.
pub(super) fn mean(values: &[f32]) -> f64 {
    values.iter().copied().map(f64::from).sum::<f64>() / values.len() as f64
}
