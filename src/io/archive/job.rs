//! Common to all formats: the rules for names and sizes, and writing files.

use std::error::Error;
use std::io::{self, Read};
use std::path::Path;

use super::{ArchiveError, Format, Unpacked};
use crate::io::names::Unique;

/// The unpacking of one archive into a folder.
pub(super) struct Job<'a> {
    path: &'a Path,
    format: Format,
    folder: &'a Path,
    /// The largest allowed size of all files together.
    pub limit: u64,
    declared: u128,
    /// Refuses bytes that the disk has no space for.
    check_space: &'a dyn Fn(u64) -> io::Result<()>,
    pub unpacked: Unpacked,
    names: Unique,
    /// Receives bytes unpacked and bytes declared.
    on_progress: &'a mut dyn FnMut(u64, u64),
}

impl<'a> Job<'a> {
    pub fn new(
        path: &'a Path,
        format: Format,
        folder: &'a Path,
        limit: u64,
        check_space: &'a dyn Fn(u64) -> io::Result<()>,
        on_progress: &'a mut dyn FnMut(u64, u64),
    ) -> Self {
        let unpacked = Unpacked { files: 0, bytes: 0 };
        let names = Unique::default();
        Self { path, format, folder, limit, declared: 0, check_space, unpacked, names, on_progress }
    }

    pub fn format(&self) -> Format {
        self.format
    }

    /// The error for an archive, or an entry of it, that cannot be read.
    pub fn unreadable(
        &self,
        entry: Option<&str>,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> ArchiveError {
        let (path, entry) = (self.path.into(), entry.map(str::to_owned));
        ArchiveError::Unreadable { path, format: self.format, entry, source: source.into() }
    }

    /// The error for an archive whose content is too large.
    pub fn too_large(&self, found: u128) -> ArchiveError {
        ArchiveError::TooLarge { path: self.path.into(), found, limit: self.limit }
    }

    /// Checks an entry before anything is written; `fault` is a reason of its format to refuse it.
    pub fn check(
        &mut self,
        name: &str,
        is_folder: bool,
        size: u64,
        fault: Option<&'static str>,
    ) -> Result<(), ArchiveError> {
        let fault = fault.or_else(|| unsafe_name(name)).or_else(|| self.names.add(name, is_folder));
        if let Some(reason) = fault {
            return Err(ArchiveError::Unsafe { path: self.path.into(), entry: name.into(), reason });
        }
        self.declared += u128::from(size);
        if self.declared > u128::from(self.limit) {
            return Err(self.too_large(self.declared));
        }
        Ok(())
    }

    /// Creates the target folder after the last check, and checks the free disk space.
    pub fn begin(&self) -> Result<(), ArchiveError> {
        fs_err::create_dir_all(self.folder)?;
        let needed = u64::try_from(self.declared).unwrap_or(u64::MAX);
        (self.check_space)(needed)
            .map_err(|source| ArchiveError::InsufficientSpace { path: self.path.into(), source })
    }

    /// Creates an empty folder.
    pub fn add_folder(&self, name: &str) -> Result<(), ArchiveError> {
        fs_err::create_dir_all(self.folder.join(name)).map_err(|error| self.unwritable(name, error))
    }

    /// The error for an entry that cannot be written beside what is there, from an earlier archive or entry.
    fn unwritable(&self, name: &str, error: io::Error) -> ArchiveError {
        use io::ErrorKind::{AlreadyExists, InvalidFilename, IsADirectory, NotADirectory};
        let reason = match error.kind() {
            AlreadyExists | NotADirectory | IsADirectory => {
                "an earlier entry, or file, has the same name, or that of a folder above it"
            }
            InvalidFilename => "its path is too long",
            _ => return error.into(),
        };
        ArchiveError::Unsafe { path: self.path.into(), entry: name.into(), reason }
    }

    /// Writes a file, which must have the size that the archive declares.
    pub fn add_file(&mut self, name: &str, size: u64, content: impl Read) -> Result<(), ArchiveError> {
        let target = self.folder.join(name);
        if let Some(parent) = target.parent() {
            fs_err::create_dir_all(parent).map_err(|error| self.unwritable(name, error))?;
        }
        let left = self.limit - self.unpacked.bytes;
        // An entry never replaces another file, whether of this archive or of an earlier one.
        let open = fs_err::OpenOptions::new().write(true).create_new(true).open(target);
        let mut file = open.map_err(|error| self.unwritable(name, error))?;
        let declared = u64::try_from(self.declared).unwrap_or(u64::MAX);
        let mut content = Counted {
            content: content.take(left.saturating_add(1)),
            count: self.unpacked.bytes,
            on_progress: &mut |count| (self.on_progress)(count, declared),
        };
        let bytes = io::copy(&mut content, &mut file).map_err(|error| self.unreadable(Some(name), error))?;
        if bytes > left {
            return Err(self.too_large(u128::from(self.unpacked.bytes) + u128::from(bytes)));
        }
        if bytes != size {
            let (path, entry) = (self.path.into(), name.into());
            return Err(ArchiveError::Size { path, entry, found: bytes, expected: size });
        }
        self.unpacked.files += 1;
        self.unpacked.bytes += bytes;
        Ok(())
    }
}

/// A reader that reports its progress.
struct Counted<'a, R> {
    content: R,
    count: u64,
    on_progress: &'a mut dyn FnMut(u64),
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.content.read(out)?;
        self.count += count as u64;
        (self.on_progress)(self.count);
        Ok(count)
    }
}

/// Why a name is refused. Both separators are treated alike, so that an archive is refused on every system.
fn unsafe_name(name: &str) -> Option<&'static str> {
    let mut parts = name.split(['/', '\\']);
    let first = parts.clone().next().unwrap_or_default();
    if first.is_empty() || first.ends_with(':') {
        Some("its path is absolute")
    } else if parts.any(|part| part == "..") {
        Some("its path contains `..`")
    } else if name.contains('\0') {
        Some("its path contains a zero byte")
    } else if name.len() > 2048 || name.split('/').any(|part| part.len() > 255) {
        Some("its path is too long")
    } else {
        None
    }
}
