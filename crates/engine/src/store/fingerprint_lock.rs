//! One writer per fingerprint, over all processes that share a cache.
//!
//! A lock is one byte of an empty file, at the offset that the fingerprint begins with. No file is made or removed for it,
//! which would cost more than a small stage, and the system releases it when its holder ends in any way.

use std::collections::BTreeSet;
use std::io::{Error, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use super::lease::Lease;
use super::{Area, Result, Store, resolved};
use crate::identity::digest::Digest;
use crate::identity::regular_file;
use crate::identity::shared_fs;

/// The fingerprints that this process holds, as the bytes of their lock files.
static HELD: Mutex<BTreeSet<(PathBuf, i64)>> = Mutex::new(BTreeSet::new());

fn held() -> MutexGuard<'static, BTreeSet<(PathBuf, i64)>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Openings of the lock file that hold no lock, for the next one.
pub(super) type Spare = Arc<Mutex<Vec<fs_err::File>>>;

/// Holds a fingerprint; released when dropped, or when the process ends in any way.
pub struct Lock {
    /// The lock belongs to this opening of the file alone, so that threads exclude each other too.
    file: Option<fs_err::File>,
    key: (PathBuf, i64),
    spare: Spare,
    /// What other hosts respect, where they do not respect the lock.
    _lease: Option<Lease>,
}

/// Bytes of the lock file that belong to one results folder.
const RANGE: i64 = 1 << 20;

/// A run's use of a results folder, until it is dropped or the process ends.
pub struct ResultsUse {
    _file: fs_err::File,
}

impl Lock {
    fn new(file: fs_err::File, fingerprint: &Digest, lease: Option<Lease>, spare: &Spare) -> Self {
        let key = (file.path().to_path_buf(), byte(fingerprint).l_start);
        held().insert(key.clone());
        Self { file: Some(file), key, spare: Arc::clone(spare), _lease: lease }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        held().remove(&self.key);
        let Some(file) = self.file.take() else { return };
        let unlock = libc::flock { l_type: libc::F_UNLCK as libc::c_short, ..at(self.key.1) };
        // An opening that still holds it is closed, which gives the lock back in any case.
        if fcntl(&file, FcntlArg::F_OFD_SETLK(&unlock)).is_ok() {
            self.spare.lock().unwrap_or_else(PoisonError::into_inner).push(file);
        }
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
        loop {
            std::thread::sleep(Duration::from_millis(20));
            if let Some(lock) = self.try_lock(fingerprint)? {
                return Ok(lock);
            }
        }
    }

    /// The same without waiting: `None` where it is held.
    ///
    /// # Errors
    /// A lock file that cannot be made or locked.
    pub fn try_lock(&self, fingerprint: &Digest) -> Result<Option<Lock>> {
        let spare = self.spare_locks.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let file = spare.map_or_else(|| self.lock_file(), Ok)?;
        match fcntl(&file, FcntlArg::F_OFD_SETLK(&byte(fingerprint))) {
            Ok(_) => {
                let lease = self.leases.get().map(|leases| leases.try_take(fingerprint)).transpose()?;
                Ok(match lease {
                    Some(None) => None,
                    lease => Some(Lock::new(file, fingerprint, lease.flatten(), &self.spare_locks)),
                })
            }
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(None),
            Err(error) => Err(self.refused(error)),
        }
    }

    /// Whether this process itself holds a fingerprint, for another stage with the same recipe.
    pub fn holds(&self, fingerprint: &Digest) -> bool {
        held().contains(&(self.area(Area::UnitsLock), byte(fingerprint).l_start))
    }

    /// Marks a results folder as used by a run with these parameters; returns whether a run with others uses it too.
    ///
    /// Each folder has a range of the lock file, and each set of parameters a byte of the range.
    ///
    /// # Errors
    /// A lock file that cannot be made.
    pub fn use_results(&self, folder: &Path, parameters: &Digest) -> Result<(ResultsUse, bool)> {
        let file = self.lock_file()?;
        let folder = resolved(folder);
        let of_folder = Digest::from(blake3::hash(folder.as_os_str().as_encoded_bytes()));
        let start = byte(&of_folder).l_start & !(RANGE - 1);
        let own = start + (byte(parameters).l_start & (RANGE - 1));
        let lock = |from: i64, to: i64| libc::flock { l_start: from, l_len: to - from, ..byte(&of_folder) };
        // Another run with the same parameters may have it: it leaves the same results.
        let _ = fcntl(&file, FcntlArg::F_OFD_SETLK(&lock(own, own + 1)));
        let is_used = |from: i64, to: i64| {
            let mut found = lock(from, to);
            let asked = from < to && fcntl(&file, FcntlArg::F_OFD_GETLK(&mut found)).is_ok();
            asked && i32::from(found.l_type) != libc::F_UNLCK
        };
        let others = is_used(start, own) || is_used(own + 1, start + RANGE);
        Ok((ResultsUse { _file: file }, others))
    }

    fn lock_file(&self) -> Result<fs_err::File> {
        let path = self.area(Area::UnitsLock);
        let open = || regular_file::lock_file(&path);
        match open() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                shared_fs::create_dir_all(&self.root)?;
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
    at((fingerprint.0.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes)) >> 2) as libc::off_t)
}

/// A byte of the lock file.
fn at(place: libc::off_t) -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: place,
        l_len: 1,
        l_pid: 0,
    }
}
