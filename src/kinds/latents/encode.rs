//! Images and captions through the autoencoder and the text encoder, into arrays.

use std::path::Path;

use anyhow::Context as _;
use tch::{Device, Tensor};

use super::notes::Notes;
use super::{FLIPPED, Latents, MOMENTS_OF, Orient, PLAIN, Posterior as Sampling, TEXTS, Transparent};
use crate::io::captions::coco::Item;
use crate::io::image::resize::{Filter, shorter_side};
use crate::io::image::{Loaded, Reading, Transparency, center_crop, crop_offset, load, to_unit};
use crate::io::npy::Dtype;
use crate::io::npy::writer::NpyWriter;
use crate::kinds::shared::arrays::values;
use crate::kinds::shared::text::{Sizes, TextModel};
use crate::method::noise::{Generator, derived_seed};
use crate::models::vae::Vae;
use attrflow_engine::kind::Inputs;

/// Encodes each image and its mirror image, one at a time, so that results do not depend on the batch; returns each image's sizes.
pub(super) fn write_latents(
    params: &Latents,
    inputs: &Inputs,
    (items, first): (&[Item], usize),
    (vae, device): (&Vae, Device),
    out: &Path,
    progress: &dyn Fn(u64),
) -> anyhow::Result<(Notes, Vec<Sizes>)> {
    let (mut notes, mut sizes) = (Notes::default(), Vec::new());
    let reading = Reading {
        transparency: match params.transparency {
            Transparent::Drop => Transparency::Drop,
            Transparent::White => Transparency::White,
        },
        orient: params.orientation == Orient::Apply,
    };
    let side = i64::from(params.pixels);
    let mut writers: [Option<NpyWriter>; 2] = [None, None];
    let mut moments: [Option<NpyWriter>; 2] = [None, None];
    for (place, item) in items.iter().enumerate() {
        let path = inputs.path("images").join(&item.file_name);
        let Loaded { rgb, transparent, turned } = load(&path, reading)?;
        notes.transparent.count(transparent, &item.file_name);
        notes.turned.count(turned, &item.file_name);
        let resized = shorter_side(&rgb, params.pixels, Filter::Bilinear);
        let [top, left] = crop_offset(&resized, params.pixels).with_context(|| path.display().to_string())?;
        let own = [rgb.height(), rgb.width(), top, left, params.pixels, params.pixels];
        if inputs.get("text_encoder_2").is_some() && params.text_dtype.dtype() == Dtype::F16 {
            expect_short(&item.file_name, own)?;
        }
        sizes.push(own);
        let rgb = center_crop(&resized, params.pixels).with_context(|| path.display().to_string())?;
        for flip in 0..2 {
            let pixels = to_unit(&rgb, flip == 1);
            let pixels = Tensor::from_slice(&pixels).view([1, 3, side, side]).to_device(device);
            let posterior = vae.encode(&pixels);
            let latent = match params.posterior {
                Sampling::Mode => posterior.mode(),
                Sampling::Sample => {
                    let place = [i64::from(params.seed), (first + place) as i64, flip as i64];
                    let mut draws = Generator::seeded(derived_seed("posterior", &place));
                    posterior.sample(&draws.normal(&posterior.mode().size(), Device::Cpu).to_device(device))
                }
            };
            let latent = latent * vae.scaling_factor(); // [1, C, H, W]
            write(&mut writers[flip], &out.join([PLAIN, FLIPPED][flip]), items.len(), &latent, &path)?;
            if params.moments {
                let both = Tensor::stack(&[posterior.mode(), posterior.std()], 1) * vae.scaling_factor(); // [1, 2, C, H, W]
                write(&mut moments[flip], &out.join(MOMENTS_OF[flip]), items.len(), &both, &path)?;
            }
        }
        progress(place as u64 + 1);
    }
    for writer in writers.into_iter().chain(moments).flatten() {
        writer.finish()?;
    }
    Ok((notes, sizes))
}

/// Appends a row [1, ..] of an image to an array of `count` rows, which is made with the first.
fn write(
    writer: &mut Option<NpyWriter>,
    to: &Path,
    count: usize,
    row: &Tensor,
    image: &Path,
) -> anyhow::Result<()> {
    let numbers = values(row);
    if let Some(at) = numbers.iter().position(|number| !number.is_finite()) {
        anyhow::bail!("{}: its latent contains {} at {at}", image.display(), numbers[at]);
    }
    let writer = match writer {
        Some(writer) => writer,
        None => {
            let size = row.size();
            let shape: Vec<usize> = [count as i64].iter().chain(&size[1..]).map(|&n| n as usize).collect();
            writer.insert(NpyWriter::create(to, Dtype::F32, &shape)?)
        }
    };
    Ok(writer.write_f32(&numbers)?)
}

/// Encodes the captions of each image together.
pub(super) fn write_texts(
    params: &Latents,
    (items, sizes): (&[Item], &[Sizes]),
    model: &TextModel,
    out: &Path,
    notes: &mut Notes,
) -> anyhow::Result<()> {
    let dtype = params.text_dtype.dtype();
    let mut writer = None;
    for (item, sizes) in items.iter().zip(sizes) {
        let captions: Vec<&str> = item.captions.iter().map(String::as_str).collect();
        let texts = model.embed(&captions)?.rows(*sizes); // [captions, L, D]
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

/// Refuses sizes that are no numbers of half precision: they would be rounded.
fn expect_short(name: &str, sizes: Sizes) -> anyhow::Result<()> {
    let is_rounded = |size: &&u32| half::f16::from_f32(**size as f32).to_f32() != **size as f32;
    match sizes.iter().find(is_rounded) {
        None => Ok(()),
        Some(size) => anyhow::bail!(
            "{name}: a size of {size} pixels, which `text_dtype = \"float16\"` would round: set it to \"float32\""
        ),
    }
}
