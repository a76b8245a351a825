//! A query: the image that the model draws for a caption.

use std::path::Path;

use tch::{Device, Tensor};

use super::accept::Outputs;
use super::arrays::values;
use super::latents::embed;
use super::loss::load_unet;
use super::{accept, device};
use crate::io::image::{from_unit, save_png};
use crate::io::npy_writer;
use crate::math::noise::Draws;
use crate::math::sample::{SampleSpec, sample};
use crate::math::schedule::NoiseSchedule;
use crate::nn::clip::TextEncoder;
use crate::nn::tokenizer::Tokenizer;
use crate::nn::vae::Vae;
use crate::param::Validate;
use crate::params;
use crate::stage::{Compute, Context, Input, Inputs, Output, Stage, Unit};

params! {
    /// Parameters of `generate`.
    pub struct Params {
        /// What to draw.
        caption: String,
        /// Denoising steps.
        steps: u32 [1..=1000] = 1000,
        /// How far to go from the prediction without the caption toward, and beyond, the one with it.
        guidance_scale: f64 = 7.5,
        /// Seed of the initial latent and of the noise at each step.
        seed: u32 = 0,
    }
}

impl Validate for Params {}

/// See the module.
pub struct Generate;

impl Stage for Generate {
    type Params = Params;
    const KIND: &'static str = "generate";
    const VERSION: u32 = 1;
    const SUMMARY: &'static str = "an image drawn by the model for a caption";
    const INPUTS: &'static [Input] = &[
        Input::new("unet", "a folder with config.json and a checkpoint (safetensors or torch)"),
        Input::new("scheduler", "a folder with scheduler_config.json"),
        Input::new("vae", "a folder with config.json and a checkpoint (safetensors or torch)"),
        Input::new("text_encoder", "a folder with config.json and a checkpoint (safetensors or torch)"),
        Input::new("tokenizer", "a folder with vocab.json and merges.txt"),
    ];
    const OUTPUTS: &'static [Output] = &[
        Output { name: "image", file: "image.png", doc: "RGB, 8 bit" },
        Output { name: "latents", file: "latents.npy", doc: "float32 [1, C, H, W]" },
        Output { name: "text_embeddings", file: "text_embeddings.npy", doc: "float32 [1, 1, L, D]" },
    ];

    fn accept(_: &Params, inputs: &Inputs, outputs: &Outputs) -> anyhow::Result<()> {
        accept::queries(inputs, 1, outputs)
    }
}

impl Compute for Generate {
    fn run(
        params: &Params,
        inputs: &Inputs,
        _: Option<&Unit>,
        out: &Path,
        cx: &Context<'_>,
    ) -> anyhow::Result<()> {
        let device = device::torch(cx.device);
        let _no_grad = tch::no_grad_guard();
        let tokenizer = Tokenizer::load(inputs.path("tokenizer"))?;
        let encoder = TextEncoder::load(inputs.path("text_encoder"), device)?;
        let texts = embed(&tokenizer, &encoder, &[params.caption.clone(), String::new()], device)?; // [2, L, D]
        let (with, without) = (texts.narrow(0, 0, 1), texts.narrow(0, 1, 1));
        let unet = load_unet(inputs, cx)?;
        let schedule = NoiseSchedule::load(inputs.path("scheduler"))?;
        let steps = params.steps as usize;
        let spec = SampleSpec { steps, guidance_scale: params.guidance_scale, batch_size: 1 };
        let mut draws = Draws::seeded(params.seed.into());
        let progress = &mut |done| (cx.progress)(done as u64, steps as u64);
        let latents = sample(&unet, &schedule, &with, &without, &spec, &mut draws, cx.micro_batch, progress)?;

        let vae = Vae::load(inputs.path("vae"), device)?;
        let image = vae.decode(&(&latents / vae.scaling_factor())).to_device(Device::Cpu); // [1, 3, H, W]
        let (height, width) = (image.size()[2] as u32, image.size()[3] as u32);
        save_png(&from_unit(&values(&image), width, height), out.join("image.png"))?;
        write(out, "latents.npy", &latents)?;
        write(out, "text_embeddings.npy", &with.unsqueeze(0))
    }
}

fn write(out: &Path, name: &str, tensor: &Tensor) -> anyhow::Result<()> {
    let shape: Vec<usize> = tensor.size().iter().map(|&size| size as usize).collect();
    Ok(npy_writer::write_f32(out.join(name), &shape, &values(tensor))?)
}
