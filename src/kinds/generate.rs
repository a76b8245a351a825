//! Queries: the images that the model draws for captions.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::{Value as Json, json};
use tch::{Device, Tensor};

use super::latents::embed;
use super::shared::arrays::values;
use super::shared::check_outputs::Outputs;
use super::shared::network::{CHECKPOINT, SCHEDULER, TEXT_ENCODER, TOKENIZER, UNET, VAE, load_unet};
use super::shared::{check_outputs, device, expected};
use crate::io::captions::list;
use crate::io::image::{from_unit, save_png};
use crate::io::npy::writer;
use crate::method::error::MathError;
use crate::method::micro_batches::in_micro_batches;
use crate::method::noise::Generator;
use crate::method::sample::{SampleSpec, sample, sample_each, skip_batch};
use crate::method::schedule::NoiseSchedule;
use crate::models::text::clip::TextEncoder;
use crate::models::text::tokenizer::Tokenizer;
use crate::models::unet::config::UNetConfig;
use crate::models::unet::{ModelMode, Precision};
use crate::models::vae::Vae;
use attrflow_engine::config::param::Validate;
use attrflow_engine::kind::{
    ArtifactShape, Compute, Context, Estimate, ExpectedInputs, Input, Inputs, Kind, KindInfo, Output, Stage,
    Task, Trial, Unit, Units, WorkSize,
};
use attrflow_engine::{choice, params};

choice! {
    /// Where a drawing's random numbers come from.
    pub enum Noise {
        /// One stream through all batches, as published.
        Batch = "batch",
        /// A stream for each caption's place.
        Image = "image",
    }
}

params! {
    /// Parameters of `generate`.
    pub struct Generate {
        /// What to draw, where nothing stands on the input `captions`.
        caption: Option<String> = None,
        /// Denoising steps.
        steps: u32 [1..=1000] = 1000,
        /// How far to go from the prediction without the caption toward, and beyond, the one with it.
        guidance_scale: f64 = 7.5,
        /// Seed of the initial latents and of the noise at each step.
        seed: u32 = 0,
        /// `batch`: one stream of random numbers through all batches, as published, so that `batch_size` and its place
        /// among the captions change an image; `image`: a stream for each place, so that the batch size changes none.
        noise: Noise = Noise::Batch,
        /// Captions drawn at once. With `noise = "batch"` they share a draw of noise, and a short last batch draws it
        /// for a full one, as published (with 500); with `image` it is only the size of a unit of work.
        batch_size: u32 [1..=100_000] = 1,
    }
}

impl Validate for Generate {}

impl Generate {
    fn spec(&self) -> SampleSpec {
        let (steps, batch_size) = (self.steps as usize, self.batch_size as usize);
        SampleSpec { steps, guidance_scale: self.guidance_scale, batch_size }
    }

    /// What a unit's drawings depend on besides its captions and their place.
    fn of_unit(&self) -> Json {
        let Self { caption: _, steps, guidance_scale, seed, noise, batch_size } = self;
        let mut counts =
            json!({ "steps": steps, "guidance_scale": guidance_scale, "seed": seed, "noise": noise });
        if *noise == Noise::Batch {
            counts["batch_size"] = json!(batch_size);
        }
        counts
    }
}

const CAPTIONS: &str = "captions";
const IMAGES: &str = "images";
const LATENTS: &str = "latents.npy";
const TEXTS: &str = "text_embeddings.npy";
/// Most latents that are decoded at once: an image takes far more memory than its latent.
const DECODED: usize = 20;

impl Kind for Generate {
    const INFO: KindInfo = KindInfo {
        inputs: &[
            UNET,
            CHECKPOINT,
            SCHEDULER,
            VAE,
            TEXT_ENCODER,
            TOKENIZER,
            // A unit is told its captions, so that those of other units don't count for it.
            Input::merge(CAPTIONS, "a text file, a caption a line; in place of the parameter `caption`")
                .optional(),
        ],
        outputs: &[
            Output::new("images", IMAGES, "a folder with 0.png, 1.png, …: RGB, 8 bit"),
            Output::new("latents", LATENTS, "float32 [Q, C, H, W]"),
            Output::new("text_embeddings", TEXTS, "float32 [Q, 1, L, D]"),
        ],
        ..KindInfo::new::<Self>("generate", 2, "images drawn by the model for captions")
    };
}

impl Stage for Generate {
    fn identity(&self) -> Json {
        let mut counts = self.of_unit();
        counts["caption"] = json!(self.caption);
        counts
    }

    fn unit_identity(&self) -> Json {
        self.of_unit()
    }

