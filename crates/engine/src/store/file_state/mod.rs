//! Cached facts about files, each valid while the file's stat hash is unchanged: one table, one file.
//!
//! ```text
//! file-state-v1    32 bytes of hash of what follows, 4 of the number of facts;
//!                  per fact, by key: 32 of key, 32 of state, 4 of the write that used it last, 4 of where the fact ends;
//!                  the facts
//! ```
//! | key | state | fact |
//! |---|---|---|
//! | path of a source | stat hash | digest |
//! | digest of an object | stat hash | nothing: it was hashed, and has this digest |
//! | fingerprint | stat hash of the index file | text of the index file |
//! | digest of a file, and a part of it | digest of the file | digest of the part |
//!
//! A fact is valid as long as the state is the same. It is kept only if the file was past the racy window
//! before it was read ([`Stat::past_racy_window`]): a clock of coarse resolution hides a change within one tick. Of an index file,
//! the process that wrote it keeps the text at once.
//! A wrong fact could give a wrong identity, hence the hash: a file without it counts as empty, and files are
//! read again. Before the file says that an object was hashed, the object's bytes are synced.

pub mod byte_ranges;
pub mod snapshot;
pub mod tree_stat;
pub mod watch;

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::{Area, Result, Store, list};
use crate::identity::digest::Digest;
use crate::identity::regular_file;
use crate::identity::shared_fs;
use tree_stat::{Stat, TreeStat};

const HEAD: usize = 32 + 4;
const RECORD: usize = 32 + 32 + 4 + 4;
/// Above this size, the facts that were not used for longest are dropped: half a million files.
const MOST_BYTES: usize = 64 << 20;
const SOURCE: &str = "attrflow path of a source v1";

/// Who may use a fact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trust {
    /// Every process.
    Settled,
    /// Every process, once the object's bytes are synced.
    Stored,
    /// This process only; others must hash the object again, since a change might not show.
    Racy,
    /// This process.
    Local,
}

impl Trust {
    /// Of an object that was hashed; `settled`: it was past the racy window before that.
    pub fn of_object(settled: bool) -> Self {
        if settled { Self::Stored } else { Self::Racy }
    }

    fn kept(self) -> bool {
        matches!(self, Self::Settled | Self::Stored)
    }
}

/// What this process learnt.
struct Fresh {
    look: Digest,
    fact: Vec<u8>,
    trust: Trust,
}

/// Facts by key: those of the file, read on first use, and those of this process.
pub(crate) struct FileState {
    file: PathBuf,
    table: Option<Table>,
    /// Which facts of the table this process asked for.
    used: Vec<bool>,
    fresh: HashMap<Digest, Fresh>,
}

impl FileState {
    pub fn open(file: PathBuf) -> Self {
        Self { file, table: None, used: Vec::new(), fresh: HashMap::new() }
    }

    /// The fact of a key, if it looks like this.
    pub fn get(&mut self, key: &Digest, look: &Digest) -> Option<&[u8]> {
        if let Some(fresh) = self.fresh.get(key) {
            return (fresh.look == *look).then_some(&fresh.fact);
        }
        let table = self.table.get_or_insert_with(|| Table::read(&self.file));
        let index = table.find(key)?;
        let row = table.row(index)?;
        if *row.look != look.0 {
            return None;
        }
        self.used.resize(table.count, false);
        self.used[index] = true;
        Some(row.fact)
    }

    /// The same of a fact that is a digest.
    pub fn digest(&mut self, key: &Digest, look: &Digest) -> Option<Digest> {
        self.get(key, look)?.try_into().ok().map(Digest)
    }

    pub fn put(&mut self, key: Digest, look: Digest, fact: &[u8], trust: Trust) {
        self.fresh.insert(key, Fresh { look, fact: fact.to_vec(), trust });
    }

    /// Takes a new look of an object for the old one, after a change that left the bytes alone.
    pub fn renew(&mut self, object: Digest, before: &TreeStat, after: &TreeStat) {
        if before.same_bytes(after) && self.get(&object, &before.stat_hash()).is_some_and(<[u8]>::is_empty) {
            let trust = self.fresh.get(&object).map_or(Trust::Stored, |fresh| fresh.trust);
            self.put(object, after.stat_hash(), &[], trust);
        }
    }

    /// Objects of which a change since they were hashed would not show.
    fn racy(&self) -> Vec<(Digest, Digest)> {
        let racy = self.fresh.iter().filter(|(_, fresh)| fresh.trust == Trust::Racy);
        racy.map(|(object, fresh)| (*object, fresh.look)).collect()
    }

    fn settle(&mut self, objects: &[(Digest, Digest)]) {
        for (object, look) in objects {
            if let Some(fresh) = self.fresh.get_mut(object).filter(|fresh| fresh.look == *look) {
                fresh.trust = Trust::Stored;
            }
        }
    }

