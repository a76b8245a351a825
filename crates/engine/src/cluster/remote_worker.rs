//! The run's side of a worker on a node.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::folder::{Appender, Follower, Pause, is_absent};
use super::jobs::TaskId;
use super::messages::{Assignment, Finished, Hello, Input, Order, Report};
use super::pool::{Ready, Shared, name_of};
use crate::kind::{ArtifactShape, Step};
use crate::worker::cancel::CancelMode;
use crate::worker::measure::{CostModel, MeasureRequest};
use crate::worker::protocol::{Facts, Reply, TaskError, Usage};
use crate::worker::{Note, Place, Work, Worker};

/// A worker that takes its orders from a file.
pub(super) struct RemoteWorker {
    shared: Arc<Shared>,
    pool: usize,
    ready: Ready,
    facts: Facts,
    inbox: Appender,
    outbox: Follower<Report>,
    /// The number of the newest assignment.
    number: u64,
    heard: Instant,
    /// Why it serves no more.
    ended: Option<String>,
    /// Whether it said so itself.
    left: bool,
}

impl RemoteWorker {
    pub fn new(shared: &Arc<Shared>, pool: usize, ready: Ready) -> std::io::Result<Self> {
        let (folder, epoch) = (&ready.folder, shared.epoch);
        Ok(Self {
            inbox: Appender::open(&folder.inbox(epoch))?,
            outbox: Follower::new(folder.outbox()),
            facts: ready.hello.facts.clone().unwrap_or_default(),
            shared: Arc::clone(shared),
            pool,
            ready,
            number: epoch << 32,
            heard: Instant::now(),
            ended: None,
            left: false,
        })
    }

    fn hello(&self) -> &Hello {
        &self.ready.hello
    }

    fn id(&self) -> TaskId {
        (self.hello().array.clone(), self.hello().task.clone())
    }

    /// The worker, for people.
    fn name(&self) -> String {
        format!("task {}_{} on {}", self.hello().array, self.hello().task, name_of(self.hello()))
    }

    /// Takes note of the loss of this worker.
    fn lost(&mut self, how: &str) -> TaskError {
        let how = format!("{}: {how}", self.name());
        self.ended = Some(how.clone());
        self.shared.note_lost(self.pool, self.hello(), self.ready.since);
        TaskError::Lost(how)
    }

    /// Why it must be taken for dead, if so. No state of a job says that a task was done.
    fn gone(&self) -> Option<String> {
        let waits = &self.shared.config.waits;
        let silent = self.heard.elapsed().as_secs_f64();
        let state = self.shared.state();
        if silent > 3.0 * waits.heartbeat && state.newest.get(&self.id()) != Some(&self.ready.folder.name()) {
            return Some("the scheduler started it again".into());
        }
        if silent > waits.gone {
            return Some(format!("no sign of life for {silent:.0} s"));
        }
        // What the scheduler said before the worker's hello is about an earlier attempt.
        state.looked.filter(|looked| *looked > self.ready.since)?;
        match state.lines.get(&self.id()) {
            Some(line) if line.is_over() => Some(line.describe()),
            Some(line) if line.is_running() => None,
            Some(line) if silent > waits.silent => {
                Some(format!("no sign of life for {silent:.0} s, {}", line.describe()))
            }
            None if silent > waits.silent => Some("the scheduler does not know it any more".into()),
            _ => None,
        }
    }

    /// That a batch takes longer than a worker lives, if it had nearly all of this one's time and met its limit.
    fn too_long(&self, begun: Instant) -> Option<String> {
        let (took, life) = (begun.elapsed(), self.ready.since.elapsed());
        if took < life.mul_f64(0.9) {
            return None;
        }
        // The scheduler says why once all processes of the job have ended.
        let line = || self.shared.state().lines.get(&self.id()).cloned();
        let longest = Duration::from_secs_f64(60.0 + 3.0 * self.shared.config.waits.squeue);
        let asked = Instant::now();
        while !line().is_some_and(|line| line.is_over())
            && asked.elapsed() < longest
            && self.shared.cancel.mode().is_none()
        {
            std::thread::sleep(Duration::from_millis(100));
        }
        line().filter(|line| line.state == "TIMEOUT")?;
        let pool = &self.shared.pools[self.pool].name;
        Some(format!(
            "it takes longer than the time limit of pool `{pool}`: {} was ended after {:.0} s of it; raise cluster.pools.{pool}.time",
            self.name(),
            took.as_secs_f64()
        ))
    }

