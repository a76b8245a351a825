//! Encodes images and captions for the network: latents and text embeddings.

mod encode;
mod notes;

use std::path::{Path, PathBuf};

use super::shared::check_outputs::Outputs;
use super::shared::network::{
    LORA, TEXT_ENCODER, TEXT_ENCODER_2, TOKENIZER, TOKENIZER_2, VAE, with_text_model, with_vae,
};
use super::shared::{check_inputs, check_outputs, device, expected, ranges};
use crate::io::captions::coco::Captions;
use crate::io::npy::{Dtype, writer};
use attrflow_engine::config::param::Validate;
use attrflow_engine::kind::{
    ArtifactShape, Compute, Context, Estimate, ExpectedInputs, Input, Inputs, Kind, KindInfo, Output, Stage,
    Task, Trial, Unit, Units, WorkSize,
};
use attrflow_engine::{choice, params};
use encode::{write_latents, write_texts};
use notes::{NOTES, Notes, unlisted};
use serde_json::json;

choice! {
    /// The latent of an image.
    pub enum Posterior {
        /// A sample from the autoencoder's posterior, as in training.
        Sample = "sample",
        /// Its mode.
        Mode = "mode",
    }
}

choice! {
    /// How text embeddings are stored.
    pub enum StorageDtype {
        /// Four bytes per number.
        Float32 = "float32",
        /// Two bytes per number, as published.
        Float16 = "float16",
    }
}

impl StorageDtype {
    fn dtype(self) -> Dtype {
        match self {
            StorageDtype::Float32 => Dtype::F32,
            StorageDtype::Float16 => Dtype::F16,
        }
    }
}

choice! {
    /// What transparent pixels of training images become.
    pub enum Transparent {
        /// Their colour without alpha, as published.
        Drop = "drop",
        /// A blend with white.
        White = "white",
    }
}

choice! {
    /// What is done with the EXIF orientation of training images.
    pub enum Orient {
        /// Nothing, as published.
        Ignore = "ignore",
        /// The image is turned as it says.
        Apply = "apply",
    }
}

params! {
    /// Parameters of `latents`.
    pub struct Latents {
        /// Side of the square images in pixels: the shorter side is resized to it, then the centre is cropped.
        pixels: u32 [8..=4096] = 128,
        /// Number of captions per image; the first ones are used.
        captions: u32 [1..=1000] = 5,
        /// `sample`: a sample from the posterior, as in training; `mode`: its mode.
        posterior: Posterior = Posterior::Sample,
        /// Also give mean and standard deviation of each latent, for `train`.
        moments: bool = false,
        /// Seed of the posterior's samples; each image and mirror image has its own stream.
        seed: u32 = 0,
        /// How text embeddings are stored.
        text_dtype: StorageDtype = StorageDtype::Float32,
        /// Transparent pixels: `drop` drops alpha without blending, as published; `white` blends with white.
        transparency: Transparent = Transparent::Drop,
        /// The EXIF orientation: `ignore` ignores it, as published; `apply` turns the image.
        orientation: Orient = Orient::Ignore,
    }
}

impl Validate for Latents {
    const RENAMED: &'static [(&'static str, &'static str)] = &[("text_precision", "text_dtype")];
}

const PLAIN: &str = "plain.npy";
const FLIPPED: &str = "flipped.npy";
const TEXTS: &str = "text_embeddings.npy";
const MOMENTS: &str = "moments.npy";
/// The moments of images, and of mirror images, in a unit.
const MOMENTS_OF: [&str; 2] = ["plain_moments.npy", "flipped_moments.npy"];

impl Kind for Latents {
    const INFO: KindInfo = KindInfo {
        inputs: &[
            Input::new("images", "the folder of training images"),
            Input::new("captions", "a captions file in COCO's layout"),
            VAE,
            TEXT_ENCODER,
            TOKENIZER,
            TEXT_ENCODER_2,
            TOKENIZER_2,
            LORA,
        ],
        outputs: &[
            Output::new("latents", "latents.npy", "float32 [2N, C, H, W]: images, then mirror images"),
            Output::new(
                "text_embeddings",
                TEXTS,
                "float [N, captions, L, D]; with two text encoders, the last row holds the pooled text and the image's sizes",
            ),
            Output::new(
                "moments",
                MOMENTS,
                "float32 [2N, 2, C, H, W]: mean and standard deviation of each latent",
            )
            .enabled_by("moments"),
        ],
        ..KindInfo::new::<Self>("latents", 3, "training images and captions as latents and text embeddings")
    };
}

impl Stage for Latents {
    fn check(&self, connected: &dyn Fn(&str) -> bool) -> Vec<(String, String)> {
        check_inputs::second_encoder(connected)
    }

    fn validate_inputs(&self, inputs: &Inputs) -> anyhow::Result<()> {
        check_inputs::networks(inputs)?;
        self.units(inputs).map(drop)
    }

