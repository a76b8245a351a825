//! Unpacks untrusted archives: zip, tar, tar.gz and 7z.
//!
//! Refused before a byte is written: absolute paths, `..`, links, and declared sizes beyond the limits or the free disk
//! space. The sizes are counted again while unpacking, since the declared ones may be false. Times and permissions are
//! not restored, so that the folder depends only on the archive's contents.

mod error;
mod job;
mod sevenz;
mod tar;
#[cfg(test)]
mod tests;
mod volumes;
mod zip;

use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

pub use error::{ArchiveError, Format};

use super::mistaken::mistaken;
use job::Job;
use volumes::Volumes;

/// The largest size that an archive may unpack to: the smaller limit applies.
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
    /// Bytes of all files.
    pub bytes: u64,
}

/// Unpacks all entries into `folder`, which is created if missing.
///
/// # Errors
/// The format is unknown, the archive is damaged, or an entry is refused; see [`ArchiveError`].
pub fn unpack(
    path: impl AsRef<Path>,
    folder: impl AsRef<Path>,
    limits: Limits,
) -> Result<Unpacked, ArchiveError> {
    let path = path.as_ref();
    unpack_volumes(&[path], path, folder, limits, &|_| Ok(()), &mut |_, _| ())
}

/// The same for an archive that was split into volumes (`x.7z.001`, `x.7z.002`, …), given in order.
///
/// They are read as one file, without being joined on disk. Messages call it `name`. `check_space` receives the bytes needed,
/// before any is written. `on_progress` receives the bytes unpacked so far and the bytes that the archive declares.
///
/// # Errors
/// See [`unpack`].
pub fn unpack_volumes<P: AsRef<Path>>(
    volumes: &[P],
    name: &Path,
    folder: impl AsRef<Path>,
    limits: Limits,
    check_space: &dyn Fn(u64) -> io::Result<()>,
    on_progress: &mut dyn FnMut(u64, u64),
) -> Result<Unpacked, ArchiveError> {
    let mut archive = Volumes::open(volumes)?;
    let mut start = Vec::new();
    archive.by_ref().take(512).read_to_end(&mut start)?;
    archive.seek(SeekFrom::Start(0))?;
    let format = Format::of(&start).ok_or_else(|| {
        let bytes = start.iter().take(6).map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ");
        let found = mistaken(&start).map_or(format!("begins with {bytes}"), |found| format!("it is {found}"));
        ArchiveError::Unknown { path: name.into(), found }
    })?;
    let limit = limits.bytes.min(archive.len().saturating_mul(limits.ratio));
    let mut job = Job::new(name, format, folder.as_ref(), limit, check_space, on_progress);
    match format {
        Format::Zip => zip::unpack(archive, &mut job)?,
        Format::Tar | Format::TarGz => tar::unpack(archive, &mut job)?,
        Format::SevenZ => sevenz::unpack(archive, &mut job)?,
    }
    Ok(job.unpacked)
}
