//! The records of a pipeline's last runs.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use crate::identity::recipe::{self, Change, Recipe};
use crate::identity::shared_fs;
use crate::pipeline::{Pipeline, Source, StageNode};
use crate::provenance::manifest::{self, Manifest, Repeat, StageRecord};

/// Maximum runs to read, and those of other projects that share the cache.
const RUNS: usize = 20;
const OTHERS: usize = 100;

/// The newest manifests of a pipeline, read until each of its stages is found.
#[derive(Default)]
pub struct History {
    runs: Vec<(PathBuf, Manifest)>,
    /// The newest record with a recipe, by stage: the run, and the index in it.
    newest: HashMap<String, (usize, usize)>,
}

/// The last record of a stage that has a recipe.
#[derive(Clone, Copy)]
pub struct Last<'h> {
    /// Its record.
    pub record: &'h StageRecord,
    /// Its recipe.
    pub recipe: &'h Recipe,
    /// The run.
    pub run: &'h Manifest,
    /// The manifest's path.
    pub path: &'h Path,
}

impl Last<'_> {
    /// What changed since then; an input whose bytes changed is named by what it reads.
    pub fn changes(&self, stage: &StageNode, now: &Recipe, pipeline: &Pipeline) -> Vec<Change> {
        let mut changes = recipe::changes(self.recipe, now);
        for change in changes.iter_mut().filter(|change| change.old.is_some() && change.new.is_some()) {
            let name = |port: &str| format!("inputs.{}", recipe::key_name(port));
            let source = stage.inputs.iter().find(|(port, _)| name(port) == change.field);
            change.reads = source.map(|(_, source)| match source {
                Source::Port { stage, port, .. } => format!("{}.{port}", pipeline.stages[*stage].id),
                Source::File(path) => path.strip_prefix(&pipeline.root).unwrap_or(path).display().to_string(),
            });
        }
        changes
    }
}

impl History {
    /// Reads the manifests of a pipeline in `folder`, newest first, until each of its stages is found.
    pub fn read(folder: &Path, pipeline: &Pipeline) -> Self {
        let mut wanted: HashSet<&str> = pipeline.stages.iter().map(|stage| stage.id.as_str()).collect();
        let root = fs_err::canonicalize(&pipeline.root).ok();
        let resolved = |path: &Path| fs_err::canonicalize(path).ok();
        let is_home = folder.ancestors().nth(2).and_then(resolved) == resolved(&pipeline.root.join("cache"));
        // The project was moved here with its cache, or copied.
        let was_here = |of: &Path| is_home && (!shared_fs::is_dir(of) || shared_fs::is_dir(of.join("cache")));
        // Manifests of earlier versions say neither.
        let is_own = |(of_root, of_file): (Option<&Path>, Option<&Path>)| {
            of_root.zip(root.as_deref()).is_none_or(|(of, own)| of == own || was_here(of))
                && of_file.zip(pipeline.within.as_deref()).is_none_or(|(of, own)| of == own)
        };
        let mut history = Self::default();
        let mut repeated = HashSet::new();
        let (mut read, mut others) = (0, 0);
        for path in manifest::list(folder) {
            if wanted.is_empty() || read == RUNS || others == OTHERS {
                break;
            }
            // Of runs that repeat one manifest, only the newest is read.
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let base = Repeat::base_of(&path).map_or(name, |base| base.name);
            if !repeated.insert(base) {
                continue;
            }
            // A manifest of an older format is skipped.
            let Ok(manifest) = manifest::read(&path) else { continue };
            if !is_own(manifest.identity()) {
                others += 1;
                continue;
            }
            read += 1;
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

    /// The last record of this stage that has a recipe.
    pub fn last(&self, stage: &str) -> Option<Last<'_>> {
        let (run, index) = self.newest.get(stage)?;
        let (path, run) = &self.runs[*run];
        let record = &run.stages[*index];
        Some(Last { record, recipe: record.recipe.as_ref()?, run, path })
    }

    /// All records with their runs, newest run first.
    pub fn records(&self) -> impl Iterator<Item = (&StageRecord, &Manifest)> {
        self.runs.iter().flat_map(|(_, run)| run.stages.iter().map(move |record| (record, run)))
    }
}