    fn units(&self, inputs: &Inputs) -> anyhow::Result<Units> {
        let captions = Captions::read(inputs.path("captions"), self.captions as usize)?;
        captions.check_files(inputs.path("images"))?;
        Ok(Units::Independent(split(captions.items.len())))
    }

    fn estimate(&self, inputs: &ExpectedInputs) -> anyhow::Result<Estimate> {
        let Self {
            pixels,
            captions,
            posterior: _,
            moments,
            seed: _,
            text_dtype,
            transparency: _,
            orientation: _,
        } = self;
        let images = Captions::read(inputs.path("captions")?, *captions as usize)?.items.len();
        let [channels, side, _] = expected::latent(inputs, *pixels as usize)?;
        let [length, width] = expected::text(inputs)?;
        let texts = vec![images, *captions as usize, length, width];
        let mut outputs = vec![
            ("latents", ArtifactShape::Array { shape: vec![2 * images, channels, side, side], bytes: 4 }),
            ("text_embeddings", ArtifactShape::Array { shape: texts, bytes: text_dtype.dtype().size() }),
        ];
        let shape = vec![2 * images, 2, channels, side, side];
        outputs.extend(moments.then_some(("moments", ArtifactShape::Array { shape, bytes: 4 })));
        let cost_key = json!({
            "pixels": pixels,
            "captions": captions,
            "precision": text_dtype,
            "images": images,
            "vae": expected::config(inputs, "vae")?,
            "text_encoder": expected::config(inputs, "text_encoder")?,
        });
        let cost_key = expected::with_second_encoder(inputs, cost_key)?;
        Ok(Estimate {
            parts: outputs.iter().filter_map(|(_, form)| form.bytes()).sum(),
            outputs: outputs.into_iter().map(|(port, form)| (port.to_owned(), form)).collect(),
            work: Some(WorkSize {
                steps: images as u64,
                tasks: split(images).len() as u64,
                cost_key,
                ..WorkSize::default()
            }),
        })
    }

    fn accept(&self, inputs: &Inputs, outputs: &Outputs) -> anyhow::Result<&'static str> {
        check_outputs::training_set(inputs, self.captions as usize, self.text_dtype.dtype(), outputs)?;
        Ok("shapes, element types and finite values")
    }
}

fn split(images: usize) -> Vec<Unit> {
    ranges::units("images", images, 8)
}

impl Compute for Latents {
    fn run(&self, task: &Task, cx: &Context<'_>) -> anyhow::Result<()> {
        let Task { inputs, out, .. } = task;
        let range = ranges::range(task.unit()?, "images")?;
        let captions = Captions::read(inputs.path("captions"), self.captions as usize)?;
        let items = &captions.items[range.clone()];
        let _no_grad = tch::no_grad_guard();
        let total = range.len() as u64;
        let progress = |done| cx.progress(done, total);
        let (mut notes, sizes) = with_vae(inputs, cx.device, |vae| {
            let vae = (vae, device::torch(cx.device));
            write_latents(self, inputs, (items, range.start), vae, out, &progress)
        })?;
        with_text_model(inputs, cx.device, |model| {
            write_texts(self, (items, &sizes), model, out, &mut notes)
        })?;
        Ok(fs_err::write(out.join(NOTES), serde_json::to_vec(&notes)?)?)
    }

    fn merge(&self, task: &Task, parts: &[PathBuf], _: &Context<'_>) -> anyhow::Result<()> {
        let Task { inputs, out, .. } = task;
        let mut notes = Notes::default();
        for part in parts {
            notes.add(serde_json::from_slice(&fs_err::read(part.join(NOTES))?)?);
        }
        notes.unlisted = unlisted(inputs)?;
        notes.lines(self).iter().for_each(|line| tracing::warn!("{line}"));
        let each = |name: &str| parts.iter().map(|part| part.join(name)).collect::<Vec<_>>();
        let latents = [each(PLAIN), each(FLIPPED)].concat();
        writer::concat(&latents, out.join("latents.npy"))?;
        writer::concat(&each(TEXTS), out.join(TEXTS))?;
        if self.moments {
            writer::concat(&MOMENTS_OF.map(each).concat(), out.join(MOMENTS))?;
        }
        Ok(())
    }

    fn trial(
        &self,
        inputs: &ExpectedInputs,
        steps: u64,
        folder: &Path,
        _: &Context<'_>,
    ) -> anyhow::Result<Trial> {
        let captions = Captions::read(inputs.path("captions")?, self.captions as usize)?;
        let count = captions.items.len().min(steps as usize);
        let mut given = inputs.inputs();
        if given.get("images").is_none() {
            let names = captions.items[..count].iter().map(|item| item.file_name.as_str());
            expected::make_images(&mut given, names, self.pixels, folder)?;
        }
        let (range, steps) = (json!({ "images": [0, count] }), count as u64);
        let units = vec![Unit { name: "a trial".into(), range, steps }];
        Ok(Trial { stage: Box::new(self.clone()), inputs: given, units, steps, merges: true })
    }
}
