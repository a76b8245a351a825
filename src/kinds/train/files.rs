//! What a unit of training leaves, and the trained maps of low rank as diffusers reads them.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use anyhow::Context as _;
use serde_json::json;
use tch::Tensor;

use crate::kinds::shared::tensors;
use crate::method::train::{StepReport, TrainLora, TrainingState};

/// Writes the maps by the names that diffusers reads, with what it needs to know of them.
pub(super) fn write_lora(
    file: &Path,
    lora: &TrainLora,
    trained: &BTreeMap<String, Tensor>,
) -> anyhow::Result<()> {
    let prefixed = trained.iter().map(|(name, tensor)| (format!("unet.{name}"), tensor.shallow_clone()));
    let prefixed: BTreeMap<String, Tensor> = prefixed.collect();
    let layers: Vec<&str> = trained.keys().filter_map(|name| name.strip_suffix(".lora_A.weight")).collect();
    let alpha = lora.scale() * lora.rank as f64;
    let config = json!({ "unet.r": lora.rank, "unet.lora_alpha": alpha, "unet.target_modules": layers });
    let metadata = [("format", "pt".to_owned()), ("lora_adapter_metadata", config.to_string())];
    tensors::write(file, &prefixed, &metadata)
}

/// Writes a step's line of the curve.
pub(super) fn write_row(curve: &mut impl Write, report: &StepReport) -> std::io::Result<()> {
    let StepReport { step, rows, loss, grad_norm, lr } = report;
    let loss = loss.map_or_else(String::new, |loss| format!("{loss:e}"));
    writeln!(curve, "{step},{rows},{loss},{grad_norm:e},{lr:e}")
}

/// Names of a state's tensors: what they are, and the parameter.
const PARTS: [&str; 4] = ["weight", "mean", "square", "ema"];
/// In the metadata: steps without a row, where there were any.
const SKIPPED: &str = "skipped_steps";

/// Writes what it takes to go on.
pub(super) fn write_state(path: &Path, state: &TrainingState) -> anyhow::Result<()> {
    let TrainingState { weights, moments, ema, skipped } = state;
    let mut all: BTreeMap<String, Tensor> = BTreeMap::new();
    let mut add = |part: usize, name: &String, tensor: &Tensor| {
        all.insert(format!("{}/{name}", PARTS[part]), tensor.shallow_clone());
    };
    weights.iter().for_each(|(name, tensor)| add(0, name, tensor));
    for (name, [mean, square]) in moments {
        add(1, name, mean);
        add(2, name, square);
    }
    ema.iter().flatten().for_each(|(name, tensor)| add(3, name, tensor));
    let skipped = (*skipped > 0).then(|| (SKIPPED, skipped.to_string()));
    tensors::write(path, &all, skipped.as_slice())
}

/// Reads it.
pub(super) fn read_state(path: &Path) -> anyhow::Result<TrainingState> {
    let all = tensors::read(path)?;
    let of = |part: usize| -> BTreeMap<String, Tensor> {
        let named = all.iter().filter_map(|(name, tensor)| {
            let name = name.strip_prefix(PARTS[part])?.strip_prefix('/')?;
            Some((name.to_owned(), tensor.shallow_clone()))
        });
        named.collect()
    };
    let (mut squares, ema) = (of(2), of(3));
    let moments = of(1).into_iter().map(|(name, mean)| {
        let square =
            squares.remove(&name).with_context(|| format!("{}: no square/{name}", path.display()))?;
        Ok((name, [mean, square]))
    });
    let moments = moments.collect::<anyhow::Result<_>>()?;
    let skipped = tensors::number(path, SKIPPED)?.unwrap_or(0);
    Ok(TrainingState { weights: of(0), moments, ema: Some(ema).filter(|ema| !ema.is_empty()), skipped })
}
