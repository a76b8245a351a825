//! The cache: content-addressed objects and an index from fingerprints to them.
//!
//! ```text
//! objects/ab/ab12…          the bytes of a file, or a folder, read-only
//! objects/ab/ab12….list     the listing of a folder: its hash is the folder's digest
//! objects/ab/ab12….adopted  where the bytes are, if the object only leads to them
//! recipes-v2/ab/ab34….json  the result of a fingerprint: the recipe and its outputs
//! units-v1/ab/ab34….json    the units of the stage with this fingerprint
//! runs/PIPELINE/TIME.json   manifests, each with the times of the run's tasks in TIME.tasks.csv
//! tmp/RUN/                  working folder of a run, removed with it; files before they are renamed into place
//! ```
//! [`Area`] lists all areas. A file is written under a temporary name and then renamed; the index entry is written last.
//! Files are synced once, at the end of a run, before the cache records that their objects were hashed: an object without
//! such a record is hashed before it is used, and an entry has a checksum. A crash leaves garbage, never a wrong result.

mod adopted;
mod attempts;
mod disk_space;
pub mod file_state;
mod file_system;
mod fingerprint_lock;
mod integrity;
mod inventory;
mod kept_files;
mod layout;
mod lease;
mod placement;
mod publish;
mod quarantine;
mod results_view;
mod store_lock;
mod unit_index;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};

use rayon::prelude::*;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::identity::digest::{Digest, Listed, Listing};
use crate::identity::recipe::Recipe;
use crate::identity::regular_file;
use crate::identity::shared_fs;

pub use adopted::Adopted;
pub use attempts::{Attempt, Scratch};
pub use disk_space::{disk_space, format_bytes, report_file_size_limit, require_space};
pub use file_state::byte_ranges::FilePart;
pub use file_state::snapshot::{FollowLinks, Snapshot};
pub use file_state::tree_stat::TreeStat;
pub use file_state::watch::Watch;
use file_state::{FileState, Trust};
pub use file_system::is_network;
pub use fingerprint_lock::Lock;
pub use fingerprint_lock::ResultsUse;
use integrity::Integrity;
pub use inventory::Indexed;
pub use kept_files::MovedFile;
pub use layout::{Area, Part, resolved};
pub use placement::{Placement, Repair};
pub use quarantine::{Health, Note};
pub use results_view::View;
pub use store_lock::{ExclusiveLock, SharedLock};
pub use unit_index::{PART, UnitIndex};

/// A store that cannot be used, or a write into it that failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system refused; the message names the path.
    #[error("cache: {0}")]
    Io(#[from] std::io::Error),
    /// The disk is full.
    #[error("cache: {error}; {free} free on the disk of {root}", free = format_bytes(*free), root = root.display())]
    Full {
        /// What the file system says, with the path.
        error: String,
        /// The cache.
        root: PathBuf,
        /// Bytes that are free.
        free: u64,
    },
    /// A file of the store, or a part of it, that this version cannot read.
    #[error("cache: a newer version of attrflow wrote {}: use that version", path.display())]
    Newer {
        /// The file or folder.
        path: PathBuf,
    },
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
    /// A process that outlived the stage still writes to one of its outputs.
    #[error(
        "the output `{0}` changed after the stage had ended: a process that it started still writes to it"
    )]
    StillWritten(String),
    /// Another host wrote other bytes than this one sees.
    #[error(
        "the output `{0}` has other bytes here than on the node that wrote it: the shared file system is at fault"
    )]
    NotAsWritten(String),
}

impl StoreError {
    /// Whether the stage is at fault, and not the store.
    pub fn is_the_stage(&self) -> bool {
        matches!(self, Self::MissingOutput(_) | Self::StillWritten(_) | Self::NotAsWritten(_))
    }

    /// Whether the file system is read-only, which does not matter to a run that has nothing to write.
    pub fn is_read_only(&self) -> bool {
        use std::io::ErrorKind;
        let refused = [ErrorKind::ReadOnlyFilesystem, ErrorKind::PermissionDenied];
        matches!(self, Self::Io(error) if refused.contains(&error.kind()))
    }
}

type Result<T> = std::result::Result<T, StoreError>;

/// The value of an output port.
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

/// The result of a fingerprint.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The recipe behind the fingerprint.
    pub recipe: Recipe,
    /// The outputs by port.
    pub outputs: BTreeMap<String, Artifact>,
    /// Seconds of computing; 0 for adopted files.
    pub seconds: f64,
    /// Where the outputs come from, if they were not computed here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adopted: Option<Adopted>,
    /// A hash of everything but the recipe, which the fingerprint covers; `None` in entries of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<Digest>,
}

