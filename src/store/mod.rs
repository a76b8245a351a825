//! The cache: content-addressed objects and an index from fingerprints to them.
//!
//! ```text
//! objects/ab/ab12…        the bytes of a file, or a folder, read-only
//! objects/ab/ab12….list   the listing of a folder: its hash is the folder's digest
//! objects/ab/ab12….adopted  where the bytes are, if the object only leads to them
//! recipes-v1/ab/ab34….json  what a fingerprint gave: the whole recipe and its outputs
//! runs/PIPELINE/TIME.json   manifests
//! locks/                    one file per fingerprint that is being computed
//! tmp/RUN/                  attempts of one run, gone with it; files on their way to their place
//! ```
//! Writes go aside, are synced, then renamed; the index entry comes last. A crash leaves garbage, never a lie.

mod adopted;
mod lock;
mod scratch;
mod stat;
mod view;

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rayon::prelude::*;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::digest::{Digest, Listed, Listing};
use crate::recipe::{self, Recipe};

pub use adopted::{Adopted, Stamp};
pub use lock::Lock;
pub use scratch::{Attempt, Scratch};
pub use view::View;

/// A store that cannot be used, or a write into it that failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system refused; the message names the path.
    #[error("cache: {0}")]
    Io(#[from] std::io::Error),
    /// A file of the store does not say what it must.
    #[error("cache: {path} is damaged: {reason}; remove it to have it rebuilt", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A stage ended without an output that its kind declares.
    #[error("the stage wrote no `{0}`")]
    MissingOutput(String),
}

type Result<T> = std::result::Result<T, StoreError>;

/// What stands on an output port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Artifact {
    /// Identifies the bytes.
    pub digest: Digest,
    /// Bytes in all.
    pub size: u64,
    /// Whether it is a folder.
    pub folder: bool,
}

/// What a fingerprint gave.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The recipe behind the fingerprint.
    pub recipe: Recipe,
    /// The outputs by port.
    pub outputs: BTreeMap<String, Artifact>,
    /// Seconds of computing; none for what was adopted.
    pub seconds: f64,
    /// Where the outputs come from, if they were not computed here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adopted: Option<Adopted>,
}

/// What the index knows of a fingerprint.
#[derive(Debug, Clone)]
pub enum Found {
    /// No result, or one of which something is no longer there.
    Nothing,
    /// A result, and all its outputs stand.
    Stands(Box<Entry>),
    /// A result whose adopted files are gone or have changed: what happened, for people.
    Lost(String),
}

/// The cache of a project.
pub struct Store {
    root: PathBuf,
    stat: Mutex<stat::StatCache>,
}

impl Store {
    /// Opens the cache at `root`; nothing is written before something is stored.
    ///
    /// # Errors
    /// A stat cache that cannot be read.
    pub fn open(root: &Path) -> Result<Self> {
        let root = std::path::absolute(root)?;
        let stat = Mutex::new(stat::StatCache::open(root.join("stat-v1.json")));
        Ok(Self { root, stat })
    }

    /// The folder of manifests of a pipeline.
    pub fn runs(&self, pipeline: &str) -> PathBuf {
        self.root.join("runs").join(pipeline)
    }

