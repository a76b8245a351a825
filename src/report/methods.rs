//! Methods side by side: what each test of an evaluation found of them, and what their scores cost.

use std::collections::{BTreeMap, BTreeSet};

use super::plot::Strip;
use super::words::seconds;
use crate::results::Run;
use attrflow_engine::kind::split_port;
use attrflow_engine::provenance::manifest::StageRecord;
use attrflow_engine::store::format_bytes;
use serde_json::Value as Json;

/// The ports with scores or rankings, those of one model and many queries first.
const PORTS: [&str; 5] = ["self_rank", "scores", "planted_rank", "exemplar_rank", "compared_rank"];
/// The method of items whose names do not say one, as `evaluate` calls it.
const OWN: &str = "unlearning";

/// A test of an evaluation, of one method.
#[derive(Debug, Clone)]
pub(super) struct Test {
    pub name: String,
    /// The test without its method, and the method; empty in results of earlier versions.
    pub test: String,
    pub method: String,
    /// `holds`, `does not hold`, `undecided`.
    pub verdict: String,
    pub measure: Option<String>,
    pub rule: String,
    pub estimate: Option<String>,
    pub interval: Option<String>,
    pub chance: Option<String>,
    pub strip: Option<Strip>,
}

/// A row for each method, a column for each test.
#[derive(Debug, Clone)]
pub(super) struct Methods {
    pub tests: Vec<String>,
    pub rows: Vec<MethodRow>,
    pub has_costs: bool,
    pub has_memory: bool,
}

/// A method.
#[derive(Debug, Clone)]
pub(super) struct MethodRow {
    pub name: String,
    /// What its tests found; none where it has no such test.
    pub cells: Vec<Option<Test>>,
    pub cost: Option<Cost>,
}

/// What the scores of a method took.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Cost {
    /// What all queries share.
    pub once: String,
    /// The rest, by query.
    pub each: String,
    pub memory: Option<String>,
}

impl Methods {
    /// None where there is one method.
    pub fn of(run: &Run<'_>, record: &StageRecord, tests: &[Test]) -> Option<Self> {
        let mut names: Vec<String> = Vec::new();
        let mut columns: Vec<String> = Vec::new();
        for test in tests {
            for (list, name) in [(&mut names, &test.method), (&mut columns, &test.test)] {
                if !name.is_empty() && !list.contains(name) {
                    list.push(name.clone());
                }
            }
        }
        let mut costs = (names.len() > 1).then(|| costs(run, record))?;
        let row = |name: String| MethodRow {
            cells: columns
                .iter()
                .map(|column| tests.iter().find(|test| test.test == *column && test.method == name).cloned())
                .collect(),
            cost: costs.remove(&name),
            name,
        };
        let rows: Vec<MethodRow> = names.into_iter().map(row).collect();
        let costs = || rows.iter().filter_map(|row| row.cost.as_ref());
        let (has_costs, has_memory) = (costs().next().is_some(), costs().any(|cost| cost.memory.is_some()));
        Some(Self { tests: columns, has_costs, has_memory, rows })
    }
}

/// The stages that made an item's scores.
fn behind<'a>(run: &Run<'a>, record: &'a StageRecord, found: &mut BTreeMap<&'a str, &'a StageRecord>) {
    if found.insert(&record.stage, record).is_none() {
        for port in record.reads.keys() {
            run.upstream(record, port).into_iter().for_each(|before| behind(run, before, found));
        }
    }
}

/// What each method's scores took, without the stages that all methods share, from the first port that has several methods.
fn costs(run: &Run<'_>, record: &StageRecord) -> BTreeMap<String, Cost> {
    type Stages<'a> = BTreeMap<&'a str, &'a StageRecord>;
    let of_port = |wanted: &&str| {
        let parts = record.params.get("names").and_then(|names| names.get(*wanted)).and_then(Json::as_array);
        let place = parts.and_then(|parts| parts.iter().position(|part| part == "method"));
        let mut methods: BTreeMap<String, Vec<Stages<'_>>> = BTreeMap::new();
        for port in record.reads.keys() {
            let (name, item) = split_port(port);
            if name != *wanted {
                continue;
            }
            let words: Vec<&str> = item.unwrap_or_default().split(',').collect();
            let whole = parts.is_some_and(|parts| parts.len() == words.len());
            let method = place.filter(|_| whole).and_then(|place| words.get(place)).copied().unwrap_or(OWN);
            let mut stages = Stages::new();
            run.upstream(record, port).into_iter().for_each(|first| behind(run, first, &mut stages));
            methods.entry(method.to_owned()).or_default().push(stages);
        }
        (methods.len() > 1).then_some(methods)
    };
    let Some(methods) = PORTS.iter().find_map(of_port) else { return BTreeMap::new() };
    let all = |items: &[Stages<'_>]| -> BTreeSet<String> {
        items.iter().flatten().map(|(name, _)| (*name).to_owned()).collect()
    };
    let sets: Vec<BTreeSet<String>> = methods.values().map(|items| all(items)).collect();
    let shared = |name: &str| sets.iter().all(|set| set.contains(name));
    let mut memory: BTreeMap<String, u64> = BTreeMap::new();
    for task in run.files.tasks() {
        let most = memory.entry(task.stage).or_default();
        *most = (*most).max(task.peak_memory);
    }
    let cost = |items: &[Stages<'_>]| {
        let own: Stages<'_> =
            items.iter().flatten().filter(|(name, _)| !shared(name)).map(|(a, b)| (*a, *b)).collect();
        let by_all = |name: &str| items.len() > 1 && items.iter().all(|item| item.contains_key(name));
        let took = |wanted: bool| -> f64 {
            own.iter()
                .filter(|(name, _)| by_all(name) == wanted)
                .map(|(_, record)| record.seconds)
                .sum::<f64>()
                .abs()
        };
        let peak = own.keys().filter_map(|name| memory.get(*name).copied()).max().filter(|peak| *peak > 0);
        Cost {
            once: seconds(took(true)),
            each: seconds(took(false) / items.len() as f64),
            memory: peak.map(format_bytes),
        }
    };
    methods.iter().map(|(method, items)| (method.clone(), cost(items))).collect()
}
