//! Gradient ascent on the loss of a generated image, scaled by the Fisher information.

use std::path::Path;

use anyhow::{Context as _, ensure};

use super::fisher::IMAGES;
use super::shared::arrays::NpyRows;
use super::shared::check_outputs::Outputs;
use super::shared::network::{CHECKPOINT, LORA, SCHEDULER, UNET, load_unet};
use super::shared::parameters::{Parameters, short_of};
use super::shared::trained_with::TrainedWith;
use super::shared::{arrays, check_inputs, check_outputs, device, expected, factors, tensors};
use crate::io::TensorFile;
use crate::io::lora::{Lora, Network};
use crate::io::npy::Npy;
use crate::io::torch::Dtype;
use crate::method::curvature::{Curvature, CurvatureKind};
use crate::method::data::{Rows, to_device};
use crate::method::ekfac::Ekfac;
use crate::method::error::MathError;
use crate::method::schedule::{NoiseSchedule, ScheduleConfig};
pub use crate::method::unlearn::UnlearnParams;
use crate::method::unlearn::{RISE_ROWS, Unlearning};
use crate::models::unet::ModelMode;
use crate::models::weights::checkpoint;
use attrflow_engine::kind::{
    Compute, Context, Estimate, ExpectedInputs, Input, Inputs, Kind, KindInfo, Output, Stage, Task, Trial,
    WorkSize,
};
use serde_json::{Value as Json, json};

/// Metadata keys of the weights: how much the query's loss rose, and how much to first order.
pub(super) const RISE: &str = "query_rise";
pub(super) const PREDICTED_RISE: &str = "query_rise_predicted";
/// Metadata key of the weights: N / 2 times the quadratic form of the step and the Fisher information, without damping.
const QUADRATIC_FORM: &str = "quadratic_form";
/// Metadata key of the weights: the learning rate that `rise` led to.
pub(super) const LR: &str = "lr";
/// Metadata key of the weights: height and width of the query's latent.
pub(super) const SIZE: &str = "query_latent_size";

/// Height and width of latents [.., H, W] as in the metadata.
pub(super) fn size(latents: &Npy) -> String {
    let shape = latents.shape();
    format!("{} x {}", shape[shape.len() - 2], shape[shape.len() - 1])
}

impl Kind for UnlearnParams {
    const INFO: KindInfo = KindInfo {
        inputs: &[
            UNET,
            CHECKPOINT,
            LORA,
            SCHEDULER,
            Input::new("fisher", "float64 by weight name (safetensors or torch): for `curvature = \"diagonal\"`, and to scale others' factors")
                .optional(),
            Input::new(
                "ekfac",
                "Kronecker factors, for `curvature = \"ekfac\"`: a file of `ekfac`, or a folder of kronfluence's, whose eigenvalues are \
                 scaled to the trace of `fisher`",
            )
            .optional(),
            Input::new("latents", "float [Q, C, H, W]: the query is the row `index`"),
            Input::new("text_embeddings", "float [Q, captions, L, D]: the query's text is its first caption"),
        ],
        outputs: &[Output::new(
            "weights",
            "unlearned.safetensors",
            "float32 by weight name, only the changed weights; the number of images N in its metadata",
        )],
        ..KindInfo::new::<Self>("unlearn", 3, "the weights after unlearning one image")
    };
}

impl Stage for UnlearnParams {
    fn check(&self, connected: &dyn Fn(&str) -> bool) -> Vec<(String, String)> {
        let mut faults = self.select.check("select", connected("lora"));
        // The kind that makes it has the name of the input.
        let needed = self.curvature.port();
        if !connected(needed) {
            let message = format!(
                "the input `{needed}` is not connected, which the `curvature` {} needs: connect the output of a stage of the kind `{needed}`",
                json!(self.curvature)
            );
            faults.push(("curvature".to_owned(), message));
        }
        if self.curvature == CurvatureKind::Diagonal && connected("ekfac") {
            let message = "the input `ekfac` is connected, which `curvature = \"diagonal\"` does not use: set `curvature = \"ekfac\"`, or \
                           remove the input";
            faults.push(("curvature".to_owned(), message.to_owned()));
        }
        faults
    }

