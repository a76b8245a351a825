//! Digests of downloaded files.

use std::io::{self, Read};
use std::path::Path;

use sha1::Sha1;
use sha2::{Digest, Sha256};

/// The digests of a stream of bytes.
pub(super) struct Hashes {
    sha256: Sha256,
    /// Git hashes a file's size first, so that it must be known in advance.
    blob: Option<(u64, Sha1)>,
}

impl Hashes {
    /// `blob` is the size of the file, if its git blob id is needed too.
    pub fn new(blob: Option<u64>) -> Self {
        let blob = blob.map(|size| (size, Sha1::new_with_prefix(format!("blob {size}\0"))));
        Self { sha256: Sha256::new(), blob }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        if let Some((_, sha1)) = &mut self.blob {
            sha1.update(bytes);
        }
    }

    /// Starts again without any bytes.
    pub fn restart(&mut self) {
        *self = Self::new(self.blob.as_ref().map(|(size, _)| *size));
    }

    /// SHA-256 and git blob id, in hexadecimal.
    pub fn finish(self) -> (String, Option<String>) {
        (hex(&self.sha256.finalize()), self.blob.map(|(_, sha1)| hex(&sha1.finalize())))
    }
}

/// The SHA-256 of a file in hexadecimal, and its size.
///
/// # Errors
/// A file that cannot be read.
pub fn sha256(path: &Path) -> io::Result<(String, u64)> {
    let mut file = fs_err::File::open(path)?;
    let mut hashes = Hashes::new(None);
    let bytes = feed(&mut file, &mut hashes)?;
    Ok((hashes.finish().0, bytes))
}

/// Hashes all bytes of a reader and counts them.
pub(super) fn feed(from: &mut impl Read, hashes: &mut Hashes) -> io::Result<u64> {
    let mut buffer = vec![0; 1 << 17];
    let mut bytes = 0;
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(bytes),
            Ok(n) => {
                hashes.update(&buffer[..n]);
                bytes += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Bytes in hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_sha256sum_and_git() {
        let mut hashes = Hashes::new(Some(6));
        hashes.update(b"dropped");
        hashes.restart();
        assert_eq!(feed(&mut &b"hello\n"[..], &mut hashes).unwrap(), 6);
        // `echo hello | sha256sum`, `echo hello | git hash-object --stdin`
        let (sha256, blob) = hashes.finish();
        assert_eq!(sha256, "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03");
        assert_eq!(blob.unwrap(), "ce013625030ba8dba906f756967f9e9ca394464a");
    }
}
