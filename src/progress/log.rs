//! The log lines of `-v`: every decision and every unit.

use std::io::Write;

use super::bars::above_bars;
use super::duration;
use attrflow_engine::exec::event::Event;

/// Logs an event: decisions and finished work as info, the rest at finer levels. `live` omits what the live progress shows.
pub fn log(event: &Event, live: bool) {
    match event {
        Event::StageCached { stage, outputs, .. } => {
            let digests: Vec<String> = outputs
                .iter()
                .map(|(port, shown)| format!("{port} {}", shown.artifact.digest.short()))
                .collect();
            tracing::info!("cached {stage}: {}", digests.join(", "));
        }
        Event::StageStarted { stage, reason, units, units_cached, .. } if !live => {
            let units = match (*units, *units_cached) {
                (1, _) => String::new(),
                (units, cached) => format!("; {cached} of {units} units cached"),
            };
            tracing::info!("run {stage}: {reason}{units}");
        }
        Event::UnitStarted { stage, unit } => match unit {
            Some(unit) => tracing::debug!("start {stage}, {unit}"),
            None => tracing::debug!("start {stage}"),
        },
        Event::Progress { stage, done, total, .. } => tracing::trace!("{stage}: {done} of {total}"),
        Event::UnitFinished { stage, unit, seconds } => {
            tracing::info!("done {stage}, {unit} in {}", duration(*seconds));
        }
        Event::StageFinished { stage, seconds, .. } if !live => {
            tracing::info!("done {stage} in {} of computing", duration(*seconds));
        }
        Event::StageBlocked { stage, by } => tracing::info!("blocked {stage}: `{by}` failed"),
        _ => {}
    }
}

/// Standard error for log lines: they appear above the progress bars.
pub struct LogLines;

impl Write for LogLines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        // A stream that is closed or full hides the line, and ends no run.
        let _ = above_bars(|| std::io::stderr().write_all(super::safe_colored(&text).as_bytes()));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
