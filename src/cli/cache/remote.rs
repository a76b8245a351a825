//! `attrflow cache push` and `pull`.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args as ClapArgs;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::{count, in_use};
use crate::cli::failure::Failure;
use crate::cli::manifests;
use crate::progress::{print, size};
use attrflow_engine::maintenance::Inventory;
use attrflow_engine::maintenance::remote::{Pull, Pulled, Push, Pushed, Remote, RemoteError};
use attrflow_engine::store::Store;

#[derive(Debug, ClapArgs)]
pub(super) struct PushArgs {
    /// A folder, file:///FOLDER or s3://BUCKET/PREFIX
    remote: String,
    /// The run: a manifest, or last, last~1, PIPELINE:last
    #[arg(default_value = "last", conflicts_with = "all")]
    run: String,
    /// Send all results and records of runs that the cache holds
    #[arg(long)]
    all: bool,
    /// Send units, too: needed only to compute less after an edit
    #[arg(long, requires = "all")]
    units: bool,
    /// Send what is there already, too, where it may have been damaged
    #[arg(long)]
    again: bool,
    /// Write what was sent as a line of JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, ClapArgs)]
pub(super) struct PullArgs {
    /// A folder, file:///FOLDER or s3://BUCKET/PREFIX
    remote: String,
    /// The run, among those of the remote: last, last~1, PIPELINE:last
    #[arg(default_value = "last", conflicts_with = "all")]
    run: String,
    /// Bring all that the remote holds
    #[arg(long)]
    all: bool,
    /// Write what was brought as a line of JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn push(args: &PushArgs, store: &Store) -> Result<(), Failure> {
    let _use = in_use(store)?;
    let (mut entries, mut records) = (BTreeMap::new(), Vec::new());
    let mut refused = Vec::new();
    if args.all {
        let inventory = Inventory::of(store)?;
        for (fingerprint, item) in inventory.items {
            if !item.is_unit() || args.units {
                entries.insert(fingerprint, item.entry);
            }
        }
        for (pipeline, past) in inventory.runs {
            records.extend(past.into_iter().map(|run| (pipeline.clone(), run.path)));
        }
        // The record of a run whose results have gone would promise what is not there; results alone are of use.
        records.retain(|(_, path)| {
            let manifest = attrflow_engine::provenance::manifest::read(path);
            manifest.is_ok_and(|manifest| {
                let done = manifest.stages.iter().filter(|record| !record.outputs.is_empty());
                done.filter_map(|record| record.fingerprint).all(|found| entries.contains_key(&found))
            })
        });
    } else {
        let named = manifests::open(&args.run, Some(store.root()))?;
        for record in named.manifest.stages.iter().filter(|record| !record.outputs.is_empty()) {
            let Some(fingerprint) = record.fingerprint else { continue };
            match store.lookup(&fingerprint)? {
                Some(entry) => _ = entries.insert(fingerprint, entry),
                None => {
                    refused.push(format!("the result of `{}` is not in the cache any more", record.stage))
                }
            }
        }
        if refused.is_empty() {
            records.push((named.manifest.pipeline, named.path));
        }
    }
    let remote = Remote::open(&args.remote, true)?;
    let bar = bar("sending", true);
    let progress = |done, total| relocated(&bar, done, total);
    let push = Push { store, entries, manifests: records, again: args.again, progress: &progress };
    let mut pushed = push.execute(&remote)?;
    bar.finish_and_clear();
    pushed.refused.extend(refused);
    let Pushed { sent, sent_bytes, there, there_bytes, entries, refused } = &pushed;
    match args.json {
        true => print(&format!("{}\n", json!(pushed))),
        false => print(&format!(
            "sent {}, {}; {there} ({}) were there; {} in {}\n",
            count(*sent, "file", "files"),
            size(*sent_bytes),
            size(*there_bytes),
            count(*entries, "result", "results"),
            args.remote
        )),
    }
    verdict("sent", refused)
}

pub(super) fn pull(args: &PullArgs, store: &Store) -> Result<(), Failure> {
    let remote = Remote::open(&args.remote, false)?;
    let (pipeline, back) = manifests::nth_last(&args.run).ok_or_else(|| {
        let form = "expected last, last~1 or PIPELINE:last among those of the remote";
        Failure::Usage(format!("`{}` is no run: {form}", args.run))
    })?;
    let _use = in_use(store)?;
    let bar = bar("bringing", true);
    let progress = |done, total| relocated(&bar, done, total);
    let pulled = Pull { store, pipeline, back, all: args.all, progress: &progress }.execute(&remote)?;
    bar.finish_and_clear();
    let Pulled { downloaded, bytes, entries, there, manifests, refused } = &pulled;
    match args.json {
        true => print(&format!("{}\n", json!(pulled))),
        false => print(&format!(
            "brought {}, {}; {} new, {there} were there; {}\n",
            count(*downloaded, "file", "files"),
            size(*bytes),
            count(*entries, "result", "results"),
            count(*manifests, "record of a run", "records of runs")
        )),
    }
    verdict("taken", refused)
}

/// Tells what could not be moved; all else was.
fn verdict(done: &str, refused: &[String]) -> Result<(), Failure> {
    if refused.is_empty() {
        return Ok(());
    }
    Err(Failure::Refused(format!("not all was {done}:\n  {}", refused.join("\n  "))))
}

/// A bar on the terminal, in bytes or in things; on anything else, none.
pub(super) fn bar(what: &'static str, bytes: bool) -> ProgressBar {
    let form = match bytes {
        true => {
            "{msg:>12} {bar:32} {decimal_bytes}/{decimal_total_bytes}  {decimal_bytes_per_sec}  {eta} left"
        }
        false => "{msg:>12} {spinner} {pos}",
    };
    let bar = ProgressBar::new(0).with_message(what);
    bar.set_style(ProgressStyle::with_template(form).expect("the template is well formed"));
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

fn relocated(bar: &ProgressBar, done: u64, total: u64) {
    bar.set_length(total);
    bar.set_position(done);
}

impl From<RemoteError> for Failure {
    fn from(error: RemoteError) -> Self {
        match error {
            RemoteError::Store(error) => Self::Store(error),
            error @ (RemoteError::Address { .. } | RemoteError::Missing { .. }) => {
                Self::Usage(error.to_string())
            }
            error => Self::Refused(error.to_string()),
        }
    }
}
