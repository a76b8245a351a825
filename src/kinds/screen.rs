//! The influence of every training image on many queries to first order in their steps, from one pass over the training set.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use serde_json::{Value as Json, json};

use super::loss_pass::per_image::{self, UnitRange};
use super::loss_pass::{self, per_timestep};
use super::shared::arrays::{self, LATENTS, TEXT_EMBEDDINGS, TrainingSet};
use super::shared::check_outputs::Outputs;
use super::shared::network::{CHECKPOINT, LORA, SCHEDULER, UNET, with_gradients, with_large};
use super::shared::parameters::Parameters;
use super::shared::{check_outputs, check_values, expected};
use super::step_check::{self, Accepted};
use crate::io::TensorFile;
use crate::io::npy::writer::{self, NpyWriter};
use crate::io::npy::{Dtype, Npy};
use crate::method::error::{DataError, MathError};
use crate::method::influence::{Flips, per_image as per_image_scores, rank};
use crate::method::loss::{LossParams, LossPass};
use crate::method::noise::Point;
use crate::method::schedule::NoiseSchedule;
use crate::method::screen::{Steps, Unlearned};
use crate::method::selection::Selection;
use crate::models::unet::{Precision, UNet};
use crate::models::weights::checkpoint;
use attrflow_engine::config::param::Validate;
use attrflow_engine::kind::{
    ArtifactShape, Compute, Context, Estimate, ExpectedInputs, Input, Inputs, Kind, KindInfo, Output, Shared,
    Stage, Task, Trial, Unit, UnitInputs, Units,
};
use attrflow_engine::params;
use attrflow_engine::store::format_bytes;
use tch::Tensor;

params! {
    /// Parameters of `screen`.
    pub struct Screen {
        /// How the loss is measured whose derivative this is: as in `influence`, with `noise = "per_image"`. Gradients are in float32,
        /// whatever `precision` says.
        loss: LossParams,
        /// Also write the influences per timestep and draw, before the mean over them and the choice between mirror images.
        per_timestep: bool = false,
        /// What an image's influence is of its own and its mirror image's: `max`, the larger one, as published, or `mean`.
        flips: Flips = Flips::Max,
        /// Accept weights of a step that was divided by another number of images than this data set has, as `influence` does.
        other_images: bool = false,
        /// Accept a query whose latent has another height or width than those of this data set, as `influence` does.
        other_size: bool = false,
    }
}

impl Validate for Screen {
    fn validate(&self) -> Vec<(&'static str, String)> {
        if self.loss.noise.by_image() {
            return Vec::new();
        }
        let message = "`screen` needs `noise = \"per_image\"` in the loss: with `\"per_batch\"` the rows of an image cannot be computed \
                       alone";
        vec![("loss", message.to_owned())]
    }
}

const WEIGHTS: &str = "weights";
const QUERIES: &str = "queries";
const INFLUENCE: &str = "influence.npy";
const RANK: &str = "rank.npy";
const PER_TIMESTEP: &str = "influence_per_timestep.npy";

/// The file that a unit writes: float32 [images, Q], a mean over captions.
const RISES: &str = "rises.npy";

/// Numbers that the steps of all queries may take in memory: 4 GiB of float32, enough for 151 queries of the published model.
const ROOM: usize = 1 << 30;

/// Queries whose results are put together at once, which bounds open files and memory.
const MERGED: usize = 64;

impl Kind for Screen {
    const INFO: KindInfo = KindInfo {
        inputs: &[
            UNET,
            CHECKPOINT,
            LORA,
            SCHEDULER,
            LATENTS,
            TEXT_EMBEDDINGS,
            Input::new(
                WEIGHTS,
                "the weights that unlearning changed, a file for each query: `unlearn[*].weights`. All change the same weights",
            )
            .many(),
        ],
        outputs: &[Output::new(
            QUERIES,
            QUERIES,
            "a folder for each query, by the name of its item on `weights`, with influence.npy (float32 [N]), rank.npy (int64 [N]) and, \
             with `per_timestep`, influence_per_timestep.npy (float32 [2N, T], with `draws` above 1 [2N, T, R])",
        )],
        shared: &[Shared {
            port: WEIGHTS,
            kind: "unlearn",
            inputs: &["unet", "checkpoint", "lora", "scheduler"],
        }],
        ..KindInfo::new::<Self>(
            "screen",
            2,
            "the influence of every training image on many queries, to first order, in one pass",
        )
    };
}

/// The files of weights by query, in the order of the results, with the queries' names.
fn queries(inputs: &Inputs) -> Vec<(String, PathBuf)> {
    let named = |(item, path): (&str, &Path)| {
        // A stage that is not repeated has no name.
        let name = if item.is_empty() { "query" } else { item };
        (name.to_owned(), path.to_path_buf())
    };
    inputs.many(WEIGHTS).map(named).collect()
}

