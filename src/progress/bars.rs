//! The progress bars on the terminal, and output above them.

use std::sync::OnceLock;

use indicatif::MultiProgress;

/// The bars of this process; a terminal has one set of bars.
pub(super) static BARS: OnceLock<MultiProgress> = OnceLock::new();

/// Writes output that the bars do not overwrite.
pub(super) fn above_bars<T>(write: impl FnOnce() -> T) -> T {
    match BARS.get() {
        Some(bars) => bars.suspend(write),
        None => write(),
    }
}
