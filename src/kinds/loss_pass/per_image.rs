//! The loss pass with noise per image, in units of one block of images at one timestep and with one draw of noise.
//!
//! With this noise, a row's loss depends only on its own image, caption, timestep and draw. So a unit's recipe hashes only
//! the rows that the unit reads: after more timesteps, draws or images, only the new units are computed, and after a change of
//! an image, only those of its block.

use std::iter::once;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use super::{precision_check, slow_precision};
use crate::io::npy::writer::{self, NpyWriter};
use crate::io::npy::{Dtype, Npy};
use crate::kinds::shared::arrays::{self, TrainingSet};
use crate::kinds::shared::micro_batch;
use crate::kinds::shared::network::with_unet;
use crate::method::blocks::Block;
use crate::method::identity::hashed;
use crate::method::loss::{LossParams, LossPass};
use crate::method::noise::Point;
use crate::method::schedule::NoiseSchedule;
use crate::models::unet::{ModelMode, Precision};
use attrflow_engine::kind::{ByteRanges, Context, Inputs, Task, Unit, UnitInputs};

/// Images in a block: enough that a unit's start and its files cost little compared with its forward passes, few enough
/// that a changed image recomputes little. It must not depend on the number of images, or more of them would move the
/// bounds of all blocks; another value changes every unit.
const BLOCK: usize = 128;

/// Images whose rows are also computed in float32: the first of a block.
const SAMPLE: usize = 1;

/// The file that a unit writes: float32 [images, captions].
const ROWS: &str = "rows.npy";

/// The range of a unit.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct UnitRange {
    /// The first image and the one after the last.
    pub images: [usize; 2],
    flipped: bool,
    timestep: i64,
    /// Left out for the first draw, so that its units are those from before there were others.
    #[serde(default, skip_serializing_if = "is_first")]
    draw: usize,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_first(draw: &usize) -> bool {
    *draw == 0
}

impl UnitRange {
    /// Reads it.
    pub fn of(unit: &Unit) -> anyhow::Result<Self> {
        Self::deserialize(&unit.range).context("invalid unit range")
    }

    /// Where its noise is drawn.
    pub fn point(&self) -> Point {
        Point { timestep: self.timestep, draw: self.draw }
    }

    /// The latents of the block, given the number of images.
    pub fn latents(&self, images: usize) -> Range<usize> {
        let first = if self.flipped { images } else { 0 };
        first + self.images[0]..first + self.images[1]
    }
}

/// The hashed parameters of a unit; timesteps and draws other than its own are not among them.
pub(crate) fn unit_identity(params: &LossParams) -> Json {
    let LossParams { time_samples: _, captions, seed, noise, draws: _, batch_size: _, precision, objective } =
        params;
    let counts = json!({
        "captions": captions, "seed": seed, "noise": noise, "precision": precision, "objective": objective,
    });
    hashed(&counts, &[("objective", objective.is_plain())])
}

/// One unit for each point of each block, in the order of the latents.
pub(crate) fn units((latents, texts): &(Npy, Npy), points: &[Point]) -> Vec<Unit> {
    let images = texts.rows();
    let mut units = Vec::new();
    for flipped in [false, true].into_iter().take(latents.rows() / images.max(1)) {
        for start in (0..images).step_by(BLOCK) {
            let end = images.min(start + BLOCK);
            for &Point { timestep, draw } in points {
                let mirror = if flipped { "mirror " } else { "" };
                let which = if draw == 0 { String::new() } else { format!(", draw {draw}") };
                units.push(Unit {
                    name: format!("{mirror}images {start}..{end} at timestep {timestep}{which}"),
                    range: json!(UnitRange { images: [start, end], flipped, timestep, draw }),
                    steps: (end - start) as u64,
                });
            }
        }
    }
    units
}

/// The number of tasks for this many latents, one per block.
pub(crate) fn tasks(latents: usize) -> usize {
    latents.div_ceil(BLOCK)
}

/// The ranges of the units of the first images at these points.
pub(crate) fn trial(images: usize, points: &[Point]) -> Vec<Json> {
    let range =
        |&Point { timestep, draw }: &Point| UnitRange { images: [0, images], flipped: false, timestep, draw };
    points.iter().map(|point| json!(range(point))).collect()
}

