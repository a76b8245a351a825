//! 7z: the directory is checked first, then the blocks are unpacked in order.

use std::io::{self, BufReader, Read, Seek};

use sevenz_rust2::{Archive, ArchiveEntry, ArchiveReader, Error, Password};

use super::ArchiveError;
use super::job::Job;

/// Bits of an entry's attributes: a Windows link, and a flag that the upper half is a Unix mode.
const REPARSE_POINT: u32 = 0x400;
const UNIX_MODE: u32 = 0x8000;

pub(super) fn unpack(archive: impl Read + Seek, job: &mut Job<'_>) -> Result<(), ArchiveError> {
    let mut source = BufReader::new(archive);
    check_start(&mut source).map_err(|error| job.unreadable(None, error))?;
    let mut archive =
        Archive::read(&mut source, &Password::empty()).map_err(|error| job.unreadable(None, error))?;
    for entry in &archive.files {
        job.check(entry.name(), entry.is_directory(), entry.size(), fault(entry))?;
    }
    job.begin()?;
    for entry in take_empty(&mut archive) {
        if entry.is_directory() {
            job.add_folder(entry.name())?;
        } else {
            job.add_file(entry.name(), 0, io::empty())?;
        }
    }
    let mut left = archive.files.len();
    // The reader's error type cannot carry ours.
    let mut failure = None;
    let mut reader = ArchiveReader::from_archive(archive, source, Password::empty());
    let done = reader.for_each_entries(|entry, content| {
        let added = job.add_file(entry.name(), entry.size(), content);
        left = left.saturating_sub(1);
        added.map(|()| true).map_err(|error| {
            failure = Some(error);
            Error::Other("not written".into())
        })
    });
    match failure {
        Some(error) => Err(error),
        None => done.map_err(|error| job.unreadable(None, error)),
    }?;
    if left > 0 {
        return Err(job.unreadable(None, format!("{left} files belong to no block")));
    }
    Ok(())
}

/// Refuses an archive whose directory does not lie in it: the library would reserve memory for what a damaged size says.
fn check_start(archive: &mut (impl Read + Seek)) -> io::Result<()> {
    let mut start = [0; 32];
    let length = archive.seek(io::SeekFrom::End(0))?;
    archive.rewind()?;
    archive.read_exact(&mut start)?;
    archive.rewind()?;
    let [offset, size] = [12, 20].map(|at| {
        let bytes = start[at..].first_chunk().expect("the start has 32 bytes");
        u64::from_le_bytes(*bytes)
    });
    let end = offset.checked_add(size).and_then(|end| end.checked_add(start.len() as u64));
    match end.is_some_and(|end| end <= length) {
        true => Ok(()),
        false => Err(io::Error::other(format!("its directory is said to end beyond its {length} bytes"))),
    }
}

/// Removes and returns the entries without data: folders and empty files.
///
/// The library expects the files of a block directly after the block's first one, and would miss one file for each such
/// entry in between.
fn take_empty(archive: &mut Archive) -> Vec<ArchiveEntry> {
    let entries = std::mem::take(&mut archive.files);
    let map = &mut archive.stream_map;
    let blocks = std::mem::take(&mut map.file_block_index);
    let mut empty = Vec::new();
    for (entry, block) in entries.into_iter().zip(blocks) {
        if entry.has_stream() {
            archive.files.push(entry);
            map.file_block_index.push(block);
        } else {
            empty.push(entry);
        }
    }
    map.block_first_file_index.fill(archive.files.len());
    for (file, block) in map.file_block_index.iter().enumerate().rev() {
        if let Some(first) = block.and_then(|block| map.block_first_file_index.get_mut(block)) {
            *first = file;
        }
    }
    empty
}

/// Why an entry is refused. The flag for a deletion is ignored: some writers set it on every folder, and in a new folder
/// there is nothing to delete.
fn fault(entry: &ArchiveEntry) -> Option<&'static str> {
    let attributes = if entry.has_windows_attributes { entry.windows_attributes() } else { 0 };
    let mode = if attributes & UNIX_MODE != 0 { attributes >> 16 } else { 0 };
    match mode & 0o170_000 {
        _ if attributes & REPARSE_POINT != 0 => Some("it is a link"),
        0o120_000 => Some("it is a link"),
        0 | 0o100_000 | 0o040_000 => None,
        _ => Some("it is neither a file nor a folder"),
    }
}
