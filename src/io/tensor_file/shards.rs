//! Tensors in several files: an index, JSON with a `weight_map` from each tensor's name to its file, as diffusers and transformers write
//! it for large models.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Header, TensorFile, TensorFileError};
use crate::io::json;

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Bytes at the start of a file that tell JSON from safetensors, which begin with the length of their header as a small number.
const START: usize = 8;

/// Whether a file has the name of an index.
///
/// It stands for the files beside it, so it is read in the folder of a model, and refused where a file alone is connected: the bytes of
/// the others would not count.
pub fn is_index(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.contains(".index.") && name.ends_with(".json")
}

/// The files that an index names, in the order of their names; none if the file is no index.
pub(super) fn files(path: &Path) -> Result<Option<Vec<PathBuf>>, TensorFileError> {
    if !is_index(path) {
        return Ok(None);
    }
    let mut start = Vec::new();
    fs_err::File::open(path)?.take(START as u64).read_to_end(&mut start)?;
    if start.first() != Some(&b'{') || start.len() < START || start.contains(&0) {
        return Ok(None);
    }
    let Index { weight_map } = json::read(path)?;
    let names: BTreeSet<String> = weight_map.into_values().collect();
    let folder = path.parent().unwrap_or(Path::new("."));
    let fault = |reason: String| TensorFileError::Index { path: path.to_owned(), reason };
    let file = |name: &String| {
        if Path::new(name).components().count() != 1 || name.contains("..") {
            return Err(fault(format!("it names the file `{name}`, expected one beside it")));
        }
        let file = folder.join(name);
        if file.is_file() {
            Ok(file)
        } else {
            Err(fault(format!("it names the file `{name}`, which is not beside it")))
        }
    };
    if names.is_empty() {
        return Err(fault("it names no file".to_owned()));
    }
    names.iter().map(file).collect::<Result<_, _>>().map(Some)
}

/// The tensors of all files: each in the file that the index says, and in no other.
pub(super) fn headers(path: &Path, files: &[TensorFile]) -> Result<Vec<Header>, TensorFileError> {
    let Index { weight_map } = json::read(path)?;
    let fault = |reason: String| TensorFileError::Index { path: path.to_owned(), reason };
    let mut found: BTreeMap<&str, &TensorFile> = BTreeMap::new();
    for file in files {
        for header in file.headers() {
            if let Some(other) = found.insert(&header.name, file) {
                let names = [other, file].map(|file| file.path().display().to_string());
                return Err(fault(format!(
                    "the tensor `{}` is in {} and in {}",
                    header.name, names[0], names[1]
                )));
            }
        }
    }
    for (name, file) in &weight_map {
        if found.get(name.as_str()).is_none_or(|found| !found.path().ends_with(file)) {
            return Err(fault(format!("the tensor `{name}` is not in `{file}`")));
        }
    }
    if let Some(name) = found.keys().find(|name| !weight_map.contains_key(**name)) {
        return Err(fault(format!("it does not name the tensor `{name}`, which its files have")));
    }
    Ok(files.iter().flat_map(|file| file.headers().iter().cloned()).collect())
}
