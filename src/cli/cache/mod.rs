//! `attrflow cache`: inspect, clean, verify and share the cache.

mod du;
mod gc;
mod ls;
mod pin;
mod remote;
mod verify;

use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand};
use jiff::Timestamp;

use super::failure::Failure;
use super::project::default_cache;
use attrflow_engine::store::Store;

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    attrflow cache du\n  \
    attrflow cache gc --keep-runs 2")]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
    /// The cache folder [default: cache of the project around the current folder]
    #[arg(long, env = "ATTRFLOW_CACHE", value_name = "DIR", global = true)]
    cache: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List results with their stage, size, last use and rebuild time
    Ls(ls::Args),
    /// Show the disk usage
    Du(du::Args),
    /// Remove what no run needs; without --yes, only list it
    ///
    /// Keeps the results of the last runs of each pipeline (--keep-runs), pinned results, units of partial stages, and for a week
    /// (--grace) results that belong to no finished run. Removes everything else, or, with --budget, as much as needed, starting
    /// with the results that are cheapest to rebuild for their size. Never touches adopted files outside the cache. Refuses to
    /// run while a run uses the cache.
    Gc(gc::Args),
    /// Hash everything and quarantine what is damaged: exit code 4 if anything is
    ///
    /// The next run recomputes only what was quarantined. Damaged files stay in quarantine/ until gc.
    Verify(verify::Args),
    /// Protect a run, a stage's result or an object from gc
    Pin(pin::Args),
    /// Remove a pin
    Unpin(pin::UnpinArgs),
    /// Upload a run's results to a folder or an S3 bucket
    ///
    /// Skips files that the remote already has. S3 is configured by AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN,
    /// AWS_REGION and AWS_ENDPOINT_URL.
    Push(remote::PushArgs),
    /// Download a run's results from a folder or an S3 bucket
    ///
    /// Checks every file against its digest. Which results belong to which recipe is taken from the remote: pull only from remotes
    /// whose writers you trust.
    Pull(remote::PullArgs),
}

pub(super) fn cache(args: &Args) -> Result<(), Failure> {
    let folder = &args.cache.clone().unwrap_or_else(default_cache);
    // A pull may create the cache.
    if !folder.is_dir() && !matches!(args.verb, Verb::Pull(_)) {
        let message = format!("there is no folder {} here: name the cache with --cache", folder.display());
        return Err(Failure::Usage(message));
    }
    tracing::info!("cache {}", folder.display());
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

/// Keeps gc from removing anything meanwhile.
fn in_use(store: &Store) -> Result<attrflow_engine::store::SharedLock, Failure> {
    Ok(store.shared_lock(|| tracing::warn!("waiting for `attrflow cache gc` to end"))?)
}
