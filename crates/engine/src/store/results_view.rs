//! The results folder: a view of the store, for people and their tools.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::Metadata;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Component, Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::file_state::tree_stat::{Stat, TreeStat};
use super::kept_files::{self, IsOurs, MovedFile};
use super::placement::{Placement, Repair};
use super::{Artifact, Result, Store, StoreError, remove};
use crate::identity::digest::{Digest, Listed, Listing};
use crate::identity::regular_file;
use crate::identity::shared_fs;

/// How the names of temporary files begin.
const ASIDE: &str = ".attrflow-";
const RECORD: &str = ".shown.json";

/// `results/PIPELINE/`, and the artifact at each path in it.
///
/// Each artifact is recorded with how it looks. A path that looks otherwise is compared with the store, so an outdated record,
/// because a run was killed or another one came between, costs a comparison and misleads nobody.
pub struct View {
    root: PathBuf,
    shown: BTreeMap<PathBuf, Shown>,
    /// Paths whose record this run changed.
    changed: BTreeSet<PathBuf>,
    /// Files of the user that were moved out of folders of results.
    pub moved: Vec<MovedFile>,
    swept: bool,
    /// Whether the file system was found to share no bytes by reflink.
    no_reflink: bool,
}

/// The artifact at a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
enum Shown {
    /// An artifact, and how it looked.
    TreeStat(Digest, Digest),
    /// An artifact that has no look: a link, or one that an earlier version recorded.
    Named(Digest),
}

impl Shown {
    fn digest(&self) -> &Digest {
        match self {
            Self::TreeStat(digest, _) | Self::Named(digest) => digest,
        }
    }
}

impl View {
    /// The file that records what is below `root`.
    pub fn record_path(root: &Path) -> PathBuf {
        root.join(RECORD)
    }

    /// Opens the view at `root`; one without a record counts as empty.
    pub fn open(root: &Path) -> Self {
        let shown = record(root);
        Self {
            root: root.to_path_buf(),
            shown,
            changed: BTreeSet::new(),
            moved: Vec::new(),
            swept: false,
            no_reflink: false,
        }
    }

    /// Whether an artifact is shown at `path`.
    pub fn shows(&self, path: &Path) -> bool {
        self.shown.contains_key(path)
    }

    /// Whether something is shown at other paths than these.
    pub fn shows_others(&self, paths: &BTreeSet<PathBuf>) -> bool {
        !self.shown.keys().all(|path| paths.contains(path))
    }

