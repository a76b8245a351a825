//! One writer per fingerprint, over all processes that share a cache.

use std::fs::TryLockError;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{Result, Store};
use crate::digest::Digest;

/// Holds a fingerprint; let go when dropped, or when the process ends in any way.
pub struct Lock {
    path: PathBuf,
    _file: fs_err::File,
}

impl Store {
    /// Waits until no other process computes this fingerprint, and keeps others waiting while held; `waiting` is
    /// called when it is not free at once.
    ///
    /// # Errors
    /// A lock file that cannot be made.
    pub fn lock(&self, fingerprint: &Digest, mut waiting: impl FnMut()) -> Result<Lock> {
        let path = self.root.join("locks").join(fingerprint.to_string());
        fs_err::create_dir_all(path.parent().unwrap_or(&self.root))?;
        loop {
            let file = fs_err::OpenOptions::new().create(true).append(true).open(&path)?;
            if file.file().try_lock().is_err() {
                waiting();
                file.file().lock()?;
            }
            if stands(&file, &path)? {
                return Ok(Lock { path, _file: file });
            }
        }
    }

    /// The same without waiting: `None` where another process holds it.
    ///
    /// # Errors
    /// A lock file that cannot be made or locked.
    pub fn try_lock(&self, fingerprint: &Digest) -> Result<Option<Lock>> {
        let path = self.root.join("locks").join(fingerprint.to_string());
        fs_err::create_dir_all(path.parent().unwrap_or(&self.root))?;
        loop {
            let file = fs_err::OpenOptions::new().create(true).append(true).open(&path)?;
            match file.file().try_lock() {
                Ok(()) if stands(&file, &path)? => return Ok(Some(Lock { path, _file: file })),
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error.into()),
            }
        }
    }
}

/// Whether a lock file that was opened is still the one at its path: the last holder may have removed it meanwhile, and
/// a lock on it would exclude nobody.
fn stands(file: &fs_err::File, path: &Path) -> Result<bool> {
    let held = file.metadata()?;
    let current = fs_err::metadata(path).ok();
    Ok(current.is_some_and(|current| current.ino() == held.ino() && current.dev() == held.dev()))
}

impl Drop for Lock {
    fn drop(&mut self) {
        // A file that stays only takes up a name.
        let _ = fs_err::remove_file(&self.path);
    }
}
