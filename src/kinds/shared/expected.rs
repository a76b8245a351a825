//! Expected shapes of inputs and outputs, and made-up inputs for measurements.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use image::RgbImage;
use serde::Deserialize;
use serde_json::Value as Json;
use tch::Tensor;

use super::parameters::Parameters;
use super::tensors;
use crate::io::image::{save_jpeg, save_png};
use crate::io::json;
use crate::io::npy::writer::NpyWriter;
use crate::io::npy::{Dtype, Npy};
use crate::io::tensor_file::Header;
use crate::method::selection::Selection;
use crate::models::clip::text::ClipConfig;
use crate::models::unet::{Precision, text_rows};
use crate::models::weights::checkpoint;
use attrflow_engine::kind::{ArtifactShape, ExpectedInputs, Inputs};

/// An array of a training set, or of queries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Array {
    /// Lengths of its axes.
    pub shape: Vec<usize>,
    /// Bytes per number.
    pub bytes: usize,
}

/// The array on a port: from its header, or as expected.
pub(crate) fn array(inputs: &ExpectedInputs, port: &str) -> anyhow::Result<Array> {
    array_of(inputs, port, 4)
}

/// The same with another number of axes.
pub(crate) fn array_of(inputs: &ExpectedInputs, port: &str, axes: usize) -> anyhow::Result<Array> {
    let found = match inputs.shape(port)? {
        ArtifactShape::Array { shape, bytes } => Array { shape: shape.clone(), bytes: *bytes },
        ArtifactShape::Path(path) => {
            let header = Npy::header(path)?;
            Array { bytes: header.dtype.size(), shape: header.shape }
        }
        ArtifactShape::Like { .. } | ArtifactShape::Bytes(_) => {
            anyhow::bail!("the shape of the input `{port}` is unknown")
        }
    };
    anyhow::ensure!(found.shape.len() == axes, "`{port}` has {} axes, expected {axes}", found.shape.len());
    Ok(found)
}

/// The arrays on `latents` [rows, C, H, W] and `text_embeddings` [N, captions, L, D].
pub(crate) fn arrays(inputs: &ExpectedInputs) -> anyhow::Result<(Array, Array)> {
    Ok((array(inputs, "latents")?, array(inputs, "text_embeddings")?))
}

/// The `config.json` in the folder on a port: the time per step depends on it.
pub(crate) fn config(inputs: &ExpectedInputs, port: &str) -> anyhow::Result<Json> {
    let file = inputs.path(port)?.join("config.json");
    Ok(json::read(&file)?)
}

/// Adds the second text encoder to what the time of texts depends on, where there is one.
pub(crate) fn with_second_encoder(inputs: &ExpectedInputs, mut cost_key: Json) -> anyhow::Result<Json> {
    if inputs.connected("text_encoder_2") {
        cost_key["text_encoder_2"] = config(inputs, "text_encoder_2")?;
    }
    Ok(cost_key)
}

/// Notes a precision other than float32, which takes another time.
pub(crate) fn at_precision(cost_key: &mut Json, precision: Precision) {
    if precision != Precision::Fp32 {
        cost_key["precision"] = serde_json::json!(precision);
    }
}

/// The shape [C, side, side] of the latent of a square image, from the autoencoder's configuration.
pub(crate) fn latent(inputs: &ExpectedInputs, pixels: usize) -> anyhow::Result<[usize; 3]> {
    let scale = scale(inputs)?;
    let channels = config(inputs, "vae")?["latent_channels"].as_u64().unwrap_or(4);
    Ok([channels as usize, pixels / scale, pixels / scale])
}

/// Image pixels per latent pixel, along one side.
pub(crate) fn scale(inputs: &ExpectedInputs) -> anyhow::Result<usize> {
    let blocks = config(inputs, "vae")?["block_out_channels"].as_array().map_or(0, Vec::len);
    anyhow::ensure!(blocks > 0, "the configuration on `vae` has no `block_out_channels`");
    Ok(1 << (blocks - 1))
}

