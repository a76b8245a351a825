//! Everything in a store, one by one; adding results from elsewhere, and removing them.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rayon::prelude::*;

use super::integrity::Integrity;
use super::{Area, Artifact, Entry, Result, Scratch, Store, StoreError, read_json, sync_folder};
use crate::identity::digest::Digest;
use crate::identity::shared_fs;

/// A file of the index.
#[derive(Debug)]
pub struct Indexed {
    /// The file.
    pub path: PathBuf,
    /// When it was written.
    pub written: SystemTime,
    /// What it holds, or what is wrong with it.
    pub content: std::result::Result<(Digest, Entry), String>,
}

impl Store {
    /// Every file of the index, by path.
    ///
    /// # Errors
    /// A folder or file that cannot be read.
    pub fn entries(&self) -> Result<Vec<Indexed>> {
        let read = |path: PathBuf| {
            let written = shared_fs::metadata(&path)?.modified()?;
            let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
            // From the file itself, not from a copy, for it is what a verification checks.
            let content = match (stem.parse::<Digest>(), read_json::<Entry>(&path)) {
                (Err(reason), _) | (_, Err(StoreError::Damaged { reason, .. })) => Err(reason),
                (_, Err(error)) => return Err(error),
                (_, Ok(None)) => Err("it was removed while it was read".to_owned()),
                (Ok(fingerprint), Ok(Some(entry))) => match entry.fault(&fingerprint) {
                    Some(fault) => Err(fault),
                    None => Ok((fingerprint, entry)),
                },
            };
            Ok(Indexed { path, written, content })
        };
        sharded_files(&self.area(Area::Recipes))?.into_par_iter().map(read).collect()
    }

    /// Removes a fingerprint from the index; its objects stay.
    ///
    /// # Errors
    /// A removal that failed.
    pub fn remove_entry(&self, fingerprint: &Digest) -> Result<()> {
        ignore_missing(shared_fs::remove_file(self.entry_path(fingerprint)))
    }

    /// Makes the removals from the index durable: objects are removed only after that.
    ///
    /// # Errors
    /// A folder that cannot be synced.
    pub fn sync_index(&self) -> Result<()> {
        let folder = self.area(Area::Recipes);
        if shared_fs::is_dir(&folder) {
            for entry in shared_fs::read_dir(&folder)? {
                sync_folder(&entry?.path())?;
            }
        }
        Ok(())
    }

    /// Removes an object and its listing; of an adopted one, only the links.
    ///
    /// # Errors
    /// A removal that failed.
    pub fn remove_object(&self, digest: &Digest, scratch: &Scratch) -> Result<()> {
        if self.adopted(digest)?.is_some() {
            self.unadopt(digest)?;
        } else if shared_fs::symlink_metadata(self.path(digest)).is_ok() {
            // A kill in the middle must not leave a part of a folder under the digest of the whole.
            let attempt = scratch.attempt()?;
            shared_fs::rename(self.path(digest), attempt.path().join("object"))?;
        }
        ignore_missing(shared_fs::remove_file(self.listing_path(digest)))
    }

    /// Moves a file or folder from elsewhere into the store, if it has the expected bytes.
    ///
    /// # Errors
    /// A write that failed; other bytes than expected are the inner error, for people.
    pub fn take(&self, path: &Path, expected: &Artifact) -> Result<std::result::Result<(), String>> {
        // It is stored by its own digest: other bytes than expected are an object that no entry has.
        let found = self.publish(path)?;
        Ok(match found == *expected {
            true => Ok(()),
            false => Err(format!("found {}, expected {}", found.digest, expected.digest)),
        })
    }

    /// Whether an artifact is there and is what its name says.
    ///
    /// # Errors
    /// A file of the store that cannot be read.
    pub fn has(&self, artifact: &Artifact) -> Result<bool> {
        Ok(self.state(artifact)? == Integrity::Ok)
    }

    /// Adds an entry from elsewhere; its outputs must be there.
    ///
    /// # Errors
    /// A write that failed.
    pub fn take_entry(&self, entry: &Entry) -> Result<()> {
        self.index(&mut entry.clone())
    }
}

/// The files two levels below a folder, sorted; none where there is no such folder.
pub(super) fn sharded_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let entries = match shared_fs::read_dir(folder) {
        // No other error is taken for an empty folder: what is not listed would be removed.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(files),
        entries => entries?,
    };
    for entry in entries {
        let below = entry?.path();
        if shared_fs::metadata(&below)?.is_dir() {
            for entry in shared_fs::read_dir(&below)? {
                files.push(entry?.path());
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Removing a missing file is no error.
pub(super) fn ignore_missing(removed: std::io::Result<()>) -> Result<()> {
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

impl Entry {
    /// What is wrong with an entry of this name, if anything.
    pub fn fault(&self, fingerprint: &Digest) -> Option<String> {
        let found = self.recipe.fingerprint();
        if found != *fingerprint {
            return Some(format!("its recipe has the fingerprint {found}, not that of its name"));
        }
        let checked = self.check.is_none_or(|check| check == self.checksum(fingerprint));
        (!checked).then(|| "its outputs do not have its checksum".to_owned())
    }
}
