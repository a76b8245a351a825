//! Objects whose bytes were hashed, and how the file system showed them then.
//!
//! ```text
//! vouched-v1    32 bytes of digest, 32 bytes of mark; sorted
//! ```
//! An object that looks as it did when it was hashed is taken for what its name says; any other is hashed before it
//! is used. So the file needs no check of its own: what is wrong in it, or missing, costs a hash.

use std::collections::HashMap;
use std::path::PathBuf;

use super::tree_stat::TreeStat;
use crate::identity::digest::Digest;

const HALF: usize = 32;
const RECORD: usize = 2 * HALF;

/// What is known of an object that was hashed by this process.
#[derive(Debug, Clone)]
pub(crate) struct VerifiedStat {
    pub mark: Digest,
    pub size: u64,
    /// Whether a change since it was hashed would show; if not, it is worth nothing to a later process.
    pub sure: bool,
}

/// Marks by digest.
pub(crate) struct VerifiedObjects {
    file: PathBuf,
    kept: Option<Vec<u8>>,
    fresh: HashMap<Digest, VerifiedStat>,
    /// Objects found to be damaged: how they looked then, and what was found.
    bad: HashMap<Digest, (Digest, String)>,
}

impl VerifiedObjects {
    pub fn open(file: PathBuf) -> Self {
        Self { file, kept: None, fresh: HashMap::new(), bad: HashMap::new() }
    }

    /// Whether an object that looks like this was hashed, and was what its name says.
    pub fn is_verified(&mut self, digest: &Digest, mark: &Digest) -> bool {
        match self.fresh.get(digest) {
            Some(voucher) => voucher.mark == *mark,
            None => self.kept(digest).is_some_and(|kept| kept == mark.0),
        }
    }

    fn kept(&mut self, digest: &Digest) -> Option<&[u8]> {
        let file = &self.file;
        let bytes = self.kept.get_or_insert_with(|| fs_err::read(file).unwrap_or_default());
        let key = |index: usize| &bytes[index * RECORD..index * RECORD + HALF];
        let (mut low, mut high) = (0, bytes.len() / RECORD);
        while low < high {
            let middle = low + (high - low) / 2;
            match key(middle).cmp(&digest.0[..]) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => {
                    return Some(&bytes[middle * RECORD + HALF..(middle + 1) * RECORD]);
                }
            }
        }
        None
    }

    /// Notes an object that was hashed.
    ///
    /// `sure`: it had been still for long enough before that, see [`TreeStat::past_racy_window`].
    pub fn put(&mut self, digest: Digest, seen: &TreeStat, sure: bool) {
        self.bad.remove(&digest);
        self.fresh.insert(digest, VerifiedStat { mark: seen.stat_hash(), size: seen.size(), sure });
    }

    /// Takes a new look for the old one, after a change that left the bytes alone.
    pub fn renew(&mut self, digest: Digest, before: &TreeStat, after: &TreeStat) {
        if before.same_bytes(after) && self.is_verified(&digest, &before.stat_hash()) {
            let sure = self.fresh.get(&digest).is_none_or(|voucher| voucher.sure);
            self.put(digest, after, sure);
        }
    }

    /// Remembers what was found wrong, so that it is not hashed again as long as it looks the same.
    pub fn mark_invalid(&mut self, digest: Digest, mark: Digest, why: String) {
        self.fresh.remove(&digest);
        self.bad.insert(digest, (mark, why));
    }

    /// What was found wrong with an object that looks like this.
    pub fn fault(&self, digest: &Digest, mark: &Digest) -> Option<&str> {
        self.bad.get(digest).filter(|(known, _)| known == mark).map(|(_, why)| why.as_str())
    }

    /// What this process learnt and has not kept yet.
    pub fn fresh(&self) -> Vec<(Digest, VerifiedStat)> {
        self.fresh.iter().map(|(digest, voucher)| (*digest, voucher.clone())).collect()
    }

    /// The new content of the file, with the marks that are sure and what others wrote meanwhile.
    pub fn merged(&mut self, sure: &[(Digest, Digest)]) -> Vec<u8> {
        let old = fs_err::read(&self.file).unwrap_or_default();
        let (records, _) = old.as_chunks::<RECORD>();
        let mut all: std::collections::BTreeMap<&[u8], &[u8]> =
            records.iter().map(|record| record.split_at(HALF)).collect();
        all.extend(sure.iter().map(|(digest, mark)| (&digest.0[..], &mark.0[..])));
        let mut bytes = Vec::with_capacity(all.len() * RECORD);
        for (digest, mark) in all {
            bytes.extend_from_slice(digest);
            bytes.extend_from_slice(mark);
        }
        bytes
    }

    /// Notes that the file holds this now.
    pub fn written(&mut self, bytes: Vec<u8>, sure: &[(Digest, Digest)]) {
        self.kept = Some(bytes);
        for (digest, mark) in sure {
            if self.fresh.get(digest).is_some_and(|voucher| voucher.mark == *mark) {
                self.fresh.remove(digest);
            }
        }
    }
}
