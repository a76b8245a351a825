//! What is known of a stage while it runs.

use std::collections::BTreeMap;

use crate::identity::recipe::Recipe;
use crate::kind::Unit;
use crate::plan::ResolvedInputs;
use crate::store::Entry;

/// A stage that has begun and not ended.
pub(super) struct Work {
    pub recipe: Recipe,
    pub inputs: ResolvedInputs,
    pub forced: bool,
    /// Empty for a stage of one piece.
    pub units: Vec<Unit>,
    /// Results of the units, as far as they are there.
    pub entries: Vec<Option<Entry>>,
    pub units_cached: usize,
    pub units_run: usize,
    /// Seconds of computing so far.
    pub seconds: f64,
    pub progress: Progress,
}

impl Work {
    pub fn new(recipe: Recipe, inputs: ResolvedInputs, forced: bool) -> Self {
        Self {
            recipe,
            inputs,
            forced,
            units: Vec::new(),
            entries: Vec::new(),
            units_cached: 0,
            units_run: 0,
            seconds: 0.0,
            progress: Progress::default(),
        }
    }

    /// Whether all units are there.
    pub fn complete(&self) -> bool {
        self.entries.iter().all(Option::is_some)
    }
}

/// Steps of a stage that this run does.
#[derive(Default)]
pub(super) struct Progress {
    /// Steps of finished units.
    finished: u64,
    /// Steps of running units, by unit.
    running: BTreeMap<Option<usize>, u64>,
    /// Steps in all; 0 until known.
    pub total: u64,
}

impl Progress {
    /// Notes how far a unit is; a stage of one piece tells its total only now.
    pub fn said(&mut self, unit: Option<usize>, done: u64, total: u64) -> (u64, u64) {
        if self.total == 0 && unit.is_none() {
            self.total = total;
        }
        self.running.insert(unit, done);
        let done = self.finished + self.running.values().sum::<u64>();
        (done.min(self.total), self.total)
    }

    /// Notes that a unit is done.
    pub fn finished(&mut self, unit: usize, steps: u64) -> (u64, u64) {
        self.running.remove(&Some(unit));
        self.finished += steps;
        let done = self.finished + self.running.values().sum::<u64>();
        (done.min(self.total), self.total)
    }
}
