//! Pins: results that garbage collection keeps.
//!
//! ```text
//! pins-v1/ID.json   one pin each, so that two can be set at once
//! ```

use std::collections::BTreeSet;
use std::io::Write;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::identity::digest::Digest;
use crate::identity::regular_file;
use crate::identity::shared_fs;
use crate::store::{Area, Store, StoreError};

/// A pinned item, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pin {
    /// The pinned item in a canonical form: `demo/TIME.json`, `demo/influence[apple]`, a digest.
    pub what: String,
    /// As the user gave it: `demo:last`.
    pub asked: String,
    /// The time, UTC, RFC 3339.
    pub at: String,
    /// The user's reason.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
    /// Fingerprints whose results are kept.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub results: BTreeSet<Digest>,
    /// Objects that are kept.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub objects: BTreeSet<Digest>,
    /// The manifest that is kept, as a path below the folder of runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<PathBuf>,
}

impl Pin {
    /// A short name derived from the pinned item.
    pub fn id(&self) -> String {
        let mut hasher = blake3::Hasher::new_derive_key("attrflow pin v1");
        hasher.update(self.what.as_bytes());
        for digest in self.results.iter().chain(&self.objects) {
            hasher.update(&digest.0);
        }
        Digest::from(hasher.finalize()).short()
    }
}

/// The pins of a store.
pub struct Pins<'a> {
    store: &'a Store,
}

impl<'a> Pins<'a> {
    /// The pins of this store.
    pub fn of(store: &'a Store) -> Self {
        Self { store }
    }

    /// All, the oldest first.
    ///
    /// # Errors
    /// A pin that cannot be read: ignoring it could lose what it keeps.
    pub fn list(&self) -> Result<Vec<Pin>, StoreError> {
        let folder = self.folder();
        let mut pins = Vec::new();
        if !shared_fs::is_dir(&folder) {
            return Ok(pins);
        }
        for entry in shared_fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let pin: Pin = serde_json::from_slice(&regular_file::read(&path)?)
                .map_err(|error| StoreError::Damaged { path, reason: error.to_string() })?;
            pins.push(pin);
        }
        pins.sort_by(|a, b| (&a.at, &a.what).cmp(&(&b.at, &b.what)));
        Ok(pins)
    }

    /// Sets a pin; one of the same item is replaced.
    ///
    /// # Errors
    /// A write that failed.
    pub fn set(&self, pin: &Pin) -> Result<(), StoreError> {
        let folder = self.folder();
        shared_fs::create_dir_all(&folder)?;
        let mut file = tempfile::Builder::new().prefix("write-").tempfile_in(&folder)?;
        serde_json::to_writer_pretty(&mut file, pin).map_err(std::io::Error::from)?;
        file.flush()?;
        file.as_file().sync_all()?;
        file.persist(self.path(pin)).map_err(|error| error.error)?;
        Ok(())
    }

    /// Removes the pins of this name: an id or a prefix of it, the pinned item, or the name that the user gave.
    ///
    /// # Errors
    /// As [`Pins::list`], and a removal that failed.
    pub fn remove(&self, name: &str) -> Result<Vec<Pin>, StoreError> {
        const SHORTEST: usize = 4;
        let by_id = |pin: &Pin| name.len() >= SHORTEST && pin.id().starts_with(name);
        let mut pins = self.list()?;
        pins.retain(|pin| by_id(pin) || pin.what == name || pin.asked == name);
        for pin in &pins {
            shared_fs::remove_file(self.path(pin))?;
        }
        Ok(pins)
    }

    fn folder(&self) -> PathBuf {
        self.store.area(Area::Pins)
    }

    fn path(&self, pin: &Pin) -> PathBuf {
        self.folder().join(format!("{}.json", pin.id()))
    }
}
