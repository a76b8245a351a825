//! EK-FAC: the Fisher information of linear layers in their eigenbases.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::{Value as Json, json};
use tch::{Device, Kind as Element, Tensor};

use super::fisher::{self, FisherParams, IMAGES};
use super::shared::arrays::{self, LATENTS, TEXT_EMBEDDINGS, count_images};
use super::shared::factors::{self, Linear, linear_layers};
use super::shared::network::{CHECKPOINT, LORA, SCHEDULER, UNET};
use super::shared::parameters::{Parameters, short_of};
use super::shared::{check_inputs, check_values, device, expected, ranges, tensors};
use crate::method::ekfac::{ACTIVATION, Eigenbasis, GRADIENT, check_traces};
use attrflow_engine::config::param::Validate;
use attrflow_engine::kind::{
    ArtifactShape, Compute, Context, Estimate, ExpectedInputs, Input, Inputs, Kind, KindInfo, Output, Shared,
    Stage, Task, Trial, Units,
};
use attrflow_engine::params;

params! {
    /// Parameters of `ekfac`.
    pub struct EkfacParams {
        /// Rows and weights as for the Fisher information. Of the weights, the linear layers count.
        fisher: FisherParams = FisherParams::default(),
    }
}

impl Validate for EkfacParams {}

/// Metadata key: the largest relative difference of a layer's trace from the sum of its squared gradients.
const TRACE: &str = "trace_difference";

impl Kind for EkfacParams {
    const INFO: KindInfo = KindInfo {
        inputs: &[
            UNET,
            CHECKPOINT,
            LORA,
            SCHEDULER,
            LATENTS,
            TEXT_EMBEDDINGS,
            Input::new("eigenbasis", "float32 by layer, of a stage of the kind `eigenbasis`"),
        ],
        outputs: &[Output::new(
            "ekfac",
            "ekfac.safetensors",
            "float32 by layer: the eigenvectors of `eigenbasis`, and `lambda_matrix` [O, I]; the number of images N in its metadata",
        )],
        shared: &[Shared {
            port: "eigenbasis",
            kind: "eigenbasis",
            inputs: &["unet", "checkpoint", "lora", "scheduler"],
        }],
        ..KindInfo::new::<Self>(
            "ekfac",
            1,
            "the Fisher information of linear layers as Kronecker factors (EK-FAC)",
        )
    };
}

impl Stage for EkfacParams {
    fn check(&self, connected: &dyn Fn(&str) -> bool) -> Vec<(String, String)> {
        self.fisher.select.check("fisher", connected("lora"))
    }

    fn check_sources<'s>(&self, source: &dyn Fn(&str) -> Option<&'s dyn Stage>) -> Vec<(String, String)> {
        short_of(&self.fisher.select, "fisher", &["eigenbasis"], source)
    }

    fn identity(&self) -> Json {
        json!({ "fisher": self.fisher.identity() })
    }

    fn validate_inputs(&self, inputs: &Inputs) -> anyhow::Result<()> {
        check_inputs::networks(inputs)?;
        factors::expect_linear(inputs, &self.fisher.select)?;
        check_inputs::arrays(inputs)?;
        factors::validate(inputs.path("eigenbasis"), &factors::layers(inputs, &self.fisher.select)?, false)
    }

    fn check_values(&self, inputs: &Inputs) -> anyhow::Result<()> {
        check_values::finite(inputs, &["latents", "text_embeddings"])
    }

    fn units(&self, inputs: &Inputs) -> anyhow::Result<Units> {
        let (latents, _) = arrays::open(inputs)?;
        Ok(Units::Independent(fisher::split(&self.fisher, latents.rows())))
    }

    fn estimate(&self, inputs: &ExpectedInputs) -> anyhow::Result<Estimate> {
        let units = fisher::split(&self.fisher, expected::array(inputs, "latents")?.shape[0]);
        let layers = linear_layers(&Parameters::expected(inputs, &self.fisher.select)?);
        let (all, vectors) = (factors::bytes(&layers, true), factors::bytes(&layers, false));
        let mut work = fisher::work(&self.fisher, inputs, &units)?;
        work.cost_key["contraction"] = json!("ekfac");
        Ok(Estimate {
            // The eigenvalues' sums are in float64.
            parts: units.len() as u64 * 2 * (all - vectors),
            outputs: [("ekfac".to_owned(), ArtifactShape::Bytes(all))].into(),
            work: Some(work),
        })
    }
}

impl Compute for EkfacParams {
    fn run(&self, task: &Task, cx: &Context<'_>) -> anyhow::Result<()> {
        let Task { inputs, out, .. } = task;
        let batches = ranges::range(task.unit()?, "batches")?.collect();
        let basis =
            Eigenbasis::new(factors::read(inputs.path("eigenbasis"), false)?, device::torch(cx.device));
        let sums = fisher::sums(&self.fisher, inputs, batches, &|found| basis.squares(found), cx)?;
        fisher::write_sums(out, &sums)
    }

    fn merge(&self, task: &Task, parts: &[PathBuf], _: &Context<'_>) -> anyhow::Result<()> {
        let Task { inputs, out, .. } = task;
        let mut means = fisher::mean(parts)?;
        let basis = inputs.path("eigenbasis");
        let difference = check_traces(&mut means).with_context(|| basis.display().to_string())?;
        tracing::info!(
            "the eigenvalues sum to the squared gradients of the same rows within {difference:.1e}"
        );
        let basis = Eigenbasis::new(factors::read(inputs.path("eigenbasis"), false)?, Device::Cpu);
        let mut all: BTreeMap<String, Tensor> = basis.into_tensors();
        all.extend(means.into_iter().map(|(name, x)| (name, x.to_kind(Element::Float))));
        let metadata = [(IMAGES, count_images(inputs)?.to_string()), (TRACE, format!("{difference:.3e}"))];
        tensors::write(&out.join("ekfac.safetensors"), &all, &metadata)
    }

    fn trial(
        &self,
        inputs: &ExpectedInputs,
        steps: u64,
        folder: &Path,
        _: &Context<'_>,
    ) -> anyhow::Result<Trial> {
        let mut given = inputs.inputs();
        let fisher = fisher::trial_of(&self.fisher, inputs, &mut given, steps, folder)?;
        if given.get("eigenbasis").is_none() {
            let file = folder.join("eigenbasis.safetensors");
            let layers = linear_layers(&Parameters::expected(inputs, &self.fisher.select)?);
            tensors::write(&file, &identities(&layers), &[])?;
            given.0.insert("eigenbasis".to_owned(), file);
        }
        let units = vec![fisher::trial_unit(steps)];
        Ok(Trial { stage: Box::new(EkfacParams { fisher }), inputs: given, units, steps, merges: true })
    }
}

/// A basis that is as good as any for a trial.
fn identities(layers: &[Linear]) -> BTreeMap<String, Tensor> {
    let identity = |size: usize| Tensor::eye(size as i64, (Element::Float, Device::Cpu));
    let of = |linear: &Linear| {
        [(ACTIVATION, linear.inputs), (GRADIENT, linear.outputs)]
            .map(|(end, size)| (format!("{}.{end}", linear.layer), identity(size)))
    };
    layers.iter().flat_map(of).collect()
}
