//! Queries: the images that the model draws for captions.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::{Value as Json, json};
use tch::{Device, Tensor};

use super::shared::arrays::values;
use super::shared::check_outputs::Outputs;
use super::shared::counted::{CUT, Counted};
use super::shared::network::{
    CHECKPOINT, LORA, SCHEDULER, TEXT_ENCODER, TEXT_ENCODER_2, TOKENIZER, TOKENIZER_2, UNET, VAE,
    with_text_model, with_unet, with_vae,
};
use super::shared::text::Sizes;
use super::shared::{check_inputs, check_outputs, expected};
use crate::io::captions::list;
use crate::io::image::{from_unit, save_png};
use crate::io::npy::writer;
use crate::method::error::MathError;
use crate::method::micro_batches::in_micro_batches;
use crate::method::noise::{Generator, Noise};
pub use crate::method::sample::SampleParams;
use crate::method::sample::{sample, sample_each, skip_batch};
use crate::method::schedule::{NoiseSchedule, ScheduleConfig};
use crate::models::unet::config::UNetConfig;
use crate::models::unet::{ModelMode, Precision};
use crate::models::vae::VaeConfig;
use attrflow_engine::kind::{
    ArtifactShape, Compute, Context, Estimate, ExpectedInputs, Input, Inputs, Kind, KindInfo, Output, Stage,
    Task, Trial, Unit, Units, WorkSize,
};

/// What a unit's drawings depend on besides its captions and their place.
fn of_unit(params: &SampleParams) -> Json {
    let SampleParams {
        caption: _,
        steps,
        guidance_scale,
        seed,
        noise,
        batch_size,
        force_zeros_for_empty_prompt: zeros,
        denoised_at,
    } = params;
    let mut counts =
        json!({ "steps": steps, "guidance_scale": guidance_scale, "seed": seed, "noise": noise });
    if *noise == Noise::PerBatch {
        counts["batch_size"] = json!(batch_size);
    }
    if !zeros {
        counts["force_zeros_for_empty_prompt"] = json!(zeros);
    }
    if let Some(at) = denoised_at {
        counts["denoised_at"] = json!(at);
    }
    counts
}

const CAPTIONS: &str = "captions";
const IMAGES: &str = "images";
const LATENTS: &str = "latents.npy";
const TEXTS: &str = "text_embeddings.npy";
/// Most latents that are decoded at once: an image takes far more memory than its latent.
const DECODED: usize = 20;

impl Kind for SampleParams {
    const INFO: KindInfo = KindInfo {
        inputs: &[
            UNET,
            CHECKPOINT,
            LORA,
            SCHEDULER,
            VAE,
            TEXT_ENCODER,
            TOKENIZER,
            TEXT_ENCODER_2,
            TOKENIZER_2,
            // A unit's range holds its captions, so that those of other units are not hashed for it.
            Input::merge(CAPTIONS, "a text file, a caption a line (a blank line is refused); in place of the parameter `caption`")
                .optional(),
        ],
        outputs: &[
            Output::new("images", IMAGES, "a folder with 0.png, 1.png, …: RGB, 8 bit"),
            Output::new("latents", LATENTS, "float32 [Q, C, H, W]"),
            Output::new("text_embeddings", TEXTS, "float32 [Q, 1, L, D], as those of `latents`"),
        ],
        ..KindInfo::new::<Self>("generate", 2, "images drawn by the model for captions")
    };
}

impl Stage for SampleParams {
    fn identity(&self) -> Json {
        let mut counts = of_unit(self);
        counts["caption"] = json!(self.caption);
        counts
    }

    fn unit_identity(&self) -> Json {
        of_unit(self)
    }

