//! The loss pass, shared by the two stages whose losses are compared for the influence.

pub mod per_image;
pub mod per_timestep;
pub mod precision_check;
mod slow_precision;
pub mod top_k;

use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};

use super::shared::arrays::TrainingSet;
use super::shared::network::with_unet;
use super::shared::{arrays, check_inputs, check_outputs, expected, micro_batch, ranges};
use crate::io::npy::{Npy, writer};
use crate::method::loss::{LossParams, LossPass};
use crate::method::noise::Noise;
use crate::method::schedule::{NoiseSchedule, ScheduleConfig};
use crate::models::unet::{ModelMode, Precision};
use attrflow_engine::kind::{
    ArtifactShape, Context, Estimate, ExpectedInputs, Inputs, Task, Unit, UnitInputs, WorkSize,
};

/// The hashed parameters of a unit.
pub(crate) fn unit_identity(params: &LossParams) -> Json {
    match params.noise {
        Noise::PerBatch => params.identity(),
        Noise::PerImage | Noise::PerImagePhilox => per_image::unit_identity(params),
    }
}

/// The file that a unit writes.
pub(crate) const LOSSES: &str = "losses.npy";

/// Refuses networks and arrays that do not fit the parameters and each other.
pub(crate) fn validate_inputs(params: &LossParams, inputs: &Inputs) -> anyhow::Result<()> {
    check_inputs::networks(inputs)?;
    let arrays = check_inputs::arrays(inputs)?;
    expect_captions(params, &arrays.1)?;
    params.timesteps(&ScheduleConfig::load(inputs.path("scheduler"))?)?;
    Ok(())
}

fn expect_captions(params: &LossParams, texts: &Npy) -> anyhow::Result<()> {
    let (captions, found) = (params.captions, texts.shape()[1]);
    anyhow::ensure!(
        captions <= found,
        "{}: {found} captions per image, expected at least {captions}, the parameter `captions` of the loss",
        texts.path().display()
    );
    Ok(())
}

/// Splits the latents into units: whole batches if these share their noise, else blocks at single timesteps.
pub(crate) fn units(params: &LossParams, inputs: &Inputs) -> anyhow::Result<Vec<Unit>> {
    let arrays @ (latents, texts) = &arrays::open(inputs)?;
    expect_captions(params, texts)?;
    let timesteps = params.timesteps(&ScheduleConfig::load(inputs.path("scheduler"))?)?;
    match params.noise {
        Noise::PerBatch => Ok(split(params, latents.rows())),
        Noise::PerImage | Noise::PerImagePhilox => Ok(per_image::units(arrays, &params.points(&timesteps))),
    }
}

/// The rows that units read; a unit of batches hashes the whole arrays, which it may read anywhere.
pub(crate) fn unit_inputs(
    params: &LossParams,
    inputs: &Inputs,
    units: &[Unit],
) -> anyhow::Result<Vec<UnitInputs>> {
    match params.noise {
        Noise::PerBatch => Ok(vec![UnitInputs::new(); units.len()]),
        Noise::PerImage | Noise::PerImagePhilox => per_image::unit_inputs(params, inputs, units),
    }
}

/// The key of units that are computed together.
pub(crate) fn batch_key(params: &LossParams, inputs: &Inputs, unit: &Unit) -> Option<String> {
    match params.noise {
        Noise::PerBatch => None,
        Noise::PerImage | Noise::PerImagePhilox => per_image::batch_key(params, inputs, unit),
    }
}

/// Splits the batches into units.
fn split(params: &LossParams, latents: usize) -> Vec<Unit> {
    ranges::units("latents", latents, params.images_per_batch())
}

/// The estimate of the pass over all latents; its losses are on the port `losses`.
pub(crate) fn estimate(params: &LossParams, inputs: &ExpectedInputs) -> anyhow::Result<Estimate> {
    let (latents, texts) = expected::arrays(inputs)?;
    let rows = latents.shape[0];
    let losses = ArtifactShape::Array { shape: vec![rows], bytes: 4 };
    let (steps, tasks) = match params.noise {
        Noise::PerBatch => (rows, split(params, rows).len()),
        Noise::PerImage | Noise::PerImagePhilox => (rows * params.count_points(), per_image::tasks(rows)),
    };
    // A step costs the same, however many draws there are.
    let LossParams { time_samples, captions, seed: _, noise, draws: _, batch_size, precision, objective: _ } =
        params;
    let cost_key = json!({
        "loss": [time_samples, captions, batch_size],
        "noise": noise,
        // Since trials compute all points of a block at once.
        "trial": 2,
        "precision": precision,
        "unet": expected::config(inputs, "unet")?,
        "latent": &latents.shape[1..],
        "text": &texts.shape[1..],
        "stored": [latents.bytes, texts.bytes],
    });
    Ok(Estimate {
        // Each unit's file has its own header.
        parts: match params.noise {
            Noise::PerBatch => tasks * 128 + rows * 4,
            Noise::PerImage | Noise::PerImagePhilox => {
                steps * 4 * captions + tasks * params.count_points() * 128
            }
        } as u64,
        outputs: [("losses".to_owned(), losses)].into(),
        work: Some(WorkSize { steps: steps as u64, tasks: tasks as u64, cost_key, ..WorkSize::default() }),
    })
}

