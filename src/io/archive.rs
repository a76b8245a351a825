//! Unpacks zip archives that came from elsewhere, and trusts nothing in them.
//!
//! Refused before a byte is written: absolute paths, `..`, links, and declared sizes beyond the limits. The
//! sizes are counted again while unpacking, since an archive may lie about them. Times and permissions are
//! not restored, so that the folder depends on the archive's contents alone.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use zip::ZipArchive;
use zip::result::ZipError;

/// Why an archive was not, or not completely, unpacked.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The operating system refused; fs-err puts the path into the message.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Not a zip archive, or a damaged one.
    #[error("{}: {}: {source}", path.display(), entry.as_deref().unwrap_or("not a readable zip archive"))]
    Zip {
        /// The archive.
        path: PathBuf,
        /// The entry that could not be read, or none if the archive itself could not.
        entry: Option<String>,
        /// What the reader met.
        source: ZipError,
    },
    /// An entry would be written outside the folder, or is a link.
    #[error("{}: entry {entry:?} refused: {reason}", path.display())]
    Unsafe {
        /// The archive.
        path: PathBuf,
        /// The entry's name.
        entry: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The content is larger than allowed.
    #[error("{}: unpacks to {found} bytes or more, expected at most {limit}", path.display())]
    TooLarge {
        /// The archive.
        path: PathBuf,
        /// Bytes declared or counted.
        found: u128,
        /// Bytes allowed.
        limit: u64,
    },
    /// An entry has not the size that the archive declares for it.
    #[error("{}: {entry}: {found} bytes, expected {expected}", path.display())]
    Size {
        /// The archive.
        path: PathBuf,
        /// The entry's name.
        entry: String,
        /// Bytes unpacked.
        found: u64,
        /// Bytes declared.
        expected: u64,
    },
}

/// How much an archive may unpack to: the smaller of the two counts.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes in all.
    pub bytes: u64,
    /// Bytes in all for each byte of the archive. Text reaches about 20; deflate can do 1032.
    pub ratio: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 1 << 40, ratio: 200 }
    }
}

/// What was unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unpacked {
    /// Number of files.
    pub files: u64,
    /// Bytes of them all.
    pub bytes: u64,
}

/// Unpacks all entries into `folder`, which is made if need be.
pub fn unzip(
    path: impl AsRef<Path>,
    folder: impl AsRef<Path>,
    limits: Limits,
) -> Result<Unpacked, ArchiveError> {
    let (path, folder) = (path.as_ref(), folder.as_ref());
    let file = fs_err::File::open(path)?;
    let limit = limits.bytes.min(file.metadata()?.len().saturating_mul(limits.ratio));
    let unreadable = |entry| move |source| ArchiveError::Zip { path: path.into(), entry, source };
    let mut archive = ZipArchive::new(io::BufReader::new(file)).map_err(unreadable(None))?;
    check(path, &mut archive, limit)?;

    let mut unpacked = Unpacked { files: 0, bytes: 0 };
    fs_err::create_dir_all(folder)?;
    for index in 0..archive.len() {
        let name = archive.name_for_index(index).map(str::to_owned);
        let mut entry = archive.by_index(index).map_err(unreadable(name))?;
        let target = folder.join(entry.name());
        if entry.is_dir() {
            fs_err::create_dir_all(target)?;
            continue;
        }
        if let Some(parent) = target.parent() {
            fs_err::create_dir_all(parent)?;
        }
        let (name, expected) = (entry.name().to_owned(), entry.size());
        let left = limit - unpacked.bytes;
        let mut file = fs_err::File::create(target)?;
        let bytes = io::copy(&mut entry.by_ref().take(left.saturating_add(1)), &mut file)
            .map_err(|error| unreadable(Some(name.clone()))(error.into()))?;
        if bytes > left {
            let found = u128::from(unpacked.bytes) + u128::from(bytes);
            return Err(ArchiveError::TooLarge { path: path.into(), found, limit });
        }
        if bytes != expected {
            return Err(ArchiveError::Size { path: path.into(), entry: name, found: bytes, expected });
        }
        unpacked.files += 1;
        unpacked.bytes += bytes;
    }
    Ok(unpacked)
}

