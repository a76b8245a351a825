//! Jobs that are queued, and which of them are taken together.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use serde_json::Value as Json;

use crate::identity::recipe::Recipe;
use crate::kind::{Inputs, KindInfo, Port, Step};
use crate::plan::ResolvedInputs;
use crate::store::Artifact;

/// What all jobs of a stage have in common.
pub(super) struct StageContext {
    /// Index of the stage.
    pub stage: usize,
    pub kind: &'static KindInfo,
    /// The stage's output ports.
    pub outputs: Vec<Port>,
    pub params: Json,
    pub inputs: Inputs,
    /// Digests and paths of its inputs.
    pub resolved: ResolvedInputs,
    /// What it reads outside the store, by port.
    pub sources: BTreeMap<String, PathBuf>,
    /// What it reads in the store, by port.
    pub upstream: BTreeMap<String, Artifact>,
    /// Compute whatever the cache holds.
    pub forced: bool,
    /// Whether its units are a chain.
    pub chain: bool,
}

/// A task with what is needed to keep its result.
pub(super) struct Job {
    pub common: Arc<StageContext>,
    /// Index of the unit, `None` for the whole or the merge.
    pub unit: Option<usize>,
    pub step: Step,
    pub recipe: Recipe,
    /// The folder of the unit before, in a chain.
    pub previous: Option<Artifact>,
    /// Jobs of equal keys are worth computing together.
    pub batch_key: Option<String>,
    /// Seconds that the units cost which a merge joins, in this run or an earlier one.
    pub spent: f64,
    /// Workers that were lost while they computed it.
    pub lost: usize,
}

impl Job {
    /// Whether the two are worth computing together.
    pub fn is_together_with(&self, other: &Self) -> bool {
        self.batch_key.is_some()
            && self.batch_key == other.batch_key
            && self.common.kind.name == other.common.kind.name
    }
}

/// How many jobs are looked at for one that nobody else computes.
const MOST_TRIED: usize = 64;
/// Most jobs of one batch: all that are not finished are lost when it is cut off.
const MAX_BATCH: usize = 64;

/// Which workers a slot has: those of a pool, with libtorch or without.
pub(super) type Class = (usize, bool);

/// The queued jobs, in order.
pub(super) struct Queue<'a> {
    state: Mutex<State>,
    wake: Condvar,
    /// Whether workers of a pool compute a kind.
    serves: &'a (dyn Fn(usize, &KindInfo) -> bool + Sync),
    /// How many take from it, by pool.
    slots: BTreeMap<usize, usize>,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Box<Job>>,
    closed: bool,
    /// Slots that are about to take a job, or wait for a worker to take it with.
    claims: BTreeMap<Class, usize>,
    /// Slots that wait with a worker.
    idle: BTreeMap<Class, usize>,
    /// Results of units of chains that the coordinator has not yet seen.
    reported: usize,
}

impl State {
    /// Jobs that nobody is about to take: whether there are more than so many.
    fn has_more(&self, than: usize, fits: impl Fn(&Job) -> bool) -> bool {
        self.jobs.iter().filter(|job| fits(job)).nth(than).is_some()
    }
}

/// A slot's right to start a worker for a job, or to take one; given back when dropped.
pub(super) struct Claim<'a> {
    queue: &'a Queue<'a>,
    pub class: Class,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if let Some(count) = self.queue.state().claims.get_mut(&self.class) {
            *count -= 1;
        }
        self.queue.wake.notify_all();
    }
}

/// How much a worker is given at once.
pub(super) struct Share<'a> {
    /// Seconds of work.
    pub seconds: f64,
    /// The seconds that a job takes, where they are known.
    pub cost: &'a dyn Fn(&Job) -> Option<f64>,
}