/// The rows that each unit reads, by port.
pub(crate) fn unit_inputs(
    params: &LossParams,
    inputs: &Inputs,
    units: &[Unit],
) -> anyhow::Result<Vec<UnitInputs>> {
    let (latents, texts) = arrays::open(inputs)?;
    let (images, captions) = (texts.rows(), params.captions);
    let of = |unit: &Unit| {
        let span = UnitRange::of(unit)?;
        let latent = slice(&latents, &latents.shape()[1..], once(span.latents(images)), latents.row_len());
        // The first captions of each image; if these are all captions, the rows are contiguous.
        let (all, length) = (texts.shape()[1], texts.row_len() / texts.shape()[1].max(1));
        let [start, end] = span.images;
        let row = [&[captions], &texts.shape()[2..]].concat();
        let text = match captions == all {
            true => slice(&texts, &row, once(start * all..end * all), length),
            false => slice(&texts, &row, (start..end).map(|i| i * all..i * all + captions), length),
        };
        let ports = [("latents", latent), ("text_embeddings", text)];
        Ok(ports.into_iter().filter_map(|(port, slice)| Some((port.to_owned(), slice?))).collect())
    };
    units.iter().map(of).collect()
}

/// Pieces of `length` values as byte ranges; `None` for an array in Fortran order, whose rows are not contiguous.
fn slice(
    npy: &Npy,
    row: &[usize],
    pieces: impl Iterator<Item = Range<usize>>,
    length: usize,
) -> Option<ByteRanges> {
    let bytes = pieces.map(|some| npy.place(some.start * length..some.end * length));
    Some(ByteRanges { bytes: bytes.collect::<Option<_>>()?, layout: format!("{} {row:?}", npy.dtype()) })
}

/// The key of a block's units: they share rows and noise, whatever the point and the network's weights.
pub(crate) fn batch_key(params: &LossParams, inputs: &Inputs, unit: &Unit) -> Option<String> {
    let UnitRange { images, flipped, timestep: _, draw: _ } = UnitRange::of(unit).ok()?;
    let ports = ["latents", "text_embeddings", "unet", "checkpoint", "lora", "scheduler"];
    let read: Vec<Option<&Path>> = ports.into_iter().map(|port| inputs.get(port)).collect();
    // Includes all hashed parameters of the units, so that shared values cannot differ.
    Some(json!([images, flipped, unit_identity(params), read]).to_string())
}

/// Computes a batch of units: the block is read and its noise drawn once, and each network computes all its points.
pub(crate) fn run(
    params: &LossParams,
    tasks: &[Task],
    weights: &dyn Fn(&Task) -> Option<PathBuf>,
    cx: &Context<'_>,
) -> anyhow::Result<()> {
    let spans = tasks.iter().map(|task| UnitRange::of(task.unit()?)).collect::<anyhow::Result<Vec<_>>>()?;
    let (first, Task { inputs, .. }) = spans.first().zip(tasks.first()).context("no unit")?;
    let mut points: Vec<Point> = spans.iter().map(UnitRange::point).collect();
    points.sort_unstable();
    points.dedup();
    let mut networks: Vec<(Option<PathBuf>, Vec<usize>)> = Vec::new();
    for (index, weights) in tasks.iter().map(weights).enumerate() {
        match networks.iter_mut().find(|(known, _)| *known == weights) {
            Some((_, units)) => units.push(index),
            None => networks.push((weights, vec![index])),
        }
    }
    let schedule = NoiseSchedule::load(inputs.path("scheduler"))?.with_objective(&params.objective);
    let mut block: Option<Block> = None;
    for (weights, units) in &networks {
        let weights = weights.as_deref();
        let (points, losses) =
            with_unet(inputs, weights, cx.device, ModelMode::Inference(params.precision), |unet| {
                let set = TrainingSet::open(inputs, unet)?;
                let data = set.data()?;
                // Rows of one timestep go through the network together; nearly every row has its own text.
                let micro_batch = micro_batch::effective(unet, &schedule, set.row_shapes(), 1, cx)?;
                let pass = LossPass::new(unet, &schedule, data, params, micro_batch)?;
                let block = match &block {
                    Some(block) => block,
                    None => {
                        let latents: Vec<usize> = first.latents(data.images()).collect();
                        block.insert(pass.block(&latents, &points)?)
                    }
                };
                let points: Vec<Point> = units.iter().map(|&index| spans[index].point()).collect();
                let mut progress = |place: usize, images: usize| {
                    let index = units[place];
                    let steps = (spans[index].images[1] - spans[index].images[0]) as u64;
                    cx.of_task(index).progress(images as u64, steps);
                };
                let losses = pass.losses_at(block, &points, &mut progress)?; // [images, captions, points]
                let shape = [first.images[1] - first.images[0], params.captions];
                for (place, &index) in units.iter().enumerate() {
                    let rows = arrays::values(&losses.select(2, place as i64));
                    writer::write_f32(tasks[index].out.join(ROWS), &shape, &rows)?;
                }
                Ok((points, losses))
            })?;
        // Only for the first block: a second network for each block would cost more than the block.
        let guarded = params.precision != Precision::Fp32 && first.images[0] == 0;
        if let (true, Some(block)) = (guarded, &block) {
            slow_precision::warn(params, (inputs, weights, cx.device), &schedule)?;
            let (network, found) = ((inputs, weights, cx.device), losses.narrow(0, 0, SAMPLE as i64));
            precision_check::check(params, network, &schedule, SAMPLE * params.captions, &found, |pass| {
                pass.losses_at(&block.first(SAMPLE), &points, &mut |_, _| ())
            })?;
        }
        cx.finished(units);
    }
    Ok(())
}