    fn check(&self, connected: &dyn Fn(&str) -> bool) -> Vec<(String, String)> {
        match (&self.caption, connected(CAPTIONS)) {
            (Some(_), true) => {
                let message = "`caption` and the input `captions` exclude each other: remove one";
                vec![("caption".to_owned(), message.to_owned())]
            }
            (None, false) => {
                let message = "nothing to draw: expected the parameter `caption` or the input `captions`";
                vec![("caption".to_owned(), message.to_owned())]
            }
            _ => Vec::new(),
        }
    }

    fn units(&self, inputs: &Inputs) -> anyhow::Result<Units> {
        Ok(Units::Independent(cut(self, &captions(self, inputs.get(CAPTIONS))?)))
    }

    fn estimate(&self, inputs: &ExpectedInputs) -> anyhow::Result<Estimate> {
        let file = if inputs.connected(CAPTIONS) { Some(inputs.path(CAPTIONS)?) } else { None };
        let count = captions(self, file)?.len();
        let [length, width] = expected::text(inputs)?;
        let unet = UNetConfig::read(&inputs.path("unet")?.join("config.json"))?;
        let latent = unet.latent_shape().context("the network's config.json gives no size of latents")?;
        let [channels, high, wide] = latent.map(|size| size as usize);
        let scale = expected::scale(inputs)?;
        let outputs = [
            // A picture takes no more than its pixels, and a little besides.
            (IMAGES, ArtifactShape::Bytes((count * (3 * high * wide * scale * scale + 100)) as u64)),
            ("latents", ArtifactShape::Array { shape: vec![count, channels, high, wide], bytes: 4 }),
            ("text_embeddings", ArtifactShape::Array { shape: vec![count, 1, length, width], bytes: 4 }),
        ];
        let batch = count.min(self.batch_size as usize);
        let cost_key = json!({
            "captions": batch,
            "noise": self.noise,
            "unet": expected::config(inputs, "unet")?,
            "vae": expected::config(inputs, "vae")?,
            "text_encoder": expected::config(inputs, "text_encoder")?,
        });
        let tasks = count.div_ceil(batch.max(1)) as u64;
        Ok(Estimate {
            parts: outputs.iter().filter_map(|(_, form)| form.bytes()).sum(),
            outputs: outputs.map(|(port, form)| (port.to_owned(), form)).into(),
            work: Some(WorkSize { steps: tasks * u64::from(self.steps), tasks, cost_key }),
        })
    }

    fn accept(&self, inputs: &Inputs, outputs: &Outputs) -> anyhow::Result<()> {
        check_outputs::queries(inputs, captions(self, inputs.get(CAPTIONS))?.len(), outputs)
    }
}

fn cut(params: &Generate, captions: &[String]) -> Vec<Unit> {
    let size = params.batch_size as usize;
    let unit = |(batch, captions): (usize, &[String])| {
        let (first, end) = (batch * size, batch * size + captions.len());
        let range = json!({ "first": first, "captions": captions });
        Unit { name: format!("captions {first}..{end}"), range, steps: params.steps.into() }
    };
    captions.chunks(size).enumerate().map(unit).collect()
}

impl Compute for Generate {
    fn run(&self, task: &Task, cx: &Context<'_>) -> anyhow::Result<()> {
        let Task { inputs, out, .. } = task;
        let range = &task.unit()?.range;
        let first: usize = serde_json::from_value(range["first"].clone())?;
        let captions: Vec<String> = serde_json::from_value(range[CAPTIONS].clone())?;
        let device = device::torch(cx.device);
        let _no_grad = tch::no_grad_guard();
        let (with, without) = texts(inputs, &captions, device, cx.effective_micro_batch())?; // [n, L, D], [1, L, D]
        write(out, TEXTS, &with.unsqueeze(1))?;
        let latents = draw(self, inputs, &with, &without, first, cx)?; // [n, C, H, W]
        write(out, LATENTS, &latents)?;
        decode(inputs, &latents, first, &out.join(IMAGES), cx)
    }

    fn merge(&self, task: &Task, parts: &[PathBuf], _: &Context<'_>) -> anyhow::Result<()> {
        let Task { out, .. } = task;
        fs_err::create_dir(out.join(IMAGES))?;
        for part in parts {
            for image in fs_err::read_dir(part.join(IMAGES))? {
                let image = image?;
                fs_err::copy(image.path(), out.join(IMAGES).join(image.file_name()))?;
            }
        }
        for name in [LATENTS, TEXTS] {
            let parts: Vec<PathBuf> = parts.iter().map(|part| part.join(name)).collect();
            writer::concat(&parts, out.join(name))?;
        }
        Ok(())
    }