    /// The new content of the file with what other processes wrote meanwhile, and whether objects have to be synced first;
    /// `None` where nothing was learnt.
    fn merged(&self) -> Option<(Vec<u8>, bool)> {
        let fresh = || self.fresh.iter().filter(|(_, fresh)| fresh.trust.kept());
        fresh().next()?;
        let disk = Table::read(&self.file);
        let mut rows: BTreeMap<&[u8; 32], Row<'_>> =
            (0..disk.count).filter_map(|index| disk.row(index)).map(|row| (row.key, row)).collect();
        let write = rows.values().map(|row| row.used).max().map_or(0, |last| last.saturating_add(1));
        let used = self.used.iter().enumerate().filter(|(_, used)| **used);
        for known in used.filter_map(|(index, _)| self.table.as_ref()?.row(index)) {
            if let Some(row) = rows.get_mut(known.key).filter(|row| row.look == known.look) {
                row.used = write;
            }
        }
        for (key, Fresh { look, fact, .. }) in fresh() {
            rows.insert(&key.0, Row { key: &key.0, look: &look.0, used: write, fact });
        }
        let mut rows: Vec<Row<'_>> = rows.into_values().collect();
        trim(&mut rows, MOST_BYTES);
        Some((write_table(&rows), fresh().any(|(_, fresh)| fresh.trust == Trust::Stored)))
    }

    /// Notes that the file holds this now.
    fn written(&mut self, bytes: Vec<u8>) {
        let table = Table::of(bytes);
        // Threads may have learnt more since.
        let written =
            |(key, look): (&Digest, &Digest)| table.row(table.find(key)?).map(|row| *row.look == look.0);
        self.fresh.retain(|key, fresh| !fresh.trust.kept() || written((key, &fresh.look)) != Some(true));
        self.used.clear();
        self.table = Some(table);
    }
}

/// The file's content; empty where its hash is another.
#[derive(Default)]
struct Table {
    bytes: Vec<u8>,
    count: usize,
}

/// A fact and what belongs to it.
struct Row<'t> {
    key: &'t [u8; 32],
    look: &'t [u8; 32],
    used: u32,
    fact: &'t [u8],
}

impl Table {
    fn read(file: &Path) -> Self {
        Self::of(regular_file::read(file).unwrap_or_default())
    }

    fn of(bytes: Vec<u8>) -> Self {
        let count = |bytes: &[u8]| {
            let (hash, body) = bytes.split_first_chunk::<32>()?;
            let (count, rest) = body.split_first_chunk::<4>()?;
            let count = u32::from_le_bytes(*count) as usize;
            (count.checked_mul(RECORD)? <= rest.len() && blake3::hash(body) == *hash).then_some(count)
        };
        match count(&bytes) {
            Some(count) => Self { bytes, count },
            None => Self::default(),
        }
    }

    fn records(&self) -> &[[u8; RECORD]] {
        self.bytes.get(HEAD..HEAD + self.count * RECORD).unwrap_or_default().as_chunks().0
    }

    fn find(&self, key: &Digest) -> Option<usize> {
        self.records().binary_search_by(|record| record[..32].cmp(&key.0)).ok()
    }

    fn row(&self, index: usize) -> Option<Row<'_>> {
        let records = self.records();
        let number = |index: usize, from: usize| {
            let bytes = records.get(index)?.get(from..)?.first_chunk()?;
            Some(u32::from_le_bytes(*bytes))
        };
        let end = |index| number(index, 68).map(|end| end as usize);
        let start = index.checked_sub(1).map_or(Some(0), end)?;
        let fact = self.bytes.get(HEAD + self.count * RECORD..)?.get(start..end(index)?)?;
        let (key, rest) = records.get(index)?.split_first_chunk()?;
        Some(Row { key, look: rest.first_chunk()?, used: number(index, 64)?, fact })
    }
}

/// Leaves the facts that were used last, within so many bytes.
fn trim(rows: &mut Vec<Row<'_>>, most: usize) {
    let size = |row: &Row<'_>| RECORD + row.fact.len();
    if rows.iter().map(size).sum::<usize>() <= most {
        return;
    }
    rows.sort_by_key(|row| Reverse(row.used));
    let mut total = 0;
    rows.retain(|row| {
        total += size(row);
        total <= most
    });
    rows.sort_by_key(|row| row.key);
}

