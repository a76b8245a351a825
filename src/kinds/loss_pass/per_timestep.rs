//! The losses per timestep, for stages that need single timesteps.

use std::path::{Path, PathBuf};

use super::per_image;
use crate::method::loss::LossParams;
use attrflow_engine::kind::Inputs;

/// Merges the rows of the units into the file `out`, float32 [2N, T]: a mean over captions.
///
/// Summed in float64 and rounded once, like the means over all timesteps.
pub(crate) fn merge(
    params: &LossParams,
    inputs: &Inputs,
    parts: &[PathBuf],
    out: &Path,
) -> anyhow::Result<()> {
    let at_each = |rows: Vec<&[f32]>| rows.into_iter().map(|row| mean(row) as f32).collect();
    per_image::join(params, inputs, parts, out, |timesteps| vec![timesteps], at_each)
}

/// The mean of an image's losses at one timestep, or of other values.
pub(crate) fn mean(values: &[f32]) -> f64 {
    values.iter().copied().map(f64::from).sum::<f64>() / values.len() as f64
}
