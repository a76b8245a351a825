//! The projected gradient of every training image, or of every query, for `baseline`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};
use tch::Tensor;

use super::loss_pass;
use super::shared::arrays::{TEXT_EMBEDDINGS, TrainingSet, values};
use super::shared::check_outputs::Outputs;
use super::shared::network::{CHECKPOINT, LORA, SCHEDULER, UNET, with_gradients};
use super::shared::parameters::{Parameters, short_of};
use super::shared::{arrays, check_inputs, check_outputs, check_values, expected, factors, ranges};
use crate::io::npy::Dtype;
use crate::io::npy::writer::{self, NpyWriter};
use crate::method::ekfac::Eigenbasis;
pub use crate::method::gradients::GradientsParams;
use crate::method::loss::LossPass;
use crate::method::projection::{Kept, Projection, Projector, kept};
use crate::method::schedule::NoiseSchedule;
use crate::models::unet::Precision;
use attrflow_engine::kind::{
    ArtifactShape, Compute, Context, Estimate, ExpectedInputs, Input, Inputs, Kind, KindInfo, Output, Stage,
    Task, Trial, Unit, Units, WorkSize,
};
use attrflow_engine::store::format_bytes;

const FILE: &str = "gradients.npy";

/// The most bytes that matrices of dense projections may take.
const LARGEST: u64 = 8 << 30;

/// Images whose rows are read, drawn and kept at once.
const IMAGES: usize = 16;

impl Kind for GradientsParams {
    const INFO: KindInfo = KindInfo {
        inputs: &[
            UNET,
            CHECKPOINT,
            LORA,
            SCHEDULER,
            Input::new(
                "latents",
                "float [2N, C, H, W]: images, then their mirror images; or queries [Q, C, H, W]",
            ),
            TEXT_EMBEDDINGS,
            Input::new(
                "eigenbasis",
                "float32 by layer, of a stage of the kind `eigenbasis`: for `projection = \"eigen\"`, the same for training images and queries",
            )
            .optional(),
        ],
        outputs: &[Output::new(
            "gradients",
            FILE,
            "float32 [2N, k]: the gradient of each latent, a mean over captions and timesteps, projected",
        )],
        ..KindInfo::new::<Self>(
            "gradients",
            1,
            "the projected gradient of every training image, for `baseline`",
        )
    };
}

impl Stage for GradientsParams {
    fn check(&self, connected: &dyn Fn(&str) -> bool) -> Vec<(String, String)> {
        let mut faults = self.select.check("select", connected("lora"));
        let message = match (self.projection == Projection::Eigen, connected("eigenbasis")) {
            (true, false) => {
                "`projection = \"eigen\"` needs the input `eigenbasis`: connect the output of a stage of the kind `eigenbasis`"
            }
            (false, true) => {
                "the input `eigenbasis` is connected, which `projection` does not use: set `projection = \"eigen\"`, or remove the input"
            }
            _ => return faults,
        };
        faults.push(("projection".to_owned(), message.to_owned()));
        faults
    }

    fn check_sources<'s>(&self, source: &dyn Fn(&str) -> Option<&'s dyn Stage>) -> Vec<(String, String)> {
        short_of(&self.select, "select", &["eigenbasis"], source)
    }

    fn identity(&self) -> Json {
        GradientsParams::identity(self)
    }

    fn validate_inputs(&self, inputs: &Inputs) -> anyhow::Result<()> {
        loss_pass::validate_inputs(&self.loss, inputs)?;
        check_inputs::timestep(inputs, "timestep", self.timestep)?;
        check_inputs::selected(inputs, &self.select)?;
        if let Some(file) = inputs.get("eigenbasis") {
            let layers = factors::layers(inputs, &self.select)?;
            let network = Parameters::of(inputs, &self.select)?;
            let linear = |name: &str| {
                layers.iter().any(|own| name.strip_suffix(".weight") == Some(own.layer.as_str()))
            };
            let other = network.selected().map(|header| header.name.as_str()).find(|name| !linear(name));
            if let Some(name) = other {
                anyhow::bail!(
                    "`select` chooses `{name}`, which is no weight of a linear layer, expected those alone with `projection = \"eigen\"`"
                );
            }
            factors::validate(file, &layers, false)?;
        }
        let network = Parameters::of(inputs, &self.select)?;
        let bytes = self.bytes_of_matrices(&network)?;
        anyhow::ensure!(
            bytes <= LARGEST,
            "`projection_dim` is {}, for which dense random matrices of these weights take {}, expected at most {}: set a smaller one, or \
             `projection = \"kronecker\"`, whose matrices are small",
            self.projection_dim,
            format_bytes(bytes),
            format_bytes(LARGEST)
        );
        Ok(())
    }

    fn check_values(&self, inputs: &Inputs) -> anyhow::Result<()> {
        check_values::finite(inputs, &["latents", "text_embeddings"])
    }

    fn units(&self, inputs: &Inputs) -> anyhow::Result<Units> {
        let (latents, _) = arrays::open(inputs)?;
        Ok(Units::Independent(ranges::units("latents", latents.rows(), 1)))
    }

    fn estimate(&self, inputs: &ExpectedInputs) -> anyhow::Result<Estimate> {
        let (latents, texts) = expected::arrays(inputs)?;
        let rows = latents.shape[0];
        let width = self.width(&Parameters::expected(inputs, &self.select)?)?;
        let units = ranges::units("latents", rows, 1);
        let shape = ArtifactShape::Array { shape: vec![rows, width], bytes: 4 };
        let cost_key = json!({
            "rows": [self.loss.time_samples, self.loss.draws, self.loss.captions],
            "of": self.of,
            "select": self.select,
            "projection": [json!(self.projection), json!(width)],
            "unet": expected::config(inputs, "unet")?,
            "latent": &latents.shape[1..],
            "text": &texts.shape[1..],
            "stored": [latents.bytes, texts.bytes],
        });
        Ok(Estimate {
            parts: units.len() as u64 * 128 + (rows * width) as u64 * 4,
            outputs: [("gradients".to_owned(), shape)].into(),
            work: Some(WorkSize {
                steps: rows as u64,
                tasks: units.len() as u64,
                cost_key,
                ..WorkSize::default()
            }),
        })
    }

    fn accept(&self, inputs: &Inputs, outputs: &Outputs) -> anyhow::Result<&'static str> {
        let width = self.width(&Parameters::of(inputs, &self.select)?)?;
        let shape = [Some(arrays::open(inputs)?.0.rows()), Some(width)];
        check_outputs::array(&outputs["gradients"], Some(Dtype::F32), &shape)?.expect_finite()?;
        Ok("the shape, the element type, and finite numbers")
    }
}

