//! Free space on the disk, and numbers of bytes for people.

use std::io;
use std::path::Path;
use std::sync::Arc;

use signal_hook::consts::signal::SIGXFSZ;

use super::{Store, StoreError};

/// The bytes that this user may still write to the file system of a folder.
///
/// # Errors
/// A folder that does not exist.
pub fn disk_space(folder: &Path) -> io::Result<u64> {
    let disk = rustix::fs::statvfs(folder)
        .map_err(|error| io::Error::other(format!("{}: {}", folder.display(), io::Error::from(error))))?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// Refuses to write more bytes below a folder than its file system has free.
///
/// # Errors
/// Too little free space, and a folder that does not exist.
pub fn require_space(folder: &Path, needed: u64) -> io::Result<()> {
    let free = disk_space(folder)?;
    if needed <= free {
        return Ok(());
    }
    let [needed, free] = [needed, free].map(format_bytes);
    Err(io::Error::other(format!("{}: {needed} needed, {free} free", folder.display())))
}

/// Makes a write beyond the user's limit on the size of files an error, as on a full disk. By default it ends the process.
pub fn report_file_size_limit() {
    // Without the handler the process ends, which is no worse than before.
    let _ = signal_hook::flag::register(SIGXFSZ, Arc::default());
}

/// A number of bytes for people: three digits and a decimal unit, such as `1.23 MB`.
pub fn format_bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
    format!("{value:.digits$} {}", UNITS[unit])
}

impl Store {
    /// Adds the free space to the error of a full disk.
    #[must_use]
    pub fn with_free_space(&self, error: StoreError) -> StoreError {
        match error {
            StoreError::Io(error) if error.kind() == io::ErrorKind::StorageFull => StoreError::Full {
                error: error.to_string(),
                root: self.root.clone(),
                free: self.free_space(),
            },
            error => error,
        }
    }

    /// The bytes that are free on the cache's disk; 0 where unknown.
    pub fn free_space(&self) -> u64 {
        disk_space(&self.root).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_little_space_is_refused_with_both_numbers() {
        let folder = tempfile::tempdir().unwrap();
        assert!(disk_space(folder.path()).unwrap() > 0);
        require_space(folder.path(), 1).unwrap();
        let refused = require_space(folder.path(), u64::MAX).unwrap_err().to_string();
        assert!(refused.contains(": 18.4 EB needed, ") && refused.ends_with(" free"), "{refused}");
        let none = disk_space(&folder.path().join("none")).unwrap_err();
        assert!(none.to_string().contains("none: No such file"), "{none}");
    }

    #[test]
    fn sizes_have_three_digits() {
        let sizes = [0, 999, 1000, 9_994, 9_995, 99_949, 99_950, 999_499, 999_500, u64::MAX];
        let expected = [
            "0 B", "999 B", "1.00 kB", "9.99 kB", "10.0 kB", "99.9 kB", "100 kB", "999 kB", "1.00 MB",
            "18.4 EB",
        ];
        assert_eq!(sizes.map(format_bytes), expected);
    }
}
