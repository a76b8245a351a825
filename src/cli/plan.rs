//! `attrflow plan`: what a run would do, why, and the time, memory and disk space it would need.

use std::collections::{BTreeMap, BTreeSet};

use clap::Args as ClapArgs;
use serde::Serialize;
use serde_json::{Value as Json, json};

use super::failure::Failure;
use super::measure::profile;
use super::noop;
use super::plan_rows::{self, Row, format_time};
use super::plan_screen::Screens;
use super::pool_totals::PoolTotals;
use super::project::{Project, ProjectArgs, backend};
use super::requirements::Requirements;
use super::run_args::RunArgs;
use crate::progress::{Table, duration, line as fitted_line, print, short_path};
use attrflow_engine::config::text::Sources;
use attrflow_engine::estimate::Forecast;
use attrflow_engine::exec::noop_cache::{NoopRun, Stage};
use attrflow_engine::explain::{Prediction, Predictor, place};
use attrflow_engine::kind::{Device, Registry};
use attrflow_engine::pipeline::StageNode;
use attrflow_engine::plan::graph;
use attrflow_engine::plan::{Action, Planner, Reason, first_of};
use attrflow_engine::provenance::manifest::Conditions;
use attrflow_engine::store::{Adopted, format_bytes};
use attrflow_engine::worker::Backend as _;
use attrflow_engine::worker::protocol::DeviceClass;

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    attrflow plan pipelines/demo.toml --measure\n  \
    attrflow plan pipelines/demo.toml --set loss.time_samples=5 --json")]
pub(super) struct Args {
    #[command(flatten)]
    project: ProjectArgs,
    /// Plan as if this stage were not cached (repeatable)
    #[arg(long, value_name = "STAGE")]
    force: Vec<String>,
    #[command(flatten)]
    how: RunArgs,
    /// First measure the stages that would run: load their networks and do a little of their work, with as many workers as a
    /// run would have. Later plans use the measurements
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
        show_cached(&run, args.json);
        return Ok(());
    }
    let project = args.project.open(registry)?;
    let forced = graph::named(&args.force, &project.pipeline).map_err(Failure::Usage)?;
    let shown = show(&project, &forced, &args.how, args.measure.then_some(log), args.json);
    // The process ends here: freeing a million small values would take a tenth of its time.
    let Project { pipeline, graph, sources, .. } = project;
    std::mem::forget((pipeline, graph, sources));
    shown
}

/// Prints the plan of a run that the no-op cache knows to be complete.
fn show_cached(run: &NoopRun, as_json: bool) {
    let mut table = Table::new(&plan_rows::HEADINGS);
    let mut text = String::new();
    for Stage { stage, seconds, outputs } in &run.stages {
        if as_json {
            let outputs: BTreeMap<_, _> =
                outputs.iter().map(|(port, shown)| (port, &shown.artifact)).collect();
            let line = json!({ "stage": stage, "action": CACHED, "outputs": outputs, "adopted": null });
            text += &format!("{line}\n");
        } else {
            let none = String::new;
            table.row([stage.clone(), CACHED.to_owned(), none(), none(), none(), computed_in(*seconds)]);
        }
    }
    let counts = [run.stages.len(), 0, 0, 0];
    match as_json {
        true => text += &totals_line(&[Total::default(), Total::default()], &Requirements::default(), counts),
        false => text += &format!("{table}{}", counted(counts)),
    }
    print(&text);
}

/// The action of a stage whose result is in the cache.
const CACHED: &str = "cached";

fn computed_in(seconds: f64) -> String {
    format!("computed in {seconds:.1} s")
}

/// The last line of a plan in JSON.
fn totals_line(
    totals: &[Total; 2],
    need: &Requirements,
    [cached, run, pending, invalid]: [usize; 4],
) -> String {
    let totals = json!({ "run": totals[0], "if_outputs_change": totals[1] });
    let counts = json!({ "run": run, "cached": cached, "pending": pending, "invalid_input": invalid });
    format!("{}\n", json!({ "totals": totals, "needs": need, "stages": counts }))
}

/// The last line of a plan for people.
fn counted([cached, run, pending, invalid]: [usize; 4]) -> String {
    let invalid = if invalid > 0 { format!(", {invalid} with invalid input") } else { String::new() };
    format!("\n{run} to run, {cached} cached, {pending} pending{invalid}\n")
}

