//! `attrflow explain`: what counts for a stage, what changed, and where it is written.

use clap::Args as ClapArgs;

use super::failure::Failure;
use super::plan::format_estimate;
use super::project::{StageArgs, named};
use crate::progress::{Table, print, short_path, size};
use attrflow_engine::explain::{Explanation, Field, Input, explain as explained};
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

pub(super) fn explain(args: &Args, registry: &Registry) -> Result<(), Failure> {
    let project = args.of.open(registry)?;
    let stages = named(&args.of, &project)?;
    let planner = Planner::new(&project.pipeline, &project.store, &project.numerics, &[]);
    let found = explained(&planner, &project.graph, &stages, &project.sources)?;
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
    let Explanation { stage, kind, verdict, why, fields, unhashed, since, units, predicted } = explanation;
    let mut text = format!("{stage}, of the kind {kind}: {verdict}, {why}\n");
    let mut table = Table::new(&["", "counts", "value", "from"]);
    for Field { field, value, change, place, input, .. } in fields {
        let mark = if change.is_some() { "*" } else { "" };
        let from = place.as_ref().map(ToString::to_string).or(input.as_ref().map(described));
        let value = value.clone().unwrap_or_else(|| "known later".into());
        table.row([mark.to_owned(), field.clone(), value, from.unwrap_or_default()]);
    }
    text += &format!("\n{table}");
    let changed: Vec<&Field> = fields.iter().filter(|field| field.change.is_some()).collect();
    match since {
        Some((started, path)) => {
            let word = if changed.is_empty() { "nothing changed" } else { "changed" };
            text += &format!("\n{word} since the run of {started} ({})\n", short_path(path));
        }
        None => text += "\nno earlier run holds it\n",
    }
    for field in changed {
        text += &change_of(field);
    }
    if !unhashed.is_empty() {
        text += "\ndoes not count\n";
        for (name, value) in unhashed {
            text += &format!("  {name}: {value}\n");
        }
    }
    if let Some(units) = units {
        text += &format!("\nunits: {} of {} are cached\n", units.cached, units.total);
    }
    if let Some(predicted) = predicted {
        text += &format!("\ntakes {}, by {}\n", format_estimate(predicted), predicted.basis);
    }
    text.push('\n');
    text
}

/// What an input reads, with what is known of a source.
fn described(input: &Input) -> String {
    let mut text = short_path(std::path::Path::new(&input.reads));
    let bytes = input.bytes.map(size);
    let written = input.written.as_ref().map(|time| format!("written {time}"));
    let more: Vec<String> = bytes.into_iter().chain(written).collect();
    if !more.is_empty() {
        text += &format!(" ({})", more.join(", "));
    }
    text
}

fn change_of(field: &Field) -> String {
    let mut text = field.change.as_ref().map(|change| format!("  {change}\n")).unwrap_or_default();
    if let Some(place) = &field.place {
        let blame = field.blame.as_ref().map(|blame| format!(", {blame}")).unwrap_or_default();
        text += &format!("      {place}{blame}\n");
    }
    if let Some(input) = &field.input {
        text += &format!("      reads {}\n", described(input));
        for (word, files) in input.files.iter().flat_map(attrflow_engine::explain::FileChanges::lists) {
            const SHOWN: usize = 8;
            let more = files.len().saturating_sub(SHOWN);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            text += &format!("      {word}: {}{more}\n", files[..files.len().min(SHOWN)].join(", "));
        }
    }
    text
}
