//! What a cache holds, by the names of stages in its manifests.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use jiff::Timestamp;
use serde::Serialize;

use super::disk::{Disk, Space};
use super::pins::{Pin, Pins};
use crate::identity::digest::Digest;
use crate::identity::regular_file;
use crate::identity::shared_fs;
use crate::provenance::manifest::{self, Manifest};
use crate::store::{Area, Entry, Store, StoreError, UnitIndex};

/// A stage of a pipeline, as a run named it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Owner {
    /// The pipeline.
    pub pipeline: String,
    /// The stage.
    pub stage: String,
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.pipeline, self.stage)
    }
}

/// A run that left a manifest.
#[derive(Debug)]
pub struct RunUse {
    /// The file.
    pub path: PathBuf,
    /// Its content.
    pub manifest: Manifest,
}

/// A result of a stage or of a unit.
#[derive(Debug)]
pub struct Item {
    /// Its entry.
    pub entry: Entry,
    /// The stage that had it last; `None` if no run recorded one.
    pub name: Option<Owner>,
    /// When a run last used or computed it.
    pub used: Timestamp,
    /// Whether a manifest records it, or the stage whose unit it is.
    pub recorded: bool,
    /// The fingerprints of the stages whose unit it is.
    pub stages: Vec<Digest>,
}

impl Item {
    /// Whether it is the result of a unit, not of a stage.
    pub fn is_unit(&self) -> bool {
        self.entry.recipe.unit.is_some()
    }
}

/// Everything in a store, and for whom.
#[derive(Debug)]
pub struct Inventory {
    /// Results by fingerprint.
    pub items: BTreeMap<Digest, Item>,
    /// Index files that cannot be read, and why.
    pub damaged: Vec<(PathBuf, String)>,
    /// Disk usage.
    pub disk: Disk,
    /// The runs of each pipeline, newest first.
    pub runs: BTreeMap<String, Vec<RunUse>>,
    /// Manifests that cannot be read, and why. Nothing is known of what their runs need.
    pub unread: Vec<(PathBuf, String)>,
    /// Manifests of a newer version, with everything in them that looks like a digest: what they name is kept.
    pub newer: Vec<(PathBuf, BTreeSet<Digest>)>,
    /// The units of the stages.
    pub cuts: BTreeMap<Digest, UnitIndex>,
    /// The pins.
    pub pins: Vec<Pin>,
}

impl Inventory {
    /// Reads a store.
    ///
    /// # Errors
    /// A store that cannot be read.
    pub fn of(store: &Store) -> Result<Self, StoreError> {
        let mut runs = BTreeMap::new();
        let (mut unread, mut newer) = (Vec::new(), Vec::new());
        let folder = store.area(Area::Runs);
        if shared_fs::is_dir(&folder) {
            for pipeline in shared_fs::read_dir(folder)? {
                let pipeline = pipeline?;
                let mut past = Vec::new();
                for path in manifest::list(&pipeline.path()) {
                    match manifest::read(&path) {
                        Ok(manifest) => past.push(RunUse { path, manifest }),
                        Err(error) if error.kind() == ErrorKind::Unsupported => {
                            let digests = digests_in(&regular_file::read(&path)?);
                            newer.push((path, digests));
                        }
                        Err(error) => unread.push((path, error.to_string())),
                    }
                }
                runs.insert(pipeline.file_name().to_string_lossy().into_owned(), past);
            }
        }
        let (mut items, mut damaged) = (BTreeMap::new(), Vec::new());
        for indexed in store.entries()? {
            match indexed.content {
                Ok((fingerprint, entry)) => {
                    let used = stamp(indexed.written);
                    let item = Item { entry, name: None, used, recorded: false, stages: Vec::new() };
                    items.insert(fingerprint, item);
                }
                Err(reason) => damaged.push((indexed.path, reason)),
            }
        }
        name_results(&mut items, &runs);
        let cuts = store.unit_indexes()?;
        name_units(&mut items, &cuts);
        let cuts = cuts.into_iter().map(|(fingerprint, (cut, _))| (fingerprint, cut)).collect();
        let (disk, pins) = (Disk::of(store)?, Pins::of(store).list()?);
        Ok(Self { items, damaged, disk, runs, unread, newer, cuts, pins })
    }

    /// The runs of each pipeline, newest first, with its name and its project. Pipelines of one name in several projects, or in
    /// several files of one, are several pipelines.
    pub fn pipelines(&self) -> impl Iterator<Item = (&str, Option<&Path>, Vec<&RunUse>)> {
        self.runs.iter().flat_map(|(name, past)| {
            let mut pipelines: BTreeMap<_, Vec<&RunUse>> = BTreeMap::new();
            past.iter().for_each(|run| pipelines.entry(run.manifest.identity()).or_default().push(run));
            pipelines.into_iter().map(move |((root, _), past)| (name.as_str(), root, past))
        })
    }

