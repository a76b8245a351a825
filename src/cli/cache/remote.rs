//! `attrflow cache push` and `pull`.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args as ClapArgs;
use indicatif::ProgressBar;
use serde_json::json;

use super::in_use;
use crate::cli::failure::Failure;
use crate::cli::manifests;
use crate::io::words::count;
use crate::progress::{bar_style, print};
use attrflow_engine::maintenance::Inventory;
use attrflow_engine::maintenance::{Pull, Pulled, Push, Pushed};
use attrflow_engine::remote::{Remote, RemoteError};
use attrflow_engine::store::{Store, format_bytes};

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    attrflow cache push /mnt/shared/cache\n  \
    attrflow cache push s3://bucket/prefix demo:last")]
pub(super) struct PushArgs {
    /// A folder, file:///FOLDER or s3://BUCKET/PREFIX
    remote: String,
    /// The run: a manifest, or last, last~1, PIPELINE:last
    #[arg(default_value = "last", conflicts_with = "all")]
    run: String,
    /// Upload all results and manifests of the cache
    #[arg(long)]
    all: bool,
    /// Upload units too, which are useful only after an edit
    #[arg(long, requires = "all")]
    units: bool,
    /// Upload all files, also those that the remote already has, to repair it
    #[arg(long)]
    again: bool,
    /// Write the totals as a line of JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    attrflow cache pull /mnt/shared/cache\n  \
    attrflow cache pull s3://bucket/prefix --all")]
pub(super) struct PullArgs {
    /// A folder, file:///FOLDER or s3://BUCKET/PREFIX
    remote: String,
    /// The run of the remote: last, last~1, PIPELINE:last
    #[arg(default_value = "last", conflicts_with = "all")]
    run: String,
    /// Download everything that the remote has
    #[arg(long)]
    all: bool,
    /// Write the totals as a line of JSON
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
        // A manifest is useless to others without its results; results are useful without a manifest.
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
                None => refused.push(format!("the result of `{}` is no longer in the cache", record.stage)),
            }
        }
        if refused.is_empty() {
            records.push((named.manifest.pipeline, named.path));
        }
    }
    let remote = Remote::open(&args.remote, true)?;
    let bar = bar("uploading", true);
    let progress = |done, total| set_progress(&bar, done, total);
    let push = Push { store, entries, manifests: records, again: args.again, progress: &progress };
    let mut pushed = push.execute(&remote)?;
    bar.finish_and_clear();
    pushed.refused.extend(refused);
    let Pushed { sent, sent_bytes, there, there_bytes, entries, refused } = &pushed;
    match args.json {
        true => print(&format!("{}\n", json!(pushed))),
        false => print(&format!(
            "uploaded {}, {}; {there} ({}) already there; {} in {}\n",
            count(*sent, "file", "files"),
            format_bytes(*sent_bytes),
            format_bytes(*there_bytes),
            count(*entries, "result", "results"),
            args.remote
        )),
    }
    check_refused("uploaded", refused)
}

pub(super) fn pull(args: &PullArgs, store: &Store) -> Result<(), Failure> {
    let remote = Remote::open(&args.remote, false)?;
    let (pipeline, back) = manifests::nth_last(&args.run).ok_or_else(|| {
        let form = "expected last, last~1 or PIPELINE:last";
        Failure::Usage(format!("`{}` does not name a run: {form}", args.run))
    })?;
    let _use = in_use(store)?;
    let bar = bar("downloading", true);
    let progress = |done, total| set_progress(&bar, done, total);
    let pulled = Pull { store, pipeline, back, all: args.all, progress: &progress }.execute(&remote)?;
    bar.finish_and_clear();
    let Pulled { downloaded, bytes, entries, there, manifests, refused } = &pulled;
    match args.json {
        true => print(&format!("{}\n", json!(pulled))),
        false => print(&format!(
            "downloaded {}, {}; {} new, {there} already there; {}\n",
            count(*downloaded, "file", "files"),
            format_bytes(*bytes),
            count(*entries, "result", "results"),
            count(*manifests, "manifest", "manifests")
        )),
    }
    check_refused("downloaded", refused)
}

/// Reports what could not be transferred; everything else was.
fn check_refused(done: &str, refused: &[String]) -> Result<(), Failure> {
    if refused.is_empty() {
        return Ok(());
    }
    Err(Failure::Refused(format!("not everything was {done}:\n  {}", refused.join("\n  "))))
}

/// A progress bar of bytes or items; invisible without a terminal.
pub(super) fn bar(what: &'static str, bytes: bool) -> ProgressBar {
    let form = match bytes {
        true => "{msg:>12} {bar:32} {decimal_bytes}/{decimal_total_bytes}  {decimal_bytes_per_sec}  {left}",
        false => "{msg:>12} {spinner} {pos}",
    };
    let bar = ProgressBar::new(0).with_message(what);
    bar.set_style(bar_style(form));
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

fn set_progress(bar: &ProgressBar, done: u64, total: u64) {
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
