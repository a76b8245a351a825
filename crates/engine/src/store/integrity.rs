//! Whether an object may be used: it is what its name says, by how it looks or by its bytes.

use std::path::Path;

use super::file_state::Trust;
use super::file_state::tree_stat::TreeStat;
use super::{Artifact, Health, Result, Store};
use crate::identity::digest::Digest;
use crate::identity::shared_fs;

/// Smaller objects are hashed a second time before later processes may believe them, which takes less than waiting for the
/// clock's next tick before the first.
pub(super) const SMALL: u64 = 1 << 20;

/// The state of what an entry names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Integrity {
    /// It is there and may be used.
    Ok,
    /// It is not there.
    Missing,
    /// It may not be used: why, for people.
    Invalid(String),
}

impl Store {
    /// Looks at an object; at its bytes only where it does not look as when they were hashed.
    pub(super) fn state(&self, artifact: &Artifact) -> Result<Integrity> {
        let digest = &artifact.digest;
        let object = self.path(digest);
        let Ok(link) = shared_fs::symlink_metadata(&object) else { return Ok(Integrity::Missing) };
        // An adopted file is a link; a folder may be either.
        if (link.is_symlink() || link.is_dir()) && self.adopted(digest)?.is_some() {
            return Ok(match self.adoption_change(artifact)? {
                Some(change) => Integrity::Invalid(change),
                None if shared_fs::exists(&object) => Integrity::Ok,
                None => Integrity::Missing,
            });
        }
        let seen = match link.is_file() {
            true => Some(TreeStat::of_file(&link)),
            false => self.look(&object, digest)?,
        };
        let Some(seen) = seen else { return Ok(Integrity::Missing) };
        let invalid = |why: &str| {
            let kind = if artifact.folder { "folder" } else { "file" };
            Integrity::Invalid(format!("the {kind} {} in the cache is damaged: {why}", digest.short()))
        };
        let look = seen.stat_hash();
        match self.file_state().get(digest, &look) {
            Some([]) => return Ok(Integrity::Ok),
            Some(why) => return Ok(invalid(&String::from_utf8_lossy(why))),
            None => {}
        }
        let why = if link.is_dir() != artifact.folder {
            format!("it is {}", if link.is_dir() { "a folder" } else { "a file" })
        } else if !artifact.folder && link.len() != artifact.size {
            format!("it has {} bytes instead of {}", link.len(), artifact.size)
        } else {
            let trust = Trust::of_object(seen.past_racy_window());
            match self.verify(digest)? {
                Health::Sound => {
                    self.file_state().put(*digest, look, &[], trust);
                    return Ok(Integrity::Ok);
                }
                Health::Gone => return Ok(Integrity::Missing),
                Health::Damaged(why) => why,
            }
        };
        // It is not hashed again as long as it looks the same.
        self.file_state().put(*digest, look, why.as_bytes(), Trust::Local);
        Ok(invalid(&why))
    }

    /// Looks at an object and at what belongs to it.
    pub(super) fn look(&self, object: &Path, digest: &Digest) -> Result<Option<TreeStat>> {
        Ok(TreeStat::at(object)?.map(|seen| match seen.is_folder() {
            true => seen.with(".list", &self.listing_path(digest)),
            false => seen,
        }))
    }

    /// Why an artifact that was there may not be used; `None` for one that may, or is simply gone.
    ///
    /// # Errors
    /// A file of the store that cannot be read.
    pub fn find_damage(&self, artifact: &Artifact) -> Result<Option<String>> {
        Ok(match self.state(artifact)? {
            Integrity::Invalid(why) => Some(why),
            Integrity::Ok | Integrity::Missing => None,
        })
    }

    /// Quarantines the damaged outputs of an entry, which then has no result.
    ///
    /// # Errors
    /// A move that failed.
    pub fn evict(&self, fingerprint: &Digest) -> Result<()> {
        let Ok(Some(entry)) = self.entry(fingerprint) else { return Ok(()) };
        for artifact in entry.outputs.values() {
            // Files of the user's that changed are no damage: they may change back.
            if self.adopted(&artifact.digest)?.is_none()
                && let Integrity::Invalid(why) = self.state(artifact)?
            {
                self.quarantine(artifact, &why)?;
            }
        }
        Ok(())
    }

    /// Hashes a small object once more, now that a change would show.
    pub(super) fn is_still(&self, digest: &Digest, look: &Digest) -> bool {
        let seen = self.look(&self.path(digest), digest).ok().flatten();
        let same =
            |seen: TreeStat| seen.size() <= SMALL && seen.past_racy_window() && seen.stat_hash() == *look;
        seen.is_some_and(same) && self.verify(digest).is_ok_and(|health| health == Health::Sound)
    }
}
