//! `attrflow cache ls`: the results in the cache.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use clap::{Args as ClapArgs, ValueEnum};
use jiff::Timestamp;
use serde_json::json;

use super::when;
use crate::cli::failure::Failure;
use crate::io::words::count;
use crate::progress::{Table, duration, print};
use attrflow_engine::config::text::suggestion;
use attrflow_engine::identity::digest::Digest;
use attrflow_engine::maintenance::{Inventory, Item, Pin, Space};
use attrflow_engine::store::{Store, format_bytes};

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    attrflow cache ls --sort size\n  \
    attrflow cache ls --pipeline demo --kind generate --units")]
pub(super) struct Args {
    /// Only results of this pipeline
    #[arg(long, value_name = "NAME")]
    pipeline: Option<String>,
    /// Only results of this stage; the name of a repeated stage selects all its items
    #[arg(long, value_name = "NAME")]
    stage: Option<String>,
    /// Only results of this stage kind
    #[arg(long)]
    kind: Option<String>,
    /// How to sort the rows
    #[arg(long, value_enum, default_value_t = Sort::Name)]
    sort: Sort,
    /// List each unit, not only the number of units of a stage
    #[arg(long)]
    units: bool,
    /// Write a line of JSON per result and unit
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Sort {
    /// By pipeline and stage, then last used first
    Name,
    /// Largest first
    Size,
    /// Last used first
    Used,
    /// Longest rebuild time first
    Rebuild,
}

/// Results and units with their fingerprints.
type Selected<'a> = Vec<(&'a Digest, &'a Item)>;

/// A line of the table.
struct Row<'a> {
    name: String,
    kind: &'a str,
    what: String,
    space: Space,
    used: Timestamp,
    seconds: f64,
    pins: Vec<&'a Pin>,
    fingerprint: Option<Digest>,
}

pub(super) fn ls(args: &Args, store: &Store) -> Result<(), Failure> {
    let inventory = Inventory::of(store)?;
    args.known(&inventory)?;
    let selected: Selected<'_> = inventory.items.iter().filter(|(_, item)| args.shows(item)).collect();
    if args.json {
        for (fingerprint, item) in &selected {
            line(&inventory, fingerprint, item);
        }
        return Ok(());
    }
    let mut rows = rows(&inventory, &selected, args.units);
    match args.sort {
        Sort::Name => rows.sort_by(|a, b| (&a.name, Reverse(a.used)).cmp(&(&b.name, Reverse(b.used)))),
        Sort::Size => rows.sort_by_key(|row| Reverse(row.space.disk)),
        Sort::Used => rows.sort_by_key(|row| Reverse(row.used)),
        Sort::Rebuild => rows.sort_by(|a, b| b.seconds.total_cmp(&a.seconds)),
    }
    let headings =
        ["stage", "kind", "item", "on disk", "last used (UTC)", "rebuild time", "result", "pinned"];
    let mut table = Table::new(&headings);
    for row in &rows {
        table.row([
            row.name.clone(),
            row.kind.to_owned(),
            row.what.clone(),
            format_bytes(row.space.disk),
            when(row.used),
            duration(row.seconds),
            row.fingerprint.map(|found| found.short()).unwrap_or_default(),
            row.pins.iter().map(|pin| describe(pin)).collect::<Vec<_>>().join("; "),
        ]);
    }
    print(&table.to_string());
    let mut counted = BTreeSet::new();
    let mut total = Space::default();
    selected.iter().for_each(|(_, item)| total += inventory.space(item, &mut counted));
    let results = selected.iter().filter(|(_, item)| !item.is_unit()).count();
    print(&format!(
        "\n{} and {}, {} on disk\n",
        count(results, "result", "results"),
        count(selected.len() - results, "unit", "units"),
        format_bytes(total.disk)
    ));
    // Pins of objects have no row.
    for pin in inventory.pins.iter().filter(|pin| pin.results.is_empty()) {
        print(&format!("pinned {}: {}\n", pin.what, describe(pin)));
    }
    for (path, reason) in &inventory.damaged {
        tracing::warn!("{} is damaged: {reason}; `attrflow cache verify` quarantines it", path.display());
    }
    Ok(())
}

impl Args {
    /// Refuses names that no result has.
    fn known(&self, inventory: &Inventory) -> Result<(), Failure> {
        let names = || inventory.items.values().filter_map(|item| item.name.as_ref());
        let stages =
            names().flat_map(|name| [name.stage.as_str(), name.stage.split('[').next().unwrap_or_default()]);
        let kinds = inventory.items.values().map(|item| item.entry.recipe.kind.as_str());
        expect("pipeline", self.pipeline.as_deref(), names().map(|name| name.pipeline.as_str()))?;
        expect("stage", self.stage.as_deref(), stages)?;
        expect("kind", self.kind.as_deref(), kinds)
    }

