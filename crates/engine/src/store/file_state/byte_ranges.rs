//! Digests of parts of files, so that a unit counts the rows that it reads and not the file around them.
//!
//! ```text
//! slices-v1    32 bytes of hash of what follows; then 32 bytes of key and 32 of digest, again and again
//! ```
//! A key is a hash of the whole file's digest and of which part it is, so what is remembered stays true wherever the
//! file goes. A wrong record would give a unit another's identity, hence the hash: a file that does not have it counts as
//! empty, which costs a read of the parts.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use fs_err::os::unix::fs::FileExt as _;
use rayon::prelude::*;

use crate::identity::digest::Digest;
use crate::store::{Result, Store};

const PART: &str = "attrflow part of a file v1";
const KEY: &str = "attrflow key of a part of a file v1";
const RECORD: usize = 64;
/// What no run asked for lately goes first when the file grows beyond this: a quarter of a million parts.
const MOST_BYTES: usize = 16 << 20;
/// Bytes that are read at once.
const BLOCK: usize = 1 << 20;

/// A part of a file: what its bytes are read as, and where they are.
pub type FilePart<'a> = (&'a str, &'a [Range<u64>]);

/// Digests of parts by key, read on first use.
pub(crate) struct ByteRangeDigests {
    file: PathBuf,
    kept: Option<HashMap<Digest, Digest>>,
    /// Those that this process asked for.
    used: HashMap<Digest, Digest>,
    /// Whether some of them were not kept.
    fresh: bool,
}

impl ByteRangeDigests {
    pub fn open(file: PathBuf) -> Self {
        Self { file, kept: None, used: HashMap::new(), fresh: false }
    }

    fn get(&mut self, key: &Digest) -> Option<Digest> {
        if let Some(digest) = self.used.get(key) {
            return Some(*digest);
        }
        let file = &self.file;
        let kept = self.kept.get_or_insert_with(|| read(&fs_err::read(file).unwrap_or_default()));
        let digest = *kept.get(key)?;
        self.used.insert(*key, digest);
        Some(digest)
    }

    fn put(&mut self, key: Digest, digest: Digest) {
        self.used.insert(key, digest);
        self.fresh = true;
    }

    /// The new content of the file and its path, `None` where nothing was learnt.
    pub fn changed(&mut self) -> Option<(PathBuf, Vec<u8>)> {
        if !std::mem::take(&mut self.fresh) {
            return None;
        }
        // Another process may have written since.
        let mut kept = read(&fs_err::read(&self.file).unwrap_or_default());
        kept.retain(|key, _| !self.used.contains_key(key));
        let mut records: Vec<_> = self.used.iter().collect();
        records.sort_unstable();
        let mut others: Vec<_> = kept.iter().collect();
        others.sort_unstable();
        records.extend(others);
        records.truncate(MOST_BYTES / RECORD);
        let mut body = Vec::with_capacity(records.len() * RECORD);
        for (key, digest) in records {
            body.extend_from_slice(&key.0);
            body.extend_from_slice(&digest.0);
        }
        let mut bytes = blake3::hash(&body).as_bytes().to_vec();
        bytes.append(&mut body);
        Some((self.file.clone(), bytes))
    }
}

fn read(bytes: &[u8]) -> HashMap<Digest, Digest> {
    let Some((hash, body)) = bytes.split_first_chunk::<32>() else { return HashMap::new() };
    if blake3::hash(body) != *hash {
        return HashMap::new();
    }
    let digest = |bytes: &[u8]| Digest(std::array::from_fn(|index| bytes[index]));
    body.chunks_exact(RECORD).map(|record| (digest(record), digest(&record[32..]))).collect()
}

impl Store {
    /// Digests of parts of a file whose own digest is `whole`, from memory where it knows them.
    ///
    /// # Errors
    /// Whatever keeps the file from being read.
    pub fn slices(&self, whole: &Digest, path: &Path, parts: &[FilePart<'_>]) -> Result<Vec<Digest>> {
        let keys: Vec<Digest> = parts.iter().map(|part| key(whole, part)).collect();
        let mut known: HashMap<Digest, Option<Digest>> = HashMap::new();
        {
            let mut slices = self.remembered();
            known.extend(keys.iter().map(|key| (*key, slices.get(key))));
        }
        let missing: HashMap<Digest, FilePart<'_>> =
            keys.iter().copied().zip(parts.iter().copied()).filter(|(key, _)| known[key].is_none()).collect();
        if !missing.is_empty() {
            let file = fs_err::File::open(path)?;
            let hashed: Result<Vec<(Digest, Digest)>> =
                missing.par_iter().map(|(key, part)| Ok((*key, hash(&file, part)?))).collect();
            let hashed = hashed?;
            let remember = self.still_has(whole, path)?;
            let mut slices = self.remembered();
            for (key, digest) in hashed {
                known.insert(key, Some(digest));
                if remember {
                    slices.put(key, digest);
                }
            }
        }
        Ok(keys.iter().filter_map(|key| known[key]).collect())
    }

    fn remembered(&self) -> std::sync::MutexGuard<'_, ByteRangeDigests> {
        self.slices.lock().expect("no panic under this lock")
    }

    /// Whether a file that was just read is the one with this digest: an object of the store's own is, any other is
    /// looked at again, for it may have changed since it was hashed.
    fn still_has(&self, whole: &Digest, path: &Path) -> Result<bool> {
        let link = fs_err::symlink_metadata(path)?.is_symlink();
        if path.starts_with(self.objects_folder()) && !link {
            return Ok(true);
        }
        // What an adopted object leads to is known by its own name.
        let file = if link { fs_err::read_link(path)? } else { path.to_path_buf() };
        Ok(self.stat_digest(&file)? == *whole)
    }
}

/// What a part is remembered by.
fn key(whole: &Digest, (layout, ranges): &FilePart<'_>) -> Digest {
    let mut hasher = blake3::Hasher::new_derive_key(KEY);
    hasher.update(&whole.0).update(&(layout.len() as u64).to_le_bytes()).update(layout.as_bytes());
    for range in *ranges {
        hasher.update(&range.start.to_le_bytes()).update(&range.end.to_le_bytes());
    }
    hasher.finalize().into()
}

/// The digest of a part: of its layout, its length and its bytes, and not of where in the file they are.
fn hash(file: &fs_err::File, (layout, ranges): &FilePart<'_>) -> Result<Digest> {
    let mut hasher = blake3::Hasher::new_derive_key(PART);
    let length: u64 = ranges.iter().map(|range| range.end - range.start).sum();
    hasher.update(&(layout.len() as u64).to_le_bytes()).update(layout.as_bytes());
    hasher.update(&length.to_le_bytes());
    let mut block = vec![0; BLOCK.min(length as usize)];
    for range in *ranges {
        let mut next = range.start;
        while next < range.end {
            let some = (range.end - next).min(block.len() as u64) as usize;
            file.read_exact_at(&mut block[..some], next)?;
            hasher.update(&block[..some]);
            next += some as u64;
        }
    }
    Ok(hasher.finalize().into())
}
