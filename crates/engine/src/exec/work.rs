//! What is known of a stage while it runs.

use std::collections::BTreeMap;

use crate::identity::recipe::Recipe;
use crate::kind::Units;
use crate::plan::{ResolvedInputs, UnitEntries, follow};
use crate::store::{Artifact, Entry, PART};

/// A stage that has begun and not ended.
pub(super) struct Work {
    pub recipe: Recipe,
    pub inputs: ResolvedInputs,
    pub forced: bool,
    pub units: Units,
    /// Recipes of the units, until they are queued.
    recipes: Vec<Option<Recipe>>,
    /// Results of the units that are done.
    pub entries: Vec<Option<Entry>>,
    pub tally: Tally,
    pub progress: Progress,
}

impl Work {
    pub fn new(
        recipe: Recipe,
        inputs: ResolvedInputs,
        forced: bool,
        units: Units,
        (recipes, entries): UnitEntries,
    ) -> Self {
        let (recipes, progress) = (recipes.into_iter().map(Some).collect(), Progress::default());
        Self { recipe, inputs, forced, units, recipes, entries, tally: Tally::default(), progress }
    }

    /// The units without a result.
    pub fn missing(&self) -> Vec<usize> {
        let missing = self.entries.iter().enumerate().filter(|(_, entry)| entry.is_none());
        missing.map(|(unit, _)| unit).collect()
    }

    /// The first unit without a result.
    pub fn next(&self) -> Option<usize> {
        self.entries.iter().position(Option::is_none)
    }

    pub fn name(&self, unit: usize) -> String {
        self.units.list()[unit].name.clone()
    }

    /// The result of the unit before, in a chain.
    fn before(&self, unit: usize) -> Option<&Entry> {
        let chain = matches!(self.units, Units::Chain(_));
        self.entries[unit.checked_sub(1).filter(|_| chain)?].as_ref()
    }

    /// The folder of the unit before, in a chain.
    pub fn previous(&self, unit: usize) -> Option<Artifact> {
        self.before(unit)?.outputs.get(PART).cloned()
    }

    /// The recipe of a unit that is queued, complete also in a chain.
    pub fn take_recipe(&mut self, unit: usize) -> Option<Recipe> {
        let mut recipe = self.recipes[unit].take()?;
        if let Some(previous) = self.before(unit) {
            follow(&mut recipe, previous);
        }
        Some(recipe)
    }
}

/// What this run computed of a stage.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Tally {
    pub units_run: usize,
    pub units_cached: usize,
    /// Seconds of computing.
    pub seconds: f64,
}

impl Tally {
    /// Counts a unit and the seconds that it took; none where another run computed it.
    pub fn add(&mut self, took: Option<f64>) {
        self.units_run += usize::from(took.is_some());
        self.units_cached += usize::from(took.is_none());
        self.seconds += took.unwrap_or_default();
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
    /// Notes how far a unit is; the total of a stage of one piece is known only now.
    pub fn at(&mut self, unit: Option<usize>, done: u64, total: u64) -> (u64, u64) {
        if self.total == 0 && unit.is_none() {
            self.total = total;
        }
        self.running.insert(unit, done);
        self.sum()
    }

    /// Notes that a unit is done.
    pub fn finished(&mut self, unit: usize, steps: u64) -> (u64, u64) {
        self.running.remove(&Some(unit));
        self.finished += steps;
        self.sum()
    }

    /// Steps done and their total.
    fn sum(&self) -> (u64, u64) {
        let done = self.finished + self.running.values().sum::<u64>();
        (done.min(self.total), self.total)
    }
}
