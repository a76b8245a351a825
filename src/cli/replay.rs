//! `run --from` and `audit --replay`: compute again what a manifest records.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;

use super::failure::Failure;
use super::manifests::{self, Named};
use super::project::{Project, Settings};
use super::run_args::{Origin, RunArgs, check_failed, execute};
use crate::io::compare::compare;
use crate::progress::{self, duration, print, short_path};
use attrflow_engine::kind::Registry;
use attrflow_engine::provenance::manifest::{Manifest, Outcome};
use attrflow_engine::provenance::replay::{
    self, ArrayDiff, RebuiltPipeline, ReplayError, ReplayOutcome, outcomes,
};
use attrflow_engine::store::{Attempt, Scratch, Store, StoreError};

/// A manifest whose results are to be recreated in the current folder.
pub(super) struct Recreation {
    pub named: Named,
    pub project: Project,
    /// The cache that contains the manifest; it may still have the recorded results.
    recorded: Option<Store>,
}

impl Recreation {
    /// Builds a pipeline from the manifest, and finds its sources.
    pub fn open(
        name: &str,
        settings: &Settings,
        targets: &[String],
        registry: &Registry,
    ) -> Result<Self, Failure> {
        let named = manifests::open(name, settings.cache.as_deref())?;
        let root = std::path::absolute(".").map_err(|error| Failure::Refused(error.to_string()))?;
        let rebuilt = replay::recreation(&named.manifest, registry, &root)?;
        check_complete(&rebuilt, targets)?;
        let results = root.join("results").join(&named.manifest.pipeline);
        let project = settings.project(rebuilt.pipeline, rebuilt.sources, targets, results)?;
        let recorded =
            manifests::cache(&named.path, None).ok().map(|cache| Store::open(&cache)).transpose()?;
        Ok(Self { named, project, recorded })
    }

    /// Reports whether the outputs are those recorded.
    pub fn compare(&self, now: &Manifest, as_json: bool) -> Result<(), Failure> {
        let found = outcomes(&self.named.manifest, self.recorded.as_ref(), now, &self.project.store)?;
        if as_json {
            found.iter().for_each(|outcome| print(&format!("{}\n", line(outcome))));
        }
        let done = || found.iter().filter(|outcome| outcome.done());
        let differ: Vec<&ReplayOutcome> = done().filter(|outcome| !outcome.same()).collect();
        if !as_json {
            let cached = done().filter(|outcome| outcome.outcome == Outcome::Cached).count();
            let (same, all) = (done().count() - differ.len(), found.len());
            let cached = if cached > 0 { format!(", {cached} of them cached here") } else { String::new() };
            let path = short_path(&self.named.path);
            print(&format!("\n{path}: {same} of {all} stages have the recorded outputs{cached}\n"));
            if let Some((first, others)) = differ.split_first() {
                print(&format!("first difference: {}", describe(first)));
                let others: Vec<&str> = others.iter().map(|outcome| outcome.stage.as_str()).collect();
                if !others.is_empty() {
                    print(&format!("also different: {}\n", others.join(", ")));
                }
            }
        }
        check_failed(now)?;
        match differ.is_empty() {
            true => Ok(()),
            false => Err(Failure::Different("the outputs differ from those recorded in the manifest".into())),
        }
    }
}

/// Fails before anything runs if not everything can be recreated.
fn check_complete(rebuilt: &RebuiltPipeline, targets: &[String]) -> Result<(), Failure> {
    let lacks = |name: &String| {
        let missing = rebuilt.obstacles.iter().map(|(stage, _)| stage);
        missing.into_iter().any(|stage| stage == name || replay::parts(stage).0 == name)
    };
    // Stages that the recorded run did not reach have no results.
    let missing = rebuilt.obstacles.iter().filter(|(_, obstacle)| *obstacle != ReplayError::NoRecipe);
    let missing: Vec<String> = missing.map(|(stage, obstacle)| format!("\n  {stage}: {obstacle}")).collect();
    let names_elsewhere =
        rebuilt.obstacles.iter().any(|(_, fault)| matches!(fault, ReplayError::Name { .. }));
    let whole = !targets.is_empty() && !names_elsewhere && !targets.iter().any(lacks);
    match whole || missing.is_empty() {
        true if rebuilt.pipeline.stages.is_empty() => {
            Err(Failure::Refused("the manifest records no stage that can be recreated".into()))
        }
        true => Ok(()),
        false => Err(Failure::Refused(format!("cannot recreate the results here:{}", missing.concat()))),
    }
}

/// The stages of `--replay`: one, all, or a number of random ones.
pub(super) fn selected(manifest: &Manifest, which: &str) -> Result<Vec<String>, Failure> {
    replay::selected(manifest, which, random_below).map_err(Failure::Usage)
}

/// The stages that an audit computes again.
pub(super) struct Replay<'a> {
    pub named: &'a Named,
    /// The cache with the recorded inputs.
    pub store: &'a Store,
    /// The stages.
    pub names: &'a [String],
    pub settings: Settings,
    pub how: &'a RunArgs,
    pub as_json: bool,
}

