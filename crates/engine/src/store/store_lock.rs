//! The lock of a cache: runs share it, and gc has it alone.

use std::io::ErrorKind;

use super::layout::OLD_STORE_LOCK;
use super::{Area, Result, Store};
use crate::identity::regular_file;
use crate::identity::shared_fs;

/// Keeps gc from removing anything; released when dropped, or when the process ends in any way.
#[must_use]
pub struct SharedLock {
    /// `None` where nothing can be written, so that nothing can be removed either.
    _file: Option<fs_err::File>,
}

/// Keeps everybody else from using a store.
#[must_use]
pub struct ExclusiveLock {
    _files: Vec<fs_err::File>,
}

impl Store {
    /// Waits until no gc has the lock, and then shares it; `waiting` is called when it is not free at once.
    ///
    /// # Errors
    /// A lock file that cannot be made although the folder can be written to.
    pub fn shared_lock(&self, waiting: impl FnOnce()) -> Result<SharedLock> {
        let path = self.area(Area::StoreLock);
        let opened = shared_fs::create_dir_all(&self.root).and_then(|()| regular_file::lock_file(&path));
        let file = match opened {
            Ok(file) => file,
            Err(error)
                if matches!(error.kind(), ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied) =>
            {
                // A reader without the right to write still keeps gc away.
                match shared_fs::open(&path) {
                    Ok(file) => file,
                    Err(_) => return Ok(SharedLock { _file: None }),
                }
            }
            Err(error) => return Err(error.into()),
        };
        if file.file().try_lock_shared().is_err() {
            waiting();
            file.file().lock_shared()?;
        }
        Ok(SharedLock { _file: Some(file) })
    }

    /// Takes the lock alone; `None` if anybody uses the store.
    ///
    /// # Errors
    /// A lock file that cannot be made.
    pub fn exclusive_lock(&self) -> Result<Option<ExclusiveLock>> {
        shared_fs::create_dir_all(&self.root)?;
        let path = self.area(Area::StoreLock);
        let mut files = vec![regular_file::lock_file(path)?];
        files.extend(shared_fs::open(self.root.join(OLD_STORE_LOCK)));
        let free = files.iter().all(|file| file.file().try_lock().is_ok());
        Ok(free.then_some(ExclusiveLock { _files: files }))
    }
}
