//! Doing it: remote files at once, then everything into its place in the list's order.

use std::cell::LazyCell;
use std::path::Path;

use anyhow::Context as _;

use super::Download;
use super::apply::{Steps, length, put};
use super::parallel::at_once;
use super::plan::{Check, Item, Plan, Planner, Remote, Volume};
use crate::io::disk_space;
use crate::io::download::hub::Hub;
use crate::io::download::lock_file::{Pin, Pins};
use crate::io::download::{Client, FetchError, Fetcher, Finished};
use attrflow_engine::kind::{Context, Downloads};

/// Brings everything into the folder `out`.
pub(super) fn bring(
    params: &Download,
    out: &Path,
    client: &Client,
    hub: &dyn Fn() -> Hub,
    cx: &Context<'_>,
) -> anyhow::Result<()> {
    let Downloads { folder, lock, at_once } = cx.downloads;
    let is_remote = params.files.iter().any(|file| file.from.local().is_none());
    let pins = if is_remote { Pins::read(lock)? } else { Pins::default() };
    let hub = LazyCell::new(hub);
    let planner = Planner { client, hub: &hub, pins: &pins, lock };
    let plan = planner.plan(params)?;
    let mut steps = Steps { done: 0, total: 0, cx: *cx };
    let mut finished = Vec::new();
    let fetcher = if is_remote { Some(Fetcher::new(client, folder)?) } else { None };
    if let Some(fetcher) = &fetcher {
        let sizes = sizes(fetcher, &plan.remotes, *at_once);
        room(fetcher, &plan.remotes, &sizes, folder)?;
        steps.total = total(&plan, &sizes);
        // Of this attempt alone, and gone with it.
        let kept = out.with_file_name("downloads");
        fs_err::create_dir(&kept)?;
        finished = fetch(fetcher, &planner, &plan.remotes, &sizes, (*at_once, &kept), &mut steps)?;
    } else {
        steps.total = total(&plan, &[]);
    }
    let new = new_pins(&plan, &finished);
    let mut finished: Vec<Option<Finished>> = finished.into_iter().map(Some).collect();
    for item in &plan.items {
        put(item, out, &mut finished, &plan.remotes, &mut steps)?;
    }
    match new.add_to(lock) {
        Err(error) if error.is_read_only() => {
            tracing::warn!("what was downloaded is not pinned: {error}");
        }
        added => added?,
    }
    for finished in finished.into_iter().flatten() {
        finished.remove()?;
    }
    if let Some(fetcher) = fetcher {
        fetcher.sweep()?;
    }
    Ok(())
}

/// Files of unknown size count for nothing, as far as the total goes.
fn total(plan: &Plan<'_>, sizes: &[Option<u64>]) -> u64 {
    let volumes = plan.items.iter().flat_map(|item| match item {
        Item::Unpack(volumes, _) => volumes.as_slice(),
        _ => &[],
    });
    let unpacked = volumes.map(|volume| match volume {
        Volume::Local(path, _) => length(path),
        Volume::Remote(remote) => sizes[*remote].unwrap_or_default(),
    });
    sizes.iter().flatten().sum::<u64>() + unpacked.sum::<u64>()
}

fn sizes(fetcher: &Fetcher<'_>, remotes: &[Remote], threads: usize) -> Vec<Option<u64>> {
    at_once(remotes.len(), threads, &|index, _| fetcher.size(&remotes[index].wanted), &mut |_, _| ())
}

/// Refuses downloads that the disk has no room for. What has no known size can't be checked.
fn room(
    fetcher: &Fetcher<'_>,
    remotes: &[Remote],
    sizes: &[Option<u64>],
    folder: &Path,
) -> anyhow::Result<()> {
    let missing = remotes.iter().zip(sizes).filter_map(|(remote, size)| {
        let size = (*size)?;
        Some(size.saturating_sub(fetcher.present(&remote.wanted)))
    });
    let needed = missing.fold(0u64, u64::saturating_add);
    disk_space::check(folder, needed, disk_space::free(folder)?).context("no room to download")
}

fn fetch(
    fetcher: &Fetcher<'_>,
    planner: &Planner<'_>,
    remotes: &[Remote],
    sizes: &[Option<u64>],
    (threads, kept): (usize, &Path),
    steps: &mut Steps<'_>,
) -> anyhow::Result<Vec<Finished>> {
    let client = planner.client;
    let mut come = vec![0; remotes.len()];
    let fetch = |index: usize, say: &dyn Fn(u64)| {
        let fetched = fetcher.fetch(&remotes[index].wanted, &mut |heard| say(heard.done));
        if fetched.is_err() {
            client.stop();
        }
        fetched.map(|finished| finished.keep_as(kept.join(index.to_string())))
    };
    let results = at_once(remotes.len(), threads, &fetch, &mut |index, done| {
        if let Some(size) = sizes[index] {
            come[index] = done.min(size);
            steps.at(come.iter().sum());
        }
    });
    steps.add(sizes.iter().flatten().sum());
    // The first that failed, not one that was given up because of it.
    let given_up = |result: &Result<_, FetchError>| matches!(result, Err(FetchError::Stopped { .. }));
    let failed = results.iter().position(|result| result.is_err() && !given_up(result));
    let mut finished = Vec::new();
    for (index, result) in results.into_iter().enumerate() {
        match result {
            Ok(file) => finished.push(file),
            Err(error) if failed.is_none_or(|failed| failed == index) => {
                let Remote { repo, check, .. } = &remotes[index];
                return Err(match repo {
                    Some(repo) if matches!(error, FetchError::Status { .. }) => {
                        planner.hub.explain(repo, error).into()
                    }
                    _ => planner.describe(error, *check),
                });
            }
            Err(_) => {}
        }
    }
    Ok(finished)
}

/// What was downloaded without a digest from the pipeline.
fn new_pins(plan: &Plan<'_>, finished: &[Finished]) -> Pins {
    let mut pins = Pins { hub: plan.commits.clone(), ..Pins::default() };
    for (remote, finished) in plan.remotes.iter().zip(finished) {
        if remote.check == Check::New {
            let pin = Pin { sha256: finished.fetched.sha256.clone(), bytes: finished.fetched.bytes };
            pins.files.insert(remote.wanted.name.clone(), pin);
        }
    }
    pins
}
