//! `attrflow why-not`: the smallest edit after which nothing of a stage would be computed.

use clap::Args as ClapArgs;
use serde_json::json;

use super::failure::Failure;
use super::project::{StageArgs, named};
use crate::progress::{duration, print};
use attrflow_engine::explain::{Edit, NearestHit, cached_entries, nearest};
use attrflow_engine::kind::Registry;
use attrflow_engine::plan::Planner;

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    #[command(flatten)]
    of: StageArgs,
    /// Write one line of JSON per stage
    #[arg(long)]
    json: bool,
}

pub(super) fn why_not(args: &Args, registry: &Registry) -> Result<(), Failure> {
    let project = args.of.open(registry)?;
    let planner = Planner::new(&project.pipeline, &project.store, &project.numerics, &[]);
    let done = cached_entries(&planner.all(&project.graph)?);
    for index in named(&args.of, &project)? {
        let stage = &project.pipeline.stages[index];
        let hit = done.contains_key(&index);
        let near = if hit { None } else { nearest(&planner, index, &done, &project.sources)? };
        if args.json {
            print(&format!("{}\n", json!({ "stage": stage.id, "cached": hit, "nearest": near })));
            continue;
        }
        print(&match near {
            _ if hit => format!("{}: its result is in the cache already\n", stage.id),
            None => format!("{}: the cache has no result of the kind {}\n", stage.id, stage.kind().name),
            Some(near) => describe(&stage.id, &near),
        });
    }
    Ok(())
}

fn describe(stage: &str, near: &NearestHit) -> String {
    let count = near.edits.len();
    let mut text = format!(
        "{stage}: {count} edit{} from a result of {} UTC that took {} of computing\n",
        if count == 1 { "" } else { "s" },
        near.computed,
        duration(near.seconds),
    );
    for edit in &near.edits {
        text += &format!("  {edit}\n");
    }
    // What `--set` can do is tried without an edit.
    let sets: Option<Vec<String>> = near.edits.iter().map(set).collect();
    if let Some(sets) = sets.filter(|sets| !sets.is_empty()) {
        text += &format!("  for one run: {}\n", sets.join(" "));
    }
    text
}

/// The edit as an argument; `None` where that can't be.
fn set(edit: &Edit) -> Option<String> {
    match edit {
        Edit::Param { key: Some(key), change, .. } => {
            let value = change.new.as_ref()?;
            let plain = |c: char| c.is_ascii_alphanumeric() || "._-+".contains(c);
            let quoted = if value.chars().all(plain) {
                value.clone()
            } else {
                format!("'{}'", value.replace('\'', "'\\''"))
            };
            Some(format!("--set {key}={quoted}"))
        }
        _ => None,
    }
}
