//! `attrflow status`: the state of each stage, and where its results are.

use std::collections::BTreeSet;

use clap::Args as ClapArgs;
use serde_json::json;

use super::failure::Failure;
use super::project::ProjectArgs;
use crate::progress::{Table, print, short_path};
use attrflow_engine::kind::Registry;
use attrflow_engine::plan::{Action, Planner, Reason};
use attrflow_engine::provenance::manifest::{self, Outcome};
use attrflow_engine::store::format_bytes;

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    attrflow status pipelines/demo.toml\n  \
    attrflow status pipelines/mscoco.toml --target influence --json")]
pub(super) struct Args {
    #[command(flatten)]
    project: ProjectArgs,
    /// Write one line of JSON per stage
    #[arg(long)]
    json: bool,
}

/// The states that need an explanation.
const LEGEND: [(&str, &str); 7] = [
    ("partial", "the last run was stopped early; the next run resumes from the finished units"),
    ("out of date", "something hashed changed since its last run; see `attrflow explain`"),
    ("not cached", "the result of its last run is no longer in the cache"),
    ("failed", "it failed in the last run, and nothing hashed has changed since"),
    ("modified", "the cached or adopted result is missing or was modified; the next run recomputes it"),
    ("pending", "a stage that it depends on must run first; reused if its inputs come out byte-identical"),
    ("invalid input", "an input cannot be read; see `attrflow plan`"),
];

pub(super) fn status(args: &Args, registry: &Registry) -> Result<(), Failure> {
    let project = args.project.open(registry)?;
    let planner = Planner::new(&project.pipeline, &project.store, &project.numerics, &[]);
    let actions = planner.all(&project.graph)?;
    project.store.try_flush()?;
    let mut table = Table::new(&["stage", "state", "size", "computed in", "results"]);
    let mut states = BTreeSet::new();
    let interrupted = |stage: &str| {
        planner.history().last(stage).is_some_and(|last| last.record.outcome == Outcome::Interrupted)
    };
    for (index, action) in &actions {
        let stage = &project.pipeline.stages[*index];
        let folder = project.results.join(stage.folder());
        let (state, entry) = match action {
            Action::Cached(entry) if entry.adopted.is_some() => ("adopted", Some(entry)),
            Action::Cached(entry) => ("cached", Some(entry)),
            Action::Run(_, _, Reason::First) => ("never run", None),
            Action::Run(_, _, Reason::Failed { .. }) => ("failed", None),
            Action::Run(_, _, Reason::Missing) if interrupted(&stage.id) => ("partial", None),
            Action::Run(_, _, Reason::Missing) => ("not cached", None),
            Action::Run(_, _, Reason::Modified { .. }) => ("modified", None),
            Action::Run(..) => ("out of date", None),
            Action::Pending { certain: None, .. } => ("pending", None),
            Action::Pending { certain: Some(Reason::First), .. } => ("never run", None),
            Action::Pending { .. } => ("out of date", None),
            Action::InvalidInput(_) => ("invalid input", None),
        };
        states.insert(state);
        let bytes = entry.map(|entry| entry.outputs.values().map(|artifact| artifact.size).sum::<u64>());
        if args.json {
            let seconds = entry.map(|entry| entry.seconds);
            let adopted = entry.and_then(|entry| entry.adopted.as_ref());
            print(&format!(
                "{}\n",
                json!({
                    "stage": stage.id, "state": state, "bytes": bytes, "seconds": seconds,
                    "results": folder, "adopted": adopted
                })
            ));
        }
        let shown = entry.filter(|_| folder.exists()).map(|_| short_path(&folder)).unwrap_or_default();
        let computed = entry.filter(|entry| entry.adopted.is_none());
        let seconds = computed.map(|entry| format!("{:.1} s", entry.seconds)).unwrap_or_default();
        table.row([
            stage.id.clone(),
            state.to_owned(),
            bytes.map(format_bytes).unwrap_or_default(),
            seconds,
            shown,
        ]);
    }
    if !args.json {
        print(&table.to_string());
        let legend: Vec<String> = LEGEND
            .iter()
            .filter(|(state, _)| states.contains(state))
            .map(|(state, means)| format!("{state}: {means}\n"))
            .collect();
        if !legend.is_empty() {
            print(&format!("\n{}", legend.concat()));
        }
        match manifest::list(&project.store.runs(&project.pipeline.name)).first() {
            Some(last) => print(&format!("\nlast run: {}\n", short_path(last))),
            None => print("\nnever run\n"),
        }
    }
    Ok(())
}