/// The shape [L, D] of a text, from the configurations of tokenizer and text encoders.
pub(crate) fn text(inputs: &ExpectedInputs) -> anyhow::Result<[usize; 2]> {
    let file = inputs.path("tokenizer")?.join("tokenizer_config.json");
    let tokenizer: Json = json::read(&file)?;
    let first = config(inputs, "text_encoder")?;
    let number = |config: &Json, key: &str| {
        let found = config[key].as_u64().map(|number| number as usize);
        found
            .with_context(|| format!("the configuration of the tokenizer or the text encoder has no `{key}`"))
    };
    let (length, width) = (number(&tokenizer, "model_max_length")?, number(&first, "hidden_size")?);
    if !inputs.connected("text_encoder_2") {
        return Ok([length, width]);
    }
    let second = config(inputs, "text_encoder_2")?;
    let width = width + number(&second, "hidden_size")?;
    let pooled = ClipConfig::read(&inputs.path("text_encoder_2")?.join("config.json"))?.projection_width();
    Ok([length + text_rows::added_rows(pooled, width as i64) as usize, width])
}

/// The selected tensors of the network on `unet`, in a file with this many bytes per number.
pub(crate) fn selected(
    inputs: &ExpectedInputs,
    selection: &Selection,
    bytes: u64,
) -> anyhow::Result<ArtifactShape> {
    /// Approximate bytes per tensor in the header of a file.
    const NAME: u64 = 150;
    let network = Parameters::expected(inputs, selection)?;
    let sizes = network.selected().map(|header| header.shape.iter().product::<usize>() as u64 * bytes + NAME);
    Ok(ArtifactShape::Bytes(sizes.sum()))
}

/// Writes an array of `rows` rows, with the row shape and dtype of `like`, for a port.
///
/// Its numbers resemble a normal distribution: some hardware multiplies zeros faster.
pub(crate) fn make_array(
    inputs: &mut Inputs,
    port: &str,
    like: &Array,
    rows: usize,
    folder: &Path,
) -> anyhow::Result<()> {
    let dtype = if like.bytes == 2 { Dtype::F16 } else { Dtype::F32 };
    let path = folder.join(format!("{port}.npy"));
    let shape = [&[rows], &like.shape[1..]].concat();
    let row: usize = like.shape[1..].iter().product();
    let mut writer = NpyWriter::create(&path, dtype, &shape)?;
    for at in 0..rows {
        let values: Vec<f32> = (0..row).map(|place| normal_like(at * row + place)).collect();
        writer.write_f32(&values)?;
    }
    writer.finish()?;
    inputs.0.insert(port.to_owned(), path);
    Ok(())
}

/// Writes a captions file of so many images for the port `captions`.
pub(crate) fn make_captions(inputs: &mut Inputs, images: usize, folder: &Path) -> anyhow::Result<()> {
    let entries = |entry: fn(usize) -> Json| (0..images).map(entry).collect::<Vec<_>>();
    let text = serde_json::json!({
        "images": entries(|image| serde_json::json!({ "id": image, "file_name": format!("{image}.png") })),
        "annotations": entries(|image| serde_json::json!({ "image_id": image, "caption": "an image" })),
    });
    let path = folder.join("captions.json");
    fs_err::write(&path, text.to_string())?;
    inputs.0.insert("captions".to_owned(), path);
    Ok(())
}

/// Writes arrays of `rows` rows for `latents` and `text_embeddings`, unless both exist; returns whether it did.
pub(crate) fn make_arrays(
    inputs: &mut Inputs,
    [latents, texts]: [&Array; 2],
    rows: usize,
    folder: &Path,
) -> anyhow::Result<bool> {
    let missing = ["latents", "text_embeddings"].iter().any(|port| inputs.get(port).is_none());
    if missing {
        make_array(inputs, "latents", latents, rows, folder)?;
        make_array(inputs, "text_embeddings", texts, rows, folder)?;
    }
    Ok(missing)
}