/// Refuses files that do not change the same weights of the network; returns their names.
fn check_weights(inputs: &Inputs) -> anyhow::Result<Vec<String>> {
    let queries = queries(inputs);
    let (_, first) = queries.first().context("`weights` has no file, expected one for each query")?;
    let changed = |path: &Path| -> anyhow::Result<Vec<(String, Vec<usize>)>> {
        let file = TensorFile::open(path)?;
        let mut all: Vec<_> =
            file.headers().iter().map(|header| (header.name.clone(), header.shape.clone())).collect();
        all.sort();
        Ok(all)
    };
    let known = changed(first)?;
    let names: Vec<String> = known.iter().map(|(name, _)| name.clone()).collect();
    ensure!(
        !names.is_empty(),
        "{}: it has no weight, expected those that unlearning changed",
        first.display()
    );
    let network = Parameters::of(inputs, &Selection::Patterns(names.clone()))?;
    for (name, shape) in &known {
        let own = network.get(name).with_context(|| {
            format!("{}: `{name}` is no weight of {}", first.display(), network.path.display())
        })?;
        ensure!(
            own.shape == *shape,
            "{}: `{name}` has the shape {shape:?}, expected {:?}, as in {}",
            first.display(),
            own.shape,
            network.path.display()
        );
    }
    for (_, path) in &queries[1..] {
        let other = changed(path)?;
        let differs = other.iter().find(|weight| !known.contains(weight));
        let missing = known.iter().find(|weight| !other.contains(weight));
        if let Some((name, shape)) = differs.or(missing) {
            let holds = if differs.is_some() { "has" } else { "lacks" };
            anyhow::bail!(
                "{}: it {holds} `{name}` {shape:?}, expected the same weights as in {}: unlearn all queries with one `select`",
                path.display(),
                first.display()
            );
        }
    }
    Ok(names)
}

impl Stage for Screen {
    fn identity(&self) -> Json {
        let Self { loss: _, per_timestep, flips, other_images, other_size } = self;
        json!({
            "loss": self.loss().identity(),
            "per_timestep": per_timestep,
            "flips": flips,
            "other_images": other_images,
            "other_size": other_size,
        })
    }

    fn unit_identity(&self) -> Json {
        json!({ "loss": per_image::unit_identity(&self.loss()) })
    }

    fn validate_inputs(&self, inputs: &Inputs) -> anyhow::Result<()> {
        loss_pass::validate_inputs(&self.loss, inputs)?;
        check_weights(inputs)?;
        queries(inputs).iter().try_for_each(|(_, path)| self.accepted().check(inputs, path))
    }

    fn check_values(&self, inputs: &Inputs) -> anyhow::Result<()> {
        check_values::finite(inputs, &["latents", "text_embeddings"])
    }

    fn units(&self, inputs: &Inputs) -> anyhow::Result<Units> {
        Ok(Units::Independent(loss_pass::units(&self.loss, inputs)?))
    }

    fn unit_inputs(&self, inputs: &Inputs, units: &[Unit]) -> anyhow::Result<Vec<UnitInputs>> {
        per_image::unit_inputs(&self.loss, inputs, units)
    }

    fn batch_key(&self, inputs: &Inputs, unit: &Unit) -> Option<String> {
        let rows = per_image::batch_key(&self.loss(), inputs, unit)?;
        Some(json!([rows, queries(inputs)]).to_string())
    }

    fn estimate(&self, inputs: &ExpectedInputs) -> anyhow::Result<Estimate> {
        let mut estimate = loss_pass::estimate(&self.loss(), inputs)?;
        let latents = expected::array(inputs, "latents")?.shape[0];
        let images = expected::array(inputs, "text_embeddings")?.shape[0];
        let queries = inputs.many(WEIGHTS).len();
        // Each file has a header.
        let array = |numbers: usize, bytes: usize| (numbers * bytes + 128) as u64;
        let mut each = array(images, 4) + array(images, 8);
        if self.per_timestep {
            each += array(latents * self.loss.count_points(), 4);
        }
        estimate.outputs = [(QUERIES.to_owned(), ArtifactShape::Bytes(each * queries as u64))].into();
        if let Some(work) = &mut estimate.work {
            estimate.parts =
                work.steps * (queries * 4) as u64 + work.tasks * self.loss.count_points() as u64 * 128;
            work.cost_key["screen"] = json!([queries, weights_size(inputs)?]);
        }
        Ok(estimate)
    }