impl<'a> Queue<'a> {
    /// A queue for slots of these pools.
    pub fn new(
        pools: impl IntoIterator<Item = usize>,
        serves: &'a (dyn Fn(usize, &KindInfo) -> bool + Sync),
    ) -> Self {
        let mut slots = BTreeMap::new();
        pools.into_iter().for_each(|pool| *slots.entry(pool).or_insert(0) += 1);
        Self { state: Mutex::default(), wake: Condvar::new(), serves, slots }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic under this lock")
    }

    fn fits(&self, (pool, libtorch): Class) -> impl Fn(&Job) -> bool {
        move |job| job.common.kind.libtorch == libtorch && (self.serves)(pool, job.common.kind)
    }

    /// Adds jobs, all at once: a slot that waits would else take the first one without its batch.
    pub fn extend(&self, jobs: Vec<Job>) {
        self.state().jobs.extend(jobs.into_iter().map(Box::new));
        self.wake.notify_all();
    }

    /// Puts a job before all others: a merge frees what waits for its stage, and a chain that has begun is to end.
    pub fn push_first(&self, job: Job) {
        self.state().jobs.push_front(Box::new(job));
        self.wake.notify_all();
    }

    /// Holds back all jobs until the unit after this one is queued, if it is of a chain: that one goes first.
    pub fn reported(&self, job: &Job) {
        self.state().reported += usize::from(job.common.chain && job.unit.is_some());
    }

    /// The coordinator has queued what follows from a result.
    pub fn followed(&self) {
        self.state().reported -= 1;
        self.wake.notify_all();
    }

    /// Drops the jobs of a stage that failed, and returns how many there were.
    pub fn cancel(&self, stage: usize) -> usize {
        let mut state = self.state();
        let before = state.jobs.len();
        state.jobs.retain(|job| job.common.stage != stage);
        before - state.jobs.len()
    }

    /// Drops all jobs, and returns how many there were.
    pub fn clear(&self) -> usize {
        std::mem::take(&mut self.state().jobs).len()
    }

    /// Lets the slots end after the jobs that they run; others are still queued only where the run cannot continue.
    pub fn close(&self) {
        let mut state = self.state();
        state.jobs.clear();
        state.closed = true;
        drop(state);
        self.wake.notify_all();
    }

    /// How many jobs wait for workers of a class.
    pub fn waiting(&self, class: Class) -> usize {
        let fits = self.fits(class);
        self.state().jobs.iter().filter(|job| fits(job)).count()
    }

    /// Waits until there is a job for a slot of this pool; `None` once the queue is closed.
    ///
    /// A slot without the worker for it gets the claim only if no other slot has one to spare.
    pub fn claim(&self, pool: usize, has_worker: impl Fn(bool) -> bool) -> Option<Claim<'_>> {
        let mut state = self.state();
        loop {
            if state.closed {
                return None;
            }
            let mut jobs = state.jobs.iter().filter(|_| state.reported == 0);
            let first = jobs.find(|job| (self.serves)(pool, job.common.kind));
            if let Some(class) = first.map(|job| (pool, job.common.kind.libtorch)) {
                let count = |counts: &BTreeMap<Class, usize>| counts.get(&class).copied().unwrap_or(0);
                let others = match has_worker(class.1) {
                    true => 0,
                    false => count(&state.claims) + count(&state.idle),
                };
                if state.has_more(others, self.fits(class)) {
                    *state.claims.entry(class).or_insert(0) += 1;
                    return Some(Claim { queue: self, class });
                }
            }
            let owned = [false, true].into_iter().filter(|libtorch| has_worker(*libtorch));
            let owned: Vec<Class> = owned.map(|libtorch| (pool, libtorch)).collect();
            owned.iter().for_each(|class| *state.idle.entry(*class).or_insert(0) += 1);
            state = self.wake.wait(state).expect("no panic under this lock");
            for class in &owned {
                if let Some(count) = state.idle.get_mut(class) {
                    *count -= 1;
                }
            }
        }
    }

    /// Takes the next job, and the other jobs of its batch with it; `None` where another slot was faster.
    ///
    /// They are taken at once, so that two slots do not divide a batch. If `hold` refuses the first, it comes alone. With a
    /// `share`, batches are taken until they make up so many seconds.
    pub fn take<T>(
        &self,
        claim: Claim<'_>,
        share: Option<&Share<'_>>,
        mut hold: impl FnMut(&Job) -> Option<T>,
    ) -> Option<Vec<(Box<Job>, Option<T>)>> {
        let fits = self.fits(claim.class);
        let mut state = self.state();
        let fitting = || state.jobs.iter().enumerate().filter(|(_, job)| fits(job)).map(|(place, _)| place);
        // What others compute is waited for only where there is nothing else to do.
        let free =
            fitting().take(MOST_TRIED).find_map(|place| Some((place, Some(hold(&state.jobs[place])?))));
        let first = free.or_else(|| fitting().next().map(|place| (place, None)));
        let first = first.and_then(|(place, held)| Some((state.jobs.remove(place)?, held)));
        let taken = first.map(|(job, held)| {
            let waiting = &mut state.jobs;
            // At most a slot's share of the queue, so that the other slots have work.
            let slots = self.slots.get(&claim.class.0).copied().unwrap_or(1).max(1);
            let alone = held.is_none() || (share.is_none() && job.batch_key.is_none());
            let most = if alone { 1 } else { 1 + waiting.iter().filter(|job| fits(job)).count() };
            let most = most.div_ceil(slots);
            let mut taken = vec![(job, held)];
            match share {
                None => batch(&mut taken, waiting, most.min(MAX_BATCH), hold),
                Some(share) => fill(&mut taken, waiting, most, share, &fits, hold),
            }
            taken
        });
        // Dropping the claim takes the lock.
        drop(state);
        taken
    }
}

