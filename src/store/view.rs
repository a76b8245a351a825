//! The results folder: a view of the store for people and their tools.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::{Artifact, Result, Store, remove};
use crate::digest::Digest;

/// How the names of what is not yet in place begin.
const ASIDE: &str = ".attrflow-";

/// `results/PIPELINE/`, and what each path in it shows.
///
/// The record of what is shown is written around each change, under a lock: a run that is killed, or another
/// one at the same time, never leaves a record that says what is not so.
pub struct View {
    root: PathBuf,
    shown: BTreeMap<PathBuf, Digest>,
    swept: bool,
}

impl View {
    /// Opens the view at `root`; one without a record counts as empty.
    pub fn open(root: &Path) -> Self {
        Self { root: root.to_path_buf(), shown: record(root), swept: false }
    }

    /// Makes `path` below the view show an artifact; costs next to nothing where it does already.
    ///
    /// An adopted one is shown by a link to where it is.
    ///
    /// # Errors
    /// A write that failed; what the path showed before is then still there.
    pub fn show(&mut self, path: &Path, artifact: &Artifact, store: &Store) -> Result<PathBuf> {
        let target = self.root.join(path);
        let adopted = store.adopted(&artifact.digest)?;
        // Equal bytes may have been adopted, and computed or adopted from elsewhere later.
        let leads = fs_err::read_link(&target).ok();
        if self.shown.get(path) == Some(&artifact.digest) && leads == adopted && target.exists() {
            return Ok(target);
        }
        let _lock = self.lock()?;
        fs_err::create_dir_all(target.parent().unwrap_or(&self.root))?;
        self.sweep()?;
        self.shown = record(&self.root);
        if self.shown.remove(path).is_some() {
            self.save()?;
        }
        let aside = tempfile::Builder::new().prefix(ASIDE).tempdir_in(&self.root)?;
        let new = aside.path().join("new");
        match adopted {
            Some(place) => symlink(place, &new)?,
            None => link(&store.path(&artifact.digest), &new)?,
        }
        if present(&target) {
            fs_err::rename(&target, aside.path().join("old"))?;
        }
        fs_err::rename(&new, &target)?;
        self.shown.insert(path.to_path_buf(), artifact.digest);
        self.save()?;
        Ok(target)
    }

    /// Removes what is shown at other paths than these: of stages that are renamed or gone.
    ///
    /// # Errors
    /// A removal that failed.
    pub fn keep_only(&mut self, paths: &BTreeSet<PathBuf>) -> Result<()> {
        if self.shown.keys().all(|path| paths.contains(path)) {
            return Ok(());
        }
        let _lock = self.lock()?;
        self.shown = record(&self.root);
        let gone: Vec<PathBuf> = self.shown.keys().filter(|path| !paths.contains(*path)).cloned().collect();
        for path in gone {
            let target = self.root.join(&path);
            if present(&target) {
                remove(&target)?;
            }
            self.shown.remove(&path);
            // Folders that hold something else stay.
            for folder in path.ancestors().skip(1).take_while(|folder| !folder.as_os_str().is_empty()) {
                if fs_err::remove_dir(self.root.join(folder)).is_err() {
                    break;
                }
            }
        }
        self.save()
    }

    /// One run at a time changes a results folder, whichever caches they use.
    fn lock(&self) -> Result<fs_err::File> {
        fs_err::create_dir_all(&self.root)?;
        let file = fs_err::File::create(self.root.join(".lock"))?;
        file.file().lock()?;
        Ok(file)
    }

    /// Removes what a killed run left aside; under the lock no other run has anything there.
    fn sweep(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.swept, true) {
            return Ok(());
        }
        for entry in fs_err::read_dir(&self.root)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(ASIDE) {
                fs_err::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    }

    fn save(&self) -> Result<()> {
        let aside = tempfile::Builder::new().prefix(ASIDE).tempdir_in(&self.root)?;
        let new = aside.path().join("new");
        fs_err::write(&new, serde_json::to_vec(&self.shown).map_err(std::io::Error::from)?)?;
        fs_err::rename(&new, self.root.join(".shown.json"))?;
        Ok(())
    }
}

/// Whether anything stands at a path, be it a link that leads nowhere.
fn present(path: &Path) -> bool {
    fs_err::symlink_metadata(path).is_ok()
}

fn record(root: &Path) -> BTreeMap<PathBuf, Digest> {
    let text = fs_err::read(root.join(".shown.json")).ok();
    text.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

/// Shares the bytes where the file system can (reflink, else hard link), copies them where it cannot.
fn link(from: &Path, to: &Path) -> Result<()> {
    if fs_err::metadata(from)?.is_dir() {
        fs_err::create_dir(to)?;
        for entry in fs_err::read_dir(from)? {
            let entry = entry?;
            link(&entry.path(), &to.join(entry.file_name()))?;
        }
        return Ok(());
    }
    if reflink_copy::reflink(from, to).is_ok() || fs_err::hard_link(from, to).is_ok() {
        return Ok(());
    }
    fs_err::copy(from, to)?;
    Ok(())
}
