//! Images with a text file each, as kohya's scripts read them (`library/train_util.py`): `.caption` or `.txt`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};

use super::folders::{PICTURES, has_extension, is_picture, listed, walk};
use super::{Item, Options, Picture, Visit};

/// The endings of captions.
pub(super) const ENDINGS: [&str; 2] = ["caption", "txt"];

/// Whether this is the captions of an image beside it.
pub(super) fn is_one(folder: &Path, file: &Path) -> bool {
    let beside = |ending: &str| folder.join(file.with_extension(ending)).is_file();
    let in_either_case = |ending: &&str| beside(ending) || beside(&ending.to_ascii_uppercase());
    has_extension(file, &ENDINGS) && PICTURES.iter().any(in_either_case)
}

pub(super) fn read(folder: &Path, options: &Options, visit: &mut Visit<'_>) -> anyhow::Result<()> {
    ensure!(folder.is_dir(), "{}: expected a folder of images", folder.display());
    let files = walk(folder)?;
    let mut captions: BTreeMap<PathBuf, &PathBuf> = BTreeMap::new();
    for file in files.iter().filter(|file| has_extension(file, &ENDINGS)) {
        if let Some(first) = captions.insert(file.with_extension(""), file) {
            bail!("{} and {} are captions of one image", folder.join(first).display(), file.display());
        }
    }
    let mut images: BTreeMap<PathBuf, &PathBuf> = BTreeMap::new();
    for file in files.iter().filter(|file| is_picture(file)) {
        if let Some(first) = images.insert(file.with_extension(""), file) {
            bail!(
                "{} and {} have one name: which is the captions' image?",
                folder.join(first).display(),
                file.display()
            );
        }
        let texts =
            captions.get(&file.with_extension("")).map(|text| lines(&folder.join(text), options.all_lines));
        let picture = Picture::File(folder.join(file));
        visit(Item {
            name: listed(file),
            picture,
            captions: texts.transpose()?.unwrap_or_default(),
            id: None,
        })?;
    }
    Ok(())
}

/// The captions in a file: its first line as it stands, or all lines that are not empty.
fn lines(file: &Path, all: bool) -> anyhow::Result<Vec<String>> {
    let bytes = fs_err::read(file)?;
    let text = match std::str::from_utf8(&bytes) {
        Ok(text) => text.trim_start_matches('\u{feff}'),
        Err(error) => {
            let line = bytes[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count() + 1;
            let byte = bytes.get(error.valid_up_to()).copied().unwrap_or_default();
            return Err(error)
                .with_context(|| format!("{}:{line}: the byte {byte:#04x} is not UTF-8", file.display()));
        }
    };
    let lines = text.lines().map(str::trim).map(str::to_owned);
    let captions: Vec<String> = if all { lines.collect() } else { lines.take(1).collect() };
    Ok(captions.into_iter().filter(|caption| !caption.is_empty()).collect())
}
