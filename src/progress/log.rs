//! What `-v` adds: every decision and every unit, as log lines.

use std::io::Write;

use super::bars::above_bars;
use super::duration;
use attrflow_engine::exec::event::Event;

/// Logs an event: decisions and what is done as info, the rest in finer levels. `live` leaves out what the live progress
/// shows anyway.
pub fn log(event: &Event, live: bool) {
    match event {
        Event::StageCached { stage, outputs, .. } => {
            let digests: Vec<String> = outputs
                .iter()
                .map(|(port, shown)| format!("{port} is {}", shown.artifact.digest.short()))
                .collect();
            tracing::info!("reuse {stage}: {}", digests.join(", "));
        }
        Event::StageStarted { stage, reason, units, units_reused, .. } if !live => {
            let units = match (*units, *units_reused) {
                (1, _) => String::new(),
                (units, reused) => format!("; {reused} of {units} units are already there"),
            };
            tracing::info!("run {stage}: {reason}{units}");
        }
        Event::UnitStarted { stage, unit } => match unit {
            Some(unit) => tracing::debug!("begin {stage}, {unit}"),
            None => tracing::debug!("begin {stage}"),
        },
        Event::Progress { stage, done, total } => tracing::trace!("{stage}: {done} of {total}"),
        Event::UnitFinished { stage, unit, seconds } => {
            tracing::info!("done {stage}, {unit} in {}", duration(*seconds));
        }
        Event::StageFinished { stage, seconds, .. } if !live => {
            tracing::info!("done {stage} in {} of computing", duration(*seconds));
        }
        Event::StageBlocked { stage, by } => tracing::info!("blocked {stage}: needs {by}"),
        _ => {}
    }
}

/// Standard error, for log lines: they go above the progress bars, where there are some.
pub struct LogLines;

impl Write for LogLines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        above_bars(|| std::io::stderr().write_all(bytes))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}