    fn shows(&self, item: &Item) -> bool {
        let is = |wanted: &Option<String>, found: Option<&str>| {
            wanted.as_ref().is_none_or(|wanted| found == Some(wanted))
        };
        let stage = item.name.as_ref().map(|name| name.stage.as_str());
        let base = stage.and_then(|stage| stage.split('[').next());
        is(&self.pipeline, item.name.as_ref().map(|name| name.pipeline.as_str()))
            && (is(&self.stage, stage) || is(&self.stage, base))
            && is(&self.kind, Some(&item.entry.recipe.kind))
    }
}

/// Refuses a name that is none of those in the cache.
fn expect<'n>(what: &str, wanted: Option<&str>, names: impl Iterator<Item = &'n str>) -> Result<(), Failure> {
    let names: BTreeSet<&str> = names.collect();
    let Some(wanted) = wanted.filter(|wanted| !names.contains(wanted)) else { return Ok(()) };
    let hint = suggestion(wanted, names).unwrap_or_else(|| "the cache has no results".to_owned());
    Err(Failure::Usage(format!("no {what} named `{wanted}` in the cache: {hint}")))
}

/// A pin's id and note.
fn describe(pin: &Pin) -> String {
    let note = if pin.note.is_empty() { String::new() } else { format!(" ({})", pin.note) };
    format!("{}{note}", pin.id())
}

/// A row for each result, and one for the units of each stage or each unit.
fn rows<'a>(inventory: &'a Inventory, selected: &[(&'a Digest, &'a Item)], each: bool) -> Vec<Row<'a>> {
    let mut rows = Vec::new();
    let mut groups: BTreeMap<(Option<Digest>, String), Selected<'_>> = BTreeMap::new();
    for (fingerprint, item) in selected {
        let name = item.name.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
        if item.is_unit() && !each {
            groups.entry((item.stages.last().copied(), name)).or_default().push((fingerprint, item));
            continue;
        }
        let what = match (&item.entry.adopted, item.is_unit(), inventory.exists(fingerprint)) {
            (_, _, false) => "incomplete",
            (Some(_), ..) => "adopted",
            (None, true, _) => "unit",
            (None, false, _) => "result",
        };
        rows.push(Row {
            name,
            kind: &item.entry.recipe.kind,
            what: what.to_owned(),
            space: inventory.space(item, &mut BTreeSet::new()),
            used: item.used,
            seconds: item.entry.seconds,
            pins: inventory.pinned(fingerprint).collect(),
            fingerprint: Some(**fingerprint),
        });
    }
    for ((stage, name), units) in groups {
        let mut counted = BTreeSet::new();
        let mut space = Space::default();
        units.iter().for_each(|(_, item)| space += inventory.space(item, &mut counted));
        let joined = stage.is_some_and(|stage| inventory.exists(&stage));
        let of = if joined { "" } else { ", partial" };
        let mut pins: Vec<&Pin> = units.iter().flat_map(|(found, _)| inventory.pinned(found)).collect();
        pins.dedup();
        rows.push(Row {
            name,
            kind: &units[0].1.entry.recipe.kind,
            what: format!("{}{of}", count(units.len(), "unit", "units")),
            space,
            used: units.iter().map(|(_, item)| item.used).max().unwrap_or_default(),
            seconds: units.iter().map(|(_, item)| item.entry.seconds).sum(),
            pins,
            fingerprint: None,
        });
    }
    rows
}

fn line(inventory: &Inventory, fingerprint: &Digest, item: &Item) {
    let space = inventory.space(item, &mut BTreeSet::new());
    let pins: Vec<String> = inventory.pinned(fingerprint).map(Pin::id).collect();
    let line = json!({
        "fingerprint": fingerprint, "pipeline": item.name.as_ref().map(|name| &name.pipeline),
        "stage": item.name.as_ref().map(|name| &name.stage), "kind": item.entry.recipe.kind,
        "unit": item.entry.recipe.unit, "bytes": space.bytes, "disk": space.disk, "used": item.used.to_string(),
        "seconds": item.entry.seconds, "adopted": item.entry.adopted, "outputs": item.entry.outputs,
        "whole": inventory.exists(fingerprint), "pins": pins,
    });
    print(&format!("{line}\n"));
}
