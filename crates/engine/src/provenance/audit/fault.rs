//! What an audit finds.

use std::path::PathBuf;

use serde::Serialize;

use crate::identity::digest::Digest;

/// One thing that is not as the manifest says, or that cannot be looked at any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The stage whose record it is about.
    pub stage: String,
    /// What it is.
    #[serde(flatten)]
    pub fault: Mismatch,
}

/// What is wrong with a part of a record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(tag = "fault", rename_all = "snake_case")]
pub enum Mismatch {
    /// The fingerprint is not that of the recipe.
    #[error("the recipe has the fingerprint {derived}, and the manifest says {recorded}")]
    Fingerprint {
        /// As recorded.
        recorded: Digest,
        /// As the recipe gives it.
        derived: Digest,
    },
    /// A stage that has a result and no recipe or fingerprint.
    #[error("the manifest holds no {what} for it")]
    Incomplete {
        /// What is missing.
        what: String,
    },
    /// What the recipe reads is not what the stage upstream gave.
    #[error("its input `{port}` is {recorded}, and {giver} gave {}", digest(found))]
    Chain {
        /// The input port.
        port: String,
        /// The digest in the recipe.
        recorded: Digest,
        /// `stage.port`, with the path below.
        giver: String,
        /// What that output is, `None` where there is none.
        found: Option<Digest>,
    },
    /// An input that no stage gives and that is no source.
    #[error("its input `{port}` is {recorded}, and the manifest names nothing that gave it")]
    Unexplained {
        /// The input port.
        port: String,
        /// The digest in the recipe.
        recorded: Digest,
    },
    /// A source with other bytes than then.
    #[error("its source {} holds other bytes: found {found}, expected {recorded}", path.display())]
    Source {
        /// The file or folder.
        path: PathBuf,
        /// The digest in the recipe.
        recorded: Digest,
        /// The digest now.
        found: Digest,
    },
    /// The cache's index gives another result for the same recipe.
    #[error(
        "its output `{port}` is {}, and the cache holds {} for the same recipe",
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
    /// An artifact or a file of one with other bytes than its digest says.
    #[error("{} of its output `{port}` holds other bytes: found {found}, expected {recorded}", path.display())]
    Bytes {
        /// The output port.
        port: String,
        /// The file.
        path: PathBuf,
        /// The digest that it is stored under.
        recorded: Digest,
        /// The digest of its bytes.
        found: Digest,
    },
    /// An artifact of another size than recorded.
    #[error("its output `{port}` has {found} bytes, and the manifest says {recorded}")]
    Size {
        /// The output port.
        port: String,
        /// Bytes in the manifest.
        recorded: u64,
        /// Bytes in the cache.
        found: u64,
    },
    /// A folder with a file more or less than its listing.
    #[error("the folder of its output `{port}` {} {}", if *extra { "also holds" } else { "lacks" }, path.display())]
    Files {
        /// The output port.
        port: String,
        /// The file.
        path: PathBuf,
        /// Whether it is one too many.
        extra: bool,
    },
    /// A file of the cache's own that is not what it must be.
    #[error("{} of the cache is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// What is not there to be looked at.
    #[error("{what} is not in the cache any more")]
    Gone {
        /// The output port, or the recipe.
        what: String,
    },
    /// What cannot be read.
    #[error("{} cannot be read: {error}", path.display())]
    Unreadable {
        /// The file or folder.
        path: PathBuf,
        /// What the file system says.
        error: String,
    },
}

impl Mismatch {
    /// Whether it is a difference; what is gone or cannot be read is only left unchecked.
    pub fn differs(&self) -> bool {
        !matches!(self, Self::Gone { .. } | Self::Unreadable { .. })
    }
}

fn digest(digest: &Option<Digest>) -> String {
    digest.map_or("nothing".into(), |digest| digest.to_string())
}
