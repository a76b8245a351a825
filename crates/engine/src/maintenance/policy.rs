//! The policy of garbage collection, and its removals.

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use crate::identity::digest::Digest;

/// What to keep.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Runs of each pipeline whose results are kept.
    pub keep_runs: usize,
    /// Manifests to keep of each pipeline; `None` keeps all.
    pub keep_manifests: Option<usize>,
    /// Remove only until the cache uses no more bytes of the disk than this; without it, everything that is not kept.
    pub budget: Option<u64>,
    /// Also remove units whose results are kept.
    pub units: bool,
    /// How long results that no manifest names are kept, and damaged or downloaded files.
    pub grace: Duration,
    /// Projects whose runs keep nothing.
    pub forget: Vec<PathBuf>,
}

impl Policy {
    /// Whether the runs of a project keep nothing.
    pub fn forgets(&self, root: Option<&Path>) -> bool {
        root.is_some_and(|root| self.forget.iter().any(|forgotten| forgotten == root))
    }
}

/// What a step removes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum Target {
    /// The result of a stage, or of a unit of a partial stage.
    Result {
        /// Its fingerprint.
        fingerprint: Digest,
    },
    /// Units whose stage has its result.
    Units {
        /// Their fingerprints.
        units: Vec<Digest>,
    },
    /// An object without an index entry.
    Stray {
        /// The object.
        digest: Digest,
    },
    /// Working folders of killed runs.
    Scratch,
    /// Damaged files, or finished downloads that were not used.
    Files {
        /// The files and folders.
        paths: Vec<PathBuf>,
    },
    /// An area of an earlier version, which nothing reads any more.
    Obsolete {
        /// The file or folder.
        path: PathBuf,
    },
    /// The manifest of an old run.
    Manifest {
        /// The file.
        path: PathBuf,
    },
}

/// One step of a garbage collection.
#[derive(Debug, Clone, Serialize)]
pub struct Removal {
    /// What it is.
    #[serde(flatten)]
    pub what: Target,
    /// `PIPELINE/STAGE`, or what it is.
    pub name: String,
    /// The stage kind; empty unless it is a result.
    pub kind: String,
    /// Bytes of disk that this removal frees, after those before it.
    pub frees: u64,
    /// When it was last used.
    #[serde(serialize_with = "super::inventory::as_text")]
    pub used: Option<Timestamp>,
    /// Seconds to recompute it; `None` for what no run recomputes.
    pub seconds: Option<f64>,
}
