//! The eigenbasis in which EK-FAC and projections work: eigenvectors of the inputs' and the output gradients' covariances.

use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};

use super::fisher::{self, FisherParams};
use super::shared::arrays::{LATENTS, TEXT_EMBEDDINGS, TrainingSet};
use super::shared::factors::{self, linear_layers};
use super::shared::network::{CHECKPOINT, LORA, SCHEDULER, UNET, with_gradients};
use super::shared::parameters::Parameters;
use super::shared::{arrays, check_inputs, check_values, expected, ranges, tensors};
use crate::method::data::{Rows as _, to_device};
use crate::method::ekfac::{covariance, covariances, eigenvectors, of_texts};
use crate::method::fisher::FisherSum;
use attrflow_engine::config::param::Validate;
use attrflow_engine::kind::{
    ArtifactShape, Compute, Context, Estimate, ExpectedInputs, Inputs, Kind, KindInfo, Output, Stage, Task,
    Trial, Unit, Units,
};
use attrflow_engine::params;

params! {
    /// Parameters of `eigenbasis`.
    pub struct Eigenbasis {
        /// Rows and weights as for the Fisher information. Of the weights, the linear layers count.
        fisher: FisherParams = FisherParams::default(),
        /// Every how many of those batches counts: eigenvectors need fewer rows than eigenvalues. The texts, which the keys and values
        /// of cross attention read, all count whatever it is.
        every: usize [1..=1_000_000] = 10,
    }
}

impl Validate for Eigenbasis {}

/// Texts in a unit, at the least.
const TEXTS: usize = 1024;

impl Eigenbasis {
    fn units_of(&self, latents: usize, texts: usize, reads_texts: bool) -> Vec<Unit> {
        let mut units = ranges::units("batches", self.fisher.batches(latents).div_ceil(self.every), 1);
        if reads_texts {
            units.extend(
                ranges::units("texts", texts, TEXTS).into_iter().map(|unit| Unit { steps: 1, ..unit }),
            );
        }
        units
    }
}

impl Kind for Eigenbasis {
    const INFO: KindInfo = KindInfo {
        inputs: &[UNET, CHECKPOINT, LORA, SCHEDULER, LATENTS, TEXT_EMBEDDINGS],
        outputs: &[Output::new(
            "eigenbasis",
            "eigenbasis.safetensors",
            "float32 by layer: `activation_eigenvectors` [I, I], once for all layers that read the texts, and `gradient_eigenvectors` \
             [O, O]; columns by falling eigenvalue",
        )],
        ..KindInfo::new::<Self>(
            "eigenbasis",
            1,
            "the eigenvectors of the covariances of linear layers' inputs and output gradients",
        )
    };
}

impl Stage for Eigenbasis {
    fn check(&self, connected: &dyn Fn(&str) -> bool) -> Vec<(String, String)> {
        self.fisher.select.check("fisher", connected("lora"))
    }

    fn identity(&self) -> Json {
        json!({ "fisher": self.fisher.identity(), "every": self.every })
    }

    fn validate_inputs(&self, inputs: &Inputs) -> anyhow::Result<()> {
        check_inputs::networks(inputs)?;
        factors::expect_linear(inputs, &self.fisher.select)?;
        check_inputs::arrays(inputs).map(drop)
    }

    fn check_values(&self, inputs: &Inputs) -> anyhow::Result<()> {
        check_values::finite(inputs, &["latents", "text_embeddings"])
    }

    fn units(&self, inputs: &Inputs) -> anyhow::Result<Units> {
        let (latents, texts) = arrays::open(inputs)?;
        let layers = factors::layers(inputs, &self.fisher.select)?;
        let reads_texts = layers.iter().any(|layer| layer.shares_texts());
        let texts = texts.rows() * texts.shape()[1];
        Ok(Units::Independent(self.units_of(latents.rows(), texts, reads_texts)))
    }

    fn estimate(&self, inputs: &ExpectedInputs) -> anyhow::Result<Estimate> {
        let (latents, texts) = expected::arrays(inputs)?;
        let layers = linear_layers(&Parameters::expected(inputs, &self.fisher.select)?);
        let bytes = factors::bytes(&layers, false);
        let reads_texts = layers.iter().any(|layer| layer.shares_texts());
        let units = self.units_of(latents.shape[0], texts.shape[0] * texts.shape[1], reads_texts);
        Ok(Estimate {
            // Sums in float64 of every unit.
            parts: units.len() as u64 * 2 * bytes,
            outputs: [("eigenbasis".to_owned(), ArtifactShape::Bytes(bytes))].into(),
            work: Some(fisher::work(&self.fisher, inputs, &units)?),
        })
    }
}

impl Compute for Eigenbasis {
    fn run(&self, task: &Task, cx: &Context<'_>) -> anyhow::Result<()> {
        let Task { inputs, out, .. } = task;
        let unit = task.unit()?;
        if unit.range.get("texts").is_some() {
            return fisher::write_sums(out, &self.texts(inputs, ranges::range(unit, "texts")?, cx)?);
        }
        let batches = ranges::range(unit, "batches")?.map(|place| place * self.every).collect();
        let sums = fisher::sums(&self.fisher, inputs, batches, &|found| Ok(covariances(found)), cx)?;
        fisher::write_sums(out, &sums)
    }

    fn merge(&self, task: &Task, parts: &[PathBuf], _: &Context<'_>) -> anyhow::Result<()> {
        let vectors = eigenvectors(&fisher::mean(parts)?)?;
        tensors::write(&task.out.join("eigenbasis.safetensors"), &vectors, &[])
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
        let stage = Eigenbasis { fisher, every: 1 };
        let units = vec![fisher::trial_unit(steps)];
        Ok(Trial { stage: Box::new(stage), inputs: given, units, steps, merges: false })
    }
}

impl Eigenbasis {
    /// The covariance of all tokens of some texts.
    fn texts(&self, inputs: &Inputs, texts: Range<usize>, cx: &Context<'_>) -> anyhow::Result<FisherSum> {
        with_gradients(inputs, self.fisher.select.adapters(), self.fisher.precision, cx.device, |unet| {
            let (set, mut sum) = (TrainingSet::open(inputs, unet)?, None);
            let rows: Vec<usize> = texts.collect();
            for some in rows.chunks(64) {
                let some = set.texts().read(some).map_err(|error| anyhow::anyhow!(error))?;
                let context = unet.conditioning(to_device(&some, unet.device())).context;
                let part = covariance(&context);
                sum = Some(match sum {
                    None => part,
                    Some(sum) => sum + part,
                });
            }
            let sums = sum.map(|sum| (of_texts(), sum)).into_iter().collect();
            Ok(FisherSum { sums, weight: 0.0 })
        })
    }
}