impl GradientsParams {
    /// The numbers that are kept of a gradient.
    fn width(&self, network: &Parameters) -> anyhow::Result<usize> {
        Ok(self.kept(network)?.into_iter().map(|(_, kept)| kept.width()).sum())
    }

    /// How many numbers each selected weight has, and how they are kept.
    fn kept(&self, network: &Parameters) -> anyhow::Result<Vec<(usize, Kept)>> {
        let shapes: Vec<Vec<usize>> = network.selected().map(|header| header.shape.clone()).collect();
        let kept = kept(&shapes, self.projection, self.projection_dim)?;
        Ok(shapes.iter().map(|shape| shape.iter().product()).zip(kept).collect())
    }

    /// The size of the random matrices of dense projections, which stay in memory.
    fn bytes_of_matrices(&self, network: &Parameters) -> anyhow::Result<u64> {
        let of = |(numbers, kept): (usize, Kept)| match kept {
            Kept::Dense(width) => 4 * (width as u64) * numbers as u64,
            Kept::Whole(_) | Kept::Kronecker(..) => 0,
        };
        Ok(self.kept(network)?.into_iter().map(of).sum())
    }
}

impl Compute for GradientsParams {
    fn run(&self, task: &Task, cx: &Context<'_>) -> anyhow::Result<()> {
        let Task { inputs, out, .. } = task;
        let latents: Vec<usize> = ranges::range(task.unit()?, "latents")?.collect();
        let schedule = NoiseSchedule::load(inputs.path("scheduler"))?.with_objective(&self.loss.objective);
        with_gradients(inputs, self.select.adapters(), Precision::Fp32, cx.device, |unet| {
            let set = TrainingSet::open(inputs, unet)?;
            let shape = |weight: &Tensor| weight.size().into_iter().map(|length| length as usize).collect();
            let selected: BTreeMap<String, Vec<usize>> = unet
                .parameters()
                .iter()
                .filter(|(name, _)| self.select.matches(name))
                .map(|(name, weight)| (name.clone(), shape(weight)))
                .collect();
            let (dim, device) = (self.projection_dim, unet.device());
            let projector = match inputs.get("eigenbasis") {
                Some(file) => {
                    let basis = Eigenbasis::new(factors::read(file, false)?, device);
                    Projector::leading(&selected, dim, &basis)?
                }
                None => Projector::drawn(&selected, self.projection, dim, self.seed, device)?,
            };
            let pass = LossPass::new(unet, &schedule, set.data()?, &self.loss, cx.effective_micro_batch())?;
            let mut writer =
                NpyWriter::create(out.join(FILE), Dtype::F32, &[latents.len(), projector.width()])?;
            let mut done = 0;
            for some in latents.chunks(IMAGES) {
                writer.write_f32(&values(&pass.mean_gradients(some, self, &projector)?))?;
                done += some.len();
                cx.progress(done as u64, latents.len() as u64);
            }
            Ok(writer.finish()?)
        })
    }

    fn merge(&self, task: &Task, parts: &[PathBuf], _: &Context<'_>) -> anyhow::Result<()> {
        let parts: Vec<PathBuf> = parts.iter().map(|part| part.join(FILE)).collect();
        Ok(writer::concat(&parts, task.out.join(FILE))?)
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
        let rows = (steps as usize).clamp(1, texts.shape[0]);
        expected::make_arrays(&mut given, [&latents, &texts], rows, folder)?;
        let unit =
            Unit { name: "a trial".into(), range: json!({ "latents": [0, rows] }), steps: rows as u64 };
        let steps = unit.steps;
        let mut stage = self.clone();
        if self.projection == Projection::Eigen && given.get("eigenbasis").is_none() {
            // Random matrices cost the same.
            stage.projection = Projection::Kronecker;
        }
        Ok(Trial { stage: Box::new(stage), inputs: given, units: vec![unit], steps, merges: true })
    }
}
