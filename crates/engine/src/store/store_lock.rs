//! Who uses a cache: those who read and add share it, and what takes things away has it alone.

use std::io::ErrorKind;
use std::path::PathBuf;

use super::{Result, Store};

/// Keeps what a store holds from being taken away; let go when dropped, or when the process ends in any way.
#[must_use]
pub struct SharedLock {
    /// `None` where nothing can be written, so that nothing can be taken away either.
    _file: Option<fs_err::File>,
}

/// Has a store to itself.
#[must_use]
pub struct ExclusiveLock {
    _file: fs_err::File,
}

impl Store {
    /// Waits until nobody takes things away, and then keeps everything where it is; `waiting` is called when it is not
    /// free at once.
    ///
    /// # Errors
    /// A lock file that cannot be made although the folder can be written to.
    pub fn shared_lock(&self, waiting: impl FnOnce()) -> Result<SharedLock> {
        let path = self.use_path();
        let opened = fs_err::create_dir_all(&self.root)
            .and_then(|()| fs_err::OpenOptions::new().create(true).append(true).open(&path));
        let file = match opened {
            Ok(file) => file,
            Err(error)
                if matches!(error.kind(), ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied) =>
            {
                // A reader without the right to write still keeps others from taking away.
                match fs_err::File::open(&path) {
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

    /// Has the store alone, `None` if anybody uses it.
    ///
    /// # Errors
    /// A lock file that cannot be made.
    pub fn exclusive_lock(&self) -> Result<Option<ExclusiveLock>> {
        fs_err::create_dir_all(&self.root)?;
        let file = fs_err::OpenOptions::new().create(true).append(true).open(self.use_path())?;
        Ok(file.file().try_lock().is_ok().then_some(ExclusiveLock { _file: file }))
    }

    fn use_path(&self) -> PathBuf {
        self.root.join("use.lock")
    }
}
