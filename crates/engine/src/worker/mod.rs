//! Who computes a task: what a backend is, the protocol to its workers, and the backend on this machine.

pub mod cancel;
pub mod local;
pub mod measure;
pub mod protocol;
pub mod serve;
pub mod signals;

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::identity::digest::Digest;
use crate::identity::recipe::Recipe;
use crate::kind::KindInfo;
use cancel::Cancel;
use measure::{CostModel, MeasureRequest};
use protocol::{DeviceClass, Facts, Reply, TaskBatch, TaskError, Usage};

/// Provides workers.
pub trait Backend: Sync {
    /// How many workers may run at once.
    fn slots(&self) -> usize;
    /// What its workers compute on where the user leaves it open.
    fn device_class(&self) -> DeviceClass;
    /// The pool of a slot: its workers are alike, and may serve other kinds than those of other pools.
    fn pool(&self, _slot: usize) -> usize {
        0
    }
    /// Whether the workers of a pool compute stages of a kind.
    fn serves(&self, _pool: usize, _kind: &KindInfo) -> bool {
        true
    }
    /// Seconds of work that a worker of a pool is given at once; 0 gives it one batch after the other.
    fn seconds_at_once(&self, _pool: usize) -> f64 {
        0.0
    }
    /// Whether a lock of this host is respected by its workers' hosts, once that is known; and how long a holder of a lease, which
    /// is used in its place, may be silent.
    fn locks_hold(&self) -> Option<(bool, Duration)> {
        None
    }
    /// A worker that is ready for tasks, waited for; `None` where no job waits for it any more.
    ///
    /// No lock is held meanwhile: a worker may have to wait in a queue for hours.
    ///
    /// # Errors
    /// Why there is none.
    fn next(&self, request: &Request<'_>) -> Result<Option<Box<dyn Worker>>, TaskError>;
}

/// A worker that a run asks for.
pub struct Request<'a> {
    /// The slot that it is for.
    pub slot: usize,
    /// Whether it needs libtorch.
    pub libtorch: bool,
    /// How many jobs wait for such workers.
    pub waiting: &'a dyn Fn() -> usize,
    /// Whether the run is to stop.
    pub cancel: &'a Cancel,
}

/// What a worker is given at once.
pub struct Work {
    /// Batches, computed in this order; their tasks are numbered across all.
    pub batches: Vec<TaskBatch>,
    /// What it takes to keep the result of each task; none for a worker that is gone when the run is.
    pub notes: Vec<Note>,
}

/// What it takes to keep the result of a task, also in a later run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Note {
    /// What the task computes.
    pub recipe: Recipe,
    /// Where it writes its outputs below its folder, by port; a unit's is the folder itself.
    pub outputs: Vec<(String, PathBuf)>,
    /// What it reads outside the store, with the digests in the recipe.
    pub sources: Vec<(PathBuf, Digest)>,
    /// Seconds that its units took, of a merge.
    pub spent: f64,
}

/// A worker's place on a cluster.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Place {
    /// Its pool.
    pub pool: String,
    /// The worker, by its job and node.
    pub worker: String,
    /// The node.
    pub node: String,
    /// How long it had waited in the scheduler's queue, in seconds.
    pub queue_seconds: f64,
}

/// Runs tasks one after the other.
pub trait Worker {
    /// Its hello, sent before its first task.
    fn facts(&self) -> &Facts;
    /// Runs tasks; `on_reply` gets progress, log lines and the numbers of tasks that are done.
    ///
    /// # Errors
    /// Why there is no result, of the first batch with a task that is not done.
    fn run(&mut self, work: &Work, on_reply: &mut dyn FnMut(Reply)) -> Result<Usage, TaskError>;
    /// The process group that it works in, to be killed where it must end at once.
    fn group(&self) -> Option<u32> {
        None
    }
    /// Where on a cluster it is; `None` on this machine.
    fn place(&self) -> Option<Place> {
        None
    }
    /// The time that is left to it; `None` without a limit.
    fn remaining(&self) -> Option<Duration> {
        None
    }
    /// Does a small part of a stage's work, to be timed.
    ///
    /// # Errors
    /// Why nothing was measured.
    fn measure(&mut self, _request: &MeasureRequest) -> Result<CostModel, String> {
        Err("this worker does not measure".into())
    }
    /// Whether it can compute after one of its processes died.
    fn survives(&self) -> bool {
        false
    }
}
