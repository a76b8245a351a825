//! The project of a self-check: ten pictures and a tiny model, drawn by a rule, so that no file has to be shipped.
//!
//! `tests/golden/make_self_check.py` draws the same project with diffusers and transformers, and computes from it what a run
//! must give.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use attrflow_statistics::random::Random;
use image::{Rgb, RgbImage};
use safetensors::tensor::{Dtype, TensorView};
use serde::Deserialize;
use serde_json::Value as Json;

use crate::io::image::save_png;

/// The pipeline's file in the project.
pub(super) const PIPELINE: &str = "pipelines/self-check.toml";

const TEXTS: [(&str, &str); 2] =
    [(PIPELINE, include_str!("pipeline.toml")), ("configs/self-check.toml", include_str!("config.toml"))];

/// All other files, by path.
#[derive(Deserialize)]
struct Project {
    /// Captions, configurations and the tokenizer: JSON, or text as it is.
    files: BTreeMap<String, Json>,
    /// The shape of each weight of a network.
    weights: BTreeMap<String, BTreeMap<String, Vec<usize>>>,
    pictures: Pictures,
}

#[derive(Deserialize)]
struct Pictures {
    files: Vec<String>,
    /// Width and height.
    size: [u32; 2],
}

/// Writes the project into an empty folder.
pub(super) fn write(folder: &Path) -> anyhow::Result<()> {
    let project: Project = serde_json::from_str(include_str!("project.json")).context("project.json")?;
    for (name, text) in TEXTS {
        fs_err::write(place(folder, name)?, text)?;
    }
    for (name, content) in &project.files {
        let text = content.as_str().map_or_else(|| content.to_string(), str::to_owned);
        fs_err::write(place(folder, name)?, text)?;
    }
    for (name, shapes) in &project.weights {
        fs_err::write(place(folder, name)?, weights(shapes)?)?;
    }
    let Pictures { files, size: [width, height] } = project.pictures;
    for (image, name) in (0..).zip(&files) {
        let picture = RgbImage::from_fn(width, height, |x, y| Rgb([0, 1, 2].map(|c| pixel(image, x, y, c))));
        save_png(&picture, place(folder, name)?)?;
    }
    Ok(())
}

/// A path in the project, in a folder that is there.
fn place(folder: &Path, name: &str) -> std::io::Result<PathBuf> {
    let path = folder.join(name);
    path.parent().map_or(Ok(()), fs_err::create_dir_all)?;
    Ok(path)
}

/// Stripes of another direction in each picture, and of another width in each colour.
fn pixel(image: u32, x: u32, y: u32, color: u32) -> u8 {
    ((x * (5 + 3 * image) + y * (11 + 2 * color) + 40 * image * (color + 1)) % 256) as u8
}

/// A network's weights in the safetensors format: each has a stream of random numbers of its own, by its name.
fn weights(shapes: &BTreeMap<String, Vec<usize>>) -> anyhow::Result<Vec<u8>> {
    let drawn: Vec<Vec<u8>> = shapes.iter().map(|(name, shape)| draw(name, shape)).collect();
    let views = shapes
        .iter()
        .zip(&drawn)
        .map(|((name, shape), bytes)| Ok((name, TensorView::new(Dtype::F32, shape.clone(), bytes)?)));
    Ok(safetensors::serialize(views.collect::<anyhow::Result<Vec<_>>>()?, None)?)
}

/// Uniform numbers. A map's outputs are about as large as its inputs, a norm is nearly the identity, and a bias is small.
fn draw(name: &str, shape: &[usize]) -> Vec<u8> {
    let mut random = Random::new(name, 0);
    let (middle, spread) = match shape {
        [_, fan_in @ ..] if !fan_in.is_empty() => {
            (0.0, (3.0 / fan_in.iter().product::<usize>() as f64).sqrt())
        }
        _ if name.ends_with("weight") => (1.0, 0.1),
        _ => (0.0, 0.1),
    };
    let count: usize = shape.iter().product();
    (0..count)
        .flat_map(|_| ((middle + spread * (2.0 * random.uniform() - 1.0)) as f32).to_le_bytes())
        .collect()
}