    fn trial(&self, inputs: &ExpectedInputs, steps: u64, _: &Path, _: &Context<'_>) -> anyhow::Result<Trial> {
        // With more, a model that begins its timesteps late would have none left for the first.
        const MOST: u64 = 500;
        let given = inputs.inputs();
        let steps = steps.min(MOST);
        let stage = Generate { steps: steps as u32, ..self.clone() };
        let unit = cut(&stage, &captions(&stage, given.get(CAPTIONS))?).into_iter().next();
        Ok(Trial { stage: Box::new(stage), inputs: given, unit, steps, merges: false })
    }
}

/// What to draw.
fn captions(params: &Generate, file: Option<&Path>) -> anyhow::Result<Vec<String>> {
    Ok(match file {
        Some(path) => list::read(path)?,
        None => params.caption.iter().cloned().collect(),
    })
}

/// Embeddings of the captions [n, L, D], and of the empty text [1, L, D].
fn texts(
    inputs: &Inputs,
    captions: &[String],
    device: Device,
    micro_batch: usize,
) -> anyhow::Result<(Tensor, Tensor)> {
    let tokenizer = Tokenizer::load(inputs.path("tokenizer"))?;
    let encoder = TextEncoder::load(inputs.path("text_encoder"), device)?;
    // The empty text is encoded along with each slice: a pass over it alone would round otherwise.
    let slices = in_micro_batches(captions.len(), micro_batch, |row, most| {
        let some = [&captions[row..row + most], &[String::new()]].concat();
        Ok::<_, anyhow::Error>((most, embed(&tokenizer, &encoder, &some, device)?)) // [most + 1, L, D]
    })?;
    let last = slices.last().context("a unit has a caption")?;
    let without = last.narrow(0, last.size()[0] - 1, 1);
    let with: Vec<Tensor> = slices.iter().map(|slice| slice.narrow(0, 0, slice.size()[0] - 1)).collect();
    Ok((Tensor::cat(&with, 0), without))
}

/// The latents [n, C, H, W] of the captions from place `first` on.
fn draw(
    params: &Generate,
    inputs: &Inputs,
    with: &Tensor,
    without: &Tensor,
    first: usize,
    cx: &Context<'_>,
) -> anyhow::Result<Tensor> {
    let unet = load_unet(inputs, cx.device, ModelMode::Inference(Precision::Fp32))?;
    let schedule = NoiseSchedule::load(inputs.path("scheduler"))?;
    let (spec, seed) = (params.spec(), i64::from(params.seed));
    let total = u64::from(params.steps);
    let progress = &mut |done| cx.progress(done as u64, total);
    let latents = match params.noise {
        Noise::Image => sample_each(
            &unet,
            &schedule,
            with,
            without,
            &spec,
            seed,
            first,
            cx.effective_micro_batch(),
            progress,
        ),
        Noise::Batch => {
            let mut draws = Generator::seeded(seed);
            for _ in 0..first / spec.batch_size {
                skip_batch(&unet, &schedule, &spec, &mut draws)?;
            }
            sample(&unet, &schedule, with, without, &spec, &mut draws, cx.effective_micro_batch(), progress)
        }
    };
    latents.map_err(|error| match error {
        MathError::LatentsNotFinite { row, timestep } => anyhow::anyhow!(
            "the latents of caption {} are not finite after the step at timestep {timestep}",
            first + row
        ),
        error => error.into(),
    })
}

/// Writes `FIRST.png` and so on into a new folder.
fn decode(
    inputs: &Inputs,
    latents: &Tensor,
    first: usize,
    folder: &Path,
    cx: &Context<'_>,
) -> anyhow::Result<()> {
    fs_err::create_dir(folder)?;
    let vae = Vae::load(inputs.path("vae"), device::torch(cx.device))?;
    let count = latents.size()[0] as usize;
    in_micro_batches(count, cx.effective_micro_batch().min(DECODED), |row, most| {
        let some = latents.narrow(0, row as i64, most as i64) / vae.scaling_factor();
        let images = vae.decode(&some).to_device(Device::Cpu); // [most, 3, H, W]
        let (height, width) = (images.size()[2] as u32, images.size()[3] as u32);
        for place in 0..most {
            let pixels = values(&images.get(place as i64));
            let name = format!("{}.png", first + row + place);
            save_png(&from_unit(&pixels, width, height), folder.join(name))?;
        }
        Ok::<_, anyhow::Error>((most, ()))
    })?;
    Ok(())
}

fn write(out: &Path, name: &str, tensor: &Tensor) -> anyhow::Result<()> {
    let shape: Vec<usize> = tensor.size().iter().map(|&size| size as usize).collect();
    Ok(writer::write_f32(out.join(name), &shape, &values(tensor))?)
}
