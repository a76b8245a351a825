//! What a run and its workers write for each other, one line of JSON each.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::identity::digest::{Digest, Listing};
use crate::identity::recipe::Numerics;
use crate::pipeline::cluster_table::Waits;
use crate::worker::Note;
use crate::worker::measure::{CostModel, MeasureRequest};
use crate::worker::protocol::{Facts, Reply, TaskBatch, Usage, WorkerConfig};

/// What the workers of a run must know, written before the first of them is asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunConfig {
    /// Version and commit of the program.
    pub build: String,
    /// The pipeline's name.
    pub pipeline: String,
    /// The project's folder.
    pub root: PathBuf,
    /// The pipeline file below it.
    pub within: Option<PathBuf>,
    /// How numbers are computed.
    pub numerics: Numerics,
    /// The pools by name.
    pub pools: BTreeMap<String, PoolConfig>,
    /// How long to wait for what.
    pub waits: Waits,
    /// The bucket through which everything goes where the nodes share no file system.
    #[serde(default)]
    pub store: Option<String>,
}

/// A pool, for its workers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PoolConfig {
    /// How they compute.
    pub worker: WorkerConfig,
    /// Whether they load libtorch; else they serve the kinds that need none.
    pub libtorch: bool,
    /// The script that starts them.
    pub script: String,
}

/// What a worker on a node says first.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// Its pool.
    pub pool: String,
    /// The scheduler's number of its job array, and its place in it.
    pub array: String,
    /// Its place in the array.
    pub task: String,
    /// How often the scheduler started it again.
    pub restart: u32,
    /// The node, as the scheduler names it.
    pub node: String,
    /// What it computes with; none where no worker could be started.
    pub facts: Option<Facts>,
    /// Why no worker could be started.
    pub error: Option<String>,
    /// The GPUs that the scheduler gave it.
    pub visible_devices: Option<String>,
    /// The node's clock as it wrote this, in seconds since 1970.
    #[serde(default)]
    pub clock: f64,
    /// The epoch of the run that it found, whose lock it tried.
    #[serde(default)]
    pub epoch: u64,
    /// Whether a lock that the run holds is refused on the node; none where it could not be tried.
    pub locks: Option<bool>,
}

/// A line of the run for a worker.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Order {
    /// Compute.
    Work(Assignment),
    /// Do a small part of a stage's work, to be timed; with the number of the order, and what it reads in the bucket.
    Measure(u64, MeasureRequest, BTreeMap<PathBuf, Input>),
    /// Begin nothing more of what was given.
    Stop,
    /// End.
    End,
}

/// A file or folder that a worker reads, in the bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Input {
    pub digest: Digest,
    /// Of a file; a folder has a listing instead.
    pub size: Option<u64>,
}

/// Work for a worker.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Assignment {
    /// Its number, greater than those of all assignments before; that of the run's epoch begins it.
    pub number: u64,
    /// Batches, computed in this order; their tasks are numbered across all.
    pub batches: Vec<TaskBatch>,
    /// What it takes to keep the result of each task.
    pub notes: Vec<Note>,
    /// What they read, in the bucket.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub inputs: BTreeMap<PathBuf, Input>,
}

/// A line of a worker for the run.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Report {
    /// It lives.
    Beat(u64),
    /// Of the assignment of this number.
    Reply(u64, Reply),
    /// A task of an assignment is done.
    Finished(Finished),
    /// All of an assignment is done.
    Done(u64, Usage),
    /// What was measured.
    Measured(u64, Result<CostModel, String>),
    /// Its process died: the first task that is not done, and how.
    Died(u64, String),
    /// From now on it obeys the run of this epoch; of earlier ones, it has read nothing after this assignment.
    Obeys(u64, u64),
    /// It begins nothing more, and why; whether it cut a batch off.
    Leaving(String, bool),
}

/// A task that is done.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Finished {
    /// The number of the assignment.
    pub number: u64,
    /// The number of the task in it.
    pub task: usize,
    /// What it wrote.
    pub files: Listing,
    /// Seconds since the assignment's last report of this kind, or its beginning.
    pub seconds: f64,
    /// What the worker took so far.
    pub usage: Usage,
}
