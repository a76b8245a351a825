//! The backend of a run on a cluster: asks for workers, finds those that are ready, and keeps the run's sign of life.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::carrier::RunCarrier;
use super::folder::{AttemptFolder, LeaseState, RunFolder};
use super::jobs::JobLine;
use super::lock_test;
use super::messages::RunConfig;
pub use super::pool::{Notice, Scheduler};
use super::pool::{PoolInfo, Shared, State};
use super::remote_worker::RemoteWorker;
use super::threads::{ask_scheduler, beat, find_workers, keep_lease};
use crate::kind::KindInfo;
use crate::pipeline::cluster_table::Pool;
use crate::worker::cancel::{Cancel, CancelMode};
use crate::worker::local::LocalBackend;
use crate::worker::protocol::{DeviceClass, TaskError};
use crate::worker::{Backend, Request, Worker};

/// Workers on this machine for what must run beside the run, such as downloads.
const HERE: usize = 0;

/// What a run on a cluster needs.
pub struct Setup {
    /// The run's folder, with its configuration written.
    pub folder: RunFolder,
    /// What its workers know.
    pub config: RunConfig,
    /// What carried messages of an earlier run of the folder.
    pub carrier: Option<RunCarrier>,
    /// Greater than that of any earlier run of the folder.
    pub epoch: u64,
    /// Its pools, by name.
    pub pools: BTreeMap<String, Pool>,
    /// Starts the workers of the pools.
    pub scheduler: Box<dyn Scheduler>,
    /// Whether all workers must have one model of GPU.
    pub one_gpu_model: bool,
    /// Whether the run is to stop.
    pub cancel: Arc<Cancel>,
    /// Gets what there is to say of the workers.
    pub notice: Box<dyn Fn(Notice) + Send + Sync>,
}

/// Workers on a cluster. Nothing is written or asked before the first of them is needed.
pub struct ClusterBackend {
    here: LocalBackend,
    pools: Vec<Pool>,
    /// Seconds of work that a worker is given at once.
    work: f64,
    /// How long a holder of a lease may be silent.
    lease: Duration,
    setup: Mutex<Option<Setup>>,
    started: OnceLock<Result<Started, String>>,
    /// What the first worker said of locks.
    locks: OnceLock<bool>,
}

/// A run that gives signs of life.
struct Started {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// What carries messages through a bucket, and its word to end.
    carrier: Mutex<Option<(JoinHandle<RunCarrier>, Arc<AtomicBool>)>>,
    /// Held by this run, for its workers to try.
    _lock: fs_err::File,
}

impl ClusterBackend {
    /// A run that has not begun; `here`: workers on this machine.
    pub fn new(setup: Setup, here: LocalBackend) -> Self {
        let (pools, work) = (setup.pools.values().cloned().collect(), setup.config.waits.work);
        let lease = Duration::from_secs_f64(setup.config.waits.lease);
        let (setup, started) = (Mutex::new(Some(setup)), OnceLock::new());
        Self { here, pools, work, lease, setup, started, locks: OnceLock::new() }
    }

    /// Makes the run's folder, or takes that of an earlier run over: from now on it gives signs of life.
    ///
    /// # Errors
    /// A folder that cannot be written to.
    pub fn start(&self) -> Result<(), String> {
        self.begin().map(|_| ())
    }

    fn begin(&self) -> Result<&Started, String> {
        let begun = self.started.get_or_init(|| {
            let setup = self.setup.lock().expect("no panic under this lock").take();
            setup.ok_or_else(|| "it is over".to_owned()).and_then(Started::new)
        });
        begun.as_ref().map_err(Clone::clone)
    }

    /// Ends all workers, and waits until the scheduler has none of them.
    ///
    /// # Errors
    /// Jobs that are still there, or that could not be ended.
    pub fn end(&self) -> Result<(), String> {
        match self.started.get() {
            Some(Ok(started)) => started.end(),
            Some(Err(_)) | None => Ok(()),
        }
    }

    fn pool_index(&self, pool: usize) -> Option<usize> {
        pool.checked_sub(HERE + 1)
    }
}

