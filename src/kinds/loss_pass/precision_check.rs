//! Shortened products, held against float32 on a sample of the rows.

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

/// The part of a loss by which its value may differ from that in float32, for a single row.
///
/// Some forty times what the networks of docs/performance.md show: more than that is a network that the shorter numbers do
/// not suit, such as one with values beyond their range.
fn bound(precision: Precision) -> f64 {
    match precision {
        Precision::Fp32 => f64::INFINITY,
        Precision::Tf32 => 5e-3,
        Precision::Bf16 => 5e-2,
    }
}

/// Computes some rows in float32, where the stage's products are shorter, and compares what was `found` for them.
///
/// `rows` are those rows in the network's precision; `micro_batch` of them go through it at once.
///
/// # Errors
/// Files that make no network or data set, and those of `rows`.
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

/// Compares the losses of some rows, by part of the loss, and warns where they are too far apart. The largest deviation.
fn compare(precision: Precision, found: &Tensor, exact: &Tensor) -> f64 {
    let deviation = ((found - exact) / exact).abs().max().double_value(&[]);
    let (bound, name) = (bound(precision), json!(precision));
    if deviation > bound || deviation.is_nan() {
        tracing::warn!(
            "with precision = {name}, a loss differs from float32 by {deviation:.1e} of its value, more than {bound:.0e}: \
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
    fn the_largest_deviation_counts() {
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
