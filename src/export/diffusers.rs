//! An unlearned network as a folder that `UNet2DConditionModel.from_pretrained` loads.

use std::collections::HashMap;
use std::path::PathBuf;

use safetensors::tensor::TensorView;

use super::{Batch, ExportError};
use crate::io::tensor_file::TensorFile;
use crate::io::torch::Dtype;
use crate::models::weights::checkpoint;

/// A network and what unlearning changed of it.
#[derive(Debug, Clone)]
pub struct Unlearned {
    /// What tells it from others: stands in the folder's name.
    pub name: String,
    /// The network's folder, with `config.json`.
    pub unet: PathBuf,
    /// The network's weights, where they are not in its folder.
    pub checkpoint: Option<PathBuf>,
    /// The changed weights.
    pub weights: PathBuf,
}

/// The whole network in float32 as `unet_NAME/`.
///
/// # Errors
/// Files that cannot be read, changed weights that the network does not have, or a write that failed.
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
    // Without it, Python's loaders do not know which library the tensors are of.
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize_to_file(views, Some(metadata), &path).map_err(fault)?;
    let config = fs_err::read(query.unet.join("config.json"))?;
    Ok(fs_err::write(batch.file(folder.join("config.json"))?, config)?)
}

/// Refuses changed weights that the network does not have in this shape.
fn check(base: &TensorFile, changed: &TensorFile) -> Result<(), ExportError> {
    for header in changed.headers() {
        let own = base.header(&header.name);
        if own.is_none_or(|own| own.shape != header.shape) {
            let expected =
                own.map_or("a name that the network has".to_owned(), |own| format!("{:?}", own.shape));
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
