//! The results folder: a view of the store for people and their tools.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{Artifact, Result, Store};
use crate::digest::Digest;

/// How the names of what is not yet in place begin.
const ASIDE: &str = ".attrflow-";

/// `results/PIPELINE/`, and what each path in it shows.
pub struct View {
    root: PathBuf,
    shown: BTreeMap<PathBuf, Digest>,
    changed: bool,
    swept: bool,
}

impl View {
    /// Opens the view at `root`; one without a record counts as empty.
    pub fn open(root: &Path) -> Self {
        let record = fs_err::read(root.join(".shown.json")).ok();
        let shown = record.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        Self { root: root.to_path_buf(), shown, changed: false, swept: false }
    }

    /// Makes `path` below the view show an artifact; costs one stat where it does already.
    ///
    /// # Errors
    /// A write that failed; what the path showed before is then still there.
    pub fn show(&mut self, path: &Path, artifact: &Artifact, store: &Store) -> Result<PathBuf> {
        let target = self.root.join(path);
        if self.shown.get(path) == Some(&artifact.digest) && target.exists() {
            return Ok(target);
        }
        fs_err::create_dir_all(target.parent().unwrap_or(&self.root))?;
        let _lock = store.lock_named("view")?;
        self.sweep()?;
        let aside = tempfile::Builder::new().prefix(ASIDE).tempdir_in(&self.root)?;
        let new = aside.path().join("new");
        link(&store.path(&artifact.digest), &new)?;
        if target.exists() {
            fs_err::rename(&target, aside.path().join("old"))?;
        }
        fs_err::rename(&new, &target)?;
        self.shown.insert(path.to_path_buf(), artifact.digest);
        self.changed = true;
        Ok(target)
    }

    /// Removes what a killed run left aside; to be called under the lock, when no other run has anything there.
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

    /// Keeps the record of what is shown.
    ///
    /// # Errors
    /// A write that failed.
    pub fn save(&mut self, store: &Store) -> Result<()> {
        if std::mem::take(&mut self.changed) {
            let _lock = store.lock_named("view")?;
            let aside = tempfile::Builder::new().prefix(ASIDE).tempdir_in(&self.root)?;
            let new = aside.path().join("new");
            fs_err::write(&new, serde_json::to_vec(&self.shown).map_err(std::io::Error::from)?)?;
            fs_err::rename(&new, self.root.join(".shown.json"))?;
        }
        Ok(())
    }
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
