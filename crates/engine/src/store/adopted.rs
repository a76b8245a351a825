//! Adopted artifacts: files of the user that serve as a stage's outputs and stay where they are.
//!
//! ```text
//! objects/ab/ab12…          a link to the file; for a folder, a folder with a link per file, so that files added
//!                           later do not belong to the artifact
//! objects/ab/ab12….adopted  where the file or folder is
//! ```
//! The store does not own the bytes, so it checks them at each use: a file whose size or times have changed is hashed
//! again, and one with other bytes is no longer a result.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{
    Area, Artifact, Entry, Listing, Result, Store, StoreError, digest_of, list, read_json, remove,
    sync_folder,
};
use crate::identity::digest::Digest;
use crate::identity::recipe::Recipe;
use crate::identity::shared_fs;

/// When outputs were adopted, and from where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adopted {
    /// UTC, RFC 3339.
    pub at: String,
    /// Files and folders by output port.
    pub paths: BTreeMap<String, PathBuf>,
    /// What was checked. That the files were computed from the recipe's inputs and parameters is taken on trust.
    #[serde(default)]
    pub checked: String,
}

/// What the file `….adopted` holds.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Place {
    path: PathBuf,
}

/// What is wrong with an adopted file.
enum Fault {
    Gone,
    Changed,
    Unreadable(String),
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Gone => f.write_str("is gone"),
            Self::Changed => f.write_str("holds other bytes than when it was adopted"),
            Self::Unreadable(error) => write!(f, "cannot be read: {error}"),
        }
    }
}

impl Store {
    /// Makes linked files the result of a recipe.
    ///
    /// # Errors
    /// A write that failed; the entry is then not there.
    pub fn adopt(
        &self,
        recipe: &Recipe,
        outputs: BTreeMap<String, Artifact>,
        adopted: Adopted,
    ) -> Result<Entry> {
        let adopted = Some(adopted);
        let mut entry = Entry { recipe: recipe.clone(), outputs, seconds: 0.0, adopted, check: None };
        self.index(&mut entry)?;
        Ok(entry)
    }

    /// Makes an object that links to a file or folder of the user; of a folder, only to what is `read` in it.
    ///
    /// # Errors
    /// A file that cannot be read, or a write that failed.
    pub fn link_source(&self, path: &Path, read: Option<&BTreeSet<&str>>) -> Result<Artifact> {
        let metadata = shared_fs::metadata(path)?;
        let (artifact, files) = if metadata.is_dir() {
            let is_read = |name: &str| {
                read.is_none_or(|read| {
                    read.iter().any(|sub| {
                        name.strip_prefix(sub).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
                    })
                })
            };
            let listing = list(path, is_read, &|file| self.stat_digest(file))?;
            let digest = self.write_listing(&listing)?;
            (Artifact { digest, size: listing.size(), folder: true }, Some(listing))
        } else {
            let digest = self.stat_digest(path)?;
            (Artifact { digest, size: metadata.len(), folder: false }, None)
        };
        let target = self.path(&artifact.digest);
        if self.adopted(&artifact.digest)?.is_some() {
            self.unadopt(&artifact.digest)?;
        } else if shared_fs::exists(&target) {
            // The store has the bytes itself, which is better than a link.
            if digest_of(&target)? == artifact.digest {
                return Ok(artifact);
            }
            remove(&target)?;
        }
        let place = Place { path: path.to_path_buf() };
        let text = serde_json::to_vec(&place).map_err(std::io::Error::from)?;
        let place = self.place_path(&artifact.digest);
        self.write(&place, &text)?;
        // It has no checksum.
        shared_fs::open(&place)?.sync_all()?;
        let scratch = self.scratch()?;
        let attempt = scratch.attempt()?;
        let aside = attempt.path().join("links");
        match files {
            None => symlink(path, &aside)?,
            Some(listing) => link_all(path, &listing, &aside)?,
        }
        shared_fs::rename(&aside, &target)?;
        sync_folder(target.parent().unwrap_or(&self.root))?;
        Ok(artifact)
    }

    /// Removes the links to adopted files, not the files.
    pub(super) fn unadopt(&self, digest: &Digest) -> Result<()> {
        let target = self.path(digest);
        if shared_fs::symlink_metadata(&target).is_ok() {
            remove(&target)?;
        }
        // Last: a crash in between leaves a place without an object, which no lookup finds.
        Ok(shared_fs::remove_file(self.place_path(digest))?)
    }

    /// Where the bytes of an adopted artifact are; `None` for one that the store owns.
    ///
    /// # Errors
    /// A file of the store that cannot be read.
    pub fn adopted(&self, digest: &Digest) -> Result<Option<PathBuf>> {
        let place: Option<Place> = read_json(&self.place_path(digest))?;
        Ok(place.map(|place| place.path))
    }

    /// What changed in an adopted artifact, for people; `None` if it is unchanged, or not adopted.
    ///
    /// # Errors
    /// A file of the store that cannot be read.
    pub fn adoption_change(&self, artifact: &Artifact) -> Result<Option<String>> {
        let Some(path) = self.adopted(&artifact.digest)? else { return Ok(None) };
        if !artifact.folder {
            let fault = self.fault(&path, artifact.size, &artifact.digest);
            return Ok(fault.map(|fault| format!("the adopted file {} {fault}", path.display())));
        }
        let Some(Listing(files)) = self.listing(&artifact.digest)? else { return Ok(None) };
        let faults: Vec<(String, Fault)> = files
            .par_iter()
            .filter_map(|file| {
                let fault = self.fault(&path.join(&file.path), file.size, &file.digest)?;
                Some((file.path.clone(), fault))
            })
            .collect();
        let count = faults.len();
        Ok(faults.first().map(|(name, fault)| {
            let folder = path.display();
            match count {
                _ if !shared_fs::exists(&path) => format!("the adopted folder {folder} is gone"),
                1 => format!("of the adopted folder {folder}, {name} {fault}"),
                _ => {
                    let total = files.len();
                    format!(
                        "of the adopted folder {folder}, {count} of {total} files changed: {name} {fault}"
                    )
                }
            }
        }))
    }

    fn fault(&self, file: &Path, size: u64, digest: &Digest) -> Option<Fault> {
        let found = shared_fs::metadata(file).map_err(StoreError::from);
        match found.and_then(|found| Ok(found.len() == size && self.stat_digest(file)? == *digest)) {
            Ok(true) => None,
            Ok(false) => Some(Fault::Changed),
            Err(StoreError::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => Some(Fault::Gone),
            Err(error) => Some(Fault::Unreadable(error.to_string())),
        }
    }

    pub(super) fn place_path(&self, digest: &Digest) -> PathBuf {
        self.sharded(Area::Objects, digest, ".adopted")
    }
}

/// Makes `to` a folder of links to the listed files of `from`.
fn link_all(from: &Path, listing: &Listing, to: &Path) -> Result<()> {
    shared_fs::create_own_dir(to)?;
    for file in &listing.0 {
        let link = to.join(&file.path);
        shared_fs::create_dir_all(link.parent().unwrap_or(to))?;
        symlink(from.join(&file.path), &link)?;
    }
    Ok(())
}
