//! Damaged objects: finding them, and moving them into quarantine.
//!
//! ```text
//! quarantine/TIME-ab12…        the damaged object
//! quarantine/TIME-ab12….list   its listing, of a folder
//! quarantine/TIME-ab12….json   when and why
//! ```
//! No entry leads there. People may look at these files, and gc removes them.

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{Area, Artifact, Listing, Result, Store, StoreError, names};
use crate::identity::digest::{Digest, Listed};
use crate::identity::shared_fs;

/// The state of an object by all its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It is what its name says.
    Sound,
    /// It is not there.
    Gone,
    /// It is something else: what, for people.
    Damaged(String),
}

/// The note beside a damaged object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Note {
    /// What it was to be.
    pub artifact: Artifact,
    /// UTC, RFC 3339.
    pub at: String,
    /// What was found.
    pub why: String,
}

impl Store {
    /// Checks all bytes of an object against its name, whatever is remembered of it.
    ///
    /// Of an adopted one, the files that it leads to are read.
    ///
    /// # Errors
    /// An object that cannot be read, unless it is missing.
    pub fn verify(&self, digest: &Digest) -> Result<Health> {
        let object = self.path(digest);
        match shared_fs::metadata(&object) {
            Ok(found) if found.is_dir() => self.verify_folder(digest, &object),
            Ok(_) => {
                let found = Digest::of_file(&object)?;
                Ok(match found == *digest {
                    true => Health::Sound,
                    false => Health::Damaged(format!("its bytes hash to {}", found.short())),
                })
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Health::Gone),
            Err(error) => Err(error.into()),
        }
    }

    fn verify_folder(&self, digest: &Digest, object: &Path) -> Result<Health> {
        let listing = match self.listing(digest) {
            Ok(Some(listing)) if listing.digest() == *digest => listing,
            Ok(Some(_)) => return Ok(Health::Damaged("its listing is another folder's".into())),
            Ok(None) => return Ok(Health::Damaged("its listing is missing".into())),
            Err(StoreError::Damaged { reason, .. }) => {
                return Ok(Health::Damaged(format!("its listing is damaged: {reason}")));
            }
            Err(error) => return Err(error),
        };
        let mut faults: Vec<String> = faults(&listing, object)?;
        // Links to adopted files may be broken, which was reported already.
        if self.adopted(digest)?.is_none() {
            let listed = |name: &String| listing.0.binary_search_by(|file| file.path.cmp(name)).is_ok();
            let extra = names(object)?.into_iter().filter(|name| !listed(name));
            faults.extend(extra.map(|name| format!("{name} is extra")));
        }
        Ok(match (faults.first(), faults.len()) {
            (None, _) => Health::Sound,
            (Some(fault), 1) => Health::Damaged(format!("in it, {fault}")),
            (Some(fault), count) => Health::Damaged(format!("{count} files in it are wrong: {fault}")),
        })
    }

    /// Moves an object into quarantine, so that no entry has it as an output; returns where to.
    ///
    /// Of an adopted object, only the links are removed.
    ///
    /// # Errors
    /// A move that failed.
    pub fn quarantine(&self, artifact: &Artifact, why: &str) -> Result<Option<PathBuf>> {
        let digest = &artifact.digest;
        if self.adopted(digest)?.is_some() {
            self.unadopt(digest)?;
            return Ok(None);
        }
        let folder = self.area(Area::Quarantine);
        shared_fs::create_dir_all(&folder)?;
        let now = jiff::Timestamp::now();
        let name = format!("{}-{digest}", now.strftime("%Y%m%dT%H%M%S%.6fZ"));
        let at = now.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
        let note = Note { artifact: artifact.clone(), at, why: why.to_owned() };
        let text = serde_json::to_vec_pretty(&note).map_err(std::io::Error::from)?;
        self.write(&folder.join(format!("{name}.json")), &text)?;
        let target = folder.join(&name);
        match shared_fs::rename(self.path(digest), &target) {
            Ok(()) => {}
            // Another run was faster, or only the listing was left.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        let listing = self.listing_path(digest);
        if shared_fs::exists(&listing) {
            shared_fs::rename(listing, folder.join(format!("{name}.list")))?;
        }
        Ok(Some(target))
    }
}

/// What is wrong with the listed files of a folder.
fn faults(listing: &Listing, folder: &Path) -> Result<Vec<String>> {
    let fault = |file: &Listed| -> Result<Option<String>> {
        let name = &file.path;
        let path = folder.join(name);
        match shared_fs::metadata(&path) {
            Ok(found) if found.len() != file.size => {
                Ok(Some(format!("{name} has {} bytes instead of {}", found.len(), file.size)))
            }
            Ok(_) if Digest::of_file(&path)? != file.digest => Ok(Some(format!("{name} holds other bytes"))),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Some(format!("{name} is gone"))),
            Err(error) => Err(error.into()),
        }
    };
    let faults: Result<Vec<Option<String>>> = listing.0.par_iter().map(fault).collect();
    Ok(faults?.into_iter().flatten().collect())
}