    /// The folder that the store stands in.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where an artifact's bytes are.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        let name = digest.to_string();
        self.root.join("objects").join(&name[..2]).join(name)
    }

    fn entry_path(&self, fingerprint: &Digest) -> PathBuf {
        let name = fingerprint.to_string();
        let folder = self.root.join(format!("recipes-v{}", recipe::FORMAT)).join(&name[..2]);
        folder.join(format!("{name}.json"))
    }

    /// What a fingerprint gave before, if all its outputs still stand.
    ///
    /// # Errors
    /// An index file that cannot be read.
    pub fn lookup(&self, fingerprint: &Digest) -> Result<Option<Entry>> {
        match self.find(fingerprint)? {
            Found::Stands(entry) => Ok(Some(*entry)),
            Found::Nothing | Found::Lost(_) => Ok(None),
        }
    }

    /// The same, and what became of a result that no longer stands.
    ///
    /// # Errors
    /// As [`Store::lookup`].
    pub fn find(&self, fingerprint: &Digest) -> Result<Found> {
        let Some(entry) = self.entry(fingerprint)? else { return Ok(Found::Nothing) };
        for artifact in entry.outputs.values() {
            if let Some(loss) = self.loss(artifact)? {
                return Ok(Found::Lost(loss));
            }
            if !self.stands(artifact) {
                return Ok(Found::Nothing);
            }
        }
        Ok(Found::Stands(Box::new(entry)))
    }

    /// What the index says of a fingerprint, whether or not the outputs stand.
    ///
    /// # Errors
    /// As [`Store::lookup`].
    pub fn entry(&self, fingerprint: &Digest) -> Result<Option<Entry>> {
        let path = self.entry_path(fingerprint);
        let Some(entry) = read_json::<Entry>(&path)? else { return Ok(None) };
        if entry.recipe.fingerprint() != *fingerprint {
            let reason = "its recipe does not have the fingerprint of its name".into();
            return Err(StoreError::Damaged { path, reason });
        }
        Ok(Some(entry))
    }

    /// Whether an artifact is there, as far as a look at names and sizes tells.
    fn stands(&self, artifact: &Artifact) -> bool {
        match fs_err::metadata(self.path(&artifact.digest)) {
            Ok(metadata) if artifact.folder => {
                metadata.is_dir() && self.listing_path(&artifact.digest).exists()
            }
            Ok(metadata) => metadata.is_file() && metadata.len() == artifact.size,
            Err(_) => false,
        }
    }

    /// Takes the outputs that an attempt wrote, and then the entry that names them.
    ///
    /// # Errors
    /// A missing output, or a write that failed; the entry is then not there.
    pub fn commit(&self, recipe: &Recipe, outputs: &[(String, PathBuf)], seconds: f64) -> Result<Entry> {
        let mut stored = BTreeMap::new();
        for (port, path) in outputs {
            stored.insert(port.clone(), self.publish(path)?);
        }
        let entry = Entry { recipe: recipe.clone(), outputs: stored, seconds, adopted: None };
        self.index(&entry)?;
        Ok(entry)
    }

    /// Lets a recipe's fingerprint lead to its outputs, which must stand.
    fn index(&self, entry: &Entry) -> Result<()> {
        let text = serde_json::to_vec_pretty(entry).map_err(std::io::Error::from)?;
        self.write(&self.entry_path(&entry.recipe.fingerprint()), &text)
    }

    /// Moves a file or folder into the objects.
    fn publish(&self, path: &Path) -> Result<Artifact> {
        let Ok(metadata) = fs_err::metadata(path) else {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            return Err(StoreError::MissingOutput(name));
        };
        let artifact = if metadata.is_dir() {
            let listing = list(path, &|file| seal(file))?;
            sync_folders(path)?;
            let digest = self.write_listing(&listing)?;
            Artifact { digest, size: listing.size(), folder: true }
        } else {
            Artifact { digest: seal(path)?, size: metadata.len(), folder: false }
        };
        let target = self.path(&artifact.digest);
        if self.adopted(&artifact.digest)?.is_some() {
            // Own bytes stand better than those of a file that may change.
            self.disown(&artifact.digest)?;
        } else if target.exists() {
            if digest_of(&target)? == artifact.digest {
                return Ok(artifact);
            }
            tracing::warn!("{} was damaged and is replaced", target.display());
            remove(&target)?;
        }
        fs_err::create_dir_all(target.parent().unwrap_or(&self.root))?;
        match fs_err::rename(path, &target) {
            Ok(()) => sync_folder(target.parent().unwrap_or(&self.root))?,
            // Another process stored the same bytes a moment ago.
            Err(_) if target.exists() => {}
            Err(error) => return Err(error.into()),
        }
        Ok(artifact)
    }

    /// Where the listing of a folder is.
    pub fn listing_path(&self, digest: &Digest) -> PathBuf {
        self.beside(digest, ".list")
    }

    /// A file beside an object, with more to its name.
    fn beside(&self, digest: &Digest, ending: &str) -> PathBuf {
        let mut path = self.path(digest).into_os_string();
        path.push(ending);
        path.into()
    }

    fn write_listing(&self, listing: &Listing) -> Result<Digest> {
        let digest = listing.digest();
        let text = serde_json::to_vec(listing).map_err(std::io::Error::from)?;
        self.write(&self.listing_path(&digest), &text)?;
        Ok(digest)
    }

    /// The digest of what stands at `sub` in a stored folder, `None` where nothing does.
    ///
    /// # Errors
    /// A listing that cannot be read.
    pub fn sub(&self, folder: &Digest, sub: &str) -> Result<Option<Digest>> {
        Ok(self.listing(folder)?.and_then(|listing| listing.sub(sub)))
    }

    /// The files of a stored folder, `None` where they are not known.
    ///
    /// # Errors
    /// A listing that cannot be read.
    pub fn listing(&self, folder: &Digest) -> Result<Option<Listing>> {
        read_json(&self.listing_path(folder))
    }

    /// The digest of a file or folder outside the store, from memory where it has not moved.
    ///
    /// # Errors
    /// Whatever keeps it from being read.
    pub fn source(&self, path: &Path) -> Result<Digest> {
        if !fs_err::metadata(path)?.is_dir() {
            return self.stat_digest(path);
        }
        let digest = list(path, &|file| self.stat_digest(file))?.digest();
        Ok(digest)
    }

    fn stat_digest(&self, file: &Path) -> Result<Digest> {
        let key = stat::Stat::of(file)?;
        if let Some(digest) = self.stat.lock().expect("no panic under this lock").get(file, &key) {
            return Ok(digest);
        }
        let settled = key.settled();
        let digest = Digest::of_file(file)?;
        if settled {
            self.stat.lock().expect("no panic under this lock").put(file, key, digest);
        }
        Ok(digest)
    }

    /// Keeps what was learnt about sources for the next run.
    ///
    /// # Errors
    /// A write that failed.
    pub fn save_stat(&self) -> Result<()> {
        let text = self.stat.lock().expect("no panic under this lock").changed();
        match text {
            Some(text) => self.write(&self.root.join("stat-v1.json"), &text),
            None => Ok(()),
        }
    }

    /// Writes a file aside, syncs it, and renames it into place.
    fn write(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        fs_err::create_dir_all(path.parent().unwrap_or(&self.root))?;
        let mut file = self.aside()?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        Ok(())
    }
}

