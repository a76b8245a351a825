//! `attrflow graph`: a pipeline drawn, with the state of each stage and what a change would touch.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::IsTerminal;

use clap::{Args as ClapArgs, ValueEnum};

use super::failure::Failure;
use super::project::{Project, ProjectArgs};
use crate::progress::drawing::{self, Drawing, GraphNode, State};
use crate::progress::print;
use attrflow_engine::kind::Registry;
use attrflow_engine::pipeline::{self, Pipeline, Source, StageNode};
use attrflow_engine::plan::graph;
use attrflow_engine::plan::{Action, Planner};
use attrflow_engine::provenance::manifest::{self, Outcome};

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    #[command(flatten)]
    project: ProjectArgs,
    /// How to write it
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
    /// Mark what a change of this stage would touch (repeatable); --set marks what it changes
    #[arg(long, value_name = "STAGE")]
    touch: Vec<String>,
    /// Draw each item of a repeated stage
    #[arg(long)]
    full: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// Lanes beside a list, for a terminal
    Text,
    /// For Graphviz
    Dot,
    /// For Mermaid, as Markdown pages show it
    Mermaid,
    /// A picture
    Svg,
}

pub(super) fn graph(args: &Args, registry: &Registry) -> Result<(), Failure> {
    let project = args.project.open(registry)?;
    let mut changed: BTreeSet<usize> =
        graph::named(&args.touch, &project.pipeline).map_err(Failure::Usage)?.into_iter().collect();
    let sets = &args.project.settings.sets;
    // What the file itself says may have a fault that `--set` mends; there is then nothing to compare with.
    if !sets.is_empty()
        && let Ok((before, _)) = pipeline::load(&args.project.pipeline, &[], registry)
    {
        changed.extend(differing(&before, &project.pipeline));
    }
    let change = !sets.is_empty() || !args.touch.is_empty();
    let drawing = draw(&project, &downstream(&project, changed), change, args.full)?;
    let color =
        std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|no| no.is_empty());
    print(&match args.format {
        Format::Text => drawing::text(&drawing, color),
        Format::Dot => drawing::dot(&drawing),
        Format::Mermaid => drawing::mermaid(&drawing),
        Format::Svg => drawing::svg(&drawing),
    });
    Ok(())
}

/// The stages that are not the same in another reading of the pipeline.
fn differing(before: &Pipeline, after: &Pipeline) -> Vec<usize> {
    let old: HashMap<&str, &StageNode> =
        before.stages.iter().map(|stage| (stage.id.as_str(), stage)).collect();
    let place = |pipeline: &Pipeline, source: &Source| match source {
        Source::File(path) => (path.display().to_string(), String::new(), None),
        Source::Port { stage, port, sub, .. } => {
            (pipeline.stages[*stage].id.clone(), port.clone(), sub.clone())
        }
    };
    let inputs = |pipeline: &Pipeline, stage: &StageNode| -> BTreeMap<String, _> {
        stage.inputs.iter().map(|(port, source)| (port.clone(), place(pipeline, source))).collect()
    };
    let same = |stage: &StageNode| {
        old.get(stage.id.as_str()).is_some_and(|old| {
            old.kind().name == stage.kind().name
                && old.stage.identity() == stage.stage.identity()
                && inputs(before, old) == inputs(after, stage)
        })
    };
    (0..after.stages.len()).filter(|index| !same(&after.stages[*index])).collect()
}

/// These stages and all that read them, directly or not.
fn downstream(project: &Project, changed: BTreeSet<usize>) -> BTreeSet<usize> {
    let mut touched = changed;
    for &index in project.graph.order() {
        if touched.contains(&index) {
            touched.extend(project.graph.dependents(index));
        }
    }
    touched
}

/// The selected stages with their states, repeated ones together unless `full`.
fn draw(project: &Project, touched: &BTreeSet<usize>, change: bool, full: bool) -> Result<Drawing, Failure> {
    let planner = Planner::new(&project.pipeline, &project.store, &project.numerics, &[]);
    let verdicts = planner.all(&project.graph)?;
    project.store.save_stat()?;
    let last = manifest::list(&project.store.runs(&project.pipeline.name));
    let last = last.first().and_then(|path| manifest::read(path).ok());
    let failed = last.iter().flat_map(|run| &run.stages).filter(|record| record.outcome == Outcome::Failed);
    let failed: BTreeSet<&str> = failed.map(|record| record.stage.as_str()).collect();

    let mut drawing = Drawing { name: project.pipeline.name.clone(), change, ..Drawing::default() };
    let mut boxes: HashMap<&str, usize> = HashMap::new();
    let mut place = HashMap::new();
    for (index, verdict) in &verdicts {
        let stage = &project.pipeline.stages[*index];
        let name = if full { &stage.id } else { &stage.base };
        let number = *boxes.entry(name.as_str()).or_insert_with(|| {
            let (name, kind) = (name.clone(), stage.kind().name.to_owned());
            drawing.vertices.push(GraphNode { name, kind, counts: [0; 4], touched: 0 });
            drawing.vertices.len() - 1
        });
        let state = match verdict {
            Action::Cached(_) => State::Reuse,
            Action::InvalidInput(_) => State::Failed,
            _ if failed.contains(stage.id.as_str()) => State::Failed,
            Action::Pending { certain: None, .. } => State::Wait,
            Action::Run(..) | Action::Pending { .. } => State::Run,
        };
        let column = State::ALL.iter().position(|known| *known == state).unwrap_or_default();
        drawing.vertices[number].counts[column] += 1;
        drawing.vertices[number].touched += usize::from(touched.contains(index));
        place.insert(*index, number);
        for source in stage.inputs.values() {
            if let Source::Port { stage: from, .. } = source
                && let Some(from) = place.get(from).filter(|from| **from != number)
            {
                drawing.edges.insert((*from, number));
            }
        }
    }
    Ok(drawing)
}
