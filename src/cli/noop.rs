//! Questions that a run asks, and their answers where they are recalled.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::failure::Failure;
use super::project::{Settings, nvidia_driver};
use attrflow_engine::exec::noop_cache::{NoopKey, NoopRun};
use attrflow_engine::pipeline;
use attrflow_engine::store::{SharedLock, Store};

/// What a run of these arguments asks; `None` where it cannot be put.
pub(super) fn question(file: &Path, settings: &Settings, targets: &[String]) -> Option<NoopKey> {
    let Settings { sets, device, cache: _ } = settings;
    let cache = std::path::absolute(cache(file, settings)?).ok()?;
    let program = fs_err::metadata(std::env::current_exe().ok()?).ok()?;
    let mut parts = vec![
        format!("{} {}", env!("CARGO_PKG_VERSION"), env!("ATTRFLOW_COMMIT")),
        format!("{} {} {} {}", program.len(), program.ino(), program.mtime(), program.mtime_nsec()),
        env!("ATTRFLOW_LIBTORCH_VERSION").to_owned(),
        format!("device {device:?}, nvidia {}", nvidia_driver()),
        cache.display().to_string(),
        format!("{} sets", sets.len()),
    ];
    parts.extend(sets.iter().chain(targets).cloned());
    NoopKey::new(file, &parts)
}

fn cache(file: &Path, settings: &Settings) -> Option<PathBuf> {
    Some(settings.cache_of(&pipeline::root(file)?))
}

/// The answer, and the cache that it is about.
pub(super) fn recall(question: &NoopKey, file: &Path, settings: &Settings) -> Option<(NoopRun, Store)> {
    let store = Store::open(&cache(file, settings)?).ok()?;
    Some((question.recall(&store)?, store))
}

/// The same for a run, which keeps what it found from being taken away: looked at only once nobody is about to.
pub(super) fn recall_in_use(
    question: &NoopKey,
    file: &Path,
    settings: &Settings,
) -> Result<Option<(NoopRun, Store, SharedLock)>, Failure> {
    let Some(cache) = cache(file, settings) else { return Ok(None) };
    let store = Store::open(&cache)?;
    if !question.noted(&store) {
        return Ok(None);
    }
    let in_use = store.shared_lock(|| tracing::info!("waiting for `attrflow cache gc` to end"))?;
    Ok(question.recall(&store).map(|recalled| (recalled, store, in_use)))
}
