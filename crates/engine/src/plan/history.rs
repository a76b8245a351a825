//! What the last runs of a pipeline recorded.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use crate::identity::recipe::Recipe;
use crate::provenance::manifest::{self, Manifest, StageRecord};

/// How many runs back are looked at.
const RUNS: usize = 20;

/// The newest manifests of a pipeline, read as far back as its stages are found.
#[derive(Default)]
pub struct History {
    runs: Vec<(PathBuf, Manifest)>,
    /// Where the newest record with a recipe stands, by stage: the run, and the place in it.
    newest: HashMap<String, (usize, usize)>,
}

/// A stage when it last had a recipe.
#[derive(Clone, Copy)]
pub struct Last<'h> {
    /// Its record.
    pub record: &'h StageRecord,
    /// Its recipe.
    pub recipe: &'h Recipe,
    /// The run.
    pub run: &'h Manifest,
    /// The manifest's file.
    pub path: &'h Path,
}

impl History {
    /// Reads the manifests in `folder` until each of `stages` was found, or there are none left.
    pub fn read<'s>(folder: &Path, stages: impl IntoIterator<Item = &'s str>) -> Self {
        let mut wanted: HashSet<&str> = stages.into_iter().collect();
        let mut history = Self::default();
        for path in manifest::list(folder).into_iter().take(RUNS) {
            if wanted.is_empty() {
                break;
            }
            // A manifest of an older form explains nothing, and stops nothing.
            let Ok(manifest) = manifest::read(&path) else { continue };
            let run = history.runs.len();
            for (index, record) in manifest.stages.iter().enumerate() {
                if record.recipe.is_some() && !history.newest.contains_key(&record.stage) {
                    wanted.remove(record.stage.as_str());
                    history.newest.insert(record.stage.clone(), (run, index));
                }
            }
            history.runs.push((path, manifest));
        }
        history
    }

    /// The stage of this name when it last had a recipe.
    pub fn last(&self, stage: &str) -> Option<Last<'_>> {
        let (run, index) = self.newest.get(stage)?;
        let (path, run) = &self.runs[*run];
        let record = &run.stages[*index];
        Some(Last { record, recipe: record.recipe.as_ref()?, run, path })
    }

    /// All records, those of newer runs first.
    pub fn records(&self) -> impl Iterator<Item = &StageRecord> {
        self.runs.iter().flat_map(|(_, run)| &run.stages)
    }
}
