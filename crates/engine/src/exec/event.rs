//! What happens during a run, as typed values: the engine emits them, reporters show them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::plan::Reason;
use crate::store::{Adopted, Artifact};

/// Something that happened.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The run begins.
    RunStarted {
        /// The pipeline's name.
        pipeline: String,
        /// How many stages it will look at.
        stages: usize,
        /// Workers at once.
        jobs: usize,
        /// Threads of each worker.
        threads: usize,
        /// Devices of the workers.
        devices: Vec<String>,
    },
    /// A stage's result was in the cache.
    StageCached {
        /// The stage.
        stage: String,
        /// Its outputs by port.
        outputs: BTreeMap<String, PlacedArtifact>,
        /// Where the outputs come from, if they were adopted.
        #[serde(skip_serializing_if = "Option::is_none")]
        adopted: Option<Adopted>,
    },
    /// A stage begins to compute.
    StageStarted {
        /// The stage.
        stage: String,
        /// Why it must.
        reason: Reason,
        /// Its units, 1 for a stage of one piece.
        units: usize,
        /// Units that were in the cache.
        units_reused: usize,
        /// Work still to do, in the kind's steps; 0 where the kind does not say.
        steps: u64,
    },
    /// A worker begins with a unit.
    UnitStarted {
        /// The stage.
        stage: String,
        /// The unit; none for a stage of one piece, and for joining the units.
        unit: Option<String>,
    },
    /// A unit came further.
    Progress {
        /// The stage.
        stage: String,
        /// Steps of the stage that are done, in this run.
        done: u64,
        /// Steps of the stage to do, in this run.
        total: u64,
    },
    /// A unit is done and kept.
    UnitFinished {
        /// The stage.
        stage: String,
        /// The unit.
        unit: String,
        /// Seconds that it took; 0 where another process computed it meanwhile.
        seconds: f64,
    },
    /// A stage is done and kept.
    StageFinished {
        /// The stage.
        stage: String,
        /// Seconds of computing, summed over its units of this run.
        seconds: f64,
        /// Its outputs by port.
        outputs: BTreeMap<String, PlacedArtifact>,
    },
    /// A stage failed; nothing of the failed unit is kept.
    StageFailed {
        /// The stage.
        stage: String,
        /// The unit that failed.
        unit: Option<String>,
        /// What went wrong, outermost first.
        error: String,
    },
    /// A stage could not start.
    StageBlocked {
        /// The stage.
        stage: String,
        /// The failed stage that it waits for.
        by: String,
    },
    /// A worker has something to say.
    Log {
        /// `WARN`, `INFO`, `DEBUG` or `TRACE`.
        level: String,
        /// The message.
        message: String,
    },
    /// The run was asked to stop.
    Stopping {
        /// Whether at once: what the workers are at is lost. Otherwise it is finished first.
        now: bool,
        /// Tasks that the workers are at.
        working: usize,
    },
    /// The run is over.
    RunFinished {
        /// Seconds from start to end.
        seconds: f64,
        /// Stages by outcome.
        reused: usize,
        /// Stages that computed.
        ran: usize,
        /// Stages that failed.
        failed: usize,
        /// Stages that could not start.
        blocked: usize,
        /// Stages that were not done when the run was stopped.
        interrupted: usize,
        /// The manifest, where one could be written.
        manifest: Option<PathBuf>,
    },
}

/// An output and where people find it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PlacedArtifact {
    /// The bytes.
    #[serde(flatten)]
    pub artifact: Artifact,
    /// The path in the results folder.
    pub path: PathBuf,
}
