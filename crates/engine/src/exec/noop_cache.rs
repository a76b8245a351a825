//! The no-op cache: a run that finds everything cached is repeated without a plan as long as no file has changed.
//!
//! To read a pipeline of a thousand stages and decide on each takes a hundred times as long as to look at the files that
//! the decisions rest on: the pipeline's texts, the sources, the index entries, the objects, and the results folder. A
//! run that finds every stage cached keeps a snapshot of them; a later one with the same arguments that finds them
//! unchanged has the same outcome. It relies on what a plan relies on, sizes and times, and no more.
//!
//! ```text
//! noop-v1/PIPELINE    32 bytes of hash of the arguments, 32 of hash of what follows;
//!                     the snapshot, the run as JSON, each after 8 bytes of length
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

use crate::exec::event::{Event, PlacedArtifact};
use crate::identity::digest::Digest;
use crate::identity::recipe::Numerics;
use crate::identity::regular_file;
use crate::identity::shared_fs;
use crate::pipeline::{Pipeline, RunTable, Source};
use crate::provenance::manifest::{
    self, Base, Conditions, FORMAT, Manifest, Outcome, Program, Repeat, StageRecord,
};
use crate::store::{Area, FollowLinks, Snapshot, Store, StoreError};

/// Everything that the outcome of a run depends on, except for files.
pub struct NoopKey {
    key: Digest,
    /// The pipeline's name, under which its last no-op run is kept.
    name: String,
    /// When the run began, by both clocks.
    begun: (SystemTime, Instant),
}

/// A run that found every stage cached.
#[derive(Debug, Serialize, Deserialize)]
pub struct NoopRun {
    /// The pipeline's name.
    pub pipeline: String,
    /// How to compute.
    pub run: RunTable,
    /// The numerics.
    pub numerics: Numerics,
    /// Stages of the pipeline that were not selected.
    pub left_out: Vec<String>,
    /// The environment variables that the pipeline reads.
    variables: BTreeMap<String, Option<String>>,
    /// The stages in the order of the graph.
    pub stages: Vec<Stage>,
    /// The manifest with the stages' records, and its size.
    base: Base,
    base_bytes: u64,
}

/// A cached stage.
#[derive(Debug, Serialize, Deserialize)]
pub struct Stage {
    /// The stage.
    pub stage: String,
    /// Seconds that it took to compute.
    pub seconds: f64,
    /// Its outputs by port.
    pub outputs: BTreeMap<String, PlacedArtifact>,
}

/// What a run read and found.
pub struct Found<'a> {
    /// The cache.
    pub store: &'a Store,
    /// The pipeline.
    pub pipeline: &'a Pipeline,
    /// The files that it was read from, by each name that led to one.
    pub texts: &'a [PathBuf],
    /// The file that records what is in the results folder, and so what is to be removed from it.
    pub view: &'a Path,
    /// The manifest of the run.
    pub manifest: &'a Manifest,
    /// Where the outputs of cached stages are in the results folder, by stage and port.
    pub shown: &'a BTreeMap<String, BTreeMap<String, PlacedArtifact>>,
}

