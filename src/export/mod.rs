//! Exports results: the published experiment's files, folders for diffusers, one table of all scores.

mod batch;
mod diffusers;
mod published;
mod table;

use std::path::PathBuf;

use crate::io::captions::CocoError;
use crate::io::image::ImageError;
use crate::io::json::JsonError;
use crate::io::npy::NpyError;
use crate::io::tensor_file::TensorFileError;
use crate::io::torch::TorchFileError;
use crate::models::weights::config::ModelError;

pub use batch::{Batch, State, Written};
pub use diffusers::{Unlearned, unet};
pub use published::{Influence, fisher, influence, picture, pretrain_loss};
pub use table::{QueryFiles, table};

/// Why results could not be exported. Existing files are then unchanged.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The file system refused; the message names the path.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// An array cannot be read or written.
    #[error(transparent)]
    Npy(#[from] NpyError),
    /// A file of tensors cannot be read.
    #[error(transparent)]
    Tensors(#[from] TensorFileError),
    /// A `torch.save` file cannot be written.
    #[error(transparent)]
    Torch(#[from] TorchFileError),
    /// A picture cannot be read or written.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A model's folder has no checkpoint.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The table cannot be written.
    #[error("the table cannot be written: {0}")]
    Parquet(#[from] parquet::errors::ParquetError),
    /// A captions file cannot be read.
    #[error(transparent)]
    Captions(#[from] CocoError),
    /// Arrays of different images.
    #[error("{}: {found} images, expected {expected}", path.display())]
    Images {
        /// The file.
        path: PathBuf,
        /// Its images.
        found: usize,
        /// Those of the scores.
        expected: usize,
    },
    /// A file of ranks or indices that is none.
    #[error("{}: expected indices of the images, each once", path.display())]
    Ranks {
        /// The file.
        path: PathBuf,
    },
    /// A JSON file cannot be read.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// A name of a table that does not say its form.
    #[error("{name}: expected a name that ends in .parquet or .csv")]
    Ending {
        /// The name.
        name: String,
    },
    /// The safetensors file cannot be written.
    #[error("{}: {source}", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// The error of the writer.
        source: safetensors::SafeTensorError,
    },
    /// Changed weights that the network does not have.
    #[error("{}: tensor `{tensor}`: {found}, expected {expected}", path.display())]
    Weight {
        /// The file of changed weights.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What was found.
        found: String,
        /// What was expected.
        expected: String,
    },
    /// Two results would have one name.
    #[error("two results would be written to {}: name one with --target", path.display())]
    Twice {
        /// The file.
        path: PathBuf,
    },
    /// Files exist with other content.
    #[error(
        "{} with other content: --force replaces {}",
        names(paths) + if paths.len() == 1 { " exists" } else { " exist" },
        if paths.len() == 1 { "it" } else { "them" }
    )]
    Differs {
        /// The files.
        paths: Vec<PathBuf>,
    },
}

fn names(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}
