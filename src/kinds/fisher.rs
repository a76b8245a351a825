//! The diagonal of the Fisher information: the importance of each weight for the training data.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::shared::arrays::{LATENTS, TEXT_EMBEDDINGS, TrainingSet, count_images};
use super::shared::check_outputs::Outputs;
use super::shared::network::{CHECKPOINT, LORA, SCHEDULER, UNET, with_gradients};
use super::shared::{arrays, check_inputs, check_outputs, check_values, expected, ranges, tensors};
use crate::io::torch::Dtype;
pub use crate::method::fisher::FisherParams;
use crate::method::fisher::{Contraction, FisherPass, FisherSum, squares};
use crate::method::schedule::NoiseSchedule;
use attrflow_engine::kind::{
    Compute, Context, Estimate, ExpectedInputs, Inputs, Kind, KindInfo, Output, Stage, Task, Trial, Unit,
    Units, WorkSize,
};
use serde_json::{Value as Json, json};
use tch::Tensor;

/// Metadata key of a unit's sums: their divisor.
const WEIGHT: &str = "weight";
/// Metadata key of the number of training images, which `unlearn` needs.
pub(super) const IMAGES: &str = "images";

impl Kind for FisherParams {
    const INFO: KindInfo = KindInfo {
        inputs: &[UNET, CHECKPOINT, LORA, SCHEDULER, LATENTS, TEXT_EMBEDDINGS],
        outputs: &[Output::new(
            "fisher",
            "fisher.safetensors",
            "float64 by weight name; the number of images N in its metadata",
        )],
        ..KindInfo::new::<Self>("fisher", 1, "the diagonal Fisher information of the model's weights")
    };
}

impl Stage for FisherParams {
    fn check(&self, connected: &dyn Fn(&str) -> bool) -> Vec<(String, String)> {
        self.select.check("select", connected("lora"))
    }

    fn identity(&self) -> Json {
        FisherParams::identity(self)
    }

    fn validate_inputs(&self, inputs: &Inputs) -> anyhow::Result<()> {
        check_inputs::networks(inputs)?;
        check_inputs::selected(inputs, &self.select)?;
        check_inputs::arrays(inputs).map(drop)
    }

    fn check_values(&self, inputs: &Inputs) -> anyhow::Result<()> {
        check_values::finite(inputs, &["latents", "text_embeddings"])
    }

    fn units(&self, inputs: &Inputs) -> anyhow::Result<Units> {
        let (latents, _) = arrays::open(inputs)?;
        Ok(Units::Independent(split(self, latents.rows())))
    }

    fn estimate(&self, inputs: &ExpectedInputs) -> anyhow::Result<Estimate> {
        let units = split(self, expected::array(inputs, "latents")?.shape[0]);
        let sums = expected::selected(inputs, &self.select, 8)?;
        Ok(Estimate {
            parts: units.len() as u64 * sums.bytes().unwrap_or_default(),
            outputs: [("fisher".to_owned(), sums)].into(),
            work: Some(work(self, inputs, &units)?),
        })
    }

    fn accept(&self, inputs: &Inputs, outputs: &Outputs) -> anyhow::Result<&'static str> {
        check_outputs::weights(&outputs["fisher"], inputs, &self.select, &[Dtype::F64, Dtype::F32])?;
        Ok("names, shapes, element types and finite values")
    }
}

/// The work of units of batches.
pub(super) fn work(
    params: &FisherParams,
    inputs: &ExpectedInputs,
    units: &[Unit],
) -> anyhow::Result<WorkSize> {
    let (latents, texts) = expected::arrays(inputs)?;
    let FisherParams { batch_size, caption_draw, select, fisher_type: _, .. } = params;
    let mut cost_key = json!({
        "batch_size": latents.shape[0].min(*batch_size),
        "caption_draw": caption_draw,
        "select": select,
        "unet": expected::config(inputs, "unet")?,
        "latent": &latents.shape[1..],
        "text": &texts.shape[1..],
        "stored": [latents.bytes, texts.bytes],
    });
    expected::at_precision(&mut cost_key, params.precision);
    let steps = units.iter().map(|unit| unit.steps).sum();
    Ok(WorkSize { steps, tasks: units.len() as u64, cost_key, ..WorkSize::default() })
}

