//! Disk usage of a cache, by area: lengths of files, and blocks.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::Serialize;

use crate::identity::digest::Digest;
use crate::identity::shared_fs;
use crate::store::{Area, Part, Store, StoreError};

/// Files and their disk usage.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Space {
    /// Files, links and folders.
    pub files: u64,
    /// The lengths of the files together.
    pub bytes: u64,
    /// Bytes in blocks of the disk; a file with several names counts once.
    pub disk: u64,
}

impl std::ops::AddAssign for Space {
    fn add_assign(&mut self, other: Self) {
        self.files += other.files;
        self.bytes += other.bytes;
        self.disk += other.disk;
    }
}

/// Everything in a cache folder.
#[derive(Debug, Default)]
pub struct Disk {
    /// Objects with their listings, by digest.
    pub objects: BTreeMap<Digest, Space>,
    /// Everything else, by what it is at the top level; of the objects, the folders around them.
    pub parts: BTreeMap<Part, Space>,
    /// Files with a second name that was counted.
    seen: BTreeSet<(u64, u64)>,
}

impl Disk {
    /// Looks at every file of a store.
    ///
    /// # Errors
    /// A folder that cannot be read.
    pub fn of(store: &Store) -> Result<Self, StoreError> {
        let mut disk = Self::default();
        // The cache, or an area of it, may be a link to another disk.
        if let Ok(root) = fs_err::canonicalize(store.root()) {
            disk.walk(&root, &root)?;
        }
        Ok(disk)
    }

    /// Everything together.
    pub fn total(&self) -> Space {
        let mut total = Space::default();
        self.objects.values().chain(self.parts.values()).for_each(|space| total += *space);
        total
    }

    fn walk(&mut self, root: &Path, path: &Path) -> Result<(), StoreError> {
        // A run may have removed the file meanwhile.
        let area = path.parent() == Some(root);
        let found = if area { shared_fs::metadata(path) } else { shared_fs::symlink_metadata(path) };
        let Ok(metadata) = found else { return Ok(()) };
        let first =
            metadata.nlink() < 2 || metadata.is_dir() || self.seen.insert((metadata.dev(), metadata.ino()));
        let bytes = if metadata.is_file() { metadata.len() } else { 0 };
        let space = Space { files: 1, bytes, disk: if first { metadata.blocks() * 512 } else { 0 } };
        let below = path.strip_prefix(root).unwrap_or(path);
        match object(below) {
            Some(digest) => *self.objects.entry(digest).or_default() += space,
            None => *self.parts.entry(part(below)).or_default() += space,
        }
        if metadata.is_dir() {
            for entry in shared_fs::read_dir(path)? {
                self.walk(root, &entry?.path())?;
            }
        }
        Ok(())
    }
}

/// The object that a path below the cache belongs to: `objects/ab/ab12…` and all below and beside it.
fn object(below: &Path) -> Option<Digest> {
    let mut parts = below.iter().map(|part| part.to_str().unwrap_or_default());
    if parts.next() != Some(Area::Objects.name()) {
        return None;
    }
    let name = parts.nth(1)?;
    name.split('.').next()?.parse().ok()
}

fn part(below: &Path) -> Part {
    match below.iter().next() {
        Some(name) => Part::of(&name.to_string_lossy()),
        None => Part::Root,
    }
}
