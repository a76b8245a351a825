//! Named tensors in safetensors files, with the element types that they have.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::Context as _;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use tch::{Device, Kind, Tensor};

/// Writes float32 or float64 tensors and one metadata entry (more would have no fixed order).
pub(super) fn write(
    path: &Path,
    tensors: &BTreeMap<String, Tensor>,
    metadata: Option<(&str, String)>,
) -> anyhow::Result<()> {
    let bytes: Vec<(&String, Dtype, Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, tensor)| {
            let tensor = tensor.to_device(Device::Cpu).contiguous();
            let dtype = match tensor.kind() {
                Kind::Float => Dtype::F32,
                Kind::Double => Dtype::F64,
                kind => anyhow::bail!("`{name}` is {kind:?}, expected float32 or float64"),
            };
            let mut data = vec![0; tensor.numel() * dtype.bitsize() / 8];
            tensor.f_copy_data_u8(&mut data, tensor.numel())?;
            Ok((name, dtype, tensor.size().iter().map(|&size| size as usize).collect(), data))
        })
        .collect::<anyhow::Result<_>>()?;
    let views: Vec<(&String, TensorView<'_>)> = bytes
        .iter()
        .map(|(name, dtype, shape, data)| Ok((*name, TensorView::new(*dtype, shape.clone(), data)?)))
        .collect::<anyhow::Result<_>>()?;
    let metadata = metadata.map(|(key, value)| HashMap::from([(key.to_owned(), value)]));
    safetensors::serialize_to_file(views, metadata, path).with_context(|| path.display().to_string())
}

/// Reads all tensors, float32 or float64 as they are, to the CPU.
pub(super) fn read(path: &Path) -> anyhow::Result<BTreeMap<String, Tensor>> {
    let map = open(path)?;
    let file = SafeTensors::deserialize(&map).with_context(|| damaged(path))?;
    let tensor = |(name, view): (String, TensorView<'_>)| {
        let kind = match view.dtype() {
            Dtype::F32 => Kind::Float,
            Dtype::F64 => Kind::Double,
            found => {
                anyhow::bail!("{}: `{name}` is {found:?}, expected F32 or F64", path.display())
            }
        };
        let shape: Vec<i64> = view.shape().iter().map(|&size| size as i64).collect();
        Ok((name, Tensor::f_from_data_size(view.data(), &shape, kind)?))
    };
    file.tensors().into_iter().map(tensor).collect()
}

/// Reads one metadata entry, `None` where the file has no such key.
pub(super) fn metadata(path: &Path, key: &str) -> anyhow::Result<Option<String>> {
    let map = open(path)?;
    let (_, header) = SafeTensors::read_metadata(&map).with_context(|| damaged(path))?;
    Ok(header.metadata().as_ref().and_then(|entries| entries.get(key).cloned()))
}

fn open(path: &Path) -> anyhow::Result<memmap2::Mmap> {
    let file = fs_err::File::open(path)?;
    // SAFETY: artifacts are read-only; one that is cut short meanwhile ends the worker, not the run.
    unsafe { memmap2::Mmap::map(&file) }.with_context(|| path.display().to_string())
}

fn damaged(path: &Path) -> String {
    format!("{}: not a safetensors file", path.display())
}
