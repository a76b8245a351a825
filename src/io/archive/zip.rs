//! Zip: the directory is checked first, then each entry is unpacked.

use std::io::{BufReader, Read, Seek};

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

pub(super) fn unpack(archive: impl Read + Seek, job: &mut Job<'_>) -> Result<(), ArchiveError> {
    let mut archive =
        ZipArchive::new(BufReader::new(archive)).map_err(|error| job.unreadable(None, error))?;
    for index in 0..archive.len() {
        let name = archive.name_for_index(index).map(str::to_owned);
        let entry = archive.by_index_raw(index).map_err(|error| job.unreadable(name.as_deref(), error))?;
        job.check(entry.name(), entry.size(), fault(entry.unix_mode(), entry.encrypted()))?;
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
