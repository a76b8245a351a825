//! The results of a run that a command names.

use std::path::{Path, PathBuf};

use super::failure::Failure;
use super::manifests::{self, Named};
use super::project::shell_word;
use crate::results::{Files, ManifestFile};
use attrflow_engine::pipeline;
use attrflow_engine::provenance::task_times::{self, TaskTime};
use attrflow_engine::store::{Area, Artifact, Store};

/// What a run left.
pub(super) struct Results {
    pub named: Named,
    store: Store,
}

impl Results {
    /// The run: a pipeline's file for its last run, a manifest, or a name such as `last`.
    pub fn open(run: &str, cache: Option<&Path>) -> Result<Results, Failure> {
        let path = Path::new(run);
        if path.extension().is_none_or(|ending| ending != "toml") {
            // A pipeline's name alone is its last run.
            let named = path.exists() || manifests::nth_last(run).is_some();
            let name = if named || run.contains(['/', '.']) { run.to_owned() } else { format!("{run}:last") };
            return Self::of(manifests::open(&name, cache)?, cache);
        }
        // A pipeline's file stands for its last run, in the cache of its project.
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let own = pipeline::root(path).unwrap_or_default().join("cache");
        let cache = cache.unwrap_or(&own);
        if !path.is_file() {
            return Err(Failure::Usage(format!("there is no pipeline {run}")));
        }
        if !cache.join(Area::Runs.name()).join(stem).is_dir() {
            return Err(Failure::Refused(format!(
                "{run} has not run yet: run `attrflow run {}` first",
                shell_word(run)
            )));
        }
        Self::of(manifests::open(&format!("{stem}:last"), Some(cache))?, Some(cache))
    }

    /// The results of a manifest that was read.
    pub fn of(named: Named, cache: Option<&Path>) -> Result<Results, Failure> {
        let cache = manifests::cache(&named.path, cache)?;
        let store = Store::open(&cache).map_err(|error| Failure::Refused(error.to_string()))?;
        Ok(Results { named, store })
    }
}

impl Files for Results {
    fn output(&self, _: &str, _: &str, artifact: &Artifact) -> Option<PathBuf> {
        Some(self.store.path(&artifact.digest)).filter(|path| path.exists())
    }

    fn source(&self, path: &Path) -> Option<PathBuf> {
        path.exists().then(|| path.to_path_buf())
    }

    fn manifest(&self) -> Option<ManifestFile> {
        let Named { path, bytes, .. } = &self.named;
        let signature = PathBuf::from(format!("{}.minisig", path.display()));
        Some(ManifestFile { path: path.clone(), bytes: bytes.clone(), signed: signature.exists() })
    }

    fn tasks(&self) -> Vec<TaskTime> {
        task_times::read(&self.named.path).unwrap_or_else(|error| {
            tracing::warn!("no timeline: {error}");
            Vec::new()
        })
    }
}
