//! Whether an object may be used: it is what its name says, by memory or by its bytes.

use std::path::Path;
use std::sync::MutexGuard;

use rayon::prelude::*;

use super::file_state::tree_stat::TreeStat;
use super::file_state::verified::{VerifiedObjects, VerifiedStat};
use super::{Artifact, Health, Result, Store};
use crate::identity::digest::Digest;

/// Smaller objects are hashed a second time before they are vouched for, which takes less than waiting for the clock's
/// next tick before the first.
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
    pub(super) fn verified(&self) -> MutexGuard<'_, VerifiedObjects> {
        self.vouched.lock().expect("no panic under this lock")
    }

    /// Looks at an object; at its bytes only where it does not look as when they were hashed.
    pub(super) fn state(&self, artifact: &Artifact) -> Result<Integrity> {
        let digest = &artifact.digest;
        let object = self.path(digest);
        let Ok(link) = fs_err::symlink_metadata(&object) else { return Ok(Integrity::Missing) };
        // An adopted file is a link; only of a folder the name tells nothing.
        if (link.is_symlink() || link.is_dir()) && self.adopted(digest)?.is_some() {
            return Ok(match self.adoption_change(artifact)? {
                Some(loss) => Integrity::Invalid(loss),
                None if object.exists() => Integrity::Ok,
                None => Integrity::Missing,
            });
        }
        let seen = match link.is_file() {
            true => Some(TreeStat::of_file(&link)),
            false => self.look(&object, digest)?,
        };
        let Some(seen) = seen else { return Ok(Integrity::Missing) };
        let lost = |why: &str| {
            let kind = if artifact.folder { "folder" } else { "file" };
            Integrity::Invalid(format!("the {kind} {} in the cache is damaged: {why}", digest.short()))
        };
        let mark = seen.stat_hash();
        {
            let mut vouched = self.verified();
            if vouched.is_verified(digest, &mark) {
                return Ok(Integrity::Ok);
            }
            if let Some(why) = vouched.fault(digest, &mark) {
                return Ok(lost(why));
            }
        }
        let why = if link.is_dir() != artifact.folder {
            format!("it is {}", if link.is_dir() { "a folder" } else { "a file" })
        } else if !artifact.folder && link.len() != artifact.size {
            format!("it has {} bytes instead of {}", link.len(), artifact.size)
        } else {
            let sure = seen.past_racy_window();
            match self.verify(digest)? {
                Health::Sound => {
                    self.verified().put(*digest, &seen, sure);
                    return Ok(Integrity::Ok);
                }
                Health::Gone => return Ok(Integrity::Missing),
                Health::Damaged(why) => why,
            }
        };
        let state = lost(&why);
        self.verified().mark_invalid(*digest, mark, why);
        Ok(state)
    }

    /// Looks at an object and at what belongs to it.
    pub(super) fn look(&self, object: &Path, digest: &Digest) -> Result<Option<TreeStat>> {
        match TreeStat::at(object)? {
            Some(seen) if object.is_dir() => Ok(Some(seen.with(".list", &self.listing_path(digest))?)),
            seen => Ok(seen),
        }
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

    /// Puts aside the damaged outputs of an entry, so that it stands for nothing.
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

    /// Keeps what was learnt about objects for the next run, once their bytes are on the disk.
    pub(super) fn save_verified(&self) -> Result<()> {
        let fresh = self.verified().fresh();
        let sure: Vec<(Digest, Digest)> = fresh
            .par_iter()
            .filter(|(digest, voucher)| voucher.sure || self.still_is(digest, voucher))
            .map(|(digest, voucher)| (*digest, voucher.mark))
            .collect();
        if sure.is_empty() {
            return Ok(());
        }
        // After a power cut, a file may have its size and times and yet not its bytes.
        rustix::fs::syncfs(fs_err::File::open(&self.root)?).map_err(std::io::Error::from)?;
        let file = self.root.join("vouched-v1");
        let bytes = self.verified().merged(&sure);
        self.write(&file, &bytes)?;
        self.verified().written(bytes, &sure);
        Ok(())
    }

    /// Hashes a small object once more, now that a change would show.
    fn still_is(&self, digest: &Digest, voucher: &VerifiedStat) -> bool {
        let looks = || self.look(&self.path(digest), digest).ok().flatten();
        voucher.size <= SMALL
            && looks().is_some_and(|seen| seen.past_racy_window() && seen.stat_hash() == voucher.mark)
            && self.verify(digest).is_ok_and(|health| health == Health::Sound)
    }
}
