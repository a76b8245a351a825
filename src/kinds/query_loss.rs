//! The losses of a model on queries, by which models are compared.

use std::path::Path;

use anyhow::{Context as _, ensure};
use serde_json::{Value as Json, json};
use tch::Tensor;

use super::loss_pass::per_timestep::mean;
use super::shared::arrays::{TrainingSet, values};
use super::shared::network::{CHECKPOINT, LORA, SCHEDULER, UNET, with_folder, with_unet};
use super::shared::query_table::{self, QueryRow};
use super::shared::{check_inputs, check_values, device, expected, micro_batch};
use crate::io::image::{RgbImage, load_rgb};
use crate::io::npy::{Npy, writer};
use crate::method::identity::hashed;
use crate::method::loss::{LossParams, LossPass};
use crate::method::noise::Noise;
use crate::method::objective::Objective;
use crate::method::schedule::{NoiseSchedule, ScheduleConfig};
use crate::models::clip::image::{self, ImageEncoder};
use crate::models::unet::{ModelMode, Precision};
use crate::models::vision::PictureEncoder;
use attrflow_engine::config::param::Validate;
use attrflow_engine::kind::{
    ArtifactShape, Compute, Context, Estimate, ExpectedInputs, Input, Inputs, Kind, KindInfo, Output, Stage,
    Task, Trial, WorkSize,
};
use attrflow_engine::params;

params! {
    /// Parameters of `query-loss`.
    pub struct QueryLoss {
        /// Timesteps, evenly spaced from 0; must divide the model's number of timesteps. 200 as published.
        time_samples: usize [1..=100_000] = 200,
        /// Seed of the noise. It is drawn by timestep, the same for all models, so that losses differ by the models alone.
        seed: u32 = 0,
        /// What the model was trained to minimise; the same for all stages.
        objective: Objective = Objective::default(),
    }
}

impl Validate for QueryLoss {}

const LATENTS: &str = "latents";
const TEXTS: &str = "text_embeddings";
const IMAGES: &str = "images";
const DRAWN_LATENTS: &str = "drawn_latents";
const DRAWN_IMAGES: &str = "drawn_images";
const CLIP: &str = "clip";
const LOSSES: &str = "query_loss.npy";
const TABLE: &str = "query_loss.csv";

impl Kind for QueryLoss {
    const INFO: KindInfo = KindInfo {
        inputs: &[
            UNET,
            CHECKPOINT,
            LORA,
            SCHEDULER,
            Input::new(LATENTS, "float [Q, C, H, W]: the queries, for instance `generate[*].latents`").many(),
            Input::new(TEXTS, "float [Q, 1, L, D]: their captions").many(),
            Input::new(
                DRAWN_LATENTS,
                "float [Q, C, H, W]: what this model draws from the queries' start noise",
            )
            .many()
            .optional(),
            Input::new(IMAGES, "the folder of the queries' pictures, 0.png, 1.png, …: `generate[*].images`")
                .many()
                .optional(),
            Input::new(DRAWN_IMAGES, "the same of what this model draws from their start noise")
                .many()
                .optional(),
            Input::new(
                CLIP,
                "a folder with CLIP's config.json and weights, to compare pictures by: of CLIP as a whole, or of its image encoder",
            )
            .optional(),
        ],
        outputs: &[
            Output::new(
                "table",
                TABLE,
                "by query: its mean loss; if this model's drawings are connected, how far they are off",
            ),
            Output::new("losses", LOSSES, "float32 [queries, T], in the order of the table"),
        ],
        ..KindInfo::new::<Self>(
            "query-loss",
            1,
            "the losses of a model on queries, with the same noise for all models",
        )
    };
}

impl Stage for QueryLoss {
    fn identity(&self) -> Json {
        hashed(self, &[("objective", self.objective.is_plain())])
    }

    fn check(&self, connected: &dyn Fn(&str) -> bool) -> Vec<(String, String)> {
        let (port, message) = match (connected(IMAGES), connected(DRAWN_IMAGES), connected(CLIP)) {
            (true, true, _) | (false, false, false) => return Vec::new(),
            (false, false, true) => {
                (CLIP, "`clip` compares pictures: connect `images` and `drawn_images` too")
            }
            _ => (IMAGES, "`images` and `drawn_images` are compared with each other: connect both or none"),
        };
        vec![(port.to_owned(), message.to_owned())]
    }

    fn validate_inputs(&self, inputs: &Inputs) -> anyhow::Result<()> {
        check_inputs::networks(inputs)?;
        self.loss().timesteps(&ScheduleConfig::load(inputs.path("scheduler"))?)?;
        inputs.get(CLIP).map_or(Ok(()), image::check_folder)?;
        for (_, own) in queries(inputs)? {
            let (latents, texts) = check_inputs::arrays(&own)?;
            let (found, expected) = (latents.rows(), texts.rows());
            ensure!(
                found == expected,
                "{}: {found} rows, expected {expected}, one for each query",
                latents.path().display()
            );
            if let Some(drawn) = own.get(DRAWN_LATENTS) {
                Npy::open(drawn)?
                    .expect_shape(&latents.shape().iter().copied().map(Some).collect::<Vec<_>>())?;
            }
        }
        Ok(())
    }