    /// Places an artifact at `path` below the view; costs next to nothing where it is already.
    ///
    /// An adopted one is placed as a link to where it is.
    ///
    /// # Errors
    /// A write that failed; what was at the path before is then still there.
    pub fn show(&mut self, path: &Path, artifact: &Artifact, store: &Store) -> Result<Placement> {
        let target = self.root.join(path);
        let link = shared_fs::symlink_metadata(&target).ok();
        let known = self.shown.get(path);
        let as_before = known.is_some_and(|known| *known.digest() == artifact.digest);
        let replaced = known.is_some() && !as_before;
        // Equal bytes may have been adopted, and computed or adopted from elsewhere later.
        let leads = match &link {
            Some(link) if link.is_symlink() => Some(fs_err::read_link(&target)?),
            _ => None,
        };
        let own = leads.is_none() && link.as_ref().is_some_and(|link| link.is_dir() == artifact.folder);
        // Broken links that the user put into a folder keep it from being known by its look.
        let look = || TreeStat::at(&target).ok().flatten();
        let seen = match &link {
            Some(link) if own && link.is_file() => Some(TreeStat::of_file(link)),
            _ if own => look(),
            _ => None,
        };
        if let (Some(Shown::TreeStat(digest, mark)), Some(seen)) = (known, &seen)
            && *digest == artifact.digest
            && *mark == seen.stat_hash()
            && (!artifact.folder || store.adopted(digest)?.is_none())
        {
            return Ok(Placement { path: target, mended: None, replaced });
        }
        if let Some(place) = store.adopted(&artifact.digest)? {
            if leads.as_ref() == Some(&place) && shared_fs::exists(&target) {
                if !as_before {
                    self.note(path, Shown::Named(artifact.digest));
                }
                return Ok(Placement { path: target, mended: None, replaced });
            }
            self.move_aside(path, Some(&artifact.digest), store)?;
            self.replace(&target, |_, new| Ok(symlink(place, new)?))?;
            self.note(path, Shown::Named(artifact.digest));
            return Ok(Placement { path: target, mended: None, replaced });
        }
        let object = store.path(&artifact.digest);
        // What another artifact left in its folder would seem to be of this one.
        let comparable = own && !(replaced && artifact.folder);
        let wrong = if comparable { wrong(&target, &object, artifact, store)? } else { Wrong::All };
        let before = store.look(&object, &artifact.digest)?;
        let mended = match wrong {
            Wrong::Nothing => None,
            Wrong::Some(names) if as_before => {
                for name in &names {
                    let found = shared_fs::symlink_metadata(target.join(name)).ok();
                    if found.is_some_and(|found| !is_read_only(&found)) {
                        self.moved.push(kept_files::move_path(&self.root, &path.join(name))?);
                    }
                    self.replace(&target.join(name), |view, new| view.link(&object.join(name), new, false))?;
                }
                Some(Repair::Files(names.len()))
            }
            Wrong::Some(_) | Wrong::All => {
                self.move_aside(path, Some(&artifact.digest), store)?;
                self.replace(&target, |view, new| view.link(&object, new, artifact.folder))?;
                // A link to an adopted file was right before.
                let mended = if link.is_some() { Repair::Changed } else { Repair::Missing };
                (as_before && leads.is_none()).then_some(mended)
            }
        };
        // A hard link changes a time of the object that it shares.
        if let (Some(before), Some(after)) = (before, store.look(&object, &artifact.digest)?)
            && before != after
        {
            store.file_state().renew(artifact.digest, &before, &after);
        }
        let shown = match look() {
            Some(seen) => Shown::TreeStat(artifact.digest, seen.stat_hash()),
            None => Shown::Named(artifact.digest),
        };
        if self.shown.get(path) != Some(&shown) {
            self.note(path, shown);
        }
        Ok(Placement { path: target, mended, replaced })
    }

