//! Digests of parts of files: what is hashed of a unit's input are the rows that it reads, not the file around them.
//!
//! A digest of a part is remembered by the digest of the whole file, so it stays true wherever the file goes.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use fs_err::os::unix::fs::FileExt as _;
use rayon::prelude::*;

use super::Trust;
use crate::identity::digest::Digest;
use crate::identity::regular_file;
use crate::identity::shared_fs;
use crate::store::{Area, Result, Store};

const PART: &str = "attrflow part of a file v1";
const KEY: &str = "attrflow key of a part of a file v1";
/// Bytes that are read at once.
const BLOCK: usize = 1 << 20;

/// A part of a file: what its bytes are read as, and where they are.
pub type FilePart<'a> = (&'a str, &'a [Range<u64>]);

impl Store {
    /// Digests of parts of a file whose own digest is `whole`; parts that are known are not read.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn slices(&self, whole: &Digest, path: &Path, parts: &[FilePart<'_>]) -> Result<Vec<Digest>> {
        let keys: Vec<Digest> = parts.iter().map(|part| key(whole, part)).collect();
        let mut known: HashMap<Digest, Option<Digest>> = {
            let mut state = self.file_state();
            keys.iter().map(|key| (*key, state.digest(key, whole))).collect()
        };
        let missing: HashMap<Digest, FilePart<'_>> =
            keys.iter().copied().zip(parts.iter().copied()).filter(|(key, _)| known[key].is_none()).collect();
        if !missing.is_empty() {
            let file = regular_file::open(path)?;
            let hashed: Result<Vec<(Digest, Digest)>> =
                missing.par_iter().map(|(key, part)| Ok((*key, hash(&file, part)?))).collect();
            let hashed = hashed?;
            let remember = self.still_has(whole, path)?;
            let mut state = self.file_state();
            for (key, digest) in hashed {
                known.insert(key, Some(digest));
                if remember {
                    state.put(key, *whole, &digest.0, Trust::Settled);
                }
            }
        }
        Ok(keys.iter().filter_map(|key| known[key]).collect())
    }

    /// Whether a file that was just read is the one with this digest: an object of the store is; any other file may have
    /// changed since it was hashed, so its digest is taken again.
    fn still_has(&self, whole: &Digest, path: &Path) -> Result<bool> {
        let link = shared_fs::symlink_metadata(path)?.is_symlink();
        if path.starts_with(self.area(Area::Objects)) && !link {
            return Ok(true);
        }
        // An adopted file is known by its own path.
        let file = if link { fs_err::read_link(path)? } else { path.to_path_buf() };
        Ok(self.stat_digest(&file)? == *whole)
    }
}

/// The key of a part.
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
