//! Runs that found everything cached, and may be repeated without a plan.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::failure::Failure;
use super::libtorch;
use super::pools::{ClusterArgs, profile_path};
use super::project::{Settings, backend};
use attrflow_engine::exec::noop_cache::{NoopKey, NoopRun};
use attrflow_engine::pipeline;
use attrflow_engine::store::{SharedLock, Store};
use attrflow_engine::worker::Backend;

/// The key of a run with these arguments; `None` where it has none.
pub(super) fn key(file: &Path, settings: &Settings, targets: &[String]) -> Option<NoopKey> {
    let Settings { sets, device, cluster: ClusterArgs { backend: chosen, profile }, .. } = settings;
    let program = fs_err::metadata(std::env::current_exe().ok()?).ok()?;
    let mut parts = vec![
        format!("{} {}", env!("CARGO_PKG_VERSION"), env!("ATTRFLOW_COMMIT")),
        format!("{} {} {} {}", program.len(), program.ino(), program.mtime(), program.mtime_nsec()),
        libtorch::assumed(settings.libtorch.as_deref()),
        format!("backend {chosen:?}, profile {profile:?}: {:?}", profile_text(profile.as_deref())),
        format!("device {device:?}, auto {}", backend(Vec::new()).ok()?.device_class().name()),
        store(file, settings)?.root().display().to_string(),
        format!("{} sets", sets.len()),
    ];
    parts.extend(sets.iter().chain(targets).cloned());
    NoopKey::new(file, &parts)
}

/// What a profile says, which may choose the class of device.
fn profile_text(profile: Option<&str>) -> Option<String> {
    fs_err::read_to_string(profile_path(profile?).ok()?).ok()
}

fn store(file: &Path, settings: &Settings) -> Option<Store> {
    Store::open(&settings.cache_of(&pipeline::root(file)?)).ok()
}

/// The run of this key.
pub(super) fn find(key: &NoopKey, file: &Path, settings: &Settings) -> Option<NoopRun> {
    key.find(&store(file, settings)?)
}

/// The same to be repeated, with its cache, and the lock that keeps gc from removing what it found.
pub(super) fn find_locked(
    key: &NoopKey,
    file: &Path,
    settings: &Settings,
) -> Result<Option<(NoopRun, Store, SharedLock)>, Failure> {
    let Some(store) = store(file, settings).filter(|store| key.exists(store)) else { return Ok(None) };
    let lock = store.shared_lock(|| tracing::info!("waiting for `attrflow cache gc` to end"))?;
    Ok(key.find(&store).map(|run| (run, store, lock)))
}
