//! A worker on a node: takes orders from files, and computes with a worker process of its own.
//!
//! The process that computes may crash; this one tells the run, and starts another.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

use super::bucket::{Bucket, log_on_node};
use super::carrier::NodeCarrier;
use super::folder::{Appender, AttemptFolder, Follower, Pause, RunFolder, Seen, visible};
use super::folder::{Lease, LeaseState};
use super::lock_test;
use super::messages::{Assignment, Finished, Hello, Order, Report, RunConfig};
use super::node_files::{NodeBucket, NodeFiles, scratch};
use super::orders::{Orders, State};
use crate::worker::cancel::{Cancel, CancelMode};
use crate::worker::local::LocalBackend;
use crate::worker::measure::{CostModel, MeasureBackend, MeasureRequest, MeasureWorkers};
use crate::worker::protocol::{Reply, TaskError, Usage, WorkerConfig};
use crate::worker::{Backend, Request, Work, Worker};

/// Makes the command-line program a worker of a run on a cluster: `attrflow --cluster-worker PLACE POOL`; the place is the run's
/// folder, or `BUCKET#RUN`.
pub const CLUSTER_WORKER: &str = "--cluster-worker";

/// Serves a run until it is over, dead, or the scheduler wants the node back.
///
/// # Errors
/// A run that cannot be found, and a worker process that cannot be started.
pub fn serve(
    place: &str,
    pool: &str,
    backend: impl FnOnce(WorkerConfig) -> LocalBackend,
) -> Result<(), String> {
    let Some(bucket) = Bucket::of_place(place) else {
        return serve_in(&RunFolder::at(place), pool, backend, None);
    };
    let bucket = bucket.map_err(|error| error.to_string())?;
    let scratch = scratch(bucket.run()).map_err(|error| error.to_string())?;
    let folder = RunFolder::at(scratch.path().join(bucket.run()));
    let mut carrier = NodeCarrier::begin(&bucket, &folder).map_err(|error| error.to_string())?;
    let poll = folder.config().map_or(1.0, |config| config.waits.poll);
    let over = AtomicBool::new(false);
    let ended = std::thread::scope(|scope| {
        scope.spawn(|| carrier.carry(poll, &over));
        let files = NodeBucket { bucket: &bucket, inputs: scratch.path().join("inputs") };
        let _over = SetAtEnd(&over);
        serve_in(&folder, pool, backend, Some(files))
    });
    if let Err(error) = &ended {
        tracing::warn!("{error}");
    }
    carrier.send_log(&log_on_node(bucket.run(), &env("SLURM_ARRAY_JOB_ID"), &env("SLURM_ARRAY_TASK_ID")));
    ended
}

/// Ends the carrier, however the worker ends.
struct SetAtEnd<'a>(&'a AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn env(name: &str) -> String {
    std::env::var(name).unwrap_or_default()
}

/// Serves the run of a folder.
fn serve_in(
    folder: &RunFolder,
    pool: &str,
    backend: impl FnOnce(WorkerConfig) -> LocalBackend,
    bucket: Option<NodeBucket<'_>>,
) -> Result<(), String> {
    let failed = |error: std::io::Error| error.to_string();
    let config = visible(|| folder.config()).map_err(failed)?;
    let settings = config.pools.get(pool).ok_or_else(|| format!("run.json names no pool `{pool}`"))?;
    let attempt = AttemptFolder::at(folder.workers().join(attempt_name()));
    visible(|| fs_err::create_dir_all(attempt.path())).map_err(failed)?;
    let outbox = Mutex::new(Appender::open(&attempt.outbox()).map_err(failed)?);
    let (cancel, backend) = (Cancel::default(), backend(settings.worker.clone()));
    let next = || {
        let request = Request { slot: 0, libtorch: settings.libtorch, waiting: &|| 1, cancel: &cancel };
        let worker = backend.next(&request)?;
        worker.ok_or_else(|| TaskError::Start("none".into()))
    };
    let first = next();
    let hello = Hello {
        pool: pool.to_owned(),
        array: env("SLURM_ARRAY_JOB_ID"),
        task: env("SLURM_ARRAY_TASK_ID"),
        restart: restarts(),
        node: env("SLURMD_NODENAME"),
        facts: first.as_ref().ok().map(|worker| worker.facts().clone()),
        error: first.as_ref().err().map(TaskError::to_string),
        visible_devices: Some(env("CUDA_VISIBLE_DEVICES")).filter(|devices| !devices.is_empty()),
        clock: clock(),
        epoch: folder.lease().map_or(0, |lease| lease.epoch),
        locks: lock_test::is_refused(&folder.lock_test()),
    };
    attempt.write_hello(&hello).map_err(failed)?;
    let worker = first.map_err(|error| error.to_string())?;
    let orders = Orders::default();
    let files = NodeFiles { attempt: &attempt, waits: &config.waits, bucket };
    let node = Node { folder, files, config: &config, outbox: &outbox, orders: &orders };
    std::thread::scope(|scope| {
        scope.spawn(|| node.watch());
        scope.spawn(|| node.beat());
        let signals = Signals::new([SIGUSR1, SIGTERM]).map_err(failed)?;
        let handle = signals.handle();
        scope.spawn(|| node.obey_signals(signals, &cancel));
        let measure = |request: &MeasureRequest| {
            let (program, configs) = (backend.worker.clone(), vec![settings.worker.clone()]);
            let workers = MeasureWorkers { program, configs, folder: attempt.path().join("measure") };
            workers.measure(request)?.pop().ok_or_else(|| "nothing was measured".to_owned())
        };
        let ended = node.work(worker, &cancel, &next, &measure);
        orders.state().over = true;
        handle.close();
        ended
    })
}

