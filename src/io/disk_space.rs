//! Free disk space, checked before it is needed.

use std::io;
use std::path::{Path, PathBuf};

/// A file system with too little free space.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {} needed, {} free", folder.display(), size(*needed), size(*free))]
pub struct InsufficientSpace {
    /// A folder of the file system.
    pub folder: PathBuf,
    /// Bytes needed.
    pub needed: u64,
    /// Bytes free.
    pub free: u64,
}

/// Free bytes for this user on the file system of a folder.
///
/// # Errors
/// The folder does not exist.
pub fn free(folder: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(folder)
        .map_err(|error| io::Error::other(format!("{}: {}", folder.display(), io::Error::from(error))))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Checks that `needed` bytes fit into `free` ones.
///
/// # Errors
/// They do not.
pub fn check(folder: &Path, needed: u64, free: u64) -> Result<(), InsufficientSpace> {
    if needed > free {
        return Err(InsufficientSpace { folder: folder.into(), needed, free });
    }
    Ok(())
}

/// Formats a number of bytes with three digits and a decimal unit.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 1000 {
        return format!("{bytes} bytes");
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_little_space_is_refused_with_both_numbers() {
        assert_eq!(check(Path::new("/data"), 5, 5), Ok(()));
        let refused = check(Path::new("/data"), 61_234_567_890, 999_999).unwrap_err();
        assert_eq!(refused.to_string(), "/data: 61.2 GB needed, 1.00 MB free");
    }

    #[test]
    fn sizes_have_three_digits() {
        let sizes = [0, 999, 1000, 9_994, 9_995, 99_949, 99_950, 999_499, 999_500, u64::MAX].map(size);
        assert_eq!(
            sizes,
            [
                "0 bytes",
                "999 bytes",
                "1.00 kB",
                "9.99 kB",
                "10.0 kB",
                "99.9 kB",
                "100 kB",
                "999 kB",
                "1.00 MB",
                "18.4 EB"
            ]
        );
    }

    #[test]
    fn the_free_space_of_a_file_system_is_found() {
        let folder = tempfile::tempdir().unwrap();
        assert!(free(folder.path()).unwrap() > 0);
        assert!(free(&folder.path().join("none")).unwrap_err().to_string().contains("none: No such file"));
    }
}
