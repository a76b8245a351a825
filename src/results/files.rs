//! Where a report finds the results of a run.

use std::path::{Path, PathBuf};

use attrflow_engine::provenance::task_times::TaskTime;
use attrflow_engine::store::Artifact;

/// The file of a manifest.
#[derive(Debug, Clone, Default)]
pub struct ManifestFile {
    /// Its path; a page has its last part.
    pub path: PathBuf,
    /// Its bytes; a page keeps them as they are.
    pub bytes: Vec<u8>,
    /// Whether a signature lies beside it.
    pub signed: bool,
}

/// Gives a report the files of a run. What is gone is shown as gone.
pub trait Files {
    /// The file or folder of an output, by the stage and port that made it; `None` if it is gone.
    fn output(&self, stage: &str, port: &str, artifact: &Artifact) -> Option<PathBuf>;

    /// A file or folder outside the store, by its path in the manifest; `None` if it is gone.
    fn source(&self, path: &Path) -> Option<PathBuf>;

    /// The file of the manifest, where there is one: for its digest, and to keep its bytes.
    fn manifest(&self) -> Option<ManifestFile> {
        None
    }

    /// When each task ran and on which worker, where that was recorded.
    fn tasks(&self) -> Vec<TaskTime> {
        Vec::new()
    }
}
