//! Files of a folder, in one order.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// The endings of pictures that can be read.
pub(super) const PICTURES: [&str; 8] = ["png", "jpg", "jpeg", "webp", "bmp", "tif", "tiff", "gif"];

/// Whether a file ends so, in upper or lower case.
pub(super) fn has_extension(file: &Path, endings: &[&str]) -> bool {
    let ending = file.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    endings.iter().any(|known| ending.eq_ignore_ascii_case(known))
}

/// Whether a file has the ending of a picture that can be read.
pub fn is_picture(file: &Path) -> bool {
    has_extension(file, &PICTURES)
}

/// Whether a part of a path begins with a dot.
fn is_hidden(file: &Path) -> bool {
    file.components().any(|part| part.as_os_str().as_encoded_bytes().starts_with(b"."))
}

/// Whether a file has the name of a table of images.
pub(super) fn is_metadata(file: &Path) -> bool {
    let stem = file.file_stem().is_some_and(|stem| stem == "metadata");
    stem && has_extension(file, &["csv", "jsonl", "parquet"])
}

/// All files below a folder, by relative path, compared as bytes; hidden ones are left out.
///
/// # Errors
/// A folder that cannot be read, and a name that is not UTF-8.
pub(super) fn walk(root: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let (mut files, mut folders) = (Vec::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs_err::read_dir(folder)? {
            let path = entry?.path();
            let below = path.strip_prefix(root).unwrap_or(&path).to_owned();
            let name = below.to_str();
            name.with_context(|| format!("{}: the name is not UTF-8, expected UTF-8", path.display()))?;
            match (is_hidden(&below), fs_err::metadata(&path)?.is_dir()) {
                (true, _) => {}
                (false, true) => folders.push(path),
                (false, false) => files.push(below),
            }
        }
    }
    files.sort_unstable_by(|a, b| a.as_os_str().as_encoded_bytes().cmp(b.as_os_str().as_encoded_bytes()));
    Ok(files)
}

/// A relative path as the list of images has it.
pub(super) fn listed(file: &Path) -> String {
    file.to_string_lossy().into_owned()
}
