//! The index files that the last runs read, in one file: one read instead of a thousand.
//!
//! ```text
//! packed-v1    per entry: 32 bytes of fingerprint, 32 of mark, 4 of length, and what the index file holds
//! ```
//! The single files stay the truth: what is here counts as long as the file looks as it did when it was read, and an
//! entry is checked wherever it comes from. A pack that is damaged or missing costs time and nothing else.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::tree_stat::TreeStat;
use crate::identity::digest::Digest;

const HEAD: usize = 32 + 32 + 4;
/// What no run asked for lately goes first when the pack grows beyond this.
const MOST_BYTES: usize = 16 << 20;

/// Index files by fingerprint.
pub(crate) struct IndexPack {
    file: PathBuf,
    bytes: Vec<u8>,
    known: Option<HashMap<Digest, (Digest, Range<usize>)>>,
    /// Read from single files by this process.
    fresh: Vec<(Digest, Digest, Vec<u8>)>,
}

impl IndexPack {
    pub fn open(file: PathBuf) -> Self {
        Self { file, bytes: Vec::new(), known: None, fresh: Vec::new() }
    }

    /// What the index file at a path holds, and whether the pack says so; nothing where there is no such file.
    pub fn read(&mut self, fingerprint: &Digest, path: &Path) -> std::io::Result<Option<(Vec<u8>, bool)>> {
        let Some(seen) = TreeStat::at(path)? else { return Ok(None) };
        let mark = seen.stat_hash();
        self.load();
        let known = self.known.as_ref().and_then(|known| known.get(fingerprint));
        if let Some((_, range)) = known.filter(|(known, _)| *known == mark) {
            return Ok(Some((self.bytes[range.clone()].to_vec(), true)));
        }
        let settled = seen.past_racy_window();
        let bytes = match fs_err::read(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            bytes => bytes?,
        };
        if settled {
            self.fresh.push((*fingerprint, mark, bytes.clone()));
        }
        Ok(Some((bytes, false)))
    }

    /// Leaves an entry to its single file from now on.
    pub fn distrust(&mut self, fingerprint: &Digest) {
        self.known.as_mut().map(|known| known.remove(fingerprint));
    }

    fn load(&mut self) {
        if self.known.is_some() {
            return;
        }
        self.bytes = fs_err::read(&self.file).unwrap_or_default();
        let mut known = HashMap::new();
        let mut at = 0;
        while let Some((head, _)) = self.bytes[at..].split_first_chunk::<HEAD>() {
            let digest = |from: usize| Digest(std::array::from_fn(|index| head[from + index]));
            let length = u32::from_le_bytes(std::array::from_fn(|index| head[64 + index])) as usize;
            let range = at + HEAD..at + HEAD + length;
            if range.end > self.bytes.len() {
                break;
            }
            at = range.end;
            known.insert(digest(0), (digest(32), range));
        }
        self.known = Some(known);
    }

    /// The new content of the file and its path, `None` where nothing was learnt: the newest entries first.
    pub fn changed(&mut self) -> Option<(PathBuf, Vec<u8>)> {
        if self.fresh.is_empty() {
            return None;
        }
        let mut bytes = Vec::new();
        let mut put = |fingerprint: &Digest, mark: &Digest, text: &[u8]| {
            if let (Ok(length), true) = (u32::try_from(text.len()), bytes.len() + text.len() <= MOST_BYTES) {
                bytes.extend_from_slice(&fingerprint.0);
                bytes.extend_from_slice(&mark.0);
                bytes.extend_from_slice(&length.to_le_bytes());
                bytes.extend_from_slice(text);
            }
        };
        let mut known = self.known.take().unwrap_or_default();
        for (fingerprint, mark, text) in self.fresh.drain(..) {
            known.remove(&fingerprint);
            put(&fingerprint, &mark, &text);
        }
        for (fingerprint, (mark, range)) in &known {
            put(fingerprint, mark, &self.bytes[range.clone()]);
        }
        Some((self.file.clone(), bytes))
    }
}
