//! The loss of every training image under the model as it was trained.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::{Value as Json, json};

use super::accept::Outputs;
use super::loss::{self, LossParams};
use super::network::{CHECKPOINT, SCHEDULER, UNET};
use crate::param::Validate;
use crate::params;
use crate::stage::{
    Compute, Context, Foreseen, Input, Inputs, Member, Outlook, Output, Reads, Stage, Together, Trial, Unit,
};

params! {
    /// Parameters of `pretrain-loss`.
    pub struct Params {
        /// How a loss is measured; `influence` takes the same table from here.
        loss: LossParams,
    }
}

impl Validate for Params {}

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

    fn identity(params: &Params) -> Json {
        json!({ "loss": params.loss.identity() })
    }

    fn unit_identity(params: &Params) -> Json {
        json!({ "loss": params.loss.unit_identity() })
    }

    fn units(params: &Params, inputs: &Inputs) -> anyhow::Result<Option<Vec<Unit>>> {
        loss::units(&params.loss, inputs).map(Some)
    }

    fn reads(params: &Params, inputs: &Inputs, units: &[Unit]) -> anyhow::Result<Vec<Reads>> {
        loss::reads(&params.loss, inputs, units)
    }

    fn company(params: &Params, inputs: &Inputs, unit: &Unit) -> Option<String> {
        loss::company(&params.loss, inputs, unit)
    }

    fn foresee(params: &Params, inputs: &Outlook) -> anyhow::Result<Foreseen> {
        loss::foresee(&params.loss, inputs)
    }

    fn accept(params: &Params, inputs: &Inputs, outputs: &Outputs) -> anyhow::Result<()> {
        loss::accept(&params.loss, inputs, &outputs["losses"])
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
        cx.together(|cx| Self::run_together(&[Member { params, inputs, unit, out }], cx))
    }

    fn run_together(members: &[Member<'_, Params>], cx: &Together<'_>) -> anyhow::Result<()> {
        let pieces = members.iter().map(|member| {
            let Member { params, inputs, unit, out } = *member;
            loss::Piece { params: &params.loss, inputs, unit, out, weights: None }
        });
        loss::run(&pieces.collect::<Vec<_>>(), cx)
    }

    fn merge(
        params: &Params,
        inputs: &Inputs,
        parts: &[PathBuf],
        out: &Path,
        _: &Context<'_>,
    ) -> anyhow::Result<()> {
        loss::merge(&params.loss, inputs, parts, &out.join("pretrain_loss.npy"))
    }

    fn trial(
        params: &Params,
        inputs: &Outlook,
        steps: u64,
        folder: &Path,
        cx: &Context<'_>,
    ) -> anyhow::Result<Trial<Params>> {
        let (loss, inputs, unit) = loss::trial(&params.loss, inputs, steps, folder, cx)?;
        let steps = unit.steps;
        Ok(Trial { params: Params { loss }, inputs, unit: Some(unit), steps, merges: false })
    }
}
