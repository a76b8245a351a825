//! Errors of reading and writing `torch.save` files.

use std::io;
use std::path::PathBuf;

use crate::io::torch::pickle::PickleError;

/// Why tensors could not be read or written. Every message names the file.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message says what its fields are")]
pub enum TorchFileError {
    /// The operating system refused; fs-err puts the path into the message.
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(
        "{}: not a torch.save file: it begins with {found}, expected a zip archive or the legacy format",
        path.display()
    )]
    Format { path: PathBuf, found: String },
    #[error("{}: not a readable zip archive: {source}", path.display())]
    Zip { path: PathBuf, source: zip::result::ZipError },
    /// An archive, but not of torch's layout.
    #[error("{}: {found}, expected {expected}", path.display())]
    Archive { path: PathBuf, found: String, expected: String },
    #[error("{}: {source}", path.display())]
    Pickle { path: PathBuf, source: PickleError },
    #[error("{}: big-endian file, expected little-endian", path.display())]
    BigEndian { path: PathBuf },
    /// The dict holds dicts of tensors: the file does not say which one to use.
    #[error("{}: nested tensors below the keys {}, expected a dict from names to tensors; save only the dict to use",
        path.display(), keys.join(", "))]
    Nested {
        path: PathBuf,
        /// All keys, each with a description of its value.
        keys: Vec<String>,
    },
    #[error("{}: holds {found}, expected a dict from names to tensors", path.display())]
    Content { path: PathBuf, found: String },
    #[error("{}: tensor `{tensor}`: {found}, expected {expected}", path.display())]
    Tensor { path: PathBuf, tensor: String, found: String, expected: String },
    #[error("{}: storage `{storage}`: {found}, expected {expected}", path.display())]
    Storage { path: PathBuf, storage: String, found: String, expected: String },
    #[error("{}: damaged at tensor `{tensor}`: checksum {found:08x}, expected {expected:08x}", path.display())]
    Checksum { path: PathBuf, tensor: String, found: u32, expected: u32 },
}
