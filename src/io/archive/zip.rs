//! Zip: the directory is checked first, then each entry is unpacked.

use std::collections::BTreeSet;
use std::io::{self, BufReader, Read, Seek, SeekFrom};

use zip::ZipArchive;

use super::ArchiveError;
use super::job::Job;

/// Why an entry is refused, by the type in its mode of Unix.
fn fault(mode: Option<u32>, encrypted: bool) -> Option<&'static str> {
    if encrypted {
        return Some("it is encrypted");
    }
    match mode.unwrap_or(0) & 0o170_000 {
        0 | 0o100_000 | 0o040_000 => None,
        0o120_000 => Some("it is a link"),
        _ => Some("it is neither a file nor a folder"),
    }
}

/// Refuses an archive whose directory does not agree with the number of entries, or with the headers before them. The library
/// keeps one of several entries with a name, and reads no more than are counted.
fn check_directory(source: &mut (impl Read + Seek), job: &mut Job<'_>) -> Result<(), ArchiveError> {
    let unreadable = |job: &Job<'_>, error: &dyn std::error::Error| job.unreadable(None, error.to_string());
    let (start, counted) = {
        let archive = ZipArchive::new(&mut *source).map_err(|error| unreadable(job, &error))?;
        (archive.central_directory_start(), archive.len())
    };
    let start = directory_start(source).map_err(|error| unreadable(job, &error))?.unwrap_or(start);
    let entries = directory(source, start).map_err(|error| unreadable(job, &error))?;
    let mut names = BTreeSet::new();
    for (name, header) in &entries {
        let shown = String::from_utf8_lossy(name).into_owned();
        let local = local_name(source, *header).map_err(|error| job.unreadable(Some(&shown), error))?;
        if local.is_some_and(|local| local != *name) {
            return Err(job.unreadable(Some(&shown), "the name before its content is another one"));
        }
        if !names.insert(name) {
            return Err(job.unreadable(Some(&shown), "two entries have this name"));
        }
    }
    if entries.len() != counted {
        let text = format!("its directory has {} entries, its end counts {counted}", entries.len());
        return Err(job.unreadable(None, text));
    }
    source.rewind().map_err(|error| unreadable(job, &error))
}

/// Where the directory begins: its size before the record at the end. `None` for zip64, whose record is elsewhere.
fn directory_start(source: &mut (impl Read + Seek)) -> io::Result<Option<u64>> {
    const RECORD: usize = 22;
    let length = source.seek(SeekFrom::End(0))?;
    let longest = length.min((RECORD + usize::from(u16::MAX)) as u64);
    source.seek(SeekFrom::End(-(longest as i64)))?;
    let mut tail = Vec::new();
    source.take(longest).read_to_end(&mut tail)?;
    let record = tail.windows(RECORD).rposition(|found| found.starts_with(b"PK\x05\x06"));
    Ok(record.and_then(|at| {
        let size = tail[at + 12..].first_chunk().map(|bytes| u32::from_le_bytes(*bytes))?;
        let end = length - longest + at as u64;
        (size != u32::MAX).then(|| end.checked_sub(size.into())).flatten()
    }))
}

/// The entries of the directory: each name, and where its local header is, `None` where that takes the extra field of zip64.
fn directory(source: &mut (impl Read + Seek), start: u64) -> io::Result<Vec<(Vec<u8>, Option<u64>)>> {
    const SIGNATURE: &[u8] = b"PK\x01\x02";
    let mut entries = Vec::new();
    source.seek(SeekFrom::Start(start))?;
    let mut head = [0; 46];
    loop {
        source.read_exact(&mut head[..4])?;
        if &head[..4] != SIGNATURE {
            return Ok(entries);
        }
        source.read_exact(&mut head[4..])?;
        let [name, extra, comment] =
            [28, 30, 32].map(|at| usize::from(u16::from_le_bytes([head[at], head[at + 1]])));
        let mut bytes = vec![0; name];
        source.read_exact(&mut bytes)?;
        source.seek_relative((extra + comment) as i64)?;
        let offset = u32::from_le_bytes([head[42], head[43], head[44], head[45]]);
        entries.push((bytes, (offset != u32::MAX).then_some(offset.into())));
    }
}

/// The name in a local header; `None` where there is none at that place, as in an archive behind a program.
fn local_name(source: &mut (impl Read + Seek), header: Option<u64>) -> io::Result<Option<Vec<u8>>> {
    let Some(header) = header else { return Ok(None) };
    let mut head = [0; 30];
    source.seek(SeekFrom::Start(header))?;
    source.read_exact(&mut head)?;
    if &head[..4] != b"PK\x03\x04" {
        return Ok(None);
    }
    let mut name = vec![0; usize::from(u16::from_le_bytes([head[26], head[27]]))];
    source.read_exact(&mut name)?;
    Ok(Some(name))
}

pub(super) fn unpack(archive: impl Read + Seek, job: &mut Job<'_>) -> Result<(), ArchiveError> {
    let mut source = BufReader::new(archive);
    check_directory(&mut source, job)?;
    let mut archive = ZipArchive::new(source).map_err(|error| job.unreadable(None, error))?;
    for index in 0..archive.len() {
        let name = archive.name_for_index(index).map(str::to_owned);
        let entry = archive.by_index_raw(index).map_err(|error| job.unreadable(name.as_deref(), error))?;
        let fault = fault(entry.unix_mode(), entry.encrypted());
        job.check(entry.name(), entry.is_dir(), entry.size(), fault)?;
    }
    job.begin()?;
    for index in 0..archive.len() {
        let name = archive.name_for_index(index).map(str::to_owned);
        let mut entry = archive.by_index(index).map_err(|error| job.unreadable(name.as_deref(), error))?;
        let name = entry.name().to_owned();
        if entry.is_dir() {
            job.add_folder(&name)?;
        } else {
            job.add_file(&name, entry.size(), &mut entry)?;
        }
    }
    Ok(())
}
