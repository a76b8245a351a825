//! How much room is left where the cache is.

use super::{Store, StoreError};

impl Store {
    /// An error with the room that is left, where that is what it is about.
    #[must_use]
    pub fn with_free_space(&self, error: StoreError) -> StoreError {
        match error {
            StoreError::Io(error) if error.kind() == std::io::ErrorKind::StorageFull => {
                StoreError::Full { error: error.to_string(), root: self.root.clone(), free: self.free() }
            }
            error => error,
        }
    }

    /// Bytes that may still be written where the cache is; 0 where that is not known.
    pub fn free(&self) -> u64 {
        rustix::fs::statvfs(&self.root).map_or(0, |disk| disk.f_bavail.saturating_mul(disk.f_frsize))
    }
}
