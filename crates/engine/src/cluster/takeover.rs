//! What an earlier run left on a cluster: its finished results are kept, what its workers have in hand is not given to others,
//! and its workers serve again or are ended.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::LeaseState;
use super::bucket::Bucket;
use super::folder::{AttemptFolder, Follower, RunFolder};
use super::messages::{Finished, Order, Report, RunConfig};
use super::runs;
use crate::identity::digest::Listed;
use crate::store::{Lock, Lookup, Store, StoreError, is_network};
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
    /// How long a result may take to be seen here.
    visible: Duration,
}

/// A worker of an earlier run.
struct Left {
    folder: AttemptFolder,
    reports: Follower<Report>,
    /// What it takes to keep the results of its assignments that are not over, by their numbers.
    open: BTreeMap<u64, Vec<Note>>,
    /// Tasks that others must not compute meanwhile.
    held: BTreeMap<(u64, usize), Lock>,
    /// What it finished and is not kept yet.
    finished: Vec<Late>,
    heard: Instant,
}

/// A result that is to be kept.
struct Late {
    finished: Finished,
    note: Note,
    lock: Option<Lock>,
    since: Instant,
}

impl Takeover {
    /// Reads what the runs of a folder gave their workers.
    pub fn new(folder: &RunFolder, bucket: Option<Arc<Bucket>>) -> Self {
        let waits = folder.config().map(|config| config.waits).unwrap_or_default();
        let workers = fs_err::read_dir(folder.workers()).into_iter().flatten().flatten();
        let left = workers.filter_map(|entry| {
            let folder = AttemptFolder::at(entry.path());
            let open = given(&folder);
            let reports = Follower::new(folder.outbox());
            let (held, finished, heard) = (BTreeMap::new(), Vec::new(), Instant::now());
            (!open.is_empty()).then_some(Left { folder, reports, open, held, finished, heard })
        });
        let silent = Duration::from_secs_f64(3.0 * waits.heartbeat);
        Self { left: left.collect(), bucket, silent, visible: Duration::from_secs_f64(waits.visible) }
    }

    /// Keeps what was finished and not taken since the last call; returns how many results.
    ///
    /// # Errors
    /// A store that cannot be read or written. What cannot be read of a worker is computed again.
    pub fn keep_finished(&mut self, store: &Store) -> Result<usize, StoreError> {
        let mut kept = 0;
        for left in &mut self.left {
            let reports = left.reports.read().unwrap_or_default();
            let has_spoken = !reports.is_empty();
            reports.into_iter().for_each(|report| left.take(report));
            for late in std::mem::take(&mut left.finished) {
                match late.keep(store, &left.folder, self.bucket.as_deref())? {
                    Kept::Now => kept += 1,
                    Kept::Not => {}
                    Kept::NotYet if late.since.elapsed() > self.visible => {}
                    Kept::NotYet => left.finished.push(late),
                }
            }
            // Keeping results may have taken long.
            if has_spoken {
                left.heard = Instant::now();
            } else if left.heard.elapsed() > self.silent {
                left.held.clear();
            }
        }
        self.left.retain(|left| !left.open.is_empty() || !left.finished.is_empty());
        Ok(kept)
    }

