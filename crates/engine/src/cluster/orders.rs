//! What a worker on a node is to do: what the run wants of it, and how long the scheduler lets it live.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::messages::{Assignment, Input};
use crate::worker::measure::MeasureRequest;

/// What the run wants, as far as it was read.
#[derive(Default)]
pub(super) struct State {
    pub assignments: VecDeque<Assignment>,
    pub measurements: VecDeque<(u64, MeasureRequest, BTreeMap<PathBuf, Input>)>,
    /// What was given is done: more may come soon.
    pub waits: bool,
    /// The newest assignment that was read.
    pub newest: u64,
    /// Assignments up to this number are not continued.
    pub stopped: u64,
    /// Nothing is wanted any more, and why.
    pub end: Option<String>,
    /// Until when the scheduler lets this worker live, once it has said so.
    pub deadline: Option<Instant>,
    /// Whether the scheduler ends it at once.
    pub killed: bool,
    pub over: bool,
}

#[derive(Default)]
pub(super) struct Orders {
    state: Mutex<State>,
    wake: Condvar,
}

impl Orders {
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic under this lock")
    }

    /// Changes what is wanted, and lets everybody know.
    pub fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.wake.notify_all();
    }

    /// Waits for something to happen, and no longer than this.
    pub fn wait<'a>(&self, state: MutexGuard<'a, State>, longest: Duration) -> MutexGuard<'a, State> {
        self.wake.wait_timeout(state, longest).expect("no panic under this lock").0
    }

    /// Waits while this holds, and no longer than this.
    pub fn wait_while<'a>(
        &self,
        state: MutexGuard<'a, State>,
        longest: Duration,
        holds: impl FnMut(&mut State) -> bool,
    ) -> MutexGuard<'a, State> {
        self.wake.wait_timeout_while(state, longest, holds).expect("no panic under this lock").0
    }

    /// Whether the scheduler cut off a task that just failed, or whose process `died`. A scheduler signals all processes of a
    /// job, in any order: its signal to this one may come after the failure that it is the reason of.
    pub fn is_cut_off(&self, died: bool) -> bool {
        const LATER: Duration = Duration::from_secs(1);
        let state = self.wait_while(self.state(), LATER, |state| !state.killed);
        state.killed || (died && state.deadline.is_some())
    }
}
