//! The policy of garbage collection, and its removals.

use std::path::PathBuf;
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
    /// Stop as soon as the cache takes at most this many bytes of disk; `None` removes all that is not kept.
    pub budget: Option<u64>,
    /// Also remove units whose merged results are kept.
    pub units: bool,
    /// How long to keep items that no run records, quarantined files and downloads.
    pub grace: Duration,
}

/// What is removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum Target {
    /// The result of a stage, or of a unit whose stage is partial.
    Result {
        /// Its fingerprint.
        fingerprint: Digest,
    },
    /// Units whose merged result exists.
    Units {
        /// Their fingerprints.
        units: Vec<Digest>,
    },
    /// An object without an index entry.
    Stray {
        /// The object.
        digest: Digest,
    },
    /// Leftovers of killed runs.
    Scratch,
    /// Quarantined files, or finished downloads that no run used.
    Files {
        /// The files and folders.
        paths: Vec<PathBuf>,
    },
    /// The record of an old run.
    Manifest {
        /// The file.
        path: PathBuf,
    },
}

/// One removal.
#[derive(Debug, Clone, Serialize)]
pub struct Removal {
    /// What it is.
    #[serde(flatten)]
    pub what: Target,
    /// `PIPELINE/STAGE`, or another description.
    pub name: String,
    /// The stage kind; empty unless it is a result.
    pub kind: String,
    /// Bytes of disk that this removal frees, after those before it.
    pub frees: u64,
    /// When it was last used.
    #[serde(serialize_with = "super::inventory::as_text")]
    pub used: Option<Timestamp>,
    /// Computing time in seconds to rebuild it; `None` if there is nothing to rebuild.
    pub seconds: Option<f64>,
}
