//! How fast a training goes.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::method::train::StepReport;

/// How training goes. It depends on the machine, so no output has it.
pub(super) struct Speed {
    begun: Instant,
    rows: usize,
    /// Rows, their summed loss, and the end of each of the last steps.
    recent: VecDeque<(usize, f64, Instant)>,
    logged: Instant,
}

impl Speed {
    pub fn new() -> Self {
        let now = Instant::now();
        Self { begun: now, rows: 0, recent: [(0, 0.0, now)].into(), logged: now }
    }

    /// Adds a step; the mean loss and the speed of the last ones, which are logged twice a minute.
    pub fn add(&mut self, report: &StepReport) -> String {
        const STEPS: usize = 20;
        const EVERY: Duration = Duration::from_secs(30);
        let (rows, now) = (report.rows, Instant::now());
        self.rows += rows;
        self.recent.push_back((rows, report.loss.unwrap_or(0.0) * rows as f64, now));
        if self.recent.len() > STEPS + 1 {
            self.recent.pop_front();
        }
        let steps = self.recent.iter().skip(1);
        let (rows, loss) = steps.fold((0, 0.0), |sum, step| (sum.0 + step.0, sum.1 + step.1));
        let (loss, seconds) = (loss / rows.max(1) as f64, (now - self.recent[0].2).as_secs_f64());
        let note = format!("loss {loss:.4}, {:.1} rows/s", rows as f64 / seconds);
        if now - self.logged >= EVERY {
            tracing::info!("step {}: {note}", report.step);
            self.logged = now;
        }
        note
    }

    /// The speed of all steps.
    pub fn log(&self, steps: &str) {
        let (rows, seconds) = (self.rows, self.begun.elapsed().as_secs_f64());
        tracing::info!("{steps}: {rows} rows, {:.1} rows/s", rows as f64 / seconds);
    }
}
