//! What is expected of a file, what was downloaded, and the note beside a download in progress.

use std::path::Path;

use serde::{Deserialize, Serialize};

/// What is known about a file before its download; all of it is optional.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expected {
    /// SHA-256 in hexadecimal.
    pub sha256: Option<String>,
    /// Its git blob id: a SHA-1 in hexadecimal. Needs the size too.
    pub blob: Option<String>,
    /// Its size.
    pub bytes: Option<u64>,
}

impl Expected {
    /// Whether a digest identifies the file.
    pub fn has_digest(&self) -> bool {
        self.sha256.is_some() || self.git().is_some()
    }

    /// Git blob id and size, if both are known.
    pub(super) fn git(&self) -> Option<(&str, u64)> {
        Some((self.blob.as_deref()?, self.bytes?))
    }

    /// The first mismatch: what was found, and what was expected.
    pub(super) fn fault(&self, fetched: &Fetched) -> Option<(String, String)> {
        let differs = |found: &str, expected: &str| !found.eq_ignore_ascii_case(expected);
        if let Some(expected) = self.sha256.as_ref().filter(|expected| differs(&fetched.sha256, expected)) {
            return Some((format!("sha256 {}", fetched.sha256), expected.clone()));
        }
        if let Some(bytes) = self.bytes.filter(|bytes| *bytes != fetched.bytes) {
            return Some((format!("{} bytes", fetched.bytes), bytes.to_string()));
        }
        let (expected, _) = self.git()?;
        let found = fetched.blob.as_deref().unwrap_or_default();
        differs(found, expected).then(|| (format!("git blob {found}"), expected.to_owned()))
    }
}

/// A downloaded file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetched {
    /// Size of the file.
    pub bytes: u64,
    /// Its SHA-256 in hexadecimal.
    pub sha256: String,
    /// Its git blob id, if one was expected.
    pub blob: Option<String>,
}

/// Lets a later run decide whether the bytes on disk belong to the server's current file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    /// The address, for people.
    pub address: String,
    /// The version of the bytes, as a value for `If-Range`.
    pub version: Option<String>,
    /// The size of the complete file, from the answer that the bytes are of.
    #[serde(default)]
    pub total: Option<u64>,
    /// The boot id when the bytes were written: after a power cut, some may not be on the disk.
    pub boot: Option<String>,
    /// The complete file.
    pub finished: Option<Fetched>,
}

impl Note {
    /// The note of a new download.
    pub fn new(address: String) -> Self {
        Self { address, boot: boot(), ..Self::default() }
    }

    /// Reads a note; `None` if it is missing or damaged.
    pub fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&fs_err::read(path).ok()?).ok()
    }

    /// Whether a download without a digest may be resumed.
    pub fn is_resumable(&self) -> bool {
        self.version.is_some() && self.boot == boot()
    }
}

fn boot() -> Option<String> {
    let id = fs_err::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned())
}