impl Entry {
    /// What [`Entry::check`] must be.
    fn checksum(&self, fingerprint: &Digest) -> Digest {
        let Self { recipe: _, outputs, seconds, adopted, check: _ } = self;
        let text = serde_json::to_vec(&(fingerprint, outputs, seconds, adopted)).unwrap_or_default();
        Digest(blake3::derive_key("attrflow index entry v1", &text))
    }
}

/// What the index knows of a fingerprint.
#[derive(Debug, Clone)]
pub enum Lookup {
    /// No result, or one with an output that is missing.
    Miss,
    /// A result with all its outputs.
    Hit(Box<Entry>),
    /// A result whose files are missing, damaged or modified: why, for people.
    Invalid(String),
}

/// The cache of a project.
pub struct Store {
    root: PathBuf,
    file_state: Mutex<FileState>,
    /// Holds files until they are renamed into place; made by the first.
    temporary: Mutex<Option<Scratch>>,
    spare_locks: fingerprint_lock::Spare,
    /// Whether other hosts respect a lock, once that is known.
    locks_noted: OnceLock<bool>,
    /// In place of locks that they do not respect.
    leases: OnceLock<lease::Leases>,
}

impl Store {
    /// Opens the cache at `root`; nothing is written before something is stored.
    ///
    /// # Errors
    /// A path that cannot be made absolute.
    pub fn open(root: &Path) -> Result<Self> {
        let root = std::path::absolute(root)?;
        let file_state = Mutex::new(FileState::open(root.join(Area::FileState.name())));
        let temporary = Mutex::new(None);
        let (spare_locks, locks_noted, leases) = Default::default();
        Ok(Self { root, file_state, temporary, spare_locks, locks_noted, leases })
    }

    /// The folder of manifests of a pipeline.
    pub fn runs(&self, pipeline: &str) -> PathBuf {
        self.area(Area::Runs).join(pipeline)
    }

    /// The cache folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where an artifact's bytes are.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.sharded(Area::Objects, digest, "")
    }

    /// The index file of a fingerprint.
    pub fn entry_path(&self, fingerprint: &Digest) -> PathBuf {
        self.sharded(Area::Recipes, fingerprint, ".json")
    }

    /// The result of a fingerprint, if all its outputs are there.
    ///
    /// # Errors
    /// An index file that cannot be read.
    pub fn lookup(&self, fingerprint: &Digest) -> Result<Option<Entry>> {
        match self.find(fingerprint)? {
            Lookup::Hit(entry) => Ok(Some(*entry)),
            Lookup::Miss | Lookup::Invalid(_) => Ok(None),
        }
    }

    /// The same, and why a result may not be used.
    ///
    /// # Errors
    /// As [`Store::lookup`].
    pub fn find(&self, fingerprint: &Digest) -> Result<Lookup> {
        let entry = match self.entry(fingerprint) {
            Ok(Some(entry)) => entry,
            Ok(None) => return Ok(Lookup::Miss),
            // An entry that a power cut left incomplete costs no more than its own result.
            Err(error @ StoreError::Damaged { .. }) => return Ok(Lookup::Invalid(error.to_string())),
            Err(error) => return Err(error),
        };
        for artifact in entry.outputs.values() {
            match self.state(artifact)? {
                Integrity::Ok => {}
                Integrity::Missing => return Ok(Lookup::Miss),
                Integrity::Invalid(why) => return Ok(Lookup::Invalid(why)),
            }
        }
        Ok(Lookup::Hit(Box::new(entry)))
    }

    /// The entry of a fingerprint, whether or not its outputs are there.
    ///
    /// # Errors
    /// As [`Store::lookup`].
    pub fn entry(&self, fingerprint: &Digest) -> Result<Option<Entry>> {
        let path = self.entry_path(fingerprint);
        let Some(seen) = TreeStat::at(&path)? else { return Ok(None) };
        let look = seen.stat_hash();
        let known = self.file_state().get(fingerprint, &look).map(<[u8]>::to_vec);
        if let Some(entry) = known.and_then(|text| Self::parse(fingerprint, &path, &text).ok()) {
            return Ok(Some(entry));
        }
        let settled = seen.past_racy_window();
        let text = match regular_file::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            text => text?,
        };
        let entry = Self::parse(fingerprint, &path, &text)?;
        if settled {
            self.file_state().put(*fingerprint, look, &text, Trust::Settled);
        }
        Ok(Some(entry))
    }

    /// Reads an index file's text, and checks it against its name and its checksum.
    fn parse(fingerprint: &Digest, path: &Path, text: &[u8]) -> Result<Entry> {
        let damaged = |reason: String| StoreError::Damaged { path: path.to_path_buf(), reason };
        let entry: Entry = serde_json::from_slice(text).map_err(|error| damaged(error.to_string()))?;
        entry.fault(fingerprint).map_or(Ok(entry), |fault| Err(damaged(fault)))
    }

    /// Checks that an entry has all its outputs; one that lacks some is damaged.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], for the first that is missing.
    pub fn require<'p>(&self, entry: &Entry, ports: impl IntoIterator<Item = &'p str>) -> Result<()> {
        match ports.into_iter().find(|port| !entry.outputs.contains_key(*port)) {
            None => Ok(()),
            Some(port) => {
                let path = self.entry_path(&entry.recipe.fingerprint());
                Err(StoreError::Damaged { path, reason: format!("it names no output `{port}`") })
            }
        }
    }

    /// Where the listing of a folder is.
    pub fn listing_path(&self, digest: &Digest) -> PathBuf {
        self.sharded(Area::Objects, digest, ".list")
    }

    /// The digest of the file or folder `sub` in a stored folder; `None` if there is none.
    ///
    /// # Errors
    /// A listing that cannot be read.
    pub fn sub(&self, folder: &Digest, sub: &str) -> Result<Option<Digest>> {
        Ok(self.listing(folder)?.and_then(|listing| listing.sub(sub)))
    }

    /// What a stored folder has in the place of a path that leads to nothing, for people.
    ///
    /// # Errors
    /// A listing that cannot be read.
    pub fn near(&self, folder: &Digest, sub: &str) -> Result<String> {
        const SHOWN: usize = 5;
        let listing = self.listing(folder)?.unwrap_or_default();
        let names = listing.near(sub);
        let more = match names.len().saturating_sub(SHOWN) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        Ok(if names.is_empty() {
            "nothing below it".into()
        } else {
            names[..names.len().min(SHOWN)].join(", ") + &more
        })
    }

    /// The files of a stored folder; `None` if they are not known.
    ///
    /// # Errors
    /// A listing that cannot be read.
    pub fn listing(&self, folder: &Digest) -> Result<Option<Listing>> {
        read_json(&self.listing_path(folder))
    }
}

