//! The output files of a run, with their hashes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use rayon::prelude::*;
use sha2::{Digest as _, Sha256};

use crate::identity::digest::Digest;
use crate::identity::shared_fs;
use crate::provenance::manifest::{Manifest, StageRecord};
use crate::store::{Store, StoreError};

/// A file of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// The stage that produced it.
    pub stage: String,
    /// Its output port.
    pub port: String,
    /// Its path below the results of the pipeline.
    pub name: String,
    /// The digest of its bytes.
    pub digest: Digest,
    /// Its bytes, if available.
    pub bytes: Option<Bytes>,
    /// Whether no other stage reads it, so that it is a final result.
    pub last: bool,
}

/// The bytes of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bytes {
    /// Their path.
    pub path: PathBuf,
    /// Their number.
    pub size: u64,
    /// Their SHA-256 in hexadecimal: more tools know it than BLAKE3.
    pub sha256: String,
}

/// The sources of a run by path, with the recorded digests.
pub(super) fn sources(manifest: &Manifest) -> BTreeMap<String, Digest> {
    let mut sources = BTreeMap::new();
    for record in &manifest.stages {
        for (port, path) in &record.sources {
            if let Some(digest) = record.recipe.as_ref().and_then(|recipe| recipe.inputs.get(port)) {
                sources.insert(path.display().to_string(), *digest);
            }
        }
    }
    sources
}

/// All files that the stages of a manifest produced, in its order; files that are no longer cached have no bytes.
///
/// `name` gives the path of a stage's output below the results.
///
/// # Errors
/// A cache that cannot be read, and bytes that do not match their digest.
pub fn outputs(
    manifest: &Manifest,
    store: &Store,
    name: &dyn Fn(&StageRecord, &str) -> String,
) -> Result<Vec<Output>, StoreError> {
    let reads = manifest.stages.iter().flat_map(|record| record.reads.values());
    let read: BTreeSet<(&str, &str)> =
        reads.map(|reads| (reads.stage.as_str(), reads.port.as_str())).collect();
    let mut files = Vec::new();
    for record in &manifest.stages {
        for (port, artifact) in &record.outputs {
            let place = name(record, port);
            inside(&place)?;
            let object = store.path(&artifact.digest);
            let file = |name: String, digest: Digest, path: PathBuf| {
                let last = !read.contains(&(record.stage.as_str(), port.as_str()));
                let (stage, port) = (record.stage.clone(), port.clone());
                (Output { stage, port, name, digest, bytes: None, last }, path)
            };
            if !artifact.folder {
                files.push(file(place, artifact.digest, object));
                continue;
            }
            // A folder without its listing: only the folder's digest is known, and it is not that of a file.
            for listed in store.listing(&artifact.digest)?.unwrap_or_default().0 {
                inside(&listed.path)?;
                let path = object.join(&listed.path);
                files.push(file(format!("{place}/{}", listed.path), listed.digest, path));
            }
        }
    }
    let hashed = files.into_par_iter().map(|(mut output, path)| {
        if path.is_file() {
            output.bytes = Some(hash(path, &output.digest)?);
        }
        Ok(output)
    });
    hashed.collect()
}

/// Refuses a name that leaves its folder: a manifest may come from anybody.
fn inside(name: &str) -> Result<(), StoreError> {
    let normal = |part: Component<'_>| matches!(part, Component::Normal(_));
    if !name.is_empty() && Path::new(name).components().all(normal) {
        return Ok(());
    }
    let message = format!("the manifest names a result `{name}`, which is outside of its folder");
    Err(std::io::Error::new(std::io::ErrorKind::InvalidData, message).into())
}

/// Computes both hashes in one read, so that they are of the same bytes.
fn hash(path: PathBuf, expected: &Digest) -> Result<Bytes, StoreError> {
    let mut file = shared_fs::open(&path)?;
    let mut hashes = Hashes { blake3: blake3::Hasher::new(), sha256: Sha256::new() };
    let size = std::io::copy(&mut file, &mut hashes)?;
    let found = Digest::from(hashes.blake3.finalize());
    if found != *expected {
        let reason = format!("its digest is {found}, expected {expected}");
        return Err(StoreError::Damaged { path, reason });
    }
    let sha256 = hashes.sha256.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Bytes { path, size, sha256 })
}

struct Hashes {
    blake3: blake3::Hasher,
    sha256: Sha256,
}

impl std::io::Write for Hashes {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.blake3.update(bytes);
        self.sha256.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