impl Started {
    fn new(setup: Setup) -> Result<Self, String> {
        let failed = |error: std::io::Error| error.to_string();
        let Setup { folder, config, carrier, epoch, pools, scheduler, one_gpu_model, cancel, notice } = setup;
        let mut carrier = match carrier {
            Some(carrier) => Some(carrier),
            None => RunCarrier::open(&folder, &config, epoch).map_err(|error| error.to_string())?,
        };
        folder.create(&config).map_err(failed)?;
        folder.forget_cancel();
        let lock = lock_test::hold(&folder.lock_test()).map_err(failed)?;
        let infos =
            pools.iter().map(|(name, pool)| PoolInfo { name: name.clone(), most: pool.workers as usize });
        let infos = infos.collect();
        let state = Mutex::new(State::default());
        let wake = Condvar::new();
        let shared = Shared {
            folder,
            config,
            bucket: carrier.as_ref().map(|carrier| Arc::clone(carrier.bucket())),
            brought: AtomicU64::new(0),
            epoch,
            pools: infos,
            scheduler,
            cancel,
            notice,
            one_gpu_model,
            state,
            wake,
        };
        let shared = Arc::new(shared);
        carrier.as_mut().map_or(Ok(()), RunCarrier::begin).map_err(|error| error.to_string())?;
        beat(&shared, 0, LeaseState::Running).map_err(failed)?;
        let threads: [fn(&Shared); 3] = [keep_lease, find_workers, ask_scheduler];
        let threads = threads.into_iter().map(|body| {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || body(&shared))
        });
        let threads = Mutex::new(threads.collect());
        let carrier = carrier.map(|mut carrier| {
            let (shared, over) = (Arc::clone(&shared), Arc::new(AtomicBool::new(false)));
            let is_over = Arc::clone(&over);
            let thread = std::thread::spawn(move || {
                let brought = || _ = shared.brought.fetch_add(1, Ordering::Relaxed);
                let failed = |error| shared.warn(format!("{error}; it is tried again"));
                carrier.carry(shared.config.waits.poll, || is_over.load(Ordering::Relaxed), brought, failed);
                carrier
            });
            (thread, over)
        });
        Ok(Self { carrier: Mutex::new(carrier), shared, threads, _lock: lock })
    }

    fn end(&self) -> Result<(), String> {
        let shared = &self.shared;
        shared.state().over = true;
        shared.wake.notify_all();
        for thread in self.threads.lock().expect("no panic under this lock").drain(..) {
            let _ = thread.join();
        }
        // No sign of life comes after this one.
        let lease = beat(shared, u64::MAX, LeaseState::Ended).map_err(|error| error.to_string());
        let carrier = self.carrier.lock().expect("no panic under this lock").take();
        let carrier = carrier.and_then(|(thread, over)| {
            over.store(true, Ordering::Relaxed);
            thread.join().ok()
        });
        let mut state = shared.state();
        let submitted = !state.submitted.is_empty();
        state.ready.clear();
        drop(state);
        let jobs = if submitted { self.end_jobs() } else { Ok(()) };
        let messages = carrier.map_or(Ok(()), |mut carrier| {
            carrier.end().map_err(|error| format!("messages of this run may be left in the bucket: {error}"))
        });
        // What a worker said of itself stays, beside events and logs.
        let workers = fs_err::read_dir(shared.folder.workers()).into_iter().flatten().flatten();
        workers.for_each(|worker| AttemptFolder::at(worker.path()).clear());
        lease.and(jobs).and(messages)
    }

    /// Workers end by themselves when the run is over; those that wait in the queue must be told.
    fn end_jobs(&self) -> Result<(), String> {
        const LONGEST: Duration = Duration::from_secs(45);
        let scheduler = &self.shared.scheduler;
        let run = self.shared.folder.name();
        let begun = Instant::now();
        let mut pause = Duration::from_millis(200);
        let kill = self.shared.cancel.mode() == Some(CancelMode::Kill);
        let mut told = false;
        loop {
            let trouble = match scheduler.cancel(!kill && begun.elapsed() < Duration::from_secs(5)) {
                Ok(()) => None,
                Err(error) => Some(error.to_string()),
            };
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_secs(4));
            let left: Vec<JobLine> = match scheduler.queue() {
                // One that completes ends without more ado, on a node that is gone perhaps late; but it may still write into a
                // bucket.
                Ok(lines) => {
                    let completes = |line: &JobLine| {
                        line.state == "COMPLETING"
                            && (self.shared.bucket.is_none() || begun.elapsed() > LONGEST)
                    };
                    let stays = |line: &JobLine| !line.is_over() && !completes(line);
                    lines.into_iter().filter(stays).collect()
                }
                Err(error) => {
                    return Err(format!(
                        "the scheduler does not answer ({error}): `attrflow cancel {run}` ends jobs that are left"
                    ));
                }
            };
            if left.is_empty() {
                return Ok(());
            }
            if begun.elapsed() > LONGEST {
                let names: Vec<String> = left
                    .iter()
                    .map(|line| format!("{}_{} {}", line.id.0, line.id.1, line.describe()))
                    .collect();
                let trouble = trouble.map_or_else(String::new, |trouble| format!(" ({trouble})"));
                return Err(format!("jobs that did not end{trouble}: {}", names.join(", ")));
            }
            if !told && begun.elapsed() > Duration::from_secs(3) {
                told = true;
                self.shared.warn(format!("waiting for {} tasks to end", left.len()));
            }
        }
    }
}

