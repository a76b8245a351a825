//! `attrflow explain`: everything that is hashed for a stage, what changed, and where.

use clap::Args as ClapArgs;

use super::failure::Failure;
use super::measure::profile;
use super::nearest_hit::nearest_hit;
use super::plan::format_estimate;
use super::project::{StageArgs, named};
use super::run_args::RunArgs;
use crate::progress::{Table, line, print, short_path};
use attrflow_engine::explain::{Explanation, Field, Input, explain as explained};
use attrflow_engine::kind::Registry;
use attrflow_engine::plan::Planner;
use attrflow_engine::store::format_bytes;

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    attrflow explain pipelines/demo.toml influence[apple]\n  \
    attrflow explain pipelines/demo.toml fisher --nearest-hit --set fisher.epochs=2")]
pub(super) struct Args {
    #[command(flatten)]
    of: StageArgs,
    /// Instead show the smallest edit after which the stage's result would be found in the cache
    #[arg(long)]
    nearest_hit: bool,
    /// Write one line of JSON per stage
    #[arg(long)]
    json: bool,
}

pub(super) fn explain(args: &Args, registry: &Registry) -> Result<(), Failure> {
    let project = args.of.open(registry)?;
    let stages = named(&args.of, &project)?;
    if args.nearest_hit {
        return nearest_hit(&project, &stages, args.json);
    }
    let planner = Planner::new(&project.pipeline, &project.store, &project.numerics, &[]);
    let how = RunArgs::default();
    let profile = profile(&project, &how.conditions(&project.pipeline.run, &project.devices), &how);
    let found = explained(&planner, &project.graph, &stages, &project.sources, &profile)?;
    let mut text = String::new();
    for explanation in &found {
        if args.json {
            text += &serde_json::to_string(explanation).expect("an explanation is plain data");
            text.push('\n');
        } else {
            text += &describe(explanation);
        }
    }
    print(&text);
    Ok(())
}

fn describe(explanation: &Explanation) -> String {
    let Explanation { stage, kind, action, why, fields, unhashed, since, units, predicted } = explanation;
    let mut text = line(&format!("{stage} (kind {kind}): {action}, {why}"));
    let mut table = Table::new(&["", "hashed", "value", "from"]);
    for Field { field, value, change, place, input, .. } in fields {
        let mark = if change.is_some() { "*" } else { "" };
        let from = place.as_ref().map(ToString::to_string).or(input.as_ref().map(format_input));
        let value = value.clone().unwrap_or_else(|| "pending".into());
        table.row([mark.to_owned(), field.clone(), value, from.unwrap_or_default()]);
    }
    text += &format!("\n{table}");
    let changed: Vec<&Field> = fields.iter().filter(|field| field.change.is_some()).collect();
    match since {
        Some((started, path)) => {
            let word = if changed.is_empty() { "no change" } else { "changed" };
            text +=
                &format!("\n{}", line(&format!("{word} since the run of {started} ({})", short_path(path))));
        }
        None => text += "\nnot in any earlier run\n",
    }
    for field in changed {
        text += &format_change(field);
    }
    if !unhashed.is_empty() {
        text += "\nnot hashed\n";
        for (name, value) in unhashed {
            text += &format!("  {name}: {value}\n");
        }
    }
    if let Some(units) = units {
        text += &format!("\nunits: {} of {} are cached\n", units.cached, units.total);
    }
    if let Some(predicted) = predicted {
        let estimate = format!("estimate: {}, based on {}", format_estimate(predicted), predicted.basis);
        text += &format!("\n{}", line(&estimate));
    }
    text.push('\n');
    text
}

/// What an input reads, with the size of a source and the time of its last write.
fn format_input(input: &Input) -> String {
    let mut text = short_path(std::path::Path::new(&input.reads));
    let bytes = input.bytes.map(format_bytes);
    let written = input.written.as_ref().map(|time| format!("written {time}"));
    let more: Vec<String> = bytes.into_iter().chain(written).collect();
    if !more.is_empty() {
        text += &format!(" ({})", more.join(", "));
    }
    text
}

fn format_change(field: &Field) -> String {
    let mut text = field.change.as_ref().map(|change| format!("  {change}\n")).unwrap_or_default();
    if let Some(place) = &field.place {
        let blame = field.blame.as_ref().map(|blame| format!(", {blame}")).unwrap_or_default();
        text += &format!("      {place}{blame}\n");
    }
    if let Some(input) = &field.input {
        text += &format!("      reads {}\n", format_input(input));
        for (word, files) in input.files.iter().flat_map(attrflow_engine::explain::FileChanges::lists) {
            const SHOWN: usize = 8;
            let more = files.len().saturating_sub(SHOWN);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            text += &format!("      {word}: {}{more}\n", files[..files.len().min(SHOWN)].join(", "));
        }
    }
    text
}
