//! Takes the results of a worker into the store.

use std::path::PathBuf;
use std::time::Instant;

use super::queue::Job;
use super::reports::{JobError, Outcome};
use super::state_messages::{Message, Took};
use super::worker_slots::{LockedJob, Running, Slot, outputs};
use crate::identity::digest::Listing;
use crate::kind::PREVIOUS;
use crate::provenance::manifest::StageWorkers;
use crate::store::{Attempt, StoreError, Watch};
use crate::worker::protocol::Usage;

impl Slot<'_> {
    /// Takes the results of some tasks of the batch, and reports them.
    pub(super) fn keep(
        &mut self,
        (tasks, files): (&[usize], &[Listing]),
        peak_memory: u64,
        running: &mut Running,
        held: &mut Vec<LockedJob>,
    ) {
        let now = Instant::now();
        let among = |(task, _): &(usize, Attempt)| tasks.contains(task);
        let count = running.open.iter().filter(|open| among(open)).count();
        // They were computed together, so how long each of them took is not known.
        let each = (now - running.since) / count.max(1) as u32;
        let (mut begin, seconds) = (running.since, each.as_secs_f64());
        running.since = now;
        if let Some(place) = running.open.iter().position(among) {
            self.rates.add(self.pool, &held[place].job, seconds);
        }
        while let Some(place) = running.open.iter().position(among) {
            let ((task, attempt), held) = (running.open.remove(place), held.remove(place));
            let files = tasks.iter().position(|done| *done == task).and_then(|place| files.get(place));
            let outcome = self.commit(&held.job, attempt, files, seconds, &running.sources);
            running.reliable &= outcome.is_ok();
            if outcome.is_ok() {
                let (stage, worker) = (held.job.common.stage, running.worker.clone());
                self.reports.say(Message::Took(Took {
                    stage,
                    worker,
                    begin,
                    end: begin + each,
                    peak_memory,
                }));
            }
            begin += each;
            // A coordinator that is gone is noticed with the next job.
            let _ = self.end(held, outcome);
        }
    }

    /// Takes note of what the workers' hosts make of locks.
    pub(super) fn note_locks(&self) -> Result<(), StoreError> {
        let Some((hold, longest)) = self.backend.locks_hold() else { return Ok(()) };
        if self.store.note_locks(hold, longest)? {
            let message = "a lock that this run holds is granted on a node too: this file system does not lock between hosts. \
                           Leases are used in place of locks, and `cache gc` refuses";
            self.reports.say(Message::Warn(message.to_owned()));
        }
        Ok(())
    }

    /// Reports the worker on a cluster that computed tasks, or was lost with them.
    pub(super) fn account(
        &self,
        workers: Option<&StageWorkers>,
        usage: &Usage,
        lost: bool,
        tasks: &[usize],
        running: &Running,
        held: &[LockedJob],
    ) {
        let first = running.open.iter().position(|(task, _)| tasks.contains(task));
        let stage = first.map(|first| held[first].job.common.stage);
        if let (Some(workers), Some(stage)) = (workers.cloned(), stage) {
            let workers = StageWorkers {
                peak_memory: usage.peak_memory,
                peak_device_memory: usage.peak_device_memory,
                node_seconds: running.since.elapsed().as_secs_f64(),
                lost: usize::from(lost),
                ..workers
            };
            self.reports.say(Message::Used(stage, Box::new(workers)));
        }
    }

    /// The files that a job reads and the store does not own: sources, and adopted results.
    pub(super) fn foreign(&self, job: &Job) -> Result<Vec<PathBuf>, StoreError> {
        let mut paths: Vec<PathBuf> = job.common.sources.values().cloned().collect();
        for artifact in job.common.upstream.values() {
            if self.store.adopted(&artifact.digest)?.is_some() {
                paths.push(self.store.path(&artifact.digest));
            }
        }
        Ok(paths)
    }

    /// Takes what a job's attempt holds into the store.
    fn commit(
        &mut self,
        job: &Job,
        attempt: Attempt,
        files: Option<&Listing>,
        seconds: f64,
        sources: &Watch,
    ) -> Outcome {
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
        let entry =
            self.store.commit(&job.recipe, &outputs(job, attempt.path()), files, job.spent + seconds)?;
        // Only a worker that lives may have the folder of a task again: one that was killed may have left others writing.
        let leaves = common.kind.leaves;
        self.spare.extend(self.scratch.recycle(attempt, leaves).map(|attempt| (leaves, attempt)));
        let kept = begun.elapsed().as_secs_f64();
        let fingerprint = job.recipe.fingerprint().short();
        let kind = common.kind.name;
        tracing::debug!("{kind}, {fingerprint}: computed in {seconds:.3} s, kept in {kept:.3} s");
        Ok((entry, Some(seconds)))
    }
}
