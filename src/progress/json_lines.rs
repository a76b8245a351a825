//! Events as JSON lines on standard output.

use jiff::Timestamp;
use serde::Serialize;

use super::{Reporter, print};
use attrflow_engine::exec::event::Event;

/// One line per event, for programs.
pub struct JsonLines;

/// An event and its time.
#[derive(Serialize)]
struct Line<'a> {
    /// UTC, RFC 3339.
    time: String,
    #[serde(flatten)]
    event: &'a Event,
}

impl Reporter for JsonLines {
    fn on_event(&mut self, event: &Event) {
        super::log::log(event, false);
        print(&json_line(event));
    }
}

/// An event and the time now, as a line.
pub fn json_line(event: &Event) -> String {
    let time = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
    let line = serde_json::to_string(&Line { time, event }).expect("an event is plain data");
    format!("{line}\n")
}
