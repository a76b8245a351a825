//! Stopping a run: once the units that run are done, or at once.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use rustix::process::{Pid, Signal, kill_process_group};

/// How soon a run is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CancelMode {
    /// Nothing new begins; the units that run are finished and kept.
    Drain,
    /// The workers are killed, with the units that they compute.
    Kill,
}

/// Asks the run to look at the mode; whether it is still there.
type Wake = Box<dyn Fn() -> bool + Send>;

/// Lets a run be stopped from another thread; a request cannot be withdrawn.
#[derive(Default)]
pub struct Cancel(Mutex<State>);

#[derive(Default)]
struct State {
    mode: Option<CancelMode>,
    /// Who has to know of it.
    wake: Vec<Wake>,
    /// Tasks at work, and the process group of each that has one.
    working: BTreeMap<u64, Option<u32>>,
    count: u64,
}

impl Cancel {
    /// Asks a run to end; a second request can only make it end sooner.
    pub fn request(&self, mode: CancelMode) {
        let mut state = self.state();
        state.mode = state.mode.max(Some(mode));
        if mode == CancelMode::Kill {
            state.working.values().flatten().copied().for_each(kill);
        }
        // A run that is over needs no notice.
        state.wake.retain(|wake| wake());
    }

    /// What was requested.
    pub fn mode(&self) -> Option<CancelMode> {
        self.state().mode
    }

    /// How many tasks are at work.
    pub fn working(&self) -> usize {
        self.state().working.len()
    }

    /// Notifies the run of a request, including one made earlier.
    pub(crate) fn listen(&self, wake: Wake) {
        let mut state = self.state();
        if state.mode.is_none() || wake() {
            state.wake.push(wake);
        }
    }

    /// Notes that a task begins in this process group, until the value is dropped.
    pub fn enter(&self, group: Option<u32>) -> Working<'_> {
        let mut state = self.state();
        state.count += 1;
        let key = state.count;
        state.working.insert(key, group);
        if state.mode == Some(CancelMode::Kill) {
            group.into_iter().for_each(kill);
        }
        Working(self, key)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no panic under this lock")
    }
}

/// A task at work.
pub struct Working<'a>(&'a Cancel, u64);

impl Drop for Working<'_> {
    fn drop(&mut self) {
        self.0.state().working.remove(&self.1);
    }
}

/// Ends a worker and what it started; one that ended by itself is left alone.
fn kill(group: u32) {
    if let Some(group) = i32::try_from(group).ok().and_then(Pid::from_raw) {
        let _ = kill_process_group(group, Signal::KILL);
    }
}
