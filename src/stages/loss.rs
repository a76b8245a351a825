//! The loss pass, shared by the two stages whose difference is the influence.

use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};

use super::arrays::TrainingSet;
use super::network::with_unet;
use super::{accept, arrays, blocks, spans};
use crate::io::npy_writer;
use crate::math::loss::{LossPass, LossSpec};
use crate::math::noise::NoiseMode;
use crate::math::schedule::NoiseSchedule;
use crate::nn::unet::Precision;
use crate::param::Validate;
use crate::stage::{Context, Inputs, Reads, Together, Unit};
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

choice! {
    /// How the network's products are computed in a loss pass.
    pub enum Products {
        /// In float32.
        Fp32 = "fp32",
        /// In float32 with factors rounded to 10 bits of mantissa, on GPUs that have it.
        Tf32 = "tf32",
        /// Of bfloat16 factors, with bfloat16 between them; sums, normalisations and losses in float32.
        Bf16 = "bf16",
    }
}

impl Products {
    pub(super) fn precision(self) -> Precision {
        match self {
            Products::Fp32 => Precision::Fp32,
            Products::Tf32 => Precision::Tf32,
            Products::Bf16 => Precision::Bf16,
        }
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
        precision: Products = Products::Fp32,
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
        // The recipes of float32 are those from before there was a choice.
        if *precision != Products::Fp32 {
            counts["precision"] = json!(precision);
        }
        counts
    }

    /// What counts for a unit.
    pub(super) fn unit_identity(&self) -> Json {
        match self.noise {
            Noise::Batch => self.identity(),
            Noise::Image => blocks::unit_identity(self),
        }
    }

    pub(super) fn spec(&self) -> LossSpec {
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

/// The latents cut into units: of whole batches where those share their noise, else of blocks at single timesteps.
pub(super) fn units(params: &LossParams, inputs: &Inputs) -> anyhow::Result<Vec<Unit>> {
    let arrays @ (latents, texts) = &arrays::open(inputs)?;
    let (captions, found) = (params.captions as usize, texts.shape()[1]);
    anyhow::ensure!(
        captions <= found,
        "{}: {found} captions per image, expected at least {captions}, the parameter `captions`",
        texts.path().display()
    );
    match params.noise {
        Noise::Batch => Ok(spans::units("latents", latents.rows(), params.spec().images_per_batch())),
        Noise::Image => blocks::units(params, inputs, arrays),
    }
}

/// The rows that units read; a unit of batches counts the whole arrays, which it may read at any place.
pub(super) fn reads(params: &LossParams, inputs: &Inputs, units: &[Unit]) -> anyhow::Result<Vec<Reads>> {
    match params.noise {
        Noise::Batch => Ok(vec![Reads::new(); units.len()]),
        Noise::Image => blocks::reads(params, inputs, units),
    }
}

/// Which units are computed together.
pub(super) fn company(params: &LossParams, inputs: &Inputs, unit: &Unit) -> Option<String> {
    match params.noise {
        Noise::Batch => None,
        Noise::Image => blocks::company(params, inputs, unit),
    }
}

/// Refuses a file that cannot be the losses of all latents: float32 [2N], each finite.
pub(super) fn accept(params: &LossParams, inputs: &Inputs, file: &Path) -> anyhow::Result<()> {
    // What could not be computed from these inputs was not computed from them.
    units(params, inputs)?;
    let (latents, _) = arrays::open(inputs)?;
    accept::finite(file, latents.rows()).map(drop)
}

/// A unit of a loss pass that is to be computed.
pub(super) struct Piece<'a> {
    /// How a loss is measured.
    pub params: &'a LossParams,
    /// The stage's inputs.
    pub inputs: &'a Inputs,
    /// The unit.
    pub unit: &'a Unit,
    /// Where it goes.
    pub out: &'a Path,
    /// Weights in place of the network's own.
    pub weights: Option<&'a Path>,
}

/// Computes units of one company.
pub(super) fn run(pieces: &[Piece<'_>], cx: &Together<'_>) -> anyhow::Result<()> {
    if pieces.iter().all(|piece| piece.params.noise == Noise::Image) {
        return blocks::run(pieces, cx);
    }
    for (index, piece) in pieces.iter().enumerate() {
        cx.alone(index, |cx| batches(piece, cx))?;
        (cx.finished)(&[index]);
    }
    Ok(())
}

/// Computes one unit of batches: the losses of its latents, float32 [n].
fn batches(piece: &Piece<'_>, cx: &Context<'_>) -> anyhow::Result<()> {
    let Piece { params, inputs, unit, out, weights } = *piece;
    let range = spans::range(Some(unit), "latents")?;
    let schedule = NoiseSchedule::load(inputs.path("scheduler"))?;
    let spec = params.spec();
    let per_batch = spec.images_per_batch();
    let batches = range.start / per_batch..range.end.div_ceil(per_batch);
    let total = range.len() as u64;
    let losses = with_unet(inputs, weights, cx.device, params.precision.precision(), |unet| {
        let set = TrainingSet::open(inputs, unet)?;
        let pass = LossPass::new(unet, &schedule, set.data()?, &spec, cx.micro_batch)?;
        Ok(pass.of_batches(batches, &mut |done| (cx.progress)(done as u64, total))?)
    })?;
    Ok(npy_writer::write_f32(out.join(LOSSES), &[losses.len()], &losses)?)
}

/// Joins the losses of the units, in order, into the file `out`: float32 [2N].
pub(super) fn merge(
    params: &LossParams,
    inputs: &Inputs,
    parts: &[PathBuf],
    out: &Path,
) -> anyhow::Result<()> {
    match params.noise {
        Noise::Image => blocks::merge(params, inputs, parts, out),
        Noise::Batch => {
            let parts: Vec<PathBuf> = parts.iter().map(|part| part.join(LOSSES)).collect();
            Ok(npy_writer::concat(&parts, out)?)
        }
    }
}
