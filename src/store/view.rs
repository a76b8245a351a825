//! The results folder: a view of the store for people and their tools.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{Artifact, Result, Store};
use crate::digest::Digest;

/// `results/PIPELINE/`, and what each path in it shows.
pub struct View {
    root: PathBuf,
    shown: BTreeMap<PathBuf, Digest>,
    changed: bool,
}

impl View {
    /// Opens the view at `root`; one without a record counts as empty.
    pub fn open(root: &Path) -> Self {
        let record = fs_err::read(root.join(".shown.json")).ok();
        let shown = record.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        Self { root: root.to_path_buf(), shown, changed: false }
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
        let folder = target.parent().unwrap_or(&self.root);
        fs_err::create_dir_all(folder)?;
        let aside = tempfile::Builder::new().prefix(".attrflow-").tempdir_in(folder)?;
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

    /// Keeps the record of what is shown.
    ///
    /// # Errors
    /// A write that failed.
    pub fn save(&mut self, store: &Store) -> Result<()> {
        if std::mem::take(&mut self.changed) {
            let text = serde_json::to_vec(&self.shown).map_err(std::io::Error::from)?;
            store.write(&self.root.join(".shown.json"), &text)?;
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