    /// The projects of recorded runs whose folder is no longer there.
    pub fn gone_projects(&self) -> BTreeSet<&Path> {
        let runs = self.runs.values().flatten();
        runs.filter_map(|run| run.manifest.root.as_deref()).filter(|root| !shared_fs::is_dir(root)).collect()
    }

    /// Disk usage of a result's objects, without those that are in `counted`, to which they are added.
    pub fn space(&self, item: &Item, counted: &mut BTreeSet<Digest>) -> Space {
        let mut space = Space::default();
        for artifact in item.entry.outputs.values() {
            if counted.insert(artifact.digest) {
                space += self.disk.objects.get(&artifact.digest).copied().unwrap_or_default();
            }
        }
        space
    }

    /// The pins that keep a result.
    pub fn pinned(&self, fingerprint: &Digest) -> impl Iterator<Item = &Pin> {
        let outputs = self.items.get(fingerprint).map(|item| &item.entry.outputs);
        let digests: Vec<Digest> = outputs.into_iter().flatten().map(|(_, a)| a.digest).collect();
        let (fingerprint, digests) = (*fingerprint, digests);
        self.pins.iter().filter(move |pin| {
            pin.results.contains(&fingerprint) || digests.iter().any(|digest| pin.objects.contains(digest))
        })
    }

    /// Whether a result's stage or unit is complete, as far as the index tells.
    pub fn exists(&self, fingerprint: &Digest) -> bool {
        self.items.get(fingerprint).is_some_and(|item| {
            item.entry.outputs.values().all(|artifact| self.disk.objects.contains_key(&artifact.digest))
        })
    }
}

/// Everything in a text that looks like a digest.
fn digests_in(text: &[u8]) -> BTreeSet<Digest> {
    let words = text.split(|byte| !byte.is_ascii_hexdigit());
    let words = words.filter(|word| word.len() == 64).filter_map(|word| std::str::from_utf8(word).ok());
    words.filter_map(|word| word.parse().ok()).collect()
}

/// Names results after the newest run that recorded them, with the time of that run.
fn name_results(items: &mut BTreeMap<Digest, Item>, runs: &BTreeMap<String, Vec<RunUse>>) {
    for (pipeline, past) in runs {
        for RunUse { manifest, .. } in past {
            let at: Option<Timestamp> = manifest.started.parse().ok();
            for record in &manifest.stages {
                let Some(item) = record.fingerprint.and_then(|found| items.get_mut(&found)) else { continue };
                let later = at.is_some_and(|at| at > item.used);
                if later || item.name.is_none() {
                    item.name = Some(Owner { pipeline: pipeline.clone(), stage: record.stage.clone() });
                }
                item.recorded = true;
                item.used = item.used.max(at.unwrap_or(item.used));
            }
        }
    }
}

/// Names units after their stage; a run that split the stage used them.
fn name_units(items: &mut BTreeMap<Digest, Item>, cuts: &BTreeMap<Digest, (UnitIndex, SystemTime)>) {
    for (stage, (cut, noted)) in cuts {
        let known = items.get(stage).map(|item| (item.name.clone(), item.recorded));
        let recorded = known.as_ref().is_some_and(|(_, recorded)| *recorded);
        let noted = stamp(*noted);
        let name = Owner { pipeline: cut.pipeline.clone(), stage: cut.stage.clone() };
        let name = known.and_then(|(name, _)| name).unwrap_or(name);
        for unit in &cut.units {
            let Some(item) = items.get_mut(unit) else { continue };
            if noted >= item.used || item.name.is_none() {
                item.name = Some(name.clone());
            }
            item.used = item.used.max(noted);
            item.recorded |= recorded;
            item.stages.push(*stage);
        }
    }
    // A result that no manifest records, of a killed run, may have been split into units.
    for (stage, (cut, _)) in cuts {
        if let Some(item) = items.get_mut(stage)
            && item.name.is_none()
        {
            item.name = Some(Owner { pipeline: cut.pipeline.clone(), stage: cut.stage.clone() });
        }
    }
}

fn stamp(time: SystemTime) -> Timestamp {
    Timestamp::try_from(time).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// A time as RFC 3339, or null.
pub(super) fn as_text<S: serde::Serializer>(time: &Option<Timestamp>, to: S) -> Result<S::Ok, S::Error> {
    time.map(|time| time.to_string()).serialize(to)
}
