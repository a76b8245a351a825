//! The findings of an audit.

use std::path::PathBuf;

use serde::Serialize;

use crate::identity::digest::Digest;

/// One mismatch with the manifest, or one item that can no longer be checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The stage of the record.
    pub stage: String,
    /// The mismatch.
    #[serde(flatten)]
    pub fault: Mismatch,
}

/// A mismatch in a part of a record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(tag = "fault", rename_all = "snake_case")]
pub enum Mismatch {
    /// The fingerprint does not match the recipe.
    #[error("the fingerprint of its recipe is {derived}, but the manifest records {recorded}")]
    Fingerprint {
        /// As recorded.
        recorded: Digest,
        /// Recomputed from the recipe.
        derived: Digest,
    },
    /// A stage with a result but without a recipe or fingerprint.
    #[error("the manifest has no {what} for it")]
    Incomplete {
        /// What is missing.
        what: String,
    },
    /// An input differs from the output of the stage upstream.
    #[error("its input `{port}` is {recorded}, but {giver} is {}", digest(found))]
    Chain {
        /// The input port.
        port: String,
        /// The digest in the recipe.
        recorded: Digest,
        /// `stage.port`, with the path below.
        giver: String,
        /// The digest of that output, `None` if it does not exist.
        found: Option<Digest>,
    },
    /// An input that is neither an output of a stage nor a source.
    #[error("its input `{port}` is {recorded}, but the manifest records no origin for it")]
    Unexplained {
        /// The input port.
        port: String,
        /// The digest in the recipe.
        recorded: Digest,
    },
    /// A source whose bytes changed.
    #[error("its source {} was modified: found {found}, expected {recorded}", path.display())]
    Source {
        /// The file or folder.
        path: PathBuf,
        /// The digest in the recipe.
        recorded: Digest,
        /// The digest now.
        found: Digest,
    },
    /// The cache's index has another result for the same recipe.
    #[error(
        "its output `{port}` is {}, but the cache has {} for the same recipe",
        digest(recorded),
        digest(found)
    )]
    Index {
        /// The output port.
        port: String,
        /// The digest in the manifest.
        recorded: Option<Digest>,
        /// The digest in the index.
        found: Option<Digest>,
    },
    /// An artifact, or a file of one, whose bytes do not match its digest.
    #[error("{} of its output `{port}` was modified: found {found}, expected {recorded}", path.display())]
    Bytes {
        /// The output port.
        port: String,
        /// The file.
        path: PathBuf,
        /// The expected digest.
        recorded: Digest,
        /// The digest of its bytes.
        found: Digest,
    },
    /// An artifact with another size than recorded.
    #[error("its output `{port}` has {found} bytes, but the manifest records {recorded}")]
    Size {
        /// The output port.
        port: String,
        /// Bytes in the manifest.
        recorded: u64,
        /// Bytes in the cache.
        found: u64,
    },
    /// A folder with a file that its listing lacks, or without one that it has.
    #[error("the folder of its output `{port}` {} {}", if *extra { "also contains" } else { "lacks" }, path.display())]
    Files {
        /// The output port.
        port: String,
        /// The file.
        path: PathBuf,
        /// Whether the file is in the folder but not in its listing.
        extra: bool,
    },
    /// A damaged metadata file of the cache.
    #[error("{} of the cache is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Missing, so it cannot be checked.
    #[error("{what} is no longer in the cache")]
    Gone {
        /// The output port, or the recipe.
        what: String,
    },
    /// A file or folder that cannot be read.
    #[error("{} cannot be read: {error}", path.display())]
    Unreadable {
        /// The file or folder.
        path: PathBuf,
        /// The error of the file system.
        error: String,
    },
}

impl Mismatch {
    /// Whether it is a difference; missing or unreadable items are only unchecked.
    pub fn differs(&self) -> bool {
        !matches!(self, Self::Gone { .. } | Self::Unreadable { .. })
    }
}

fn digest(digest: &Option<Digest>) -> String {
    digest.map_or("nothing".into(), |digest| digest.to_string())
}