    /// Keeps others from computing what the workers may still finish; returns how many tasks. A worker that gives no sign of
    /// life, or ends what it was given, loses that right.
    ///
    /// # Errors
    /// A store that cannot be read or locked.
    pub fn hold(&mut self, store: &Store) -> Result<usize, StoreError> {
        let mut tried = BTreeSet::new();
        for Left { open, held, heard, .. } in &mut self.left {
            *heard = Instant::now();
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
    fn take(&mut self, report: Report) {
        match report {
            Report::Finished(finished) => {
                let lock = self.held.remove(&(finished.number, finished.task));
                let note = self.open.get(&finished.number).and_then(|notes| notes.get(finished.task));
                if let Some(note) = note.cloned() {
                    self.finished.push(Late { finished, note, lock, since: Instant::now() });
                }
            }
            Report::Done(number, _)
            | Report::Died(number, _)
            | Report::Reply(number, Reply::Failed { .. }) => self.close(|of| of == number),
            // What it had not read of an earlier run, it never does.
            Report::Obeys(epoch, newest) => self.close(|of| of >> 32 < epoch && of > newest),
            Report::Leaving(..) => self.close(|_| true),
            Report::Beat(_) | Report::Reply(..) | Report::Measured(..) => {}
        }
    }

    /// It does no more of these assignments.
    fn close(&mut self, over: impl Fn(u64) -> bool) {
        self.open.retain(|number, _| !over(*number));
        self.held.retain(|(number, _), _| !over(*number));
    }
}

/// Whether a result was kept.
enum Kept {
    Now,
    /// There is nothing to keep.
    Not,
    /// It cannot be seen.
    NotYet,
}

impl Late {
    /// Keeps it if nobody took it.
    fn keep(
        &self,
        store: &Store,
        folder: &AttemptFolder,
        bucket: Option<&Bucket>,
    ) -> Result<Kept, StoreError> {
        let Self { finished, note, lock, .. } = self;
        let output = folder.output(finished.number, finished.task);
        let fingerprint = note.recipe.fingerprint();
        if matches!(store.find(&fingerprint)?, Lookup::Hit(_)) || !is_unchanged(store, note) {
            return Ok(Kept::Not);
        }
        let task = (folder.name(), finished.number, finished.task);
        let fetch =
            |bucket: &Bucket| bucket.fetch_result((&task.0, task.1, task.2), &finished.files, &output);
        if let Some(Err(error)) = bucket.map(fetch) {
            tracing::debug!("{error}");
            let _ = fs_err::remove_dir_all(&output);
            return Ok(Kept::NotYet);
        }
        let is_seen = |file: &Listed| {
            fs_err::metadata(output.join(&file.path)).is_ok_and(|found| found.len() == file.size)
        };
        if !output.exists() || !finished.files.0.iter().all(is_seen) {
            // What the run took is not there any more.
            return Ok(if is_network(folder.path()) { Kept::NotYet } else { Kept::Not });
        }
        let own = if lock.is_none() { store.try_lock(&fingerprint)? } else { None };
        if lock.is_none() && own.is_none() {
            return Ok(Kept::Not);
        }
        let file = |file: &PathBuf| match file.as_os_str().is_empty() {
            true => output.clone(),
            false => output.join(file),
        };
        let outputs: Vec<_> = note.outputs.iter().map(|(port, path)| (port.clone(), file(path))).collect();
        match store.commit(&note.recipe, &outputs, Some(&finished.files), note.spent + finished.seconds) {
            Ok(_) => Ok(Kept::Now),
            Err(error) if error.is_the_stage() => {
                tracing::warn!("{}: {error}", output.display());
                Ok(Kept::Not)
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cluster::folder::Appender;
    use crate::cluster::messages::Assignment;
    use crate::identity::digest::Digest;
    use crate::identity::digest::Listing;
    use crate::identity::recipe::Recipe;
    use crate::store::PART;
    use crate::worker::protocol::Usage;

    fn note(number: u64) -> Note {
        let (kind, inputs) = ("say".to_owned(), BTreeMap::new());
        let recipe = Recipe { kind, version: 1, params: json!(number), inputs, numerics: None, unit: None };
        Note { recipe, outputs: vec![(PART.to_owned(), PathBuf::new())], sources: Vec::new(), spent: 0.0 }
    }

    #[test]
    fn what_a_worker_may_still_finish_is_held_and_what_it_never_read_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("cache")).unwrap();
        let other = Store::open(&folder.path().join("cache")).unwrap();
        let run = RunFolder::at(folder.path().join("run"));
        let attempt = AttemptFolder::at(run.workers().join("1_0.0.a"));
        fs_err::create_dir_all(attempt.path()).unwrap();
        let mut inbox = Appender::open(&attempt.inbox(1)).unwrap();
        let mut outbox = Appender::open(&attempt.outbox()).unwrap();
        let first = 1 << 32;
        for number in [first, first + 1, first + 2] {
            let (batches, inputs) = (Vec::new(), BTreeMap::new());
            let work = Assignment { number, batches, notes: vec![note(number)], inputs };
            inbox.append(&Order::Work(work)).unwrap();
        }
        let mut takeover = Takeover::new(&run, None);
        assert_eq!(takeover.keep_finished(&store).unwrap(), 0);
        assert_eq!(takeover.hold(&store).unwrap(), 3);
        let is_free = |number: u64| other.try_lock(&note(number).recipe.fingerprint()).unwrap().is_some();
        assert!(!is_free(first) && !is_free(first + 1) && !is_free(first + 2));
        // The worker read two orders of the earlier run; the third it never does.
        outbox.append(&Report::Obeys(2, first + 1)).unwrap();
        assert_eq!(takeover.keep_finished(&store).unwrap(), 0);
        assert!(!is_free(first) && !is_free(first + 1) && is_free(first + 2));
        // It finishes the first, and begins nothing of the second.
        let output = attempt.output(first, 0);
        fs_err::create_dir_all(&output).unwrap();
        fs_err::write(output.join("out"), "said").unwrap();
        let digest = Digest::of_file(&output.join("out")).unwrap();
        let files = Listing(vec![Listed { path: "out".into(), size: 4, digest }]);
        let finished = Finished { number: first, task: 0, files, seconds: 1.0, usage: Usage::default() };
        outbox.append(&Report::Finished(finished)).unwrap();
        outbox.append(&Report::Done(first, Usage::default())).unwrap();
        outbox.append(&Report::Done(first + 1, Usage::default())).unwrap();
        assert_eq!(takeover.keep_finished(&store).unwrap(), 1);
        assert!(matches!(other.find(&note(first).recipe.fingerprint()).unwrap(), Lookup::Hit(_)));
        assert!(is_free(first + 1) && takeover.is_over());
    }
}
