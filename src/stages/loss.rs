//! The loss pass, shared by the two stages whose difference is the influence.

use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};

use super::arrays::TrainingSet;
use super::{accept, arrays, forms, spans};
use crate::io::npy_writer;
use crate::math::loss::{LossPass, LossSpec};
use crate::math::noise::NoiseMode;
use crate::math::schedule::NoiseSchedule;
use crate::nn::unet::UNet;
use crate::param::Validate;
use crate::stage::{Context, Foreseen, Form, Inputs, Outlook, Unit, Work};
use crate::{choice, params};

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
        let Self { time_samples, captions, seed, noise, batch_size } = self;
        let mut counts =
            json!({ "time_samples": time_samples, "captions": captions, "seed": seed, "noise": noise });
        if *noise == Noise::Batch {
            counts["batch_size"] = json!(batch_size);
        }
        counts
    }

    fn spec(&self) -> LossSpec {
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

/// The file that a unit writes.
const LOSSES: &str = "losses.npy";

/// The latents cut into units of whole batches.
pub(super) fn units(params: &LossParams, inputs: &Inputs) -> anyhow::Result<Vec<Unit>> {
    let (latents, texts) = arrays::open(inputs)?;
    let (captions, found) = (params.captions as usize, texts.shape()[1]);
    anyhow::ensure!(
        captions <= found,
        "{}: {found} captions per image, expected at least {captions}, the parameter `captions`",
        texts.path().display()
    );
    Ok(cut(params, latents.rows()))
}

fn cut(params: &LossParams, latents: usize) -> Vec<Unit> {
    spans::units("latents", latents, params.spec().images_per_batch())
}

/// The pass over all latents, and its losses on the port `losses`.
pub(super) fn foresee(params: &LossParams, inputs: &Outlook) -> anyhow::Result<Foreseen> {
    let (latents, texts) = forms::arrays(inputs)?;
    let rows = latents.shape[0];
    let losses = Form::Array { shape: vec![rows], bytes: 4 };
    let units = cut(params, rows);
    let LossParams { time_samples, captions, seed: _, noise, batch_size } = params;
    let like = json!({
        "loss": [time_samples, captions, batch_size],
        "noise": noise,
        "unet": forms::config(inputs, "unet")?,
        "latent": &latents.shape[1..],
        "text": &texts.shape[1..],
        "stored": [latents.bytes, texts.bytes],
    });
    Ok(Foreseen {
        // Each unit's file has a header of its own.
        parts: units.len() as u64 * 128 + rows as u64 * 4,
        outputs: [("losses".to_owned(), losses)].into(),
        work: Some(Work { steps: rows as u64, tasks: units.len() as u64, like }),
    })
}

/// What a trial of the pass is made of: parameters, inputs, and a unit of as many latents as steps are asked for.
///
/// With noise per batch, a batch is the smallest that fills the network's passes twice, until as many steps are asked for as the
/// batch has images.
pub(super) fn trial(
    params: &LossParams,
    inputs: &Outlook,
    steps: u64,
    folder: &Path,
    cx: &Context<'_>,
) -> anyhow::Result<(LossParams, Inputs, Unit)> {
    let (latents, texts) = forms::arrays(inputs)?;
    let whole = params.spec().images_per_batch();
    let an_image = (params.captions * params.time_samples) as usize;
    let fewest = (2 * cx.micro_batch).div_ceil(an_image);
    let batch = match params.noise {
        Noise::Image => whole,
        Noise::Batch => fewest.max(steps as usize).clamp(1, whole),
    };
    let params = LossParams { batch_size: (batch * an_image) as u32, ..params.clone() };
    let rows = (steps as usize).div_ceil(batch).saturating_mul(batch).min(latents.shape[0]);
    let mut given = inputs.inputs();
    if !["latents", "text_embeddings"].iter().all(|port| given.get(port).is_some()) {
        forms::make_array(&mut given, "latents", &latents, rows, folder)?;
        forms::make_array(&mut given, "text_embeddings", &texts, rows, folder)?;
    }
    let span = json!({ "latents": [0, rows] });
    Ok((params, given, Unit { name: "a trial".into(), span, steps: rows as u64 }))
}

/// Refuses a file that cannot be the losses of all latents: float32 [2N], each finite.
pub(super) fn accept(params: &LossParams, inputs: &Inputs, file: &Path) -> anyhow::Result<()> {
    // What could not be computed from these inputs was not computed from them.
    units(params, inputs)?;
    let (latents, _) = arrays::open(inputs)?;
    accept::finite(file, latents.rows()).map(drop)
}

/// Computes one unit: the losses of its latents, float32 [n], into the folder `out`.
pub(super) fn run(
    unet: &UNet,
    params: &LossParams,
    inputs: &Inputs,
    unit: Option<&Unit>,
    out: &Path,
    cx: &Context<'_>,
) -> anyhow::Result<()> {
    let set = TrainingSet::open(inputs, unet)?;
    let schedule = NoiseSchedule::load(inputs.path("scheduler"))?;
    let spec = params.spec();
    let range = spans::range(unit, "latents")?;
    let per_batch = spec.images_per_batch();
    let batches = range.start / per_batch..range.end.div_ceil(per_batch);
    let total = range.len() as u64;
    let losses = LossPass::new(unet, &schedule, set.data()?, &spec, cx.micro_batch)?
        .of_batches(batches, &mut |done| (cx.progress)(done as u64, total))?;
    npy_writer::write_f32(out.join(LOSSES), &[losses.len()], &losses)?;
    Ok(())
}

/// Joins the losses of the units, in order, into the file `out`: float32 [2N].
pub(super) fn merge(parts: &[PathBuf], out: &Path) -> anyhow::Result<()> {
    let parts: Vec<PathBuf> = parts.iter().map(|part| part.join(LOSSES)).collect();
    Ok(npy_writer::concat(&parts, out)?)
}
