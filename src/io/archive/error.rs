//! Archive formats and errors.

use std::error::Error;
use std::fmt::{self, Display, Formatter};
use std::io;
use std::path::PathBuf;

/// An archive format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `.zip`
    Zip,
    /// `.tar`
    Tar,
    /// `.tar.gz`, `.tgz`
    TarGz,
    /// `.7z`
    SevenZ,
}

impl Format {
    /// Detects the format from the first 512 bytes, whatever the file's name.
    pub fn of(start: &[u8]) -> Option<Self> {
        if start.starts_with(b"PK\x03\x04") || start.starts_with(b"PK\x05\x06") {
            Some(Format::Zip)
        } else if start.starts_with(b"7z\xbc\xaf\x27\x1c") {
            Some(Format::SevenZ)
        } else if start.starts_with(b"\x1f\x8b") {
            Some(Format::TarGz)
        } else if start.get(257..262) == Some(b"ustar") {
            Some(Format::Tar)
        } else {
            None
        }
    }
}

impl Display for Format {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::Zip => "zip",
            Format::Tar => "tar",
            Format::TarGz => "tar.gz",
            Format::SevenZ => "7z",
        })
    }
}

/// Why an archive was not, or not completely, unpacked.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The operating system refused; fs-err puts the path into the message.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Not one of the formats.
    #[error("{}: {found}, expected a zip, tar, tar.gz or 7z archive", path.display())]
    Unknown {
        /// The archive.
        path: PathBuf,
        /// What it is instead, or its first bytes in hexadecimal.
        found: String,
    },
    /// Not a valid archive of its format, or a damaged one.
    #[error("{}: {}: {source}", path.display(), entry.clone().unwrap_or(format!("not a readable {format} archive")))]
    Unreadable {
        /// The archive.
        path: PathBuf,
        /// The format of its first bytes.
        format: Format,
        /// The entry that could not be read; `None` for the archive itself.
        entry: Option<String>,
        /// The error of the reader.
        source: Box<dyn Error + Send + Sync>,
    },
    /// An entry would be written outside the folder, or is a link.
    #[error("{}: entry {entry:?} refused: {reason}", path.display())]
    Unsafe {
        /// The archive.
        path: PathBuf,
        /// The entry's name.
        entry: String,
        /// Why it is refused.
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
    /// The disk has too little space for the content.
    #[error("{}: no space to unpack it: {source}", path.display())]
    InsufficientSpace {
        /// The archive.
        path: PathBuf,
        /// Bytes needed and free, and where.
        source: io::Error,
    },
    /// The size of an entry differs from the declared one.
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