    fn check_sources<'s>(&self, source: &dyn Fn(&str) -> Option<&'s dyn Stage>) -> Vec<(String, String)> {
        short_of(&self.select, "select", &["fisher", "ekfac"], source)
    }

    fn identity(&self) -> Json {
        UnlearnParams::identity(self)
    }

    fn validate_inputs(&self, inputs: &Inputs) -> anyhow::Result<()> {
        check_inputs::networks(inputs)?;
        let (_, texts) = check_inputs::arrays(inputs)?;
        let (index, rows) = (self.index, texts.rows());
        anyhow::ensure!(
            index < rows,
            "`index` is {index}, expected less than {rows}, the rows of {}",
            texts.path().display()
        );
        let timesteps = ScheduleConfig::load(inputs.path("scheduler"))?.num_train_timesteps;
        anyhow::ensure!(
            self.batch_size as i64 <= timesteps,
            "`batch_size` is {}, expected at most {timesteps}: a batch has distinct timesteps of the model",
            self.batch_size
        );
        if inputs.get("fisher").is_some() {
            check_inputs::covers(inputs, "fisher", &self.select)?;
        }
        if let Some(file) = inputs.get("ekfac") {
            ensure!(
                !factors::is_published(file) || inputs.get("fisher").is_some(),
                "{}: the unit of others' factors is unknown: connect `fisher`, to whose trace they are scaled",
                file.display()
            );
            factors::validate_all(file, inputs, &self.select)?;
        }
        images(self, inputs).map(drop)
    }

    fn estimate(&self, inputs: &ExpectedInputs) -> anyhow::Result<Estimate> {
        let (latents, texts) = expected::arrays(inputs)?;
        let Self { steps, grad_accum_steps, batch_size, select, .. } = self;
        let mut cost_key = json!({
            "batch_size": batch_size,
            "select": select,
            "unet": expected::config(inputs, "unet")?,
            "latent": &latents.shape[1..],
            "text": &texts.shape[2..],
        });
        expected::at_precision(&mut cost_key, self.precision);
        let steps = (steps * grad_accum_steps) as u64;
        // The query's loss before and after: passes without a gradient, which takes two thirds.
        let extra = (2 * RISE_ROWS as u64).div_ceil(3 * (*batch_size as u64).max(1));
        Ok(Estimate {
            outputs: [("weights".to_owned(), expected::selected(inputs, select, 4)?)].into(),
            parts: 0,
            work: Some(WorkSize { steps, extra, tasks: 1, cost_key }),
        })
    }

    fn accept(&self, inputs: &Inputs, outputs: &Outputs) -> anyhow::Result<&'static str> {
        check_outputs::weights(&outputs["weights"], inputs, &self.select, &[Dtype::F32])?;
        Ok("names, shapes, element types and finite values")
    }
}

impl Compute for UnlearnParams {
    fn run(&self, task: &Task, cx: &Context<'_>) -> anyhow::Result<()> {
        let Task { inputs, out, .. } = task;
        let (latents, texts) = arrays::open(inputs)?;
        let (index, query_size) = (self.index, size(&latents));
        let mode = ModelMode::Gradients(self.precision);
        let _guard = device::apply_mode(mode);
        let mut unet = load_unet(inputs, self.select.adapters(), cx.device, mode)?;
        arrays::expect_fit(&latents, &texts, unet.config())?;
        let first_caption = index * texts.shape()[1];
        let device = device::torch(cx.device);
        let read = |rows: NpyRows, row| match rows.read(&[row]) {
            Ok(values) => Ok(to_device(&values, device)),
            Err(error) => Err(anyhow::anyhow!(error)),
        };
        let latent = read(NpyRows::new(latents, 1), index)?.squeeze_dim(0); // [C, H, W]
        let conditioning = unet.conditioning(read(NpyRows::new(texts, 2), first_caption)?);

        warn_of_objective(self, inputs)?;
        let schedule = NoiseSchedule::load(inputs.path("scheduler"))?.with_objective(&self.objective);
        let curvature = read_curvature(self, inputs, device)?;
        let total = (self.steps * self.grad_accum_steps) as u64;
        let images = images(self, inputs)?;
        let mut unlearning =
            Unlearning::new(&mut unet, &schedule, &latent, &conditioning, self, cx.effective_micro_batch())?;
        let file = |error| with_file(error, inputs.path(self.curvature.port()));
        let before = unlearning.loss_before().map_err(file)?;
        let changed =
            unlearning.run(&curvature, images, &mut |done| cx.progress(done as u64, total)).map_err(file)?;
        let rise = unlearning.query_loss().map_err(file)? - before;
        let (predicted, lr) = (unlearning.predicted_rise(), unlearning.lr());
        let form = unlearning.quadratic_form();
        tracing::info!(
            "the query's loss was {before:.3e}; with a learning rate of {lr:.3e}, a rise of {:.0} % was predicted and one of {:.0} % \
             found; the step's quadratic form is {form:.3e}",
            100.0 * predicted / before,
            100.0 * rise / before
        );
        let (key, given) = match self.rise {
            Some(share) => ("rise", format!("`rise` is {share}, which made `lr` {lr:.3e}")),
            None => ("lr", format!("`lr` is {lr:e}")),
        };
        anyhow::ensure!(
            rise > 0.0,
            "the step changed the loss of the query by {rise:.3e}, where a rise of {predicted:.3e} was predicted ({given}): {}",
            match rise == 0.0 {
                true => format!("it was too small; set a larger `{key}`, or less damping"),
                false => format!(
                    "it was too large; set a smaller `{key}`, or more `epochs` of the Fisher information"
                ),
            }
        );
        let mut metadata = vec![
            (IMAGES, images.to_string()),
            (SIZE, query_size),
            (PREDICTED_RISE, format!("{predicted:e}")),
            (RISE, format!("{rise:e}")),
            (QUADRATIC_FORM, format!("{form:e}")),
        ];
        // Without a `rise` it is a parameter.
        if self.rise.is_some() {
            metadata.push((LR, format!("{lr:e}")));
        }
        tensors::write(&out.join("unlearned.safetensors"), &changed, &metadata)
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
        let steps = steps.min(1_000_000);
        let mut stage = UnlearnParams { steps: 1, grad_accum_steps: steps as usize, ..self.clone() };
        if expected::make_arrays(&mut given, [&latents, &texts], 1, folder)? {
            stage.index = 0;
        }
        let missing = given.get(self.curvature.port()).is_none();
        let unscaled = given.get("ekfac").is_some_and(factors::is_published) && given.get("fisher").is_none();
        if missing || unscaled {
            // Solving with factors takes little beside the gradient.
            stage.curvature = CurvatureKind::Diagonal;
            stage.images = None;
            // A step that is large enough to be more than rounding, whatever the scale of the true information is.
            (stage.lr, stage.rise) = (Some(10.0), None);
            let images = Some((IMAGES, "100".to_owned()));
            given.0.remove("ekfac");
            expected::make_weights(&mut given, "fisher", &self.select, images, folder)?;
        }
        Ok(Trial { stage: Box::new(stage), inputs: given, units: Vec::new(), steps, merges: false })
    }
}

