//! The loss pass, shared by the two stages whose difference is the influence.

pub mod per_image;
pub mod per_timestep;
pub mod precision_check;
pub mod top_k;

use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};

use super::shared::arrays::TrainingSet;
use super::shared::network::with_unet;
use super::shared::{arrays, check_outputs, expected, ranges};
use crate::io::npy::writer;
use crate::method::loss::{LossPass, LossSpec};
use crate::method::noise::NoiseMode;
use crate::method::schedule::NoiseSchedule;
use crate::models::unet::{ModelMode, Precision};
use attrflow_engine::config::param::Validate;
use attrflow_engine::kind::{
    ArtifactShape, Context, Estimate, ExpectedInputs, Inputs, Task, Unit, UnitInputs, WorkSize,
};
use attrflow_engine::{choice, params};

choice! {
    /// Where a training image's noise comes from.
    pub enum Noise {
        /// One draw per batch, as published: `batch_size` and `time_samples` change every number.
        Batch = "batch",
        /// One draw per image and timestep: no batching, subset or choice of timesteps changes a number.
        Image = "image",
    }
}

params! {
    /// How the loss of a training image is measured.
    pub struct LossParams {
        /// Timesteps per image and caption, evenly spaced from 0; must divide the model's 1000.
        time_samples: u32 [1..=1000] = 20,
        /// Captions per image: the first ones.
        captions: u32 [1..=1000] = 5,
        /// Seed of the noise.
        seed: u32 = 0,
        /// `batch`: one draw per batch, as published, so that `batch_size` and `time_samples` change every number;
        /// `image`: one per image and timestep, which nothing else changes.
        noise: Noise = Noise::Batch,
        /// Rows (image x caption x timestep) that one draw covers with `noise = "batch"`; without effect with `image`.
        batch_size: u32 [1..=100_000_000] = 8000,
        /// `fp32`, `tf32` or `bf16`: how the network's products are computed. The shorter ones are faster on GPUs, and their
        /// losses differ in the last digits; a sample of the rows is computed in float32 as well, and a warning tells if
        /// they differ by more than they should.
        precision: Precision = Precision::Fp32,
    }
}

/// The number of training timesteps of every published model; the pass checks it against the scheduler's own.
const TRAIN_TIMESTEPS: u32 = 1000;

impl Validate for LossParams {
    fn validate(&self) -> Vec<(&'static str, String)> {
        let mut faults = Vec::new();
        let rows = self.time_samples * self.captions;
        if !TRAIN_TIMESTEPS.is_multiple_of(self.time_samples) {
            let message = format!(
                "`time_samples` is {}, which does not divide {TRAIN_TIMESTEPS}: the timesteps would not be even",
                self.time_samples
            );
            faults.push(("time_samples", message));
        } else if self.noise == Noise::Batch && !self.batch_size.is_multiple_of(rows) {
            let message = format!(
                "`batch_size` is {}, expected a multiple of {rows}, the {} captions x {} timesteps of an image",
                self.batch_size, self.captions, self.time_samples
            );
            faults.push(("batch_size", message));
        }
        faults
    }
}

impl LossParams {
    /// What counts: with noise per image, the batch size only says how many images are read at once.
    pub fn identity(&self) -> Json {
        let Self { time_samples, captions, seed, noise, batch_size, precision } = self;
        let mut counts =
            json!({ "time_samples": time_samples, "captions": captions, "seed": seed, "noise": noise });
        if *noise == Noise::Batch {
            counts["batch_size"] = json!(batch_size);
        }
        count_precision(*precision, &mut counts);
        counts
    }

    /// What counts for a unit.
    pub(crate) fn unit_identity(&self) -> Json {
        match self.noise {
            Noise::Batch => self.identity(),
            Noise::Image => per_image::unit_identity(self),
        }
    }

    pub(crate) fn spec(&self) -> LossSpec {
        let (time_samples, captions) = (self.time_samples as usize, self.captions as usize);
        // Any number of images may share a draw-free batch; this one keeps a batch's memory small.
        const IMAGES: usize = 16;
        let (noise, batch_size) = match self.noise {
            Noise::Batch => (NoiseMode::Batch, self.batch_size as usize),
            Noise::Image => (NoiseMode::Image, IMAGES * captions * time_samples),
        };
        LossSpec { batch_size, time_samples, captions, seed: self.seed.into(), noise }
    }
}

