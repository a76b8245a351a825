//! Measurements in the cache.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::MachineProfile;
use crate::identity::digest::Digest;
use crate::identity::recipe::Numerics;
use crate::identity::regular_file;
use crate::store::{Area, Store, StoreError};
use crate::worker::measure::CostModel;

/// What keeps the hash of a key apart from every other hash.
const CONTEXT: &str = "attrflow 2026-11-26 measurement v1";

/// All that a measurement depends on.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Key {
    /// The stage kind.
    pub kind: String,
    /// Its version: another one may compute differently.
    pub version: u32,
    /// See [`crate::kind::WorkSize`].
    pub like: Json,
    /// libtorch, the class of device, and determinism.
    pub numerics: Numerics,
    /// Workers, threads, micro batch, and the machine.
    pub circumstances: MachineProfile,
}

impl Key {
    fn digest(&self) -> Digest {
        let text = serde_json::to_vec(self).expect("a key is plain data");
        blake3::Hasher::new_derive_key(CONTEXT).update(&text).finalize().into()
    }
}

/// A file of the folder; it contains the key for people.
#[derive(Serialize)]
struct Written<'a> {
    key: &'a Key,
    measured: CostModel,
}

#[derive(Deserialize)]
struct Read {
    measured: CostModel,
}

/// The measurements of a cache.
pub struct CostCache<'s> {
    store: &'s Store,
    /// Most caches have none; this is checked once.
    any: bool,
}

impl<'s> CostCache<'s> {
    /// Those of this store.
    pub fn of(store: &'s Store) -> Self {
        Self { store, any: store.area(Area::Costs).is_dir() }
    }

    /// What was measured; a file that cannot be read counts as none.
    pub fn find(&self, key: &Key) -> Option<CostModel> {
        let bytes = regular_file::read(self.place(key)).ok().filter(|_| self.any)?;
        serde_json::from_slice::<Read>(&bytes).ok().map(|read| read.measured)
    }

    /// Stores a measurement, replacing an earlier one.
    ///
    /// # Errors
    /// A cache that cannot be written.
    pub fn keep(&mut self, key: &Key, measured: CostModel) -> Result<(), StoreError> {
        let text =
            serde_json::to_vec_pretty(&Written { key, measured }).expect("a measurement is plain data");
        self.store.write(&self.place(key), &text)?;
        self.any = true;
        Ok(())
    }

    fn place(&self, key: &Key) -> PathBuf {
        self.store.area(Area::Costs).join(format!("{}.json", key.digest()))
    }
}
