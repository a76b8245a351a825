//! The files of a folder that differ from those of an earlier run.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use crate::identity::digest::Digest;
use crate::store::{self, Store, StoreError};

/// The files below a folder that changed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct FileChanges {
    /// New files.
    pub new: Vec<String>,
    /// Deleted files.
    pub gone: Vec<String>,
    /// Modified files.
    pub changed: Vec<String>,
    /// Files written since: all that is known of a folder outside the store.
    pub newer: Vec<String>,
}

/// A list of files with its name, for listings.
pub type Listed<'c> = (&'static str, &'c [String]);

impl FileChanges {
    /// The lists that are not empty.
    pub fn lists(&self) -> impl Iterator<Item = Listed<'_>> {
        let Self { new, gone, changed, newer } = self;
        let lists: [Listed<'_>; 4] =
            [("changed", changed), ("new", new), ("gone", gone), ("written since", newer)];
        lists.into_iter().filter(|(_, files)| !files.is_empty())
    }
}

/// The difference between two stored folders, at a path below; `None` if the store has no listing of one of them, or
/// the path is a file.
pub(super) fn changed(
    store: &Store,
    before: &Digest,
    now: &Digest,
    sub: Option<&str>,
) -> Result<Option<FileChanges>, StoreError> {
    let (Some(before), Some(now)) = (store.listing(before)?, store.listing(now)?) else { return Ok(None) };
    let below = |path: &str| match sub {
        None => Some(path.to_owned()),
        Some(sub) => path.strip_prefix(sub)?.strip_prefix('/').map(str::to_owned),
    };
    let table = |files: &[crate::identity::digest::Listed]| -> BTreeMap<String, Digest> {
        files.iter().filter_map(|file| Some((below(&file.path)?, file.digest))).collect()
    };
    let (before, now) = (table(&before.0), table(&now.0));
    let missing = |from: &BTreeMap<String, Digest>, to: &BTreeMap<String, Digest>| {
        from.keys().filter(|name| !to.contains_key(*name)).cloned().collect()
    };
    let differs = |(name, digest): &(&String, &Digest)| before.get(*name).is_some_and(|old| old != *digest);
    let changed = now.iter().filter(differs).map(|(name, _)| name.clone()).collect();
    let found =
        FileChanges { new: missing(&now, &before), gone: missing(&before, &now), changed, newer: Vec::new() };
    Ok((found != FileChanges::default()).then_some(found))
}

/// The files of a folder outside the store that were written after a run began; `None` for a file.
pub(super) fn newer(folder: &Path, started: &str) -> Option<FileChanges> {
    let started: std::time::SystemTime = started.parse::<jiff::Timestamp>().ok()?.into();
    if !folder.is_dir() {
        return None;
    }
    let written = |name: &String| fs_err::metadata(folder.join(name)).and_then(|file| file.modified());
    let names = store::names(folder).ok()?.into_iter();
    let newer: Vec<String> = names.filter(|name| written(name).is_ok_and(|time| time > started)).collect();
    (!newer.is_empty()).then(|| FileChanges { newer, ..FileChanges::default() })
}
