//! The cached results of a kind.

use std::path::PathBuf;
use std::time::SystemTime;

use rayon::prelude::*;

use crate::identity::regular_file;
use crate::identity::shared_fs;
use crate::store::{Area, Entry, Store};

/// A cached result of a whole stage, and when it was written.
#[derive(Debug, Clone)]
pub struct CachedResult {
    /// The index entry.
    pub entry: Entry,
    /// When it was written.
    pub written: SystemTime,
}

/// The results of a kind's stages, newest first; unreadable index files are skipped.
pub fn of_kind(store: &Store, kind: &str) -> Vec<CachedResult> {
    let folder = store.area(Area::Recipes);
    let below = |folder: PathBuf| shared_fs::read_dir(folder).into_iter().flatten().flatten();
    let files: Vec<PathBuf> =
        below(folder).flat_map(|folder| below(folder.path())).map(|file| file.path()).collect();
    // Most files are of other kinds or of units, and parsing a text takes longer than searching it for a word.
    let word = serde_json::to_string(kind).unwrap_or_default().into_bytes();
    let read = |file: PathBuf| {
        let text = regular_file::read(&file).ok()?;
        if !text.windows(word.len()).any(|part| part == word) {
            return None;
        }
        let entry: Entry = serde_json::from_slice(&text).ok()?;
        let whole = entry.recipe.kind == kind && entry.recipe.unit.is_none();
        let written = whole.then(|| shared_fs::metadata(&file).ok()?.modified().ok()).flatten()?;
        Some(CachedResult { entry, written })
    };
    let mut kept: Vec<CachedResult> = files.into_par_iter().filter_map(read).collect();
    kept.sort_by_key(|kept| std::cmp::Reverse((kept.written, kept.entry.recipe.fingerprint())));
    kept
}