impl Backend for ClusterBackend {
    fn slots(&self) -> usize {
        self.here.slots() + self.pools.iter().map(|pool| pool.workers as usize).sum::<usize>()
    }

    fn device_class(&self) -> DeviceClass {
        match self.pools.iter().any(|pool| pool.gpus > 0) {
            true => DeviceClass::Cuda,
            false => DeviceClass::Cpu,
        }
    }

    fn pool(&self, slot: usize) -> usize {
        let mut first = self.here.slots();
        for (index, pool) in self.pools.iter().enumerate() {
            if slot < first {
                return index;
            }
            first += pool.workers as usize;
        }
        if slot < first { self.pools.len() } else { HERE }
    }

    fn serves(&self, pool: usize, kind: &KindInfo) -> bool {
        match self.pool_index(pool) {
            Some(index) => self.pools[index].serves(kind),
            None => !kind.libtorch && !self.pools.iter().any(|pool| pool.serves(kind)),
        }
    }

    fn seconds_at_once(&self, pool: usize) -> f64 {
        if pool == HERE { 0.0 } else { self.work }
    }

    fn locks_hold(&self) -> Option<(bool, Duration)> {
        self.locks.get().map(|hold| (*hold, self.lease))
    }

    fn next(&self, request: &Request<'_>) -> Result<Option<Box<dyn Worker>>, TaskError> {
        let Some(pool) = self.pool_index(self.pool(request.slot)) else { return self.here.next(request) };
        let Started { shared, .. } = self.begin().map_err(TaskError::Refused)?;
        shared.state().asking.entry(pool).or_default().0 += 1;
        let found = loop {
            // Asked without the lock: it takes that of the queue.
            let waiting = (request.waiting)();
            if waiting == 0 || request.cancel.mode().is_some() {
                break Ok(None);
            }
            let mut state = shared.state();
            if let Some(why) = state.failed.get(&pool) {
                break Err(TaskError::Refused(why.clone()));
            }
            state.asking.entry(pool).or_default().1 = waiting;
            if let Some(ready) = state.ready.get_mut(&pool).and_then(std::collections::VecDeque::pop_front) {
                *state.busy.entry(pool).or_insert(0) += 1;
                break Ok(Some(ready));
            }
            shared.wake.notify_all();
            drop(shared.wake.wait_timeout(state, Duration::from_millis(200)));
        };
        if let Some((slots, _)) = shared.state().asking.get_mut(&pool) {
            *slots -= 1;
        }
        let Some(ready) = found? else { return Ok(None) };
        // A worker that came while no run lived found a lock that nobody held.
        if let Some(locks) = ready.hello.locks.filter(|_| ready.hello.epoch == shared.epoch) {
            // The first word counts.
            let _ = self.locks.set(locks);
        }
        match RemoteWorker::new(shared, pool, ready) {
            Ok(worker) => Ok(Some(Box::new(worker))),
            Err(error) => {
                if let Some(count) = shared.state().busy.get_mut(&pool) {
                    *count -= 1;
                }
                Err(TaskError::Start(error.to_string()))
            }
        }
    }
}
