//! Threads that take jobs from one queue, each with workers of its own.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use super::queue::{Job, Queue};
use super::state_messages::{Message, RunError};
use crate::kind::{PREVIOUS, Step, Task};
use crate::store::{Attempt, Entry, Lock, Lookup, PART, Scratch, Store, StoreError, Watch};
use crate::worker::cancel::{Cancel, CancelMode};
use crate::worker::protocol::{Reply, TaskBatch, TaskError};
use crate::worker::{Backend, Worker};

/// Where a slot reports to, and whether the run is to stop.
pub(super) struct Reports<'a> {
    pub to: Sender<Message>,
    pub stop: &'a Cancel,
}

impl Reports<'_> {
    fn send(&self, message: Message) -> Sent {
        self.to.send(message).map_err(|_| Disconnected)
    }

    /// The same for what nothing depends on: a coordinator that is gone is noticed when the result is sent.
    fn say(&self, message: Message) {
        let _ = self.send(message);
    }
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
    Damaged { port: String, what: String },
    #[error("the run was stopped")]
    Stopped,
    #[error("attrflow itself failed on this job, which is a bug; -vvv shows more")]
    Panic,
}

/// A result, and the seconds that it took; none where another run had computed it.
type Outcome = Result<(Entry, Option<f64>), JobError>;
/// The coordinator is gone: nobody needs the slot any more.
struct Disconnected;
type Sent = Result<(), Disconnected>;

/// A job that a slot has taken.
struct LockedJob {
    job: Box<Job>,
    /// Keeps others from computing it; none while it is waited for.
    lock: Option<Lock>,
    /// Whether its start was reported.
    begun: bool,
}

/// One of the threads.
pub(super) struct Slot<'a> {
    number: usize,
    queue: &'a Queue,
    backend: &'a dyn Backend,
    store: &'a Store,
    scratch: &'a Scratch,
    reports: Reports<'a>,
    /// For kinds that need no libtorch, and for those that do; each is started when there is something for it to do.
    workers: [Option<Box<dyn Worker>>; 2],
    /// Emptied folders of earlier tasks.
    spare: Vec<Attempt>,
}

impl<'a> Slot<'a> {
    pub fn new(
        number: usize,
        queue: &'a Queue,
        backend: &'a dyn Backend,
        store: &'a Store,
        scratch: &'a Scratch,
        reports: Reports<'a>,
    ) -> Self {
        Self { number, queue, backend, store, scratch, reports, workers: [None, None], spare: Vec::new() }
    }

    /// Takes jobs until there will be no more.
    pub fn serve(mut self) {
        // Never waits for a lock here: two runs could deadlock.
        while let Some(jobs) = self.queue.take(|job| self.try_lock(job)) {
            let held = jobs.into_iter().map(|(job, lock)| LockedJob { job, lock, begun: false });
            let mut held: Vec<LockedJob> = held.collect();
            // Every job must be reported, or the run never ends.
            let ended = catch_unwind(AssertUnwindSafe(|| self.run_to_end(&mut held))).unwrap_or(Ok(()));
            let rest = held.into_iter().try_for_each(|held| self.end(held, Err(JobError::Panic)));
            if ended.and(rest).is_err() {
                return;
            }
        }
    }

