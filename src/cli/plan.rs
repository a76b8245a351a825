//! `attrflow plan`: what a run would do, why, and what it would take.

use std::collections::{BTreeMap, BTreeSet};

use clap::Args as ClapArgs;
use serde::Serialize;
use serde_json::{Value as Json, json};

use super::failure::Failure;
use super::measure::circumstances;
use super::noop;
use super::project::{Project, ProjectArgs};
use super::requirements::Requirements;
use super::run_args::RunArgs;
use crate::progress::{Table, duration, print, short_path, size};
use attrflow_engine::config::text::Sources;
use attrflow_engine::estimate::Forecast;
use attrflow_engine::exec::noop_cache::{NoopRun, Stage};
use attrflow_engine::explain::{Prediction, Predictor, place};
use attrflow_engine::kind::Registry;
use attrflow_engine::pipeline::StageNode;
use attrflow_engine::plan::graph;
use attrflow_engine::plan::{Action, Planner, Reason};
use attrflow_engine::store::Adopted;

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    #[command(flatten)]
    project: ProjectArgs,
    /// Plan as if this stage had to be computed (repeatable)
    #[arg(long, value_name = "STAGE")]
    force: Vec<String>,
    #[command(flatten)]
    how: RunArgs,
    /// Measure first what each stage that would run takes on this machine: its networks are loaded and a little of its work is
    /// done, with as many workers as a run would have. Later plans know it
    #[arg(long)]
    measure: bool,
    /// Write one line of JSON per stage
    #[arg(long)]
    json: bool,
}

pub(super) fn plan(args: &Args, registry: &Registry, log: &str) -> Result<(), Failure> {
    let ProjectArgs { pipeline: file, settings, targets } = &args.project;
    if let Some(key) = noop::key(file, settings, targets).filter(|_| args.force.is_empty())
        && let Some(run) = noop::find(&key, file, settings)
    {
        show_no_op(&run, args.json);
        return Ok(());
    }
    let project = args.project.open(registry)?;
    let forced = graph::named(&args.force, &project.pipeline).map_err(Failure::Usage)?;
    let shown = show(&project, &forced, &args.how, args.measure.then_some(log), args.json);
    // The process is about to end: to free each of a million small values would take a tenth of its time.
    let Project { pipeline, graph, sources, .. } = project;
    std::mem::forget((pipeline, graph, sources));
    shown
}

/// The same for a no-op run: every stage is cached.
fn show_no_op(run: &NoopRun, as_json: bool) {
    let mut table = Table::new(&HEADINGS);
    let mut text = String::new();
    for Stage { stage, seconds, outputs } in &run.stages {
        if as_json {
            let outputs: BTreeMap<_, _> =
                outputs.iter().map(|(port, shown)| (port, &shown.artifact)).collect();
            let line = json!({ "stage": stage, "verdict": "reuse", "outputs": outputs, "adopted": null });
            text += &format!("{line}\n");
        } else {
            let none = String::new;
            table.row([stage.clone(), "reuse".to_owned(), none(), none(), none(), made_in(*seconds)]);
        }
    }
    let counts = [run.stages.len(), 0, 0, 0];
    match as_json {
        true => text += &totals_line(&[Total::default(), Total::default()], &Requirements::default(), counts),
        false => text += &format!("{table}{}", counted(counts)),
    }
    print(&text);
}

const HEADINGS: [&str; 6] = ["stage", "would", "takes", "memory", "disk", "why"];

fn made_in(seconds: f64) -> String {
    format!("made in {seconds:.1} s")
}

/// The line that ends a plan for programs.
fn totals_line(totals: &[Total; 2], need: &Requirements, [reuse, run, maybe, fail]: [usize; 4]) -> String {
    let totals = json!({ "run": totals[0], "if_outputs_change": totals[1] });
    let counts = json!({ "run": run, "reuse": reuse, "run_if": maybe, "fail": fail });
    format!("{}\n", json!({ "totals": totals, "needs": need, "stages": counts }))
}

