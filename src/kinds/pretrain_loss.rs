//! The loss of every training image under the model as it was trained.

use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};

use super::loss_pass;
use super::loss_pass::per_timestep;
use super::shared::check_outputs::Outputs;
use super::shared::network::{CHECKPOINT, SCHEDULER, UNET};
use super::shared::{arrays, check_outputs, expected};
use crate::io::npy::Dtype;
use crate::method::loss::LossParams;
use crate::method::noise::Noise;
use attrflow_engine::config::param::Validate;
use attrflow_engine::config::tree::{Node, Value};
use attrflow_engine::kind::{
    ArtifactShape, Compute, Context, Estimate, ExpectedInputs, Input, Inputs, Kind, KindInfo, Output, Port,
    Stage, Task, Trial, Unit, UnitInputs,
};
use attrflow_engine::params;

params! {
    /// Parameters of `pretrain-loss`.
    pub struct PretrainLoss {
        /// How a loss is measured; `influence` takes the same table from here.
        loss: LossParams,
        /// Give the losses at each timestep as well, on a further output `timesteps` (pretrain_loss_timesteps.npy,
        /// float32 [2N, T], a mean over captions): `influence` reads them when it is asked for `candidates`. Needs
        /// `noise = "per_image"`.
        timesteps: bool = false,
    }
}

impl Validate for PretrainLoss {
    fn validate(&self) -> Vec<(&'static str, String)> {
        if !self.timesteps || self.loss.noise == Noise::PerImage {
            return Vec::new();
        }
        let message = "`timesteps` needs `noise = \"per_image\"` in the loss: with `\"per_batch\"` no timestep can be computed alone";
        vec![("timesteps", message.to_owned())]
    }
}

/// The output that is there where it is asked for.
const TIMESTEPS: &str = "timesteps";
const TIMESTEPS_FILE: &str = "pretrain_loss_timesteps.npy";

impl Kind for PretrainLoss {
    const INFO: KindInfo = KindInfo {
        inputs: &[
            UNET,
            CHECKPOINT,
            SCHEDULER,
            Input::new("latents", "float [2N, C, H, W]: images, then their mirror images"),
            Input::new("text_embeddings", "float [N, captions, L, D]"),
        ],
        outputs: &[Output { name: "losses", file: "pretrain_loss.npy", doc: "float32 [2N]" }],
        ports,
        ..KindInfo::new::<Self>(
            "pretrain-loss",
            2,
            "the loss of every training image under the pretrained model",
        )
    };
}

impl Stage for PretrainLoss {
    fn identity(&self) -> Json {
        let Self { loss, timesteps } = self;
        let mut counts = json!({ "loss": loss });
        // Left out where it is not set, so that what was computed before it existed stays valid.
        if *timesteps {
            counts["timesteps"] = json!(true);
        }
        counts
    }

    fn unit_identity(&self) -> Json {
        json!({ "loss": loss_pass::unit_identity(&self.loss) })
    }

    fn units(&self, inputs: &Inputs) -> anyhow::Result<Option<Vec<Unit>>> {
        loss_pass::units(&self.loss, inputs).map(Some)
    }

    fn unit_inputs(&self, inputs: &Inputs, units: &[Unit]) -> anyhow::Result<Vec<UnitInputs>> {
        loss_pass::unit_inputs(&self.loss, inputs, units)
    }

    fn batch_key(&self, inputs: &Inputs, unit: &Unit) -> Option<String> {
        loss_pass::batch_key(&self.loss, inputs, unit)
    }

    fn estimate(&self, inputs: &ExpectedInputs) -> anyhow::Result<Estimate> {
        let mut foreseen = loss_pass::estimate(&self.loss, inputs)?;
        if self.timesteps {
            let shape = vec![expected::array(inputs, "latents")?.shape[0], self.loss.time_samples];
            foreseen.outputs.insert(TIMESTEPS.into(), ArtifactShape::Array { shape, bytes: 4 });
        }
        Ok(foreseen)
    }

    fn accept(&self, inputs: &Inputs, outputs: &Outputs) -> anyhow::Result<()> {
        loss_pass::accept(&self.loss, inputs, &outputs["losses"])?;
        if let Some(file) = outputs.get(TIMESTEPS) {
            let shape = [arrays::open(inputs)?.0.rows(), self.loss.time_samples].map(Some);
            check_outputs::array(file, Some(Dtype::F32), &shape)?;
        }
        Ok(())
    }
}

fn ports(kind: &KindInfo, written: &Node) -> Vec<Port> {
    let port = |name: &str, file: &str| Port { name: name.to_owned(), file: file.to_owned() };
    let mut ports: Vec<Port> = kind.outputs.iter().map(|output| port(output.name, output.file)).collect();
    let asked = written.as_table().and_then(|table| table.get("timesteps"));
    if asked.is_some_and(|node| matches!(node.value, Value::Bool(true))) {
        ports.push(port(TIMESTEPS, TIMESTEPS_FILE));
    }
    ports
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
        if self.timesteps {
            per_timestep::merge(&self.loss, inputs, parts, &out.join(TIMESTEPS_FILE))?;
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
        let (loss, inputs, unit) = loss_pass::trial(&self.loss, inputs, steps, folder, cx)?;
        let steps = unit.steps;
        Ok(Trial {
            stage: Box::new(PretrainLoss { loss, timesteps: false }),
            inputs,
            unit: Some(unit),
            steps,
            merges: false,
        })
    }
}
