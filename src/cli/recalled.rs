//! Questions that a run asks, and their answers where they are recalled.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::project::{Project, Settings, nvidia_driver};
use crate::pipeline;
use crate::recall::{Question, Recalled};
use crate::store::Store;

/// What a run of these arguments asks; `None` where it cannot be put.
pub(super) fn question(file: &Path, settings: &Settings, targets: &[String]) -> Option<Question> {
    let Settings { sets, device, cache: _ } = settings;
    let program = fs_err::metadata(std::env::current_exe().ok()?).ok()?;
    let mut parts = vec![
        format!("{} {}", env!("CARGO_PKG_VERSION"), env!("ATTRFLOW_COMMIT")),
        format!("{} {} {} {}", program.len(), program.ino(), program.mtime(), program.mtime_nsec()),
        env!("ATTRFLOW_LIBTORCH_VERSION").to_owned(),
        format!("device {device:?}, nvidia {}", nvidia_driver()),
        format!("{} sets", sets.len()),
    ];
    parts.extend(sets.iter().chain(targets).cloned());
    Question::new(file, &parts)
}

/// The answer, and the cache that it is about.
pub(super) fn recall(question: &Question, file: &Path, settings: &Settings) -> Option<(Recalled, Store)> {
    let cache = match &settings.cache {
        Some(cache) => cache.clone(),
        None => pipeline::root(file)?.join("cache"),
    };
    let store = Store::open(&cache).ok()?;
    Some((question.recall(&store)?, store))
}

/// The files that a pipeline was read from.
pub(super) fn texts(project: &Project) -> Vec<PathBuf> {
    // Texts of the command line have names too, at which nothing stands.
    project.sources.names().map(PathBuf::from).filter(|path| path.is_file()).collect()
}
