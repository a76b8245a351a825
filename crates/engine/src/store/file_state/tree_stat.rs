//! What the file system says of an object, in one look.

use std::fs::Metadata;
use std::io::ErrorKind;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use rayon::prelude::*;

use super::stat::{RACY_NS, Stat};
use crate::identity::digest::Digest;
use crate::store::names;

/// Folders of more files than this are looked at by several threads.
const MANY: usize = 256;

/// The files of an object and what their inodes say; no byte of them was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TreeStat {
    /// One file without a name, or the files of a folder by path.
    files: Vec<(String, Stat)>,
}

impl TreeStat {
    /// Looks at a file or folder; `None` where nothing is. What links lead to is looked at.
    pub fn at(path: &Path) -> std::io::Result<Option<Self>> {
        match fs_err::metadata(path) {
            Ok(found) if !found.is_dir() => Ok(Some(Self::of_file(&found))),
            Ok(_) => Self::folder(path).map(Some),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The look that gave this, of a file.
    pub fn of_file(found: &Metadata) -> Self {
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

    /// The same with a file that belongs to it, such as the listing of a folder.
    pub fn with(mut self, name: &str, path: &Path) -> std::io::Result<Self> {
        // One that is missing makes another mark.
        if let Ok(stat) = Stat::of(path) {
            self.files.push((name.to_owned(), stat));
        }
        Ok(self)
    }

    /// A hash of it all: equal marks are equal looks.
    pub fn stat_hash(&self) -> Digest {
        stat_hash(self.files.iter().map(|(name, stat)| (name.as_str(), stat)))
    }

    /// The mark of [`TreeStat::of_file`], without keeping what was seen.
    pub fn stat_hash_of_file(found: &Metadata) -> Digest {
        stat_hash([("", &Stat::from(found))])
    }

    /// Bytes of all files.
    pub fn size(&self) -> u64 {
        self.files.iter().map(|(_, stat)| stat.size).sum()
    }

    /// Whether the bytes are those of the other look, as far as times tell that linking and renaming leave alone.
    pub fn same_bytes(&self, other: &Self) -> bool {
        let alike = |(a, b): (&(String, Stat), &(String, Stat))| a.0 == b.0 && a.1.same_bytes(&b.1);
        self.files.len() == other.files.len() && self.files.iter().zip(&other.files).all(alike)
    }

    /// How long ago, in ns, the newest change of bytes may have been, that a later one could hide behind.
    ///
    /// A change within one tick of the clock leaves the same times. Either time will do: a write sets both to now.
    fn age(&self) -> i128 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as i128);
        let age = |stat: &Stat| (now - stat.ctime_ns).max(now - stat.mtime_ns);
        self.files.iter().map(|(_, stat)| age(stat)).min().unwrap_or(i128::MAX)
    }

    /// When the inode that changed last did, in ns since 1970.
    pub fn changed(&self) -> i128 {
        self.files.iter().map(|(_, stat)| stat.ctime_ns).max().unwrap_or(i128::MIN)
    }

    /// Whether a later change will show, so that what is hashed from now on can be vouched for by this look.
    pub fn past_racy_window(&self) -> bool {
        self.age() > RACY_NS
    }

    /// Waits for that; a clock that was set back makes it give up.
    pub fn wait_past_racy_window(&self) {
        let missing = RACY_NS - self.age();
        if (0..=RACY_NS).contains(&missing) {
            std::thread::sleep(std::time::Duration::from_nanos(missing as u64 + 1_000_000));
        }
    }
}

fn stat_hash<'s>(files: impl IntoIterator<Item = (&'s str, &'s Stat)>) -> Digest {
    let mut hasher = blake3::Hasher::new();
    for (name, stat) in files {
        hasher.update(&(name.len() as u64).to_le_bytes());
        hasher.update(name.as_bytes());
        hasher.update(&stat.bytes());
    }
    hasher.finalize().into()
}
