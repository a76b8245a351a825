//! Locks on files that may be replaced or removed while others wait for them.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A lock on the file at a path; released when dropped, or when the process ends in any way.
#[derive(Debug)]
pub struct FileLock {
    path: PathBuf,
    file: fs_err::File,
}

impl FileLock {
    /// Waits for an exclusive lock on the file, which is created if missing.
    ///
    /// # Errors
    /// The file cannot be created or locked.
    pub fn exclusive(path: &Path) -> io::Result<Self> {
        Self::hold(path, |file| file.lock().map(|()| true))?
            .ok_or_else(|| io::Error::other("the lock was lost"))
    }

    /// An exclusive lock, if nobody else holds one.
    ///
    /// # Errors
    /// The file cannot be created or locked.
    pub fn try_exclusive(path: &Path) -> io::Result<Option<Self>> {
        Self::hold(path, |file| match file.try_lock() {
            Ok(()) => Ok(true),
            Err(std::fs::TryLockError::WouldBlock) => Ok(false),
            Err(std::fs::TryLockError::Error(error)) => Err(error),
        })
    }

    /// Waits for a shared lock.
    ///
    /// # Errors
    /// The file cannot be created or locked.
    pub fn shared(path: &Path) -> io::Result<Self> {
        Self::hold(path, |file| file.lock_shared().map(|()| true))?
            .ok_or_else(|| io::Error::other("the lock was lost"))
    }

    fn hold(path: &Path, lock: impl Fn(&std::fs::File) -> io::Result<bool>) -> io::Result<Option<Self>> {
        loop {
            let file = fs_err::OpenOptions::new().create(true).append(true).open(path)?;
            if !lock(file.file())? {
                return Ok(None);
            }
            let held = Self { path: path.into(), file };
            if held.is_current()? {
                return Ok(Some(held));
            }
        }
    }

    /// Whether the file is still the one at its path: a lock on a replaced file excludes nobody.
    fn is_current(&self) -> io::Result<bool> {
        let held = self.file.metadata()?;
        let current = fs_err::metadata(&self.path).ok();
        Ok(current.is_some_and(|current| current.ino() == held.ino() && current.dev() == held.dev()))
    }

    /// Exchanges the lock for a shared one. Another process may hold an exclusive one in between.
    ///
    /// # Errors
    /// The file cannot be locked.
    pub fn downgrade(self) -> io::Result<Self> {
        let path = self.path.clone();
        drop(self);
        Self::shared(&path)
    }

    /// Exchanges the lock for an exclusive one, if nobody else holds one.
    ///
    /// # Errors
    /// The file cannot be locked.
    pub fn try_upgrade(self) -> io::Result<Option<Self>> {
        let path = self.path.clone();
        drop(self);
        Self::try_exclusive(&path)
    }

    /// Removes the file: who waits for it creates a new one.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn remove(self) -> io::Result<()> {
        fs_err::remove_file(&self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_share_a_lock_and_one_excludes_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let one = FileLock::shared(&path).unwrap();
        let two = FileLock::shared(&path).unwrap();
        assert!(FileLock::try_exclusive(&path).unwrap().is_none());
        assert!(two.try_upgrade().unwrap().is_none());
        let alone = one.try_upgrade().unwrap().unwrap();
        assert!(FileLock::try_exclusive(&path).unwrap().is_none());
        let shared = alone.downgrade().unwrap();
        drop(FileLock::shared(&path).unwrap());
        shared.try_upgrade().unwrap().unwrap().remove().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn a_waiter_for_a_removed_file_locks_the_new_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let first = FileLock::exclusive(&path).unwrap();
        let waiter = std::thread::spawn({
            let path = path.clone();
            move || FileLock::exclusive(&path).unwrap()
        });
        std::thread::sleep(std::time::Duration::from_millis(50));
        first.remove().unwrap();
        let _second = waiter.join().unwrap();
        assert!(FileLock::try_exclusive(&path).unwrap().is_none());
    }
}