/// Merges the rows of the units into the file `out`, float32 [2N]: a mean over timesteps and draws, then over captions.
///
/// Summed in float64 and rounded once, row by row, so that results do not depend on a block's neighbours.
pub(crate) fn merge(
    params: &LossParams,
    inputs: &Inputs,
    parts: &[PathBuf],
    out: &Path,
) -> anyhow::Result<()> {
    join(params, inputs, parts, out, &[], |_, rows| Ok(vec![mean(rows.into_iter())]))
}

/// Merges the rows of the units into the file `out`, float32 [2N, ..]: for each image the result of `values` on its
/// captions' losses at each point, of the shape `each`. `values` is told the image's place among the latents.
pub(crate) fn join(
    params: &LossParams,
    inputs: &Inputs,
    parts: &[PathBuf],
    out: &Path,
    each: &[usize],
    mut values: impl FnMut(usize, Vec<&[f32]>) -> anyhow::Result<Vec<f32>>,
) -> anyhow::Result<()> {
    let (latents, _) = arrays::open(inputs)?;
    let (captions, mut latent) = (params.captions, 0);
    let shape = [&[latents.rows()], each].concat();
    let mut writer = NpyWriter::create(out, Dtype::F32, &shape)?;
    for block in parts.chunks(params.count_points()) {
        let rows = read(block, captions)?;
        let images = rows.first().map_or(0, Vec::len) / captions;
        for image in 0..images {
            let own = image * captions..(image + 1) * captions;
            let losses = rows.iter().map(|row| &row[own.clone()]).collect();
            writer.write_f32(&values(latent, losses)?)?;
            latent += 1;
        }
    }
    Ok(writer.finish()?)
}

/// The rows of the units of one block, by point: [images, captions] each.
fn read(parts: &[PathBuf], captions: usize) -> anyhow::Result<Vec<Vec<f32>>> {
    let rows = parts.iter().map(|part| {
        let npy = Npy::open(part.join(ROWS))?;
        npy.expect_shape(&[None, Some(captions)])?;
        let mut rows = Vec::new();
        npy.read_f32(0..npy.rows(), &mut rows)?;
        Ok(rows)
    });
    rows.collect()
}

