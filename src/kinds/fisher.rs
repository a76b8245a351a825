//! The diagonal of the Fisher information: the importance of each weight for the training data.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::shared::arrays::{TrainingSet, count_images};
use super::shared::check_outputs::Outputs;
use super::shared::network::{CHECKPOINT, LORA, SCHEDULER, UNET, with_gradients};
use super::shared::{arrays, check_inputs, check_outputs, check_values, expected, ranges, tensors};
use crate::io::torch::Dtype;
pub use crate::method::fisher::FisherParams;
use crate::method::fisher::{FisherSum, fisher_range};
use crate::method::identity::hashed;
use crate::method::schedule::NoiseSchedule;
use attrflow_engine::kind::{
    Compute, Context, Estimate, ExpectedInputs, Input, Inputs, Kind, KindInfo, Output, Stage, Task, Trial,
    Unit, Units, WorkSize,
};
use serde_json::{Value as Json, json};

/// Metadata key of a unit's sums: their divisor.
const WEIGHT: &str = "weight";
/// Metadata key of the number of training images, which `unlearn` needs.
pub(super) const IMAGES: &str = "images";

impl Kind for FisherParams {
    const INFO: KindInfo = KindInfo {
        inputs: &[
            UNET,
            CHECKPOINT,
            LORA,
            SCHEDULER,
            Input::new("latents", "float [2N, C, H, W]"),
            Input::new("text_embeddings", "float [N, captions, L, D]"),
        ],
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
        hashed(self, &[("objective", self.objective.is_plain())])
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
        let (latents, texts) = expected::arrays(inputs)?;
        let rows = latents.shape[0];
        let units = split(self, rows);
        let sums = expected::selected(inputs, &self.select, 8)?;
        let Self { epochs: _, batch_size, seed: _, caption_draw, weighting: _, select, objective: _ } = self;
        let cost_key = json!({
            "batch_size": rows.min(*batch_size),
            "caption_draw": caption_draw,
            "select": select,
            "unet": expected::config(inputs, "unet")?,
            "latent": &latents.shape[1..],
            "text": &texts.shape[1..],
            "stored": [latents.bytes, texts.bytes],
        });
        Ok(Estimate {
            parts: units.len() as u64 * sums.bytes().unwrap_or_default(),
            outputs: [("fisher".to_owned(), sums)].into(),
            work: Some(WorkSize {
                steps: units.iter().map(|unit| unit.steps).sum(),
                tasks: units.len() as u64,
                cost_key,
                ..WorkSize::default()
            }),
        })
    }

    fn accept(&self, inputs: &Inputs, outputs: &Outputs) -> anyhow::Result<&'static str> {
        check_outputs::weights(&outputs["fisher"], inputs, &self.select, &[Dtype::F64, Dtype::F32])?;
        Ok("names, shapes, element types and finite values")
    }
}

fn split(params: &FisherParams, latents: usize) -> Vec<Unit> {
    ranges::units("batches", params.batches(latents), 1)
}

impl Compute for FisherParams {
    fn run(&self, task: &Task, cx: &Context<'_>) -> anyhow::Result<()> {
        let Task { inputs, out, .. } = task;
        let batches = ranges::range(task.unit()?, "batches")?;
        let total = batches.len() as u64;
        let sum = with_gradients(inputs, self.select.adapters(), cx.device, |unet| {
            let schedule = NoiseSchedule::load(inputs.path("scheduler"))?.with_objective(&self.objective);
            let set = TrainingSet::open(inputs, unet)?;
            let mut progress = |done| cx.progress(done as u64, total);
            let data = set.data()?;
            Ok(fisher_range(unet, &schedule, data, self, batches, cx.effective_micro_batch(), &mut progress)?)
        })?;
        tensors::write(&out.join("sums.safetensors"), &sum.sums, &[(WEIGHT, sum.weight.to_string())])
    }

    fn merge(&self, task: &Task, parts: &[PathBuf], _: &Context<'_>) -> anyhow::Result<()> {
        let Task { inputs, out, .. } = task;
        let mut total = FisherSum::default();
        for part in parts {
            let file = part.join("sums.safetensors");
            let weight = tensors::number(&file, WEIGHT)?;
            let weight = weight.ok_or_else(|| anyhow::anyhow!("{}: no weight", file.display()))?;
            total.add(FisherSum { sums: tensors::read(&file)?, weight });
        }
        let mean: BTreeMap<_, _> = total.mean();
        let images = count_images(inputs)?.to_string();
        tensors::write(&out.join("fisher.safetensors"), &mean, &[(IMAGES, images)])
    }

    fn trial(
        &self,
        inputs: &ExpectedInputs,
        steps: u64,
        folder: &Path,
        _: &Context<'_>,
    ) -> anyhow::Result<Trial> {
        let (latents, texts) = expected::arrays(inputs)?;
        let mut given = inputs.inputs();
        // One epoch over one batch per step.
        let rows = latents.shape[0].min(self.batch_size);
        let stage = FisherParams { epochs: steps as usize, ..self.clone() };
        expected::make_arrays(&mut given, [&latents, &texts], rows, folder)?;
        let unit = Unit { name: "a trial".into(), range: json!({ "batches": [0, steps] }), steps };
        Ok(Trial { stage: Box::new(stage), inputs: given, unit: Some(unit), steps, merges: true })
    }
}
