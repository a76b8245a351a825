//! The units of each stage: which fingerprints of units belong to the fingerprint of a stage.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::{Area, Result, Store, read_json};
use crate::identity::digest::Digest;
use crate::identity::shared_fs;

/// The port under which a unit's folder is stored.
pub const PART: &str = "part";

/// The units of a stage, written when it begins, so that they are known also of a killed run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnitIndex {
    /// The pipeline that was run.
    pub pipeline: String,
    /// The stage's name.
    pub stage: String,
    /// The fingerprints of its units.
    pub units: Vec<Digest>,
}

impl Store {
    /// Writes the units of the stage with this fingerprint.
    ///
    /// # Errors
    /// A write that failed.
    pub fn write_unit_index(&self, fingerprint: &Digest, cut: &UnitIndex) -> Result<()> {
        let text = serde_json::to_vec(cut).map_err(std::io::Error::from)?;
        self.write(&self.unit_index_path(fingerprint), &text)
    }

    /// The units of all stages, and when they were written; a file that cannot be read is skipped.
    ///
    /// # Errors
    /// A folder that cannot be read.
    pub fn unit_indexes(&self) -> Result<BTreeMap<Digest, (UnitIndex, SystemTime)>> {
        let mut cuts = BTreeMap::new();
        for path in super::inventory::sharded_files(&self.area(Area::Units))? {
            let stem = path.file_stem().and_then(|stem| stem.to_str());
            let Some(fingerprint) = stem.and_then(|stem| stem.parse().ok()) else { continue };
            if let Ok(Some(cut)) = read_json(&path) {
                let noted = shared_fs::metadata(&path)?.modified()?;
                cuts.insert(fingerprint, (cut, noted));
            }
        }
        Ok(cuts)
    }

    /// Removes the units of a stage.
    ///
    /// # Errors
    /// A removal that failed.
    pub fn remove_unit_index(&self, fingerprint: &Digest) -> Result<()> {
        super::inventory::ignore_missing(shared_fs::remove_file(self.unit_index_path(fingerprint)))
    }

    fn unit_index_path(&self, fingerprint: &Digest) -> PathBuf {
        self.sharded(Area::Units, fingerprint, ".json")
    }
}
