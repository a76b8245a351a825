//! Reads every byte of a cache and checks it against its name.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;
use serde::Serialize;

use super::inventory::{Inventory, Owner};
use super::orphans;
use crate::identity::digest::Digest;
use crate::identity::shared_fs;
use crate::provenance::task_times;
use crate::store::{Artifact, Health, Part, Store, StoreError};

/// A file that is not what its name says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Corruption {
    /// What it is: `object` or `index`.
    pub part: &'static str,
    /// The object, or the file of the index.
    pub path: PathBuf,
    /// What is wrong, for people.
    pub why: String,
    /// The results that it belongs to, by the names that runs gave them, and whether a unit's.
    pub of: BTreeSet<Owner>,
    /// Where it was moved; `None` for a link to a user's file.
    pub moved: Option<PathBuf>,
}

/// What a verification looked at, and what it found.
#[derive(Debug, Default, Serialize)]
pub struct VerifySummary {
    /// Objects that were read.
    pub objects: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Entries of the index.
    pub entries: usize,
    /// What was damaged, and is now in quarantine.
    pub damage: Vec<Corruption>,
    /// Adopted files that are missing or were modified.
    pub lost: Vec<String>,
    /// Stages that lost a result: the next run recomputes them.
    pub rebuilds: BTreeSet<Owner>,
    /// Stages with a result of which something was missing before: removed, or found damaged earlier.
    pub incomplete: BTreeSet<Owner>,
    /// What was not checked: files and folders at the top level that nothing reads, obsolete or unknown, and manifests of a newer
    /// version.
    pub unchecked: Vec<String>,
}

/// A verification of a whole store.
pub struct Verify<'a> {
    /// The cache.
    pub store: &'a Store,
    /// Called with how many bytes were read of how many.
    pub progress: &'a (dyn Fn(u64, u64) + Sync),
}

impl Verify<'_> {
    /// Reads everything, and quarantines what is damaged.
    ///
    /// # Errors
    /// What cannot be read or moved.
    pub fn execute(&self) -> Result<VerifySummary, StoreError> {
        let inventory = Inventory::of(self.store)?;
        let mut checked = VerifySummary { entries: inventory.items.len(), ..VerifySummary::default() };
        let unchecked = self.store.parts()?.into_iter().filter(|part| !matches!(part, Part::Area(_)));
        checked.unchecked = unchecked.map(|part| format!("{} ({})", part.name(), part.purpose())).collect();
        let mut incomplete: BTreeSet<Digest> = BTreeSet::new();
        for (fingerprint, item) in &inventory.items {
            if !inventory.exists(fingerprint) {
                incomplete.insert(*fingerprint);
                checked.incomplete.extend(item.name.clone().filter(|_| !item.is_unit()));
            }
        }
        let expected: BTreeMap<Digest, &Artifact> = inventory
            .items
            .values()
            .flat_map(|item| item.entry.outputs.values())
            .map(|artifact| (artifact.digest, artifact))
            .collect();
        for (digest, health) in self.health(&inventory, &mut checked)? {
            let Health::Damaged(why) = health else { continue };
            let artifact = match expected.get(&digest) {
                Some(artifact) => (*artifact).clone(),
                None => Artifact { digest, size: 0, folder: shared_fs::is_dir(self.store.path(&digest)) },
            };
            // Left alone: the files may be on a disk that is not mounted now.
            if let Some(loss) = self.store.adoption_change(&artifact)? {
                checked.lost.push(loss);
                continue;
            }
            let path = self.store.path(&digest);
            let moved = self.store.quarantine(&artifact, &why)?;
            let mut of = BTreeSet::new();
            for (fingerprint, item) in &inventory.items {
                if item.entry.outputs.values().any(|output| output.digest == digest) {
                    of.extend(item.name.clone());
                    // A unit is computed again only when its stage is.
                    if !incomplete.contains(fingerprint) && !self.spared(&inventory, fingerprint) {
                        checked.rebuilds.extend(item.name.clone());
                    }
                }
            }
            checked.damage.push(Corruption { part: "object", path, why, of, moved });
        }
        for (path, why) in &inventory.damaged {
            let moved = orphans::quarantine_file(self.store, path)?;
            let of = self.named_in_runs(&inventory, path);
            checked.rebuilds.extend(of.iter().cloned());
            let why = why.clone();
            checked.damage.push(Corruption {
                part: "index",
                path: path.clone(),
                why,
                of,
                moved: Some(moved),
            });
        }
        let newer =
            inventory.newer.iter().map(|(path, _)| path.strip_prefix(self.store.root()).unwrap_or(path));
        checked.unchecked.extend(newer.map(|path| format!("{} (of a newer version)", path.display())));
        for (path, why) in &inventory.unread {
            let moved = Some(orphans::quarantine_file(self.store, path)?);
            orphans::remove(&task_times::path(path))?;
            let (path, why) = (path.clone(), why.clone());
            checked.damage.push(Corruption { part: "manifest", path, why, of: BTreeSet::new(), moved });
        }
        Ok(checked)
    }

    /// Whether it is a unit whose stage has its result.
    fn spared(&self, inventory: &Inventory, fingerprint: &Digest) -> bool {
        let item = &inventory.items[fingerprint];
        item.is_unit() && item.stages.iter().any(|stage| inventory.exists(stage))
    }

    /// Reads all objects, many at once.
    fn health(
        &self,
        inventory: &Inventory,
        checked: &mut VerifySummary,
    ) -> Result<Vec<(Digest, Health)>, StoreError> {
        let objects: Vec<(Digest, u64)> =
            inventory.disk.objects.iter().map(|(digest, space)| (*digest, space.bytes)).collect();
        let total: u64 = objects.iter().map(|(_, bytes)| bytes).sum();
        let read = AtomicU64::new(0);
        let found = Mutex::new(Vec::new());
        objects.par_iter().try_for_each(|(digest, bytes)| {
            let health = self.store.verify(digest)?;
            (self.progress)(read.fetch_add(*bytes, Ordering::Relaxed) + bytes, total);
            found.lock().expect("no panic under this lock").push((*digest, health));
            Ok::<(), StoreError>(())
        })?;
        let mut found = found.into_inner().expect("no panic under this lock");
        found.sort_by_key(|(digest, _)| *digest);
        found.retain(|(_, health)| *health != Health::Gone);
        (checked.objects, checked.bytes) = (found.len(), total);
        Ok(found)
    }

    /// The stages that a damaged index file belongs to, according to the manifests.
    fn named_in_runs(&self, inventory: &Inventory, path: &std::path::Path) -> BTreeSet<Owner> {
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let Ok(fingerprint) = stem.parse::<Digest>() else { return BTreeSet::new() };
        let mut names = BTreeSet::new();
        for (pipeline, past) in &inventory.runs {
            for record in past.iter().flat_map(|run| &run.manifest.stages) {
                if record.fingerprint == Some(fingerprint) {
                    names.insert(Owner { pipeline: pipeline.clone(), stage: record.stage.clone() });
                }
            }
        }
        names
    }
}
