//! Files and folders as they looked, in the form of one text of bytes: whether any of them changed since.
//!
//! ```text
//! per path: 1 byte for how to look, 4 of length, the path, 32 of mark
//! ```

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rayon::prelude::*;

use super::tree_stat::TreeStat;
use crate::identity::digest::Digest;

/// How to look at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FollowLinks {
    /// At what it leads to; at all that is below a folder.
    Through = 0,
    /// At what has the name, be it a link.
    Name = 1,
}

/// Paths and how they looked.
#[derive(Default)]
pub struct Snapshot(Vec<u8>);

impl Snapshot {
    /// Notes how a path looks; `false` where that is worth nothing: nothing is there, or it changed after `before`, in ns since
    /// 1970, when it was read.
    pub fn add(&mut self, look: FollowLinks, path: &Path, before: i128) -> bool {
        let Some(seen) = seen(look, path).filter(|seen| seen.changed() < before) else { return false };
        let bytes = path.as_os_str().as_bytes();
        let Ok(length) = u32::try_from(bytes.len()) else { return false };
        self.0.push(look as u8);
        self.0.extend_from_slice(&length.to_le_bytes());
        self.0.extend_from_slice(bytes);
        self.0.extend_from_slice(&seen.stat_hash().0);
        true
    }

    /// The text.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether all paths of a text look as they did.
    pub fn unchanged(bytes: &[u8]) -> bool {
        let Some(records) = records(bytes) else { return false };
        let same = |(look, path, known): &(FollowLinks, &Path, &[u8; 32])| {
            mark(*look, path).is_some_and(|mark| mark.0 == **known)
        };
        match records.len() {
            // Threads cost more than a few looks.
            ..512 => records.iter().all(same),
            _ => records.par_chunks(256).all(|records| records.iter().all(same)),
        }
    }
}

/// The paths of a text, how to look at them, and their marks; `None` for a text that was cut short.
fn records(mut bytes: &[u8]) -> Option<Vec<(FollowLinks, &Path, &[u8; 32])>> {
    let mut records = Vec::new();
    while let Some((&look, rest)) = bytes.split_first() {
        let look = if look == FollowLinks::Name as u8 { FollowLinks::Name } else { FollowLinks::Through };
        let (length, rest) = rest.split_first_chunk()?;
        let (path, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        let (mark, rest) = rest.split_first_chunk::<32>()?;
        records.push((look, Path::new(OsStr::from_bytes(path)), mark));
        bytes = rest;
    }
    Some(records)
}

/// The mark of what [`seen`] would see.
fn mark(look: FollowLinks, path: &Path) -> Option<Digest> {
    let found = match look {
        FollowLinks::Through => fs_err::metadata(path).ok()?,
        FollowLinks::Name => fs_err::symlink_metadata(path).ok()?,
    };
    match look == FollowLinks::Through && found.is_dir() {
        true => Some(TreeStat::at(path).ok()??.stat_hash()),
        false => Some(TreeStat::stat_hash_of_file(&found)),
    }
}

fn seen(look: FollowLinks, path: &Path) -> Option<TreeStat> {
    match look {
        FollowLinks::Through => TreeStat::at(path).ok().flatten(),
        FollowLinks::Name => Some(TreeStat::of_file(&fs_err::symlink_metadata(path).ok()?)),
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
        let watch = |before: i128| {
            let mut watch = Snapshot::default();
            let noted = [
                (FollowLinks::Through, "file"),
                (FollowLinks::Through, "folder"),
                (FollowLinks::Name, "link"),
            ]
            .map(|(look, name)| watch.add(look, &path(name), before));
            (watch, noted)
        };
        let (whole, noted) = watch(i128::MAX);
        assert!(noted == [true; 3] && Snapshot::unchanged(whole.bytes()));
        assert_eq!(watch(0).1, [false; 3]);
        assert!(!Snapshot::default().add(FollowLinks::Through, &path("none"), i128::MAX));
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
            known = watch(i128::MAX).0;
        }
        // What is cut short says nothing.
        let (whole, _) = watch(i128::MAX);
        assert!(whole.bytes().len() > 40 && !Snapshot::unchanged(&whole.bytes()[..whole.bytes().len() - 1]));
    }
}