    /// Puts what tasks read into the bucket, where there is one.
    fn send_inputs<'p>(
        &self,
        paths: impl Iterator<Item = &'p PathBuf> + Clone,
        notes: &[Note],
    ) -> Result<BTreeMap<PathBuf, Input>, String> {
        let Some(bucket) = &self.shared.bucket else { return Ok(BTreeMap::new()) };
        let sources = notes.iter().flat_map(|note| &note.sources);
        let expected = sources.map(|(path, digest)| (path.as_path(), *digest)).collect();
        let send = || bucket.send_inputs(paths.clone(), &expected);
        bucket.patiently(self.shared.config.waits.visible, send).map_err(|error| error.to_string())
    }

    /// Brings what a task wrote to where the run wants it, once all of it can be seen.
    fn fetch(&self, finished: &Finished, out: &Path) -> Result<(), String> {
        if let Some(bucket) = &self.shared.bucket {
            let task = (self.ready.folder.name(), finished.number, finished.task);
            let fetch = || bucket.fetch_result((&task.0, task.1, task.2), &finished.files, out);
            let fetched = bucket.patiently(self.shared.config.waits.visible, fetch);
            return fetched.map_err(|error| error.to_string());
        }
        let from = self.ready.folder.output(finished.number, finished.task);
        let begun = Instant::now();
        let longest = Duration::from_secs_f64(self.shared.config.waits.visible);
        let mut pause = Pause::new(self.shared.config.waits.poll);
        loop {
            let missing = finished.files.0.iter().find(|file| {
                !fs_err::metadata(from.join(&file.path)).is_ok_and(|found| found.len() == file.size)
            });
            let moved = match missing {
                None => replace(&from, out),
                Some(file) => {
                    Err(std::io::Error::new(ErrorKind::NotFound, from.join(&file.path).display().to_string()))
                }
            };
            let error = match moved {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            // A request that was repeated on the way finds nothing to do the second time.
            let there = || finished.files.0.iter().all(|file| out.join(&file.path).exists());
            if is_absent(&error) && !finished.files.0.is_empty() && there() {
                return Ok(());
            }
            if !is_absent(&error)
                || begun.elapsed() > longest
                || self.shared.cancel.mode() == Some(CancelMode::Kill)
            {
                return Err(format!(
                    "what it wrote cannot be seen here after {:.0} s: {error}",
                    begun.elapsed().as_secs_f64()
                ));
            }
            // Opening a folder makes a network file system look for news in it.
            let _ = from.parent().map(fs_err::read_dir);
            pause.wait();
        }
    }
}

/// Renames a folder to the place of another, in which earlier tasks may have left empty folders.
fn replace(from: &Path, out: &Path) -> std::io::Result<()> {
    match fs_err::rename(from, out) {
        Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => {
            for left in fs_err::read_dir(out)? {
                fs_err::remove_dir(left?.path())?;
            }
            fs_err::rename(from, out)
        }
        moved => moved,
    }
}

/// A task whose files are where the run wants them.
fn taken(Finished { task, files, usage, .. }: Finished) -> Reply {
    Reply::Finished { tasks: vec![task], files: vec![files], usage }
}

impl Worker for RemoteWorker {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn survives(&self) -> bool {
        self.ended.is_none()
    }

    fn place(&self) -> Option<Place> {
        let Hello { array, task, node, .. } = self.hello().clone();
        let state = self.shared.state();
        let submitted = state.submitted.iter().find(|submitted| submitted.array == array);
        let queue_seconds =
            submitted.map_or(0.0, |submitted| (self.ready.since - submitted.at).as_secs_f64());
        let pool = self.shared.pools[self.pool].name.clone();
        Some(Place { pool, worker: format!("{array}_{task} on {node}"), node, queue_seconds })
    }

    fn remaining(&self) -> Option<Duration> {
        let state = self.shared.state();
        let left = state.lines.get(&self.id())?.left?;
        let since = state.looked.map_or(Duration::ZERO, |looked| looked.elapsed());
        Some(left.saturating_sub(since + Duration::from_secs(self.shared.config.waits.leave.into())))
    }

    fn measure(&mut self, request: &MeasureRequest) -> Result<CostModel, String> {
        self.number += 1;
        let paths = request.inputs.shapes.values().filter_map(ArtifactShape::path);
        let inputs = self.send_inputs(paths, &[])?;
        let order = Order::Measure(self.number, request.clone(), inputs);
        self.inbox.append(&order).and_then(|()| self.inbox.sync()).map_err(|error| error.to_string())?;
        self.heard = Instant::now();
        let mut pause = Pause::new(self.shared.config.waits.poll);
        loop {
            for report in self.outbox.read().unwrap_or_default() {
                self.heard = Instant::now();
                match report {
                    Report::Measured(of, found) if of == self.number => return found,
                    Report::Leaving(why, _) => return Err(why),
                    _ => {}
                }
            }
            if self.shared.cancel.mode().is_some() {
                return Err("interrupted".into());
            }
            if let Some(how) = self.gone() {
                return Err(self.lost(&how).to_string());
            }
            pause.wait();
        }
    }

