//! The folder of downloads: files in progress, and complete ones that are not used yet.
//!
//! ```text
//! KEY.part   the bytes so far          KEY.file   a complete file
//! KEY.json   the note on either        KEY.lock   locked by those who write or read them
//! ```
//! It outlives runs: a later run resumes the download of one that was killed.

use std::collections::BTreeSet;
use std::io::{self, Read as _, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::state::Note;
use super::{FetchError, Fetched};
use crate::io::download::file_lock::FileLock;

/// How long an unused download is kept.
const RETENTION: Duration = Duration::from_secs(30 * 24 * 3600);

/// One download's files.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    folder: PathBuf,
    key: String,
}

impl Slot {
    pub fn new(folder: &Path, key: &str) -> Self {
        Self { folder: folder.into(), key: key.into() }
    }

    fn path(&self, extension: &str) -> PathBuf {
        self.folder.join(format!("{}.{extension}", self.key))
    }

    pub fn part(&self) -> PathBuf {
        self.path("part")
    }

    pub fn lock(&self) -> PathBuf {
        self.path("lock")
    }

    fn file(&self) -> PathBuf {
        self.path("file")
    }

    pub fn note(&self) -> Option<Note> {
        Note::read(&self.path("json"))
    }

    pub fn save(&self, note: &Note) -> io::Result<()> {
        let mut file = tempfile::Builder::new().prefix("write-").tempfile_in(&self.folder)?;
        file.write_all(&serde_json::to_vec(note)?)?;
        file.persist(self.path("json")).map_err(|error| error.error)?;
        Ok(())
    }

    /// The complete file, if there is one.
    pub fn finished(&self) -> Option<Fetched> {
        let fetched = self.note()?.finished?;
        let size = fs_err::metadata(self.file()).ok()?.len();
        (size == fetched.bytes).then_some(fetched)
    }

    /// The first bytes of the part.
    pub fn start(&self) -> io::Result<Vec<u8>> {
        let mut start = Vec::new();
        fs_err::File::open(self.part())?.take(512).read_to_end(&mut start)?;
        Ok(start)
    }

    /// Renames the verified part to the complete file.
    pub fn finish(&self, note: &mut Note, fetched: &Fetched) -> io::Result<()> {
        note.finished = Some(fetched.clone());
        self.save(note)?;
        fs_err::rename(self.part(), self.file())
    }

    /// Bytes that are already downloaded.
    pub fn bytes(&self) -> u64 {
        let size = |path| fs_err::metadata(path).map_or(0, |metadata| metadata.len());
        size(self.file()).max(size(self.part()))
    }

    /// Removes all files but the lock.
    pub fn clear(&self) -> io::Result<()> {
        for path in [self.file(), self.part(), self.path("json")] {
            match fs_err::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

/// A complete, verified file in the folder of downloads. It is not removed while this value exists.
#[derive(Debug)]
pub struct Finished {
    /// Its size and digests.
    pub fetched: Fetched,
    slot: Slot,
    guard: Guard,
}

/// What keeps a complete file from being removed.
#[derive(Debug)]
enum Guard {
    /// A lock: nobody removes the file while it is held.
    Lock(FileLock),
    /// A hard link that nobody else uses.
    Link(PathBuf),
}

impl Finished {
    pub(super) fn new(slot: Slot, lock: FileLock, fetched: Fetched) -> Self {
        Self { fetched, slot, guard: Guard::Lock(lock) }
    }

    /// Its path, for reading.
    pub fn path(&self) -> PathBuf {
        match &self.guard {
            Guard::Lock(_) => self.slot.file(),
            Guard::Link(path) => path.clone(),
        }
    }

    /// Keeps it by a hard link at the free path `name` rather than by a lock, since each lock takes an open file. On a
    /// file system without hard links, the lock stays.
    pub fn keep_as(self, name: PathBuf) -> Self {
        match fs_err::hard_link(self.path(), &name) {
            Ok(()) => Self { guard: Guard::Link(name), ..self },
            Err(_) => self,
        }
    }

    /// Links or copies it to `target`. The original stays until [`Finished::remove`].
    ///
    /// # Errors
    /// `target` exists, or the file system refuses.
    pub fn place(&self, target: &Path) -> Result<(), FetchError> {
        if fs_err::hard_link(self.path(), target).is_err() {
            if !self.path().exists() {
                return Err(FetchError::Gone { path: self.path() });
            }
            reflink_copy::reflink_or_copy(self.path(), target)
                .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", target.display())))?;
        }
        Ok(())
    }

    /// Removes it, unless another process uses it, which then removes it.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn remove(self) -> Result<(), FetchError> {
        let exclusive = match self.guard {
            Guard::Lock(lock) => lock.try_upgrade()?,
            Guard::Link(name) => {
                fs_err::remove_file(name)?;
                FileLock::try_exclusive(&self.slot.lock())?
            }
        };
        if let Some(exclusive) = exclusive {
            // Another process may have removed it, started it again and been killed: its part can be resumed.
            if self.slot.finished().is_some() {
                self.slot.clear()?;
            }
            exclusive.remove()?;
        }
        Ok(())
    }
}

/// Removes downloads that were not used for a month.
pub(super) fn sweep(folder: &Path, now: SystemTime) -> io::Result<()> {
    let mut old = BTreeSet::new();
    let mut young = BTreeSet::new();
    for entry in fs_err::read_dir(folder)? {
        let path = entry?.path();
        let Some(key) = path.file_stem().map(|key| key.to_string_lossy().into_owned()) else { continue };
        // Another process may have removed it a moment ago.
        let Ok(changed) = fs_err::metadata(&path).and_then(|metadata| metadata.modified()) else { continue };
        let is_old = now.duration_since(changed).is_ok_and(|age| age > RETENTION);
        if key.starts_with("write-") && is_old {
            let _ = fs_err::remove_file(&path);
        } else if is_old {
            old.insert(key);
        } else {
            young.insert(key);
        }
    }
    for key in old.difference(&young) {
        let slot = Slot::new(folder, key);
        if let Some(exclusive) = FileLock::try_exclusive(&slot.lock())? {
            slot.clear()?;
            exclusive.remove()?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn downloads_unused_for_a_month_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str| fs_err::write(folder.path().join(name), "x").unwrap();
        ["a.part", "a.json", "a.lock", "b.part", "b.lock", "write-x"].into_iter().for_each(write);
        let names = || {
            let entries = fs_err::read_dir(folder.path()).unwrap();
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        let days = |days: u64| SystemTime::now() + Duration::from_secs(days * 24 * 3600);
        sweep(folder.path(), days(29)).unwrap();
        assert_eq!(names().len(), 6);
        let held = FileLock::exclusive(&folder.path().join("b.lock")).unwrap();
        sweep(folder.path(), days(31)).unwrap();
        assert_eq!(names(), ["b.lock", "b.part"]);
        drop(held);
        sweep(folder.path(), days(31)).unwrap();
        assert_eq!(names(), [""; 0]);
    }
}
