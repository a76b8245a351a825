//! The verdicts of the kind `evaluate`.

use crate::io::words::digits;
use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value as Json;

use super::methods::{Methods, Test};
use super::plot::Strip;
use super::words::percent;
use crate::io::json;
use crate::results::Run;

/// What a stage of the kind `evaluate` found.
#[derive(Debug, Clone)]
pub(super) struct Evaluation {
    pub stage: String,
    pub level: String,
    pub tests: Vec<Test>,
    /// The same side by side, where there are several methods.
    pub methods: Option<Methods>,
    /// Why there are none.
    pub problem: Option<&'static str>,
}

#[derive(Deserialize)]
struct Summary {
    level: f64,
    tests: BTreeMap<String, Finding>,
}

#[derive(Deserialize)]
struct Finding {
    #[serde(default)]
    test: String,
    #[serde(default)]
    method: String,
    verdict: String,
    rule: String,
    estimate: Option<Interval>,
    chance: Option<f64>,
    measure: Option<String>,
    found: Option<Json>,
}

#[derive(Deserialize)]
struct Interval {
    mean: f64,
    low: f64,
    high: f64,
}

pub(super) fn evaluations(run: &Run<'_>) -> Vec<Evaluation> {
    let of = |record| {
        let summary: Option<Summary> = run.output(record, "summary").and_then(|path| json::read(path).ok());
        let stage = record.stage.clone();
        match summary {
            Some(Summary { level, tests }) => {
                let tests: Vec<Test> = tests.into_iter().map(|(name, found)| found.test(name)).collect();
                let methods = Methods::of(run, record, &tests);
                Evaluation { stage, level: percent(level), methods, tests, problem: None }
            }
            None => {
                let problem = Some("It has no result that can be read here.");
                Evaluation { stage, level: String::new(), tests: Vec::new(), methods: None, problem }
            }
        }
    };
    run.of_kind("evaluate").map(of).collect()
}

impl Finding {
    fn test(self, name: String) -> Test {
        let number = |value: f64| digits(value, 3);
        let share = self.found.as_ref().and_then(Json::as_f64).map(number);
        let strip = self.estimate.as_ref().map(|found| {
            let chance = self.chance.unwrap_or(0.0);
            let (low, high) = (found.low.min(chance), found.high.max(chance));
            Strip::new(found.mean, Some([found.low, found.high]), chance, [low, high])
        });
        Test {
            name,
            test: self.test,
            method: self.method,
            verdict: self.verdict,
            measure: self.measure,
            rule: self.rule,
            interval: self
                .estimate
                .as_ref()
                .map(|found| format!("{} to {}", number(found.low), number(found.high))),
            estimate: self.estimate.map(|found| number(found.mean)).or(share),
            chance: self.chance.map(number),
            strip,
        }
    }
}