/// Prints the action of every selected stage and its cost; if `measure` is the log filter of workers, measures first.
pub(super) fn show(
    project: &Project,
    forced: &[usize],
    how: &RunArgs,
    measure: Option<&str>,
    as_json: bool,
) -> Result<(), Failure> {
    let planner = Planner::new(&project.pipeline, &project.store, &project.numerics, forced);
    let actions = planner.all(&project.graph)?;
    project.store.try_flush()?;
    let conditions = how.conditions(&project.pipeline.run, &project.devices);
    let mut forecast = Forecast::new(&planner, &actions, &profile(project, &conditions, how));
    if let Some(log) = measure {
        super::measure::measure(project, &planner, &mut forecast, how, log)?;
    }
    let predictor = Predictor::new(&planner, &forecast);
    let mut need = Requirements::new(project, &conditions);
    let mut rows = Vec::new();
    let mut text = String::new();
    if project.devices.iter().any(|device| *device != Device::Cpu)
        && backend(Vec::new())?.device_class() == DeviceClass::Cpu
        && !as_json
        && project.cluster.is_none()
    {
        text += &fitted_line(
            "note: no GPU was found on this machine: `attrflow run` would end with an error here\n",
        );
    }
    let (mut pools, mut screens) = (PoolTotals::default(), Screens::default());
    let mut counts = [0; 4];
    let mut totals = [Total::default(), Total::default()];
    let mut bases: BTreeSet<String> = BTreeSet::new();
    for (index, action) in &actions {
        let node = &project.pipeline.stages[*index];
        let (column, word, reason) = words(action, node, &project.sources);
        counts[column] += 1;
        let predicted = predictor.predict(node, action)?;
        if let Some(predicted) = &predicted {
            totals[usize::from(column != RUNS)].add(predicted);
            if predicted.seconds.is_some() {
                bases.insert(predicted.basis.clone());
            }
            screens.add(*index, node, predicted);
            if let Some(pool) = forecast.pool(node.kind().name) {
                pools.add(pool, predicted.seconds);
            }
            if column == RUNS {
                need.add(*index, node, predicted, forecast.of(&node.id));
            }
        }
        if as_json {
            let mut line = line(action, node, word, &project.sources);
            if let Some(predicted) = &predicted {
                line["predicted"] = json!(predicted);
            }
            text += &format!("{line}\n");
        } else {
            rows.push(Row::of(node, word, predicted, reason));
        }
    }
    let [_, run, pending, invalid] = counts;
    need.finish();
    if as_json {
        text += &totals_line(&totals, &need, counts);
        text += &pools.lines();
        text += &screens.lines(&project.pipeline.stages, &forecast);
    } else {
        text += &plan_rows::table(&rows).to_string();
        text += &one_thread(&project.pipeline.stages, &actions, &conditions);
        text += &slow_bf16(&project.pipeline.stages, &actions, &conditions);
        if pending > 0 {
            text += "\npending: reused if its inputs come out byte-identical\n";
        }
        if run + pending > 0 {
            let mut sums = format!("\npredicted: {}", totals[0]);
            if pending > 0 {
                sums += &format!("\n  {}, if the pending stages run", totals[1].more());
            }
            sums += &need.describe();
            if let Some(first) = bases.first() {
                let others = bases.len() - 1;
                let others = if others > 0 { format!(" and {others} more") } else { String::new() };
                sums += &format!("\n  based on {first}{others}");
            }
            sums += &pools.describe();
            sums += &screens.describe(&project.pipeline.stages, &forecast);
            text += &fitted_line(&sums);
        }
        text += &counted(counts);
    }
    print(&text);
    if invalid > 0 { Err(Failure::Stages(invalid)) } else { Ok(()) }
}

/// That some stages take no notice of the number of threads.
fn one_thread(stages: &[StageNode], actions: &[(usize, Action)], conditions: &Conditions) -> String {
    let runs = |(index, action): &(usize, Action)| {
        let kind = stages[*index].kind();
        (kind.one_thread && !matches!(action, Action::Cached(_))).then_some(kind.name)
    };
    let kinds: BTreeSet<&str> = actions.iter().filter_map(runs).collect();
    if kinds.is_empty() || conditions.threads == 1 || conditions.devices.iter().any(|device| device != "cpu")
    {
        return String::new();
    }
    let kinds: Vec<String> = kinds.into_iter().map(|kind| format!("`{kind}`")).collect();
    fitted_line(&format!(
        "\nnote: {} computes on one thread, so that its bytes do not depend on --threads: use --jobs to compute on more cores",
        kinds.join(" and ")
    ))
}