    /// Moves files of the user away from a path that is replaced by an artifact, or removed: the file there or above it, or
    /// those of the folder there.
    ///
    /// Where the cache has lost what the folder held, results are those of the new names that cannot be written to.
    fn move_aside(&mut self, path: &Path, new: Option<&Digest>, store: &Store) -> Result<()> {
        let is_folder = |path: &Path| shared_fs::metadata(path).is_ok_and(|found| found.is_dir());
        for above in path.ancestors().skip(1).filter(|above| !above.as_os_str().is_empty()) {
            let above_it = self.root.join(above);
            if present(&above_it) && !is_folder(&above_it) {
                self.moved.push(kept_files::move_path(&self.root, above)?);
            }
        }
        let Ok(found) = shared_fs::symlink_metadata(self.root.join(path)) else { return Ok(()) };
        if !found.is_dir() {
            if !self.is_ours(path, &found) {
                self.moved.push(kept_files::move_path(&self.root, path)?);
            }
            return Ok(());
        }
        let names = |digest: Option<&Digest>| {
            let listing = digest.map(|digest| store.listing(digest)).transpose()?.flatten();
            Ok::<_, StoreError>(
                listing.map(|Listing(files)| files.into_iter().map(|file| file.path).collect()),
            )
        };
        let before: Option<BTreeSet<String>> = names(self.shown.get(path).map(Shown::digest))?;
        let (names, is_guess) = match before {
            Some(names) => (Some(names), false),
            None => (names(new)?, true),
        };
        let is_ours = names.as_ref().map(|names| {
            move |name: &str, found: &Metadata| names.contains(name) && (!is_guess || is_read_only(found))
        });
        let is_ours = is_ours.as_ref().map(|is_ours| is_ours as &IsOurs<'_>);
        self.moved.extend(kept_files::move_aside(&self.root, path, is_ours)?);
        Ok(())
    }

    /// Whether a file or link is what was placed there: as it looked then, or at least as results look, which nobody can write to.
    fn is_ours(&self, path: &Path, found: &Metadata) -> bool {
        let as_placed = match self.shown.get(path) {
            Some(Shown::TreeStat(_, look)) => {
                found.is_file() && *look == TreeStat::of_file(found).stat_hash()
            }
            Some(Shown::Named(_)) => found.is_symlink(),
            None => false,
        };
        as_placed || is_read_only(found)
    }

    fn note(&mut self, path: &Path, shown: Shown) {
        self.shown.insert(path.to_path_buf(), shown);
        self.changed.insert(path.to_path_buf());
    }

    /// Puts what `make` makes at a path, in place of what may be there.
    fn replace(&mut self, target: &Path, make: impl FnOnce(&mut Self, &Path) -> Result<()>) -> Result<()> {
        let _lock = self.lock()?;
        self.sweep()?;
        let aside = |end: &str| self.root.join(format!("{ASIDE}{}{end}", std::process::id()));
        let (new, old) = (aside("-new"), aside("-old"));
        // A run that failed in the middle may have left it.
        if present(&new) {
            remove(&new)?;
        }
        make(self, &new)?;
        if !present(target) {
            return Ok(super::publish::place(&new, target)?);
        }
        // A file goes in one step, a folder cannot.
        if !shared_fs::is_dir(target) && !shared_fs::is_dir(&new) && shared_fs::rename(&new, target).is_ok() {
            // Of two links to one file, a rename leaves both: another run placed the same object a moment ago.
            return if present(&new) { remove(&new) } else { Ok(()) };
        }
        shared_fs::rename(target, &old)?;
        shared_fs::rename(&new, target)?;
        remove(&old)
    }

    /// Removes what is at other paths than these: results of stages that were renamed or removed.
    ///
    /// # Errors
    /// A removal that failed.
    pub fn prune(&mut self, paths: &BTreeSet<PathBuf>, store: &Store) -> Result<()> {
        if !self.shows_others(paths) {
            return Ok(());
        }
        let _lock = self.lock()?;
        let gone: Vec<PathBuf> = self.shown.keys().filter(|path| !paths.contains(*path)).cloned().collect();
        for path in gone {
            let target = self.root.join(&path);
            self.move_aside(&path, None, store)?;
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
            self.changed.insert(path);
        }
        Ok(())
    }

    /// Writes the record, with what other runs recorded meanwhile.
    ///
    /// # Errors
    /// A write that failed.
    pub fn save(&mut self) -> Result<()> {
        if self.changed.is_empty() {
            return Ok(());
        }
        let _lock = self.lock()?;
        let mut all = record(&self.root);
        for path in &self.changed {
            match self.shown.get(path) {
                Some(shown) => all.insert(path.clone(), shown.clone()),
                None => all.remove(path),
            };
        }
        let new = self.root.join(format!("{ASIDE}{}-record", std::process::id()));
        shared_fs::write(&new, serde_json::to_vec(&all).map_err(std::io::Error::from)?)?;
        shared_fs::rename(&new, self.root.join(RECORD))?;
        self.changed.clear();
        Ok(())
    }

    /// One run at a time changes a results folder, whichever caches they use.
    fn lock(&self) -> Result<fs_err::File> {
        let path = self.root.join(".lock");
        let file = match regular_file::lock_file(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                shared_fs::create_dir_all(&self.root)?;
                regular_file::lock_file(&path)?
            }
            file => file?,
        };
        file.file().lock()?;
        Ok(file)
    }

