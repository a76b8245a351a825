//! What is expected of a file, what came, and the note beside a download that is under way.

use std::path::Path;

use serde::{Deserialize, Serialize};

/// What is known of a file before it comes; nothing of it need be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expected {
    /// SHA-256 in hexadecimal.
    pub sha256: Option<String>,
    /// Git's name of the file: a SHA-1 in hexadecimal. Wants the size too.
    pub blob: Option<String>,
    /// Its size.
    pub bytes: Option<u64>,
}

impl Expected {
    /// Whether a digest would tell a wrong file.
    pub fn has_digest(&self) -> bool {
        self.sha256.is_some() || self.git().is_some()
    }

    /// Git's name of the file and its size, where both are known.
    pub(super) fn git(&self) -> Option<(&str, u64)> {
        Some((self.blob.as_deref()?, self.bytes?))
    }

    /// What is wrong with a file: what was found, and what was expected.
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

/// What was fetched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetched {
    /// Size of the file.
    pub bytes: u64,
    /// Its SHA-256 in hexadecimal.
    pub sha256: String,
    /// Git's name of it, where that was expected.
    pub blob: Option<String>,
}

/// What tells a later run whether the bytes that are there belong to the file that is there today.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    /// The address, for people.
    pub address: String,
    /// The version that the bytes are of, as `If-Range` takes it.
    pub version: Option<String>,
    /// The size of the whole, as the answer told that the bytes are of.
    #[serde(default)]
    pub total: Option<u64>,
    /// The start of the system that the bytes were written after: after a power cut, some may not be on the disk.
    pub boot: Option<String>,
    /// What the finished file is.
    pub finished: Option<Fetched>,
}

impl Note {
    /// A note of nothing yet.
    pub fn new(address: String) -> Self {
        Self { address, boot: boot(), ..Self::default() }
    }

    /// Reads a note; one that is missing or damaged says nothing.
    pub fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&fs_err::read(path).ok()?).ok()
    }

    /// Whether bytes without a digest may be gone on with.
    pub fn is_resumable(&self) -> bool {
        self.version.is_some() && self.boot == boot()
    }
}

fn boot() -> Option<String> {
    let id = fs_err::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned())
}
