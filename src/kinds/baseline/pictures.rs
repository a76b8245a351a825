//! Pictures as the rows that baselines compare: pixels, or vectors of CLIP (Radford et al. 2021, arXiv 2103.00020) or DINO (Caron et al.
//! 2021, arXiv 2104.14294).

use std::path::{Path, PathBuf};

use anyhow::ensure;
use tch::{Device, Tensor};

use super::{BaselineParams, CLIP, DINO, PICTURES, count};
use crate::io::captions::coco::Captions;
use crate::io::image::resize::{Filter, shorter_side};
use crate::io::image::{RgbImage, center_crop, load_rgb};
use crate::kinds::shared::device;
use crate::kinds::shared::network::with_folder;
use crate::method::baseline::Baseline;
use crate::method::data::Rows;
use crate::method::error::DataError;
use crate::models::clip::image::{self, ImageEncoder};
use crate::models::dino::{self, VisionTransformer};
use crate::models::vision::PictureEncoder;
use attrflow_engine::kind::{Context, Inputs};

/// Refuses files that do not fit each other.
pub(super) fn validate(params: &BaselineParams, inputs: &Inputs) -> anyhow::Result<()> {
    match params.method {
        Baseline::Clip => image::check_folder(inputs.path(CLIP))?,
        Baseline::Dino => dino::check_folder(inputs.path(DINO))?,
        _ => {}
    }
    training(inputs).map(drop)
}

/// The training images' files.
fn training(inputs: &Inputs) -> anyhow::Result<Vec<PathBuf>> {
    let (folder, captions) = (inputs.path(PICTURES[0]), inputs.path(PICTURES[1]));
    let (items, expected) = (Captions::read_all(captions)?.items, count(inputs)?);
    let found = items.len();
    ensure!(
        found == expected,
        "{}: {found} images, expected {expected}, the rows of the text embeddings",
        captions.display()
    );
    Ok(items.into_iter().map(|item| folder.join(item.file_name)).collect())
}

/// Does `work` with the rows of the training images and their mirror images, [2N, ..], and that of the query.
pub(super) fn with_rows<T>(
    params: &BaselineParams,
    inputs: &Inputs,
    cx: &Context<'_>,
    work: impl Fn(&dyn Rows, &dyn Rows) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let files = training(inputs)?;
    let query = vec![inputs.path(PICTURES[2]).to_owned()];
    let of = |row: &dyn Fn(&[RgbImage]) -> Result<Tensor, DataError>| {
        let progress = |images: usize| cx.progress(images as u64, 2 * files.len() as u64);
        let rows = Pictures { files: &files, views: 2, row, progress: &progress };
        work(&rows, &Pictures { files: &query, views: 1, row, progress: &|_| () })
    };
    let encoded = |encoder: &dyn PictureEncoder| {
        of(&|some| {
            let prepared: Vec<Tensor> = some.iter().map(|picture| encoder.prepare(picture)).collect();
            let prepared = Tensor::stack(&prepared, 0).to_device(device::torch(cx.device));
            Ok(encoder.forward(&prepared).to_device(Device::Cpu))
        })
    };
    match params.method {
        Baseline::Clip => with_folder(inputs.path(CLIP), cx.device, ImageEncoder::load, |clip| encoded(clip)),
        Baseline::Dino => {
            with_folder(inputs.path(DINO), cx.device, VisionTransformer::load, |dino| encoded(dino))
        }
        _ => of(&|some| {
            let rows: Result<Vec<_>, _> = some.iter().map(|picture| pixels(picture, params.pixels)).collect();
            Ok(Tensor::stack(&rows?, 0))
        }),
    }
}

/// The values of a picture from 0 to 1: [side side 3].
fn pixels(picture: &RgbImage, side: u32) -> Result<Tensor, DataError> {
    let square = center_crop(&shorter_side(picture, side, Filter::Bilinear), side)?;
    Ok(Tensor::from_slice(square.as_raw()).to_kind(tch::Kind::Float) / 255.0)
}

/// Pictures as rows: all of them, then, with two views, their mirror images.
struct Pictures<'a> {
    files: &'a [PathBuf],
    views: usize,
    /// The rows of some pictures.
    row: &'a dyn Fn(&[RgbImage]) -> Result<Tensor, DataError>,
    progress: &'a dyn Fn(usize),
}

/// Pictures that are decoded at once.
const AT_ONCE: usize = 64;

impl Rows for Pictures<'_> {
    fn len(&self) -> usize {
        self.views * self.files.len()
    }

    fn read(&self, rows: &[usize]) -> Result<Tensor, DataError> {
        let one = |&row: &usize| {
            let picture = load(&self.files[row % self.files.len()])?;
            let mirrored = row >= self.files.len();
            Ok(if mirrored { ::image::imageops::flip_horizontal(&picture) } else { picture })
        };
        let mut parts = Vec::new();
        for some in rows.chunks(AT_ONCE) {
            let pictures = some.iter().map(one).collect::<Result<Vec<_>, DataError>>()?;
            parts.push((self.row)(&pictures)?);
            (self.progress)(some.last().map_or(0, |last| last + 1));
        }
        Ok(Tensor::cat(&parts, 0))
    }
}

fn load(path: &Path) -> Result<RgbImage, DataError> {
    Ok(load_rgb(path)?)
}
