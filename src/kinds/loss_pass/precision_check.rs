//! Compares reduced-precision losses with float32 on a sample of the rows.

use std::path::Path;

use serde_json::json;
use tch::Tensor;

use crate::kinds::shared::arrays::TrainingSet;
use crate::kinds::shared::network::with_unet;
use crate::method::error::MathError;
use crate::method::loss::{LossParams, LossPass};
use crate::method::schedule::NoiseSchedule;
use crate::models::unet::{ModelMode, Precision};
use attrflow_engine::kind::{Device, Inputs};

/// The largest accepted relative deviation of a single row's loss from float32.
///
/// About forty times the deviation of the networks in docs/performance.md: a larger one means that the network is
/// unsuitable for reduced precision, for instance because of values out of range.
fn bound(precision: Precision) -> f64 {
    match precision {
        Precision::Fp32 => f64::INFINITY,
        Precision::Tf32 => 5e-3,
        Precision::Bf16 => 5e-2,
    }
}

/// If the stage's precision is reduced, computes some rows in float32 and compares them with `found`.
///
/// `rows` computes those rows; `micro_batch` is the number of rows per forward pass.
///
/// # Errors
/// Files that are not a valid network or data set, and the errors of `rows`.
pub(crate) fn check(
    loss: &LossParams,
    (inputs, weights, device): (&Inputs, Option<&Path>, Device),
    schedule: &NoiseSchedule,
    micro_batch: usize,
    found: &Tensor,
    rows: impl FnOnce(&LossPass<'_>) -> Result<Tensor, MathError>,
) -> anyhow::Result<()> {
    with_unet(inputs, weights, device, ModelMode::Inference(Precision::Fp32), |unet| {
        let set = TrainingSet::open(inputs, unet)?;
        let pass = LossPass::new(unet, schedule, set.data()?, loss, micro_batch)?;
        compare(loss.precision, found, &rows(&pass)?);
        Ok(())
    })
}

/// Compares the losses of some rows relative to the loss, and warns if they are too far apart. Returns the largest
/// deviation.
fn compare(precision: Precision, found: &Tensor, exact: &Tensor) -> f64 {
    let deviation = ((found - exact) / exact).abs().max().double_value(&[]);
    let (bound, name) = (bound(precision), json!(precision));
    if deviation > bound || deviation.is_nan() {
        tracing::warn!(
            "with precision = {name}, a loss differs from float32 by {deviation:.1e} of its value, expected at most {bound:.0e}: \
             use \"fp32\" for this network",
        );
    } else {
        tracing::debug!(
            "precision = {name}: a sample of rows differs from float32 by at most {deviation:.1e}"
        );
    }
    deviation
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_deviation_is_returned() {
        let exact = Tensor::from_slice(&[1.0f32, 2.0, 4.0]);
        let found = Tensor::from_slice(&[1.001f32, 2.0, 4.1]);
        let deviation = compare(Precision::Bf16, &found, &exact);
        assert!((deviation - 0.025).abs() < 1e-6, "{deviation}");
        assert!(
            compare(Precision::Bf16, &Tensor::from_slice(&[f32::NAN]), &Tensor::from_slice(&[1.0f32]))
                .is_nan()
        );
    }
}
