//! What an earlier run left on a cluster: its finished results are kept, what its workers have in hand is not given to others,
//! and its workers serve again or are ended.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::LeaseState;
use super::bucket::Bucket;
use super::folder::{AttemptFolder, Follower, RunFolder};
use super::messages::{Finished, Order, Report, RunConfig};
use super::runs;
use crate::store::{Lock, Lookup, Store, StoreError};
use crate::worker::Note;
use crate::worker::protocol::Reply;

/// The dead runs of the pipeline that this configuration is for, newest first; `known` is dead for certain.
///
/// A run of another host counts as dead once it gave no sign of life for so long as its lease says; `waiting` is told.
pub fn dead_runs(
    runs: Vec<RunFolder>,
    config: &RunConfig,
    known: Option<&str>,
    mut waiting: impl FnMut(&str, Duration),
) -> Vec<RunFolder> {
    let alike = |config: &RunConfig| (config.root.clone(), config.within.clone(), config.pipeline.clone());
    let is_dead = |folder: &RunFolder| {
        let (Ok(found), Ok(lease)) = (folder.config(), folder.lease()) else { return false };
        lease.state == LeaseState::Running
            && alike(&found) == alike(config)
            && (known == Some(&folder.name()) || !runs::is_alive(folder, &lease, &mut waiting))
    };
    runs.into_iter().filter(is_dead).collect()
}

/// The workers of an earlier run, as far as it gave them work.
pub struct Takeover {
    left: Vec<Left>,
    /// Where their results are, if not in the folder of the run.
    bucket: Option<Arc<Bucket>>,
    /// A worker that is silent for so long is not waited for.
    silent: Duration,
}

/// A worker of an earlier run.
struct Left {
    folder: AttemptFolder,
    reports: Follower<Report>,
    /// What it takes to keep the results of its assignments that are not over, by their numbers.
    open: BTreeMap<u64, Vec<Note>>,
    /// Tasks that others must not compute meanwhile.
    held: BTreeMap<(u64, usize), Lock>,
    heard: Instant,
}

impl Takeover {
    /// Reads what the runs of a folder gave their workers.
    pub fn new(folder: &RunFolder, bucket: Option<Arc<Bucket>>) -> Self {
        let heartbeat = folder.config().map(|config| config.waits.heartbeat).unwrap_or_default();
        let workers = fs_err::read_dir(folder.workers()).into_iter().flatten().flatten();
        let left = workers.filter_map(|entry| {
            let folder = AttemptFolder::at(entry.path());
            let open = given(&folder);
            let reports = Follower::new(folder.outbox());
            let heard = Instant::now();
            (!open.is_empty()).then_some(Left { folder, reports, open, held: BTreeMap::new(), heard })
        });
        Self { left: left.collect(), bucket, silent: Duration::from_secs_f64(3.0 * heartbeat) }
    }

    /// Keeps what was finished and not taken since the last call; returns how many results.
    ///
    /// # Errors
    /// A store that cannot be read or written. What cannot be read of a worker is computed again.
    pub fn keep_finished(&mut self, store: &Store) -> Result<usize, StoreError> {
        let mut kept = 0;
        for left in &mut self.left {
            for report in left.reports.read().unwrap_or_default() {
                left.heard = Instant::now();
                match report {
                    Report::Finished(finished) => {
                        kept += usize::from(left.keep(store, &finished, self.bucket.as_deref())?);
                    }
                    Report::Done(number, _)
                    | Report::Died(number, _)
                    | Report::Reply(number, Reply::Failed { .. }) => left.close(number),
                    Report::Leaving(..) => left.open.clear(),
                    Report::Beat(_) | Report::Reply(..) | Report::Measured(..) => {}
                }
            }
            if left.open.is_empty() || left.heard.elapsed() > self.silent {
                left.held.clear();
            }
        }
        self.left.retain(|left| !left.open.is_empty());
        Ok(kept)
    }

    /// Keeps others from computing what the workers may still finish; returns how many tasks. A worker that gives no sign of
    /// life, or ends what it was given, loses that right.
    ///
    /// # Errors
    /// A store that cannot be read or locked.
    pub fn hold(&mut self, store: &Store) -> Result<usize, StoreError> {
        let mut tried = BTreeSet::new();
        for Left { open, held, .. } in &mut self.left {
            for (number, notes) in &*open {
                for (task, note) in notes.iter().enumerate() {
                    let fingerprint = note.recipe.fingerprint();
                    // A task that was lost once may have been given to several.
                    if tried.insert(fingerprint) && !matches!(store.find(&fingerprint)?, Lookup::Hit(_)) {
                        held.extend(store.try_lock(&fingerprint)?.map(|lock| ((*number, task), lock)));
                    }
                }
            }
        }
        Ok(self.left.iter().map(|left| left.held.len()).sum())
    }

    /// Whether its workers may still finish something.
    pub fn is_over(&self) -> bool {
        self.left.is_empty()
    }
}

impl Left {
    /// It does no more of an assignment.
    fn close(&mut self, number: u64) {
        self.open.remove(&number);
        self.held.retain(|(of, _), _| *of != number);
    }

    /// Keeps a result that nobody took; returns whether there was one.
    fn keep(
        &mut self,
        store: &Store,
        finished: &Finished,
        bucket: Option<&Bucket>,
    ) -> Result<bool, StoreError> {
        let held = self.held.remove(&(finished.number, finished.task));
        let note = self.open.get(&finished.number).and_then(|notes| notes.get(finished.task));
        let Some(note) = note else { return Ok(false) };
        let output = self.folder.output(finished.number, finished.task);
        let fingerprint = note.recipe.fingerprint();
        if matches!(store.find(&fingerprint)?, Lookup::Hit(_)) || !is_unchanged(store, note) {
            return Ok(false);
        }
        let task = (self.folder.name(), finished.number, finished.task);
        let fetched =
            bucket.map(|bucket| bucket.fetch_result((&task.0, task.1, task.2), &finished.files, &output));
        if let Some(Err(error)) = fetched {
            tracing::warn!("{error}");
            return Ok(false);
        }
        // What the run took is not there any more.
        if !output.exists() {
            return Ok(false);
        }
        let lock = held.map_or_else(|| store.try_lock(&fingerprint), |lock| Ok(Some(lock)))?;
        let Some(_lock) = lock else { return Ok(false) };
        let file = |file: &std::path::PathBuf| match file.as_os_str().is_empty() {
            true => output.clone(),
            false => output.join(file),
        };
        let outputs: Vec<_> = note.outputs.iter().map(|(port, path)| (port.clone(), file(path))).collect();
        match store.commit(&note.recipe, &outputs, Some(&finished.files), note.spent + finished.seconds) {
            Ok(_) => Ok(true),
            Err(error) if error.is_the_stage() => {
                tracing::warn!("{}: {error}", output.display());
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}

/// Whether all that a task read outside the store is what its recipe says.
fn is_unchanged(store: &Store, note: &Note) -> bool {
    note.sources.iter().all(|(path, digest)| store.source(path).is_ok_and(|found| found == *digest))
}

/// What a worker was given: by the numbers of the assignments, what it takes to keep the results.
fn given(attempt: &AttemptFolder) -> BTreeMap<u64, Vec<Note>> {
    let mut notes = BTreeMap::new();
    for entry in fs_err::read_dir(attempt.path()).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with("in.") {
            continue;
        }
        let mut orders = Follower::<Order>::new(entry.path());
        for order in orders.read().unwrap_or_default() {
            if let Order::Work(assignment) = order {
                notes.insert(assignment.number, assignment.notes);
            }
        }
    }
    notes
}
