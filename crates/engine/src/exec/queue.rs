//! Jobs that are queued, and which of them are taken together.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use serde_json::Value as Json;

use crate::identity::recipe::Recipe;
use crate::kind::{Inputs, KindInfo, Port, Step};
use crate::plan::ResolvedInputs;
use crate::store::Artifact;

/// What all jobs of a stage have in common.
pub(super) struct StageContext {
    /// Index of the stage.
    pub stage: usize,
    pub kind: &'static KindInfo,
    /// The stage's output ports.
    pub outputs: Vec<Port>,
    pub params: Json,
    pub inputs: Inputs,
    /// Digests and paths of its inputs.
    pub resolved: ResolvedInputs,
    /// What it reads outside the store, by port.
    pub sources: BTreeMap<String, PathBuf>,
    /// What it reads in the store, by port.
    pub upstream: BTreeMap<String, Artifact>,
    /// Compute whatever the cache holds.
    pub forced: bool,
}

/// A task with what is needed to keep its result.
pub(super) struct Job {
    pub common: Arc<StageContext>,
    /// Index of the unit, `None` for the whole or the merge.
    pub unit: Option<usize>,
    pub step: Step,
    pub recipe: Recipe,
    /// The folder of the unit before, in a chain.
    pub previous: Option<Artifact>,
    /// Jobs of equal keys are worth computing together.
    pub batch_key: Option<String>,
    /// Seconds that the units cost which a merge joins, in this run or an earlier one.
    pub spent: f64,
    /// Workers that were lost while they computed it.
    pub lost: usize,
}

/// Most jobs of one batch: all that are not finished are lost when it is cut off.
const MAX_BATCH: usize = 64;

/// The queued jobs, in order.
pub(super) struct Queue {
    jobs: Mutex<(VecDeque<Box<Job>>, bool)>,
    wake: Condvar,
    /// How many take from it.
    slots: usize,
}

impl Queue {
    pub fn new(slots: usize) -> Self {
        Self { jobs: Mutex::default(), wake: Condvar::new(), slots }
    }

    fn jobs(&self) -> MutexGuard<'_, (VecDeque<Box<Job>>, bool)> {
        self.jobs.lock().expect("no panic under this lock")
    }

    /// Adds jobs, all at once: a slot that waits would else take the first one without its batch.
    pub fn extend(&self, jobs: Vec<Job>) {
        self.jobs().0.extend(jobs.into_iter().map(Box::new));
        self.wake.notify_all();
    }

    /// Puts a job before all others: a merge frees what waits for its stage.
    pub fn push_first(&self, job: Job) {
        self.jobs().0.push_front(Box::new(job));
        self.wake.notify_one();
    }

    /// Drops the jobs of a stage that failed, and returns how many there were.
    pub fn cancel(&self, stage: usize) -> usize {
        let mut jobs = self.jobs();
        let before = jobs.0.len();
        jobs.0.retain(|job| job.common.stage != stage);
        before - jobs.0.len()
    }

    /// Drops all jobs, and returns how many there were.
    pub fn clear(&self) -> usize {
        std::mem::take(&mut self.jobs().0).len()
    }

    /// Lets the slots end after the jobs that they run; others are still queued only where the run cannot continue.
    pub fn close(&self) {
        *self.jobs() = (VecDeque::new(), true);
        self.wake.notify_all();
    }

    /// Waits for the next job, and takes the other jobs of its batch with it; `None` once the queue is closed.
    ///
    /// They are taken at once, so that two slots do not divide a batch. If `hold` refuses the first, it comes alone.
    pub fn take<T>(&self, mut hold: impl FnMut(&Job) -> Option<T>) -> Option<Vec<(Box<Job>, Option<T>)>> {
        let mut jobs = self.jobs();
        let job = loop {
            if jobs.1 {
                return None;
            }
            if let Some(job) = jobs.0.pop_front() {
                break job;
            }
            jobs = self.wake.wait(jobs).expect("no panic under this lock");
        };
        let held = hold(&job);
        let batch = if held.is_some() { self.batch(&job, &mut jobs.0, hold) } else { Vec::new() };
        Some(std::iter::once((job, held)).chain(batch).collect())
    }

    /// Takes the jobs of a job's batch that `hold` accepts. The others stay queued: a unit that another run computes is
    /// waited for in its turn, with no other lock held.
    ///
    /// At most a slot's share of the queue, so that the other slots have work.
    fn batch<T>(
        &self,
        job: &Job,
        waiting: &mut VecDeque<Box<Job>>,
        mut hold: impl FnMut(&Job) -> Option<T>,
    ) -> Vec<(Box<Job>, Option<T>)> {
        let Some(key) = &job.batch_key else { return Vec::new() };
        let share = (waiting.len() + 1).div_ceil(self.slots.max(1)).min(MAX_BATCH);
        let (mut taken, mut place) = (Vec::new(), 0);
        while taken.len() + 1 < share && place < waiting.len() {
            let other = &waiting[place];
            let fits =
                other.common.kind.name == job.common.kind.name && other.batch_key.as_ref() == Some(key);
            match fits.then(|| hold(other)).flatten() {
                None => place += 1,
                held => taken.extend(waiting.remove(place).map(|other| (other, held))),
            }
        }
        taken
    }
}
