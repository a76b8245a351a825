//! Locks on files that are replaced or removed while others wait for them.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Holds the file that stands at a path; let go when dropped, or when the process ends in any way.
#[derive(Debug)]
pub struct FileLock {
    path: PathBuf,
    file: fs_err::File,
}

impl FileLock {
    /// Waits until nobody else holds the file, which is made if need be.
    ///
    /// # Errors
    /// A file that cannot be made or locked.
    pub fn exclusive(path: &Path) -> io::Result<Self> {
        Self::hold(path, |file| file.lock().map(|()| true))?
            .ok_or_else(|| io::Error::other("a lock got lost"))
    }

    /// Holds the file if nobody else does.
    ///
    /// # Errors
    /// A file that cannot be made or locked.
    pub fn try_exclusive(path: &Path) -> io::Result<Option<Self>> {
        Self::hold(path, |file| match file.try_lock() {
            Ok(()) => Ok(true),
            Err(std::fs::TryLockError::WouldBlock) => Ok(false),
            Err(std::fs::TryLockError::Error(error)) => Err(error),
        })
    }

    /// Waits until nobody holds the file alone, and holds it together with others.
    ///
    /// # Errors
    /// A file that cannot be made or locked.
    pub fn shared(path: &Path) -> io::Result<Self> {
        Self::hold(path, |file| file.lock_shared().map(|()| true))?
            .ok_or_else(|| io::Error::other("a lock got lost"))
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

    /// Whether the file still stands at its path: a lock on one that was replaced excludes nobody.
    fn is_current(&self) -> io::Result<bool> {
        let held = self.file.metadata()?;
        let current = fs_err::metadata(&self.path).ok();
        Ok(current.is_some_and(|current| current.ino() == held.ino() && current.dev() == held.dev()))
    }

    /// Holds the file together with others from now on. Another may have held it alone in between.
    ///
    /// # Errors
    /// A file that cannot be locked.
    pub fn downgrade(self) -> io::Result<Self> {
        let path = self.path.clone();
        drop(self);
        Self::shared(&path)
    }

    /// Holds the file alone, if nobody holds it together with this one.
    ///
    /// # Errors
    /// A file that cannot be locked.
    pub fn try_upgrade(self) -> io::Result<Option<Self>> {
        let path = self.path.clone();
        drop(self);
        Self::try_exclusive(&path)
    }

    /// Removes the file: whoever waits for it makes a new one.
    ///
    /// # Errors
    /// A file that cannot be removed.
    pub fn remove(self) -> io::Result<()> {
        fs_err::remove_file(&self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_hold_it_together_and_one_alone() {
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
    fn who_waited_for_a_file_that_was_removed_holds_the_new_one() {
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