    /// Runs a job and those of its batch until each has ended; a panic leaves some of them in `held`.
    fn run_to_end(&mut self, held: &mut Vec<LockedJob>) -> Sent {
        if held[0].lock.is_none() {
            match self.lock(&held[0].job) {
                Ok(lock) => held[0].lock = Some(lock),
                Err(error) => return self.end(held.remove(0), Err(error)),
            }
        }
        let mut place = 0;
        while place < held.len() {
            match self.found(&held[place].job) {
                Ok(None) => place += 1,
                Ok(Some(entry)) => self.end(held.remove(place), Ok((entry, None)))?,
                Err(error) => self.end(held.remove(place), Err(error.into()))?,
            }
        }
        let mut at_once = held.len();
        while !held.is_empty() {
            let error = match self.compute(held, at_once) {
                Ok(()) => continue,
                Err(JobError::Task(TaskError::Lost(how))) => return self.put_back(held, at_once, &how),
                Err(error) => error,
            };
            let stopped = self.reports.stop.mode().is_some();
            let stage = held[0].job.common.stage;
            if at_once == 1 {
                self.end(held.remove(0), Err(error))?;
            } else {
                tracing::debug!("{error}; what is left of {at_once} units is computed one by one");
            }
            // Of a stage that failed, nothing more is begun. Which of several units is at fault shows when each is alone.
            let over = |held: &mut LockedJob| stopped || (at_once == 1 && held.job.common.stage == stage);
            let over: Vec<LockedJob> = held.extract_if(.., over).collect();
            over.into_iter().try_for_each(|held| self.end(held, Err(JobError::Stopped)))?;
            at_once = 1;
        }
        Ok(())
    }

    /// Puts jobs back into the queue, for another worker, after theirs was lost. A job that lost two workers fails: it may be
    /// the reason.
    fn put_back(&self, held: &mut Vec<LockedJob>, count: usize, how: &str) -> Sent {
        let first = &held[0].job;
        let level = "WARN".to_owned();
        let message = format!("a worker was lost ({how}); what it was computing is computed again");
        self.reports.say(Message::Reply(first.common.stage, first.unit, Reply::Log { level, message }));
        let mut jobs = Vec::new();
        for (place, mut held) in std::mem::take(held).into_iter().enumerate() {
            held.job.lost += usize::from(place < count);
            if held.job.lost > 1 {
                self.end(held, Err(TaskError::Lost(how.to_owned()).into()))?;
            } else {
                jobs.push(*held.job);
            }
        }
        self.queue.extend(jobs);
        Ok(())
    }

    /// Reports how a job ended, and lets go of its lock.
    fn end(&self, held: LockedJob, outcome: Outcome) -> Sent {
        let (stage, unit) = (held.job.common.stage, held.job.unit);
        self.reports.send(match outcome {
            Ok((entry, seconds)) => Message::Done(stage, unit, Box::new(entry), seconds),
            Err(JobError::Store(error)) if !error.is_the_stage() => Message::Broken(error.into()),
            Err(JobError::Task(TaskError::Refused(error))) => Message::Broken(RunError::Worker(error)),
            Err(JobError::Stopped) => Message::Dropped(1),
            // What was killed did not fail.
            Err(JobError::Task(TaskError::Died(_))) if self.reports.stop.mode() == Some(CancelMode::Kill) => {
                Message::Dropped(1)
            }
            Err(error) => Message::Failed(stage, unit, error.to_string()),
        })
    }

    /// Locks a job's fingerprint if nobody holds it; an error shows when the lock is waited for.
    fn try_lock(&self, job: &Job) -> Option<Lock> {
        let stopped = self.reports.stop.mode().is_some();
        (!stopped).then(|| self.store.try_lock(&job.recipe.fingerprint()).ok().flatten()).flatten()
    }

