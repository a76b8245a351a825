//! What a collection of garbage keeps, and what it removes.

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
    /// Manifests of each pipeline that are kept; all where it is `None`.
    pub keep_manifests: Option<usize>,
    /// Take away only until the cache takes no more bytes of the disk than this; all that is not kept otherwise.
    pub budget: Option<u64>,
    /// Take away units whose results are kept, too.
    pub units: bool,
    /// How long what no run's record names is kept, and damaged or downloaded files.
    pub grace: Duration,
}

/// What a step takes away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum Target {
    /// The result of a stage, or of a unit whose stage is unfinished.
    Result {
        /// Its fingerprint.
        fingerprint: Digest,
    },
    /// Units whose joined result stands.
    Units {
        /// Their fingerprints.
        units: Vec<Digest>,
    },
    /// An object that no entry names.
    Stray {
        /// The object.
        digest: Digest,
    },
    /// What runs that were killed left behind.
    Scratch,
    /// Files that were found damaged, or finished downloads that nobody took.
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

/// One thing that goes.
#[derive(Debug, Clone, Serialize)]
pub struct Removal {
    /// What it is.
    #[serde(flatten)]
    pub what: Target,
    /// `PIPELINE/STAGE`, or what else tells it.
    pub name: String,
    /// The stage kind; empty for what is no result.
    pub kind: String,
    /// Bytes of the disk that this step frees, after those before it.
    pub frees: u64,
    /// When it was last used.
    #[serde(serialize_with = "super::inventory::as_text")]
    pub used: Option<Timestamp>,
    /// Seconds of computing to have it back; `None` for what nobody would want back.
    pub seconds: Option<f64>,
}
