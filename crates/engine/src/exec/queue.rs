//! Jobs that wait, and which of them are taken together.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use serde_json::Value as Json;

use crate::identity::recipe::Recipe;
use crate::kind::Step;
use crate::kind::{Inputs, KindInfo, Port};
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
    /// What stands on its input ports, whole, and where.
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
    /// What it shares with the jobs that it is worth computing together with.
    pub batch_key: Option<String>,
    /// Seconds that the units cost which a merge joins, in this run or an earlier one.
    pub spent: f64,
}

/// Most jobs of one task: what a task costs is lost when it is cut off.
const MOST_TOGETHER: usize = 64;

/// The jobs that wait, in order.
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

    /// Adds jobs, all at once: a slot that waits would else take the first one without its batch_key.
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

    /// Lets the slots end after what they are at; jobs still wait only where the run cannot go on.
    pub fn close(&self) {
        *self.jobs() = (VecDeque::new(), true);
        self.wake.notify_all();
    }

    /// The next job, waited for, with those that are worth computing together with it; none once the queue is closed.
    ///
    /// They come in one step, or two slots would take jobs of one batch apart. Without a hold on the first, it
    /// comes alone.
    pub fn take<T>(&self, mut hold: impl FnMut(&Job) -> Option<T>) -> Option<Vec<(Box<Job>, Option<T>)>> {
        let mut jobs = self.jobs();
        let job = loop {
            if let Some(job) = jobs.0.pop_front() {
                break job;
            }
            if jobs.1 {
                return None;
            }
            jobs = self.wake.wait(jobs).expect("no panic under this lock");
        };
        let held = hold(&job);
        let batch_key = if held.is_some() { self.batch_key(&job, &mut jobs.0, hold) } else { Vec::new() };
        Some(std::iter::once((job, held)).chain(batch_key).collect())
    }

    /// Takes out the jobs that keep another batch_key, as far as `hold` gets hold of them; others stay where they are:
    /// what another run computes is waited for when it is its turn, with nothing else held.
    ///
    /// No more than a slot's share of all that waits, or the others would have nothing to do.
    fn batch_key<T>(
        &self,
        job: &Job,
        waiting: &mut VecDeque<Box<Job>>,
        mut hold: impl FnMut(&Job) -> Option<T>,
    ) -> Vec<(Box<Job>, Option<T>)> {
        let Some(batch_key) = &job.batch_key else { return Vec::new() };
        let share = (waiting.len() + 1).div_ceil(self.slots.max(1)).min(MOST_TOGETHER);
        let (mut taken, mut place) = (Vec::new(), 0);
        while taken.len() + 1 < share && place < waiting.len() {
            let other = &waiting[place];
            let fits =
                other.common.kind.name == job.common.kind.name && other.batch_key.as_ref() == Some(batch_key);
            match fits.then(|| hold(other)).flatten() {
                None => place += 1,
                held => taken.extend(waiting.remove(place).map(|other| (other, held))),
            }
        }
        taken
    }
}
