//! What is known of the workers of a run: which are wanted, ready, at work and lost.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::bucket::Bucket;
use super::error::SlurmError;
use super::folder::{AttemptFolder, RunFolder};
use super::jobs::{JobLine, TaskId};
use super::messages::{Hello, RunConfig};
use crate::worker::cancel::{Cancel, CancelMode};

/// Who starts the workers of a run.
pub trait Scheduler: Send + Sync {
    /// Asks for so many workers of a pool, on none of these nodes; returns the number of the job array.
    ///
    /// # Errors
    /// See [`SlurmError`].
    fn submit(&self, pool: &str, count: u32, exclude: &[String]) -> Result<String, SlurmError>;
    /// All tasks of the run that it remembers.
    ///
    /// # Errors
    /// See [`SlurmError`].
    fn queue(&self) -> Result<Vec<JobLine>, SlurmError>;
    /// Ends all tasks of the run, or those that wait.
    ///
    /// # Errors
    /// See [`SlurmError`].
    fn cancel(&self, only_pending: bool) -> Result<(), SlurmError>;
}

/// What a run on a cluster says of its workers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// How many workers of a pool run and wait, and why they wait.
    Pool {
        /// The pool.
        pool: String,
        /// Tasks that run.
        running: usize,
        /// Tasks that wait.
        pending: usize,
        /// The scheduler's reason, empty where there is none.
        reason: String,
    },
    /// A worker was lost, refused, or could not be had: a warning.
    Warning(String),
}

/// A pool of the run.
pub(super) struct PoolInfo {
    pub name: String,
    /// The most workers at once.
    pub most: usize,
}

/// A worker that said hello and has nothing to do.
pub(super) struct Ready {
    pub folder: AttemptFolder,
    pub hello: Hello,
    pub since: Instant,
}

/// A job array.
pub(super) struct Submitted {
    pub array: String,
    pub pool: usize,
    pub count: usize,
    pub at: Instant,
}

#[derive(Default)]
pub(super) struct State {
    /// By pool: slots that wait for a worker, and jobs that wait for one.
    pub asking: BTreeMap<usize, (usize, usize)>,
    pub ready: BTreeMap<usize, VecDeque<Ready>>,
    pub busy: BTreeMap<usize, usize>,
    /// The newest attempt of each task that said hello.
    pub newest: BTreeMap<TaskId, String>,
    /// Tasks that serve no more, whatever the scheduler says of them.
    pub spent: BTreeSet<TaskId>,
    pub lines: BTreeMap<TaskId, JobLine>,
    /// Tasks that run and have not said hello, and since when.
    pub silent: BTreeMap<TaskId, Instant>,
    /// When the scheduler last answered.
    pub looked: Option<Instant>,
    pub submitted: Vec<Submitted>,
    /// Nodes that are avoided, by pool.
    pub excluded: BTreeSet<(usize, String)>,
    /// By node, when workers were lost soon after their hello.
    pub deaths: BTreeMap<String, Vec<Instant>>,
    /// By pool, tasks that ended without a hello, since the last that said one.
    pub silent_ends: BTreeMap<usize, usize>,
    /// By pool, when it may be asked for again.
    pub not_before: BTreeMap<usize, Instant>,
    /// Pools that cannot be had, and why.
    pub failed: BTreeMap<usize, String>,
    /// The GPU model of the first worker that has one.
    pub gpu_model: Option<String>,
    pub over: bool,
}

impl State {
    /// Whether a task may serve, now or later.
    fn may_serve(&self, id: &TaskId, submitted: Instant) -> bool {
        if self.spent.contains(id) {
            return false;
        }
        match self.lines.get(id) {
            Some(line) => !line.is_over(),
            // One that was submitted a moment ago is not shown yet; one that was forgotten is over.
            None => self.looked.is_none_or(|looked| looked < submitted + Duration::from_secs(2)),
        }
    }

    /// The tasks of a pool that may serve.
    pub fn serving(&self, pool: usize) -> usize {
        let of_pool = self.submitted.iter().filter(|submitted| submitted.pool == pool);
        of_pool
            .map(|Submitted { array, count, at, .. }| {
                (0..*count).filter(|task| self.may_serve(&(array.clone(), task.to_string()), *at)).count()
            })
            .sum()
    }

    /// The nodes that a pool avoids.
    pub fn excluded_of(&self, pool: usize) -> Vec<String> {
        self.excluded.iter().filter(|(of, _)| *of == pool).map(|(_, node)| node.clone()).collect()
    }

    /// The pool of a task: by its comment, which a site may change, else by what was submitted.
    pub fn pool_of(&self, line: &JobLine, shared: &Shared) -> Option<usize> {
        let submitted = || self.submitted.iter().find(|submitted| submitted.array == line.id.0);
        line.pool().and_then(|name| shared.pool_of(name)).or_else(|| Some(submitted()?.pool))
    }

    /// How many workers of a pool are wanted at once: one for each job that waits, once a slot asks for any.
    pub fn wanted(&self, pool: usize) -> usize {
        let (slots, waiting) = self.asking.get(&pool).copied().unwrap_or_default();
        self.busy.get(&pool).copied().unwrap_or(0) + if slots > 0 { waiting } else { 0 }
    }
}

