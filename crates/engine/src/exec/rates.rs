//! How long the work of a run takes, as the run itself measures it.

use std::collections::BTreeMap;
use std::sync::Mutex;

use super::queue::Job;
use crate::kind::Step;

/// Seconds of a step as this run measured them, by pool, kind, and whether a stage has units.
#[derive(Default)]
pub(super) struct Rates(Mutex<BTreeMap<(usize, &'static str, bool), f64>>);

impl Rates {
    /// Takes a measurement; the newest counts half, since units differ and machines too.
    pub fn add(&self, pool: usize, job: &Job, seconds: f64) {
        let Some(steps) = steps(job) else { return };
        let (key, seconds) = ((pool, job.common.kind.name, job.unit.is_some()), seconds / steps);
        let mut rates = self.0.lock().expect("no panic under this lock");
        rates.entry(key).and_modify(|rate| *rate = (*rate + seconds) / 2.0).or_insert(seconds);
    }

    pub fn cost(&self, pool: usize, job: &Job) -> Option<f64> {
        let rates = self.0.lock().expect("no panic under this lock");
        Some(rates.get(&(pool, job.common.kind.name, job.unit.is_some()))? * steps(job)?)
    }
}

/// The steps of a unit; a stage without units counts as one. What a merge takes depends on what it merges.
fn steps(job: &Job) -> Option<f64> {
    match &job.step {
        Step::Unit(unit) => Some(unit.steps.max(1) as f64),
        Step::Whole => Some(1.0),
        Step::Merge(_) => None,
    }
}
