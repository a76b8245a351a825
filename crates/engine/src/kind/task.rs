//! What a worker is given to compute, and what surrounds it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::{Device, Downloads, Inputs, Unit};

/// The part of an input file that a unit reads.
///
/// Where the part is in the file is not hashed: rows that move because others were put before them are the same rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ByteRanges {
    /// The bytes, in the order that they are read in.
    pub bytes: Vec<Range<u64>>,
    /// What they are read as, such as element type and shape of a row: equal bytes of another layout are other values.
    pub layout: String,
}

/// What a unit reads of its inputs, by port; all of a port that is not named.
pub type UnitInputs = BTreeMap<String, ByteRanges>;

/// One piece of work.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Task {
    /// The stage's parameters.
    pub params: Json,
    /// The paths on its input ports.
    pub inputs: Inputs,
    /// What of the stage to do.
    pub step: Step,
    /// The empty folder to write into.
    pub out: PathBuf,
}

impl Task {
    /// The unit to compute.
    ///
    /// # Errors
    /// The task is for the whole stage, or joins units.
    pub fn unit(&self) -> anyhow::Result<&Unit> {
        match &self.step {
            Step::Unit(unit) => Ok(unit),
            Step::Whole | Step::Merge(_) => anyhow::bail!("this kind is computed by units"),
        }
    }
}

/// What of a stage a task does.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// All of it.
    Whole,
    /// One unit.
    Unit(Unit),
    /// Joining the units' folders, in order.
    Merge(Vec<PathBuf>),
}

/// What surrounds running tasks; nothing in it may change a result.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// Where to compute.
    pub device: Device,
    /// Most rows to send through a network at once; 0 leaves it to the kind, as on GPUs, where results need not repeat bit for
    /// bit.
    pub micro_batch: usize,
    /// How to download remote files.
    pub downloads: &'a Downloads,
    on_progress: &'a dyn Fn(usize, u64, u64),
    on_finished: &'a dyn Fn(&[usize]),
    /// The task of the batch that progress is reported of.
    task: usize,
}

impl<'a> Context<'a> {
    /// A context that reports a task's steps done and their total to `on_progress`, and to `on_finished` which tasks are
    /// done: these are kept, whatever happens to the others.
    pub fn new(
        device: Device,
        micro_batch: usize,
        downloads: &'a Downloads,
        on_progress: &'a dyn Fn(usize, u64, u64),
        on_finished: &'a dyn Fn(&[usize]),
    ) -> Self {
        Self { device, micro_batch, downloads, on_progress, on_finished, task: 0 }
    }

    /// The same for one task of the batch.
    pub fn of_task(&self, task: usize) -> Self {
        Self { task, ..*self }
    }

    /// Reports steps done and their total.
    pub fn progress(&self, done: u64, total: u64) {
        (self.on_progress)(self.task, done, total);
    }

    /// Reports tasks of the batch that are done.
    pub fn finished(&self, tasks: &[usize]) {
        (self.on_finished)(tasks);
    }

    /// The micro batch for a kind that does not choose one by itself.
    pub fn effective_micro_batch(&self) -> usize {
        /// Keeps a large GPU busy with any network of this crate.
        const ROWS: usize = 1024;
        if self.micro_batch == 0 { ROWS } else { self.micro_batch }
    }
}
