//! Events shown on a terminal, in a pipe, or as JSON lines.

mod bars;
pub mod drawing;
mod json_lines;
mod live;
mod log;
mod table;

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use attrflow_engine::exec::event::Event;

pub use log::LogLines;
pub use table::Table;

/// Shows events.
pub trait Reporter: Send {
    /// Takes one event.
    fn on_event(&mut self, event: &Event);
}

/// JSON lines on request, live progress on a terminal, only a summary in a pipe.
pub fn choose(json: bool) -> Box<dyn Reporter> {
    if json {
        Box::new(json_lines::JsonLines)
    } else if std::io::stderr().is_terminal() {
        Box::new(live::Live::default())
    } else {
        Box::new(live::Quiet::default())
    }
}

/// Live progress on a terminal, and failures; the caller prints the summary.
pub fn progress() -> Box<dyn Reporter> {
    match std::io::stderr().is_terminal() {
        true => Box::new(live::Live::without_summary()),
        false => Box::new(live::Quiet::without_summary()),
    }
}

/// Writes to standard output; a closed pipe (`| head`) is not an error.
pub fn print(text: &str) {
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}

/// Seconds for people: `0.4 s`, `3 min 20 s`, `2 h 05 min`.
pub fn duration(seconds: f64) -> String {
    // An empty sum is a negative zero.
    let seconds = seconds + 0.0;
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
    }
}

/// The path, relative to the current folder if it is below it.
pub fn short_path(path: &Path) -> String {
    // The current folder never changes, and a plan shows thousands of paths.
    static HERE: OnceLock<Option<PathBuf>> = OnceLock::new();
    let here = HERE.get_or_init(|| std::env::current_dir().ok());
    let below = here.as_deref().and_then(|here| path.strip_prefix(here).ok());
    below.unwrap_or(path).display().to_string()
}
