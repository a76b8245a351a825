//! The cache: content-addressed objects and an index from fingerprints to them.
//!
//! ```text
//! objects/ab/ab12…        the bytes of a file, or a folder, read-only
//! objects/ab/ab12….list   the listing of a folder: its hash is the folder's digest
//! objects/ab/ab12….adopted  where the bytes are, if the object only leads to them
//! recipes-v1/ab/ab34….json  what a fingerprint gave: the whole recipe and its outputs
//! units-v1/ab/ab34….json    the units that a stage of that fingerprint was cut into
//! runs/PIPELINE/TIME.json   manifests
//! use.lock                  shared by runs, held alone by what takes things away
//! units.lock                one byte per fingerprint that is being computed
//! tmp/RUN/                  attempts of one run, gone with it; files on their way to their place
//! packed-v1                 the entries that the last runs read, in one file
//! recall-v1/PIPELINE        what the last run found that found everything done
//! vouched-v1                how objects looked when they were hashed
//! slices-v1                 digests of parts of files, which units read
//! quarantine/               objects that were not what their names say
//! ```
//! Writes go aside and are then renamed; the index entry comes last. Nothing is synced but once at the end of a run,
//! before it is noted how the objects look: an object that no note vouches for is hashed before it is used, and an
//! entry has a checksum. A crash leaves garbage, never a lie.

mod adopted;
mod attempts;
mod disk_space;
pub mod file_state;
mod integrity;
mod inventory;
mod lock;
mod publish;
mod quarantine;
mod results_view;
mod store_lock;
mod unit_index;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rayon::prelude::*;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::identity::digest::{Digest, Listed, Listing};
use crate::identity::recipe::{self, Recipe};

pub use adopted::{Adopted, AdoptedStat};
pub use attempts::{Attempt, Scratch};
pub use disk_space::{disk_space, format_bytes, require_space};
pub use file_state::byte_ranges::FilePart;
pub use file_state::snapshot::{FollowLinks, Snapshot};
use integrity::Integrity;
pub use inventory::Indexed;
pub use lock::Lock;
pub use quarantine::{Health, Note};
pub use results_view::{Placement, Repair, View};
pub use store_lock::{ExclusiveLock, SharedLock};
pub use unit_index::UnitIndex;

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
    /// Something that outlived the stage still writes into an output of its.
    #[error(
        "the output `{0}` changed after the stage had ended: a process that it started still writes to it"
    )]
    StillWritten(String),
}

impl StoreError {
    /// Whether the stage is at fault, and not the store.
    pub fn is_the_stage(&self) -> bool {
        matches!(self, Self::MissingOutput(_) | Self::StillWritten(_))
    }

    /// Whether the file system lets nothing be written, which a run that needs to write nothing can do without.
    pub fn is_read_only(&self) -> bool {
        use std::io::ErrorKind;
        let refused = [ErrorKind::ReadOnlyFilesystem, ErrorKind::PermissionDenied];
        matches!(self, Self::Io(error) if refused.contains(&error.kind()))
    }
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
    /// A hash of all but the recipe, which the fingerprint covers; none in what earlier versions wrote.
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
    /// No result, or one of which something is no longer there.
    Miss,
    /// A result, and all its outputs stand.
    Hit(Box<Entry>),
    /// A result whose adopted files are gone or have changed: what happened, for people.
    Invalid(String),
}

/// The cache of a project.
pub struct Store {
    root: PathBuf,
    stat: Mutex<file_state::stat::StatCache>,
    vouched: Mutex<file_state::verified::VerifiedObjects>,
    packed: Mutex<file_state::index_pack::IndexPack>,
    slices: Mutex<file_state::byte_ranges::ByteRangeDigests>,
    /// Where files wait that are on their way to their place; made by the first.
    aside: Mutex<Option<Scratch>>,
}