/// A number that resembles a random one, without a generator: no result depends on it.
fn normal_like(place: usize) -> f32 {
    let uniform = |step: f64| (place as f64 * step).fract() - 0.5;
    (2.4 * (uniform(0.618_033_988_749) + uniform(0.754_877_666_247) + uniform(0.569_840_290_998))) as f32
}

/// Writes a file with the selected tensors of the network for a port: unchanged, or all ones in float64.
pub(crate) fn make_weights(
    inputs: &mut Inputs,
    port: &str,
    selection: &Selection,
    ones: Option<(&str, String)>,
    folder: &Path,
) -> anyhow::Result<()> {
    let tensors = match ones {
        Some(_) => {
            let one = |header: &Header| {
                let shape: Vec<i64> = header.shape.iter().map(|&size| size as i64).collect();
                (header.name.clone(), Tensor::ones(&shape, (tch::Kind::Double, tch::Device::Cpu)))
            };
            Parameters::of(inputs, selection)?.selected().map(one).collect()
        }
        None => {
            let all = checkpoint::read(&checkpoint::of(inputs.path("unet"), inputs.get("checkpoint"))?)?;
            let chosen = all.into_iter().filter(|(name, _)| selection.matches(name));
            chosen.map(|(name, tensor)| (name, tensor.to_kind(tch::Kind::Float))).collect()
        }
    };
    let path = folder.join(format!("{port}.safetensors"));
    tensors::write(&path, &tensors, ones.as_slice())?;
    inputs.0.insert(port.to_owned(), path);
    Ok(())
}

#[derive(Deserialize)]
struct Sizes {
    images: Vec<Size>,
}

#[derive(Deserialize)]
struct Size {
    width: Option<u32>,
    height: Option<u32>,
}

/// Writes a folder of made-up images with these names for the port `images`, with the sizes of the captions file, or of
/// typical photographs.
pub(crate) fn make_images<'a>(
    inputs: &mut Inputs,
    names: impl Iterator<Item = &'a str>,
    pixels: u32,
    folder: &Path,
) -> anyhow::Result<()> {
    let sizes = json::read::<Sizes>(inputs.path("captions")).map(|sizes| sizes.images).unwrap_or_default();
    let images = folder.join("images");
    for (place, name) in names.enumerate() {
        let size = sizes.get(place).and_then(|size| Some((size.width?, size.height?)));
        let (width, height) = size.unwrap_or((pixels * 4, pixels * 3));
        let shade = |x: u32, y: u32, by: u32| (x.wrapping_mul(by) ^ y.wrapping_mul(by + 5)) as u8;
        let image = RgbImage::from_fn(width.max(1), height.max(1), |x, y| {
            image::Rgb([shade(x, y, 3), shade(x, y, 7), shade(x, y, 11)])
        });
        let path: PathBuf = images.join(name);
        fs_err::create_dir_all(path.parent().unwrap_or(&images))?;
        match path.extension().is_some_and(|ending| ending == "png") {
            true => save_png(&image, &path)?,
            false => save_jpeg(&image, &path)?,
        }
    }
    inputs.0.insert("images".to_owned(), images);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_up_numbers_are_spread_like_drawn_ones() {
        let values: Vec<f64> = (0..10_000).map(|place| f64::from(normal_like(place))).collect();
        let mean = values.iter().sum::<f64>() / 1e4;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / 1e4;
        assert!(mean.abs() < 0.05 && (0.5..2.0).contains(&variance), "{mean} {variance}");
    }

    #[test]
    fn arrays_are_made_as_they_will_be() {
        let folder = tempfile::tempdir().unwrap();
        let like = Array { shape: vec![900, 5, 7, 8], bytes: 2 };
        let mut inputs = Inputs::default();
        make_array(&mut inputs, "text_embeddings", &like, 3, folder.path()).unwrap();
        let header = Npy::header(inputs.path("text_embeddings")).unwrap();
        assert_eq!((header.shape, header.dtype), (vec![3, 5, 7, 8], Dtype::F16));
    }
}
