//! Threads that take jobs from one queue, each with workers of its own.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::queue::{Claim, Job, Queue, Share};
use super::rates::Rates;
use super::reports::{JobError, Outcome, Reports, Sent};
use super::state_messages::Message;
use crate::kind::{PREVIOUS, Step, Task};
use crate::provenance::manifest::StageWorkers;
use crate::store::{Attempt, Entry, Lock, Lookup, PART, Scratch, Store, StoreError, Watch};
use crate::worker::protocol::{Reply, TaskBatch, TaskError, Usage};
use crate::worker::{Backend, Note, Place, Request, Work, Worker};

/// A job that a slot has taken.
pub(super) struct LockedJob {
    pub job: Box<Job>,
    /// Keeps others from computing it; none while it is waited for.
    lock: Option<Lock>,
    /// Whether its start was reported.
    begun: bool,
}

/// What all slots of a run share.
#[derive(Clone, Copy)]
pub(super) struct Shared<'a> {
    pub queue: &'a Queue<'a>,
    pub backend: &'a dyn Backend,
    pub store: &'a Store,
    pub scratch: &'a Scratch,
    pub rates: &'a Rates,
}

/// One of the threads.
pub(super) struct Slot<'a> {
    number: usize,
    pub pool: usize,
    queue: &'a Queue<'a>,
    pub backend: &'a dyn Backend,
    pub store: &'a Store,
    pub scratch: &'a Scratch,
    pub rates: &'a Rates,
    pub reports: Reports<'a>,
    /// For kinds that need no libtorch, and for those that do; each is started when there is something for it to do.
    workers: [Option<Box<dyn Worker>>; 2],
    /// Emptied folders of earlier tasks, with what their kinds leave there.
    pub spare: Vec<(&'static [&'static str], Attempt)>,
}

impl<'a> Slot<'a> {
    pub fn new(number: usize, shared: Shared<'a>, reports: Reports<'a>) -> Self {
        let Shared { queue, backend, store, scratch, rates } = shared;
        let (workers, spare, pool) = ([None, None], Vec::new(), backend.pool(number));
        Self { number, pool, queue, backend, store, scratch, rates, reports, workers, spare }
    }

    /// Takes jobs until there will be no more.
    pub fn serve(mut self) {
        while let Some(claim) =
            self.queue.claim(self.pool, |torch| self.workers[usize::from(torch)].is_some())
        {
            let started = catch_unwind(AssertUnwindSafe(|| self.start_worker(&claim)));
            let started = started.unwrap_or(Err(JobError::Panic));
            let Some(jobs) = self.take(claim, started.is_ok()) else { continue };
            let held = jobs.into_iter().map(|(job, lock)| LockedJob { job, lock, begun: false });
            let mut held: Vec<LockedJob> = held.collect();
            let ended = match started {
                // Every job must be reported, or the run never ends.
                Ok(()) => catch_unwind(AssertUnwindSafe(|| self.run_to_end(&mut held))).unwrap_or(Ok(())),
                Err(error) => self.end(held.remove(0), Err(error)),
            };
            let rest = held.into_iter().try_for_each(|held| self.end(held, Err(JobError::Panic)));
            if ended.and(rest).is_err() {
                return;
            }
        }
    }

    /// Waits for a worker for the jobs of a claim; no lock is held meanwhile. Without an error it may be that none is needed
    /// any more.
    fn start_worker(&mut self, claim: &Claim<'_>) -> Result<(), JobError> {
        let (_, libtorch) = claim.class;
        if self.workers[usize::from(libtorch)].is_none() && self.reports.stop.mode().is_none() {
            let waiting = || self.queue.waiting(claim.class);
            let request =
                Request { slot: self.number, libtorch, waiting: &waiting, cancel: self.reports.stop };
            let worker = self.backend.next(&request)?;
            if let Some(worker) = &worker {
                tracing::debug!("worker {}: {}", self.number, worker.facts());
            }
            self.workers[usize::from(libtorch)] = worker;
            self.note_locks()?;
        }
        Ok(())
    }

    /// Takes jobs for its worker; where that could not be started, one job to fail with it.
    fn take(&self, claim: Claim<'_>, started: bool) -> Option<Vec<(Box<Job>, Option<Lock>)>> {
        // Never waits for a lock here: two runs could deadlock.
        if !started || self.reports.stop.mode().is_some() {
            return self.queue.take(claim, None, |_| None);
        }
        let worker = self.workers[usize::from(claim.class.1)].as_ref()?;
        let seconds = self.backend.seconds_at_once(self.pool);
        let left = worker.remaining().map_or(f64::INFINITY, |left| left.as_secs_f64());
        let share = Share { seconds: seconds.min(left), cost: &|job| self.rates.cost(self.pool, job) };
        self.queue.take(claim, (seconds > 0.0).then_some(&share), |job| self.try_lock(job))
    }

