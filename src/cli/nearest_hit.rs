//! `attrflow explain --nearest-hit`: the smallest edit after which a stage's result would be found in the cache.

use serde_json::json;

use super::failure::Failure;
use super::project::Project;
use crate::progress::{duration, print};
use attrflow_engine::explain::{Edit, NearestHit, cached_entries, nearest};
use attrflow_engine::plan::Planner;

/// Prints the nearest cached result of each of these stages.
pub(super) fn nearest_hit(project: &Project, stages: &[usize], as_json: bool) -> Result<(), Failure> {
    let planner = Planner::new(&project.pipeline, &project.store, &project.numerics, &[]);
    let cached = cached_entries(&planner.all(&project.graph)?);
    for &index in stages {
        let stage = &project.pipeline.stages[index];
        let hit = cached.contains_key(&index);
        let near = if hit { None } else { nearest(&planner, index, &cached, &project.sources)? };
        if as_json {
            print(&format!("{}\n", json!({ "stage": stage.id, "cached": hit, "nearest": near })));
            continue;
        }
        print(&match near {
            _ if hit => format!("{}: cached\n", stage.id),
            None => format!("{}: the cache has no result of the kind {}\n", stage.id, stage.kind().name),
            Some(near) => describe(&stage.id, &near),
        });
    }
    Ok(())
}

fn describe(stage: &str, near: &NearestHit) -> String {
    let count = near.edits.len();
    let mut text = format!(
        "{stage}: {count} edit{} from a result computed at {} UTC in {}\n",
        if count == 1 { "" } else { "s" },
        near.computed,
        duration(near.seconds),
    );
    for edit in &near.edits {
        text += &format!("  {edit}\n");
    }
    // Edits that `--set` can make can be tried without changing a file.
    let sets: Option<Vec<String>> = near.edits.iter().map(set).collect();
    if let Some(sets) = sets.filter(|sets| !sets.is_empty()) {
        text += &format!("  for one run: {}\n", sets.join(" "));
    }
    text
}

/// The edit as an argument; `None` where `--set` cannot make it.
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
