//! Whether inputs that the store does not own are written to while a stage reads them.

use std::cell::Cell;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::tree_stat::TreeStat;
use crate::identity::shared_fs;

/// Sources and adopted files from a moment on.
pub struct Watch {
    stats: Vec<(PathBuf, Option<TreeStat>)>,
    /// The kernel's notifications, if it gives any.
    events: Option<Inotify>,
    /// Whether there was one.
    written: Cell<bool>,
}

impl Watch {
    /// Watches files and folders.
    pub fn new(paths: impl Iterator<Item = PathBuf>) -> Self {
        let stats: Vec<(PathBuf, Option<TreeStat>)> = paths
            .map(|path| {
                let stat = stat(&path);
                (path, stat)
            })
            .collect();
        let events = (!stats.is_empty()).then(|| notifications(&stats)).flatten();
        Self { stats, events, written: Cell::new(false) }
    }

    /// Whether a path may hold, or may have held, other bytes.
    ///
    /// A change that was taken back, with its times, leaves another time of change; but so does a hard link, which changes no
    /// byte. What was written tells them apart, where the kernel says so.
    pub fn is_changed(&self, path: &Path) -> bool {
        let known =
            self.stats.iter().find(|(known, _)| known == path).and_then(|(_, before)| before.as_ref());
        let (Some(before), Some(now)) = (known, stat(path)) else { return true };
        if *before == now {
            return false;
        }
        let Some(events) = &self.events else { return true };
        let written = events.read_events().is_ok_and(|events| !events.is_empty());
        self.written.set(self.written.get() || written);
        self.written.get() || !before.same_bytes(&now)
    }
}

fn stat(path: &Path) -> Option<TreeStat> {
    TreeStat::at(path).ok().flatten()
}

/// Watches the files, and all folders below the folders. A folder tells of its files, unless they have another name elsewhere.
fn notifications(stats: &[(PathBuf, Option<TreeStat>)]) -> Option<Inotify> {
    let events = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).ok()?;
    let wanted = AddWatchFlags::IN_MODIFY
        // Writes to mapped memory are not told, but that it was mapped to be written.
        | AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_MOVED_FROM
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_DELETE_SELF
        | AddWatchFlags::IN_MOVE_SELF;
    let mut paths: Vec<PathBuf> = stats.iter().map(|(path, _)| path.clone()).collect();
    while let Some(path) = paths.pop() {
        events.add_watch(&path, wanted).ok()?;
        if shared_fs::is_dir(&path) {
            for entry in shared_fs::read_dir(&path).ok()? {
                let entry = entry.ok()?;
                // Of the link itself, where it is one.
                let found = entry.metadata().ok()?;
                if found.is_dir() || found.is_symlink() || found.nlink() > 1 {
                    paths.push(entry.path());
                }
            }
        }
    }
    Some(events)
}
