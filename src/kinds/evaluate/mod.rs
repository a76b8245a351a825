//! Whether attributions are true: models that were trained without images, subsets, and known influences judge them.

mod known;
mod lds;
mod names;
mod picture;
mod removal;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::Serialize;
use serde_json::{Map, Value as Json, json};

use super::shared::check_outputs::{self, Outputs};
use crate::io::json;
use attrflow_engine::config::param::Validate;
use attrflow_engine::kind::{
    ArtifactShape, Compute, Context, Estimate, ExpectedInputs, Input, Inputs, Kind, KindInfo, Output, Stage,
    Task,
};
use attrflow_engine::params;
use attrflow_statistics::interval::Interval;
use attrflow_statistics::paired::{self, Verdict};
use names::Part;

params! {
    /// What the names of items say, where an input takes many: the parts between commas, in this order. A stage that repeats
    /// over `query` and `seed` has items named `apple,1`, which is `["query", "seed"]`.
    pub struct Names {
        /// The parts of a name on `control`.
        control: Vec<Part> = vec![Part::Seed],
        /// The parts of a name on `removed`.
        removed: Vec<Part> = vec![Part::Query],
        /// The parts of a name on `random`.
        random: Vec<Part> = vec![Part::Set],
        /// The parts of a name on `subset_losses`.
        subset_losses: Vec<Part> = vec![Part::Subset, Part::Seed],
        /// The parts of a name on `scores`.
        scores: Vec<Part> = vec![Part::Query],
        /// The parts of a name on `self_rank`, with several methods; else the whole name is the query's.
        self_rank: Vec<Part> = Vec::new(),
        /// The parts of a name on `exemplar_rank`, with several methods. The exemplar, `query`, comes first.
        exemplar_rank: Vec<Part> = Vec::new(),
        /// The parts of a name on `planted_rank`, with several methods.
        planted_rank: Vec<Part> = Vec::new(),
        /// The parts of a name on `compared_rank`, with several methods.
        compared_rank: Vec<Part> = Vec::new(),
    }
}

impl Names {
    /// The parts of a name on a port with rankings.
    fn of_ranks(&self, port: &str) -> &[Part] {
        match port {
            "self_rank" => &self.self_rank,
            "exemplar_rank" => &self.exemplar_rank,
            "planted_rank" => &self.planted_rank,
            _ => &self.compared_rank,
        }
    }
}

impl Validate for Names {
    fn validate(&self) -> Vec<(&'static str, String)> {
        let all = [
            ("control", &self.control),
            ("removed", &self.removed),
            ("random", &self.random),
            ("subset_losses", &self.subset_losses),
            ("scores", &self.scores),
            ("self_rank", &self.self_rank),
            ("exemplar_rank", &self.exemplar_rank),
            ("planted_rank", &self.planted_rank),
            ("compared_rank", &self.compared_rank),
        ];
        let repeated = |parts: &[Part]| (1..parts.len()).any(|place| parts[..place].contains(&parts[place]));
        let twice = all.iter().filter(|(_, parts)| repeated(parts));
        twice.map(|(key, _)| (*key, format!("`{key}` says the same part twice"))).collect()
    }
}

params! {
    /// Parameters of `evaluate`. A test is made where its inputs are connected.
    pub struct Evaluate {
        /// What the names of items say, by input: `apple,1` of a stage that repeats over `query` and `seed` is `["query", "seed"]`.
        names: Names = Names::default(),
        /// What the test of left-out images is called: `leave-k-out` for models from scratch, `drift` for models that were
        /// only trained further.
        removal: String = "leave-k-out".to_owned(),
        /// How many images each model was trained without, where the names do not say.
        k: Option<usize> = None,
        /// Numbers of the highest-scored images whose removal is estimated from the models on subsets.
        top: Vec<usize> = Vec::new(),
        /// How the models on subsets are trained: recorded losses of models that were trained otherwise are refused.
        recipe: Map<String, Json> = Map::new(),
        /// The first ranks among which the exemplars are counted.
        recall_at: usize [1..=1_000_000] = 10,
        /// The first ranks of a reference ranking that should come first: the L of mAP(L).
        reference_first: usize [1..=1_000_000] = 100,
        /// The level of all intervals.
        level: f64 [0.5..=0.999] = 0.95,
        /// Bootstrap resamples of subsets and queries.
        resamples: usize [100..=1_000_000] = 2000,
        /// Seed of the bootstrap.
        seed: u32 = 0,
    }
}

impl Validate for Evaluate {
    fn validate(&self) -> Vec<(&'static str, String)> {
        let zero = [("k", self.k == Some(0)), ("top", self.top.contains(&0))];
        zero.iter()
            .filter(|(_, zero)| *zero)
            .map(|(key, _)| (*key, format!("`{key}` is 0, expected 1 or more")))
            .collect()
    }
}

const SUMMARY: &str = "summary.json";
const EFFECTS: &str = "effects.csv";
const LDS: &str = "lds.csv";
const LOSSES: &str = "losses.csv";
const SUBSETS: &str = "subsets.json";
const METHODS: &str = "methods.csv";
const PNG: &str = "evaluation.png";
const SVG: &str = "evaluation.svg";

