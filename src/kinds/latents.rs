//! Encodes images and captions for the network: latents and text embeddings.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tch::{Device, Tensor};

use super::shared::arrays::values;
use super::shared::check_outputs::Outputs;
use super::shared::counted::{CUT, Counted};
use super::shared::network::{TEXT_ENCODER, TOKENIZER, VAE, with_text_model, with_vae};
use super::shared::text::TextModel;
use super::shared::{check_inputs, check_outputs, device, expected, ranges};
use crate::io::captions::coco::{Captions, Item};
use crate::io::image::resize::shorter_side;
use crate::io::image::{Loaded, Reading, Transparency, center_crop, load, to_unit};
use crate::io::npy::Dtype;
use crate::io::npy::writer::{self, NpyWriter};
use crate::method::noise::{Generator, derived_seed};
use crate::models::vae::Vae;
use attrflow_engine::config::param::Validate;
use attrflow_engine::kind::{
    ArtifactShape, Compute, Context, Estimate, ExpectedInputs, Input, Inputs, Kind, KindInfo, Output, Stage,
    Task, Trial, Unit, Units, WorkSize,
};
use attrflow_engine::store::names;
use attrflow_engine::{choice, params};
use serde::{Deserialize, Serialize};
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

impl Kind for Latents {
    const INFO: KindInfo = KindInfo {
        inputs: &[
            Input::new("images", "the folder of training images"),
            Input::new("captions", "a captions file in COCO's layout"),
            VAE,
            TEXT_ENCODER,
            TOKENIZER,
        ],
        outputs: &[
            Output::new("latents", "latents.npy", "float32 [2N, C, H, W]: images, then mirror images"),
            Output::new("text_embeddings", TEXTS, "float [N, captions, L, D]"),
        ],
        ..KindInfo::new::<Self>("latents", 3, "training images and captions as latents and text embeddings")
    };
}

impl Stage for Latents {
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
        let Self { pixels, captions, posterior: _, seed: _, text_dtype, transparency: _, orientation: _ } =
            self;
        let images = Captions::read(inputs.path("captions")?, *captions as usize)?.items.len();
        let [channels, side, _] = expected::latent(inputs, *pixels as usize)?;
        let [length, width] = expected::text(inputs)?;
        let texts = vec![images, *captions as usize, length, width];
        let outputs = [
            ("latents", ArtifactShape::Array { shape: vec![2 * images, channels, side, side], bytes: 4 }),
            ("text_embeddings", ArtifactShape::Array { shape: texts, bytes: text_dtype.dtype().size() }),
        ];
        let cost_key = json!({
            "pixels": pixels,
            "captions": captions,
            "precision": text_dtype,
            "images": images,
            "vae": expected::config(inputs, "vae")?,
            "text_encoder": expected::config(inputs, "text_encoder")?,
        });
        Ok(Estimate {
            parts: outputs.iter().filter_map(|(_, form)| form.bytes()).sum(),
            outputs: outputs.map(|(port, form)| (port.to_owned(), form)).into(),
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
        let mut notes = Notes::default();
        with_vae(inputs, cx.device, |vae| {
            let vae = (vae, device::torch(cx.device));
            notes = write_latents(self, inputs, (items, range.start), vae, out, &progress)?;
            Ok(())
        })?;
        with_text_model(inputs, cx.device, |model| write_texts(self, items, model, out, &mut notes))?;
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
        let unit = Some(Unit { name: "a trial".into(), range, steps });
        Ok(Trial { stage: Box::new(self.clone()), inputs: given, unit, steps, merges: true })
    }
}

/// The file of a unit's notes.
const NOTES: &str = "notes.json";

/// What of the data set is computed in another way than it may seem.
#[derive(Default, Serialize, Deserialize)]
struct Notes {
    transparent: Counted,
    turned: Counted,
    cut: Counted,
    #[serde(skip)]
    unlisted: Counted,
}

impl Notes {
    fn add(&mut self, other: Notes) {
        self.transparent.add(other.transparent);
        self.turned.add(other.turned);
        self.cut.add(other.cut);
    }

