//! Stopping a run: once the units that run are done, or at once.

use std::collections::BTreeMap;
use std::sync::mpsc::Sender;
use std::sync::{Mutex, MutexGuard};

use rustix::process::{Pid, Signal, kill_process_group};

use super::messages::Message;

/// How soon a run is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CancelMode {
    /// Nothing new begins; the units that run are finished and kept.
    Drain,
    /// The workers are killed, and with them what they are at.
    Kill,
}

/// Lets a run be stopped from another thread; what is asked for stays asked for.
#[derive(Default)]
pub struct Cancel(Mutex<State>);

#[derive(Default)]
struct State {
    asked: Option<CancelMode>,
    /// Who has to hear of it.
    wake: Vec<Sender<Message>>,
    /// Tasks at work, and the process group of each that has one.
    working: BTreeMap<u64, Option<u32>>,
    count: u64,
}

impl Cancel {
    /// Asks a run to end; asking again can only make it end sooner.
    pub fn request(&self, haste: CancelMode) {
        let mut state = self.state();
        state.asked = state.asked.max(Some(haste));
        if haste == CancelMode::Kill {
            state.working.values().flatten().copied().for_each(kill);
        }
        // A run that is over hears nothing more.
        state.wake.retain(|wake| wake.send(Message::Stop).is_ok());
    }

    /// What was asked for.
    pub fn mode(&self) -> Option<CancelMode> {
        self.state().asked
    }

    /// How many tasks are at work.
    pub fn working(&self) -> usize {
        self.state().working.len()
    }

    /// Tells a run as soon as it is asked to end, be it that it was before.
    pub(super) fn listen(&self, wake: Sender<Message>) {
        let mut state = self.state();
        if state.asked.is_none() || wake.send(Message::Stop).is_ok() {
            state.wake.push(wake);
        }
    }

    /// Notes that a task begins in this process group, until the value is dropped.
    pub(super) fn enter(&self, group: Option<u32>) -> Working<'_> {
        let mut state = self.state();
        state.count += 1;
        let key = state.count;
        state.working.insert(key, group);
        if state.asked == Some(CancelMode::Kill) {
            group.into_iter().for_each(kill);
        }
        Working(self, key)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no panic under this lock")
    }
}

/// A task at work.
pub(super) struct Working<'a>(&'a Cancel, u64);

impl Drop for Working<'_> {
    fn drop(&mut self) {
        self.0.state().working.remove(&self.1);
    }
}

/// Ends a worker and what it started; one that ended by itself needs no end.
fn kill(group: u32) {
    if let Some(group) = i32::try_from(group).ok().and_then(Pid::from_raw) {
        let _ = kill_process_group(group, Signal::KILL);
    }
}
