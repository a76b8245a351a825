//! Whether bfloat16 pays on this processor: few CPUs have units for it, and the others are much slower than in float32.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::kinds::shared::arrays::TrainingSet;
use crate::kinds::shared::network::with_unet;
use crate::method::autotune::seconds_a_row;
use crate::method::loss::LossParams;
use crate::method::schedule::NoiseSchedule;
use crate::models::unet::{ModelMode, Precision};
use attrflow_engine::kind::{Device, Inputs};

/// Rows of the trial.
const ROWS: usize = 32;

/// On a CPU with `precision = "bf16"`, times some rows in both precisions, once a worker, and warns if float32 is faster.
///
/// # Errors
/// Files that are not a valid network or data set.
pub(crate) fn warn(
    loss: &LossParams,
    (inputs, weights, device): (&Inputs, Option<&Path>, Device),
    schedule: &NoiseSchedule,
) -> anyhow::Result<()> {
    /// Whether this worker has tried it: its processor is the same for all queries.
    static TRIED: AtomicBool = AtomicBool::new(false);
    if loss.precision != Precision::Bf16 || device != Device::Cpu || TRIED.swap(true, Ordering::Relaxed) {
        return Ok(());
    }
    let seconds = |precision| {
        with_unet(inputs, weights, device, ModelMode::Inference(precision), |unet| {
            let set = TrainingSet::open(inputs, unet)?;
            let [latent, text] = set.row_shapes();
            Ok(seconds_a_row(unet, schedule, latent, text, ROWS))
        })
    };
    if let Some(message) = slower(seconds(Precision::Bf16)? / seconds(Precision::Fp32)?) {
        tracing::warn!("{message}");
    }
    Ok(())
}

/// What is said where bfloat16 takes `times` as long as float32.
fn slower(times: f64) -> Option<String> {
    (times > 1.0).then(|| {
        format!(
            "`precision = \"bf16\"` takes {times:.1} times as long as \"fp32\" on this processor, by a trial of {ROWS} rows, and is less \
             exact: use \"fp32\" here"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_slower_is_said() {
        assert_eq!(slower(0.7), None);
        assert!(slower(5.96).unwrap().contains("takes 6.0 times as long as \"fp32\""));
    }
}