    /// The notes for people.
    fn lines(&self, params: &Latents) -> Vec<String> {
        let Latents { transparency, orientation, .. } = params;
        let kinds = [
            (
                &self.transparent,
                "images with transparent pixels",
                match transparency {
                    Transparent::Drop => "alpha is dropped (`transparency`)",
                    Transparent::White => "blended with white (`transparency`)",
                },
            ),
            (
                &self.turned,
                "images with an EXIF orientation",
                match orientation {
                    Orient::Ignore => "it is ignored (`orientation`)",
                    Orient::Apply => "they are turned (`orientation`)",
                },
            ),
            (&self.cut, CUT.0, CUT.1),
            (&self.unlisted, "images that the captions file does not name", "they are left out"),
        ];
        let present = kinds.into_iter().filter_map(|(counted, what, how)| counted.line(what, how));
        present.collect()
    }
}

/// Images of the folder that the captions file does not name.
fn unlisted(inputs: &Inputs) -> anyhow::Result<Counted> {
    let captions = Captions::read_all(inputs.path("captions"))?;
    let listed: HashSet<&str> = captions.items.iter().map(|item| item.file_name.as_str()).collect();
    let mut names = names(inputs.path("images"))?;
    names.retain(|name| {
        let extension =
            Path::new(name).extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        matches!(extension.to_ascii_lowercase().as_str(), "png" | "jpg" | "jpeg")
            && !listed.contains(name.as_str())
    });
    let mut unlisted = Counted::default();
    names.iter().for_each(|name| unlisted.count(true, name));
    Ok(unlisted)
}

/// Encodes each image and its mirror image, one at a time, so that results do not depend on the batch.
fn write_latents(
    params: &Latents,
    inputs: &Inputs,
    (items, first): (&[Item], usize),
    (vae, device): (&Vae, Device),
    out: &Path,
    progress: &dyn Fn(u64),
) -> anyhow::Result<Notes> {
    let mut notes = Notes::default();
    let reading = Reading {
        transparency: match params.transparency {
            Transparent::Drop => Transparency::Drop,
            Transparent::White => Transparency::White,
        },
        orient: params.orientation == Orient::Apply,
    };
    let side = i64::from(params.pixels);
    let mut writers: [Option<NpyWriter>; 2] = [None, None];
    for (place, item) in items.iter().enumerate() {
        let path = inputs.path("images").join(&item.file_name);
        let Loaded { rgb, transparent, turned } = load(&path, reading)?;
        notes.transparent.count(transparent, &item.file_name);
        notes.turned.count(turned, &item.file_name);
        let rgb = center_crop(&shorter_side(&rgb, params.pixels), params.pixels)
            .with_context(|| path.display().to_string())?;
        for (flip, writer) in writers.iter_mut().enumerate() {
            let pixels = to_unit(&rgb, flip == 1);
            let pixels = Tensor::from_slice(&pixels).view([1, 3, side, side]).to_device(device);
            let posterior = vae.encode(&pixels);
            let latent = match params.posterior {
                Posterior::Mode => posterior.mode(),
                Posterior::Sample => {
                    let place = [i64::from(params.seed), (first + place) as i64, flip as i64];
                    let mut draws = Generator::seeded(derived_seed("posterior", &place));
                    posterior.sample(&draws.normal(&posterior.mode().size(), Device::Cpu).to_device(device))
                }
            };
            let latent = latent * vae.scaling_factor(); // [1, C, H, W]
            let numbers = values(&latent);
            if let Some(at) = numbers.iter().position(|number| !number.is_finite()) {
                anyhow::bail!("{}: its latent contains {} at {at}", path.display(), numbers[at]);
            }
            let writer = match writer {
                Some(writer) => writer,
                None => {
                    let size = latent.size();
                    let shape: Vec<usize> =
                        [items.len() as i64].iter().chain(&size[1..]).map(|&n| n as usize).collect();
                    writer.insert(NpyWriter::create(out.join([PLAIN, FLIPPED][flip]), Dtype::F32, &shape)?)
                }
            };
            writer.write_f32(&numbers)?;
        }
        progress(place as u64 + 1);
    }
    for writer in writers.into_iter().flatten() {
        writer.finish()?;
    }
    Ok(notes)
}

/// Encodes the captions of each image together.
fn write_texts(
    params: &Latents,
    items: &[Item],
    model: &TextModel,
    out: &Path,
    notes: &mut Notes,
) -> anyhow::Result<()> {
    let dtype = params.text_dtype.dtype();
    let mut writer = None;
    for item in items {
        let captions: Vec<&str> = item.captions.iter().map(String::as_str).collect();
        let texts = model.embed(&captions)?; // [captions, L, D]
        for caption in captions {
            notes.cut.count(model.is_cut(caption)?, caption);
        }
        let writer = match &mut writer {
            Some(writer) => writer,
            None => {
                let size = texts.size();
                let shape: Vec<usize> =
                    [items.len() as i64].iter().chain(&size).map(|&n| n as usize).collect();
                writer.insert(NpyWriter::create(out.join(TEXTS), dtype, &shape)?)
            }
        };
        let numbers = values(&texts);
        // What is larger rounds to infinity.
        let limit = if dtype == Dtype::F16 { 65_520.0 } else { f32::INFINITY };
        if let Some(at) = numbers.iter().position(|number| number.abs() >= limit || number.is_nan()) {
            let caption = &item.captions[at * item.captions.len() / numbers.len()];
            let value = numbers[at];
            anyhow::bail!(
                "the text embedding of {caption:?} contains {value}, expected finite values as {dtype}"
            );
        }
        writer.write_f32(&numbers)?;
    }
    match writer {
        Some(writer) => Ok(writer.finish()?),
        None => anyhow::bail!("no images in this unit"),
    }
}
