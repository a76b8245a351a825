//! What a run found that found everything done, recalled as long as nothing looks otherwise.
//!
//! Reading a pipeline of a thousand stages and judging each takes a hundred times as long as a look at the files that the
//! judgement rests on: the pipeline's texts, the sources, the index entries, the objects, and what shows in the results folder. A
//! run that reuses every stage notes how they looked; a later one of the same question that finds them so has the same answer.
//! It trusts what the slow way trusts, sizes and times, and no more: what changed within the clock's last tick is not noted.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::exec::event::PlacedArtifact;
use crate::identity::digest::Digest;
use crate::identity::recipe::Numerics;
use crate::pipeline::{Pipeline, RunTable, Source};
use crate::provenance::manifest::{Manifest, Outcome};
use crate::store::{FollowLinks, Snapshot, Store, StoreError};

/// The folder of what is recalled; another form gets another name.
const FOLDER: &str = "recall-v1";
/// A file that changed this short a time before it was read may have changed again in the same tick of the clock.
const TICK: Duration = Duration::from_millis(50);

/// What was asked: everything that the answer depends on and that is no file.
pub struct NoopKey {
    key: Digest,
    /// The pipeline's name, under which the last answer stands.
    name: String,
    /// When it was asked, by both clocks.
    asked: (SystemTime, Instant),
}

/// The answer: every stage is reused.
#[derive(Debug, Serialize, Deserialize)]
pub struct NoopRun {
    /// The pipeline's name.
    pub pipeline: String,
    /// How to compute.
    pub run: RunTable,
    /// The numerics.
    pub numerics: Numerics,
    /// Stages of the pipeline that were not asked for.
    pub left_out: Vec<String>,
    /// The variables of the environment that the pipeline asks for.
    variables: BTreeMap<String, Option<String>>,
    /// The stages in the order of the graph.
    pub stages: Vec<Stage>,
    /// All that was read, at whose end stand the records.
    #[serde(skip)]
    bytes: Vec<u8>,
    #[serde(skip)]
    records: usize,
}

impl NoopRun {
    /// The stages' records as a manifest holds them.
    pub fn records(&self) -> &[u8] {
        &self.bytes[self.bytes.len() - self.records..]
    }
}

/// A stage that is reused.
#[derive(Debug, Serialize, Deserialize)]
pub struct Stage {
    /// The stage.
    pub stage: String,
    /// Seconds that it took to compute.
    pub seconds: f64,
    /// Its outputs by port.
    pub outputs: BTreeMap<String, PlacedArtifact>,
}

/// What a run found.
pub struct Found<'a> {
    /// The cache.
    pub store: &'a Store,
    /// The pipeline.
    pub pipeline: &'a Pipeline,
    /// The files that it was read from, by each name that led to one.
    pub texts: &'a [PathBuf],
    /// The file that says what shows in the results folder, and so what is to go from it.
    pub view: &'a Path,
    /// The record of the run.
    pub manifest: &'a Manifest,
    /// Where the outputs of reused stages show, by stage and port.
    pub shown: &'a BTreeMap<String, BTreeMap<String, PlacedArtifact>>,
}

