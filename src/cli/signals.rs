//! What a run does when it is told to end: Ctrl-C once, twice, or a termination.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator;

use super::failure::{Failure, exit_code};
use attrflow_engine::exec::event::Event;
use attrflow_engine::exec::{Cancel, CancelMode};

/// Takes events from any thread.
pub(super) type EventSink = Arc<dyn Fn(Event) + Send + Sync>;

/// How long the manifest of a run that stops now may take, before the program ends without it.
const GRACE: Duration = Duration::from_secs(3);

/// The signals of this process, as far as they end runs.
pub(super) struct Signals {
    first: Arc<AtomicI32>,
    handle: Option<iterator::Handle>,
}

impl Signals {
    /// Watches until the value is dropped.
    ///
    /// The first SIGINT lets the run finish what it is at. A second one, SIGTERM and SIGHUP end it now: of a terminal that
    /// is closed, or of a scheduler that kills what does not end soon.
    pub fn watch(stop: Arc<Cancel>, hear: EventSink) -> Self {
        let first = Arc::new(AtomicI32::new(0));
        // Without them a signal ends the program as it ends any other.
        let Ok(mut signals) = iterator::Signals::new([SIGINT, SIGTERM, SIGHUP]) else {
            return Self { first, handle: None };
        };
        let handle = Some(signals.handle());
        let noted = Arc::clone(&first);
        std::thread::spawn(move || {
            for signal in signals.forever() {
                let earlier = noted.compare_exchange(0, signal, Ordering::SeqCst, Ordering::SeqCst).is_err();
                let now = earlier || signal != SIGINT;
                if stop.mode() == Some(CancelMode::Kill) {
                    // Said three times: whatever the run is at, it can be left. The cache is whole at any moment.
                    std::process::exit(exit_code(&Failure::Interrupted(noted.load(Ordering::SeqCst))));
                }
                let working = stop.working();
                stop.request(if now { CancelMode::Kill } else { CancelMode::Drain });
                if now {
                    let noted = Arc::clone(&noted);
                    std::thread::spawn(move || {
                        std::thread::sleep(GRACE);
                        std::process::exit(exit_code(&Failure::Interrupted(noted.load(Ordering::SeqCst))));
                    });
                }
                hear(Event::Stopping { now, working });
            }
        });
        Self { first, handle }
    }

    /// The first signal that came.
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
