//! The messages to the state of a run, and the effects that follow.

use std::collections::BTreeMap;
use std::time::Instant;

use super::event::{Event, PlacedArtifact};
use super::work::Work;
use crate::identity::recipe::Recipe;
use crate::plan::Reason;
use crate::provenance::manifest::StageWorkers;
use crate::store::{Entry, StoreError};
use crate::worker::protocol::Reply;

/// Why a run ends without a manifest.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The store could not be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A worker cannot serve this run, whatever the task.
    #[error("{0}")]
    Worker(String),
}

/// An event of a stage or unit. The unit is `None` for a stage without units, and for the merge of the units.
pub(super) enum Message {
    /// The run begins.
    Begin,
    /// The planner's decision on a stage.
    Decided(usize, Decision),
    /// The results of a stage show in the results folder; with the seconds that it took, none where it was not computed here.
    Placed(usize, Box<Entry>, Option<f64>, BTreeMap<String, PlacedArtifact>),
    Started(usize, Option<usize>),
    Reply(usize, Option<usize>, Reply),
    /// The result, and the seconds that it took; none where another run had computed it.
    Done(usize, Option<usize>, Box<Entry>, Option<f64>),
    Failed(usize, Option<usize>, String),
    /// A warning that belongs to no stage.
    Warn(String),
    /// A worker computed a task.
    Took(Took),
    /// A worker on a cluster computed a part of a stage.
    Used(usize, Box<StageWorkers>),
    /// Another run computes it; sent again and again while that lasts.
    LockWait(usize, Option<usize>, Instant),
    /// So many jobs ended without a result: their stage failed, or the run was stopped.
    Dropped(usize),
    /// The run is asked to stop.
    Stop,
    /// No stage can be computed.
    Broken(RunError),
    /// The run is over.
    End,
}

/// When a task was computed, and by whom.
pub(super) struct Took {
    pub stage: usize,
    pub worker: String,
    pub begin: Instant,
    pub end: Instant,
    pub peak_memory: u64,
}

/// What to do with a stage.
pub(super) enum Decision {
    /// Wait for the stages that it reads.
    Pending,
    /// Take the cached result.
    Cached(Box<Entry>),
    /// Compute what is missing of it.
    Run(Box<Work>, Reason),
    /// It cannot run; with its recipe where that is known.
    Fail(Option<Box<Recipe>>, String),
}

/// What the state of a run asks for.
#[derive(Debug)]
pub(super) enum Effect {
    Emit(Event),
    /// Ask the planner.
    Decide(usize),
    /// Show a stage's results in the results folder.
    Place(usize, Box<Entry>, Option<f64>),
    /// Queue jobs of a stage.
    Enqueue(usize, Part),
    /// Drop the queued jobs of a stage.
    CancelStage(usize),
    /// Drop all queued jobs.
    ClearQueue,
    /// End the run without a manifest.
    Abort(RunError),
}

/// The part of a stage that is queued.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Part {
    Whole,
    Units(Vec<usize>),
    Merge,
}
