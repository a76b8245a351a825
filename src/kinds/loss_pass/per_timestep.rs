//! The losses per timestep and draw, for stages that need them apart.

use std::path::{Path, PathBuf};

use super::per_image;
use crate::io::npy::{Dtype, Npy};
use crate::kinds::shared::check_outputs;
use crate::method::loss::LossParams;
use attrflow_engine::kind::Inputs;

/// The input of `influence` with the pretrained losses per timestep.
pub(crate) const PRETRAINED: &str = "pretrain_loss_per_timestep";
/// The parameter that enables the output of this name.
pub(crate) const PER_TIMESTEP: &str = "per_timestep";

/// The shape of an array of `latents`: [2N, T], or with several draws [2N, T, R].
pub(crate) fn shape(params: &LossParams, latents: usize) -> Vec<usize> {
    [&[latents], each(params).as_slice()].concat()
}

fn each(params: &LossParams) -> Vec<usize> {
    match params.draws {
        1 => vec![params.time_samples],
        draws => vec![params.time_samples, draws],
    }
}

/// Merges the rows of the units into the file `out`, float32 [2N, T] or [2N, T, R]: a mean over captions.
///
/// Summed in float64 and rounded once, like the means over all points.
pub(crate) fn merge(
    params: &LossParams,
    inputs: &Inputs,
    parts: &[PathBuf],
    out: &Path,
) -> anyhow::Result<()> {
    let at_each = |_, rows: Vec<&[f32]>| Ok(rows.into_iter().map(|row| mean(row) as f32).collect());
    per_image::join(params, inputs, parts, out, &each(params), at_each)
}

/// Merges the rows of the units into the file `out`, of the same shape: their means over captions less the pretrained losses.
pub(crate) fn differences(
    params: &LossParams,
    inputs: &Inputs,
    parts: &[PathBuf],
    before: &Npy,
    out: &Path,
) -> anyhow::Result<()> {
    let mut own = vec![0.0; before.row_len()];
    let differences = |latent: usize, rows: Vec<&[f32]>| {
        before.read_f32_at(latent * own.len(), &mut own)?;
        let pairs = rows.into_iter().zip(&own);
        Ok(pairs.map(|(row, before)| (mean(row) - f64::from(*before)) as f32).collect())
    };
    per_image::join(params, inputs, parts, out, &each(params), differences)
}

/// The mean of an image's losses at one point, or of other values.
pub(crate) fn mean(values: &[f32]) -> f64 {
    values.iter().copied().map(f64::from).sum::<f64>() / values.len() as f64
}

/// The pretrained losses per timestep and draw.
///
/// # Errors
/// An array of another shape or type.
pub(crate) fn pretrained(params: &LossParams, inputs: &Inputs, latents: usize) -> anyhow::Result<Npy> {
    let npy = Npy::open(inputs.path(PRETRAINED))?;
    let expected: Vec<_> = shape(params, latents).into_iter().map(Some).collect();
    npy.expect_shape(&expected)?;
    let found = npy.dtype();
    anyhow::ensure!(found == Dtype::F32, "{}: dtype {found}, expected {}", npy.path().display(), Dtype::F32);
    Ok(npy)
}

/// The first row of losses per timestep whose mean is not the loss [2N] of the row, with both.
fn other_mean(npy: &Npy, losses: &[f32]) -> anyhow::Result<Option<(usize, f64, f32)>> {
    let mut row = vec![0.0; npy.row_len()];
    for (latent, &loss) in losses.iter().enumerate() {
        npy.read_f32_at(latent * row.len(), &mut row)?;
        let mean = mean(&row);
        // Sums in another order differ by a few units in the last place.
        let near = (mean - f64::from(loss)).abs() <= 1e-5 * mean.abs().min(f64::from(loss.abs()));
        if !near {
            return Ok(Some((latent, mean, loss)));
        }
    }
    Ok(None)
}

/// Refuses losses per timestep whose means differ from those on `pretrain_loss`.
pub(crate) fn expect_one_pass(npy: &Npy, means: &[f32]) -> anyhow::Result<()> {
    match other_mean(npy, means)? {
        None => Ok(()),
        Some((latent, found, expected)) => anyhow::bail!(
            "{}: the mean of row {latent} is {found}, expected {expected} as on `pretrain_loss`: both must come from the same stage",
            npy.path().display()
        ),
    }
}

/// Refuses losses in a file that are not the means of these losses per timestep.
pub(crate) fn accept_means(losses: &Path, npy: &Npy) -> anyhow::Result<()> {
    match other_mean(npy, &check_outputs::finite(losses, npy.rows())?)? {
        None => Ok(()),
        Some((row, mean, loss)) => anyhow::bail!(
            "{}: loss {row} is {loss}, expected {mean}, the mean of row {row} of {}",
            losses.display(),
            npy.path().display()
        ),
    }
}