/// One epoch over one batch a step, for a trial; and arrays of that many rows where there are none yet.
pub(super) fn trial_of(
    params: &FisherParams,
    inputs: &ExpectedInputs,
    given: &mut Inputs,
    steps: u64,
    folder: &Path,
) -> anyhow::Result<FisherParams> {
    let (latents, texts) = expected::arrays(inputs)?;
    let rows = latents.shape[0].min(params.batch_size);
    expected::make_arrays(given, [&latents, &texts], rows, folder)?;
    Ok(FisherParams { epochs: steps as usize, ..params.clone() })
}

/// The unit of such a trial.
pub(super) fn trial_unit(steps: u64) -> Unit {
    Unit { name: "a trial".into(), range: json!({ "batches": [0, steps] }), steps }
}

/// The sums of a unit's batches, whose gradients are contracted.
pub(super) fn sums(
    params: &FisherParams,
    inputs: &Inputs,
    batches: Vec<usize>,
    contract: Contraction<'_>,
    cx: &Context<'_>,
) -> anyhow::Result<FisherSum> {
    let total = batches.len() as u64;
    with_gradients(inputs, params.select.adapters(), params.precision, cx.device, |unet| {
        let schedule = &NoiseSchedule::load(inputs.path("scheduler"))?.with_objective(&params.objective);
        let set = TrainingSet::open(inputs, unet)?;
        let (data, micro_batch) = (set.data()?, cx.effective_micro_batch());
        let joined = params.joined(unet.device(), micro_batch);
        let pass = FisherPass { unet, schedule, data, params, micro_batch, joined };
        Ok(pass.sum(batches, contract, &mut |done| cx.progress(done as u64, total))?)
    })
}

/// The file of a unit's sums.
const SUMS: &str = "sums.safetensors";

/// Writes the sums of a unit.
pub(super) fn write_sums(out: &Path, sum: &FisherSum) -> anyhow::Result<()> {
    tensors::write(&out.join(SUMS), &sum.sums, &[(WEIGHT, sum.weight.to_string())])
}

/// The means of the sums of all units.
pub(super) fn mean(parts: &[PathBuf]) -> anyhow::Result<BTreeMap<String, Tensor>> {
    let mut total = FisherSum::default();
    for part in parts {
        let file = part.join(SUMS);
        let weight = tensors::number(&file, WEIGHT)?;
        let weight = weight.ok_or_else(|| anyhow::anyhow!("{}: no weight", file.display()))?;
        total.add(FisherSum { sums: tensors::read(&file)?, weight });
    }
    Ok(total.mean())
}

/// Units of batches.
pub(super) fn split(params: &FisherParams, latents: usize) -> Vec<Unit> {
    ranges::units("batches", params.batches(latents), 1)
}

impl Compute for FisherParams {
    fn run(&self, task: &Task, cx: &Context<'_>) -> anyhow::Result<()> {
        let Task { inputs, out, .. } = task;
        let batches = ranges::range(task.unit()?, "batches")?;
        write_sums(out, &sums(self, inputs, batches.collect(), &squares, cx)?)
    }

    fn merge(&self, task: &Task, parts: &[PathBuf], _: &Context<'_>) -> anyhow::Result<()> {
        let Task { inputs, out, .. } = task;
        let images = count_images(inputs)?.to_string();
        tensors::write(&out.join("fisher.safetensors"), &mean(parts)?, &[(IMAGES, images)])
    }

    fn trial(
        &self,
        inputs: &ExpectedInputs,
        steps: u64,
        folder: &Path,
        _: &Context<'_>,
    ) -> anyhow::Result<Trial> {
        let mut given = inputs.inputs();
        let stage = trial_of(self, inputs, &mut given, steps, folder)?;
        let units = vec![trial_unit(steps)];
        Ok(Trial { stage: Box::new(stage), inputs: given, units, steps, merges: true })
    }
}