    fn check_values(&self, inputs: &Inputs) -> anyhow::Result<()> {
        for (_, own) in queries(inputs)? {
            check_values::finite(&own, &[LATENTS, TEXTS, DRAWN_LATENTS])?;
        }
        Ok(())
    }

    fn estimate(&self, inputs: &ExpectedInputs) -> anyhow::Result<Estimate> {
        let arrays: Vec<expected::Array> = inputs
            .many(LATENTS)
            .into_iter()
            .map(|input| expected::array(inputs, input))
            .collect::<anyhow::Result<_>>()?;
        let queries: usize = arrays.iter().map(|array| array.shape[0]).sum();
        let rows = queries * self.time_samples;
        let losses = ArtifactShape::Array { shape: vec![queries, self.time_samples], bytes: 4 };
        let cost_key = json!({
            "time_samples": self.time_samples,
            "unet": expected::config(inputs, "unet")?,
            "latent": arrays.first().map(|array| &array.shape[1..]),
        });
        Ok(Estimate {
            outputs: [
                ("losses".to_owned(), losses),
                ("table".to_owned(), ArtifactShape::Bytes(60 * queries as u64)),
            ]
            .into(),
            work: Some(WorkSize { steps: rows as u64, tasks: 1, cost_key, ..WorkSize::default() }),
            ..Estimate::default()
        })
    }
}

/// The items of the queries, each with its own inputs. Where each port has one source, that is it, whatever its name.
fn queries(inputs: &Inputs) -> anyhow::Result<Vec<(String, Inputs)>> {
    let names = |port| inputs.many(port).map(|(item, _)| item.to_owned()).collect::<Vec<_>>();
    let items = names(LATENTS);
    let mut of_items: Vec<(String, Inputs)> =
        items.iter().map(|item| (item.clone(), inputs.of_item(item))).collect();
    for port in [TEXTS, DRAWN_LATENTS, IMAGES, DRAWN_IMAGES] {
        let found = names(port);
        match (of_items.as_mut_slice(), inputs.many(port).next()) {
            ([(_, own)], Some((_, path))) if found.len() == 1 => {
                own.0.insert(port.to_owned(), path.to_owned());
            }
            _ => ensure!(
                found == items || (port != TEXTS && found.is_empty()),
                "`{port}` has the items {}, expected {}, those of `{LATENTS}`",
                found.join(", "),
                items.join(", ")
            ),
        }
    }
    Ok(of_items)
}

impl QueryLoss {
    /// Noise per image is keyed by the row of its own source: it is the same whatever other queries there are.
    fn loss(&self) -> LossParams {
        let Self { time_samples, seed, objective } = self.clone();
        let (noise, precision) = (Noise::PerImage, Precision::Fp32);
        LossParams { time_samples, captions: 1, seed, noise, precision, objective, ..LossParams::default() }
    }
}

impl Compute for QueryLoss {
    fn run(&self, task: &Task, cx: &Context<'_>) -> anyhow::Result<()> {
        let Task { inputs, out, .. } = task;
        let params = self.loss();
        let schedule = NoiseSchedule::load(inputs.path("scheduler"))?.with_objective(&params.objective);
        let queries = queries(inputs)?;
        let (mut rows, mut losses) = (Vec::new(), Vec::new());
        for (place, (item, own)) in queries.iter().enumerate() {
            let mode = ModelMode::Inference(params.precision);
            let found = with_unet(own, None, cx.device, mode, |unet| {
                let set = TrainingSet::open(own, unet)?;
                let data = set.data()?;
                let micro_batch =
                    micro_batch::effective(unet, &schedule, set.row_shapes(), params.time_samples, cx)?;
                let count = data.images();
                let pass = LossPass::new(unet, &schedule, data, &params, micro_batch)?;
                let mut found: Vec<f32> = Vec::new();
                for batch in 0..params.batches(count) {
                    found.extend(values(&pass.rows_of_batch(batch)?)); // [images, 1, timesteps]
                }
                Ok(found)
            })?;
            rows.extend(table_rows(item, own, found.chunks(params.time_samples), cx)?);
            losses.extend(found);
            cx.progress(place as u64 + 1, queries.len() as u64);
        }
        writer::write_f32(out.join(LOSSES), &[rows.len(), params.time_samples], &losses)?;
        query_table::write(&out.join(TABLE), &rows)
    }

