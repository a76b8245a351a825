//! Files that no run needs, area by area: working folders of killed runs, quarantined files, unused downloads, obsolete areas.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use jiff::Timestamp;

use super::inventory::{Inventory, RunUse};
use super::policy::{Policy, Removal, Target};
use crate::identity::shared_fs;
use crate::provenance::manifest::{self, Base, Repeat};
use crate::provenance::task_times;
use crate::store::{Area, Part, Store, StoreError};

/// Refuses where something of the store cannot be read, for that may need what would be removed.
pub(super) fn readable(store: &Store, inventory: &Inventory) -> Result<(), StoreError> {
    if let Some((path, reason)) = inventory.damaged.first() {
        return Err(StoreError::Damaged { path: path.clone(), reason: reason.clone() });
    }
    if let Some(newer) = store.parts()?.into_iter().find(|part| matches!(part, Part::Newer(_))) {
        return Err(StoreError::Newer { path: store.root().join(newer.name()) });
    }
    Ok(())
}

/// What is removed in any case, area by area.
pub(super) fn steps(
    store: &Store,
    inventory: &Inventory,
    policy: &Policy,
    now: Timestamp,
) -> Result<Vec<Removal>, StoreError> {
    let mut steps = Vec::new();
    for part in store.parts()? {
        let path = store.root().join(part.name());
        match &part {
            Part::Area(Area::Tmp) => scratch(&path, &mut steps)?,
            Part::Area(Area::Quarantine) => quarantined(&path, policy, now, &mut steps)?,
            Part::Area(Area::Downloads) => downloads(&path, policy, now, &mut steps)?,
            Part::Area(Area::Cluster) => cluster_runs(&path, policy, now, &mut steps)?,
            Part::Area(Area::Runs) => manifests(inventory, policy, &mut steps),
            // Removed by what names them.
            Part::Area(Area::Objects | Area::Recipes | Area::Units) => {}
            Part::Area(Area::Pins | Area::Costs | Area::Trials | Area::FileState | Area::Noop) => {}
            Part::Area(Area::StoreLock | Area::UnitsLock | Area::CacheTag | Area::GitIgnore) => {}
            Part::Area(Area::Leases | Area::LockTest) => {}
            Part::Obsolete(name) => {
                let frees = blocks(&path);
                let target = Target::Obsolete { path };
                steps.push(Removal::orphan(target, format!("{name}, {}", part.purpose()), frees));
            }
            // Somebody else's.
            Part::Root | Part::Newer(_) | Part::Unknown(_) => {}
        }
    }
    Ok(steps)
}

fn scratch(tmp: &Path, steps: &mut Vec<Removal>) -> Result<(), StoreError> {
    let frees: u64 = dead(tmp)?.iter().map(|path| blocks(path)).sum();
    if frees > 0 {
        steps.push(Removal::orphan(Target::Scratch, "working folders of killed runs".into(), frees));
    }
    Ok(())
}

/// Whether a file has not changed for as long as the policy keeps such files.
fn expired(path: &Path, policy: &Policy, now: Timestamp) -> bool {
    let changed = shared_fs::symlink_metadata(path).and_then(|metadata| metadata.modified());
    let changed = changed.ok().and_then(|time: SystemTime| Timestamp::try_from(time).ok());
    changed.is_some_and(|at| now.duration_since(at).as_secs() >= policy.grace.as_secs() as i64)
}

/// Runs on a cluster that are over for long enough: what is left of them is events and logs.
fn cluster_runs(
    folder: &Path,
    policy: &Policy,
    now: Timestamp,
    steps: &mut Vec<Removal>,
) -> Result<(), StoreError> {
    for path in below(folder)?.into_iter().filter(|path| expired(&path.join("front"), policy, now)) {
        let (name, frees) = (format!("run {} on a cluster", name(&path)), blocks(&path));
        steps.push(Removal::orphan(Target::Files { paths: vec![path] }, name, frees));
    }
    Ok(())
}

fn quarantined(
    folder: &Path,
    policy: &Policy,
    now: Timestamp,
    steps: &mut Vec<Removal>,
) -> Result<(), StoreError> {
    for path in below(folder)?.into_iter().filter(|path| expired(path, policy, now)) {
        let (name, frees) = (format!("damaged {}", name(&path)), blocks(&path));
        steps.push(Removal::orphan(Target::Files { paths: vec![path] }, name, frees));
    }
    Ok(())
}