    fn check(&self, connected: &dyn Fn(&str) -> bool) -> Vec<(String, String)> {
        let mut faults = check_inputs::second_encoder(connected);
        let fault = |key: &str, message: &str| (key.to_owned(), message.to_owned());
        match (&self.caption, connected(CAPTIONS)) {
            (Some(_), true) => {
                let message = "`caption` and the input `captions` exclude each other: remove one";
                faults.push(fault("caption", message));
            }
            (None, false) => {
                let message = "nothing to draw: expected the parameter `caption` or the input `captions`";
                faults.push(fault("caption", message));
            }
            _ => {}
        }
        if !self.force_zeros_for_empty_prompt && !connected("text_encoder_2") {
            let key = "force_zeros_for_empty_prompt";
            let message = "has no effect with one text encoder, whose empty text is encoded: remove it";
            faults.push(fault(key, &format!("`{key}` {message}")));
        }
        faults
    }

    fn validate_inputs(&self, inputs: &Inputs) -> anyhow::Result<()> {
        check_inputs::networks(inputs)?;
        let timesteps = ScheduleConfig::load(inputs.path("scheduler"))?.num_train_timesteps;
        anyhow::ensure!(
            self.steps as i64 <= timesteps,
            "`steps` is {}, expected at most {timesteps}, the model's timesteps",
            self.steps
        );
        check_inputs::timestep(inputs, "denoised_at", self.denoised_at)?;
        self.units(inputs).map(drop)
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
        let batch = count.min(self.batch_size);
        let cost_key = json!({
            "captions": batch,
            "noise": self.noise,
            "unet": expected::config(inputs, "unet")?,
            "vae": expected::config(inputs, "vae")?,
            "text_encoder": expected::config(inputs, "text_encoder")?,
        });
        let cost_key = expected::with_second_encoder(inputs, cost_key)?;
        let tasks = count.div_ceil(batch.max(1)) as u64;
        // Text, decoding and loading took about as long as four steps of the demo.
        let steps = match self.denoised_at {
            Some(at) => {
                let all = ScheduleConfig::load(inputs.path("scheduler")?)?.num_train_timesteps as usize;
                (self.steps * all.saturating_sub(at)).div_ceil(all)
            }
            None => self.steps,
        };
        let (steps, extra) = (tasks * steps as u64, tasks * 4);
        Ok(Estimate {
            parts: outputs.iter().filter_map(|(_, form)| form.bytes()).sum(),
            outputs: outputs.map(|(port, form)| (port.to_owned(), form)).into(),
            work: Some(WorkSize { steps, extra, tasks, cost_key }),
        })
    }

    fn accept(&self, inputs: &Inputs, outputs: &Outputs) -> anyhow::Result<&'static str> {
        check_outputs::queries(inputs, captions(self, inputs.get(CAPTIONS))?.len(), outputs)?;
        Ok("shapes, element types, finite values, and that the images can be read")
    }
}

fn cut(params: &SampleParams, captions: &[String]) -> Vec<Unit> {
    let size = params.batch_size;
    let unit = |(batch, captions): (usize, &[String])| {
        let (first, end) = (batch * size, batch * size + captions.len());
        let range = json!({ "first": first, "captions": captions });
        Unit { name: format!("captions {first}..{end}"), range, steps: params.steps as u64 }
    };
    captions.chunks(size).enumerate().map(unit).collect()
}

impl Compute for SampleParams {
    fn run(&self, task: &Task, cx: &Context<'_>) -> anyhow::Result<()> {
        let Task { inputs, out, .. } = task;
        let range = &task.unit()?.range;
        let first: usize = serde_json::from_value(range["first"].clone())?;
        let captions: Vec<String> = serde_json::from_value(range[CAPTIONS].clone())?;
        let _no_grad = tch::no_grad_guard();
        let [with, without] = with_text_model(inputs, cx.device, |model| {
            let mut cut = Counted::default();
            for caption in &captions {
                cut.count(model.is_cut(caption)?, caption);
            }
            cut.line(CUT.0, CUT.1).iter().for_each(|line| tracing::warn!("{line}"));
            let [with, empty] = model.prompts(&captions)?;
            if !model.has_two() {
                return Ok([with, empty].map(|texts| texts.rows(Sizes::default())));
            }
            let empty = if self.force_zeros_for_empty_prompt { empty.zeros() } else { empty };
            let (height, width) = pixels(inputs)?;
            // As drawn: of this size, and not cropped.
            Ok([with, empty].map(|texts| texts.rows([height, width, 0, 0, height, width])))
        })?; // [n, L, D], [1, L, D]
        write(out, TEXTS, &with.unsqueeze(1))?;
        let latents = draw(self, inputs, [with, without], first, cx)?; // [n, C, H, W]
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
        let stage = SampleParams { steps: steps as usize, ..self.clone() };
        let units = cut(&stage, &captions(&stage, given.get(CAPTIONS))?).into_iter().take(1).collect();
        Ok(Trial { stage: Box::new(stage), inputs: given, units, steps, merges: false })
    }
}

