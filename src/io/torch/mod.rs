//! Reads the tensors of a `torch.save` file, mapped instead of loaded.
//!
//! There are two formats: a zip archive (since torch 1.6) with a pickle and one uncompressed entry per storage, and the
//! legacy format, a sequence of pickles followed by the storages. In both, the pickle describes each tensor as a view of
//! a storage. Tensors may share a storage, skip elements of it or repeat them; [`TorchFile::read`] returns their elements
//! in C order. No code of the pickle is run: see [`pickle`](pickle).
//! Source: PyTorch, `torch/serialization.py` (`_save`, `_legacy_save`) and `caffe2/serialize/inline_container.h`.

mod error;
mod legacy;
pub mod pickle;
mod strided;
mod tensors;
#[cfg(test)]
mod tests;
mod writer;
mod zipped;

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use memmap2::Mmap;

pub use super::dtype::Dtype;
pub use error::TorchFileError;
pub use writer::{Entry, write};

use strided::Layout;

/// An open file of tensors, mapped into memory. Cheap to share between threads.
#[derive(Debug)]
pub struct TorchFile {
    path: PathBuf,
    map: Mmap,
    tensors: Vec<TensorInfo>,
    storages: HashMap<String, Storage>,
}

/// The description of a tensor, without its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its key in the dict.
    pub name: String,
    /// The element type.
    pub dtype: Dtype,
    /// Lengths of the axes.
    pub shape: Vec<usize>,
    /// The stride of each axis, in elements.
    pub stride: Vec<usize>,
    /// The first element within the storage.
    pub offset: usize,
    /// The bytes of the storage in the file.
    pub bytes: Range<usize>,
    storage: String,
}

/// The bytes that tensors are views of.
#[derive(Debug)]
struct Storage {
    bytes: Range<usize>,
    /// The archive's checksum; none in the legacy format, or if the file was written without checksums.
    crc: Option<u32>,
    /// The checksum of the bytes, computed at the first read.
    found: OnceLock<u32>,
}

impl TorchFile {
    /// Whether the file begins like a `torch.save` file; artifacts have no extension.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn is_one(path: impl AsRef<Path>) -> io::Result<bool> {
        let mut start = Vec::new();
        fs_err::File::open(path.as_ref())?.take(legacy::MAGIC.len() as u64).read_to_end(&mut start)?;
        Ok(start.starts_with(zipped::MAGIC) || start.starts_with(legacy::MAGIC))
    }

    /// Maps the file and finds its tensors, without reading their bytes.
    ///
    /// # Errors
    /// The file is damaged or of another format, is not a dict from names to tensors, or contains code.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, TorchFileError> {
        let path = path.as_ref();
        let file = fs_err::File::open(path)?;
        // SAFETY: the map is read-only and private to this value. Another process must not change the file meanwhile;
        // the store keeps its objects read-only for that reason.
        let map = unsafe { Mmap::map(file.file()) }
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
        let (tensors, storages) = if map.starts_with(zipped::MAGIC) {
            zipped::read(path, &map)?
        } else if map.starts_with(legacy::MAGIC) {
            legacy::read(path, &map)?
        } else {
            let found = map.iter().take(8).map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ");
            return Err(TorchFileError::Format { path: path.into(), found });
        };
        Ok(Self { path: path.into(), map, tensors, storages })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All tensors, in the order of the dict.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The elements of one of [`tensors`](Self::tensors) in C order, little-endian; copied only if they are stored otherwise.
    ///
    /// # Errors
    /// The storage does not match the archive's checksum.
    ///
    /// # Panics
    /// If the tensor is of another file.
    pub fn read(&self, tensor: &TensorInfo) -> Result<Cow<'_, [u8]>, TorchFileError> {
        let storage = &self.storages[&tensor.storage];
        let bytes = &self.map[storage.bytes.clone()];
        if let Some(expected) = storage.crc {
            let found = *storage.found.get_or_init(|| crc32fast::hash(bytes));
            if found != expected {
                let (path, tensor) = (self.path.clone(), tensor.name.clone());
                return Err(TorchFileError::Checksum { path, tensor, found, expected });
            }
        }
        let layout = Layout { shape: &tensor.shape, stride: &tensor.stride, offset: tensor.offset };
        Ok(layout.gather(bytes, tensor.dtype.size()))
    }
}