/// Looks through the directory of the archive, without unpacking.
fn check<R: Read + io::Seek>(
    path: &Path,
    archive: &mut ZipArchive<R>,
    limit: u64,
) -> Result<(), ArchiveError> {
    let mut declared = 0u128;
    for index in 0..archive.len() {
        let name = archive.name_for_index(index).map(str::to_owned);
        let entry = archive.by_index_raw(index).map_err(|source| ArchiveError::Zip {
            path: path.into(),
            entry: name,
            source,
        })?;
        let reason = if entry.is_symlink() { Some("it is a link") } else { unsafe_name(entry.name()) };
        if let Some(reason) = reason {
            return Err(ArchiveError::Unsafe { path: path.into(), entry: entry.name().into(), reason });
        }
        declared += u128::from(entry.size());
    }
    if declared > u128::from(limit) {
        return Err(ArchiveError::TooLarge { path: path.into(), found: declared, limit });
    }
    Ok(())
}

/// Both separators count, whatever the system: the same archive must be refused everywhere.
fn unsafe_name(name: &str) -> Option<&'static str> {
    let mut parts = name.split(['/', '\\']);
    let first = parts.clone().next().unwrap_or_default();
    if first.is_empty() || first.ends_with(':') {
        Some("its path is absolute")
    } else if parts.any(|part| part == "..") {
        Some("its path has `..`")
    } else if name.contains('\0') {
        Some("its path has a zero byte")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use zip::ZipWriter;
    use zip::write::SimpleFileOptions;

    fn archive(entries: &[(&str, &[u8])]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut writer = ZipWriter::new(fs_err::File::create(file.path()).unwrap());
        for (name, bytes) in entries {
            writer.start_file(*name, SimpleFileOptions::default()).unwrap();
            writer.write_all(bytes).unwrap();
        }
        writer.finish().unwrap();
        file
    }

    #[test]
    fn files_and_folders_come_out() {
        let file = archive(&[("a/b/c.txt", b"hello"), ("d.txt", b"")]);
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("new");
        let unpacked = unzip(file.path(), &target, Limits::default()).unwrap();
        assert_eq!(unpacked, Unpacked { files: 2, bytes: 5 });
        assert_eq!(fs_err::read(target.join("a/b/c.txt")).unwrap(), b"hello");
        assert_eq!(fs_err::read(target.join("d.txt")).unwrap(), b"");
    }

    #[test]
    fn nothing_is_written_outside_the_folder() {
        for (name, reason) in [
            ("/etc/x", "its path is absolute"),
            ("C:\\x", "its path is absolute"),
            ("a/../../x", "its path has `..`"),
            ("..\\x", "its path has `..`"),
        ] {
            let file = archive(&[("good.txt", b"1"), (name, b"2")]);
            let folder = tempfile::tempdir().unwrap();
            let error = unzip(file.path(), folder.path(), Limits::default()).unwrap_err().to_string();
            assert!(error.ends_with(&format!("refused: {reason}")), "{error}");
            assert_eq!(
                fs_err::read_dir(folder.path()).unwrap().count(),
                0,
                "good.txt was not written either"
            );
        }
    }

    #[test]
    fn links_are_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut writer = ZipWriter::new(fs_err::File::create(file.path()).unwrap());
        writer.add_symlink("link", "/etc/passwd", SimpleFileOptions::default()).unwrap();
        writer.finish().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let error = unzip(file.path(), folder.path(), Limits::default()).unwrap_err().to_string();
        assert!(error.ends_with("entry \"link\" refused: it is a link"), "{error}");
    }

    #[test]
    fn a_bomb_is_refused_by_ratio_and_by_size() {
        let file = archive(&[("zeros", &[0; 1 << 20])]);
        let folder = tempfile::tempdir().unwrap();
        let error = unzip(file.path(), folder.path(), Limits::default()).unwrap_err().to_string();
        assert!(error.contains("unpacks to 1048576 bytes or more"), "{error}");
        let limits = Limits { bytes: 1000, ratio: 5000 };
        let error = unzip(file.path(), folder.path(), limits).unwrap_err().to_string();
        assert!(error.ends_with("expected at most 1000"), "{error}");
        unzip(file.path(), folder.path(), Limits { ratio: 5000, ..Limits::default() }).unwrap();
    }

    #[test]
    fn damage_is_named() {
        let file = archive(&[("a.txt", b"some text that is stored")]);
        let mut bytes = fs_err::read(file.path()).unwrap();
        let at = 30 + "a.txt".len() + 3; // within the first entry's data
        bytes[at] ^= 0x55;
        fs_err::write(file.path(), bytes).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let error = unzip(file.path(), folder.path(), Limits::default()).unwrap_err().to_string();
        assert!(error.contains(": a.txt: "), "{error}");
        fs_err::write(file.path(), "no archive").unwrap();
        let error = unzip(file.path(), folder.path(), Limits::default()).unwrap_err().to_string();
        assert!(error.contains("not a readable zip archive"), "{error}");
    }
}
