//! The table of stages: a row for each stage of the pipeline, which may have many items.

use std::collections::{BTreeMap, BTreeSet};

use super::plot::place;
use super::redact;
use super::words::seconds;
use crate::results::{Run, base};
use attrflow_engine::provenance::manifest::{Outcome, StageRecord};
use attrflow_engine::store::format_bytes as bytes;

/// Most errors that are shown of a stage.
const ERRORS: usize = 3;

/// A stage, or all items of a repeated one.
#[derive(Debug, Clone)]
pub(super) struct StageRow {
    pub name: String,
    pub items: usize,
    pub kind: String,
    /// The most serious outcome, which gives the row its colour.
    pub outcome: &'static str,
    /// All outcomes in words.
    pub outcomes: String,
    pub units: String,
    pub seconds: String,
    /// The length of its bar, of 100.
    pub share: String,
    pub memory: Option<String>,
    /// Stages and their errors.
    pub errors: Vec<(String, String)>,
    /// The number of further errors.
    pub more_errors: usize,
    /// The names of the stages that it reads.
    pub reads: Vec<String>,
    total: f64,
}

/// How a run ended, in one word.
pub(super) fn ended(run: &Run<'_>) -> &'static str {
    let has = |outcome| run.manifest.stages.iter().any(|record| record.outcome == outcome);
    match () {
        () if has(Outcome::Failed) => "failed",
        () if has(Outcome::Interrupted) => "interrupted",
        () if has(Outcome::Blocked) => "blocked",
        () if has(Outcome::Ran) => "complete",
        () => "complete, all cached",
    }
}

/// The rows, in the order of the manifest.
pub(super) fn stages(run: &Run<'_>) -> Vec<StageRow> {
    let mut groups: Vec<(&str, Vec<&StageRecord>)> = Vec::new();
    let mut places: BTreeMap<&str, usize> = BTreeMap::new();
    for record in &run.manifest.stages {
        let name = base(&record.stage);
        let place = *places.entry(name).or_insert_with(|| {
            groups.push((name, Vec::new()));
            groups.len() - 1
        });
        groups[place].1.push(record);
    }
    let mut rows: Vec<StageRow> = groups.iter().map(|(name, records)| row(run, name, records)).collect();
    let most = rows.iter().map(|row| row.total).fold(0.0, f64::max);
    for row in rows.iter_mut().filter(|_| most > 0.0) {
        row.share = place(row.total / most * 100.0);
    }
    rows
}

fn row(run: &Run<'_>, name: &str, records: &[&StageRecord]) -> StageRow {
    const ORDER: [Outcome; 5] =
        [Outcome::Failed, Outcome::Interrupted, Outcome::Blocked, Outcome::Ran, Outcome::Cached];
    let count = |outcome| records.iter().filter(|record| record.outcome == outcome).count();
    let present: Vec<Outcome> = ORDER.into_iter().filter(|outcome| count(*outcome) > 0).collect();
    let outcomes: Vec<String> = match present.as_slice() {
        [one] => vec![word(*one).to_owned()],
        several => several.iter().map(|one| format!("{} {}", count(*one), word(*one))).collect(),
    };
    let (ran, cached): (usize, usize) =
        records.iter().fold((0, 0), |(a, b), record| (a + record.units_run, b + record.units_cached));
    let workers = || records.iter().filter_map(|record| record.workers.as_ref());
    let memory = workers().map(|workers| workers.peak_memory).max();
    let device = workers().map(|workers| workers.peak_device_memory).max().filter(|most| *most > 0);
    let memory = memory.map(|most| {
        device.map_or_else(|| bytes(most), |device| format!("{}, device {}", bytes(most), bytes(device)))
    });
    let failed = records.iter().filter_map(|record| Some((record, record.error.as_deref()?)));
    let errors: Vec<_> = failed.map(|(record, error)| (record.stage.clone(), redact::text(error))).collect();
    let total: f64 = records.iter().map(|record| record.seconds).sum();
    let reads: BTreeSet<&str> =
        records.iter().flat_map(|record| record.reads.values()).map(|reads| base(&reads.stage)).collect();
    StageRow {
        name: name.to_owned(),
        items: records.len(),
        kind: run.kind(records[0]).to_owned(),
        outcome: present.first().map_or("", |outcome| word(*outcome)),
        outcomes: outcomes.join(", "),
        units: match (ran, cached) {
            (0, 0) => String::new(),
            (ran, 0) => format!("{ran} run"),
            (0, cached) => format!("{cached} cached"),
            (ran, cached) => format!("{ran} run, {cached} cached"),
        },
        seconds: if total > 0.0 { seconds(total) } else { String::new() },
        share: "0".into(),
        memory,
        more_errors: errors.len().saturating_sub(ERRORS),
        errors: errors.into_iter().take(ERRORS).collect(),
        reads: reads.into_iter().filter(|reads| *reads != name).map(str::to_owned).collect(),
        total,
    }
}

fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Cached => "cached",
        Outcome::Ran => "ran",
        Outcome::Failed => "failed",
        Outcome::Blocked => "blocked",
        Outcome::Interrupted => "interrupted",
    }
}

#[cfg(test)]
impl StageRow {
    pub fn of_test(name: &str, reads: &[&str]) -> Self {
        Self {
            name: name.to_owned(),
            items: 1,
            kind: "kind".into(),
            outcome: "ran",
            outcomes: "ran".into(),
            units: String::new(),
            seconds: String::new(),
            share: String::new(),
            memory: None,
            errors: Vec::new(),
            more_errors: 0,
            reads: reads.iter().map(|name| (*name).to_owned()).collect(),
            total: 0.0,
        }
    }
}
