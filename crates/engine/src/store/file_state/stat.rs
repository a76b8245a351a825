//! Digests of sources remembered by what the file system says of them.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::identity::digest::Digest;

/// A file changed this short a time ago may change again within one tick of the clock.
pub(super) const RACY_NS: i128 = 50_000_000;

/// What changes when a file does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stat {
    pub size: u64,
    pub mtime_ns: i128,
    pub ctime_ns: i128,
    inode: u64,
    device: u64,
}

impl Stat {
    pub fn of(path: &Path) -> std::io::Result<Self> {
        Ok(Self::from(&fs_err::metadata(path)?))
    }

    /// All of it, for a hash.
    pub fn bytes(&self) -> [u8; 56] {
        let mut bytes = [0; 56];
        bytes[..8].copy_from_slice(&self.size.to_le_bytes());
        bytes[8..24].copy_from_slice(&self.mtime_ns.to_le_bytes());
        bytes[24..40].copy_from_slice(&self.ctime_ns.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.inode.to_le_bytes());
        bytes[48..].copy_from_slice(&self.device.to_le_bytes());
        bytes
    }

    /// Whether all but the time agrees that a link or a rename changes too.
    pub fn same_bytes(&self, other: &Self) -> bool {
        let bytes = |stat: &Self| (stat.size, stat.mtime_ns, stat.inode, stat.device);
        bytes(self) == bytes(other)
    }

    /// Whether it is the same file, under whatever name.
    pub fn same_file(&self, other: &Self) -> bool {
        (self.inode, self.device) == (other.inode, other.device)
    }

    /// Whether the file is still enough for its digest to be remembered; to be asked before it is hashed, for a
    /// change within the same tick leaves the same times.
    pub fn past_racy_window(&self) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as i128);
        now - self.ctime_ns > RACY_NS
    }
}

impl From<&Metadata> for Stat {
    fn from(m: &Metadata) -> Self {
        let ns = |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
        Self {
            size: m.len(),
            mtime_ns: ns(m.mtime(), m.mtime_nsec()),
            ctime_ns: ns(m.ctime(), m.ctime_nsec()),
            inode: m.ino(),
            device: m.dev(),
        }
    }
}

/// Digests by path, read on first use; a file that cannot be read counts as empty.
pub(crate) struct StatCache {
    file: PathBuf,
    known: Option<BTreeMap<PathBuf, (Stat, Digest)>>,
    changed: bool,
}

impl StatCache {
    pub fn open(file: PathBuf) -> Self {
        Self { file, known: None, changed: false }
    }

    fn known(&mut self) -> &mut BTreeMap<PathBuf, (Stat, Digest)> {
        let file = &self.file;
        self.known.get_or_insert_with(|| {
            fs_err::read(file).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
        })
    }

    pub fn get(&mut self, path: &Path, stat: &Stat) -> Option<Digest> {
        self.known().get(path).filter(|(known, _)| known == stat).map(|(_, digest)| *digest)
    }

    pub fn put(&mut self, path: &Path, stat: Stat, digest: Digest) {
        self.known().insert(path.to_path_buf(), (stat, digest));
        self.changed = true;
    }

    /// The new content of the file, `None` where nothing changed.
    pub fn changed(&mut self) -> Option<Vec<u8>> {
        let changed = std::mem::take(&mut self.changed);
        changed.then(|| serde_json::to_vec(self.known()).unwrap_or_default())
    }
}
