//! A partially downloaded file, hashed as it grows.

use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;

use super::hash::{Hashes, feed};
use super::state::Fetched;

/// A file under construction, with the digests of its bytes so far.
pub(super) struct Partial {
    file: fs_err::File,
    hashes: Hashes,
    bytes: u64,
}

impl Partial {
    /// Opens the file. Existing bytes are read and kept if `keep`, else dropped. `blob` is the size of the complete
    /// file, if its git blob id is needed.
    pub fn open(path: &Path, keep: bool, blob: Option<u64>) -> io::Result<Self> {
        let mut file =
            fs_err::OpenOptions::new().read(true).write(true).create(true).truncate(!keep).open(path)?;
        let mut hashes = Hashes::new(blob);
        let bytes = feed(&mut file, &mut hashes)?;
        Ok(Self { file, hashes, bytes })
    }

    /// Bytes so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Appends.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.hashes.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Drops all bytes.
    pub fn restart(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.hashes.restart();
        self.bytes = 0;
        Ok(())
    }

    /// Syncs to disk and returns size and digests.
    pub fn finish(self) -> io::Result<Fetched> {
        self.file.sync_all()?;
        let (sha256, blob) = self.hashes.finish();
        Ok(Fetched { bytes: self.bytes, sha256, blob })
    }
}