/// An image's loss from its captions' losses at each point: a mean over points, then over captions.
pub(crate) fn mean<'a>(rows: impl Iterator<Item = &'a [f32]>) -> f32 {
    let (mut sums, mut points) = (Vec::new(), 0.0);
    for row in rows {
        sums.resize(row.len(), 0.0);
        sums.iter_mut().zip(row).for_each(|(sum, loss)| *sum += f64::from(*loss));
        points += 1.0;
    }
    (sums.iter().map(|sum| sum / points).sum::<f64>() / sums.len() as f64) as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::loss_pass::per_timestep;
    use crate::method::noise::Noise;

    /// Three images with two captions each, at two timesteps: a mean over timesteps, then over captions.
    #[test]
    fn units_are_merged_in_the_order_of_the_latents() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        writer::write_f32(path("latents"), &[6, 1, 1, 1], &[0.0; 6]).unwrap();
        writer::write_f32(path("texts"), &[3, 2, 1, 1], &[0.0; 6]).unwrap();
        let scheduler = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/demo/model/scheduler");
        let ports =
            [("latents", path("latents")), ("text_embeddings", path("texts")), ("scheduler", scheduler)];
        let inputs = Inputs(ports.map(|(port, path)| (port.to_owned(), path)).into());
        let noise = Noise::PerImage;
        let params = LossParams { time_samples: 2, captions: 2, noise, ..LossParams::default() };
        let units = crate::kinds::loss_pass::units(&params, &inputs).unwrap();
        let names: Vec<&str> = units.iter().map(|unit| unit.name.as_str()).collect();
        let expected = ["images 0..3 at timestep 0", "images 0..3 at timestep 500"];
        assert_eq!(
            names,
            [expected.map(String::from), expected.map(|name| format!("mirror {name}"))].concat()
        );
        let parts = [0.0f32, 8.0, 100.0, 200.0].map(|first| {
            let part = path(&first.to_string());
            fs_err::create_dir(&part).unwrap();
            let rows: Vec<f32> = (0..6).map(|row| first + row as f32).collect();
            writer::write_f32(part.join(ROWS), &[3, 2], &rows).unwrap();
            part
        });
        merge(&params, &inputs, &parts, &path("out")).unwrap();
        assert_eq!(Npy::vector(path("out")).unwrap(), [4.5, 6.5, 8.5, 150.5, 152.5, 154.5]);
        // The same at each timestep.
        per_timestep::merge(&params, &inputs, &parts, &path("timesteps")).unwrap();
        let npy = Npy::open(path("timesteps")).unwrap();
        let mut found = Vec::new();
        npy.read_f32(0..6, &mut found).unwrap();
        assert_eq!(npy.shape(), [6, 2]);
        let [plain, mirrored] =
            [[0.5, 8.5, 2.5, 10.5, 4.5, 12.5], [100.5, 200.5, 102.5, 202.5, 104.5, 204.5]];
        assert_eq!(found, [plain, mirrored].concat());
        // Less what they were before.
        let before: Vec<f32> = (0..12).map(|place| place as f32).collect();
        writer::write_f32(path("before"), &[6, 2], &before).unwrap();
        let before = Npy::open(path("before")).unwrap();
        per_timestep::differences(&params, &inputs, &parts, &before, &path("rises")).unwrap();
        Npy::open(path("rises")).unwrap().read_f32(0..6, &mut found).unwrap();
        assert_eq!(found[..4], [0.5, 7.5, 0.5, 7.5]);
        // The same parts as one timestep with two draws of noise.
        let draws = LossParams { time_samples: 1, draws: 2, ..params.clone() };
        merge(&draws, &inputs, &parts, &path("out")).unwrap();
        assert_eq!(Npy::vector(path("out")).unwrap(), [4.5, 6.5, 8.5, 150.5, 152.5, 154.5]);
        per_timestep::merge(&draws, &inputs, &parts, &path("timesteps")).unwrap();
        assert_eq!(Npy::open(path("timesteps")).unwrap().shape(), [6, 1, 2]);
    }

    #[test]
    fn the_first_draw_is_as_before_there_were_others() {
        let params = LossParams { noise: Noise::PerImage, ..LossParams::default() };
        let more = LossParams { draws: 3, ..params.clone() };
        assert_eq!(params.identity().get("draws"), None);
        assert_eq!(more.identity()["draws"], 3);
        assert_eq!(unit_identity(&more), unit_identity(&params));
        let range = |draw| json!(UnitRange { images: [0, 9], flipped: false, timestep: 250, draw });
        assert_eq!(range(0), json!({ "images": [0, 9], "flipped": false, "timestep": 250 }));
        assert_eq!(range(2)["draw"], 2);
        let places: Vec<_> = more.points(&[0, 250]).iter().map(|p| (p.timestep, p.draw)).collect();
        assert_eq!(places, [(0, 0), (0, 1), (0, 2), (250, 0), (250, 1), (250, 2)]);
    }
}
