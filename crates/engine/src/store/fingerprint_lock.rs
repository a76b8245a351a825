//! One writer per fingerprint, over all processes that share a cache.
//!
//! A lock is one byte of an empty file, at the offset that the fingerprint begins with. No file is made or removed for it,
//! which would cost more than a small stage, and the system releases it when its holder ends in any way.

use std::collections::BTreeSet;
use std::io::{Error, ErrorKind};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use super::{Area, Result, Store};
use crate::identity::digest::Digest;

/// The fingerprints that this process holds, as the bytes of their lock files.
static HELD: Mutex<BTreeSet<(PathBuf, i64)>> = Mutex::new(BTreeSet::new());

fn held() -> MutexGuard<'static, BTreeSet<(PathBuf, i64)>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Holds a fingerprint; released when dropped, or when the process ends in any way.
pub struct Lock {
    // The lock belongs to this opening of the file alone, so that threads exclude each other too.
    _file: fs_err::File,
    key: (PathBuf, i64),
}

impl Lock {
    fn new(file: fs_err::File, fingerprint: &Digest) -> Self {
        let key = (file.path().to_path_buf(), byte(fingerprint).l_start);
        held().insert(key.clone());
        Self { _file: file, key }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        held().remove(&self.key);
    }
}

impl Store {
    /// Waits until no other process computes this fingerprint, and keeps others waiting while held; `waiting` is
    /// called when it is not free at once.
    ///
    /// # Errors
    /// A lock file that cannot be made or locked.
    pub fn lock(&self, fingerprint: &Digest, mut waiting: impl FnMut()) -> Result<Lock> {
        if let Some(lock) = self.try_lock(fingerprint)? {
            return Ok(lock);
        }
        waiting();
        let file = self.lock_file()?;
        loop {
            match fcntl(&file, FcntlArg::F_OFD_SETLKW(&byte(fingerprint))) {
                Ok(_) => return Ok(Lock::new(file, fingerprint)),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(self.refused(error)),
            }
        }
    }

    /// The same without waiting: `None` where it is held.
    ///
    /// # Errors
    /// A lock file that cannot be made or locked.
    pub fn try_lock(&self, fingerprint: &Digest) -> Result<Option<Lock>> {
        let file = self.lock_file()?;
        match fcntl(&file, FcntlArg::F_OFD_SETLK(&byte(fingerprint))) {
            Ok(_) => Ok(Some(Lock::new(file, fingerprint))),
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(None),
            Err(error) => Err(self.refused(error)),
        }
    }

    /// Whether this process itself holds a fingerprint, for another stage with the same recipe.
    pub fn holds(&self, fingerprint: &Digest) -> bool {
        held().contains(&(self.area(Area::UnitsLock), byte(fingerprint).l_start))
    }

    fn lock_file(&self) -> Result<fs_err::File> {
        let path = self.area(Area::UnitsLock);
        let open = || fs_err::OpenOptions::new().create(true).append(true).open(&path);
        match open() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                fs_err::create_dir_all(&self.root)?;
                Ok(open()?)
            }
            file => Ok(file?),
        }
    }

    fn refused(&self, error: Errno) -> super::StoreError {
        let message = format!("{}: cannot be locked: {error}", self.area(Area::UnitsLock).display());
        Error::new(Error::from(error).kind(), message).into()
    }
}

/// The byte of a fingerprint. Two fingerprints share one so rarely that it does not matter: they would wait for each other.
fn byte(fingerprint: &Digest) -> libc::flock {
    let number = fingerprint.0.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes)) >> 2;
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: number as libc::off_t,
        l_len: 1,
        l_pid: 0,
    }
}
