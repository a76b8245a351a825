//! `attrflow cache du`: the disk usage of the cache.

use std::collections::{BTreeMap, BTreeSet};

use clap::{Args as ClapArgs, ValueEnum};
use serde_json::json;

use crate::cli::failure::Failure;
use crate::progress::{Table, print};
use attrflow_engine::identity::digest::Digest;
use attrflow_engine::maintenance::{Inventory, Item, Space};
use attrflow_engine::store::{Store, format_bytes};

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    attrflow cache du\n  \
    attrflow cache du --by pipeline --json")]
pub(super) struct Args {
    /// How to group the rows
    #[arg(long, value_enum, default_value_t = By::Stage)]
    by: By,
    /// Write a line of JSON per row
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum By {
    /// Pipelines
    Pipeline,
    /// Stages
    Stage,
    /// Stage kinds
    Kind,
}

pub(super) fn du(args: &Args, store: &Store) -> Result<(), Failure> {
    let inventory = Inventory::of(store)?;
    let mut groups: BTreeMap<(String, &str), Space> = BTreeMap::new();
    // Shared objects count for results before units, and for the last used first.
    let mut items: Vec<&Item> = inventory.items.values().collect();
    items.sort_by_key(|item| (item.is_unit(), std::cmp::Reverse(item.used)));
    let mut counted: BTreeSet<Digest> = BTreeSet::new();
    for item in items {
        let space = inventory.space(item, &mut counted);
        let what = if item.is_unit() { "units" } else { "results" };
        *groups.entry((group(args.by, item), what)).or_default() += space;
    }
    let mut rest = Space::default();
    let strays = inventory.disk.objects.iter().filter(|(digest, _)| !counted.contains(*digest));
    strays.for_each(|(_, space)| rest += *space);
    let mut rows: Vec<(String, &str, Space)> =
        groups.into_iter().map(|((name, what), space)| (name, what, space)).collect();
    if rest != Space::default() {
        rows.push((String::new(), "objects without an entry", rest));
    }
    rows.extend(inventory.disk.rooms.iter().map(|(room, space)| (String::new(), describe(room), *space)));
    rows.push((String::new(), "total", inventory.disk.total()));
    let heading = match args.by {
        By::Pipeline => "pipeline",
        By::Stage => "stage",
        By::Kind => "kind",
    };
    let mut table = Table::new(&[heading, "what", "files", "length", "on disk"]);
    for (name, what, Space { files, bytes, disk }) in rows {
        if args.json {
            let name = Some(name).filter(|name| !name.is_empty());
            let line = json!({ heading: name, "what": what, "files": files, "bytes": bytes, "disk": disk });
            print(&format!("{line}\n"));
        } else {
            table.row([name, what.to_owned(), files.to_string(), format_bytes(bytes), format_bytes(disk)]);
        }
    }
    if !args.json {
        print(&table.to_string());
    }
    Ok(())
}

fn group(by: By, item: &Item) -> String {
    match (by, &item.name) {
        (By::Kind, _) => item.entry.recipe.kind.clone(),
        (_, None) => "of no recorded run".to_owned(),
        (By::Pipeline, Some(name)) => name.pipeline.clone(),
        (By::Stage, Some(name)) => name.to_string(),
    }
}

fn describe(room: &'static str) -> &'static str {
    match room {
        "runs" => "manifests",
        "index" => "index and folders",
        "tmp" => "work folders",
        "quarantine" => "quarantined files",
        room => room,
    }
}
