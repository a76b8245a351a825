//! The work of a worker, and its context.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::{Device, Downloads, Inputs, Unit};

/// The part of an input file that a unit reads.
///
/// The position of the part in the file is not hashed: rows that moved because others were inserted are the same rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ByteRanges {
    /// The bytes, in reading order.
    pub bytes: Vec<Range<u64>>,
    /// Their interpretation, such as element type and row shape: equal bytes with another layout are other values.
    pub layout: String,
}

/// The parts of its inputs that a unit reads, by port; ports that are not listed are read whole.
pub type UnitInputs = BTreeMap<String, ByteRanges>;

/// One piece of work.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Task {
    /// The stage's parameters.
    pub params: Json,
    /// The paths on its input ports.
    pub inputs: Inputs,
    /// The step of the stage to run.
    pub step: Step,
    /// The empty folder to write into.
    pub out: PathBuf,
}

impl Task {
    /// The unit to compute.
    ///
    /// # Errors
    /// The task is for the whole stage, or a merge.
    pub fn unit(&self) -> anyhow::Result<&Unit> {
        match &self.step {
            Step::Unit(unit) => Ok(unit),
            Step::Whole | Step::Merge(_) => anyhow::bail!("this task has no unit"),
        }
    }
}

/// The step of a stage that a task runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// The whole stage.
    Whole,
    /// One unit.
    Unit(Unit),
    /// Merges the units' folders, in order.
    Merge(Vec<PathBuf>),
}

/// Gets a task of the batch, its finished steps, their total, and what else there is to say.
pub type OnProgress<'a> = dyn Fn(usize, u64, u64, Option<&str>) + 'a;

/// The context of running tasks; it must not change any result.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The device to compute on.
    pub device: Device,
    /// Maximum rows per forward pass; 0 lets the kind choose, as on GPUs, where results need not be bitwise
    /// reproducible.
    pub micro_batch: usize,
    /// How to download remote files.
    pub downloads: &'a Downloads,
    /// The folder of what trials found to be fastest; it persists between runs.
    pub trials: &'a Path,
    on_progress: &'a OnProgress<'a>,
    on_finished: &'a dyn Fn(&[usize]),
    /// The task of the batch whose progress is reported.
    task: usize,
}

impl<'a> Context<'a> {
    /// A context that reports a task's finished steps and their total to `on_progress`, and the finished tasks to
    /// `on_finished`: these are kept whatever happens to the others.
    pub fn new(
        device: Device,
        micro_batch: usize,
        (downloads, trials): (&'a Downloads, &'a Path),
        on_progress: &'a OnProgress<'a>,
        on_finished: &'a dyn Fn(&[usize]),
    ) -> Self {
        Self { device, micro_batch, downloads, trials, on_progress, on_finished, task: 0 }
    }

    /// The same for one task of the batch.
    pub fn of_task(&self, task: usize) -> Self {
        Self { task, ..*self }
    }

    /// Reports the finished steps and their total.
    pub fn progress(&self, done: u64, total: u64) {
        (self.on_progress)(self.task, done, total, None);
    }

    /// The same with a few words on how it goes, such as a loss.
    pub fn progress_with(&self, done: u64, total: u64, note: &str) {
        (self.on_progress)(self.task, done, total, Some(note));
    }

    /// Reports finished tasks of the batch.
    pub fn finished(&self, tasks: &[usize]) {
        (self.on_finished)(tasks);
    }

    /// The micro batch for a kind that does not choose one itself.
    pub fn effective_micro_batch(&self) -> usize {
        /// Keeps a large GPU busy with any network of this project.
        const ROWS: usize = 1024;
        if self.micro_batch == 0 { ROWS } else { self.micro_batch }
    }
}