/// Adds the precision to what counts; the recipes of float32 are those from before there was a choice.
pub(crate) fn count_precision(precision: Precision, counts: &mut Json) {
    if precision != Precision::Fp32 {
        counts["precision"] = json!(precision);
    }
}

/// The file that a unit writes.
pub(crate) const LOSSES: &str = "losses.npy";

/// The latents cut into units: of whole batches where those share their noise, else of blocks at single timesteps.
pub(crate) fn units(params: &LossParams, inputs: &Inputs) -> anyhow::Result<Vec<Unit>> {
    let arrays @ (latents, texts) = &arrays::open(inputs)?;
    let (captions, found) = (params.captions as usize, texts.shape()[1]);
    anyhow::ensure!(
        captions <= found,
        "{}: {found} captions per image, expected at least {captions}, the parameter `captions`",
        texts.path().display()
    );
    match params.noise {
        Noise::Batch => Ok(cut(params, latents.rows())),
        Noise::Image => per_image::units(params, inputs, arrays),
    }
}

/// The rows that units read; a unit of batches counts the whole arrays, which it may read at any place.
pub(crate) fn unit_inputs(
    params: &LossParams,
    inputs: &Inputs,
    units: &[Unit],
) -> anyhow::Result<Vec<UnitInputs>> {
    match params.noise {
        Noise::Batch => Ok(vec![UnitInputs::new(); units.len()]),
        Noise::Image => per_image::unit_inputs(params, inputs, units),
    }
}

/// Which units are computed together.
pub(crate) fn batch_key(params: &LossParams, inputs: &Inputs, unit: &Unit) -> Option<String> {
    match params.noise {
        Noise::Batch => None,
        Noise::Image => per_image::batch_key(params, inputs, unit),
    }
}

/// Batches cut into units.
fn cut(params: &LossParams, latents: usize) -> Vec<Unit> {
    ranges::units("latents", latents, params.spec().images_per_batch())
}

/// The pass over all latents, and its losses on the port `losses`.
pub(crate) fn estimate(params: &LossParams, inputs: &ExpectedInputs) -> anyhow::Result<Estimate> {
    let (latents, texts) = expected::arrays(inputs)?;
    let rows = latents.shape[0];
    let losses = ArtifactShape::Array { shape: vec![rows], bytes: 4 };
    let (steps, tasks) = match params.noise {
        Noise::Batch => (rows, cut(params, rows).len()),
        Noise::Image => (rows * params.time_samples as usize, per_image::tasks(rows)),
    };
    let LossParams { time_samples, captions, seed: _, noise, batch_size, precision } = params;
    let cost_key = json!({
        "loss": [time_samples, captions, batch_size],
        "noise": noise,
        "precision": precision,
        "unet": expected::config(inputs, "unet")?,
        "latent": &latents.shape[1..],
        "text": &texts.shape[1..],
        "stored": [latents.bytes, texts.bytes],
    });
    Ok(Estimate {
        // Each unit's file has a header of its own.
        parts: match params.noise {
            Noise::Batch => tasks as u64 * 128 + rows as u64 * 4,
            Noise::Image => {
                steps as u64 * 4 * u64::from(*captions) + tasks as u64 * u64::from(*time_samples) * 128
            }
        },
        outputs: [("losses".to_owned(), losses)].into(),
        work: Some(WorkSize { steps: steps as u64, tasks: tasks as u64, cost_key }),
    })
}

