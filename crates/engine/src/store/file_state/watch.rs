//! Whether sources are written to while a stage reads them.

use std::path::{Path, PathBuf};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::tree_stat::TreeStat;
use crate::identity::digest::Digest;

/// Sources from a moment on.
pub struct Watch {
    stats: Vec<(PathBuf, Option<Digest>)>,
    /// The kernel's notifications, if it gives any.
    events: Option<Inotify>,
}

impl Watch {
    /// Watches files and folders.
    pub fn new<'p>(paths: impl Iterator<Item = &'p PathBuf>) -> Self {
        let stats: Vec<(PathBuf, Option<Digest>)> = paths.map(|path| (path.clone(), stat(path))).collect();
        let events = (!stats.is_empty()).then(|| notifications(&stats)).flatten();
        Self { stats, events }
    }

    /// Whether a path may hold, or may have held, other bytes.
    ///
    /// A change that was taken back leaves another time of change; but so does a hard link, which changes no byte. What was
    /// written tells them apart, where the kernel says so.
    pub fn is_changed(&self, path: &Path) -> bool {
        let known = self.stats.iter().find(|(known, _)| known == path);
        if known.is_some_and(|(_, before)| *before == stat(path)) {
            return false;
        }
        match &self.events {
            Some(events) => events.read_events().is_ok_and(|events| !events.is_empty()),
            None => true,
        }
    }
}

fn stat(path: &Path) -> Option<Digest> {
    TreeStat::at(path).ok().flatten().map(|stat| stat.stat_hash())
}

/// Watches the files, and all folders below the folders.
fn notifications(stats: &[(PathBuf, Option<Digest>)]) -> Option<Inotify> {
    let events = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).ok()?;
    let wanted = AddWatchFlags::IN_MODIFY
        | AddWatchFlags::IN_MOVED_FROM
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_DELETE_SELF
        | AddWatchFlags::IN_MOVE_SELF;
    let mut folders: Vec<PathBuf> = stats.iter().map(|(path, _)| path.clone()).collect();
    while let Some(path) = folders.pop() {
        events.add_watch(&path, wanted).ok()?;
        if path.is_dir() {
            let below = fs_err::read_dir(&path).ok()?.flatten().map(|entry| entry.path());
            folders.extend(below.filter(|path| path.is_dir()));
        }
    }
    Some(events)
}