impl NoopKey {
    /// The key of a run of a pipeline file; `parts` are the arguments that matter, and the program itself.
    pub fn new(file: &Path, parts: &[String]) -> Option<Self> {
        let file = std::path::absolute(file).ok()?;
        let mut hasher = blake3::Hasher::new_derive_key("attrflow no-op run v1");
        let folder = std::env::current_dir().ok()?;
        let texts = [file.display().to_string(), folder.display().to_string()];
        for part in texts.iter().chain(parts) {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        let name = file.file_stem()?.to_string_lossy().into_owned();
        Some(Self { key: hasher.finalize().into(), name, begun: (SystemTime::now(), Instant::now()) })
    }

    fn file(&self, store: &Store) -> PathBuf {
        store.area(Area::Noop).join(&self.name)
    }

    /// Whether a run of this pipeline is kept; whether it is this one takes a look at every file.
    pub fn exists(&self, store: &Store) -> bool {
        shared_fs::exists(self.file(store))
    }

    /// The run that is kept, if it had the same key and no file has changed since.
    pub fn find(&self, store: &Store) -> Option<NoopRun> {
        let bytes = regular_file::read(self.file(store)).ok()?;
        let (key, rest) = bytes.split_first_chunk::<32>()?;
        let (hash, rest) = rest.split_first_chunk::<32>()?;
        if *key != self.key.0 || blake3::hash(rest) != *hash {
            return None;
        }
        let [snapshot, run] = parts(rest)?;
        let run: NoopRun = serde_json::from_slice(run).ok()?;
        let same = |(name, value): (&String, &Option<String>)| std::env::var(name).ok() == *value;
        let unchanged = run.variables.iter().all(same) && Snapshot::unchanged(snapshot);
        let base = store.runs(&run.pipeline).join(&run.base.name);
        let is_there = shared_fs::metadata(base).is_ok_and(|found| found.len() == run.base_bytes);
        (unchanged && is_there).then_some(run)
    }

    /// Keeps a run, if it is a no-op that can be repeated.
    ///
    /// # Errors
    /// A write that failed, unless the cache is read-only.
    pub fn keep(&self, found: &Found<'_>) -> Result<(), StoreError> {
        let Some(snapshot) = self.snapshot(found) else { return Ok(()) };
        let Found { store, pipeline, manifest, shown, texts: _, view: _ } = found;
        let runs = store.runs(&manifest.pipeline);
        let Some(newest) = manifest::list(&runs).into_iter().next() else { return Ok(()) };
        let base = match Repeat::base_of(&newest) {
            Some(base) => base,
            None => Base {
                name: newest.file_name().unwrap_or_default().to_string_lossy().into_owned(),
                digest: blake3::hash(&regular_file::read(&newest)?).into(),
            },
        };
        let base_bytes = shared_fs::metadata(runs.join(&base.name))?.len();
        let stages = manifest.stages.iter().map(|record| Stage {
            stage: record.stage.clone(),
            seconds: record.seconds,
            outputs: shown.get(&record.stage).cloned().unwrap_or_default(),
        });
        let run = NoopRun {
            pipeline: manifest.pipeline.clone(),
            run: pipeline.run.clone(),
            numerics: manifest.numerics.clone(),
            left_out: manifest.left_out.clone(),
            variables: pipeline.variables.clone(),
            stages: stages.collect(),
            base,
            base_bytes,
        };
        let run = serde_json::to_vec(&run).map_err(std::io::Error::from)?;
        let mut rest = Vec::new();
        for part in [snapshot.bytes(), &run] {
            rest.extend_from_slice(&(part.len() as u64).to_le_bytes());
            rest.extend_from_slice(part);
        }
        let bytes = [&self.key.0[..], blake3::hash(&rest).as_bytes(), &rest].concat();
        match store.write(&self.file(store), &bytes) {
            Err(error) if error.is_read_only() => Ok(()),
            result => result,
        }
    }

    /// How all files look that the outcome rests on; `None` for a run that cannot be repeated.
    fn snapshot(&self, found: &Found<'_>) -> Option<Snapshot> {
        use FollowLinks::{Name, Through};
        let Found { store, pipeline, texts, view, manifest, shown } = found;
        // If the clock jumped during the run, times prove nothing.
        let (begun, since) = self.begun;
        if begun.elapsed().ok()?.abs_diff(since.elapsed()) > Duration::from_secs(1) {
            return None;
        }
        // Adopted files have rules of their own. Checked first: most runs end here, and sources may be many files.
        let no_op = |record: &StageRecord| record.outcome == Outcome::Cached && record.adopted.is_none();
        if !manifest.stages.iter().all(no_op) {
            return None;
        }
        // Anything but a regular file, such as a pipe, can have another content and the same look.
        let regular = |text: &PathBuf| shared_fs::metadata(text).is_ok_and(|found| found.is_file());
        let mut snapshot = Snapshot::new(begun);
        let mut add = |look, path: &Path| snapshot.add(look, path).then_some(());
        for text in *texts {
            regular(text).then_some(())?;
            add(Through, text)?;
        }
        add(Through, view)?;
        for source in pipeline.stages.iter().flat_map(|stage| stage.inputs.values()) {
            if let Source::File(path) = source {
                add(Through, path)?;
            }
        }
        for record in &manifest.stages {
            add(Through, &store.entry_path(&record.fingerprint?))?;
            for (port, artifact) in &record.outputs {
                let place = &shown.get(&record.stage)?.get(port)?.path;
                // Equal bytes may have been adopted for another stage.
                let linked = shared_fs::symlink_metadata(place).is_ok_and(|found| found.is_symlink());
                if linked || store.adopted(&artifact.digest).ok()?.is_some() {
                    return None;
                }
                let look = if artifact.folder { Through } else { Name };
                add(look, &store.path(&artifact.digest))?;
                add(look, place)?;
                if artifact.folder {
                    add(Through, &store.listing_path(&artifact.digest))?;
                }
            }
        }
        Some(snapshot)
    }
}

/// Three parts, each after its length.
fn parts(mut bytes: &[u8]) -> Option<[&[u8]; 2]> {
    let mut parts = [&bytes[..0]; 2];
    for part in &mut parts {
        let (length, rest) = bytes.split_first_chunk()?;
        (*part, bytes) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
    }
    bytes.is_empty().then_some(parts)
}

/// Repeats a no-op run: emits the events and writes the manifest of a run that finds everything cached.
pub struct CachedRun<'a> {
    /// The run to repeat.
    pub run: NoopRun,
    /// The cache.
    pub store: &'a Store,
    /// The pipeline file, for the manifest.
    pub file: &'a Path,
    /// The `--set` arguments, for the manifest.
    pub sets: Vec<String>,
    /// The program that runs, for the manifest.
    pub program: Program,
    /// Workers, threads and devices, for the manifest.
    pub conditions: Conditions,
    /// When the run began.
    pub begun: Instant,
    /// Called with each event.
    pub emit: &'a dyn Fn(Event),
}