/// Takes the jobs of the first job's batch that `hold` accepts. The others stay queued: a unit that another run computes is
/// waited for in its turn, with no other lock held.
fn batch<T>(
    taken: &mut Vec<(Box<Job>, Option<T>)>,
    waiting: &mut VecDeque<Box<Job>>,
    most: usize,
    mut hold: impl FnMut(&Job) -> Option<T>,
) {
    let mut place = 0;
    while taken.len() < most && place < waiting.len() {
        match waiting[place].is_together_with(&taken[0].0).then(|| hold(&waiting[place])).flatten() {
            None => place += 1,
            held => taken.extend(waiting.remove(place).map(|other| (other, held))),
        }
    }
}

/// Takes jobs in order, those of one batch one after the other, until they make up the seconds of the share.
fn fill<T>(
    taken: &mut Vec<(Box<Job>, Option<T>)>,
    waiting: &mut VecDeque<Box<Job>>,
    most: usize,
    share: &Share<'_>,
    fits: &dyn Fn(&Job) -> bool,
    mut hold: impl FnMut(&Job) -> Option<T>,
) {
    // Where nothing is known of a job, it is measured alone.
    let Some(mut seconds) = (share.cost)(&taken[0].0) else { return };
    let mut place = 0;
    let mut last = 0;
    // First the rest of the batch; then the next job that is there, and the rest of its batch.
    let mut same_batch = true;
    while taken.len() < most {
        if place == waiting.len() {
            if !same_batch {
                return;
            }
            (same_batch, place) = (false, 0);
            continue;
        }
        let job = &waiting[place];
        let wanted = if same_batch { job.is_together_with(&taken[last].0) } else { fits(job) };
        let cost = wanted.then(|| (share.cost)(job)).flatten();
        let Some(cost) = cost.filter(|cost| seconds + cost <= share.seconds) else {
            // Of those that fit nothing but their turn, none is passed over.
            if wanted && !same_batch {
                return;
            }
            place += 1;
            continue;
        };
        match hold(job) {
            None => place += 1,
            held => {
                seconds += cost;
                taken.extend(waiting.remove(place).map(|other| (other, held)));
                if !same_batch {
                    (last, same_batch, place) = (taken.len() - 1, true, 0);
                }
            }
        }
    }
}
