//! Moves what an attempt wrote into the store: hashed once, never copied.

use std::collections::BTreeMap;
use std::fs::{Metadata, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::file_state::Trust;
use super::file_state::tree_stat::TreeStat;
use super::integrity::{Integrity, SMALL};
use super::{Artifact, Entry, PART, Result, Store, StoreError, list, names};
use crate::identity::digest::{Digest, Listing, is_executable};
use crate::identity::recipe::Recipe;
use crate::identity::shared_fs;

impl Store {
    /// Takes the outputs that an attempt wrote, and then the entry that names them; `files`: what another host says that it
    /// wrote into the attempt's folder.
    ///
    /// # Errors
    /// A missing output, other bytes than were written, or a write that failed; the entry is then not there.
    pub fn commit(
        &self,
        recipe: &Recipe,
        outputs: &[(String, PathBuf)],
        files: Option<&Listing>,
        seconds: f64,
    ) -> Result<Entry> {
        let mut stored = BTreeMap::new();
        for (port, path) in outputs {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let artifact = self.publish(path)?;
            let written =
                files.map(|files| if port == PART { Some(files.digest()) } else { files.sub(&name) });
            if written.is_some_and(|written| written != Some(artifact.digest)) {
                return Err(StoreError::NotAsWritten(name));
            }
            stored.insert(port.clone(), artifact);
        }
        let mut entry =
            Entry { recipe: recipe.clone(), outputs: stored, seconds, adopted: None, check: None };
        self.index(&mut entry)?;
        Ok(entry)
    }

    /// Writes the index file that leads from a recipe's fingerprint to its outputs, which must be there.
    pub(super) fn index(&self, entry: &mut Entry) -> Result<()> {
        let fingerprint = entry.recipe.fingerprint();
        entry.check = Some(entry.checksum(&fingerprint));
        let text = serde_json::to_vec(entry).map_err(std::io::Error::from)?;
        let path = self.entry_path(&fingerprint);
        self.write(&path, &text)?;
        // Later processes need not read it. No racy window: this text is the result, whatever may be written to the file.
        if let Some(seen) = TreeStat::at(&path)? {
            self.file_state().put(fingerprint, seen.stat_hash(), &text, Trust::Settled);
        }
        Ok(())
    }

    /// Moves a file or folder into the objects.
    pub(super) fn publish(&self, path: &Path) -> Result<Artifact> {
        let name = || path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Ok(found) = shared_fs::metadata(path) else { return Err(StoreError::MissingOutput(name())) };
        let folder = found.is_dir();
        protect(path, &found)?;
        let Ok(found) = shared_fs::metadata(path) else { return Err(StoreError::MissingOutput(name())) };
        let seen = match folder {
            true => TreeStat::at(path)?.ok_or_else(|| StoreError::MissingOutput(name()))?,
            false => TreeStat::of_file(&found),
        };
        if seen.size() > SMALL {
            seen.wait_past_racy_window();
        }
        let trust = Trust::of_object(seen.past_racy_window());
        let (artifact, listing) = if folder {
            let listing = list(path, |_| true, &|file| Ok(Digest::of_file(file)?))?;
            (Artifact { digest: listing.digest(), size: listing.size(), folder }, Some(listing))
        } else {
            (Artifact { digest: Digest::of_found(path, &found)?, size: found.len(), folder }, None)
        };
        let target = self.path(&artifact.digest);
        if shared_fs::symlink_metadata(&target).is_ok()
            || shared_fs::exists(self.place_path(&artifact.digest))
        {
            if self.adopted(&artifact.digest)?.is_some() {
                // The store's own bytes are better than those of a file that may change.
                self.unadopt(&artifact.digest)?;
            } else {
                match self.state(&artifact)? {
                    Integrity::Ok => return Ok(artifact),
                    Integrity::Missing => {}
                    Integrity::Invalid(why) => {
                        tracing::warn!("{why}; it is replaced");
                        self.quarantine(&artifact, &why)?;
                    }
                }
            }
        }
        if let Some(listing) = &listing {
            self.write_listing(listing)?;
        }
        match place(path, &target) {
            Ok(()) => {}
            // Another process stored the same bytes a moment ago.
            Err(_) if shared_fs::exists(&target) => return Ok(artifact),
            Err(error) => return Err(error.into()),
        }
        let Some(after) = TreeStat::at(&target)?.filter(|after| after.same_bytes(&seen)) else {
            super::remove(&target)?;
            return Err(StoreError::StillWritten(name()));
        };
        let after = match folder {
            true => after.with(".list", &self.listing_path(&artifact.digest)),
            false => after,
        };
        self.file_state().put(artifact.digest, after.stat_hash(), &[], trust);
        Ok(artifact)
    }

    /// Writes the listing of a folder, and gives the folder's digest.
    pub(super) fn write_listing(&self, listing: &Listing) -> Result<Digest> {
        let digest = listing.digest();
        let text = serde_json::to_vec(listing).map_err(std::io::Error::from)?;
        self.write(&self.listing_path(&digest), &text)?;
        Ok(digest)
    }

    /// Writes a temporary file and renames it into place.
    ///
    /// It is not synced: each file that is written so shows by itself whether it is whole.
    ///
    /// # Errors
    /// A write that failed; what was there before is then still there.
    pub fn write(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let temporary = self.temp_path()?;
        shared_fs::write(&temporary, bytes)?;
        Ok(place(&temporary, path)?)
    }
}

/// Renames a file or folder, into a folder that may have to be made.
pub(super) fn place(from: &Path, to: &Path) -> std::io::Result<()> {
    match shared_fs::rename(from, to) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            shared_fs::create_dir_all(to.parent().unwrap_or(to))?;
            shared_fs::rename(from, to)
        }
        result => result,
    }
}

/// Removes the folders below a folder that hold no file; returns whether it is empty then.
fn remove_empty_folders(folder: &Path) -> std::io::Result<bool> {
    let mut empty = true;
    for entry in shared_fs::read_dir(folder)? {
        let entry = entry?;
        let removed = entry.file_type()?.is_dir() && remove_empty_folders(&entry.path())?;
        if removed {
            fs_err::remove_dir(entry.path())?;
        }
        empty &= removed;
    }
    Ok(empty)
}

/// Makes a file, or all files of a folder, read-only. Empty folders below a folder are removed: they are not part of it.
fn protect(path: &Path, found: &Metadata) -> Result<()> {
    let protect = |file: &Path, found: &Metadata| {
        let mode = if is_executable(found) { 0o555 } else { 0o444 };
        shared_fs::set_permissions(file, &Permissions::from_mode(mode))
    };
    if !found.is_dir() {
        return Ok(protect(path, found)?);
    }
    remove_empty_folders(path)?;
    let files = names(path)?;
    let files = files.par_iter().map(|name| path.join(name));
    Ok(files.try_for_each(|file| protect(&file, &shared_fs::metadata(&file)?))?)
}
