//! From how many queries on a screen pays, beside the exact influence of each: what `plan` says of it.

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};

use crate::progress::duration;
use attrflow_engine::estimate::Forecast;
use attrflow_engine::explain::Prediction;
use attrflow_engine::kind::split_port;
use attrflow_engine::pipeline::{Source, StageNode};

const SCREEN: &str = "screen";
const INFLUENCE: &str = "influence";

/// A row of a screen, forward and backward, in forward passes: what is assumed where no time is known.
const BACKWARD: f64 = 3.0;

/// The screens of a plan, and the stages that compute exact influences.
#[derive(Default)]
pub(super) struct Screens(BTreeMap<usize, Prediction>);

/// The cost of a screen, and of one query without it and after it, in one unit.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Costs {
    screen: f64,
    exact: f64,
    after: f64,
    in_seconds: bool,
}

impl Costs {
    /// The least number of queries for which the screen is cheaper; `None` if it never is.
    fn pays_from(&self) -> Option<u64> {
        let saved = self.exact - self.after;
        (saved > 0.0).then(|| (self.screen / saved) as u64 + 1)
    }

    fn describe(&self, stage: &str, queries: usize) -> String {
        let Self { screen, exact, after, in_seconds } = *self;
        let cost = |cost: f64| match in_seconds {
            true => duration(cost),
            false => format!("{cost:.0} rows"),
        };
        let pays = match self.pays_from() {
            Some(from) => {
                format!("pays from {from} {} on, and has {queries}", plural(from, "query", "queries"))
            }
            None => "does not pay for any number of queries".to_owned(),
        };
        let then = match after > 0.0 {
            true => format!("{} for all, then {} a query", cost(screen), cost(after)),
            false => format!("{} for all", cost(screen)),
        };
        let unit = match in_seconds {
            true => "",
            false => "; a row forward and backward counted as three (--measure gives times)",
        };
        format!(
            "\n  {stage} {pays}: {then}, in place of {} for the exact influence of a query{unit}",
            cost(exact)
        )
    }
}

fn plural(count: u64, one: &'static str, more: &'static str) -> &'static str {
    if count == 1 { one } else { more }
}

impl Screens {
    /// Takes note of a stage that runs, or may.
    pub fn add(&mut self, index: usize, node: &StageNode, predicted: &Prediction) {
        if [SCREEN, INFLUENCE].contains(&node.kind().name) {
            self.0.insert(index, predicted.clone());
        }
    }

    /// A line for each screen.
    pub fn describe(&self, stages: &[StageNode], forecast: &Forecast) -> String {
        let lines = self.all(stages, forecast).into_iter();
        lines.map(|(node, queries, costs)| costs.describe(&node.id, queries)).collect()
    }

    /// The same as lines of JSON.
    pub fn lines(&self, stages: &[StageNode], forecast: &Forecast) -> String {
        let line = |(node, queries, costs): (&StageNode, usize, Costs)| {
            let Costs { screen, exact, after, in_seconds } = costs;
            let unit = if in_seconds { "seconds" } else { "rows" };
            let line = json!({
                "screen": node.id, "queries": queries, "pays_from": costs.pays_from(), "unit": unit,
                "all_queries": screen, "exact_query": exact, "query_after_screen": after,
            });
            format!("{line}\n")
        };
        self.all(stages, forecast).into_iter().map(line).collect()
    }

