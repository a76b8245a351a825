//! The index entries of a project's cache.

use std::collections::BTreeMap;

use serde_json::Value as Json;

use crate::project::{Project, files};

/// The index entries. An entry that was written again has other bytes, for it holds the seconds.
pub type Index = BTreeMap<String, Vec<u8>>;

pub fn index(project: &Project) -> Index {
    let files = files(&project.path("cache/recipes-v2")).into_iter();
    // A kill may leave the temporary file of an entry beside it.
    let entries = files.filter(|(name, _)| name.ends_with(".json"));
    entries.map(|(name, path)| (name, fs_err::read(path).unwrap())).collect()
}

pub fn units(index: &Index) -> usize {
    let entry = |bytes: &Vec<u8>| serde_json::from_slice::<Json>(bytes).unwrap();
    index.values().filter(|bytes| !entry(bytes)["recipe"]["unit"].is_null()).count()
}