/// What the backend, its threads and its workers share.
pub(super) struct Shared {
    pub folder: RunFolder,
    pub config: RunConfig,
    /// Where the nodes share no file system with this host.
    pub bucket: Option<Arc<Bucket>>,
    /// How often all of the bucket's news has been brought.
    pub brought: AtomicU64,
    pub epoch: u64,
    pub pools: Vec<PoolInfo>,
    pub scheduler: Box<dyn Scheduler>,
    pub cancel: Arc<Cancel>,
    pub notice: Box<dyn Fn(Notice) + Send + Sync>,
    /// Whether all workers must have one model of GPU.
    pub one_gpu_model: bool,
    pub state: Mutex<State>,
    pub wake: Condvar,
}

/// So many losses soon after a hello exclude a node, and so many such nodes fail a pool.
const MOST_DEATHS: usize = 3;
/// A loss so soon after the hello is laid to the node.
const SOON: Duration = Duration::from_secs(60);

impl Shared {
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic under this lock")
    }

    /// Waits until what a worker wrote before this call can be seen here, as far as that is known.
    pub fn wait_for_news(&self) {
        std::thread::sleep(Duration::from_secs_f64(self.config.waits.poll));
        let (begun, before) = (Instant::now(), self.brought.load(Ordering::Relaxed));
        // The look that goes on now may have begun before.
        while self.bucket.is_some()
            && self.brought.load(Ordering::Relaxed) < before + 2
            && begun.elapsed().as_secs_f64() < self.config.waits.visible
            && self.cancel.mode() != Some(CancelMode::Kill)
        {
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn warn(&self, message: String) {
        (self.notice)(Notice::Warning(message));
    }

    /// The pool of a worker.
    pub fn pool_of(&self, name: &str) -> Option<usize> {
        self.pools.iter().position(|pool| pool.name == name)
    }

    /// Takes note of a hello: the worker is ready, or refused by name.
    pub fn welcome(&self, folder: AttemptFolder, hello: Hello) {
        let Some(pool) = self.pool_of(&hello.pool) else { return };
        let id = (hello.array.clone(), hello.task.clone());
        let mut refused = self.contradiction(&hello);
        let mut state = self.state();
        state.newest.insert(id.clone(), folder.name());
        state.spent.remove(&id);
        let gpu = hello.facts.as_ref().and_then(|facts| facts.gpu.clone());
        if let (None, true, Some(gpu)) = (&refused, self.one_gpu_model, gpu) {
            match &state.gpu_model {
                Some(first) if *first != gpu => {
                    refused = Some(format!(
                        "it has a GPU of model {gpu}, and others of this run {first}: with `noise = \"per_batch\"` the numbers that CUDA draws depend on the model"
                    ));
                }
                _ => state.gpu_model = Some(gpu),
            }
        }
        let node = name_of(&hello);
        let Some(refused) = refused else {
            state.silent_ends.remove(&pool);
            let since = Instant::now();
            state.ready.entry(pool).or_default().push_back(Ready { folder, hello, since });
            drop(state);
            self.wake.notify_all();
            return;
        };
        state.spent.insert(id);
        let first = state.excluded.insert((pool, hello.node.clone()));
        let all = state.excluded_of(pool).len();
        if all >= MOST_DEATHS && state.busy.get(&pool).copied().unwrap_or(0) == 0 {
            state
                .failed
                .insert(pool, format!("no worker of pool `{}` can serve: on {node}, {refused}", hello.pool));
        }
        drop(state);
        self.wake.notify_all();
        // It is told once, so that it does not wait for work.
        let _ = super::folder::Appender::open(&folder.inbox(self.epoch))
            .and_then(|mut inbox| inbox.append(&super::messages::Order::End));
        if first {
            self.warn(format!("the worker on {node} is refused, and the node is avoided: {refused}"));
        }
    }

    /// Why a worker must not serve this run.
    fn contradiction(&self, hello: &Hello) -> Option<String> {
        let Some(facts) = &hello.facts else {
            return Some(hello.error.clone().unwrap_or_else(|| "it could not start".into()));
        };
        if facts.build != self.config.build {
            return Some(format!("it is attrflow {}, this is {}", facts.build, self.config.build));
        }
        let numerics = &self.config.numerics;
        let torch = self.config.pools.get(&hello.pool).is_some_and(|pool| pool.libtorch);
        let contradiction =
            torch.then(|| facts.contradiction(&numerics.libtorch, &numerics.device)).flatten();
        contradiction.or_else(|| facts.trouble.clone())
    }

    /// Takes note of a worker that is lost, and of what is to be laid to its node.
    pub fn note_lost(&self, pool: usize, hello: &Hello, since: Instant) {
        let mut state = self.state();
        state.spent.insert((hello.array.clone(), hello.task.clone()));
        if since.elapsed() > SOON || hello.node.is_empty() {
            return;
        }
        let node = hello.node.clone();
        let deaths = state.deaths.entry(node.clone()).or_default();
        deaths.push(Instant::now());
        deaths.retain(|death| death.elapsed() < SOON);
        if deaths.len() < MOST_DEATHS {
            return;
        }
        state.excluded.insert((pool, node.clone()));
        let bad = state.excluded_of(pool).len();
        if bad >= MOST_DEATHS {
            let message = format!("workers of pool `{}` die at once, on {bad} nodes", self.pools[pool].name);
            state.failed.insert(pool, message);
        }
        drop(state);
        self.warn(format!("node {node} is avoided: {MOST_DEATHS} workers died there within a minute"));
    }
}

/// The node of a worker, for people.
pub(super) fn name_of(hello: &Hello) -> String {
    let host = hello.facts.as_ref().map_or("", |facts| facts.host.as_str());
    if hello.node.is_empty() { format!("`{host}`") } else { format!("`{}`", hello.node) }
}