impl Store {
    /// Opens the cache at `root`; nothing is written before something is stored.
    ///
    /// # Errors
    /// A stat cache that cannot be read.
    pub fn open(root: &Path) -> Result<Self> {
        let root = std::path::absolute(root)?;
        let stat = Mutex::new(file_state::stat::StatCache::open(root.join("stat-v1.json")));
        let vouched = Mutex::new(file_state::verified::VerifiedObjects::open(root.join("vouched-v1")));
        let packed = Mutex::new(file_state::index_pack::IndexPack::open(root.join("packed-v1")));
        let slices = Mutex::new(file_state::byte_ranges::ByteRangeDigests::open(root.join("slices-v1")));
        Ok(Self { root, stat, vouched, packed, slices, aside: Mutex::new(None) })
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

    /// The index file of a fingerprint.
    pub fn entry_path(&self, fingerprint: &Digest) -> PathBuf {
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
            Lookup::Hit(entry) => Ok(Some(*entry)),
            Lookup::Miss | Lookup::Invalid(_) => Ok(None),
        }
    }

    /// The same, and what became of a result that no longer stands.
    ///
    /// # Errors
    /// As [`Store::lookup`].
    pub fn find(&self, fingerprint: &Digest) -> Result<Lookup> {
        let entry = match self.entry(fingerprint) {
            Ok(Some(entry)) => entry,
            Ok(None) => return Ok(Lookup::Miss),
            // An index that was cut short by a power cut leads nowhere, and costs no more than its own entry.
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

    /// What the index says of a fingerprint, whether or not the outputs stand.
    ///
    /// # Errors
    /// As [`Store::lookup`].
    pub fn entry(&self, fingerprint: &Digest) -> Result<Option<Entry>> {
        let path = self.entry_path(fingerprint);
        let packed = || self.packed.lock().expect("no panic under this lock");
        let Some((text, from_pack)) = packed().read(fingerprint, &path)? else { return Ok(None) };
        match Self::parse(fingerprint, &path, &text) {
            Err(_) if from_pack => {
                packed().distrust(fingerprint);
                self.entry(fingerprint)
            }
            result => result.map(Some),
        }
    }

    /// Reads an index file's text, and holds it against its name and its checksum.
    fn parse(fingerprint: &Digest, path: &Path, text: &[u8]) -> Result<Entry> {
        let damaged = |reason: String| StoreError::Damaged { path: path.to_path_buf(), reason };
        let entry: Entry = serde_json::from_slice(text).map_err(|error| damaged(error.to_string()))?;
        if entry.recipe.fingerprint() != *fingerprint {
            return Err(damaged("its recipe does not have the fingerprint of its name".into()));
        }
        // Entries of earlier versions have no checksum.
        if entry.check.is_some_and(|check| check != entry.checksum(fingerprint)) {
            return Err(damaged("its outputs do not have its checksum".into()));
        }
        Ok(entry)
    }

    /// Holds an entry to the outputs that it must have: one that lacks some was damaged.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], for the first that is not there.
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
        self.beside(digest, ".list")
    }

    /// A file beside an object, with more to its name.
    fn beside(&self, digest: &Digest, ending: &str) -> PathBuf {
        let mut path = self.path(digest).into_os_string();
        path.push(ending);
        path.into()
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
        let key = file_state::stat::Stat::of(file)?;
        if let Some(digest) = self.stat.lock().expect("no panic under this lock").get(file, &key) {
            return Ok(digest);
        }
        let settled = key.past_racy_window();
        let digest = Digest::of_file(file)?;
        if settled {
            self.stat.lock().expect("no panic under this lock").put(file, key, digest);
        }
        Ok(digest)
    }

    /// Keeps what was learnt about sources and objects for the next run, where anything can be kept.
    ///
    /// # Errors
    /// A write that failed for another reason than that the cache is read-only.
    pub fn save_stat(&self) -> Result<()> {
        self.flush_file_state().or_else(|error| if error.is_read_only() { Ok(()) } else { Err(error) })
    }

    /// The same, which a read-only cache is an error for.
    ///
    /// # Errors
    /// A write that failed.
    pub fn flush_file_state(&self) -> Result<()> {
        self.save_verified()?;
        let packed = self.packed.lock().expect("no panic under this lock").changed();
        let slices = self.slices.lock().expect("no panic under this lock").changed();
        for (file, bytes) in [packed, slices].into_iter().flatten() {
            self.write(&file, &bytes)?;
        }
        let text = self.stat.lock().expect("no panic under this lock").changed();
        match text {
            Some(text) => self.write(&self.root.join("stat-v1.json"), &text),
            None => Ok(()),
        }
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

/// A name is durable once the folder that holds it is.
fn sync_folder(folder: &Path) -> Result<()> {
    Ok(fs_err::File::open(folder)?.sync_all()?)
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
