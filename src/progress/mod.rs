//! Events shown on a terminal, in a pipe, or as JSON lines.

mod bars;
pub mod drawing;
mod json_lines;
mod live;
mod log;
mod pictures;
mod table;

use std::borrow::Cow;
use std::io::{ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use attrflow_engine::exec::event::Event;

pub use json_lines::json_line;
pub use live::bar_style;
pub use log::LogLines;
pub use pictures::Graphics;
pub use table::{Table, error_line, line, paragraph};

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

/// The first error of standard output.
static OUTPUT: OnceLock<std::io::Error> = OnceLock::new();

/// A text without what would move a terminal's cursor, change its colours or title, or the order of letters: names of files,
/// stages and captions come from others.
pub fn safe(text: &str) -> Cow<'_, str> {
    escaped(text, false)
}

/// The same, with the colours that this program gave a text; foreign parts must have been made safe before.
pub fn safe_colored(text: &str) -> Cow<'_, str> {
    escaped(text, true)
}

fn escaped(text: &str, colors: bool) -> Cow<'_, str> {
    let reorders =
        |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let plain = |c: char| !(c.is_control() || reorders(c)) || c == '\n' || c == '\t';
    if text.chars().all(plain) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(|c| !plain(c)) {
        let (before, after) = rest.split_at(at);
        out.push_str(before);
        let color = after.strip_prefix("\u{1b}[").filter(|_| colors).and_then(|code| {
            let end = code.find(|c: char| !c.is_ascii_digit() && c != ';')?;
            code[end..].starts_with('m').then_some(end + 3)
        });
        let length = color.unwrap_or_else(|| after.chars().next().map_or(0, char::len_utf8));
        match color {
            Some(_) => out.push_str(&after[..length]),
            None => out.extend(after[..length].escape_unicode()),
        }
        rest = &after[length..];
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// Notes that there is no standard output: what is written to it is an error.
pub fn output_is_closed() {
    let _ = OUTPUT.set(std::io::Error::from_raw_os_error(rustix::io::Errno::BADF.raw_os_error()));
}

/// Writes to standard output. Once that has failed, nothing more is written; see [`output_error`].
pub fn print(text: &str) {
    write_out(&safe(text));
}

/// The same for a text with colours; see [`safe_colored`].
pub fn print_colored(text: &str) {
    write_out(&safe_colored(text));
}

/// The same for a row of pictures, whose commands the terminal is to obey; it has no foreign text.
pub fn print_pictures(graphics: Graphics, pictures: &[Option<image::RgbImage>]) {
    write_out(&graphics.row(pictures));
}

fn write_out(text: &str) {
    if OUTPUT.get().is_some() {
        return;
    }
    let mut out = std::io::stdout().lock();
    if let Err(error) = out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        let _ = OUTPUT.set(error);
    }
}

/// Writes a line to standard error. A stream that is closed or full hides the message, and ends no run.
pub fn print_error(text: &str) {
    // Standard error has no buffer: what is written at once is one call, and no other process writes into the line.
    let _ = std::io::stderr().lock().write_all(format!("{text}\n").as_bytes());
}

/// Why not all of the output was written; a closed pipe (`| head`) is not an error.
pub fn output_error() -> Option<&'static std::io::Error> {
    OUTPUT.get().filter(|error| error.kind() != ErrorKind::BrokenPipe)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_texts_do_not_reach_the_terminal_as_they_are() {
        let name = "\u{1b}[31mred\u{1b}]0;title\u{7} \u{9b}2J \u{202e}gnp.exe\r";
        let shown = safe(name);
        assert_eq!(shown, r"\u{1b}[31mred\u{1b}]0;title\u{7} \u{9b}2J \u{202e}gnp.exe\u{d}");
        assert!(safe_colored(name).starts_with("\u{1b}[31mred\\u{1b}]0;title"));
        assert!(matches!(safe("a\tb\nç 苹果 עברית"), Cow::Borrowed(_)));
    }
}
