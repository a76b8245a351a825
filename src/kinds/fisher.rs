//! The diagonal of the Fisher information: the importance of each weight for the training data.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::shared::arrays::{TrainingSet, count_images};
use super::shared::check_outputs::Outputs;
use super::shared::network::{CHECKPOINT, SCHEDULER, UNET, with_unet};
use super::shared::select::Select;
use super::shared::{arrays, check_outputs, expected, ranges, tensors};
use crate::io::torch::Dtype;
use crate::method::fisher::{CaptionDraw, FisherSpec, FisherSum, Weighting, fisher_range};
use crate::method::schedule::NoiseSchedule;
use crate::method::selection::Selection;
use crate::models::unet::ModelMode;
use attrflow_engine::config::param::Validate;
use attrflow_engine::kind::{
    Compute, Context, Estimate, ExpectedInputs, Input, Inputs, Kind, KindInfo, Output, Stage, Task, Trial,
    Unit, Units, WorkSize,
};
use attrflow_engine::{choice, params};
use serde_json::json;

choice! {
    /// The rows that share a caption index.
    pub enum Draw {
        /// All rows of a batch, as published.
        Batch = "batch",
        /// None: every row draws its own.
        Row = "row",
    }
}

choice! {
    /// The mean over rows or over batches.
    pub enum Weight {
        /// The mean of batch means, as published: rows of a short last batch have a larger weight.
        Batch = "batch",
        /// The mean over rows.
        Row = "row",
    }
}

params! {
    /// Parameters of `fisher`.
    pub struct Fisher {
        /// Epochs over the latents.
        epochs: u32 [1..=10_000] = 5,
        /// Rows per batch.
        batch_size: u32 [1..=100_000] = 32,
        /// Seed of timesteps, captions and noise.
        seed: u32 = 0,
        /// `batch`: one caption index for all rows of a batch, as published, although the paper describes one for each
        /// row;
        /// `row`: one for each row.
        caption_draw: Draw = Draw::Batch,
        /// `batch`: mean of batch means, as published, in which rows of a short last batch have a larger weight; `row`:
        /// mean over rows.
        weighting: Weight = Weight::Batch,
        /// The weights to compute it for; must include those that `unlearn` changes.
        select: Select = Select(Selection::All),
    }
}

impl Validate for Fisher {}

impl Fisher {
    fn spec(&self) -> FisherSpec {
        FisherSpec {
            epochs: self.epochs as usize,
            batch_size: self.batch_size as usize,
            seed: self.seed.into(),
            caption_draw: match self.caption_draw {
                Draw::Batch => CaptionDraw::Batch,
                Draw::Row => CaptionDraw::Row,
            },
            weighting: match self.weighting {
                Weight::Batch => Weighting::Batch,
                Weight::Row => Weighting::Row,
            },
            selection: self.select.0.clone(),
        }
    }
}

/// Metadata key of a unit's sums: their divisor.
const WEIGHT: &str = "weight";
/// Metadata key of the number of training images, which `unlearn` needs.
pub(super) const IMAGES: &str = "images";

impl Kind for Fisher {
    const INFO: KindInfo = KindInfo {
        inputs: &[
            UNET,
            CHECKPOINT,
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

impl Stage for Fisher {
    fn units(&self, inputs: &Inputs) -> anyhow::Result<Units> {
        let (latents, _) = arrays::open(inputs)?;
        Ok(Units::Independent(split(self, latents.rows())))
    }

    fn estimate(&self, inputs: &ExpectedInputs) -> anyhow::Result<Estimate> {
        let (latents, texts) = expected::arrays(inputs)?;
        let rows = latents.shape[0];
        let units = split(self, rows);
        let sums = expected::selected(inputs, &self.select.0, 8)?;
        let Self { epochs: _, batch_size, seed: _, caption_draw, weighting: _, select } = self;
        let cost_key = json!({
            "batch_size": rows.min(*batch_size as usize),
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
            }),
        })
    }

    fn accept(&self, inputs: &Inputs, outputs: &Outputs) -> anyhow::Result<()> {
        check_outputs::weights(&outputs["fisher"], inputs, &self.select.0, &[Dtype::F64, Dtype::F32])
    }
}

fn split(params: &Fisher, latents: usize) -> Vec<Unit> {
    ranges::units("batches", params.spec().batches(latents), 1)
}

impl Compute for Fisher {
    fn run(&self, task: &Task, cx: &Context<'_>) -> anyhow::Result<()> {
        let Task { inputs, out, .. } = task;
        let batches = ranges::range(task.unit()?, "batches")?;
        let total = batches.len() as u64;
        let sum = with_unet(inputs, None, cx.device, ModelMode::Gradients, |unet| {
            let schedule = NoiseSchedule::load(inputs.path("scheduler"))?;
            let set = TrainingSet::open(inputs, unet)?;
            let mut progress = |done| cx.progress(done as u64, total);
            let (data, spec) = (set.data()?, self.spec());
            Ok(fisher_range(
                unet,
                &schedule,
                data,
                &spec,
                batches,
                cx.effective_micro_batch(),
                &mut progress,
            )?)
        })?;
        tensors::write(&out.join("sums.safetensors"), &sum.sums, Some((WEIGHT, sum.weight.to_string())))
    }

    fn merge(&self, task: &Task, parts: &[PathBuf], _: &Context<'_>) -> anyhow::Result<()> {
        let Task { inputs, out, .. } = task;
        let mut total = FisherSum::default();
        for part in parts {
            let file = part.join("sums.safetensors");
            let weight = tensors::metadata(&file, WEIGHT)?.and_then(|text| text.parse().ok());
            let weight = weight.ok_or_else(|| anyhow::anyhow!("{}: no weight", file.display()))?;
            total.add(FisherSum { sums: tensors::read(&file)?, weight });
        }
        let mean: BTreeMap<_, _> = total.mean();
        let images = count_images(inputs)?.to_string();
        tensors::write(&out.join("fisher.safetensors"), &mean, Some((IMAGES, images)))
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
        let rows = latents.shape[0].min(self.batch_size as usize);
        let stage = Fisher { epochs: steps as u32, ..self.clone() };
        expected::make_arrays(&mut given, [&latents, &texts], rows, folder)?;
        let unit = Unit { name: "a trial".into(), range: json!({ "batches": [0, steps] }), steps };
        Ok(Trial { stage: Box::new(stage), inputs: given, unit: Some(unit), steps, merges: true })
    }
}