    fn accept(&self, inputs: &Inputs, outputs: &Outputs) -> anyhow::Result<&'static str> {
        let images = arrays::count_images(inputs)?;
        let shape = per_timestep::shape(&self.loss, arrays::open(inputs)?.0.rows());
        let shape: Vec<_> = shape.into_iter().map(Some).collect();
        for (name, _) in queries(inputs) {
            let folder = outputs[QUERIES].join(name);
            let influence = check_outputs::finite(&folder.join(INFLUENCE), images)?;
            check_outputs::ranking(&folder.join(RANK), &influence)?;
            if self.per_timestep {
                check_outputs::array(&folder.join(PER_TIMESTEP), Some(Dtype::F32), &shape)?
                    .expect_finite()?;
            }
        }
        Ok("of each query: shapes, element types, finite numbers, and that the ranks follow the influences")
    }
}

/// How many numbers a file of weights holds: of the first that exists, else of the keys and values of the cross attention.
fn weights_size(inputs: &ExpectedInputs) -> anyhow::Result<usize> {
    let size = |shape: &[usize]| shape.iter().product::<usize>();
    let made = inputs.many(WEIGHTS).into_iter().find_map(|input| inputs.path(input).ok());
    if let Some(path) = made {
        return Ok(TensorFile::open(path)?.headers().iter().map(|header| size(&header.shape)).sum());
    }
    let network = Parameters::expected(inputs, &Selection::CrossAttnKv)?;
    Ok(network.selected().map(|header| size(&header.shape)).sum())
}

impl Screen {
    /// Gradients are in float32.
    fn loss(&self) -> LossParams {
        LossParams { precision: Precision::Fp32, ..self.loss.clone() }
    }

    fn accepted(&self) -> Accepted {
        Accepted { other_images: self.other_images, other_size: self.other_size }
    }
}

/// The weights in the files of the queries, which are opened when they are read: there may be more of them than a process may open.
struct Files {
    paths: Vec<PathBuf>,
    names: Vec<String>,
}

impl Unlearned for Files {
    fn queries(&self) -> usize {
        self.paths.len()
    }

    fn names(&self) -> &[String] {
        &self.names
    }

    fn read(&self, query: usize, name: &str) -> Result<Tensor, DataError> {
        let file = TensorFile::open(&self.paths[query])?;
        let header = file.header(name).ok_or_else(|| format!("it lacks `{name}`"))?;
        Ok(checkpoint::tensor(&file, header)?)
    }
}

/// Names the file of a query whose weights are at fault.
fn named(error: MathError, paths: &[PathBuf]) -> anyhow::Error {
    match error {
        MathError::Step { query, what } => anyhow::anyhow!("{}: {what}", paths[query].display()),
        error => error.into(),
    }
}

/// The steps of all queries, read and checked.
fn steps(unet: &UNet, paths: &[PathBuf], names: &[String]) -> anyhow::Result<Steps<'static>> {
    let files = Files { paths: paths.to_vec(), names: names.to_vec() };
    let steps = Steps::new(unet, files, ROOM).map_err(|error| named(error, paths))?;
    let groups = steps.groups();
    if groups.len() > 1 {
        let bytes = |numbers: usize| format_bytes(numbers as u64 * 4);
        tracing::info!(
            "the steps of {} queries take {}, more than the {} that they may: they are read again and again, {} queries at a time. \
             Rows go through the network once",
            paths.len(),
            bytes(steps.size() * paths.len()),
            bytes(ROOM),
            groups[0].len()
        );
    }
    Ok(steps)
}

impl Compute for Screen {
    fn run(&self, task: &Task, cx: &Context<'_>) -> anyhow::Result<()> {
        self.run_batch(std::slice::from_ref(task), cx)
    }

    /// All units are of one block and the same queries.
    fn run_batch(&self, tasks: &[Task], cx: &Context<'_>) -> anyhow::Result<()> {
        let spans =
            tasks.iter().map(|task| UnitRange::of(task.unit()?)).collect::<anyhow::Result<Vec<_>>>()?;
        let (first, Task { inputs, .. }) = spans.first().zip(tasks.first()).context("no unit")?;
        let points: Vec<Point> = spans.iter().map(UnitRange::point).collect();
        let (loss, names) = (self.loss(), check_weights(inputs)?);
        let paths: Vec<PathBuf> = queries(inputs).into_iter().map(|(_, path)| path).collect();
        let files: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
        let schedule = NoiseSchedule::load(inputs.path("scheduler"))?.with_objective(&loss.objective);
        let adapters = Selection::Patterns(names.clone()).adapters();
        with_gradients(inputs, adapters, Precision::Fp32, cx.device, |unet| {
            let set = TrainingSet::open(inputs, unet)?;
            let data = set.data()?;
            let pass = LossPass::new(unet, &schedule, data, &loss, cx.effective_micro_batch())?;
            let latents: Vec<usize> = first.latents(data.images()).collect();
            let block = pass.block(&latents, &points)?;
            let mut progress = |place: usize, images: usize| {
                cx.of_task(place).progress(images as u64, latents.len() as u64);
            };
            let make = || steps(unet, &paths, &names);
            let rises = with_large(inputs, &files, cx.device, make, |steps| {
                let rises = pass.screen(&block, &points, steps, &mut progress); // [images, points, Q]
                rises.map_err(|error| named(error, &paths))
            })?;
            for (place, task) in tasks.iter().enumerate() {
                let rises = arrays::values(&rises.select(1, place as i64));
                writer::write_f32(task.out.join(RISES), &[latents.len(), paths.len()], &rises)?;
            }
            Ok(())
        })?;
        cx.finished(&(0..tasks.len()).collect::<Vec<_>>());
        Ok(())
    }