    /// Runs a job and those taken with it until each has ended; a panic leaves some of them in `held`.
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
        let mut one_by_one = false;
        while !held.is_empty() {
            let batches = if one_by_one { vec![1] } else { batches(held) };
            let error = match self.compute(held, &batches) {
                Ok(()) => continue,
                Err(Unfinished { error: JobError::Task(TaskError::Lost(how)), begun, .. }) => {
                    return self.put_back(held, begun, &how);
                }
                Err(Unfinished { error: JobError::Task(TaskError::Left(why)), .. }) => {
                    tracing::debug!("{why}");
                    let jobs = std::mem::take(held).into_iter().map(|held| *held.job);
                    self.queue.extend(jobs.collect());
                    return Ok(());
                }
                Err(Unfinished { error: JobError::Task(TaskError::Stopped), .. }) => {
                    let mut rest = std::mem::take(held).into_iter();
                    return rest.try_for_each(|held| self.end(held, Err(JobError::Stopped)));
                }
                Err(unfinished) => unfinished,
            };
            let Unfinished { error, begun: suspects } = error;
            let stopped = self.reports.stop.mode().is_some();
            let stage = held[0].job.common.stage;
            let is_known = suspects <= 1;
            if is_known {
                self.end(held.remove(0), Err(error))?;
            } else {
                tracing::debug!("{error}; what is left of {suspects} units is computed one by one");
            }
            // Of a stage that failed, nothing more is begun. Which of several units is at fault shows when each is alone.
            let over = |held: &mut LockedJob| stopped || (is_known && held.job.common.stage == stage);
            let over: Vec<LockedJob> = held.extract_if(.., over).collect();
            over.into_iter().try_for_each(|held| self.end(held, Err(JobError::Stopped)))?;
            one_by_one = true;
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
    pub(super) fn end(&self, held: LockedJob, outcome: Outcome) -> Sent {
        self.reports.ended(&held.job, outcome)
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

    /// A worker that may compute this job; after one that died, the next.
    fn worker(&mut self, job: &Job) -> Result<Box<dyn Worker>, TaskError> {
        let libtorch = job.common.kind.libtorch;
        let worker = match self.workers[usize::from(libtorch)].take() {
            Some(worker) => worker,
            None => {
                let request =
                    Request { slot: self.number, libtorch, waiting: &|| 1, cancel: self.reports.stop };
                let worker = self.backend.next(&request)?;
                worker.ok_or_else(|| TaskError::Lost("no worker is left".into()))?
            }
        };
        let numerics = job.recipe.numerics.as_ref();
        let contradiction = numerics.and_then(|n| worker.facts().contradiction(&n.libtorch, &n.device));
        contradiction.map_or(Ok(worker), |error| Err(TaskError::Refused(error)))
    }

    /// Computes the first jobs, in batches of these sizes. Those that are done leave `held`, however it ends.
    fn compute(&mut self, held: &mut Vec<LockedJob>, sizes: &[usize]) -> Result<(), Unfinished> {
        let mut worker = self.worker(&held[0].job)?;
        let kind = held[0].job.common.kind;
        let count = sizes.iter().sum();
        let mut foreign = BTreeSet::new();
        for held in held.iter().take(count) {
            foreign.extend(self.foreign(&held.job)?);
        }
        let sources = Watch::new(foreign.into_iter());
        let name = worker.place().map(|place| place.worker);
        let mut running = Running {
            worker: name.unwrap_or_else(|| format!("worker {}", self.number + 1)),
            open: Vec::new(),
            begun: if worker.place().is_some() { 0 } else { sizes[0] },
            since: Instant::now(),
            reliable: true,
            sources,
        };
        let outlives = self.backend.seconds_at_once(self.pool) > 0.0;
        let notes = held[..count].iter().filter(|_| outlives).map(|held| note(&held.job)).collect();
        let mut work = Work { batches: Vec::new(), notes };
        let mut rest = &mut held[..count];
        for size in sizes {
            let (batch, others) = rest.split_at_mut(*size);
            rest = others;
            let mut tasks = Vec::new();
            for LockedJob { job, begun, .. } in &mut *batch {
                let spare = self.spare.iter().position(|(leaves, _)| *leaves == kind.leaves);
                let attempt = match spare.map(|place| self.spare.swap_remove(place)) {
                    Some((_, attempt)) => attempt,
                    None => self.scratch.attempt()?,
                };
                let mut inputs = job.common.inputs.clone();
                let previous = job.previous.as_ref().map(|previous| self.store.path(&previous.digest));
                inputs.0.extend(previous.map(|path| (PREVIOUS.to_owned(), path)));
                let (params, step) = (job.common.params.clone(), job.step.clone());
                tasks.push(Task { params, inputs, step, out: attempt.path().to_path_buf() });
                running.open.push((running.open.len(), attempt));
                if !std::mem::replace(begun, true) {
                    self.reports.say(Message::Started(job.common.stage, job.unit));
                }
            }
            work.batches.push(TaskBatch { kind: batch[0].job.common.kind.name.to_owned(), tasks });
        }
        running.since = Instant::now();
        let working = self.reports.stop.enter(worker.group());
        let first = (held[0].job.common.stage, held[0].job.unit);
        let workers = stage_workers(&*worker);
        let result = worker.run(&work, &mut |reply| match reply {
            Reply::Started { tasks } => {
                running.begun = tasks.into_iter().map(|task| task + 1).max().unwrap_or(0).max(running.begun);
            }
            Reply::Finished { tasks, files, usage } => {
                self.account(workers.as_ref(), &usage, false, &tasks, &running, held);
                self.keep((&tasks, &files), usage.peak_memory, &mut running, held);
            }
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
            self.keep((&rest, &[]), usage.peak_memory, &mut running, held);
            tracing::debug!("{}: {count} tasks took {usage:?}", kind.name);
        }
        // A worker that did not end its work by itself is not used again.
        let lives = match &result {
            Ok(_) | Err(TaskError::Failed(_)) => true,
            Err(TaskError::Died(_)) => worker.survives(),
            Err(_) => false,
        };
        if running.reliable && lives {
            self.workers[usize::from(kind.libtorch)] = Some(worker);
        }
        let begun = running.open.iter().filter(|(task, _)| *task < running.begun).count();
        if matches!(result, Err(TaskError::Lost(_))) {
            let lost: Vec<usize> = running.open.iter().take(1).map(|(task, _)| *task).collect();
            self.account(workers.as_ref(), &Usage::default(), true, &lost, &running, held);
        }
        // What failed after its last task was finished has lost nothing.
        match result {
            Err(error) if !running.open.is_empty() => Err(Unfinished { error: error.into(), begun }),
            _ => Ok(()),
        }
    }
}

/// Why the tasks of a worker were not all done.
struct Unfinished {
    error: JobError,
    /// How many of the first of them had begun.
    begun: usize,
}

impl<E: Into<JobError>> From<E> for Unfinished {
    fn from(error: E) -> Self {
        Self { error: error.into(), begun: 1 }
    }
}

/// What it takes to keep the result of a job in a later run.
fn note(job: &Job) -> Note {
    let common = &job.common;
    let sources = common.sources.iter().filter_map(|(port, path)| {
        let digest = common.resolved.digests.get(port).filter(|_| job.recipe.inputs.contains_key(port))?;
        Some((path.clone(), *digest))
    });
    let outputs = outputs(job, Path::new(""));
    Note { recipe: job.recipe.clone(), outputs, sources: sources.collect(), spent: job.spent }
}

/// The outputs of a job below the folder that it writes to, by port.
pub(super) fn outputs(job: &Job, folder: &Path) -> Vec<(String, PathBuf)> {
    match job.step {
        Step::Unit(_) => vec![(PART.to_owned(), folder.to_path_buf())],
        Step::Whole | Step::Merge(_) => {
            let outputs = job.common.outputs.iter();
            outputs.map(|port| (port.name.clone(), folder.join(&port.file))).collect()
        }
    }
}

/// A worker on a cluster, for the manifest.
fn stage_workers(worker: &dyn Worker) -> Option<StageWorkers> {
    let Place { pool, worker: name, node, queue_seconds } = worker.place()?;
    let gpu_models = worker.facts().gpu.iter().cloned().collect();
    let (pools, workers, nodes) = ([pool].into(), [name].into(), [node].into());
    Some(StageWorkers { pools, workers, nodes, gpu_models, queue_seconds, ..StageWorkers::default() })
}

/// How many jobs, one after the other, make up each batch.
fn batches(held: &[LockedJob]) -> Vec<usize> {
    held.chunk_by(|a, b| a.job.is_together_with(&b.job)).map(<[LockedJob]>::len).collect()
}

/// What is computed.
pub(super) struct Running {
    /// The name of its worker.
    pub worker: String,
    /// Its tasks that are not done, by number, and where each writes; in the order of the jobs.
    pub open: Vec<(usize, Attempt)>,
    /// Tasks below this number have begun.
    begun: usize,
    /// When it began, or last finished a task.
    pub since: Instant,
    /// Whether all of its results could be kept.
    pub reliable: bool,
    /// The sources since it began.
    pub sources: Watch,
}