/// The line that ends a plan for people.
fn counted([reuse, run, maybe, fail]: [usize; 4]) -> String {
    let fails = if fail > 0 { format!(", {fail} to fail") } else { String::new() };
    format!("\n{run} to run, {reuse} to reuse, {maybe} to be decided by what runs before{fails}\n")
}

/// Prints the verdict on every selected stage, and what it would take; measures it first for workers that log by `measure`.
pub(super) fn show(
    project: &Project,
    forced: &[usize],
    how: &RunArgs,
    measure: Option<&str>,
    as_json: bool,
) -> Result<(), Failure> {
    let planner = Planner::new(&project.pipeline, &project.store, &project.numerics, forced);
    let verdicts = planner.all(&project.graph)?;
    project.store.try_flush()?;
    let conditions = how.conditions(&project.pipeline.run, &project.devices);
    let mut forecast = Forecast::new(&planner, &verdicts, &circumstances(&conditions));
    if let Some(log) = measure {
        super::measure::measure(project, &planner, &mut forecast, how, log)?;
    }
    let predictor = Predictor::with(&planner, &forecast);
    let mut need = Requirements::new(project, &conditions);
    let mut table = Table::new(&HEADINGS);
    let mut text = String::new();
    let mut counts = [0; 4];
    let mut totals = [Total::default(), Total::default()];
    let mut bases: BTreeSet<String> = BTreeSet::new();
    for (index, verdict) in &verdicts {
        let node = &project.pipeline.stages[*index];
        let (column, verb, why) = words(verdict, node, &project.sources);
        counts[column] += 1;
        let predicted = predictor.predict(node, verdict)?;
        if let Some(predicted) = &predicted {
            totals[usize::from(column != RUNS)].add(predicted);
            bases.insert(predicted.basis.clone());
            if column == RUNS {
                need.add(*index, node, predicted, forecast.of(&node.id));
            }
        }
        if as_json {
            let mut line = line(verdict, node, verb, &project.sources);
            if let Some(predicted) = &predicted {
                line["predicted"] = json!(predicted);
            }
            text += &format!("{line}\n");
        } else {
            let cell = |of: fn(&Prediction) -> String| predicted.as_ref().map(of).unwrap_or_default();
            let disk =
                |predicted: &Prediction| predicted.disk.or(predicted.bytes).map(size).unwrap_or_default();
            let [takes, memory, disk] = [cell(time), cell(memory), cell(disk)];
            table.row([node.id.clone(), verb.to_owned(), takes, memory, disk, why]);
        }
    }
    let [_, run, maybe, fail] = counts;
    need.close();
    if as_json {
        text += &totals_line(&totals, &need, counts);
    } else {
        text += &table.to_string();
        if maybe > 0 {
            text += "\nrun if: it is reused if what it waits for gives the same bytes as before\n";
        }
        if run + maybe > 0 {
            text += &format!("\npredicted: {}", totals[0]);
            if maybe > 0 {
                text += &format!("; at most {} more if outputs change", totals[1]);
            }
            text += &need.describe();
            const SHOWN: usize = 3;
            let more = if bases.len() > SHOWN {
                format!(" and {} more", bases.len() - SHOWN)
            } else {
                String::new()
            };
            let bases: Vec<String> = bases.into_iter().take(SHOWN).collect();
            text += &format!("\n  by {}{more}\n", bases.join(", "));
        }
        text += &counted(counts);
    }
    print(&text);
    if fail > 0 { Err(Failure::Stages(fail)) } else { Ok(()) }
}

/// The column of stages that surely run.
const RUNS: usize = 1;

/// What several stages take together.
#[derive(Default, Serialize)]
struct Total {
    seconds: f64,
    bytes: u64,
    /// Stages of which nothing is known.
    unknown: usize,
    #[serde(skip)]
    known: usize,
}

impl Total {
    fn add(&mut self, predicted: &Prediction) {
        match predicted.seconds {
            Some(seconds) => {
                self.seconds += seconds;
                self.known += 1;
            }
            None => self.unknown += 1,
        }
        self.bytes += predicted.bytes.unwrap_or_default();
    }
}