/// Reads a file of the store, `None` where there is none.
fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let text = match regular_file::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|error| StoreError::Damaged { path: path.to_path_buf(), reason: error.to_string() })
}

/// A name is durable once the folder that holds it is.
fn sync_folder(folder: &Path) -> Result<()> {
    Ok(shared_fs::open(folder)?.sync_all()?)
}

/// The digest of a file or folder, from its bytes alone.
///
/// # Errors
/// A path that cannot be read.
pub fn digest_of(path: &Path) -> Result<Digest> {
    if shared_fs::metadata(path)?.is_dir() {
        return Ok(files_of(path)?.digest());
    }
    Ok(Digest::of_file(path)?)
}

/// The files of a folder with their digests, from their bytes alone.
///
/// # Errors
/// A path that cannot be read.
pub fn files_of(folder: &Path) -> Result<Listing> {
    list(folder, |_| true, &|file| Ok(Digest::of_file(file)?))
}

/// Removes a file, a folder with everything in it, or a link, but not its target.
fn remove(path: &Path) -> Result<()> {
    match shared_fs::symlink_metadata(path)?.is_dir() {
        true => Ok(shared_fs::remove_dir_all(path)?),
        false => Ok(shared_fs::remove_file(path)?),
    }
}

/// Lists a folder, taking each file's digest from `digest`.
fn list(
    folder: &Path,
    keep: impl Fn(&str) -> bool,
    digest: &(dyn Fn(&Path) -> Result<Digest> + Sync),
) -> Result<Listing> {
    let mut names = names(folder)?;
    names.retain(|name| keep(name));
    let listed: Result<Vec<Listed>> = names
        .into_par_iter()
        .map(|path| {
            let file = folder.join(&path);
            Ok(Listed { size: shared_fs::metadata(&file)?.len(), digest: digest(&file)?, path })
        })
        .collect();
    Ok(Listing(listed?))
}

/// The files below a folder: relative paths with `/`, sorted.
///
/// # Errors
/// A folder that cannot be read.
pub fn names(folder: &Path) -> Result<Vec<String>> {
    let mut files = Vec::new();
    walk(folder, folder, &mut files)?;
    files.sort();
    Ok(files)
}

fn walk(root: &Path, folder: &Path, files: &mut Vec<String>) -> Result<()> {
    for entry in shared_fs::read_dir(folder)? {
        let path = entry?.path();
        if shared_fs::metadata(&path)?.is_dir() {
            walk(root, &path, files)?;
        } else {
            let below = path.strip_prefix(root).unwrap_or(&path);
            let name = below.to_str().ok_or_else(|| {
                std::io::Error::other(format!("{}: the name is not UTF-8, expected UTF-8", path.display()))
            })?;
            files.push(name.to_owned());
        }
    }
    Ok(())
}