/// Computes stages again in an empty cache, each from its recorded inputs, and compares bytes.
pub(super) fn replay(request: Replay<'_>, registry: &Registry, log: &str) -> Result<(), Failure> {
    let manifest = &request.named.manifest;
    let _use = request.store.shared_lock(|| {})?;
    let clean = EmptyCache::new(request.store)?;
    let rebuilt = replay::replay(manifest, request.names, registry, request.store, clean.path())?;
    let obstacles = rebuilt.obstacles;
    let mut found = Vec::new();
    if !rebuilt.pipeline.stages.is_empty() {
        let settings = Settings { cache: Some(clean.path().join("cache")), ..request.settings };
        let results = clean.path().join("results");
        let project = settings.project(rebuilt.pipeline, rebuilt.sources, &[], results)?;
        let origin = Origin { file: &request.named.path, sets: &[], run: None };
        let now = execute(&project, &[], request.how, origin, progress::progress(), log)?;
        now.check_interrupted()?;
        found = outcomes(manifest, Some(request.store), &now.manifest, &project.store)?;
        // Before the empty cache and its outputs are removed.
        found.iter().for_each(|outcome| print_outcome(outcome, request.as_json));
    }
    for (stage, obstacle) in &obstacles {
        match request.as_json {
            true => print(&format!("{}\n", json!({ "replay": stage, "obstacle": obstacle.to_string() }))),
            false => print(&format!("not replayed: {stage}: {obstacle}\n")),
        }
    }
    let count = |test: fn(&ReplayOutcome) -> bool| found.iter().filter(|outcome| test(outcome)).count();
    let (same, failed) = (count(ReplayOutcome::same), count(|outcome| !outcome.done()));
    if !request.as_json {
        print(&format!(
            "replayed {} of {} stages: {same} byte-identical\n",
            found.len(),
            request.names.len()
        ));
    }
    let differ = found.len() - same - failed;
    match (differ, failed + obstacles.len()) {
        (0, 0) => Ok(()),
        (0, left) => Err(Failure::Refused(format!("no difference, but {left} stages could not be replayed"))),
        _ => Err(Failure::Different("the outputs of a replay differ".into())),
    }
}

fn print_outcome(outcome: &ReplayOutcome, as_json: bool) {
    if as_json {
        print(&format!("{}\n", line(outcome)));
        return;
    }
    match (&outcome.error, outcome.done()) {
        (Some(error), false) => print(&format!("not replayed: {}: it failed: {error}\n", outcome.stage)),
        (None, false) => print(&format!("not replayed: {}: a stage that it reads failed\n", outcome.stage)),
        (_, true) => print(&format!("replayed {}", describe(outcome))),
    }
}

/// An outcome in a line, and the differences below it.
fn describe(outcome: &ReplayOutcome) -> String {
    let ReplayOutcome { stage, changes, differing, seconds: (then, now), .. } = outcome;
    let word = if differing.is_empty() { "byte-identical" } else { "different" };
    let mut text = format!("{stage}: {word}; {} recorded, {} now\n", duration(*then), duration(*now));
    for change in changes {
        text += &format!("    changed: {change}\n");
    }
    for output in differing {
        let digest = |digest: Option<attrflow_engine::identity::digest::Digest>| {
            digest.map_or("none".into(), |d| d.short())
        };
        let below = output.below.as_ref().map(|below| format!(", first {below}")).unwrap_or_default();
        let (port, recorded, found) = (&output.port, digest(output.recorded), digest(output.found));
        text += &format!("    output `{port}`{below}: recorded {recorded}, found {found}\n");
        if let Some(values) = values(output) {
            text += &format!("      {values}\n");
        }
    }
    text
}

/// How the two files of an output differ.
fn values(output: &ArrayDiff) -> Option<String> {
    let (recorded, found) = output.files.as_ref()?;
    Some(compare(recorded, found).map_or_else(|error| error.to_string(), |compared| compared.to_string()))
}

/// An outcome in JSON.
fn line(outcome: &ReplayOutcome) -> serde_json::Value {
    let mut line = json!(outcome);
    line["replay"] = outcome.stage.clone().into();
    line["same"] = outcome.same().into();
    for (place, output) in outcome.differing.iter().enumerate() {
        let compared = output.files.as_ref().and_then(|(recorded, found)| compare(recorded, found).ok());
        line["differing"][place]["compared"] = json!(compared);
    }
    line
}

/// A number below `count` that could not be predicted when the manifest was written.
fn random_below(count: usize) -> usize {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos());
    let hash = blake3::hash(&[now.to_le_bytes(), u128::from(std::process::id()).to_le_bytes()].concat());
    let number = hash.as_bytes().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    (number % count.max(1) as u64) as usize
}

/// A folder for an empty cache, removed with the value.
enum EmptyCache {
    /// In the cache; if this process is killed, a later run removes it.
    Cache(Attempt, #[expect(dead_code, reason = "held until the attempt is removed")] Scratch),
    /// Elsewhere, if the cache is read-only.
    Elsewhere(tempfile::TempDir),
}

impl EmptyCache {
    fn new(store: &Store) -> Result<Self, StoreError> {
        match store.scratch() {
            Ok(scratch) => Ok(Self::Cache(scratch.attempt()?, scratch)),
            Err(error) if error.is_read_only() => Ok(Self::Elsewhere(tempfile::tempdir()?)),
            Err(error) => Err(error),
        }
    }

    fn path(&self) -> &Path {
        match self {
            Self::Cache(attempt, _) => attempt.path(),
            Self::Elsewhere(folder) => folder.path(),
        }
    }
}

/// The path of an output in the results folder; ends in the port if the kind is unknown.
pub(super) fn place(
    record: &attrflow_engine::provenance::manifest::StageRecord,
    port: &str,
    registry: &Registry,
) -> String {
    let file = replay::ports(record, registry).into_iter().find(|known| known.name == port);
    let (base, label) = replay::parts(&record.stage);
    let folder = Path::new(base).join(label.unwrap_or_default());
    let path: PathBuf = folder.join(file.map_or_else(|| port.to_owned(), |known| known.file));
    path.to_string_lossy().into_owned()
}