    fn merge(&self, task: &Task, parts: &[PathBuf], _: &Context<'_>) -> anyhow::Result<()> {
        let Task { inputs, out, .. } = task;
        let queries = queries(inputs);
        for (_, path) in &queries {
            step_check::warn(inputs, path)?;
        }
        for (group, some) in queries.chunks(MERGED).enumerate() {
            self.merge_some(inputs, parts, &out.join(QUERIES), (group * MERGED, some))?;
        }
        Ok(())
    }

    fn trial(
        &self,
        inputs: &ExpectedInputs,
        steps: u64,
        folder: &Path,
        cx: &Context<'_>,
    ) -> anyhow::Result<Trial> {
        let (loss, mut given, units) = loss_pass::trial(&self.loss(), inputs, steps, folder, cx)?;
        let items = inputs.many(WEIGHTS);
        let missing = items.iter().any(|item| given.get(item).is_none());
        if missing {
            // Other weights than the network's own: which ones, another stage chooses.
            let images = Some(("trial", "1".to_owned()));
            expected::make_weights(&mut given, WEIGHTS, &Selection::CrossAttnKv, images, folder)?;
            let path = given.0.remove(WEIGHTS).context("no weights")?;
            for item in items {
                given.0.insert(item.to_owned(), path.clone());
            }
        }
        let steps = units.iter().map(|unit| unit.steps).sum();
        let stage = Self { loss, other_images: true, other_size: true, ..self.clone() };
        Ok(Trial { stage: Box::new(stage), inputs: given, units, steps, merges: false })
    }
}

impl Screen {
    /// Writes the results of some queries, of which the first is at this place.
    fn merge_some(
        &self,
        inputs: &Inputs,
        parts: &[PathBuf],
        out: &Path,
        (first, queries): (usize, &[(String, PathBuf)]),
    ) -> anyhow::Result<()> {
        let (latents, texts) = arrays::open(inputs)?;
        let (images, points) = (texts.rows(), self.loss.count_points());
        let mut writers = Vec::new();
        for (name, _) in queries {
            fs_err::create_dir_all(out.join(name))?;
            if self.per_timestep {
                let shape = per_timestep::shape(&self.loss, latents.rows());
                writers.push(NpyWriter::create(out.join(name).join(PER_TIMESTEP), Dtype::F32, &shape)?);
            }
        }
        let mut means: Vec<Vec<f32>> = vec![Vec::with_capacity(latents.rows()); queries.len()];
        for block in parts.chunks(points) {
            let mut rows = Vec::new();
            for part in block {
                let npy = Npy::open(part.join(RISES))?;
                let mut values = Vec::new();
                npy.read_f32(0..npy.rows(), &mut values)?;
                rows.push((npy.row_len(), values));
            }
            let count = rows.first().map_or(0, |(all, values)| values.len() / (*all).max(1));
            for image in 0..count {
                for (place, means) in means.iter_mut().enumerate() {
                    let at_each: Vec<f32> =
                        rows.iter().map(|(all, values)| values[image * all + first + place]).collect();
                    means.push(per_timestep::mean(&at_each) as f32);
                    if let Some(writer) = writers.get_mut(place) {
                        writer.write_f32(&at_each)?;
                    }
                }
            }
        }
        writers.into_iter().try_for_each(NpyWriter::finish)?;
        for ((name, _), means) in queries.iter().zip(means) {
            let scores = per_image_scores(&means, images, self.flips)?;
            let ranks = rank(&scores).with_context(|| format!("the query `{name}`"))?;
            writer::write_f32(out.join(name).join(INFLUENCE), &[images], &scores)?;
            writer::write_i64(out.join(name).join(RANK), &[images], &ranks)?;
        }
        Ok(())
    }
}
