//! A run whose answer is recalled: it tells and records what a run tells and records that finds everything done.

use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::exec::event::Event;
use crate::exec::noop_cache::{NoopRun, Stage};
use crate::provenance::manifest::{self, Conditions, FORMAT, Manifest, Program};
use crate::store::{Store, StoreError};

/// What surrounds the run.
pub struct CachedRun<'a> {
    /// The answer.
    pub recalled: NoopRun,
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
    /// Hears what happens.
    pub emit: &'a dyn Fn(Event),
}

impl CachedRun<'_> {
    /// Tells of each stage, and writes the manifest. The one returned holds no stages: they stand in its file alone.
    ///
    /// # Errors
    /// A store that cannot be written, for another reason than that it is read-only.
    pub fn execute(self) -> Result<(Manifest, Option<PathBuf>), StoreError> {
        let Self { mut recalled, store, file, sets, program, conditions, begun, emit } = self;
        let Conditions { jobs, threads, devices, .. } = conditions.clone();
        let started = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
        let (pipeline, stages) = (recalled.pipeline.clone(), recalled.stages.len());
        emit(Event::RunStarted { pipeline, stages, jobs, threads, devices });
        for Stage { stage, outputs, .. } in std::mem::take(&mut recalled.stages) {
            emit(Event::StageCached { stage, outputs, adopted: None });
        }
        let seconds = begun.elapsed().as_secs_f64();
        let manifest = Manifest {
            format: FORMAT,
            attrflow: program,
            pipeline: recalled.pipeline.clone(),
            file: file.to_path_buf(),
            sets,
            started,
            seconds,
            numerics: recalled.numerics.clone(),
            conditions,
            left_out: recalled.left_out.clone(),
            stages: Vec::new(),
        };
        let folder = store.runs(&manifest.pipeline);
        let written = manifest::write_with(&folder, &manifest, recalled.records()).map_err(StoreError::from);
        let path = match written {
            Err(error) if error.is_read_only() => {
                let message = format!("nothing can be written ({error}), so not kept: the manifest");
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
