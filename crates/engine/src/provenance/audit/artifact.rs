//! Checks artifacts in the cache, and the files that the cache only links to.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::{Mismatch, Pass, Stop};
use crate::identity::digest::{Digest, Listed, Listing};
use crate::identity::shared_fs;
use crate::store::{self, Artifact};

impl Pass<'_> {
    /// Hashes an artifact again.
    pub(super) fn artifact(&mut self, port: &str, artifact: &Artifact) -> Result<(), Stop> {
        let store = self.audit.store;
        let object = store.path(&artifact.digest);
        let Some(place) = self.intact(store.adopted(&artifact.digest))? else { return Ok(()) };
        let adopted = place.is_some();
        // An adopted file is named by its own path.
        let place = place.unwrap_or_else(|| object.clone());
        if !object.exists() || !place.exists() {
            let of = if adopted { format!(", adopted from {},", place.display()) } else { String::new() };
            return self.found(Mismatch::Gone { what: format!("its output `{port}`{of}") });
        }
        let size = match artifact.folder {
            true => self.folder(port, artifact, &object, &place, adopted)?,
            false => {
                self.files(port, &[(place, artifact.digest)])?;
                shared_fs::metadata(&object)?.len()
            }
        };
        if size != artifact.size {
            self.found(Mismatch::Size { port: port.to_owned(), recorded: artifact.size, found: size })?;
        }
        Ok(())
    }

    /// Checks the files of a folder and returns their size.
    fn folder(
        &mut self,
        port: &str,
        artifact: &Artifact,
        object: &Path,
        place: &Path,
        adopted: bool,
    ) -> Result<u64, Stop> {
        let store = self.audit.store;
        let Some(listing) = self.intact(store.listing(&artifact.digest))? else { return Ok(artifact.size) };
        let Some(listing) = listing else {
            self.found(Mismatch::Gone { what: format!("the listing of its output `{port}`") })?;
            return Ok(artifact.size);
        };
        if listing.digest() != artifact.digest {
            let (recorded, found) = (artifact.digest, listing.digest());
            let path = store.listing_path(&artifact.digest);
            self.found(Mismatch::Bytes { port: port.to_owned(), path, recorded, found })?;
        }
        // Other files beside adopted ones are not part of the artifact.
        if !adopted {
            let listed: BTreeSet<&str> = listing.0.iter().map(|file| file.path.as_str()).collect();
            for name in store::names(object)?.iter().filter(|name| !listed.contains(name.as_str())) {
                self.found(Mismatch::Files { port: port.to_owned(), path: object.join(name), extra: true })?;
            }
        }
        let Listing(files) = &listing;
        let files = files.iter().map(|Listed { path, digest, .. }| (place.join(path), *digest));
        self.files(port, &files.collect::<Vec<_>>())?;
        Ok(listing.size())
    }

    /// Hashes files again in parallel, and reports differences in file order.
    fn files(&mut self, port: &str, files: &[(PathBuf, Digest)]) -> Result<(), Stop> {
        let hashed: Vec<_> = files
            .par_iter()
            .map(|(path, _)| Ok((shared_fs::metadata(path)?.len(), Digest::of_file(path)?)))
            .collect::<Vec<std::io::Result<(u64, Digest)>>>();
        for ((path, recorded), result) in files.iter().zip(hashed) {
            let (port, path, recorded) = (port.to_owned(), path.clone(), *recorded);
            match result {
                Ok((bytes, found)) => {
                    self.report.files += 1;
                    self.report.bytes += bytes;
                    if found != recorded {
                        self.found(Mismatch::Bytes { port, path, recorded, found })?;
                    }
                }
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    self.found(Mismatch::Files { port, path, extra: false })?;
                }
                Err(error) => self.found(Mismatch::Unreadable { path, error: error.to_string() })?,
            }
        }
        Ok(())
    }
}
