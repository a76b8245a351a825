//! The loss of every training image under the pretrained model.

use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};

use super::loss_pass;
use super::loss_pass::per_timestep::{self, PER_TIMESTEP};
use super::shared::arrays::TEXT_EMBEDDINGS;
use super::shared::check_outputs::Outputs;
use super::shared::network::{CHECKPOINT, LORA, SCHEDULER, UNET};
use super::shared::{arrays, check_outputs, check_values, expected};
use crate::io::npy::Dtype;
use crate::method::loss::LossParams;
use attrflow_engine::config::param::Validate;
use attrflow_engine::kind::{
    ArtifactShape, Compute, Context, Estimate, ExpectedInputs, Input, Inputs, Kind, KindInfo, Output, Stage,
    Task, Trial, Unit, UnitInputs, Units,
};
use attrflow_engine::params;

params! {
    /// Parameters of `pretrain-loss`.
    pub struct PretrainLoss {
        /// How to measure a loss; `influence` inherits this table.
        loss: LossParams,
        /// Also write the losses per timestep, to the output `per_timestep` (pretrain_loss_per_timestep.npy, float32
        /// [2N, T], with `draws` above 1 [2N, T, R], a mean over captions): `influence` reads them for error bars and for
        /// `top_k`. Needs `noise = "per_image"`.
        per_timestep: bool = false,
    }
}

impl Validate for PretrainLoss {
    const RENAMED: &'static [(&'static str, &'static str)] = &[("timesteps", "per_timestep")];
    fn validate(&self) -> Vec<(&'static str, String)> {
        if !self.per_timestep || self.loss.noise.by_image() {
            return Vec::new();
        }
        let message = "`per_timestep` needs `noise = \"per_image\"` in the loss: with `\"per_batch\"` a timestep cannot be computed alone";
        vec![("per_timestep", message.to_owned())]
    }
}

/// The file of the optional output.
const PER_TIMESTEP_FILE: &str = "pretrain_loss_per_timestep.npy";

impl Kind for PretrainLoss {
    const INFO: KindInfo = KindInfo {
        inputs: &[
            UNET,
            CHECKPOINT,
            LORA,
            SCHEDULER,
            Input::new("latents", "float [2N, C, H, W]: images, then their mirror images"),
            TEXT_EMBEDDINGS,
        ],
        outputs: &[
            Output::new("losses", "pretrain_loss.npy", "float32 [2N]"),
            Output::new(
                PER_TIMESTEP,
                PER_TIMESTEP_FILE,
                "float32 [2N, T] or [2N, T, R]: a mean over captions",
            )
            .enabled_by(PER_TIMESTEP),
        ],
        ..KindInfo::new::<Self>(
            "pretrain-loss",
            2,
            "the loss of every training image under the pretrained model",
        )
    };
}

impl Stage for PretrainLoss {
    fn identity(&self) -> Json {
        let Self { loss, per_timestep } = self;
        let mut hashed = json!({ "loss": loss.identity() });
        // Omitted if not set: it adds an output and changes no other.
        if *per_timestep {
            hashed["per_timestep"] = json!(true);
        }
        hashed
    }

    fn unit_identity(&self) -> Json {
        json!({ "loss": loss_pass::unit_identity(&self.loss) })
    }

    fn validate_inputs(&self, inputs: &Inputs) -> anyhow::Result<()> {
        loss_pass::validate_inputs(&self.loss, inputs)
    }

    fn check_values(&self, inputs: &Inputs) -> anyhow::Result<()> {
        check_values::finite(inputs, &["latents", "text_embeddings"])
    }

    fn units(&self, inputs: &Inputs) -> anyhow::Result<Units> {
        loss_pass::units(&self.loss, inputs).map(Units::Independent)
    }

    fn unit_inputs(&self, inputs: &Inputs, units: &[Unit]) -> anyhow::Result<Vec<UnitInputs>> {
        loss_pass::unit_inputs(&self.loss, inputs, units)
    }

    fn batch_key(&self, inputs: &Inputs, unit: &Unit) -> Option<String> {
        loss_pass::batch_key(&self.loss, inputs, unit)
    }

    fn estimate(&self, inputs: &ExpectedInputs) -> anyhow::Result<Estimate> {
        let mut estimate = loss_pass::estimate(&self.loss, inputs)?;
        if self.per_timestep {
            let shape = per_timestep::shape(&self.loss, expected::array(inputs, "latents")?.shape[0]);
            estimate.outputs.insert(PER_TIMESTEP.into(), ArtifactShape::Array { shape, bytes: 4 });
        }
        Ok(estimate)
    }

    fn accept(&self, inputs: &Inputs, outputs: &Outputs) -> anyhow::Result<&'static str> {
        loss_pass::accept(&self.loss, inputs, &outputs["losses"])?;
        if let Some(file) = outputs.get(PER_TIMESTEP) {
            let shape = per_timestep::shape(&self.loss, arrays::open(inputs)?.0.rows());
            let shape: Vec<_> = shape.into_iter().map(Some).collect();
            let file = check_outputs::array(file, Some(Dtype::F32), &shape)?;
            per_timestep::accept_means(&outputs["losses"], &file)?;
        }
        Ok(
            "shapes, element types, numbers that are finite and not negative, and the means over the timesteps where they are given",
        )
    }
}

impl Compute for PretrainLoss {
    fn run(&self, task: &Task, cx: &Context<'_>) -> anyhow::Result<()> {
        self.run_batch(std::slice::from_ref(task), cx)
    }

    fn run_batch(&self, tasks: &[Task], cx: &Context<'_>) -> anyhow::Result<()> {
        loss_pass::run(&self.loss, tasks, None, cx)
    }

    fn merge(&self, task: &Task, parts: &[PathBuf], _: &Context<'_>) -> anyhow::Result<()> {
        let Task { inputs, out, .. } = task;
        if self.per_timestep {
            per_timestep::merge(&self.loss, inputs, parts, &out.join(PER_TIMESTEP_FILE))?;
        }
        loss_pass::merge(&self.loss, inputs, parts, &out.join("pretrain_loss.npy"))
    }

    fn trial(
        &self,
        inputs: &ExpectedInputs,
        steps: u64,
        folder: &Path,
        cx: &Context<'_>,
    ) -> anyhow::Result<Trial> {
        let (loss, inputs, units) = loss_pass::trial(&self.loss, inputs, steps, folder, cx)?;
        let steps = units.iter().map(|unit| unit.steps).sum();
        Ok(Trial {
            stage: Box::new(PretrainLoss { loss, per_timestep: false }),
            inputs,
            units,
            steps,
            merges: false,
        })
    }
}