    fn all<'s>(&self, stages: &'s [StageNode], forecast: &Forecast) -> Vec<(&'s StageNode, usize, Costs)> {
        let screens = self.0.keys().filter(|index| stages[**index].kind().name == SCREEN);
        let of = |index: &usize| {
            let node = &stages[*index];
            let queries = node.inputs.keys().filter(|port| split_port(port).0 == "weights").count();
            Some((node, queries, self.costs(*index, stages, forecast)?))
        };
        screens.filter_map(of).collect()
    }

    fn costs(&self, screen: usize, stages: &[StageNode], forecast: &Forecast) -> Option<Costs> {
        let own = Work::of(&stages[screen], &self.0[&screen], forecast)?;
        let mut influences = self.0.iter().filter(|(index, _)| stages[**index].kind().name == INFLUENCE);
        let reads = |index: usize| {
            let from = |source: &Source| matches!(source, Source::Port { stage, .. } if *stage == screen);
            stages[index].inputs.values().any(from)
        };
        let reader = influences.clone().find(|(index, _)| reads(**index));
        // Without one that reads it, the screen stands for another stage's exact influences.
        let (index, predicted) = match reader.or_else(|| influences.next()) {
            Some(found) => found,
            None => {
                let (screen, exact, after) = (BACKWARD * own.rows, own.rows, 0.0);
                return Some(Costs { screen, exact, after, in_seconds: false });
            }
        };
        let node = &stages[*index];
        let (then, full) = (Work::of(node, predicted, forecast)?, full_steps(node, forecast)?);
        let share = full / then.steps.max(1.0);
        let rescored = |cost: f64| if reader.is_some() { cost } else { 0.0 };
        Some(match own.seconds.zip(then.seconds) {
            Some((screen, seconds)) => {
                Costs { screen, exact: seconds * share, after: rescored(seconds), in_seconds: true }
            }
            None => Costs {
                screen: BACKWARD * own.rows,
                exact: then.rows * share,
                after: rescored(then.rows),
                in_seconds: false,
            },
        })
    }
}

/// All of a stage's work, what of it is cached too.
struct Work {
    steps: f64,
    /// Rows of image, timestep and caption through the network.
    rows: f64,
    seconds: Option<f64>,
}

impl Work {
    fn of(node: &StageNode, predicted: &Prediction, forecast: &Forecast) -> Option<Self> {
        let outline = forecast.of(&node.id)?;
        let work = outline.estimate.as_ref().ok()?.work.as_ref()?;
        let left = predicted
            .units
            .map_or(1.0, |units| (units.total - units.cached) as f64 / units.total.max(1) as f64);
        let earlier = predicted.seconds.filter(|_| left > 0.0).map(|seconds| seconds / left);
        let rows_a_step = match &node.stage.to_json()["loss"] {
            loss if loss["noise"] != "per_batch" => loss["captions"].as_f64()?,
            loss => loss["captions"].as_f64()? * loss["time_samples"].as_f64()?,
        };
        Some(Self {
            steps: work.steps as f64,
            rows: work.steps as f64 * rows_a_step,
            seconds: outline.seconds(work.tasks, work.steps).or(earlier),
        })
    }
}

/// The steps of an influence if all images are computed.
fn full_steps(node: &StageNode, forecast: &Forecast) -> Option<f64> {
    let mut params = node.stage.to_json();
    params["top_k"] = Json::Null;
    let full = node.kind().from_json(&params).ok()?;
    Some(full.estimate(&forecast.of(&node.id)?.inputs).ok()?.work?.steps as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_screen_pays_when_what_it_saves_is_more_than_it_costs() {
        let costs = |screen, exact, after| Costs { screen, exact, after, in_seconds: true };
        assert_eq!(costs(60.0, 29.0, 0.0).pays_from(), Some(3));
        // 3 of N for the screen, a third for each query: 9/2 are not enough, and 5 are.
        assert_eq!(costs(3.0, 1.0, 1.0 / 3.0).pays_from(), Some(5));
        assert_eq!(costs(10.0, 5.0, 0.0).pays_from(), Some(3), "as dear with two");
        assert_eq!(costs(1.0, 5.0, 5.0).pays_from(), None);
        let rows = Costs { in_seconds: false, ..costs(72.0, 24.0, 14.0) };
        let text = "\n  screen pays from 8 queries on, and has 2: 72 rows for all, then 14 rows a query, in place of 24 rows for the \
                    exact influence of a query; a row forward and backward counted as three (--measure gives times)";
        assert_eq!(rows.describe("screen", 2), text);
        assert!(costs(1.0, 5.0, 5.0).describe("s", 2).contains("s does not pay for any number of queries"));
    }
}
