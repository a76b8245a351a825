//! The loss of every training image under the model as it was trained.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::{Value as Json, json};

use super::loss_pass::per_timestep;
use super::loss_pass::{self, LossParams, Noise};
use super::shared::check_outputs::Outputs;
use super::shared::network::{CHECKPOINT, SCHEDULER, UNET};
use super::shared::{arrays, check_outputs, expected};
use crate::io::npy::Dtype;
use attrflow_engine::config::param::Validate;
use attrflow_engine::config::tree::{Node, Value};
use attrflow_engine::kind::{
    ArtifactShape, Compute, Context, Estimate, ExpectedInputs, Input, Inputs, Member, Output, Port, Stage,
    Together, Trial, Unit, UnitInputs,
};
use attrflow_engine::params;

params! {
    /// Parameters of `pretrain-loss`.
    pub struct Params {
        /// How a loss is measured; `influence` takes the same table from here.
        loss: LossParams,
        /// Give the losses at each timestep as well, on a further output `timesteps` (pretrain_loss_timesteps.npy,
        /// float32 [2N, T], a mean over captions): `influence` reads them when it is asked for `candidates`. Needs
        /// `noise = "image"`.
        timesteps: bool = false,
    }
}

impl Validate for Params {
    fn validate(&self) -> Vec<(&'static str, String)> {
        if !self.timesteps || self.loss.noise == Noise::Image {
            return Vec::new();
        }
        let message = "`timesteps` needs `noise = \"image\"` in the loss: with `\"batch\"` no timestep can be computed alone";
        vec![("timesteps", message.to_owned())]
    }
}

/// The output that is there where it is asked for.
const TIMESTEPS: &str = "timesteps";
const TIMESTEPS_FILE: &str = "pretrain_loss_timesteps.npy";

/// See the module.
pub struct PretrainLoss;

impl Stage for PretrainLoss {
    type Params = Params;
    const KIND: &'static str = "pretrain-loss";
    const VERSION: u32 = 2;
    const SUMMARY: &'static str = "the loss of every training image under the pretrained model";
    const INPUTS: &'static [Input] = &[
        UNET,
        CHECKPOINT,
        SCHEDULER,
        Input::new("latents", "float [2N, C, H, W]: images, then their mirror images"),
        Input::new("text_embeddings", "float [N, captions, L, D]"),
    ];
    const OUTPUTS: &'static [Output] =
        &[Output { name: "losses", file: "pretrain_loss.npy", doc: "float32 [2N]" }];

    fn ports(written: &Node) -> Vec<Port> {
        let port = |name: &str, file: &str| Port { name: name.to_owned(), file: file.to_owned() };
        let mut ports: Vec<Port> =
            Self::OUTPUTS.iter().map(|output| port(output.name, output.file)).collect();
        let asked = written.as_table().and_then(|table| table.get("timesteps"));
        if asked.is_some_and(|node| matches!(node.value, Value::Bool(true))) {
            ports.push(port(TIMESTEPS, TIMESTEPS_FILE));
        }
        ports
    }

    fn identity(params: &Params) -> Json {
        let Params { loss, timesteps } = params;
        let mut counts = json!({ "loss": loss.identity() });
        // Left out where it is not set, so that what was computed before it existed stays valid.
        if *timesteps {
            counts["timesteps"] = json!(true);
        }
        counts
    }

    fn unit_identity(params: &Params) -> Json {
        json!({ "loss": params.loss.unit_identity() })
    }

    fn units(params: &Params, inputs: &Inputs) -> anyhow::Result<Option<Vec<Unit>>> {
        loss_pass::units(&params.loss, inputs).map(Some)
    }

    fn unit_inputs(params: &Params, inputs: &Inputs, units: &[Unit]) -> anyhow::Result<Vec<UnitInputs>> {
        loss_pass::unit_inputs(&params.loss, inputs, units)
    }

    fn batch_key(params: &Params, inputs: &Inputs, unit: &Unit) -> Option<String> {
        loss_pass::batch_key(&params.loss, inputs, unit)
    }

    fn estimate(params: &Params, inputs: &ExpectedInputs) -> anyhow::Result<Estimate> {
        let mut foreseen = loss_pass::estimate(&params.loss, inputs)?;
        if params.timesteps {
            let shape = vec![expected::array(inputs, "latents")?.shape[0], params.loss.time_samples as usize];
            foreseen.outputs.insert(TIMESTEPS.into(), ArtifactShape::Array { shape, bytes: 4 });
        }
        Ok(foreseen)
    }

    fn accept(params: &Params, inputs: &Inputs, outputs: &Outputs) -> anyhow::Result<()> {
        loss_pass::accept(&params.loss, inputs, &outputs["losses"])?;
        if let Some(file) = outputs.get(TIMESTEPS) {
            let shape = [arrays::open(inputs)?.0.rows(), params.loss.time_samples as usize].map(Some);
            check_outputs::array(file, Some(Dtype::F32), &shape)?;
        }
        Ok(())
    }
}

impl Compute for PretrainLoss {
    fn run(
        params: &Params,
        inputs: &Inputs,
        unit: Option<&Unit>,
        out: &Path,
        cx: &Context<'_>,
    ) -> anyhow::Result<()> {
        let unit = unit.context("this kind is computed by units")?;
        cx.together(|cx| Self::run_batch(&[Member { params, inputs, unit, out }], cx))
    }

    fn run_batch(members: &[Member<'_, Params>], cx: &Together<'_>) -> anyhow::Result<()> {
        let pieces = members.iter().map(|member| {
            let Member { params, inputs, unit, out } = *member;
            loss_pass::Piece { params: &params.loss, inputs, unit, out, weights: None }
        });
        loss_pass::run(&pieces.collect::<Vec<_>>(), cx)
    }

    fn merge(
        params: &Params,
        inputs: &Inputs,
        parts: &[PathBuf],
        out: &Path,
        _: &Context<'_>,
    ) -> anyhow::Result<()> {
        if params.timesteps {
            per_timestep::merge(&params.loss, inputs, parts, &out.join(TIMESTEPS_FILE))?;
        }
        loss_pass::merge(&params.loss, inputs, parts, &out.join("pretrain_loss.npy"))
    }

    fn trial(
        params: &Params,
        inputs: &ExpectedInputs,
        steps: u64,
        folder: &Path,
        cx: &Context<'_>,
    ) -> anyhow::Result<Trial<Params>> {
        let (loss, inputs, unit) = loss_pass::trial(&params.loss, inputs, steps, folder, cx)?;
        let steps = unit.steps;
        Ok(Trial {
            params: Params { loss, timesteps: false },
            inputs,
            unit: Some(unit),
            steps,
            merges: false,
        })
    }
}