    fn trial(
        &self,
        inputs: &ExpectedInputs,
        steps: u64,
        folder: &Path,
        _: &Context<'_>,
    ) -> anyhow::Result<Trial> {
        let known = *inputs.many(LATENTS).first().context("no query")?;
        let texts = *inputs.many(TEXTS).first().context("no caption")?;
        let [latents, texts] = [known, texts].map(|input| expected::array(inputs, input));
        let (latents, texts) = (latents?, texts?);
        let rows = (steps as usize).div_ceil(self.time_samples).clamp(1, latents.shape[0]);
        let mut given = inputs.inputs();
        given.0.retain(|input, _| !input.contains('['));
        expected::make_arrays(&mut given, [&latents, &texts], rows, folder)?;
        for port in [LATENTS, TEXTS] {
            let path = given.0.remove(port).with_context(|| format!("no `{port}`"))?;
            given.0.insert(format!("{port}[trial]"), path);
        }
        Ok(Trial {
            stage: Box::new(self.clone()),
            inputs: given,
            units: Vec::new(),
            steps: (rows * self.time_samples) as u64,
            merges: false,
        })
    }
}

/// The lines of one item.
fn table_rows<'a>(
    item: &str,
    inputs: &Inputs,
    losses: impl ExactSizeIterator<Item = &'a [f32]>,
    cx: &Context<'_>,
) -> anyhow::Result<Vec<QueryRow>> {
    let count = losses.len();
    let cosines = inputs.get(DRAWN_LATENTS).map(|drawn| cosines(inputs.path(LATENTS), drawn)).transpose()?;
    let pictures = inputs.get(IMAGES).zip(inputs.get(DRAWN_IMAGES));
    let row = |(place, losses): (usize, &[f32])| {
        let mut row = QueryRow {
            query: query_table::name(item, place, count),
            loss: mean(losses),
            pixel_mse: None,
            latent_cosine: cosines.as_ref().and_then(|all| all[place]),
            clip_cosine: None,
        };
        if let Some((own, drawn)) = pictures {
            let both = [own, drawn].map(|folder| folder.join(format!("{place}.png")));
            let pictures = [load_rgb(&both[0])?, load_rgb(&both[1])?];
            row.pixel_mse = Some(pixel_mse([&both[0], &both[1]], &pictures)?);
            let clip = inputs.get(CLIP);
            row.clip_cosine = clip.map(|clip| clip_cosine(clip, &pictures, cx)).transpose()?.flatten();
        }
        Ok(row)
    };
    losses.enumerate().map(row).collect()
}

/// The cosine between CLIP's vectors of two pictures.
fn clip_cosine(folder: &Path, pictures: &[RgbImage; 2], cx: &Context<'_>) -> anyhow::Result<Option<f64>> {
    with_folder(folder, cx.device, ImageEncoder::load, |clip| {
        let _no_grad = tch::no_grad_guard();
        let prepared = pictures.each_ref().map(|picture| clip.prepare(picture));
        let vectors = clip.forward(&Tensor::stack(&prepared, 0).to_device(device::torch(cx.device)));
        let both = values(&vectors);
        let (own, drawn) = both.split_at(both.len() / 2);
        Ok(cosine(own, drawn))
    })
}

/// The cosine between each latent and the one that is drawn in its place.
fn cosines(own: &Path, drawn: &Path) -> anyhow::Result<Vec<Option<f64>>> {
    let read = |path: &Path| -> anyhow::Result<(Vec<f32>, usize)> {
        let npy = Npy::open(path)?;
        let mut all = Vec::new();
        npy.read_f32(0..npy.rows(), &mut all)?;
        Ok((all, npy.row_len()))
    };
    let ((own, length), (drawn, _)) = (read(own)?, read(drawn)?);
    Ok(own.chunks(length).zip(drawn.chunks(length)).map(|(own, drawn)| cosine(own, drawn)).collect())
}

/// None where one of them is zero: it has no direction.
fn cosine(a: &[f32], b: &[f32]) -> Option<f64> {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let lengths = (dot(a, a) * dot(b, b)).sqrt();
    (lengths > 0.0).then(|| dot(a, b) / lengths)
}

/// The mean square difference of two pictures' values, from 0 to 1.
fn pixel_mse([own, drawn]: [&Path; 2], [one, other]: &[RgbImage; 2]) -> anyhow::Result<f64> {
    ensure!(
        one.dimensions() == other.dimensions(),
        "{}: {:?} pixels, expected {:?}, as {}",
        drawn.display(),
        other.dimensions(),
        one.dimensions(),
        own.display()
    );
    let square = |(a, b): (&u8, &u8)| ((f64::from(*a) - f64::from(*b)) / 255.0).powi(2);
    let count = one.as_raw().len() as f64;
    Ok(one.as_raw().iter().zip(other.as_raw()).map(square).sum::<f64>() / count)
}
