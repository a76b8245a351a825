//! `attrflow graph`: a drawing of a pipeline, with the state of each stage and the effect of a change.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use clap::{Args as ClapArgs, ValueEnum};

use super::failure::Failure;
use super::project::{Project, ProjectArgs};
use crate::progress::drawing::{self, Drawing, GraphNode, State};
use crate::progress::print_colored;
use attrflow_engine::kind::Registry;
use attrflow_engine::pipeline::{self, Pipeline, Source, StageNode};
use attrflow_engine::plan::graph;
use attrflow_engine::plan::{Action, Planner};
use attrflow_engine::provenance::manifest::{self, Outcome};

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    attrflow graph pipelines/demo.toml --touch fisher\n  \
    attrflow graph pipelines/mscoco.toml --set loss.time_samples=5 --format svg")]
pub(super) struct Args {
    #[command(flatten)]
    project: ProjectArgs,
    /// The output format
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
    /// Mark this stage and all stages downstream of it (repeatable); --set marks those that it changes
    #[arg(long, value_name = "STAGE")]
    touch: Vec<String>,
    /// Draw each item of a repeated stage
    #[arg(long)]
    full: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// A list with lanes, for a terminal
    Text,
    /// For Graphviz
    Dot,
    /// For Mermaid, in Markdown pages
    Mermaid,
    /// An image
    Svg,
}

pub(super) fn graph(args: &Args, registry: &Registry) -> Result<(), Failure> {
    let project = args.project.open(registry)?;
    let mut changed: BTreeSet<usize> =
        graph::named(&args.touch, &project.pipeline).map_err(Failure::Usage)?.into_iter().collect();
    let sets = &args.project.settings.sets;
    // Without `--set` the pipeline may have an error; there is then nothing to compare with.
    if !sets.is_empty()
        && let Ok((before, _)) = pipeline::load(&args.project.pipeline, &[], registry)
    {
        changed.extend(changed_stages(&before, &project.pipeline));
    }
    let change = !sets.is_empty() || !args.touch.is_empty();
    let drawing = draw(&project, &downstream(&project, changed), change, args.full)?;
    let color = super::colored(&std::io::stdout());
    print_colored(&match args.format {
        Format::Text => drawing::text(&drawing, color),
        Format::Dot => drawing::dot(&drawing),
        Format::Mermaid => drawing::mermaid(&drawing),
        Format::Svg => drawing::svg(&drawing),
    });
    Ok(())
}

/// The stages that differ from those of another version of the pipeline.
fn changed_stages(before: &Pipeline, after: &Pipeline) -> Vec<usize> {
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

/// These stages and all stages that depend on them.
fn downstream(project: &Project, changed: BTreeSet<usize>) -> BTreeSet<usize> {
    let mut touched = changed;
    for &index in project.graph.order() {
        if touched.contains(&index) {
            touched.extend(project.graph.dependents(index));
        }
    }
    touched
}

/// The selected stages with their states; the items of a repeated stage are one box unless `full`.
fn draw(project: &Project, touched: &BTreeSet<usize>, change: bool, full: bool) -> Result<Drawing, Failure> {
    let planner = Planner::new(&project.pipeline, &project.store, &project.numerics, &[]);
    let actions = planner.all(&project.graph)?;
    project.store.try_flush()?;
    let last = manifest::list(&project.store.runs(&project.pipeline.name));
    let last = last.first().and_then(|path| manifest::read(path).ok());
    let failed = last.iter().flat_map(|run| &run.stages).filter(|record| record.outcome == Outcome::Failed);
    let failed: BTreeSet<&str> = failed.map(|record| record.stage.as_str()).collect();

    let mut drawing = Drawing { name: project.pipeline.name.clone(), change, ..Drawing::default() };
    let mut boxes: HashMap<&str, usize> = HashMap::new();
    let mut place = HashMap::new();
    for (index, action) in &actions {
        let stage = &project.pipeline.stages[*index];
        let name = if full { &stage.id } else { &stage.base };
        let number = *boxes.entry(name.as_str()).or_insert_with(|| {
            let (name, kind) = (name.clone(), stage.kind().name.to_owned());
            drawing.nodes.push(GraphNode { name, kind, counts: [0; State::ALL.len()], touched: 0 });
            drawing.nodes.len() - 1
        });
        let state = match action {
            Action::Cached(_) => State::Cached,
            Action::InvalidInput(_) => State::InvalidInput,
            _ if failed.contains(stage.id.as_str()) => State::Failed,
            Action::Pending { certain: None, .. } => State::Pending,
            Action::Run(..) | Action::Pending { .. } => State::Run,
        };
        let column = State::ALL.iter().position(|known| *known == state).unwrap_or_default();
        drawing.nodes[number].counts[column] += 1;
        drawing.nodes[number].touched += usize::from(touched.contains(index));
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