/// The tests of rankings: the rankings, and the images that should come first, or the rankings whose first should.
const KNOWN: [[&str; 2]; 4] = [
    ["self_rank", "self_relevant"],
    ["exemplar_rank", "exemplar_relevant"],
    ["planted_rank", "planted_relevant"],
    ["compared_rank", "reference_rank"],
];

impl Kind for Evaluate {
    const INFO: KindInfo = KindInfo {
        inputs: &[
            Input::new("control", "`query-loss.table` of models that were trained on all images")
                .many()
                .optional(),
            Input::new(
                "removed",
                "`query-loss.table` of models that were trained without a query's top images",
            )
            .many()
            .optional(),
            Input::new("random", "`query-loss.table` of models that were trained without random images")
                .many()
                .optional(),
            Input::new("subsets", "`subset.indices` of the images that stayed, by subset").many().optional(),
            Input::new("subset_losses", "`query-loss.table` of models that were trained on subsets")
                .many()
                .optional(),
            Input::new(
                "recorded",
                "a folder with losses.csv and subsets.json of an earlier evaluation: their models count too",
            )
            .optional(),
            Input::new(
                "queries",
                "`generate.latents` of the queries: recorded losses of other pictures are refused",
            )
            .many()
            .optional(),
            Input::new("scores", "float32 [N]: `influence.influence` of the queries").many().optional(),
            Input::new(KNOWN[0][0], "int64 [N]: `influence.rank` of training images as queries")
                .many()
                .optional(),
            Input::new(KNOWN[0][1], "`subset.indices` of these images").many().optional(),
            Input::new(KNOWN[1][0], "int64 [N]: `influence.rank` of drawings by models tuned on an exemplar")
                .many()
                .optional(),
            Input::new(KNOWN[1][1], "`subset.indices` of the exemplar").many().optional(),
            Input::new(KNOWN[2][0], "int64 [N]: `influence.rank` of images with copies in the data set")
                .many()
                .optional(),
            Input::new(KNOWN[2][1], "`subset.indices` of all copies").many().optional(),
            Input::new(KNOWN[3][0], "int64 [N]: `influence.rank` of a method that is compared with another")
                .many()
                .optional(),
            Input::new(
                KNOWN[3][1],
                "int64 [N]: the ranking of the other, such as an exact one, of the same queries",
            )
            .many()
            .optional(),
        ],
        outputs: &[
            Output::new("summary", SUMMARY, "each test: verdict, rule, estimate with interval"),
            Output::new("effects", EFFECTS, "by model and query: the rise of its loss against the control"),
            Output::new("lds", LDS, "by method and query: the linear datamodeling score"),
            Output::new("losses", LOSSES, "by subset, seed and query: the loss, for the input `recorded`"),
            Output::new("subsets", SUBSETS, "the images of each subset, for the input `recorded`"),
            Output::new("methods", METHODS, "by test and method: estimate with interval, chance, verdict"),
            Output::new("png", PNG, "the tests as a picture"),
            Output::new("svg", SVG, "the same as a vector graphic"),
        ],
        libtorch: false,
        ..KindInfo::new::<Self>(
            "evaluate",
            4,
            "whether attributions are true: tests with verdicts and intervals",
        )
    };
}

/// The method of scores and rankings whose names do not say it.
const OWN: &str = "unlearning";

/// A test's result, as the summary and the picture have it.
#[derive(Debug, Clone, Serialize)]
struct Finding {
    /// The test, which several methods may share.
    test: String,
    method: String,
    verdict: Verdict,
    /// When it holds.
    rule: String,
    /// What was estimated, with its interval; none where there is too little data for one.
    #[serde(skip_serializing_if = "Option::is_none")]
    estimate: Option<Interval>,
    /// What chance gives, where it can be compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    chance: Option<f64>,
    /// All else.
    #[serde(flatten)]
    details: Json,
}

impl Finding {
    /// The verdict of an interval: on one side of chance, or undecided.
    fn of(
        [test, method]: [&str; 2],
        estimate: Option<Interval>,
        chance: f64,
        rule: String,
        details: Json,
    ) -> Self {
        let verdict = estimate.map_or(Verdict::Undecided, |found| paired::verdict(found, chance));
        let (test, method) = (test.to_owned(), method.to_owned());
        Self { test, method, verdict, rule, estimate, chance: Some(chance), details }
    }

    /// Its line of the table of methods.
    fn line(&self) -> (&str, &str, [Option<f64>; 4], Verdict) {
        let mean = self.estimate.map(|found| found.mean).or_else(|| self.details.get("found")?.as_f64());
        let ends =
            [|found: Interval| found.low, |found: Interval| found.high].map(|end| self.estimate.map(end));
        (&self.test, &self.method, [mean, ends[0], ends[1], self.chance], self.verdict)
    }
}

