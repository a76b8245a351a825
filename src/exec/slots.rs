//! Threads that take jobs from one queue, each with a worker of its own.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::mpsc::{SendError, Sender};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use super::stop::{Haste, Stop};
use super::worker::{Backend, Part, Reply, Task, TaskError, Worker};
use crate::recipe::Recipe;
use crate::stage::{Inputs, Kind, Port, Unit};
use crate::store::{Artifact, Attempt, Entry, Found, Lock, Scratch, Store, StoreError};
use serde_json::Value as Json;

/// A task with what is needed to keep its result.
pub(super) struct Job {
    /// Index of the stage.
    pub stage: usize,
    /// Index of the unit, `None` for the whole or the merge.
    pub unit: Option<usize>,
    pub kind: &'static dyn Kind,
    /// The stage's output ports.
    pub outputs: Vec<Port>,
    pub params: Json,
    pub inputs: Inputs,
    pub part: Part,
    pub recipe: Recipe,
    /// What it reads outside the store, by port.
    pub sources: BTreeMap<String, PathBuf>,
    /// What it reads in the store, by port.
    pub upstream: BTreeMap<String, Artifact>,
    /// Compute whatever the cache holds.
    pub forced: bool,
    /// Seconds that the units cost which a merge joins, in this run or an earlier one.
    pub spent: f64,
}

/// What a slot reports to the coordinator.
pub(super) enum Report {
    Began(usize, Option<usize>),
    Said(usize, Option<usize>, Reply),
    /// The result, and the seconds that it took; none where another run had computed it.
    Done(usize, Option<usize>, Box<Entry>, Option<f64>),
    Failed(usize, Option<usize>, String),
    /// Another run computes it; said again and again while that lasts.
    Waits(usize, Option<usize>),
    /// The run was stopped before it was done.
    Dropped,
    /// The run is asked to stop.
    Stop,
    /// The store cannot go on, and so no stage can.
    Broken(StoreError),
}

/// Where a slot reports to, and hears that the run is to stop.
pub(super) struct Reports<'a> {
    pub to: Sender<Report>,
    pub stop: &'a Stop,
}

impl Reports<'_> {
    fn send(&self, report: Report) -> Result<(), SendError<Report>> {
        self.to.send(report)
    }
}

/// The jobs that wait, in order.
#[derive(Default)]
pub(super) struct Queue {
    jobs: Mutex<(VecDeque<Job>, bool)>,
    wake: Condvar,
}

impl Queue {
    pub fn push(&self, job: Job) {
        self.jobs.lock().expect("no panic under this lock").0.push_back(job);
        self.wake.notify_one();
    }

    /// Puts a job before all others: a merge frees what waits for its stage.
    pub fn push_first(&self, job: Job) {
        self.jobs.lock().expect("no panic under this lock").0.push_front(job);
        self.wake.notify_one();
    }

    /// Drops the jobs of a stage that failed, and returns how many there were.
    pub fn cancel(&self, stage: usize) -> usize {
        let mut jobs = self.jobs.lock().expect("no panic under this lock");
        let before = jobs.0.len();
        jobs.0.retain(|job| job.stage != stage);
        before - jobs.0.len()
    }

    /// Drops all jobs, and returns how many there were.
    pub fn clear(&self) -> usize {
        std::mem::take(&mut self.jobs.lock().expect("no panic under this lock").0).len()
    }

    /// Lets the slots end after what they are at; jobs still wait only where the run cannot go on.
    pub fn close(&self) {
        let mut jobs = self.jobs.lock().expect("no panic under this lock");
        *jobs = (VecDeque::new(), true);
        drop(jobs);
        self.wake.notify_all();
    }

    fn pop(&self) -> Option<Job> {
        let mut jobs = self.jobs.lock().expect("no panic under this lock");
        loop {
            if let Some(job) = jobs.0.pop_front() {
                return Some(job);
            }
            if jobs.1 {
                return None;
            }
            jobs = self.wake.wait(jobs).expect("no panic under this lock");
        }
    }
}

/// The loop of one slot.
pub(super) fn serve(
    slot: usize,
    queue: &Queue,
    backend: &dyn Backend,
    store: &Store,
    scratch: &Scratch,
    reports: &Reports<'_>,
) {
    // Each is started when there is something for it to do.
    let mut light: Option<Box<dyn Worker>> = None;
    let mut heavy: Option<Box<dyn Worker>> = None;
    let mut spare: Option<Attempt> = None;
    while let Some(job) = queue.pop() {
        let (stage, unit) = (job.stage, job.unit);
        let worker = if job.kind.light() { &mut light } else { &mut heavy };
        let folder = Folder { scratch, spare: &mut spare };
        let perform = || perform(&job, slot, worker, backend, store, folder, reports);
        // A job that got lost would be waited for without end.
        let result = catch_unwind(AssertUnwindSafe(perform)).unwrap_or(Err(JobError::Panic));
        let report = match result {
            Ok((entry, seconds)) => Report::Done(stage, unit, Box::new(entry), seconds),
            Err(JobError::Store(error)) if !error.is_the_stage() => Report::Broken(error),
            Err(JobError::Stopped) => Report::Dropped,
            // What was killed did not fail.
            Err(JobError::Task(TaskError::Died(_))) if reports.stop.asked() == Some(Haste::Now) => {
                Report::Dropped
            }
            Err(error) => {
                if !matches!(error, JobError::Task(TaskError::Failed(_))) {
                    *worker = None;
                }
                Report::Failed(stage, unit, error.to_string())
            }
        };
        if reports.send(report).is_err() {
            return;
        }
    }
}

