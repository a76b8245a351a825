//! What the file system says of a file or a folder, without a byte of it being read.

use std::fs::Metadata;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rayon::prelude::*;

use crate::identity::digest::Digest;
use crate::identity::shared_fs;
use crate::store::file_system::is_shared;
use crate::store::names;

/// A file that changed this short a time ago may change again within the same tick of the clock, and keep its times.
const RACY: Duration = Duration::from_millis(50);
/// The same where a file server's clock gives the times: some count in seconds.
const RACY_ON_NETWORK: Duration = Duration::from_secs(2);
/// Folders of more files than this are looked at by several threads.
const MANY: usize = 256;

/// What changes when a file does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stat {
    size: u64,
    mtime_ns: i128,
    ctime_ns: i128,
    inode: u64,
    /// 0 where each host numbers the file system in its own way.
    device: u64,
    /// Whether other hosts may write to it.
    shared: bool,
}

impl Stat {
    pub fn of(path: &Path) -> std::io::Result<Self> {
        Ok(Self::from(&shared_fs::metadata(path)?))
    }

    /// The stat hash.
    pub fn hash(&self) -> Digest {
        hash([("", self)])
    }

    /// Whether it is the same file, under whatever name.
    pub fn same_file(&self, other: &Self) -> bool {
        (self.inode, self.device) == (other.inode, other.device)
    }

    /// Whether all is equal except ctime, which links and renames change too.
    fn same_bytes(&self, other: &Self) -> bool {
        let bytes = |stat: &Self| (stat.size, stat.mtime_ns, stat.inode, stat.device);
        bytes(self) == bytes(other)
    }

    /// Whether every later change will change the stat, so that bytes read from now on belong to this one.
    pub fn past_racy_window(&self) -> bool {
        now_ns() - self.ctime_ns > racy(self.shared)
    }
}

/// The racy window, in ns.
fn racy(shared: bool) -> i128 {
    (if shared { RACY_ON_NETWORK } else { RACY }).as_nanos() as i128
}

impl From<&Metadata> for Stat {
    fn from(m: &Metadata) -> Self {
        let shared = is_shared(m.dev());
        let ns = |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
        Self {
            size: m.len(),
            mtime_ns: ns(m.mtime(), m.mtime_nsec()),
            ctime_ns: ns(m.ctime(), m.ctime_nsec()),
            inode: m.ino(),
            device: if shared { 0 } else { m.dev() },
            shared,
        }
    }
}

fn now_ns() -> i128 {
    ns(SystemTime::now())
}

fn ns(time: SystemTime) -> i128 {
    time.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as i128)
}

/// What the file system says of a file, or of all files of a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeStat {
    /// One file without a name, or the files of a folder by path.
    files: Vec<(String, Stat)>,
}

impl TreeStat {
    /// Looks at a file or folder, at what links lead to; `None` where nothing is.
    ///
    /// # Errors
    /// A path that cannot be looked at.
    pub fn at(path: &Path) -> std::io::Result<Option<Self>> {
        match shared_fs::metadata(path) {
            Ok(found) if !found.is_dir() => Ok(Some(Self::of_file(&found))),
            Ok(_) => Self::folder(path).map(Some),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The look of a file that gave this.
    pub(crate) fn of_file(found: &Metadata) -> Self {
        Self { files: vec![(String::new(), Stat::from(found))] }
    }

    fn folder(path: &Path) -> std::io::Result<Self> {
        let names = names(path).map_err(std::io::Error::other)?;
        let look = |name: String| Ok((name.clone(), Stat::of(&path.join(name))?));
        let files: std::io::Result<_> = match names.len() > MANY {
            true => names.into_par_iter().map(look).collect(),
            false => names.into_iter().map(look).collect(),
        };
        Ok(Self { files: files? })
    }

    /// Whether it is a folder's.
    pub(crate) fn is_folder(&self) -> bool {
        !matches!(self.files.as_slice(), [(name, _)] if name.is_empty())
    }

    /// The same with a file that belongs to it, such as the listing of a folder.
    pub(crate) fn with(mut self, name: &str, path: &Path) -> Self {
        // One that is missing makes another hash.
        if let Ok(stat) = Stat::of(path) {
            self.files.push((name.to_owned(), stat));
        }
        self
    }

    /// A hash of it all: equal hashes are equal looks.
    pub(crate) fn stat_hash(&self) -> Digest {
        hash(self.files.iter().map(|(name, stat)| (name.as_str(), stat)))
    }

    /// Bytes of all files.
    pub(crate) fn size(&self) -> u64 {
        self.files.iter().map(|(_, stat)| stat.size).sum()
    }

    /// Whether the bytes are those of the other look, by the times that linking and renaming leave alone.
    pub(crate) fn same_bytes(&self, other: &Self) -> bool {
        let alike = |(a, b): (&(String, Stat), &(String, Stat))| a.0 == b.0 && a.1.same_bytes(&b.1);
        self.files.len() == other.files.len() && self.files.iter().zip(&other.files).all(alike)
    }

    /// Whether all files were past the racy window at a time: what was read from then on belongs to this look.
    pub(crate) fn settled_before(&self, time: SystemTime) -> bool {
        let before = ns(time) - racy(self.is_shared());
        self.files.iter().all(|(_, stat)| stat.ctime_ns < before)
    }

    /// How long ago, in ns, the newest change of bytes may have been.
    ///
    /// Of an object, either time will do: only the store writes it, which sets both, while linking and renaming set one.
    fn age(&self) -> i128 {
        let now = now_ns();
        let age = |stat: &Stat| (now - stat.ctime_ns).max(now - stat.mtime_ns);
        self.files.iter().map(|(_, stat)| age(stat)).min().unwrap_or(i128::MAX)
    }

    /// [`Stat::past_racy_window`] of an object.
    pub(crate) fn past_racy_window(&self) -> bool {
        self.age() > racy(self.is_shared())
    }

    fn is_shared(&self) -> bool {
        self.files.iter().any(|(_, stat)| stat.shared)
    }

    /// Waits for that; a clock that was set back makes it give up. Not so long as a network file system would take: there, the
    /// object is hashed again before it is used.
    pub(crate) fn wait_past_racy_window(&self) {
        if self.is_shared() {
            return;
        }
        let racy = racy(false);
        let missing = racy - self.age();
        if (0..=racy).contains(&missing) {
            std::thread::sleep(Duration::from_nanos(missing as u64) + Duration::from_millis(1));
        }
    }
}

fn hash<'s>(files: impl IntoIterator<Item = (&'s str, &'s Stat)>) -> Digest {
    let mut hasher = blake3::Hasher::new();
    for (name, stat) in files {
        let Stat { size, mtime_ns, ctime_ns, inode, device, shared: _ } = stat;
        hasher.update(&(name.len() as u64).to_le_bytes()).update(name.as_bytes());
        let mut bytes = [0; 56];
        bytes[..8].copy_from_slice(&size.to_le_bytes());
        bytes[8..24].copy_from_slice(&mtime_ns.to_le_bytes());
        bytes[24..40].copy_from_slice(&ctime_ns.to_le_bytes());
        bytes[40..48].copy_from_slice(&inode.to_le_bytes());
        bytes[48..].copy_from_slice(&device.to_le_bytes());
        hasher.update(&bytes);
    }
    hasher.finalize().into()
}