/// What a trial of the pass is made of: parameters, inputs, and a unit of as many latents as steps are asked for.
///
/// With noise per batch, a batch is the smallest that fills the network's passes twice, until as many steps are asked for as the
/// batch has images.
pub(crate) fn trial(
    params: &LossParams,
    inputs: &ExpectedInputs,
    steps: u64,
    folder: &Path,
    cx: &Context<'_>,
) -> anyhow::Result<(LossParams, Inputs, Unit)> {
    let (latents, texts) = expected::arrays(inputs)?;
    let whole = params.spec().images_per_batch();
    let an_image = (params.captions * params.time_samples) as usize;
    let fewest = (2 * cx.effective_micro_batch()).div_ceil(an_image);
    let batch = match params.noise {
        Noise::Image => 1,
        Noise::Batch => fewest.max(steps as usize).clamp(1, whole),
    };
    let params = match params.noise {
        Noise::Image => params.clone(),
        Noise::Batch => LossParams { batch_size: (batch * an_image) as u32, ..params.clone() },
    };
    // A block without mirror images: where there are any, they would be more of the same.
    let most = if params.noise == Noise::Image { texts.shape[0] } else { latents.shape[0] };
    let rows = (steps as usize).div_ceil(batch).saturating_mul(batch).min(most);
    let mut given = inputs.inputs();
    expected::make_arrays(&mut given, [&latents, &texts], rows, folder)?;
    let range = match params.noise {
        Noise::Image => per_image::trial(rows),
        Noise::Batch => json!({ "latents": [0, rows] }),
    };
    Ok((params, given, Unit { name: "a trial".into(), range, steps: rows as u64 }))
}

/// Refuses a file that cannot be the losses of all latents: float32 [2N], each finite.
pub(crate) fn accept(params: &LossParams, inputs: &Inputs, file: &Path) -> anyhow::Result<()> {
    // What could not be computed from these inputs was not computed from them.
    units(params, inputs)?;
    let (latents, _) = arrays::open(inputs)?;
    check_outputs::finite(file, latents.rows()).map(drop)
}

/// Computes a batch of units; the weights on the port `weights` take the place of the network's own.
pub(crate) fn run(
    params: &LossParams,
    tasks: &[Task],
    weights: Option<&str>,
    cx: &Context<'_>,
) -> anyhow::Result<()> {
    let weights = |task: &Task| weights.map(|port| task.inputs.path(port).to_path_buf());
    if params.noise == Noise::Image {
        return per_image::run(params, tasks, &weights, cx);
    }
    for (index, task) in tasks.iter().enumerate() {
        batches(params, task, weights(task).as_deref(), &cx.of_task(index))?;
        cx.finished(&[index]);
    }
    Ok(())
}

/// Pairs of image and caption whose rows are computed in float32 as well: the first of a unit.
const SAMPLE: Range<usize> = 0..1;

/// Computes one unit of batches: the losses of its latents, float32 [n].
fn batches(params: &LossParams, task: &Task, weights: Option<&Path>, cx: &Context<'_>) -> anyhow::Result<()> {
    let Task { inputs, out, .. } = task;
    let range = ranges::range(task.unit()?, "latents")?;
    let schedule = NoiseSchedule::load(inputs.path("scheduler"))?;
    let spec = params.spec();
    let per_batch = spec.images_per_batch();
    let batches = range.start / per_batch..range.end.div_ceil(per_batch);
    let total = range.len() as u64;
    let (losses, sample) =
        with_unet(inputs, weights, cx.device, ModelMode::Inference(params.precision), |unet| {
            let set = TrainingSet::open(inputs, unet)?;
            let micro_batch = set.effective_micro_batch(unet, &schedule, spec.time_samples, cx.micro_batch);
            let pass = LossPass::new(unet, &schedule, set.data()?, &spec, micro_batch)?;
            let losses = pass.of_batches(batches.clone(), &mut |done| cx.progress(done as u64, total))?;
            let sample =
                (params.precision != Precision::Fp32).then(|| pass.pairs_of_batch(batches.start, SAMPLE));
            Ok((losses, sample.transpose()?))
        })?;
    if let Some(found) = sample {
        let network = (inputs, weights, cx.device);
        precision_check::check(params, network, &schedule, spec.time_samples, &found, |pass| {
            pass.pairs_of_batch(batches.start, SAMPLE)
        })?;
    }
    Ok(writer::write_f32(out.join(LOSSES), &[losses.len()], &losses)?)
}

/// Joins the losses of the units, in order, into the file `out`: float32 [2N].
pub(crate) fn merge(
    params: &LossParams,
    inputs: &Inputs,
    parts: &[PathBuf],
    out: &Path,
) -> anyhow::Result<()> {
    match params.noise {
        Noise::Image => per_image::merge(params, inputs, parts, out),
        Noise::Batch => {
            let parts: Vec<PathBuf> = parts.iter().map(|part| part.join(LOSSES)).collect();
            Ok(writer::concat(&parts, out)?)
        }
    }
}
