//! The progress bars on the terminal, and writing above them.

use std::sync::OnceLock;

use indicatif::MultiProgress;

/// The bars of this process: one terminal has one set of them.
pub(super) static BARS: OnceLock<MultiProgress> = OnceLock::new();

/// Writes where the bars do not overwrite it.
pub(super) fn above_bars<T>(write: impl FnOnce() -> T) -> T {
    match BARS.get() {
        Some(bars) => bars.suspend(write),
        None => write(),
    }
}