/// Findings by name: that of the test, with the method where a test has several.
fn by_name(findings: impl IntoIterator<Item = Finding>) -> BTreeMap<String, Finding> {
    let findings: Vec<Finding> = findings.into_iter().collect();
    let several = |test: &str| findings.iter().filter(|other| other.test == test).count() > 1;
    let name = |finding: &Finding| match several(&finding.test) {
        true => format!("{} {}", finding.test, finding.method),
        false => finding.test.clone(),
    };
    findings.iter().map(|finding| (name(finding), finding.clone())).collect()
}

impl Stage for Evaluate {
    fn check(&self, connected: &dyn Fn(&str) -> bool) -> Vec<(String, String)> {
        let mut faults = Vec::new();
        let mut fault = |port: &str, message: String| faults.push((port.to_owned(), message));
        let needs = [
            ("removed", "control"),
            ("removed", "random"),
            ("random", "control"),
            ("subset_losses", "subsets"),
            ("subset_losses", "scores"),
            ("recorded", "scores"),
        ];
        let pairs = KNOWN.iter().flat_map(|[rank, relevant]| [(*rank, *relevant), (*relevant, *rank)]);
        for (port, other) in needs.into_iter().chain(pairs) {
            if connected(port) && !connected(other) {
                fault(port, format!("`{port}` needs the input `{other}`"));
            }
        }
        let tests = ["removed", "subset_losses", "recorded"].into_iter().chain(KNOWN.map(|[rank, _]| rank));
        if !tests.clone().any(connected) {
            let tests: Vec<String> = tests.map(|port| format!("`{port}`")).collect();
            fault("names", format!("nothing to evaluate: connect one of {}", tests.join(", ")));
        }
        faults
    }

    fn validate_inputs(&self, inputs: &Inputs) -> anyhow::Result<()> {
        removal::read(self, inputs)?;
        lds::read(self, inputs)?;
        Ok(())
    }

    fn estimate(&self, _: &ExpectedInputs) -> anyhow::Result<Estimate> {
        let outputs =
            Self::INFO.outputs.iter().map(|output| (output.name.to_owned(), ArtifactShape::Bytes(50_000)));
        Ok(Estimate { outputs: outputs.collect(), ..Estimate::default() })
    }

    fn accept(&self, _: &Inputs, outputs: &Outputs) -> anyhow::Result<&'static str> {
        outputs.values().try_for_each(|file| check_outputs::some_file(file))?;
        Ok("that no file is empty")
    }
}

impl Compute for Evaluate {
    fn run(&self, task: &Task, _: &Context<'_>) -> anyhow::Result<()> {
        let Task { inputs, out, .. } = task;
        let removal = removal::read(self, inputs)?;
        let effects = removal.effects()?;
        write_csv(&out.join(EFFECTS), &removal::HEADER, &effects.rows)?;
        let models = lds::read(self, inputs)?;
        models.record(&out.join(LOSSES), &out.join(SUBSETS))?;
        let found = models.judge(self, inputs)?;
        write_csv(&out.join(LDS), &lds::HEADER, &found.rows)?;
        let known = known::findings(self, inputs)?;
        let tests = by_name(effects.findings(self).into_iter().chain(found.findings).chain(known));
        let lines: Vec<_> = tests.values().map(Finding::line).collect();
        write_csv(
            &out.join(METHODS),
            &["test", "method", "mean", "low", "high", "chance", "verdict"],
            &lines,
        )?;
        json::write_pretty(&out.join(SUMMARY), &json!({ "level": self.level, "tests": tests }))?;
        picture::draw(&effects, &tests, self.level, [&out.join(SVG), &out.join(PNG)])
    }
}

/// Writes a table; one without rows has its header.
fn write_csv<T: Serialize>(path: &Path, header: &[&str], rows: &[T]) -> anyhow::Result<()> {
    let mut writer = csv::WriterBuilder::new().has_headers(false).from_writer(fs_err::File::create(path)?);
    writer.write_record(header)?;
    rows.iter().try_for_each(|row| writer.serialize(row))?;
    Ok(writer.flush()?)
}

/// The items of a port, each with the one of another port that has its name, or the beginning of it before a comma.
fn pairs(inputs: &Inputs, [one, other]: [&'static str; 2]) -> anyhow::Result<Vec<(String, [PathBuf; 2])>> {
    let known: BTreeMap<&str, &Path> = inputs.many(other).collect();
    let of = |(item, path): (&str, &Path)| {
        let ends = item.match_indices(',').map(|(end, _)| end).chain([item.len()]);
        let found = ends.into_iter().rev().find_map(|end| known.get(&item[..end]));
        let found = found.with_context(|| {
            let known: Vec<&str> = known.keys().copied().collect();
            format!("`{one}` has the item `{item}`, `{other}` has {}", known.join(", "))
        });
        Ok((item.to_owned(), [path.to_path_buf(), found?.to_path_buf()]))
    };
    inputs.many(one).map(of).collect()
}

/// A level as people write it.
fn percent(level: f64) -> String {
    format!("{} %", (level * 1000.0).round() / 10.0)
}
