//! `attrflow status`: what stands, and where.

use std::collections::BTreeSet;

use clap::Args as ClapArgs;
use serde_json::json;

use super::failure::Failure;
use super::project::ProjectArgs;
use crate::progress::{Table, print, short_path, size};
use attrflow_engine::kind::Registry;
use attrflow_engine::plan::{Action, Planner, Reason};
use attrflow_engine::provenance::manifest::{self, Outcome};

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    #[command(flatten)]
    project: ProjectArgs,
    /// Write one line of JSON per stage
    #[arg(long)]
    json: bool,
}

/// What the states mean that do not say it themselves.
const LEGEND: [(&str, &str); 7] = [
    (
        "unfinished",
        "the last run was stopped before it was done; a run goes on from the units that are there",
    ),
    ("out of date", "something that counts changed since its last run; `attrflow explain` says what"),
    ("removed", "the result of its last run is no longer in the cache"),
    ("failed", "it failed in the last run, and nothing that counts changed since"),
    (
        "changed outside",
        "its result is not what it was: an adopted file, or a file of the cache, is gone or changed; a run computes it",
    ),
    (
        "waits",
        "it reads a stage that is not up to date, and is reused if that gives the same bytes as before",
    ),
    ("cannot run", "one of its inputs cannot be read; `attrflow plan` says which"),
];

pub(super) fn status(args: &Args, registry: &Registry) -> Result<(), Failure> {
    let project = args.project.open(registry)?;
    let planner = Planner::new(&project.pipeline, &project.store, &project.numerics, &[]);
    let verdicts = planner.all(&project.graph)?;
    project.store.try_flush()?;
    let mut table = Table::new(&["stage", "state", "size", "made in", "results"]);
    let mut states = BTreeSet::new();
    let interrupted = |stage: &str| {
        planner.history().last(stage).is_some_and(|last| last.record.outcome == Outcome::Interrupted)
    };
    for (index, verdict) in &verdicts {
        let stage = &project.pipeline.stages[*index];
        let folder = project.results.join(stage.folder());
        let (state, entry) = match verdict {
            Action::Cached(entry) if entry.adopted.is_some() => ("adopted", Some(entry)),
            Action::Cached(entry) => ("up to date", Some(entry)),
            Action::Run(_, _, Reason::First) => ("never run", None),
            Action::Run(_, _, Reason::Failed { .. }) => ("failed", None),
            Action::Run(_, _, Reason::Missing) if interrupted(&stage.id) => ("unfinished", None),
            Action::Run(_, _, Reason::Missing) => ("removed", None),
            Action::Run(_, _, Reason::Modified { .. }) => ("changed outside", None),
            Action::Run(..) => ("out of date", None),
            Action::Pending { certain: None, .. } => ("waits", None),
            Action::Pending { certain: Some(Reason::First), .. } => ("never run", None),
            Action::Pending { .. } => ("out of date", None),
            Action::InvalidInput(_) => ("cannot run", None),
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
        table.row([stage.id.clone(), state.to_owned(), bytes.map(size).unwrap_or_default(), seconds, shown]);
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