/// Where a slot gets its next attempt.
struct Folder<'a> {
    scratch: &'a Scratch,
    /// The one of the last task, where all of it was taken.
    spare: &'a mut Option<Attempt>,
}

#[derive(Debug, thiserror::Error)]
enum JobError {
    #[error(transparent)]
    Task(#[from] TaskError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the input `{port}` changed while it was read: {path}", path = path.display())]
    Changed { port: String, path: PathBuf },
    #[error("the input `{port}` changed while it was read: {what}")]
    Lost { port: String, what: String },
    #[error("the run was stopped")]
    Stopped,
    #[error("the runner broke on this job, which is a fault of attrflow; -vvv tells more")]
    Panic,
}

fn perform(
    job: &Job,
    slot: usize,
    worker: &mut Option<Box<dyn Worker>>,
    backend: &dyn Backend,
    store: &Store,
    folder: Folder<'_>,
    reports: &Reports<'_>,
) -> Result<(Entry, Option<f64>), JobError> {
    let fingerprint = job.recipe.fingerprint();
    let _lock = lock(job, store, reports)?;
    // Another process may have finished it while this one waited for the lock.
    if !job.forced {
        match store.find(&fingerprint)? {
            Found::Stands(entry) => return Ok((*entry, None)),
            Found::Lost(_) => store.clear(&fingerprint)?,
            Found::Nothing => {}
        }
    }
    let worker = match worker {
        Some(worker) => worker,
        None => worker.insert(backend.start(slot, job.kind.light())?),
    };
    let attempt = match folder.spare.take() {
        Some(attempt) => attempt,
        None => folder.scratch.attempt()?,
    };
    // A coordinator that is gone is noticed when the result is sent.
    let _ = reports.send(Report::Began(job.stage, job.unit));
    let begun = Instant::now();
    let task = Task {
        kind: job.kind.name().to_owned(),
        params: job.params.clone(),
        inputs: job.inputs.clone(),
        part: job.part.clone(),
        out: attempt.path().to_path_buf(),
    };
    let working = reports.stop.enter(worker.group());
    worker.run(&task, &mut |reply| {
        let _ = reports.send(Report::Said(job.stage, job.unit, reply));
    })?;
    drop(working);
    let seconds = begun.elapsed().as_secs_f64();
    // What was hashed before must be what the worker read, or a result would stand under a wrong recipe.
    for (port, path) in &job.sources {
        let expected = job.recipe.inputs.get(port);
        if expected.is_some_and(|expected| store.source(path).ok().as_ref() != Some(expected)) {
            return Err(JobError::Changed { port: port.clone(), path: path.clone() });
        }
    }
    // The same for what the store holds or leads to.
    for (port, artifact) in &job.upstream {
        if let Some(what) = store.harm(artifact)? {
            return Err(JobError::Lost { port: port.clone(), what });
        }
    }
    let entry = store.commit(&job.recipe, &outputs(job, attempt.path()), job.spent + seconds)?;
    // Only a worker that lives may have the folder of its last task again: one that was killed may have left others writing.
    *folder.spare = folder.scratch.again(attempt);
    let kept = begun.elapsed().as_secs_f64() - seconds;
    tracing::debug!(
        "{}, {}: computed in {seconds:.3} s, kept in {kept:.3} s",
        job.kind.name(),
        fingerprint.short()
    );
    Ok((entry, Some(seconds)))
}

/// Waits until no other process computes the job's fingerprint.
fn lock(job: &Job, store: &Store, reports: &Reports<'_>) -> Result<Lock, JobError> {
    let fingerprint = job.recipe.fingerprint();
    loop {
        if reports.stop.asked().is_some() {
            return Err(JobError::Stopped);
        }
        if let Some(lock) = store.try_lock(&fingerprint)? {
            return Ok(lock);
        }
        let _ = reports.send(Report::Waits(job.stage, job.unit));
        // A lock that is waited for in one call would hold up a run that is to stop.
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The port under which a unit's folder is kept.
pub(super) const PART: &str = "part";

fn outputs(job: &Job, folder: &std::path::Path) -> Vec<(String, PathBuf)> {
    match job.part {
        Part::Unit(Unit { .. }) => vec![(PART.to_owned(), folder.to_path_buf())],
        Part::Whole | Part::Merge(_) => {
            job.outputs.iter().map(|port| (port.name.clone(), folder.join(&port.file))).collect()
        }
    }
}