    fn run(&mut self, work: &Work, on_reply: &mut dyn FnMut(Reply)) -> Result<Usage, TaskError> {
        self.number += 1;
        let number = self.number;
        let tasks = || work.batches.iter().flat_map(|batch| &batch.tasks);
        let parts = tasks().filter_map(|task| match &task.step {
            Step::Merge(parts) => Some(parts),
            Step::Whole | Step::Unit(_) => None,
        });
        let paths = tasks().flat_map(|task| task.inputs.0.values()).chain(parts.flatten());
        let inputs = match self.send_inputs(paths, &work.notes) {
            _ if self.shared.cancel.mode().is_some() => return Err(TaskError::Stopped),
            Ok(inputs) => inputs,
            Err(error) => return Err(TaskError::Failed(format!("what it reads cannot be sent: {error}"))),
        };
        let outs: Vec<_> = tasks().map(|task| task.out.clone()).collect();
        let assignment =
            Assignment { number, batches: work.batches.clone(), notes: work.notes.clone(), inputs };
        let given = self.inbox.append(&Order::Work(assignment)).and_then(|()| self.inbox.sync());
        if let Err(error) = given {
            return Err(self.lost(&error.to_string()));
        }
        let mut pause = Pause::new(self.shared.config.waits.poll);
        let (mut done, mut stopping, mut begun) = (0, false, None::<Instant>);
        self.heard = Instant::now();
        loop {
            // A file that was replaced on the server is read again in a moment.
            let reports = match self.outbox.read() {
                Err(error) if !is_absent(&error) => return Err(self.lost(&error.to_string())),
                reports => reports.unwrap_or_default(),
            };
            let has_spoken = !reports.is_empty();
            // A sign of life alone announces nothing.
            if reports.iter().any(|report| !matches!(report, Report::Beat(_))) {
                pause.reset();
            }
            for report in reports {
                match report {
                    Report::Reply(of, Reply::Failed { error }) if of == number => {
                        return Err(TaskError::Failed(error));
                    }
                    Report::Reply(of, reply) if of == number => {
                        if matches!(reply, Reply::Started { .. }) {
                            begun = Some(Instant::now());
                        }
                        on_reply(reply);
                    }
                    Report::Finished(finished) if finished.number == number => {
                        let Some(out) = outs.get(finished.task) else { continue };
                        if let Err(how) = self.fetch(&finished, out) {
                            return Err(self.lost(&how));
                        }
                        done += 1;
                        on_reply(taken(finished));
                    }
                    Report::Done(of, usage) if of == number && done == outs.len() => return Ok(usage),
                    Report::Done(of, _) if of == number => return Err(TaskError::Stopped),
                    Report::Died(of, how) if of == number => return Err(TaskError::Died(how)),
                    Report::Leaving(why, cut) => {
                        (self.ended, self.left) = (Some(why.clone()), true);
                        self.shared.state().spent.insert(self.id());
                        if let Some(error) = begun.filter(|_| cut).and_then(|begun| self.too_long(begun)) {
                            return Err(TaskError::Failed(error));
                        }
                        return Err(TaskError::Left(format!("{}: {why}", self.name())));
                    }
                    Report::Beat(_)
                    | Report::Measured(..)
                    | Report::Obeys(..)
                    | Report::Reply(..)
                    | Report::Finished(_)
                    | Report::Done(..)
                    | Report::Died(..) => {}
                }
            }
            // Bringing results may have taken long.
            if has_spoken {
                self.heard = Instant::now();
            }
            match self.shared.cancel.mode() {
                Some(CancelMode::Kill) => {
                    self.ended = Some("the run was stopped".into());
                    return Err(TaskError::Died("the run was stopped".into()));
                }
                Some(CancelMode::Drain) if !stopping => {
                    stopping = true;
                    // If that fails, the worker goes on to the end of what it has.
                    let _ = self.inbox.append(&Order::Stop);
                }
                _ => {}
            }
            if let Some(how) = self.gone() {
                // What it wrote last may become visible only now.
                self.shared.wait_for_news();
                let rest = self.outbox.read().unwrap_or_default();
                for report in rest {
                    if let Report::Finished(finished) = report
                        && finished.number == number
                        && let Some(out) = outs.get(finished.task)
                        && self.fetch(&finished, out).is_ok()
                    {
                        done += 1;
                        begun = None;
                        on_reply(taken(finished));
                    }
                }
                if done == outs.len() {
                    self.lost(&how);
                    return Ok(Usage::default());
                }
                if let Some(error) = begun.and_then(|begun| self.too_long(begun)) {
                    self.lost(&how);
                    return Err(TaskError::Failed(error));
                }
                return Err(self.lost(&how));
            }
            pause.wait();
        }
    }
}

impl Drop for RemoteWorker {
    fn drop(&mut self) {
        if !self.left {
            // One that was given up may live. One that does not read it ends when the run is over.
            let _ = self.inbox.append(&Order::End);
        }
        let mut state = self.shared.state();
        state.spent.insert(self.id());
        if let Some(count) = state.busy.get_mut(&self.pool) {
            *count -= 1;
        }
        drop(state);
        self.shared.wake.notify_all();
    }
}
