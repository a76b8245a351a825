//! Showing what happens: on a terminal, in a pipe, as JSON lines.

mod bars;
pub mod drawing;
mod lines;
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

/// JSON lines if asked for, live progress on a terminal, a summary alone in a pipe.
pub fn choose(json: bool) -> Box<dyn Reporter> {
    if json {
        Box::new(lines::JsonLines)
    } else if std::io::stderr().is_terminal() {
        Box::new(live::Live::default())
    } else {
        Box::new(live::Quiet::default())
    }
}

/// Live progress on a terminal, and what goes wrong; whoever asked for the run tells how it ended.
pub fn progress() -> Box<dyn Reporter> {
    match std::io::stderr().is_terminal() {
        true => Box::new(live::Live::without_summary()),
        false => Box::new(live::Quiet::without_summary()),
    }
}

/// Writes to standard output; a reader that went away (`| head`) is no fault.
pub fn print(text: &str) {
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}

/// Bytes in the unit that reads best: `1.2 MB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// Seconds in the form that reads best: `0.4 s`, `3 min 20 s`, `2 h 05 min`.
pub fn duration(seconds: f64) -> String {
    // The sum of nothing is a negative zero.
    let seconds = seconds + 0.0;
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
    }
}

/// The path as seen from the current folder, where it lies below.
pub fn short_path(path: &Path) -> String {
    // The program never changes its folder, and asks for thousands of paths.
    static HERE: OnceLock<Option<PathBuf>> = OnceLock::new();
    let here = HERE.get_or_init(|| std::env::current_dir().ok());
    let below = here.as_deref().and_then(|here| path.strip_prefix(here).ok());
    below.unwrap_or(path).display().to_string()
}