impl std::fmt::Display for Total {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.known, self.unknown) {
            (0, 0) => return f.write_str("nothing"),
            (0, _) => return f.write_str("unknown"),
            _ => write!(f, "{} of computing, {} of outputs", duration(self.seconds), size(self.bytes))?,
        }
        match self.unknown {
            0 => Ok(()),
            unknown => write!(f, ", and unknown for {unknown} of the stages"),
        }
    }
}

/// `3.2 s, 4 of 10 units, 1.2 MB of outputs`.
pub(super) fn format_estimate(predicted: &Prediction) -> String {
    match predicted.bytes {
        Some(bytes) => format!("{}, {} of outputs", time(predicted), size(bytes)),
        None => time(predicted),
    }
}

/// `310.2 MB + 4.1 GB of the device`, of each worker.
fn memory(predicted: &Prediction) -> String {
    let host = predicted.host_memory.map(size);
    let device = predicted
        .device_memory
        .filter(|bytes| *bytes > 0)
        .map(|bytes| format!("{} of the device", size(bytes)));
    host.into_iter().chain(device).collect::<Vec<_>>().join(" + ")
}

/// `3.2 s, 4 of 10 units`.
fn time(predicted: &Prediction) -> String {
    let mut parts = vec![predicted.seconds.map_or_else(|| "unknown".to_owned(), duration)];
    if let Some(units) = predicted.units.filter(|units| units.cached > 0) {
        parts.push(format!("{} of {} units", units.total - units.cached, units.total));
    }
    parts.join(", ")
}

/// A stage's line for programs.
fn line(verdict: &Action, node: &StageNode, verb: &str, sources: &Sources) -> Json {
    let places = |reason: &Reason| match reason {
        Reason::Changed { changes } => {
            let places = changes
                .iter()
                .filter_map(|change| Some((change.field.clone(), place(node, &change.field, sources)?)));
            places.collect::<BTreeMap<_, _>>()
        }
        _ => BTreeMap::new(),
    };
    let stage = &node.id;
    match verdict {
        Action::Run(_, _, reason) => {
            json!({ "stage": stage, "verdict": verb, "why": reason, "places": places(reason) })
        }
        Action::Pending { upstream, certain } => json!({
            "stage": stage, "verdict": verb, "waits_for": upstream, "why": certain,
            "places": certain.as_ref().map(places)
        }),
        Action::Cached(entry) => json!({
            "stage": stage, "verdict": verb, "outputs": entry.outputs, "adopted": entry.adopted
        }),
        Action::InvalidInput(error) => json!({ "stage": stage, "verdict": verb, "error": error }),
    }
}

/// Where adopted outputs are, as seen from the current folder.
fn places(adopted: &Adopted) -> String {
    adopted.paths.values().map(|path| short_path(path)).collect::<Vec<_>>().join(", ")
}

/// A reason, with the place of each changed value.
fn describe(reason: &Reason, node: &StageNode, sources: &Sources) -> String {
    let Reason::Changed { changes } = reason else { return reason.to_string() };
    let texts = changes.iter().map(|change| match place(node, &change.field, sources) {
        Some(place) => format!("{change} ({place})"),
        None => change.to_string(),
    });
    texts.collect::<Vec<_>>().join("; ")
}

fn words(verdict: &Action, node: &StageNode, sources: &Sources) -> (usize, &'static str, String) {
    match verdict {
        Action::Cached(entry) => match &entry.adopted {
            Some(adopted) => (0, "reuse", format!("adopted from {}", places(adopted))),
            None => (0, "reuse", made_in(entry.seconds)),
        },
        Action::Run(_, _, reason) => (RUNS, "run", describe(reason, node, sources)),
        Action::Pending { upstream, certain: None } => {
            (2, "run if", format!("{} changes its output", upstream.join(" or ")))
        }
        Action::Pending { upstream, certain: Some(reason) } => {
            (RUNS, "run", format!("{}, after {}", describe(reason, node, sources), upstream.join(", ")))
        }
        Action::InvalidInput(error) => (3, "fail", error.clone()),
    }
}
