//! The events of a run: the engine emits them, reporters show them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::plan::Reason;
use crate::store::{Adopted, Artifact};

/// An event of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The run started.
    RunStarted {
        /// The pipeline's name.
        pipeline: String,
        /// The number of selected stages.
        stages: usize,
        /// The number of workers.
        jobs: usize,
        /// Threads of each worker.
        threads: usize,
        /// Devices of the workers.
        devices: Vec<String>,
    },
    /// A stage's result is in the cache.
    StageCached {
        /// The stage.
        stage: String,
        /// Its outputs by port.
        outputs: BTreeMap<String, PlacedArtifact>,
        /// Where the outputs come from, if they were adopted.
        #[serde(skip_serializing_if = "Option::is_none")]
        adopted: Option<Adopted>,
    },
    /// A stage started to compute.
    StageStarted {
        /// The stage.
        stage: String,
        /// Why it computes.
        reason: Reason,
        /// The number of its units; 1 for a stage without units.
        units: usize,
        /// Units that are in the cache.
        units_cached: usize,
        /// The work to do, in steps of the kind; 0 where the kind does not count steps.
        steps: u64,
    },
    /// A worker started a unit.
    UnitStarted {
        /// The stage.
        stage: String,
        /// The unit; none for a stage without units, and for the merge of units.
        unit: Option<String>,
    },
    /// Progress of a stage.
    Progress {
        /// The stage.
        stage: String,
        /// Steps done in this run.
        done: u64,
        /// Steps to do in this run.
        total: u64,
        /// How it goes, in a few words.
        #[serde(skip_serializing_if = "Option::is_none")]
        note: Option<String>,
    },
    /// A unit finished and is in the cache.
    UnitFinished {
        /// The stage.
        stage: String,
        /// The unit.
        unit: String,
        /// Seconds of computing; 0 if another process computed it.
        seconds: f64,
    },
    /// A stage finished and is in the cache.
    StageFinished {
        /// The stage.
        stage: String,
        /// Seconds of computing, summed over its units of this run.
        seconds: f64,
        /// Its outputs by port.
        outputs: BTreeMap<String, PlacedArtifact>,
    },
    /// A stage failed; the failed unit is discarded.
    StageFailed {
        /// The stage.
        stage: String,
        /// The unit that failed.
        unit: Option<String>,
        /// The error, outermost first.
        error: String,
    },
    /// A stage cannot start.
    StageBlocked {
        /// The stage.
        stage: String,
        /// The failed stage that it depends on.
        by: String,
    },
    /// The workers of a pool on a cluster.
    Pool {
        /// The pool.
        pool: String,
        /// Workers that run.
        running: usize,
        /// Workers that wait in the scheduler's queue.
        pending: usize,
        /// Why they wait, in the scheduler's word.
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// A log message of a worker.
    Log {
        /// `WARN`, `INFO`, `DEBUG` or `TRACE`.
        level: String,
        /// The message.
        message: String,
    },
    /// The run got a stop request.
    Stopping {
        /// Whether running units are killed; otherwise they finish first.
        now: bool,
        /// The number of running units.
        working: usize,
    },
    /// The run ended.
    RunFinished {
        /// Seconds from start to end.
        seconds: f64,
        /// Stages whose results were in the cache.
        cached: usize,
        /// Stages that ran.
        ran: usize,
        /// Stages that failed.
        failed: usize,
        /// Stages blocked by a failure.
        blocked: usize,
        /// Stages that had not finished when the run was stopped.
        interrupted: usize,
        /// The manifest; none if the cache is read-only.
        manifest: Option<PathBuf>,
    },
}

/// An output and its path in the results folder.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PlacedArtifact {
    /// The bytes.
    #[serde(flatten)]
    pub artifact: Artifact,
    /// The path in the results folder.
    pub path: PathBuf,
}