fn downloads(
    folder: &Path,
    policy: &Policy,
    now: Timestamp,
    steps: &mut Vec<Removal>,
) -> Result<(), StoreError> {
    let mut downloads: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for path in below(folder)? {
        let key = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        downloads.entry(key).or_default().push(path);
    }
    for (key, paths) in downloads {
        // An unfinished download is resumed by the next run.
        let finished = paths.iter().any(|path| path.extension().is_some_and(|ending| ending == "file"));
        let mut files = paths.iter().filter(|path| !name(path).ends_with(".lock"));
        if finished && files.all(|path| expired(path, policy, now)) {
            let frees = paths.iter().map(|path| blocks(path)).sum();
            let name = format!("finished download {key}");
            steps.push(Removal::orphan(Target::Files { paths }, name, frees));
        }
    }
    Ok(())
}

/// Whether a manifest is pinned or signed: a signed one is somebody's statement.
fn is_protected(run: &RunUse, inventory: &Inventory) -> bool {
    let pinned = |path: &PathBuf| run.path.ends_with(Path::new(Area::Runs.name()).join(path));
    shared_fs::exists(manifest::signature_path(&run.path))
        || inventory.pins.iter().filter_map(|pin| pin.manifest.as_ref()).any(pinned)
}

/// Short manifests of runs that changed nothing, of a pipeline.
const KEPT_REPEATS: usize = 20;

fn manifests(inventory: &Inventory, policy: &Policy, steps: &mut Vec<Removal>) {
    let most = policy.keep_manifests.unwrap_or(usize::MAX).max(policy.keep_runs);
    for (pipeline, root, past) in inventory.pipelines() {
        // Nothing is known of a forgotten project any more.
        let forgotten = policy.forgets(root);
        let bases: Vec<Option<Base>> = past.iter().map(|run| Repeat::base_of(&run.path)).collect();
        let repeats: Vec<usize> =
            (0..past.len()).filter(|&run| bases[run].is_some()).skip(KEPT_REPEATS).collect();
        let removed = |run: &usize| {
            (forgotten || *run >= most || repeats.contains(run)) && !is_protected(past[*run], inventory)
        };
        // One that is repeated by another that stays, stays too.
        let needed: BTreeSet<&str> = (0..past.len())
            .filter(|run| !removed(run))
            .filter_map(|run| Some(bases[run].as_ref()?.name.as_str()))
            .collect();
        for run in (0..past.len()).filter(removed).map(|run| past[run]) {
            if run.path.file_name().and_then(|name| name.to_str()).is_some_and(|name| needed.contains(name)) {
                continue;
            }
            let path = run.path.clone();
            let frees = blocks(&path) + blocks(&task_times::path(&path));
            let name = format!("manifest of {pipeline}/{}", name(&path));
            steps.push(Removal::orphan(Target::Manifest { path }, name, frees));
        }
    }
}

/// Removes a file, or a folder with everything in it; one that is missing is no error.
pub(super) fn remove(path: &Path) -> Result<(), StoreError> {
    let removed = match shared_fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => shared_fs::remove_dir_all(path),
        Ok(_) => shared_fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// Working folders and temporary files whose lock nobody holds.
fn dead(tmp: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let mut dead = Vec::new();
    for path in below(tmp)? {
        let name = name(&path);
        if !name.ends_with(".lock") && !name.starts_with("write-") {
            continue;
        }
        let Ok(lock) = shared_fs::open(&path) else { continue };
        if lock.file().try_lock().is_ok() {
            dead.push(path.with_extension(""));
        }
    }
    Ok(dead)
}

fn below(folder: &Path) -> Result<Vec<PathBuf>, StoreError> {
    if !shared_fs::is_dir(folder) {
        return Ok(Vec::new());
    }
    let mut paths = Vec::new();
    for entry in shared_fs::read_dir(folder)? {
        paths.push(entry?.path());
    }
    paths.sort();
    Ok(paths)
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Disk usage of a file, or of a folder with everything in it.
fn blocks(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(metadata) = shared_fs::symlink_metadata(path) else { return 0 };
    let own = metadata.blocks() * 512;
    match metadata.is_dir() {
        true => own + below(path).unwrap_or_default().iter().map(|path| blocks(path)).sum::<u64>(),
        false => own,
    }
}

/// Moves an index file into quarantine.
pub(super) fn quarantine_file(store: &Store, path: &Path) -> Result<PathBuf, StoreError> {
    let folder = store.area(Area::Quarantine);
    shared_fs::create_dir_all(&folder)?;
    let at = Timestamp::now().strftime("%Y%m%dT%H%M%S%.6fZ");
    let target = folder.join(format!("{at}-{}", name(path)));
    shared_fs::rename(path, &target)?;
    Ok(target)
}