    /// Waits until no other process computes the job's fingerprint.
    fn lock(&self, job: &Job) -> Result<Lock, JobError> {
        let fingerprint = job.recipe.fingerprint();
        loop {
            if self.reports.stop.mode().is_some() {
                return Err(JobError::Stopped);
            }
            if let Some(lock) = self.store.try_lock(&fingerprint)? {
                return Ok(lock);
            }
            // Another stage of this run with the same recipe gives its result in a moment.
            if !self.store.holds(&fingerprint) {
                self.reports.say(Message::LockWait(job.common.stage, job.unit, Instant::now()));
            }
            // A lock that is waited for in one call would hold up a run that is to stop.
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The result of a job that another process finished while this one waited for the lock.
    fn found(&self, job: &Job) -> Result<Option<Entry>, StoreError> {
        if job.common.forced {
            return Ok(None);
        }
        let fingerprint = job.recipe.fingerprint();
        match self.store.find(&fingerprint)? {
            Lookup::Hit(entry) => return Ok(Some(*entry)),
            Lookup::Invalid(_) => self.store.evict(&fingerprint)?,
            Lookup::Miss => {}
        }
        Ok(None)
    }

    /// A worker that may compute this job.
    fn worker(&mut self, job: &Job) -> Result<Box<dyn Worker>, TaskError> {
        let libtorch = job.common.kind.libtorch;
        let worker = match self.workers[usize::from(libtorch)].take() {
            Some(worker) => worker,
            None => {
                let worker = self.backend.next(self.number, libtorch, self.reports.stop)?;
                tracing::debug!("worker {}: {}", self.number, worker.facts());
                worker
            }
        };
        let numerics = job.recipe.numerics.as_ref();
        let contradiction = numerics.and_then(|n| worker.facts().contradiction(&n.libtorch, &n.device));
        contradiction.map_or(Ok(worker), |error| Err(TaskError::Refused(error)))
    }

    /// Computes the first `count` jobs as one batch. Those that are done leave `held`, however the batch ends.
    fn compute(&mut self, held: &mut Vec<LockedJob>, count: usize) -> Result<(), JobError> {
        let mut worker = self.worker(&held[0].job)?;
        let kind = held[0].job.common.kind;
        let mut foreign = BTreeSet::new();
        for held in held.iter().take(count) {
            foreign.extend(self.foreign(&held.job)?);
        }
        let sources = Watch::new(foreign.into_iter());
        let mut running = Running { open: Vec::new(), since: Instant::now(), reliable: true, sources };
        let mut batch = TaskBatch { kind: kind.name.to_owned(), tasks: Vec::new() };
        for LockedJob { job, begun, .. } in &mut held[..count] {
            let attempt = match self.spare.pop() {
                Some(attempt) => attempt,
                None => self.scratch.attempt()?,
            };
            let mut inputs = job.common.inputs.clone();
            let previous = job.previous.as_ref().map(|previous| self.store.path(&previous.digest));
            inputs.0.extend(previous.map(|path| (PREVIOUS.to_owned(), path)));
            batch.tasks.push(Task {
                params: job.common.params.clone(),
                inputs,
                step: job.step.clone(),
                out: attempt.path().to_path_buf(),
            });
            running.open.push((running.open.len(), attempt));
            if !std::mem::replace(begun, true) {
                self.reports.say(Message::Started(job.common.stage, job.unit));
            }
        }
        running.since = Instant::now();
        let working = self.reports.stop.enter(worker.group());
        let first = (held[0].job.common.stage, held[0].job.unit);
        let result = worker.run(&batch, &mut |reply| match reply {
            Reply::Finished { tasks } => self.keep(&tasks, &mut running, held),
            Reply::Progress { task, .. } => {
                let place = running.open.iter().position(|(open, _)| *open == task);
                if let Some(LockedJob { job, .. }) = place.and_then(|place| held.get(place)) {
                    self.reports.say(Message::Reply(job.common.stage, job.unit, reply));
                }
            }
            reply => self.reports.say(Message::Reply(first.0, first.1, reply)),
        });
        drop(working);
        if let Ok(usage) = &result {
            let rest: Vec<usize> = running.open.iter().map(|(task, _)| *task).collect();
            self.keep(&rest, &mut running, held);
            tracing::debug!("{}: {count} tasks took {usage:?}", kind.name);
        }
        // A worker that did not end its batch by itself is not used again.
        if running.reliable && matches!(result, Ok(_) | Err(TaskError::Failed(_))) {
            self.workers[usize::from(kind.libtorch)] = Some(worker);
        }
        // A batch that failed after its last task was finished has lost nothing.
        if !running.open.is_empty() {
            result?;
        }
        Ok(())
    }

    /// Takes the results of some tasks of the batch, and reports them.
    fn keep(&mut self, tasks: &[usize], running: &mut Running, held: &mut Vec<LockedJob>) {
        let now = Instant::now();
        let among = |(task, _): &(usize, Attempt)| tasks.contains(task);
        let count = running.open.iter().filter(|open| among(open)).count();
        // They were computed together, so how long each of them took is not known.
        let seconds = (now - running.since).as_secs_f64() / count.max(1) as f64;
        running.since = now;
        while let Some(place) = running.open.iter().position(among) {
            let ((_, attempt), held) = (running.open.remove(place), held.remove(place));
            let outcome = self.commit(&held.job, attempt, seconds, &running.sources);
            running.reliable &= outcome.is_ok();
            // A coordinator that is gone is noticed with the next job.
            let _ = self.end(held, outcome);
        }
    }

    /// The files that a job reads and the store does not own: sources, and adopted results.
    fn foreign(&self, job: &Job) -> Result<Vec<PathBuf>, StoreError> {
        let mut paths: Vec<PathBuf> = job.common.sources.values().cloned().collect();
        for artifact in job.common.upstream.values() {
            if self.store.adopted(&artifact.digest)?.is_some() {
                paths.push(self.store.path(&artifact.digest));
            }
        }
        Ok(paths)
    }

    /// Takes what a job's attempt holds into the store.
    fn commit(&mut self, job: &Job, attempt: Attempt, seconds: f64, sources: &Watch) -> Outcome {
        let begun = Instant::now();
        let common = &job.common;
        // What was hashed before must be what the worker read, or the result would belong to another recipe.
        for (port, path) in &common.sources {
            let expected = common.resolved.digests.get(port).filter(|_| job.recipe.inputs.contains_key(port));
            let Some(expected) = expected else { continue };
            // Equal bytes do not suffice: a file may have been changed and changed back.
            if sources.is_changed(path) || self.store.source(path).ok().as_ref() != Some(expected) {
                return Err(JobError::Changed { port: port.clone(), path: path.clone() });
            }
        }
        // The same for results of other stages, and of the unit before.
        let previous = job.previous.as_ref().map(|artifact| (PREVIOUS, artifact));
        let upstream = common.upstream.iter().map(|(port, artifact)| (port.as_str(), artifact));
        for (port, artifact) in upstream.chain(previous) {
            if let Some(what) = self.store.find_damage(artifact)? {
                return Err(JobError::Damaged { port: port.to_owned(), what });
            }
            if let Some(path) = self.store.adopted(&artifact.digest)?
                && sources.is_changed(&self.store.path(&artifact.digest))
            {
                return Err(JobError::Changed { port: port.to_owned(), path });
            }
        }
        let entry = self.store.commit(&job.recipe, &outputs(job, attempt.path()), job.spent + seconds)?;
        // Only a worker that lives may have the folder of a task again: one that was killed may have left others writing.
        self.spare.extend(self.scratch.recycle(attempt));
        let kept = begun.elapsed().as_secs_f64();
        let fingerprint = job.recipe.fingerprint().short();
        let kind = common.kind.name;
        tracing::debug!("{kind}, {fingerprint}: computed in {seconds:.3} s, kept in {kept:.3} s");
        Ok((entry, Some(seconds)))
    }
}

/// A batch that is computed.
struct Running {
    /// Its tasks that are not done, by number, and where each writes; in the order of the jobs.
    open: Vec<(usize, Attempt)>,
    /// When it began, or last finished a task.
    since: Instant,
    /// Whether all of its results could be kept.
    reliable: bool,
    /// The sources since it began.
    sources: Watch,
}

fn outputs(job: &Job, folder: &Path) -> Vec<(String, PathBuf)> {
    match job.step {
        Step::Unit(_) => vec![(PART.to_owned(), folder.to_path_buf())],
        Step::Whole | Step::Merge(_) => {
            let outputs = job.common.outputs.iter();
            outputs.map(|port| (port.name.clone(), folder.join(&port.file))).collect()
        }
    }
}