    /// Removes temporary files of killed runs; under the lock no other run has any.
    fn sweep(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.swept, true) {
            return Ok(());
        }
        for entry in shared_fs::read_dir(&self.root)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(ASIDE) {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Shares the bytes where the file system can (reflink, else hard link), copies them where it cannot.
    fn link(&mut self, from: &Path, to: &Path, folder: bool) -> Result<()> {
        if folder {
            shared_fs::create_own_dir(to)?;
            for entry in shared_fs::read_dir(from)? {
                let from = entry?.path();
                let folder = shared_fs::metadata(&from)?.is_dir();
                self.link(&from, &to.join(from.file_name().unwrap_or_default()), folder)?;
            }
            return Ok(());
        }
        if !self.no_reflink {
            match reflink_copy::reflink(from, to) {
                Ok(()) => return Ok(()),
                Err(_) => {
                    self.no_reflink = true;
                    // It may have left an empty file.
                    let _ = shared_fs::remove_file(to);
                }
            }
        }
        if shared_fs::hard_link(from, to).is_ok() {
            return Ok(());
        }
        // Never into what is there: that may be the object itself, by another name.
        let mut copy = fs_err::File::create_new(to)?;
        std::io::copy(&mut shared_fs::open(from)?, &mut copy)?;
        copy.set_permissions(shared_fs::metadata(from)?.permissions())?;
        Ok(())
    }
}

impl Drop for View {
    fn drop(&mut self) {
        // The record of a run that failed is written too, if possible.
        let _ = self.save();
    }
}

/// What at a path differs from its artifact.
enum Wrong {
    Nothing,
    /// These files of a folder.
    Some(Vec<String>),
    All,
}

/// Compares what is at a path with an artifact, by its bytes where it is not the object itself.
fn wrong(target: &Path, object: &Path, artifact: &Artifact, store: &Store) -> Result<Wrong> {
    if !artifact.folder {
        return Ok(match is_file(target, object, artifact.size, &artifact.digest) {
            true => Wrong::Nothing,
            false => Wrong::All,
        });
    }
    let Some(listing) = store.listing(&artifact.digest)? else { return Ok(Wrong::All) };
    let differs = |file: &&Listed| {
        !is_file(&target.join(&file.path), &object.join(&file.path), file.size, &file.digest)
    };
    let wrong: Vec<String> = listing.0.par_iter().filter(differs).map(|file| file.path.clone()).collect();
    Ok(match wrong.len() {
        0 => Wrong::Nothing,
        _ => Wrong::Some(wrong),
    })
}

/// Whether a file is an object's, or holds the same bytes.
fn is_file(file: &Path, object: &Path, size: u64, digest: &Digest) -> bool {
    let Ok(link) = shared_fs::symlink_metadata(file) else { return false };
    if !link.is_file() || link.len() != size {
        return false;
    }
    let shared = Stat::of(object).is_ok_and(|stat| stat.same_file(&Stat::from(&link)));
    shared || Digest::of_file(file).is_ok_and(|found| found == *digest)
}

/// Whether it is a file that nobody can write to, as results are.
fn is_read_only(found: &Metadata) -> bool {
    found.is_file() && found.permissions().mode() & 0o222 == 0
}

/// Whether a path exists, even as a broken link.
fn present(path: &Path) -> bool {
    shared_fs::symlink_metadata(path).is_ok()
}

fn record(root: &Path) -> BTreeMap<PathBuf, Shown> {
    let text = regular_file::read(root.join(RECORD)).ok();
    let mut shown: BTreeMap<PathBuf, Shown> =
        text.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
    // What is recorded may be removed: a damaged record must not lead out of the folder, nor to all of it.
    let below = |path: &Path| path.components().all(|part| matches!(part, Component::Normal(_)));
    shown.retain(|path, _| below(path) && !path.as_os_str().is_empty());
    shown
}