/// Reads a file of the store, `None` where there is none.
fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let text = match fs_err::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|error| StoreError::Damaged { path: path.to_path_buf(), reason: error.to_string() })
}

/// Makes a file read-only and durable, and hashes it.
fn seal(file: &Path) -> Result<Digest> {
    fs_err::set_permissions(file, Permissions::from_mode(0o444))?;
    fs_err::File::open(file)?.sync_all()?;
    Ok(Digest::of_file(file)?)
}

/// A name is durable once the folder that holds it is.
fn sync_folder(folder: &Path) -> Result<()> {
    Ok(fs_err::File::open(folder)?.sync_all()?)
}

/// The same for a folder and all below it.
fn sync_folders(folder: &Path) -> Result<()> {
    for entry in fs_err::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_folders(&entry.path())?;
        }
    }
    sync_folder(folder)
}

/// The digest of what stands at a path, from its bytes alone.
///
/// # Errors
/// Whatever keeps it from being read.
pub fn digest_of(path: &Path) -> Result<Digest> {
    if fs_err::metadata(path)?.is_dir() {
        return Ok(list(path, &|file| Ok(Digest::of_file(file)?))?.digest());
    }
    Ok(Digest::of_file(path)?)
}

/// Removes a file, a folder and all below it, or a link and not what it leads to.
fn remove(path: &Path) -> Result<()> {
    match fs_err::symlink_metadata(path)?.is_dir() {
        true => Ok(fs_err::remove_dir_all(path)?),
        false => Ok(fs_err::remove_file(path)?),
    }
}

/// Lists a folder, taking each file's digest from `digest`.
fn list(folder: &Path, digest: &(dyn Fn(&Path) -> Result<Digest> + Sync)) -> Result<Listing> {
    let listed: Result<Vec<Listed>> = names(folder)?
        .into_par_iter()
        .map(|path| {
            let file = folder.join(&path);
            Ok(Listed { size: fs_err::metadata(&file)?.len(), digest: digest(&file)?, path })
        })
        .collect();
    Ok(Listing(listed?))
}

/// The files below a folder: relative paths with `/`, sorted.
///
/// # Errors
/// Whatever keeps a folder from being read.
pub fn names(folder: &Path) -> Result<Vec<String>> {
    let mut files = Vec::new();
    walk(folder, folder, &mut files)?;
    files.sort();
    Ok(files)
}

fn walk(root: &Path, folder: &Path, files: &mut Vec<String>) -> Result<()> {
    for entry in fs_err::read_dir(folder)? {
        let path = entry?.path();
        if fs_err::metadata(&path)?.is_dir() {
            walk(root, &path, files)?;
        } else {
            let below = path.strip_prefix(root).unwrap_or(&path);
            files.push(below.to_string_lossy().into_owned());
        }
    }
    Ok(())
}