/// This host's clock, in seconds since 1970.
pub fn clock() -> f64 {
    jiff::Timestamp::now().as_nanosecond() as f64 * 1e-9
}

/// The name of this attempt: no two have the same, also where a network partition lets two attempts of one task live.
fn attempt_name() -> String {
    let now = jiff::Timestamp::now().as_nanosecond();
    let place = format!("{}_{}", env("SLURM_ARRAY_JOB_ID"), env("SLURM_ARRAY_TASK_ID"));
    format!("{place}.{}.{:x}-{now:x}", restarts(), std::process::id())
}

/// How often the scheduler started this task again; Slurm says nothing at first.
fn restarts() -> u32 {
    std::env::var("SLURM_RESTART_COUNT").ok().and_then(|text| text.parse().ok()).unwrap_or(0)
}

struct Node<'a> {
    folder: &'a RunFolder,
    files: NodeFiles<'a>,
    config: &'a RunConfig,
    outbox: &'a Mutex<Appender>,
    orders: &'a Orders,
}

/// Measures on this node.
type Measure<'a> = &'a dyn Fn(&MeasureRequest) -> Result<CostModel, String>;
/// Starts another worker process.
type Start<'a> = &'a dyn Fn() -> Result<Box<dyn Worker>, TaskError>;

impl Node<'_> {
    fn report(&self, report: &Report) -> std::io::Result<()> {
        self.outbox.lock().expect("no panic under this lock").append(report)
    }

    fn is_over(&self) -> bool {
        self.orders.state().over
    }

    /// Says that it lives.
    fn beat(&self) {
        let every = Duration::from_secs_f64(self.config.waits.heartbeat);
        let (mut count, mut last) = (0, None::<Instant>);
        while !self.is_over() {
            if last.is_none_or(|last| last.elapsed() >= every) {
                (count, last) = (count + 1, Some(Instant::now()));
                // The run will notice the silence.
                let _ = self.report(&Report::Beat(count));
            }
            std::thread::sleep(every.min(Duration::from_millis(100)));
        }
    }

    /// Follows the run: whether it lives, and what it wants.
    fn watch(&self) {
        let waits = &self.config.waits;
        let mut seen = Seen::new();
        let mut inbox: Option<(u64, Follower<Order>)> = None;
        let mut pause = Pause::new(waits.poll);
        while !self.is_over() {
            if let Ok(lease) = self.folder.lease() {
                let epoch = lease.epoch;
                if inbox.as_ref().is_none_or(|(known, _)| *known < epoch) {
                    inbox = Some((epoch, Follower::new(self.files.attempt.inbox(epoch))));
                    // What another run gave is not continued: nobody would take it.
                    self.orders.change(|state| state.stopped = state.newest);
                    let _ = self.report(&Report::Obeys(epoch, self.orders.state().stopped));
                }
                let Lease { state, beat, .. } = lease;
                if state == LeaseState::Ended {
                    self.orders.change(|state| state.end = Some("the run is over".into()));
                }
                let silent = seen.look((epoch, beat)).as_secs_f64();
                if silent > waits.lease + waits.orphaned {
                    self.orders.change(|state| state.end = Some(format!("no run for {silent:.0} s")));
                }
            }
            let orders = inbox.as_mut().and_then(|(_, inbox)| inbox.read().ok()).unwrap_or_default();
            if !orders.is_empty() || std::mem::take(&mut self.orders.state().waits) {
                pause.reset();
            }
            for order in orders {
                self.orders.change(|state| match order {
                    Order::Work(assignment) => {
                        state.newest = assignment.number;
                        state.assignments.push_back(assignment);
                    }
                    Order::Measure(number, request, inputs) => {
                        state.measurements.push_back((number, request, inputs));
                    }
                    // What it has not begun is reported as ended too.
                    Order::Stop => state.stopped = state.newest,
                    Order::End => state.end = Some("the run needs it no more".into()),
                });
            }
            let state = self.orders.state();
            // Ends early when the worker waits for more.
            let over = |state: &mut State| !state.waits && !state.over;
            drop(self.orders.wait_while(state, pause.step(), over));
        }
    }

    /// Notes that the scheduler wants the node back. After the second of two signals, Slurm kills.
    fn obey_signals(&self, mut signals: Signals, cancel: &Cancel) {
        for signal in signals.forever() {
            let left = match signal {
                SIGUSR1 => Duration::from_secs(self.config.waits.leave.into()),
                _ => Duration::ZERO,
            };
            self.orders.change(|state| {
                let deadline = Instant::now() + left;
                state.deadline = Some(state.deadline.map_or(deadline, |earlier| earlier.min(deadline)));
                state.killed |= signal == SIGTERM;
            });
            // Nobody takes what is computed for a run that is over.
            let over = self.folder.lease().is_ok_and(|lease| lease.state == LeaseState::Ended);
            if signal == SIGTERM {
                self.files.stop();
                if over {
                    cancel.request(CancelMode::Kill);
                }
            }
        }
    }

    /// Computes until nothing is wanted any more.
    fn work(
        &self,
        worker: Box<dyn Worker>,
        cancel: &Cancel,
        start: Start<'_>,
        measure: Measure<'_>,
    ) -> Result<(), String> {
        let mut worker = Some(worker);
        // The longest batch so far: one that may not end in time is not begun.
        let mut longest = Duration::ZERO;
        loop {
            let assignment = {
                let mut state = self.orders.state();
                loop {
                    if state.end.is_some() {
                        return Ok(());
                    }
                    if state.deadline.is_some_and(|deadline| Instant::now() + longest >= deadline) {
                        drop(state);
                        let leaving = Report::Leaving("the scheduler ends it".into(), false);
                        return self.report(&leaving).map_err(|error| error.to_string());
                    }
                    if let Some((number, request, inputs)) = state.measurements.pop_front() {
                        drop(state);
                        let measured =
                            self.files.local(request, &inputs).and_then(|request| measure(&request));
                        let report = Report::Measured(number, measured);
                        self.report(&report).map_err(|error| error.to_string())?;
                        state = self.orders.state();
                        continue;
                    }
                    if let Some(assignment) = state.assignments.pop_front() {
                        break assignment;
                    }
                    state = self.orders.wait(state, Duration::from_millis(200));
                }
            };
            self.compute(assignment, &mut worker, cancel, start, &mut longest)?;
            self.orders.change(|state| state.waits = state.assignments.is_empty());
        }
    }

    /// Ends an assignment whose tasks from `first` on are not to be begun.
    fn refusal(
        &self,
        number: u64,
        first: usize,
        longest: Duration,
        sum: Usage,
    ) -> Option<Result<(), String>> {
        let state = self.orders.state();
        let late = state.deadline.is_some_and(|deadline| Instant::now() + longest >= deadline);
        if state.killed || (first > 0 && (late || state.end.is_some())) {
            return Some(Ok(()));
        }
        let is_stopped = number <= state.stopped;
        drop(state);
        is_stopped.then(|| self.report(&Report::Done(number, sum)).map_err(|error| error.to_string()))
    }

    /// Computes an assignment, as far as the run and the scheduler let it.
    fn compute(
        &self,
        assignment: Assignment,
        worker: &mut Option<Box<dyn Worker>>,
        cancel: &Cancel,
        start: Start<'_>,
        longest: &mut Duration,
    ) -> Result<(), String> {
        let failed = |error: std::io::Error| error.to_string();
        let Assignment { number, batches, inputs, .. } = assignment;
        let (mut first, mut sum) = (0, Usage::default());
        let mut since = Instant::now();
        for mut batch in batches {
            let count = batch.tasks.len();
            if let Some(refusal) = self.refusal(number, first, *longest, sum) {
                return refusal;
            }
            for (place, task) in batch.tasks.iter_mut().enumerate() {
                task.out = self.files.attempt.output(number, first + place);
                fs_err::create_dir_all(&task.out).map_err(failed)?;
            }
            let begun = Instant::now();
            let tasks = (first..first + count).collect();
            self.report(&Report::Reply(number, Reply::Started { tasks })).map_err(failed)?;
            let brought = batch.tasks.iter_mut().try_for_each(|task| self.files.bring(task, &inputs));
            // That may have taken long.
            if let Some(refusal) = self.refusal(number, first, *longest, sum) {
                return refusal;
            }
            if let Err(error) = brought {
                let error = format!("what it reads cannot be brought to {}: {error}", env("SLURMD_NODENAME"));
                return self.report(&Report::Reply(number, Reply::Failed { error })).map_err(failed);
            }
            let mut open: Vec<usize> = (0..count).collect();
            let mut finish = |tasks: &[usize], usage: Usage, open: &mut Vec<usize>| -> std::io::Result<()> {
                open.retain(|task| !tasks.contains(task));
                let seconds = since.elapsed().as_secs_f64() / tasks.len().max(1) as f64;
                since = Instant::now();
                for task in tasks {
                    let files = self.files.give(number, first + task)?;
                    let finished = Finished { number, task: first + task, files, seconds, usage };
                    self.report(&Report::Finished(finished))?;
                }
                Ok(())
            };
            let mut trouble = Ok(());
            let work = Work { batches: vec![batch], notes: Vec::new() };
            let result = loop {
                let mut started = match worker.take().map_or_else(start, Ok) {
                    Err(error) => break Err(error),
                    Ok(started) => started,
                };
                let working = cancel.enter(started.group());
                let result = started.run(&work, &mut |reply| {
                    let told = match reply {
                        Reply::Finished { tasks, usage, .. } => finish(&tasks, usage, &mut open),
                        Reply::Progress { task, done, total, note } => {
                            let reply = Reply::Progress { task: first + task, done, total, note };
                            self.report(&Report::Reply(number, reply))
                        }
                        reply => self.report(&Report::Reply(number, reply)),
                    };
                    trouble = std::mem::replace(&mut trouble, Ok(())).and(told);
                });
                drop(working);
                match result {
                    // It ended before it had this: another gets it.
                    Err(TaskError::Left(_)) => continue,
                    Ok(_) | Err(TaskError::Failed(_)) => *worker = Some(started),
                    Err(_) => {}
                }
                break result;
            };
            trouble.map_err(failed)?;
            // No unit failed that the scheduler ended.
            let died = matches!(result, Err(TaskError::Died(_)));
            if (died || matches!(result, Err(TaskError::Failed(_)))) && self.orders.is_cut_off(died) {
                let leaving = Report::Leaving("the scheduler ended it".into(), true);
                return self.report(&leaving).map_err(failed);
            }
            *longest = begun.elapsed().max(*longest);
            match result {
                Ok(usage) => {
                    let rest = open.clone();
                    finish(&rest, usage, &mut open).map_err(failed)?;
                    sum.wall += usage.wall;
                    sum.cpu += usage.cpu;
                    sum.peak_memory = sum.peak_memory.max(usage.peak_memory);
                    sum.peak_device_memory = sum.peak_device_memory.max(usage.peak_device_memory);
                }
                Err(TaskError::Failed(error)) => {
                    return self.report(&Report::Reply(number, Reply::Failed { error })).map_err(failed);
                }
                Err(TaskError::Died(how)) => {
                    return self.report(&Report::Died(number, how)).map_err(failed);
                }
                Err(error) => {
                    self.report(&Report::Leaving(error.to_string(), false)).map_err(failed)?;
                    return Err(error.to_string());
                }
            }
            first += count;
        }
        self.report(&Report::Done(number, sum)).map_err(failed)
    }
}
