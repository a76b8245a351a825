//! The files of the published experiment, in the formats of its scripts.

use std::path::{Path, PathBuf};

use super::{Batch, ExportError};
use crate::io::image::{load_rgb, save_jpeg};
use crate::io::npy::Npy;
use crate::io::npy::writer;
use crate::io::tensor_file::TensorFile;
use crate::io::torch::pickle::writer::{Array, dict};
use crate::io::torch::{self, Dtype, Entry};

/// The results of one query.
#[derive(Debug, Clone)]
pub struct Influence {
    /// Its name, part of the files' names.
    pub name: String,
    /// float32 [N]
    pub influence: PathBuf,
    /// int64 [N]: image indices by descending influence
    pub rank: PathBuf,
}

/// The losses of all latents, float32 [2N], as `pretrain_loss.npy`.
///
/// # Errors
/// An array has another type or shape, or a write failed.
pub fn pretrain_loss(batch: &mut Batch, losses: &Path) -> Result<(), ExportError> {
    let values = Npy::vector(losses)?;
    Ok(writer::write_f32(batch.file("pretrain_loss.npy")?, &[values.len()], &values)?)
}

/// The Fisher information by weight name, float64, as `fisher_info.pt`.
///
/// # Errors
/// Tensors are not floats, or a write failed.
pub fn fisher(batch: &mut Batch, fisher: &Path) -> Result<(), ExportError> {
    let file = TensorFile::open(fisher)?;
    let bytes = file.headers().iter().map(|header| file.bytes_as(header, Dtype::F64));
    let bytes = bytes.collect::<Result<Vec<_>, _>>()?;
    let entries: Vec<Entry<'_>> = file
        .headers()
        .iter()
        .zip(&bytes)
        .map(|(header, bytes)| Entry { name: &header.name, dtype: Dtype::F64, shape: &header.shape, bytes })
        .collect();
    Ok(torch::write(batch.file("fisher_info.pt")?, &entries)?)
}

/// Influence and rank as `influence_NAME.pkl`.
///
/// # Errors
/// A file has another type or shape, or a write failed.
pub fn influence(batch: &mut Batch, query: &Influence) -> Result<(), ExportError> {
    let influence = Npy::vector(&query.influence)?;
    let npy = Npy::open(&query.rank)?;
    npy.expect_shape(&[Some(influence.len())])?;
    let mut rank = Vec::new();
    npy.read_i64(0..npy.rows(), &mut rank)?;
    let bytes = dict(&[("influence", Array::F32(&influence)), ("rank", Array::I64(&rank))]);
    Ok(fs_err::write(batch.file(format!("influence_{}.pkl", query.name))?, bytes)?)
}

/// The picture of a ranking, PNG, as `visualization_NAME.jpg`.
///
/// # Errors
/// A file that is not a picture, or a write that failed.
pub fn picture(batch: &mut Batch, name: &str, picture: &Path) -> Result<(), ExportError> {
    Ok(save_jpeg(&load_rgb(picture)?, batch.file(format!("visualization_{name}.jpg"))?)?)
}