impl NoopKey {
    /// What is asked of a pipeline file; `parts` are the arguments that count, and the program itself.
    pub fn new(file: &Path, parts: &[String]) -> Option<Self> {
        let file = std::path::absolute(file).ok()?;
        let mut hasher = blake3::Hasher::new_derive_key("attrflow recalled question v1");
        let folder = std::env::current_dir().ok()?;
        let texts = [file.display().to_string(), folder.display().to_string()];
        for part in texts.iter().chain(parts) {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        let name = file.file_stem()?.to_string_lossy().into_owned();
        Some(Self { key: hasher.finalize().into(), name, asked: (SystemTime::now(), Instant::now()) })
    }

    fn file(&self, store: &Store) -> PathBuf {
        store.root().join(FOLDER).join(&self.name)
    }

    /// Whether there is an answer to anything: what it would be takes a look at every file.
    pub fn noted(&self, store: &Store) -> bool {
        self.file(store).exists()
    }

    /// The answer of an earlier run, if it was asked the same and nothing looks otherwise.
    pub fn recall(&self, store: &Store) -> Option<NoopRun> {
        let bytes = fs_err::read(self.file(store)).ok()?;
        let (key, rest) = bytes.split_first_chunk::<32>()?;
        if *key != self.key.0 {
            return None;
        }
        // What was cut short or changed would be taken for what it is not.
        let (check, rest) = rest.split_first_chunk::<32>()?;
        if blake3::hash(rest).as_bytes() != check {
            return None;
        }
        let [watch, head, records] = parts(rest)?;
        let records = records.len();
        let recalled: NoopRun = serde_json::from_slice(head).ok()?;
        let set = |(name, value): (&String, &Option<String>)| std::env::var(name).ok() == *value;
        if !recalled.variables.iter().all(set) || !Snapshot::unchanged(watch) {
            return None;
        }
        Some(NoopRun { records, bytes, ..recalled })
    }

    /// Notes the answer of a run, if it is one that can be recalled.
    ///
    /// # Errors
    /// A write that failed, unless the cache is read-only.
    pub fn note(&self, found: &Found<'_>) -> Result<(), StoreError> {
        let Some(watch) = self.watch(found) else { return Ok(()) };
        let Found { store, pipeline, manifest, shown, texts: _, view: _ } = found;
        let stages = manifest.stages.iter().map(|record| Stage {
            stage: record.stage.clone(),
            seconds: record.seconds,
            outputs: shown.get(&record.stage).cloned().unwrap_or_default(),
        });
        let head = NoopRun {
            pipeline: manifest.pipeline.clone(),
            run: pipeline.run.clone(),
            numerics: manifest.numerics.clone(),
            left_out: manifest.left_out.clone(),
            variables: pipeline.variables.clone(),
            stages: stages.collect(),
            bytes: Vec::new(),
            records: 0,
        };
        let head = serde_json::to_vec(&head).map_err(std::io::Error::from)?;
        let records = manifest.records()?;
        let mut rest = Vec::new();
        for part in [watch.bytes(), &head, records.as_bytes()] {
            rest.extend_from_slice(&(part.len() as u64).to_le_bytes());
            rest.extend_from_slice(part);
        }
        let bytes = [&self.key.0[..], blake3::hash(&rest).as_bytes(), &rest].concat();
        match store.write(&self.file(store), &bytes) {
            Err(error) if error.is_read_only() => Ok(()),
            result => result,
        }
    }

    /// How everything looks that the answer rests on; `None` where it cannot be recalled.
    fn watch(&self, found: &Found<'_>) -> Option<Snapshot> {
        let Found { store, pipeline, texts, view, manifest, shown } = found;
        // With a clock that jumped meanwhile, times tell nothing.
        let (began, since) = self.asked;
        let passed = began.elapsed().ok()?;
        if passed.abs_diff(since.elapsed()) > Duration::from_secs(1) {
            return None;
        }
        // What was adopted has rules of its own. Asked first: most runs end here, and sources may be many files.
        if manifest.stages.iter().any(|record| record.outcome != Outcome::Cached || record.adopted.is_some())
        {
            return None;
        }
        let before = began.checked_sub(TICK)?.duration_since(UNIX_EPOCH).ok()?.as_nanos() as i128;
        let mut watch = Snapshot::default();
        // What is no plain file, such as a pipe, does not look otherwise when it says something else.
        let plain = |text: &PathBuf| fs_err::metadata(text).is_ok_and(|found| found.is_file());
        let mut texts = texts.iter().map(PathBuf::as_path).chain([*view]);
        let mut all =
            found.texts.iter().all(plain) && texts.all(|text| watch.add(FollowLinks::Through, text, before));
        for stage in &pipeline.stages {
            let files = stage.inputs.values().filter_map(|source| match source {
                Source::File(path) => Some(path),
                Source::Port { .. } => None,
            });
            for file in files {
                all = all && watch.add(FollowLinks::Through, file, before);
            }
        }
        for record in &manifest.stages {
            all = all && watch.add(FollowLinks::Through, &store.entry_path(&record.fingerprint?), before);
            for (port, artifact) in &record.outputs {
                let look = if artifact.folder { FollowLinks::Through } else { FollowLinks::Name };
                let place = &shown.get(&record.stage)?.get(port)?.path;
                // Equal bytes may have been adopted for another stage.
                let linked = fs_err::symlink_metadata(place).is_ok_and(|found| found.is_symlink());
                if linked || store.adopted(&artifact.digest).ok()?.is_some() {
                    return None;
                }
                all = all
                    && watch.add(look, &store.path(&artifact.digest), before)
                    && watch.add(look, place, before)
                    && (!artifact.folder
                        || watch.add(FollowLinks::Through, &store.listing_path(&artifact.digest), before));
            }
        }
        all.then_some(watch)
    }
}

/// Three parts, each behind its length.
fn parts(mut bytes: &[u8]) -> Option<[&[u8]; 3]> {
    let mut parts = [&bytes[..0]; 3];
    for part in &mut parts {
        let (length, rest) = bytes.split_first_chunk()?;
        (*part, bytes) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
    }
    bytes.is_empty().then_some(parts)
}
