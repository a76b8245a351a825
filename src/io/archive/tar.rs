//! Tar and tar.gz: read twice, since a tar has no directory to check first.

use std::io::{self, BufReader, Read, Seek, SeekFrom};

use flate2::bufread::MultiGzDecoder;
use tar::EntryType;

use super::job::Job;
use super::{ArchiveError, Format};

/// A tar ends with at least one block of zeros.
const BLOCK: u64 = 512;
/// Allowed bytes of headers and padding beyond the files' own bytes.
const OVERHEAD: u64 = 1 << 20;

pub(super) fn unpack(mut archive: impl Read + Seek, job: &mut Job<'_>) -> Result<(), ArchiveError> {
    walk(&mut archive, job, &mut |job, name, entry| {
        let header = entry.header().entry_type();
        let fault = match header {
            EntryType::Symlink | EntryType::Link => Some("it is a link"),
            EntryType::GNUSparse => Some("it is a sparse file"),
            _ if is_sparse(entry).map_err(|error| job.unreadable(Some(name), error))? => {
                Some("it is a sparse file")
            }
            EntryType::Regular | EntryType::Continuous | EntryType::Directory => None,
            _ => Some("it is neither a file nor a folder"),
        };
        let is_folder = header == EntryType::Directory || name.ends_with('/');
        job.check(name, is_folder, entry.size(), fault)
    })?;
    archive.seek(SeekFrom::Start(0))?;
    job.begin()?;
    walk(&mut archive, job, &mut |job, name, entry| {
        if entry.header().entry_type() == EntryType::Directory || name.ends_with('/') {
            return job.add_folder(name);
        }
        job.add_file(name, entry.size(), entry)
    })
}

/// Whether a PAX header says that the content is a map of holes and the parts between them.
fn is_sparse(entry: &mut Entry<'_, '_>) -> io::Result<bool> {
    let Some(extensions) = entry.pax_extensions()? else { return Ok(false) };
    for extension in extensions {
        if extension?.key_bytes().starts_with(b"GNU.sparse.") {
            return Ok(true);
        }
    }
    Ok(false)
}

type Entry<'a, 'b> = tar::Entry<'a, Bounded<Box<dyn Read + 'b>>>;
type Visit<'v, 'b> =
    dyn for<'a> FnMut(&mut Job<'_>, &str, &mut Entry<'a, 'b>) -> Result<(), ArchiveError> + 'v;

fn walk<'b>(
    archive: &'b mut dyn Read,
    job: &mut Job<'_>,
    visit: &mut Visit<'_, 'b>,
) -> Result<(), ArchiveError> {
    let archive = BufReader::new(archive);
    let stream: Box<dyn Read + 'b> = match job.format() {
        Format::TarGz => Box::new(MultiGzDecoder::new(archive)),
        _ => Box::new(archive),
    };
    // Headers alone can be a bomb: long names, or a million empty files.
    let left = job.limit.saturating_mul(2).saturating_add(OVERHEAD);
    let mut archive = tar::Archive::new(Bounded { stream, left, read: 0 });
    let mut end = 0;
    let entries = archive.entries().map_err(|error| job.unreadable(None, error))?;
    for entry in entries {
        let mut entry = entry.map_err(|error| job.unreadable(None, error))?;
        if entry.header().entry_type() == EntryType::XGlobalHeader {
            continue; // a comment on the whole archive, as git writes it
        }
        end = entry.raw_file_position() + entry.size().next_multiple_of(BLOCK);
        let name = String::from_utf8(entry.path_bytes().into_owned());
        let name = name.map_err(|error| job.unreadable(None, error))?;
        visit(job, &name, &mut entry)?;
    }
    // The entries end at a block of zeros, or where the archive does.
    let mut rest = archive.into_inner();
    if rest.read < end + BLOCK {
        return Err(job.unreadable(None, "it is cut off: the blocks of zeros at its end are missing"));
    }
    // Read to the end, where gzip has its checksum.
    io::copy(&mut rest, &mut io::sink()).map_err(|error| job.unreadable(None, error))?;
    Ok(())
}

/// A reader that fails after so many bytes.
struct Bounded<R> {
    stream: R,
    left: u64,
    /// Bytes that were read.
    read: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.stream.read(out)?;
        self.read += count as u64;
        self.left = self.left.checked_sub(count as u64).ok_or_else(|| {
            io::Error::other("the archive unpacks to far more than the limit, most of it headers")
        })?;
        Ok(count)
    }
}