/// The estimate of the Fisher information, scaled where its unit is another's.
fn read_curvature(params: &UnlearnParams, inputs: &Inputs, device: tch::Device) -> anyhow::Result<Curvature> {
    let fisher = inputs.get("fisher").map(tensors::read).transpose()?;
    if params.curvature == CurvatureKind::Diagonal {
        return Ok(Curvature::Diagonal(fisher.context("no Fisher information")?));
    }
    let path = inputs.path("ekfac");
    let mut ekfac = Ekfac::new(factors::read(path, true)?, device);
    if let Some(fisher) = fisher {
        let names = Parameters::of(inputs, &params.select)?;
        let names = names.selected().map(|header| header.name.as_str());
        let published = factors::is_published(path);
        let ratios = match ekfac.traces(names, &fisher) {
            Ok(ratios) => ratios,
            // Of own factors, the ratio is for the log alone.
            Err(_) if !published => return Ok(Curvature::Ekfac(ekfac)),
            Err(error) => return Err(anyhow::Error::new(error).context(path.display().to_string())),
        };
        tracing::info!(
            "the trace of the Fisher information is {:.4e} times the sum of the factors' eigenvalues, by layer {:.4e} to {:.4e} \
             times{}",
            ratios.all,
            ratios.smallest,
            ratios.largest,
            if published { ": the eigenvalues are multiplied by it" } else { "" }
        );
        if published {
            ekfac.scale(ratios.all);
        }
    }
    Ok(Curvature::Ekfac(ekfac))
}

/// Says where the LoRA was trained with another loss.
fn warn_of_objective(params: &UnlearnParams, inputs: &Inputs) -> anyhow::Result<()> {
    let Some(path) = inputs.get("lora") else { return Ok(()) };
    let network = checkpoint::of(inputs.path("unet"), inputs.get("checkpoint"))?;
    let lora = Lora::open(path, Network::Unet, TensorFile::open(network)?.headers())?;
    let differences = TrainedWith::of(&lora).differences(&params.objective);
    differences.iter().for_each(|line| tracing::warn!("{line}"));
    Ok(())
}

/// Names the query, or the file of the Fisher information if that does not match.
fn with_file(error: MathError, fisher: &Path) -> anyhow::Error {
    use MathError::{
        BiasAlone, FisherShape, FisherValue, LossNotFinite, NoFisher, NotOrthogonal, ZeroFisher,
    };
    match error {
        LossNotFinite { timestep, value, .. } => {
            anyhow::anyhow!("the loss of the query at timestep {timestep} is {value}")
        }
        BiasAlone { .. }
        | NotOrthogonal { .. }
        | NoFisher { .. }
        | FisherShape { .. }
        | FisherValue { .. }
        | ZeroFisher { .. } => anyhow::Error::new(error).context(fisher.display().to_string()),
        error => error.into(),
    }
}

/// The number of training images: of the file's metadata, or as given.
fn images(params: &UnlearnParams, inputs: &Inputs) -> anyhow::Result<usize> {
    // Others' factors do not say it; the Fisher information that they are scaled to may.
    let port = params.curvature.port();
    let path = if factors::is_published(inputs.path(port)) { inputs.get("fisher") } else { inputs.get(port) };
    let path = path.unwrap_or(inputs.path(port));
    let counted: Option<usize> =
        if factors::is_published(path) { None } else { tensors::number(path, IMAGES)? };
    anyhow::ensure!(
        counted != Some(0),
        "{}: `{IMAGES}` in the metadata is 0, expected 1 or more",
        path.display()
    );
    match (counted, params.images) {
        (Some(counted), Some(images)) if counted != images => anyhow::bail!(
            "`images` is {images}, expected {counted} or no key: {} was computed from that many",
            path.display()
        ),
        (counted, images) => counted.or(images).with_context(|| {
            format!("{}: no number of images in its metadata: set `images`", path.display())
        }),
    }
}
