//! `attrflow cache du`: disk usage, by stage and by area.

use std::collections::{BTreeMap, BTreeSet};

use clap::{Args as ClapArgs, ValueEnum};
use serde_json::json;

use crate::cli::failure::Failure;
use crate::progress::{Table, print};
use attrflow_engine::identity::digest::Digest;
use attrflow_engine::maintenance::{Inventory, Item, Space};
use attrflow_engine::store::{Area, Store, format_bytes};

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
    let objects = Area::Objects.name();
    let mut rows: Vec<(String, &str, String, Space)> =
        groups.into_iter().map(|((name, what), space)| (name, objects, what.to_owned(), space)).collect();
    let mut strays = Space::default();
    let free = inventory.disk.objects.iter().filter(|(digest, _)| !counted.contains(*digest));
    free.for_each(|(_, space)| strays += *space);
    if strays != Space::default() {
        rows.push((String::new(), objects, "objects without an entry".to_owned(), strays));
    }
    let parts = inventory.disk.parts.iter();
    rows.extend(parts.map(|(part, space)| (String::new(), part.name(), part.purpose(), *space)));
    rows.push((String::new(), "", "total".to_owned(), inventory.disk.total()));
    let heading = match args.by {
        By::Pipeline => "pipeline",
        By::Stage => "stage",
        By::Kind => "kind",
    };
    let mut table = Table::new(&[heading, "area", "what", "files", "length", "on disk"]);
    for (name, area, what, Space { files, bytes, disk }) in rows {
        if args.json {
            let [name, area] = [name.as_str(), area].map(|text| Some(text).filter(|text| !text.is_empty()));
            let line = json!({
                heading: name, "area": area, "what": what, "files": files, "bytes": bytes, "disk": disk
            });
            print(&format!("{line}\n"));
        } else {
            table.row([
                name,
                area.to_owned(),
                what,
                files.to_string(),
                format_bytes(bytes),
                format_bytes(disk),
            ]);
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
