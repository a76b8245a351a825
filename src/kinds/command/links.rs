//! The folders for a command's inputs and temporary files.
//!
//! Creating and removing them takes longer than a small command, so they stay in its folder, empty, for the next command.

use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context;

use super::{INPUTS, TMP};
use attrflow_engine::kind::Inputs;

/// Creates both folders in the folder `out`, which holds nothing or both of them, and links the inputs.
pub(super) fn link_inputs(inputs: &Inputs, out: &Path) -> anyhow::Result<()> {
    for name in [TMP, INPUTS] {
        match fs_err::create_dir(out.join(name)) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error.into()),
            _ => {}
        }
    }
    for (name, path) in &inputs.0 {
        let link = out.join(INPUTS).join(name);
        let made = if has_empty_folder(path)? { mirror(path, &link) } else { symlink(path, &link) };
        made.with_context(|| format!("cannot create the link {}", link.display()))?;
    }
    Ok(())
}

/// Whether an input holds a folder without a file. Such folders are not hashed, so that a command must not see them.
fn has_empty_folder(path: &Path) -> std::io::Result<bool> {
    if !path.is_dir() {
        return Ok(false);
    }
    for entry in fs_err::read_dir(path)? {
        let entry = entry?.path();
        if entry.is_dir() && (fs_err::read_dir(&entry)?.next().is_none() || has_empty_folder(&entry)?) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Folders like those of an input that hold files, with a link to each file.
fn mirror(path: &Path, to: &Path) -> std::io::Result<()> {
    fs_err::create_dir(to)?;
    for entry in fs_err::read_dir(path)? {
        let from = entry?.path();
        let to = to.join(from.file_name().unwrap_or_default());
        match from.is_dir() {
            true => {
                mirror(&from, &to)?;
                if fs_err::read_dir(&to)?.next().is_none() {
                    fs_err::remove_dir(&to)?;
                }
            }
            false => symlink(&from, &to)?,
        }
    }
    Ok(())
}

/// Moves the links out of the folder of inputs, to be removed with the run: some file systems make new files the slower, the
/// more were removed just before. Where a command left something else in it, the folder is not used again.
pub(super) fn unlink_inputs(inputs: &Inputs, out: &Path) {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let Some(around) = out.parent() else { return };
    let place = around.join(format!("links-{}", std::process::id()));
    let folder = out.join(INPUTS);
    // A command may have replaced it, and nothing may be moved behind a link.
    if !fs_err::symlink_metadata(&folder).is_ok_and(|found| found.is_dir()) {
        return;
    }
    for name in inputs.0.keys() {
        let link = folder.join(name);
        let is_link = fs_err::symlink_metadata(&link).is_ok_and(|found| found.is_symlink());
        if !is_link || move_into(&link, &place, COUNT.fetch_add(1, Ordering::Relaxed)).is_err() {
            return;
        }
    }
}

/// Moves a link into a folder, which may have to be made.
fn move_into(link: &Path, place: &Path, number: u64) -> std::io::Result<()> {
    let to: PathBuf = place.join(number.to_string());
    match fs_err::rename(link, &to) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            fs_err::create_dir(place)?;
            fs_err::rename(link, &to)
        }
        result => result,
    }
}
