//! What nobody needs: left by killed runs, set aside as damaged, downloaded and not taken.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use jiff::Timestamp;

use super::inventory::Inventory;
use super::policy::{Policy, Removal, Target};
use crate::identity::recipe;
use crate::provenance::manifest;
use crate::store::{Store, StoreError};

/// Refuses where something of the store can't be read that may need what would be taken away.
pub(super) fn readable(store: &Store, inventory: &Inventory) -> Result<(), StoreError> {
    if let Some((path, reason)) = inventory.damaged.first() {
        return Err(StoreError::Damaged { path: path.clone(), reason: reason.clone() });
    }
    if let Some(reason) = inventory.unread.first() {
        let path = store.root().join("runs");
        return Err(StoreError::Damaged { path, reason: reason.clone() });
    }
    for path in below(store.root())? {
        let name = name(&path);
        let version = name.strip_prefix("recipes-v").and_then(|number| number.parse::<u32>().ok());
        if version.is_some_and(|version| version > recipe::FORMAT) {
            let reason = "a newer attrflow wrote it, whose results this one cannot tell".to_owned();
            return Err(StoreError::Damaged { path, reason });
        }
    }
    Ok(())
}

/// What goes in any case.
pub(super) fn steps(
    store: &Store,
    inventory: &Inventory,
    policy: &Policy,
    now: Timestamp,
) -> Result<Vec<Removal>, StoreError> {
    let mut steps = Vec::new();
    let scratch: u64 = dead(&store.root().join("tmp"))?.iter().map(|path| blocks(path)).sum();
    if scratch > 0 {
        steps.push(Removal::orphan(Target::Scratch, "work of runs that were killed".into(), scratch));
    }
    let old = |path: &Path| {
        let changed = fs_err::symlink_metadata(path).and_then(|metadata| metadata.modified());
        let changed = changed.ok().and_then(|time: SystemTime| Timestamp::try_from(time).ok());
        changed.is_some_and(|at| now.duration_since(at).as_secs() >= policy.grace.as_secs() as i64)
    };
    for path in below(&store.root().join("quarantine"))?.into_iter().filter(|path| old(path)) {
        let (name, frees) = (format!("damaged {}", name(&path)), blocks(&path));
        steps.push(Removal::orphan(Target::Files { paths: vec![path] }, name, frees));
    }
    let mut downloads: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for path in below(&store.root().join("downloads"))? {
        let key = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        downloads.entry(key).or_default().push(path);
    }
    for (key, paths) in downloads {
        // What is under way goes on in the next run.
        let finished = paths.iter().any(|path| path.extension().is_some_and(|ending| ending == "file"));
        if finished && paths.iter().filter(|path| !name(path).ends_with(".lock")).all(|path| old(path)) {
            let frees = paths.iter().map(|path| blocks(path)).sum();
            let name = format!("finished download {key}");
            steps.push(Removal::orphan(Target::Files { paths }, name, frees));
        }
    }
    let most = policy.keep_manifests.unwrap_or(usize::MAX).max(policy.keep_runs);
    for (pipeline, past) in &inventory.runs {
        for run in past.iter().skip(most) {
            let pinned = |path: &PathBuf| run.path.ends_with(Path::new("runs").join(path));
            // What somebody signed is their word, and not ours to take away.
            let signed = manifest::signature_path(&run.path).exists();
            if signed || inventory.pins.iter().filter_map(|pin| pin.manifest.as_ref()).any(pinned) {
                continue;
            }
            let path = run.path.clone();
            let (name, frees) = (format!("record of {pipeline}/{}", name(&path)), blocks(&path));
            steps.push(Removal::orphan(Target::Manifest { path }, name, frees));
        }
    }
    Ok(steps)
}

/// Removes a file, or a folder and all below it; what is gone already is no fault.
pub(super) fn remove(path: &Path) -> Result<(), StoreError> {
    let removed = match fs_err::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs_err::remove_dir_all(path),
        Ok(_) => fs_err::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// Work folders and files whose lock nobody holds.
fn dead(tmp: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let mut dead = Vec::new();
    for path in below(tmp)? {
        let name = name(&path);
        if !name.ends_with(".lock") && !name.starts_with("write-") {
            continue;
        }
        let Ok(lock) = fs_err::File::open(&path) else { continue };
        if lock.file().try_lock().is_ok() {
            dead.push(path.with_extension(""));
        }
    }
    Ok(dead)
}

fn below(folder: &Path) -> Result<Vec<PathBuf>, StoreError> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let mut paths = Vec::new();
    for entry in fs_err::read_dir(folder)? {
        paths.push(entry?.path());
    }
    paths.sort();
    Ok(paths)
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Bytes of the disk that a file takes, or a folder with all below it.
fn blocks(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(metadata) = fs_err::symlink_metadata(path) else { return 0 };
    let own = metadata.blocks() * 512;
    match metadata.is_dir() {
        true => own + below(path).unwrap_or_default().iter().map(|path| blocks(path)).sum::<u64>(),
        false => own,
    }
}

/// Moves a file of the index out of the way, beside the damaged objects.
pub(super) fn quarantine_file(store: &Store, path: &Path) -> Result<PathBuf, StoreError> {
    let folder = store.root().join("quarantine");
    fs_err::create_dir_all(&folder)?;
    let at = Timestamp::now().strftime("%Y%m%dT%H%M%S%.6fZ");
    let target = folder.join(format!("{at}-{}", name(path)));
    fs_err::rename(path, &target)?;
    Ok(target)
}
