//! What a manifest records, computed once more: `run --from` and `audit --replay`.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;

use super::failure::Failure;
use super::manifests::{self, Named};
use super::project::{Project, Settings};
use super::run_args::{Origin, RunArgs, all_done, execute};
use crate::io::compare::compare;
use crate::progress::{self, duration, print, short_path};
use attrflow_engine::kind::Registry;
use attrflow_engine::provenance::manifest::{Manifest, Outcome};
use attrflow_engine::provenance::replay::{
    self, ArrayDiff, RebuiltPipeline, ReplayError, ReplayOutcome, outcomes,
};
use attrflow_engine::store::{Attempt, Scratch, Store, StoreError};

/// A manifest to be created again, here.
pub(super) struct Recreation {
    pub named: Named,
    pub project: Project,
    /// The cache that the manifest stands in, which may still hold what it records.
    then: Option<Store>,
}

impl Recreation {
    /// Makes a pipeline from the manifest, and finds its sources.
    pub fn open(
        name: &str,
        settings: &Settings,
        targets: &[String],
        registry: &Registry,
    ) -> Result<Self, Failure> {
        let named = manifests::open(name, settings.cache.as_deref())?;
        let root = std::path::absolute(".").map_err(|error| Failure::Refused(error.to_string()))?;
        let rebuilt = replay::recreation(&named.manifest, registry, &root)?;
        refuse(&rebuilt, targets)?;
        let results = root.join("results").join(&named.manifest.pipeline);
        let project = settings.project(rebuilt.pipeline, rebuilt.sources, targets, results)?;
        let then = manifests::cache(&named.path, None).ok().map(|cache| Store::open(&cache)).transpose()?;
        Ok(Self { named, project, then })
    }

    /// Says whether the recorded bytes came out.
    pub fn compare(&self, now: &Manifest, as_json: bool) -> Result<(), Failure> {
        let found = outcomes(&self.named.manifest, self.then.as_ref(), now, &self.project.store)?;
        if as_json {
            found.iter().for_each(|verdict| print(&format!("{}\n", line(verdict))));
        }
        let done = || found.iter().filter(|verdict| verdict.done());
        let differ: Vec<&ReplayOutcome> = done().filter(|verdict| !verdict.same()).collect();
        if !as_json {
            let reused = done().filter(|verdict| verdict.outcome == Outcome::Reused).count();
            let (same, all) = (done().count() - differ.len(), found.len());
            let reused =
                if reused > 0 { format!(", {reused} of them from this cache") } else { String::new() };
            let path = short_path(&self.named.path);
            print(&format!("\n{path}: {same} of {all} stages gave the recorded bytes{reused}\n"));
            if let Some((first, others)) = differ.split_first() {
                print(&format!("first difference: {}", describe(first)));
                let others: Vec<&str> = others.iter().map(|verdict| verdict.stage.as_str()).collect();
                if !others.is_empty() {
                    print(&format!("behind it: {}\n", others.join(", ")));
                }
            }
        }
        all_done(now)?;
        match differ.is_empty() {
            true => Ok(()),
            false => Err(Failure::Different("the run gave other bytes than the manifest records".into())),
        }
    }
}

/// Refuses what cannot be created again as a whole, before anything runs.
fn refuse(rebuilt: &RebuiltPipeline, targets: &[String]) -> Result<(), Failure> {
    let lacks = |name: &String| {
        let missing = rebuilt.obstacles.iter().map(|(stage, _)| stage);
        missing.into_iter().any(|stage| stage == name || replay::parts(stage).0 == name)
    };
    // What the recorded run did not come to is no part of what it gave.
    let missing = rebuilt.obstacles.iter().filter(|(_, obstacle)| *obstacle != ReplayError::NoRecipe);
    let missing: Vec<String> = missing.map(|(stage, obstacle)| format!("\n  {stage}: {obstacle}")).collect();
    let names_elsewhere =
        rebuilt.obstacles.iter().any(|(_, fault)| matches!(fault, ReplayError::Name { .. }));
    let whole = !targets.is_empty() && !names_elsewhere && !targets.iter().any(lacks);
    match whole || missing.is_empty() {
        true if rebuilt.pipeline.stages.is_empty() => {
            Err(Failure::Refused("the manifest records nothing that can be created again".into()))
        }
        true => Ok(()),
        false => Err(Failure::Refused(format!("it cannot be created again here:{}", missing.concat()))),
    }
}

/// The stages that `--replay` means: one, all, or so many drawn by chance.
pub(super) fn chosen(manifest: &Manifest, which: &str) -> Result<Vec<String>, Failure> {
    replay::selected(manifest, which, draw).map_err(Failure::Usage)
}

/// What an audit is asked to compute once more.
pub(super) struct Replay<'a> {
    pub named: &'a Named,
    /// The cache that holds the recorded inputs.
    pub store: &'a Store,
    /// The stages.
    pub names: &'a [String],
    pub settings: Settings,
    pub how: &'a RunArgs,
    pub as_json: bool,
}

