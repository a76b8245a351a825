//! A file in the making, hashed as it grows.

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use sha2::{Digest, Sha256};

use super::fetch::Fetched;

/// A file that is appended to, with the digest of all its bytes.
pub struct Partial {
    file: fs_err::File,
    hasher: Sha256,
    bytes: u64,
}

impl Partial {
    /// Opens the file; what is there already is read and kept if `keep`, else dropped.
    pub fn open(path: &Path, keep: bool) -> io::Result<Self> {
        let file =
            fs_err::OpenOptions::new().read(true).write(true).create(true).truncate(!keep).open(path)?;
        let mut partial = Self { file, hasher: Sha256::new(), bytes: 0 };
        let mut buffer = vec![0; 1 << 17];
        loop {
            let n = partial.file.read(&mut buffer)?;
            if n == 0 {
                return Ok(partial);
            }
            partial.hasher.update(&buffer[..n]);
            partial.bytes += n as u64;
        }
    }

    /// Bytes so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Appends.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Drops all bytes.
    pub fn restart(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.hasher = Sha256::new();
        self.bytes = 0;
        Ok(())
    }

    /// Syncs to disk, and tells size and digest.
    pub fn finish(self) -> io::Result<Fetched> {
        self.file.sync_all()?;
        let digest = self.hasher.finalize();
        Ok(Fetched { bytes: self.bytes, sha256: digest.iter().map(|byte| format!("{byte:02x}")).collect() })
    }
}