impl CachedRun<'_> {
    /// Emits the events and writes the manifest. The one returned has no stages: they are in its file alone.
    ///
    /// # Errors
    /// A store that cannot be written to, for another reason than that it is read-only.
    pub fn execute(self) -> Result<(Manifest, Option<PathBuf>), StoreError> {
        let Self { run, store, file, sets, program, conditions, begun, emit } = self;
        let Conditions { jobs, threads, devices, .. } = conditions.clone();
        let started = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
        let stages = run.stages.len();
        emit(Event::RunStarted { pipeline: run.pipeline.clone(), stages, jobs, threads, devices });
        for Stage { stage, outputs, .. } in run.stages {
            emit(Event::StageCached { stage, outputs, adopted: None });
        }
        let seconds = begun.elapsed().as_secs_f64();
        let manifest = Manifest {
            format: FORMAT,
            attrflow: program,
            pipeline: run.pipeline,
            file: file.to_path_buf(),
            root: None,
            within: None,
            sets,
            started,
            seconds,
            numerics: run.numerics,
            conditions,
            left_out: run.left_out,
            stages: Vec::new(),
        };
        let folder = store.runs(&manifest.pipeline);
        let path = match manifest::write_repeat(&folder, &manifest, &run.base).map_err(StoreError::from) {
            Err(error) if error.is_read_only() => {
                let message = format!("read-only file system ({error}); not saved: the manifest");
                emit(Event::Log { level: "WARN".into(), message });
                None
            }
            path => Some(path?),
        };
        emit(Event::RunFinished {
            seconds,
            cached: stages,
            ran: 0,
            failed: 0,
            blocked: 0,
            interrupted: 0,
            manifest: path.clone(),
        });
        Ok((manifest, path))
    }
}