/// Computes stages once more in a clean store, each from its recorded inputs, and compares bytes.
pub(super) fn replay(ask: Replay<'_>, registry: &Registry, log: &str) -> Result<(), Failure> {
    let manifest = &ask.named.manifest;
    let _use = ask.store.shared_lock(|| {})?;
    let clean = Clean::new(ask.store)?;
    let rebuilt = replay::replay(manifest, ask.names, registry, ask.store, clean.path())?;
    let obstacles = rebuilt.obstacles;
    let mut found = Vec::new();
    if !rebuilt.pipeline.stages.is_empty() {
        let settings = Settings { cache: Some(clean.path().join("cache")), ..ask.settings };
        let results = clean.path().join("results");
        let project = settings.project(rebuilt.pipeline, rebuilt.sources, &[], results)?;
        let origin = Origin { file: &ask.named.path, sets: &[] };
        let now = execute(&project, &[], ask.how, origin, progress::progress(), log)?;
        found = outcomes(manifest, Some(ask.store), &now.manifest, &project.store)?;
        // Before the clean store goes, with one of the files that differ.
        found.iter().for_each(|verdict| show(verdict, ask.as_json));
    }
    for (stage, obstacle) in &obstacles {
        match ask.as_json {
            true => print(&format!("{}\n", json!({ "replay": stage, "obstacle": obstacle.to_string() }))),
            false => print(&format!("not replayed: {stage}: {obstacle}\n")),
        }
    }
    let count = |test: fn(&ReplayOutcome) -> bool| found.iter().filter(|verdict| test(verdict)).count();
    let (same, failed) = (count(ReplayOutcome::same), count(|verdict| !verdict.done()));
    if !ask.as_json {
        print(&format!(
            "replayed {} of {} stages: {same} gave the same bytes\n",
            found.len(),
            ask.names.len()
        ));
    }
    let differ = found.len() - same - failed;
    match (differ, failed + obstacles.len()) {
        (0, 0) => Ok(()),
        (0, left) => Err(Failure::Refused(format!("no difference, but {left} stages could not be replayed"))),
        _ => Err(Failure::Different("a replay gave other bytes".into())),
    }
}

fn show(verdict: &ReplayOutcome, as_json: bool) {
    if as_json {
        print(&format!("{}\n", line(verdict)));
        return;
    }
    match (&verdict.error, verdict.done()) {
        (Some(error), false) => print(&format!("not replayed: {}: it failed: {error}\n", verdict.stage)),
        (None, false) => print(&format!("not replayed: {}: a stage that it reads failed\n", verdict.stage)),
        (_, true) => print(&format!("replayed {}", describe(verdict))),
    }
}

/// A verdict in a line, and below it what differs.
fn describe(verdict: &ReplayOutcome) -> String {
    let ReplayOutcome { stage, changes, differing, seconds: (then, now), .. } = verdict;
    let word = if differing.is_empty() { "the same bytes" } else { "other bytes" };
    let mut text = format!("{stage}: {word}, {} then and {} now\n", duration(*then), duration(*now));
    for change in changes {
        text += &format!("    not as it was: {change}\n");
    }
    for output in differing {
        let digest = |digest: Option<attrflow_engine::identity::digest::Digest>| {
            digest.map_or("nothing".into(), |d| d.short())
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

/// How the two files of an output differ, as far as they can be read.
fn values(output: &ArrayDiff) -> Option<String> {
    let (recorded, found) = output.files.as_ref()?;
    Some(compare(recorded, found).map_or_else(|error| error.to_string(), |compared| compared.to_string()))
}

/// A verdict for programs.
fn line(verdict: &ReplayOutcome) -> serde_json::Value {
    let mut line = json!(verdict);
    line["replay"] = verdict.stage.clone().into();
    line["same"] = verdict.same().into();
    for (place, output) in verdict.differing.iter().enumerate() {
        let compared = output.files.as_ref().and_then(|(recorded, found)| compare(recorded, found).ok());
        line["differing"][place]["compared"] = json!(compared);
    }
    line
}

/// A number below `count` that nobody can have foreseen when the manifest was made.
fn draw(count: usize) -> usize {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos());
    let hash = blake3::hash(&[now.to_le_bytes(), u128::from(std::process::id()).to_le_bytes()].concat());
    let number = hash.as_bytes().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    (number % count.max(1) as u64) as usize
}

/// A place for a store that holds nothing yet; it goes with the value.
enum Clean {
    /// In the cache, swept by a later run if this one is killed.
    Cache(Attempt, #[expect(dead_code, reason = "held until the attempt is gone")] Scratch),
    /// Elsewhere, where the cache cannot be written.
    Elsewhere(tempfile::TempDir),
}

impl Clean {
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

/// The results folder's name of an output, as its kind gives it; its port where the kind is not known.
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