fn write_table(rows: &[Row<'_>]) -> Vec<u8> {
    let mut bytes = vec![0; 32];
    bytes.extend_from_slice(&(rows.len() as u32).to_le_bytes());
    let mut end = 0;
    for Row { key, look, used, fact } in rows {
        end += fact.len() as u32;
        bytes.extend_from_slice(*key);
        bytes.extend_from_slice(*look);
        bytes.extend_from_slice(&used.to_le_bytes());
        bytes.extend_from_slice(&end.to_le_bytes());
    }
    rows.iter().for_each(|row| bytes.extend_from_slice(row.fact));
    let hash = blake3::hash(&bytes[32..]);
    bytes[..32].copy_from_slice(hash.as_bytes());
    bytes
}

impl Store {
    pub(super) fn file_state(&self) -> std::sync::MutexGuard<'_, FileState> {
        self.file_state.lock().expect("no panic under this lock")
    }

    /// The digest of a file or folder outside the store; what has not changed is not read again.
    ///
    /// # Errors
    /// A path that cannot be read.
    pub fn source(&self, path: &Path) -> Result<Digest> {
        if !shared_fs::metadata(path)?.is_dir() {
            return self.stat_digest(path);
        }
        Ok(list(path, |_| true, &|file| self.stat_digest(file))?.digest())
    }

    pub(super) fn stat_digest(&self, file: &Path) -> Result<Digest> {
        let stat = Stat::of(file)?;
        let path = file.as_os_str().as_encoded_bytes();
        let key = blake3::Hasher::new_derive_key(SOURCE).update(path).finalize().into();
        let look = stat.hash();
        if let Some(digest) = self.file_state().digest(&key, &look) {
            return Ok(digest);
        }
        let settled = stat.past_racy_window();
        let digest = Digest::of_file(file)?;
        if settled {
            self.file_state().put(key, look, &digest.0, Trust::Settled);
        }
        Ok(digest)
    }

    /// Keeps what was learnt about files for later processes, where the cache can be written to.
    ///
    /// # Errors
    /// A write that failed for another reason than that the cache is read-only.
    pub fn try_flush(&self) -> Result<()> {
        self.flush().or_else(|error| if error.is_read_only() { Ok(()) } else { Err(error) })
    }

    /// Keeps what was learnt about files for later processes.
    ///
    /// # Errors
    /// A write that failed, also because the cache is read-only.
    pub fn flush(&self) -> Result<()> {
        let racy = self.file_state().racy();
        let settled: Vec<_> =
            racy.into_par_iter().filter(|(object, look)| self.is_still(object, look)).collect();
        let merged = {
            let mut state = self.file_state();
            state.settle(&settled);
            state.merged()
        };
        let Some((bytes, objects)) = merged else { return Ok(()) };
        if objects {
            // After a power cut, a file may have its size and times and yet not its bytes.
            rustix::fs::syncfs(shared_fs::open(&self.root)?).map_err(std::io::Error::from)?;
        }
        self.write(&self.area(Area::FileState), &bytes)?;
        self.file_state().written(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(number: u8) -> Digest {
        Digest([number; 32])
    }

    #[test]
    fn facts_of_several_processes_are_merged_and_those_not_used_go_first() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file-state-v1");
        let write = |state: &mut FileState| {
            let bytes = state.merged().unwrap().0;
            fs_err::write(&file, &bytes).unwrap();
            state.written(bytes);
        };
        let [mut one, mut two] = [FileState::open(file.clone()), FileState::open(file.clone())];
        assert_eq!((one.get(&digest(1), &digest(1)), two.get(&digest(2), &digest(2))), (None, None));
        one.put(digest(1), digest(1), b"one", Trust::Settled);
        two.put(digest(2), digest(2), &[], Trust::Stored);
        for (key, trust) in [(3, Trust::Racy), (4, Trust::Local)] {
            two.put(digest(key), digest(0), b"of this process", trust);
            assert!(
                two.get(&digest(key), &digest(0)).is_some() && two.get(&digest(key), &digest(1)).is_none()
            );
        }
        write(&mut one);
        write(&mut two);
        assert!(two.merged().is_none() && two.get(&digest(4), &digest(0)).is_some());
        let mut three = FileState::open(file.clone());
        assert_eq!(three.get(&digest(1), &digest(1)), Some(&b"one"[..]));
        assert_eq!(three.get(&digest(2), &digest(2)), Some(&[][..]));
        assert_eq!([3, 4].map(|key| three.get(&digest(key), &digest(0)).is_some()), [false; 2]);
        assert_eq!(three.get(&digest(1), &digest(2)), None, "another look");

        // Used by the last write: 1, 2 and 5; then 1 alone.
        three.put(digest(5), digest(5), b"five", Trust::Settled);
        write(&mut three);
        let mut four = FileState::open(file.clone());
        assert!(four.get(&digest(1), &digest(1)).is_some());
        four.put(digest(6), digest(6), b"six", Trust::Settled);
        write(&mut four);
        let table = Table::read(&file);
        let mut rows: Vec<Row<'_>> = (0..table.count).filter_map(|index| table.row(index)).collect();
        assert_eq!(rows.len(), 4);
        trim(&mut rows, 2 * RECORD + 10);
        assert_eq!(rows.iter().map(|row| row.key[0]).collect::<Vec<_>>(), [1, 6]);

        let bytes = fs_err::read(&file).unwrap();
        for place in 0..bytes.len() {
            let mut wrong = bytes.clone();
            wrong[place] ^= 1;
            assert_eq!(Table::of(wrong).count, 0, "byte {place}");
        }
        assert_eq!(Table::of(bytes[..bytes.len() - 1].to_vec()).count, 0);
    }
}