/// What to draw.
fn captions(params: &SampleParams, file: Option<&Path>) -> anyhow::Result<Vec<String>> {
    Ok(match file {
        Some(path) => list::read(path)?,
        None => params.caption.iter().cloned().collect(),
    })
}

/// Height and width of a picture.
fn pixels(inputs: &Inputs) -> anyhow::Result<(u32, u32)> {
    let unet = check_inputs::unet(inputs.path("unet"))?;
    let scale = VaeConfig::read(&inputs.path("vae").join("config.json"))?.scale();
    let [_, height, width] =
        unet.latent_shape().context("the network's config.json gives no size of latents")?;
    let scaled = |side: i64| u32::try_from(side * i64::from(scale));
    Ok((scaled(height)?, scaled(width)?))
}

/// The latents [n, C, H, W] of texts, one after the other and the empty one, from place `first` on.
fn draw(
    params: &SampleParams,
    inputs: &Inputs,
    texts: [Tensor; 2],
    first: usize,
    cx: &Context<'_>,
) -> anyhow::Result<Tensor> {
    let schedule = NoiseSchedule::load(inputs.path("scheduler"))?;
    let (total, micro_batch) = (params.steps as u64, cx.effective_micro_batch());
    let progress = &mut |done| cx.progress(done as u64, total);
    with_unet(inputs, None, cx.device, ModelMode::Inference(Precision::Fp32), |unet| {
        let [with, without] = &texts.map(|rows| unet.conditioning(rows));
        let latents = match params.noise {
            Noise::PerImage | Noise::PerImagePhilox => {
                sample_each(unet, &schedule, with, without, params, first, micro_batch, progress)
            }
            Noise::PerBatch => {
                let mut draws = Generator::seeded(params.seed.into());
                for _ in 0..first / params.batch_size {
                    skip_batch(unet, &schedule, params, &mut draws)?;
                }
                sample(unet, &schedule, with, without, params, &mut draws, micro_batch, progress)
            }
        };
        latents.map_err(|error| match error {
            MathError::LatentsNotFinite { row, timestep } => anyhow::anyhow!(
                "the latents of caption {} are not finite after the step at timestep {timestep}",
                first + row
            ),
            error => error.into(),
        })
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
    let count = latents.size()[0] as usize;
    with_vae(inputs, cx.device, |vae| {
        in_micro_batches(count, cx.effective_micro_batch().min(DECODED), |row, most| {
            let some = latents.narrow(0, row as i64, most as i64) / vae.scaling_factor();
            let images = vae.decode(&some).to_device(Device::Cpu); // [most, 3, H, W]
            let (height, width) = (images.size()[2] as u32, images.size()[3] as u32);
            for place in 0..most {
                let pixels = values(&images.get(place as i64));
                let name = format!("{}.png", first + row + place);
                save_png(&from_unit(&pixels, width, height), folder.join(name))?;
            }
            Ok((most, ()))
        })
    })?;
    Ok(())
}

fn write(out: &Path, name: &str, tensor: &Tensor) -> anyhow::Result<()> {
    let shape: Vec<usize> = tensor.size().iter().map(|&size| size as usize).collect();
    Ok(writer::write_f32(out.join(name), &shape, &values(tensor))?)
}
