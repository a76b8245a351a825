//! `attrflow cache`: what the cache holds, and the care for it.

mod du;
mod gc;
mod ls;
mod pin;
mod remote;
mod verify;

use std::path::{Path, PathBuf};

use clap::{Args as ClapArgs, Subcommand};
use jiff::Timestamp;

use super::failure::Failure;
use attrflow_engine::store::Store;

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
    /// The cache folder [default: ./cache]
    #[arg(long, env = "ATTRFLOW_CACHE", value_name = "DIR", global = true)]
    cache: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List results: of which stage, how large, when last used, how long to rebuild
    Ls(ls::Args),
    /// Show what takes how much of the disk
    Du(du::Args),
    /// Take away what no run needs; shows what that is, and does it with --yes
    ///
    /// Kept are: what the last runs of each pipeline need (--keep-runs), what is pinned, units of unfinished stages, and
    /// for a week (--grace) results that no finished run names. Without a --budget all else goes; with one, what is
    /// cheapest to rebuild for its size goes first, until the cache fits. Files of yours that were adopted are never
    /// touched. Refused while a run uses the cache.
    Gc(gc::Args),
    /// Read every byte and put aside what is damaged: exit code 4 if anything was
    ///
    /// The next run computes what was put aside, and nothing else. It stays in quarantine/ for a look at it, until gc.
    Verify(verify::Args),
    /// Keep a run, a stage's result or an object, whatever gc is asked to take away
    Pin(pin::Args),
    /// Let go of what was pinned
    Unpin(pin::UnpinArgs),
    /// Send a run's results to a folder or an S3 bucket
    ///
    /// What is there already is not sent again. Keys and endpoint of S3 come from AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
    /// AWS_SESSION_TOKEN, AWS_REGION and AWS_ENDPOINT_URL.
    Push(remote::PushArgs),
    /// Bring a run's results from a folder or an S3 bucket
    ///
    /// Every byte is held against its digest before it counts. Which results belong to a recipe is taken from the remote:
    /// whoever can write there is trusted with that.
    Pull(remote::PullArgs),
}

pub(super) fn cache(args: &Args) -> Result<(), Failure> {
    let folder = args.cache.as_deref().unwrap_or(Path::new("cache"));
    // A pull may begin a cache.
    if !folder.is_dir() && !matches!(args.verb, Verb::Pull(_)) {
        return Err(Failure::Usage(format!(
            "there is no cache folder {}: name it with --cache",
            folder.display()
        )));
    }
    let store = Store::open(folder)?;
    match &args.verb {
        Verb::Ls(args) => ls::ls(args, &store),
        Verb::Du(args) => du::du(args, &store),
        Verb::Gc(args) => gc::gc(args, &store),
        Verb::Verify(args) => verify::verify(args, &store),
        Verb::Pin(args) => pin::pin(args, &store),
        Verb::Unpin(args) => pin::unpin(args, &store),
        Verb::Push(args) => remote::push(args, &store),
        Verb::Pull(args) => remote::pull(args, &store),
    }
}

/// A time for people: to the minute, UTC.
fn when(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M").to_string()
}

/// Keeps what is looked at from being taken away meanwhile.
fn in_use(store: &Store) -> Result<attrflow_engine::store::SharedLock, Failure> {
    Ok(store.shared_lock(|| tracing::warn!("waiting for `attrflow cache gc` to end"))?)
}

/// `1 unit`, `2 units`.
fn count(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}
