//! `attrflow cache verify`: hashes everything, and quarantines what is damaged.

use std::time::Instant;

use clap::Args as ClapArgs;
use serde_json::json;

use super::in_use;
use crate::cli::failure::Failure;
use crate::io::words::count;
use crate::progress::{duration, print, short_path};
use attrflow_engine::maintenance::{Owner, Verify, VerifySummary};
use attrflow_engine::store::{Store, format_bytes};

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    attrflow cache verify\n  \
    attrflow cache verify --json")]
pub(super) struct Args {
    /// Write a line of JSON per damaged file, and one with the totals
    #[arg(long)]
    json: bool,
}

pub(super) fn verify(args: &Args, store: &Store) -> Result<(), Failure> {
    let _use = in_use(store)?;
    let begun = Instant::now();
    let bar = super::remote::bar("verifying", true);
    let progress = |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    };
    let checked = Verify { store, progress: &progress }.execute()?;
    bar.finish_and_clear();
    let seconds = begun.elapsed().as_secs_f64();
    match args.json {
        true => lines(&checked, seconds),
        false => print_summary(&checked, seconds),
    }
    match checked.damage.len() {
        0 => Ok(()),
        number => {
            let items = count(number, "damaged item was", "damaged items were");
            Err(Failure::Damaged(format!("{items} quarantined; the next run recomputes what is missing")))
        }
    }
}

fn lines(checked: &VerifySummary, seconds: f64) {
    for damage in &checked.damage {
        print(&format!("{}\n", json!(damage)));
    }
    let mut line = json!(checked);
    line["damage"] = checked.damage.len().into();
    line["seconds"] = seconds.into();
    print(&format!("{line}\n"));
}

fn print_summary(checked: &VerifySummary, seconds: f64) {
    for damage in &checked.damage {
        let place = match &damage.moved {
            Some(to) => format!("now {}", short_path(to)),
            None => "the reference to it was removed".into(),
        };
        let of = if damage.of.is_empty() { String::new() } else { format!(" (of {})", list(&damage.of)) };
        print(&format!("damaged: {}{of}: {}; {place}\n", short_path(&damage.path), damage.why));
    }
    checked.lost.iter().for_each(|lost| print(&format!("lost: {lost}\n")));
    if !checked.incomplete.is_empty() {
        print(&format!("incomplete before: {}\n", list(&checked.incomplete)));
    }
    if !checked.unchecked.is_empty() {
        print(&format!("not checked: {}\n", checked.unchecked.join(", ")));
    }
    if !checked.rebuilds.is_empty() {
        print(&format!("the next run recomputes: {}\n", list(&checked.rebuilds)));
    }
    let rate = format_bytes((checked.bytes as f64 / seconds.max(1e-3)) as u64);
    print(&format!(
        "checked {} and {}, {} in {}: {rate}/s\n",
        count(checked.objects, "object", "objects"),
        count(checked.entries, "entry", "entries"),
        format_bytes(checked.bytes),
        duration(seconds)
    ));
    if checked.damage.is_empty() {
        print("no damage\n");
    }
}

fn list<'a>(names: impl IntoIterator<Item = &'a Owner>) -> String {
    names.into_iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
