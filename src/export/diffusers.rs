//! An unlearned network as a folder for `UNet2DConditionModel.from_pretrained`.

use std::collections::HashMap;
use std::path::PathBuf;

use safetensors::tensor::TensorView;

use super::{Batch, ExportError};
use crate::io::tensor_file::TensorFile;
use crate::io::torch::Dtype;
use crate::models::weights::checkpoint;

/// A network and the weights that unlearning changed.
#[derive(Debug, Clone)]
pub struct Unlearned {
    /// Its name, part of the folder's name.
    pub name: String,
    /// The network's folder, with `config.json`.
    pub unet: PathBuf,
    /// The network's weights, if they are not in its folder.
    pub checkpoint: Option<PathBuf>,
    /// The changed weights.
    pub weights: PathBuf,
}

/// Writes the complete network in float32 as `unet_NAME/`.
///
/// # Errors
/// A file cannot be read, the network lacks a changed weight, or a write failed.
pub fn unet(batch: &mut Batch, query: &Unlearned) -> Result<(), ExportError> {
    let folder = PathBuf::from(format!("unet_{}", query.name));
    let base = TensorFile::open(checkpoint::of(&query.unet, query.checkpoint.as_deref())?)?;
    let changed = TensorFile::open(&query.weights)?;
    check(&base, &changed)?;
    let mut tensors = Vec::new();
    for header in base.headers() {
        let (file, header) = match changed.header(&header.name) {
            Some(new) => (&changed, new),
            None => (&base, header),
        };
        tensors.push((header, file.bytes_as(header, Dtype::F32)?));
    }
    let path = batch.file(folder.join("diffusion_pytorch_model.safetensors"))?;
    let fault = |source| ExportError::Safetensors { path: path.clone(), source };
    let views = tensors.iter().map(|(header, bytes)| {
        let view = TensorView::new(safetensors::Dtype::F32, header.shape.clone(), bytes).map_err(fault)?;
        Ok((header.name.as_str(), view))
    });
    let views = views.collect::<Result<Vec<_>, ExportError>>()?;
    // Python's loaders require the name of the library.
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize_to_file(views, Some(metadata), &path).map_err(fault)?;
    let config = fs_err::read(query.unet.join("config.json"))?;
    Ok(fs_err::write(batch.file(folder.join("config.json"))?, config)?)
}

/// Checks that the network has all changed weights, in the same shapes.
fn check(base: &TensorFile, changed: &TensorFile) -> Result<(), ExportError> {
    for header in changed.headers() {
        let own = base.header(&header.name);
        if own.is_none_or(|own| own.shape != header.shape) {
            let expected = own.map_or("a weight of the network".to_owned(), |own| format!("{:?}", own.shape));
            return Err(ExportError::Weight {
                path: changed.path().to_path_buf(),
                tensor: header.name.clone(),
                found: format!("{:?}", header.shape),
                expected,
            });
        }
    }
    Ok(())
}