/// That some stages are slower in bfloat16 than in float32 on a processor without units for it.
fn slow_bf16(stages: &[StageNode], actions: &[(usize, Action)], conditions: &Conditions) -> String {
    if conditions.devices.iter().any(|device| device != "cpu") {
        return String::new();
    }
    let runs = |(index, action): &(usize, Action)| {
        let node = &stages[*index];
        let computes = node.kind().libtorch && !matches!(action, Action::Cached(_));
        (computes && node.stage.to_json()["loss"]["precision"] == "bf16").then_some(node.id.as_str())
    };
    let stages: Vec<&str> = actions.iter().filter_map(runs).collect();
    let Some((first, others)) = stages.split_first() else { return String::new() };
    let cpu = fs_err::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let has_units = cpu
        .lines()
        .find(|line| line.starts_with("flags"))
        .is_none_or(|flags| flags.split_whitespace().any(|flag| ["amx_bf16", "avx512_bf16"].contains(&flag)));
    if has_units {
        return String::new();
    }
    let others = if others.is_empty() { String::new() } else { format!(" and {} more", others.len()) };
    fitted_line(&format!(
        "\nwarning: {first}{others}: `precision = \"bf16\"`, for which this processor has no units (AMX or AVX512-BF16): it is slower than \
         \"fp32\" here; a run says how many times"
    ))
}

/// The place in the counts of stages that certainly run.
const RUNS: usize = 1;

/// The cost of several stages together.
#[derive(Default, Serialize)]
struct Total {
    seconds: f64,
    bytes: u64,
    /// Stages without a prediction.
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

impl Total {
    fn known(&self) -> String {
        format!("{} of computing, {} of outputs", duration(self.seconds), format_bytes(self.bytes))
    }

    /// The cost on top of another.
    fn more(&self) -> String {
        match (self.known, self.unknown) {
            (0, 0) => "nothing more".into(),
            (0, _) => "more of unknown time (--measure)".into(),
            (_, 0) => format!("at most {} more", self.known()),
            (_, unknown) => format!("{} more and {} (--measure)", self.known(), of_unknown_time(unknown)),
        }
    }
}

fn of_unknown_time(stages: usize) -> String {
    format!("{stages} stage{} of unknown time", if stages == 1 { "" } else { "s" })
}

impl std::fmt::Display for Total {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.known, self.unknown) {
            (0, 0) => f.write_str("nothing"),
            (0, _) => f.write_str("unknown: measure it with --measure"),
            (_, 0) => f.write_str(&self.known()),
            (_, unknown) => write!(f, "{}, without {} (--measure)", self.known(), of_unknown_time(unknown)),
        }
    }
}

/// `3.2 s, 4 of 10 units, 1.20 MB of outputs`.
pub(super) fn format_estimate(predicted: &Prediction) -> String {
    match predicted.bytes {
        Some(bytes) => format!("{}, {} of outputs", format_time(predicted), format_bytes(bytes)),
        None => format_time(predicted),
    }
}

/// A stage's line in JSON.
fn line(action: &Action, node: &StageNode, word: &str, sources: &Sources) -> Json {
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
    match action {
        Action::Run(_, _, reason) => {
            json!({ "stage": stage, "action": word, "why": reason, "places": places(reason) })
        }
        Action::Pending { upstream, certain } => json!({
            "stage": stage, "action": word, "pending_on": upstream, "why": certain,
            "places": certain.as_ref().map(places)
        }),
        Action::Cached(entry) => json!({
            "stage": stage, "action": word, "outputs": entry.outputs, "adopted": entry.adopted
        }),
        Action::InvalidInput(error) => json!({ "stage": stage, "action": word, "error": error }),
    }
}

/// The paths of adopted outputs, relative to the current folder.
fn paths(adopted: &Adopted) -> String {
    adopted.paths.values().map(|path| short_path(path)).collect::<Vec<_>>().join(", ")
}

/// A reason, with the location of each changed value.
fn describe(reason: &Reason, node: &StageNode, sources: &Sources) -> String {
    let Reason::Changed { changes } = reason else { return reason.to_string() };
    let texts = changes.iter().map(|change| match place(node, &change.field, sources) {
        Some(place) => format!("{change} ({place})"),
        None => change.to_string(),
    });
    first_of(&texts.collect::<Vec<_>>(), "; ")
}

/// The place in the counts, the action in a word, and the reason.
fn words(action: &Action, node: &StageNode, sources: &Sources) -> (usize, &'static str, String) {
    match action {
        Action::Cached(entry) => match &entry.adopted {
            Some(adopted) => (0, CACHED, format!("adopted from {}", paths(adopted))),
            None => (0, CACHED, computed_in(entry.seconds)),
        },
        Action::Run(_, _, reason) => (RUNS, "run", describe(reason, node, sources)),
        Action::Pending { upstream, certain: None } => {
            (2, "pending", format!("only if {} changes", first_of(upstream, " or ")))
        }
        Action::Pending { upstream, certain: Some(reason) } => {
            (RUNS, "run", format!("{}, after {}", describe(reason, node, sources), first_of(upstream, ", ")))
        }
        Action::InvalidInput(error) => (3, "invalid input", error.clone()),
    }
}
