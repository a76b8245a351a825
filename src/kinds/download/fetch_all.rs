//! Downloads remote files in parallel, then puts all files into the output folder, in the list's order.

use std::cell::LazyCell;
use std::path::Path;

use anyhow::Context as _;

use super::Download;
use super::apply::{Steps, apply, length};
use super::parallel::parallel_for;
use super::plan::{Check, Item, Plan, Planner, Remote, Volume};
use crate::io::download::hub::Hub;
use crate::io::download::lock_file::{Pin, Pins};
use crate::io::download::{Client, FetchError, Fetcher, Finished};
use attrflow_engine::kind::{Context, Downloads};
use attrflow_engine::store::require_space;

/// Fetches everything into the folder `out`.
pub(super) fn fetch_all(
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
        check_disk_space(fetcher, &plan.remotes, &sizes, folder)?;
        steps.total = total(&plan, &sizes);
        // Only of this attempt.
        let kept = out.with_file_name("downloads");
        fs_err::create_dir(&kept)?;
        finished = fetch(fetcher, &planner, &plan.remotes, &sizes, (*at_once, &kept), &mut steps)?;
    } else {
        steps.total = total(&plan, &[]);
    }
    let new = new_pins(&plan, &finished);
    let mut finished: Vec<Option<Finished>> = finished.into_iter().map(Some).collect();
    for item in &plan.items {
        apply(item, out, &mut finished, &plan.remotes, &mut steps)?;
    }
    match new.add_to(lock) {
        Err(error) if error.is_read_only() => {
            tracing::warn!("the downloads are not pinned: {error}");
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

/// The total of known sizes.
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
    parallel_for(remotes.len(), threads, &|index, _| fetcher.size(&remotes[index].request), &mut |_, _| ())
}

/// Checks the free disk space for all files of known size.
fn check_disk_space(
    fetcher: &Fetcher<'_>,
    remotes: &[Remote],
    sizes: &[Option<u64>],
    folder: &Path,
) -> anyhow::Result<()> {
    let missing = remotes.iter().zip(sizes).filter_map(|(remote, size)| {
        let size = (*size)?;
        Some(size.saturating_sub(fetcher.present(&remote.request)))
    });
    let needed = missing.fold(0u64, u64::saturating_add);
    require_space(folder, needed).context("no space to download")
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
    let mut received = vec![0; remotes.len()];
    let fetch = |index: usize, report: &dyn Fn(u64)| {
        let fetched = fetcher.fetch(&remotes[index].request, &mut |progress| report(progress.done));
        if fetched.is_err() {
            client.stop();
        }
        fetched.map(|finished| finished.keep_as(kept.join(index.to_string())))
    };
    let results = parallel_for(remotes.len(), threads, &fetch, &mut |index, done| {
        if let Some(size) = sizes[index] {
            received[index] = done.min(size);
            steps.at(received.iter().sum());
        }
    });
    steps.add(sizes.iter().flatten().sum());
    // The first failure, not a cancellation because of it.
    let cancelled = |result: &Result<_, FetchError>| matches!(result, Err(FetchError::Stopped { .. }));
    let failed = results.iter().position(|result| result.is_err() && !cancelled(result));
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

/// Pins of the files without a digest in the pipeline.
fn new_pins(plan: &Plan<'_>, finished: &[Finished]) -> Pins {
    let mut pins = Pins { hub: plan.commits.clone(), ..Pins::default() };
    for (remote, finished) in plan.remotes.iter().zip(finished) {
        if remote.check == Check::New {
            let pin = Pin { sha256: finished.fetched.sha256.clone(), bytes: finished.fetched.bytes };
            pins.files.insert(remote.request.name.clone(), pin);
        }
    }
    pins
}
