//! The folders for a command's inputs and temporary files.
//!
//! Creating and removing them takes longer than a small command, so a worker reuses them for the next command. They are
//! moved, not shared.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::Context;

use super::{INPUTS, TMP};
use attrflow_engine::kind::Inputs;

/// The parent of the reusable folders, between two commands of this worker.
static KEPT: Mutex<Option<PathBuf>> = Mutex::new(None);

fn kept() -> std::sync::MutexGuard<'static, Option<PathBuf>> {
    KEPT.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Creates both folders in the empty folder `out`, and links the inputs.
pub(super) fn link_inputs(inputs: &Inputs, out: &Path) -> anyhow::Result<()> {
    let kept = kept().take();
    let create = |name: &str| -> anyhow::Result<()> {
        let moved = kept.as_ref().is_some_and(|kept| fs_err::rename(kept.join(name), out.join(name)).is_ok());
        if !moved {
            fs_err::create_dir(out.join(name))?;
        }
        Ok(())
    };
    create(TMP)?;
    create(INPUTS)?;
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

/// Removes the folders from `out` for reuse, if they contain nothing but the inputs.
pub(super) fn unlink_inputs(inputs: &Inputs, out: &Path) {
    let Some(around) = out.parent() else { return };
    let place = around.join(format!("kept-{}", std::process::id()));
    let emptied = || -> std::io::Result<bool> {
        // A command may have replaced them, and nothing may be removed behind a link.
        for name in [INPUTS, TMP] {
            let found = fs_err::symlink_metadata(out.join(name))?;
            if !found.is_dir() || found.permissions().mode() & 0o700 != 0o700 {
                return Ok(false);
            }
        }
        for name in inputs.0.keys() {
            if !fs_err::symlink_metadata(out.join(INPUTS).join(name))?.is_symlink() {
                return Ok(false);
            }
        }
        for name in inputs.0.keys() {
            fs_err::remove_file(out.join(INPUTS).join(name))?;
        }
        let empty = |name: &str| Ok::<_, std::io::Error>(fs_err::read_dir(out.join(name))?.next().is_none());
        Ok(empty(INPUTS)? && empty(TMP)?)
    };
    if !emptied().unwrap_or(false) {
        return;
    }
    if !place.is_dir() && fs_err::create_dir(&place).is_err() {
        return;
    }
    // A folder that cannot be moved is removed with the attempt.
    let moved = [TMP, INPUTS].map(|name| fs_err::rename(out.join(name), place.join(name)).is_ok());
    if moved.contains(&true) {
        *kept() = Some(place);
    }
}
