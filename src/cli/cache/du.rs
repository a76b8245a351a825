//! `attrflow cache du`: what takes how much of the disk.

use std::collections::{BTreeMap, BTreeSet};

use clap::{Args as ClapArgs, ValueEnum};
use serde_json::json;

use crate::cli::failure::Failure;
use crate::progress::{Table, print, size};
use attrflow_engine::identity::digest::Digest;
use attrflow_engine::maintenance::{Inventory, Item, Space};
use attrflow_engine::store::Store;

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// What to add up by
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
    // Results before units, and those used last first: what is shared counts with them.
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
            table.row([name, what.to_owned(), files.to_string(), size(bytes), size(disk)]);
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
        "runs" => "records of runs",
        "index" => "index and folders",
        "tmp" => "work folders",
        "quarantine" => "put aside as damaged",
        room => room,
    }
}
