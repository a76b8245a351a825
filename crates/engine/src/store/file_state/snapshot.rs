//! The stats of many files and folders as bytes, and whether any of them changed since.
//!
//! ```text
//! per path: 1 byte for how to look, 4 of length, the path, 32 of stat hash
//! ```

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::SystemTime;

use rayon::prelude::*;

use super::tree_stat::{Stat, TreeStat};
use crate::identity::digest::Digest;
use crate::identity::shared_fs;

/// Which file's stat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FollowLinks {
    /// Of the target of links, and of all files below a folder.
    Through = 0,
    /// Of the name itself, even if it is a link.
    Name = 1,
}

/// Paths and their stats.
pub struct Snapshot {
    bytes: Vec<u8>,
    since: SystemTime,
}

impl Snapshot {
    /// A snapshot of paths that were read from this time on.
    pub fn new(since: SystemTime) -> Self {
        Self { bytes: Vec::new(), since }
    }

    /// Adds a path; `false` if its stat proves nothing: it is missing, or may have changed since it was read.
    pub fn add(&mut self, look: FollowLinks, path: &Path) -> bool {
        let Some(stat) = stat(look, path).filter(|stat| stat.settled_before(self.since)) else {
            return false;
        };
        let name = path.as_os_str().as_bytes();
        let Ok(length) = u32::try_from(name.len()) else { return false };
        self.bytes.push(look as u8);
        self.bytes.extend_from_slice(&length.to_le_bytes());
        self.bytes.extend_from_slice(name);
        self.bytes.extend_from_slice(&stat.stat_hash().0);
        true
    }

    /// The bytes to keep.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether all paths of a snapshot are unchanged.
    pub fn unchanged(bytes: &[u8]) -> bool {
        let Some(records) = records(bytes) else { return false };
        let same = |(look, path, known): &(FollowLinks, &Path, &[u8; 32])| {
            stat_hash(*look, path).is_some_and(|hash| hash.0 == **known)
        };
        match records.len() {
            // Threads cost more than a few calls.
            ..512 => records.iter().all(same),
            _ => records.par_chunks(256).all(|records| records.iter().all(same)),
        }
    }
}

/// Paths, how to look at them, and their stat hashes; `None` where the bytes were cut short.
fn records(mut bytes: &[u8]) -> Option<Vec<(FollowLinks, &Path, &[u8; 32])>> {
    let mut records = Vec::new();
    while let Some((&look, rest)) = bytes.split_first() {
        let look = if look == FollowLinks::Name as u8 { FollowLinks::Name } else { FollowLinks::Through };
        let (length, rest) = rest.split_first_chunk()?;
        let (path, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        let (hash, rest) = rest.split_first_chunk::<32>()?;
        records.push((look, Path::new(OsStr::from_bytes(path)), hash));
        bytes = rest;
    }
    Some(records)
}

fn stat(look: FollowLinks, path: &Path) -> Option<TreeStat> {
    match look {
        FollowLinks::Through => TreeStat::at(path).ok().flatten(),
        FollowLinks::Name => Some(TreeStat::of_file(&shared_fs::symlink_metadata(path).ok()?)),
    }
}

/// The hash of the same, with nothing allocated for a file.
fn stat_hash(look: FollowLinks, path: &Path) -> Option<Digest> {
    let found = match look {
        FollowLinks::Through => shared_fs::metadata(path),
        FollowLinks::Name => shared_fs::symlink_metadata(path),
    };
    let found = found.ok()?;
    match found.is_dir() {
        true => stat(look, path).map(|stat| stat.stat_hash()),
        false => Some(Stat::from(&found).hash()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_change_of_any_path_shows() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs_err::create_dir(path("folder")).unwrap();
        for name in ["file", "folder/a", "other"] {
            fs_err::write(path(name), name).unwrap();
        }
        std::os::unix::fs::symlink(path("file"), path("link")).unwrap();
        let watch = |since: SystemTime| {
            let mut watch = Snapshot::new(since);
            let noted = [
                (FollowLinks::Through, "file"),
                (FollowLinks::Through, "folder"),
                (FollowLinks::Name, "link"),
            ]
            .map(|(look, name)| watch.add(look, &path(name)));
            (watch, noted)
        };
        let later = SystemTime::now() + std::time::Duration::from_secs(60);
        let (whole, noted) = watch(later);
        assert!(noted == [true; 3] && Snapshot::unchanged(whole.bytes()));
        assert_eq!(watch(SystemTime::UNIX_EPOCH).1, [false; 3]);
        assert!(!Snapshot::new(later).add(FollowLinks::Through, &path("none")));
        fs_err::write(path("other"), "unwatched").unwrap();
        assert!(Snapshot::unchanged(whole.bytes()));
        let changes: [&dyn Fn(); 5] = [
            &|| fs_err::write(path("file"), "elif").unwrap(),
            &|| fs_err::write(path("folder/b"), "").unwrap(),
            &|| fs_err::write(path("folder/a"), "longer").unwrap(),
            &|| fs_err::remove_file(path("link")).unwrap(),
            &|| fs_err::remove_dir_all(path("folder")).unwrap(),
        ];
        let mut known = whole;
        for (place, change) in changes.iter().enumerate() {
            change();
            assert!(!Snapshot::unchanged(known.bytes()), "change {place}");
            known = watch(later).0;
        }
        // A snapshot that was cut short proves nothing.
        let (whole, _) = watch(later);
        assert!(whole.bytes().len() > 40 && !Snapshot::unchanged(&whole.bytes()[..whole.bytes().len() - 1]));
    }
}
