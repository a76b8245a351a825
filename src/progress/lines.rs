//! Events as JSON lines on standard output.

use super::{Reporter, print};
use attrflow_engine::exec::event::Event;

/// One line per event, for programs.
pub struct JsonLines;

impl Reporter for JsonLines {
    fn on_event(&mut self, event: &Event) {
        super::log::log(event, false);
        let line = serde_json::to_string(event).expect("an event is plain data");
        print(&format!("{line}\n"));
    }
}
