//! Signals that stop a run: SIGINT once or twice, SIGTERM, SIGHUP.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use signal_hook::consts::SIGINT;
use signal_hook::iterator;

use super::failure::{Failure, exit_code};
use attrflow_engine::exec::event::Event;
use attrflow_engine::exec::{Cancel, CancelMode};
use attrflow_engine::worker::signals::stopping;

/// Receives events from any thread.
pub(super) type EventSink = Arc<dyn Fn(Event) + Send + Sync>;

/// The time for writing the manifest of a killed run; after it the program exits without one.
const GRACE: Duration = Duration::from_secs(3);
/// The same where the jobs of a cluster have to be ended too.
const CLUSTER_GRACE: Duration = Duration::from_secs(60);

/// Watches the signals that stop a run.
pub(super) struct Signals {
    first: Arc<AtomicI32>,
    handle: Option<iterator::Handle>,
}

impl Signals {
    /// Watches until the value is dropped.
    ///
    /// After the first SIGINT, running units finish. A second SIGINT, SIGTERM (from schedulers, which soon kill) and SIGHUP (from
    /// closed terminals) stop the run at once.
    pub fn watch(stop: Arc<Cancel>, sink: EventSink, on_cluster: bool) -> Self {
        let grace = if on_cluster { CLUSTER_GRACE } else { GRACE };
        let first = Arc::new(AtomicI32::new(0));
        // Without a handler, a signal ends the program as usual.
        let Ok(mut signals) = iterator::Signals::new(stopping()) else {
            return Self { first, handle: None };
        };
        let handle = Some(signals.handle());
        let noted = Arc::clone(&first);
        std::thread::spawn(move || {
            for signal in signals.forever() {
                let earlier = noted.compare_exchange(0, signal, Ordering::SeqCst, Ordering::SeqCst).is_err();
                let now = earlier || signal != SIGINT;
                if stop.mode() == Some(CancelMode::Kill) {
                    // The third signal: exit immediately. The cache is consistent at any moment.
                    std::process::exit(exit_code(&Failure::Interrupted(noted.load(Ordering::SeqCst))));
                }
                let working = stop.working();
                stop.request(if now { CancelMode::Kill } else { CancelMode::Drain });
                if now {
                    let noted = Arc::clone(&noted);
                    std::thread::spawn(move || {
                        std::thread::sleep(grace);
                        std::process::exit(exit_code(&Failure::Interrupted(noted.load(Ordering::SeqCst))));
                    });
                }
                sink(Event::Stopping { now, working });
            }
        });
        Self { first, handle }
    }

    /// The first signal received.
    pub fn received(&self) -> Option<i32> {
        Some(self.first.load(Ordering::SeqCst)).filter(|signal| *signal != 0)
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        if let Some(handle) = &self.handle {
            handle.close();
        }
    }
}