/// The parts of a trial of the pass: parameters, inputs, and units of as many steps as requested.
///
/// With noise per image, they are those of one block at all its points, as a run computes them: it reads the block once. With
/// noise per batch, a batch is the smallest that fills two passes through the network, unless more steps are requested than the
/// batch has images.
pub(crate) fn trial(
    params: &LossParams,
    inputs: &ExpectedInputs,
    steps: u64,
    folder: &Path,
    cx: &Context<'_>,
) -> anyhow::Result<(LossParams, Inputs, Vec<Unit>)> {
    let (latents, texts) = expected::arrays(inputs)?;
    let whole = params.images_per_batch();
    let an_image = params.rows_per_image();
    let fewest = (2 * cx.effective_micro_batch()).div_ceil(an_image);
    let batch = match params.noise {
        Noise::PerImage | Noise::PerImagePhilox => 1,
        Noise::PerBatch => fewest.max(steps as usize).clamp(1, whole),
    };
    let params = match params.noise {
        Noise::PerImage | Noise::PerImagePhilox => params.clone(),
        Noise::PerBatch => LossParams { batch_size: Some(batch * an_image), ..params.clone() },
    };
    // A block without mirror images: they would cost the same.
    let most = if params.noise.by_image() { texts.shape[0] } else { latents.shape[0] };
    let wanted = match params.noise {
        Noise::PerImage | Noise::PerImagePhilox => (steps as usize).div_ceil(params.count_points()),
        Noise::PerBatch => steps as usize,
    };
    let rows = wanted.div_ceil(batch).saturating_mul(batch).min(most);
    let mut given = inputs.inputs();
    expected::make_arrays(&mut given, [&latents, &texts], rows, folder)?;
    let ranges = match params.noise {
        Noise::PerImage | Noise::PerImagePhilox => {
            let timesteps = params.timesteps(&ScheduleConfig::load(given.path("scheduler"))?)?;
            per_image::trial(rows, &params.points(&timesteps))
        }
        Noise::PerBatch => vec![json!({ "latents": [0, rows] })],
    };
    let unit = |range| Unit { name: "a trial".into(), range, steps: rows as u64 };
    Ok((params, given, ranges.into_iter().map(unit).collect()))
}

/// Refuses a file that cannot be the losses of all latents: float32 [2N], each finite.
pub(crate) fn accept(params: &LossParams, inputs: &Inputs, file: &Path) -> anyhow::Result<()> {
    // If these inputs are invalid, the file was not computed from them.
    units(params, inputs)?;
    let (latents, _) = arrays::open(inputs)?;
    let losses = check_outputs::finite(file, latents.rows())?;
    match losses.iter().position(|loss| *loss < 0.0) {
        None => Ok(()),
        Some(row) => anyhow::bail!("{}: loss {row} is {}, expected 0 or more", file.display(), losses[row]),
    }
}

/// Computes a batch of units; the weights on the port `weights` replace the network's own.
pub(crate) fn run(
    params: &LossParams,
    tasks: &[Task],
    weights: Option<&str>,
    cx: &Context<'_>,
) -> anyhow::Result<()> {
    let weights = |task: &Task| weights.map(|port| task.inputs.path(port).to_path_buf());
    if params.noise.by_image() {
        return per_image::run(params, tasks, &weights, cx);
    }
    for (index, task) in tasks.iter().enumerate() {
        batches(params, task, weights(task).as_deref(), &cx.of_task(index))?;
        cx.finished(&[index]);
    }
    Ok(())
}

/// Pairs of image and caption whose rows are also computed in float32: the first of a unit.
const SAMPLE: Range<usize> = 0..1;

/// Computes one unit of batches: the losses of its latents, float32 [n].
fn batches(params: &LossParams, task: &Task, weights: Option<&Path>, cx: &Context<'_>) -> anyhow::Result<()> {
    let Task { inputs, out, .. } = task;
    let range = ranges::range(task.unit()?, "latents")?;
    let schedule = NoiseSchedule::load(inputs.path("scheduler"))?.with_objective(&params.objective);
    let per_batch = params.images_per_batch();
    let batches = range.start / per_batch..range.end.div_ceil(per_batch);
    let total = range.len() as u64;
    let (losses, sample) =
        with_unet(inputs, weights, cx.device, ModelMode::Inference(params.precision), |unet| {
            let set = TrainingSet::open(inputs, unet)?;
            let micro_batch =
                micro_batch::effective(unet, &schedule, set.row_shapes(), params.time_samples, cx)?;
            let pass = LossPass::new(unet, &schedule, set.data()?, params, micro_batch)?;
            let losses = pass.of_batches(batches.clone(), &mut |done| cx.progress(done as u64, total))?;
            let sample =
                (params.precision != Precision::Fp32).then(|| pass.pairs_of_batch(batches.start, SAMPLE));
            Ok((losses, sample.transpose()?))
        })?;
    if let Some(found) = sample {
        let network = (inputs, weights, cx.device);
        if range.start == 0 {
            slow_precision::warn(params, network, &schedule)?;
        }
        precision_check::check(params, network, &schedule, params.time_samples, &found, |pass| {
            pass.pairs_of_batch(batches.start, SAMPLE)
        })?;
    }
    Ok(writer::write_f32(out.join(LOSSES), &[losses.len()], &losses)?)
}

/// Merges the losses of the units, in order, into the file `out`: float32 [2N].
pub(crate) fn merge(
    params: &LossParams,
    inputs: &Inputs,
    parts: &[PathBuf],
    out: &Path,
) -> anyhow::Result<()> {
    match params.noise {
        Noise::PerImage | Noise::PerImagePhilox => per_image::merge(params, inputs, parts, out),
        Noise::PerBatch => {
            let parts: Vec<PathBuf> = parts.iter().map(|part| part.join(LOSSES)).collect();
            Ok(writer::concat(&parts, out)?)
        }
    }
}
