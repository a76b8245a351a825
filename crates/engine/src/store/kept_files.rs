//! Files of a user where results go: they are moved aside before something is replaced or removed.

use std::fs::Metadata;
use std::path::{Path, PathBuf};

use super::Result;
use crate::identity::shared_fs;

/// The folder of such files, beside the results.
const KEPT: &str = "kept";

/// A file of the user, and where it was moved to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MovedFile {
    /// Where it was.
    pub from: PathBuf,
    /// Where it is.
    pub to: PathBuf,
}

impl std::fmt::Display for MovedFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} is not known as a result of the stage; it was moved to {}",
            self.from.display(),
            self.to.display()
        )
    }
}

/// Whether a file of a folder, by its path in it, is a result.
pub(super) type IsOurs<'f> = dyn Fn(&str, &Metadata) -> bool + 'f;

/// Moves the files and links of a folder that `is_ours` does not know to `ROOT/kept/PATH`; without it the whole folder, unless
/// it is empty.
pub(super) fn move_aside(root: &Path, path: &Path, is_ours: Option<&IsOurs<'_>>) -> Result<Vec<MovedFile>> {
    let folder = root.join(path);
    let found = shared_fs::symlink_metadata(&folder);
    if !found.is_ok_and(|found| found.is_dir()) {
        return Ok(Vec::new());
    }
    let mut entries = Vec::new();
    walk(&folder, Path::new(""), &mut entries)?;
    entries.retain(|(name, found)| {
        !name.to_str().zip(is_ours).is_some_and(|(name, is_ours)| found.is_file() && is_ours(name, found))
    });
    match is_ours {
        None if !entries.is_empty() => Ok(vec![move_path(root, path)?]),
        _ => entries.iter().map(|(name, _)| move_path(root, &path.join(name))).collect(),
    }
}

/// Moves a file, a link or a folder to `ROOT/kept/PATH`.
pub(super) fn move_path(root: &Path, path: &Path) -> Result<MovedFile> {
    let (from, to) = (root.join(path), free_name(root.join(KEPT).join(path)));
    shared_fs::create_dir_all(to.parent().unwrap_or(root))?;
    shared_fs::rename(&from, &to)?;
    Ok(MovedFile { from, to })
}

/// The files and links below a folder, sorted; a link is not followed.
fn walk(folder: &Path, below: &Path, entries: &mut Vec<(PathBuf, Metadata)>) -> Result<()> {
    let entries_here = shared_fs::read_dir(folder.join(below))?;
    let mut names: Vec<_> = entries_here.map(|entry| Ok(entry?.file_name())).collect::<Result<_>>()?;
    names.sort();
    for name in names {
        let name = below.join(name);
        let found = shared_fs::symlink_metadata(folder.join(&name))?;
        match found.is_dir() {
            true => walk(folder, &name, entries)?,
            false => entries.push((name, found)),
        }
    }
    Ok(())
}

/// The path, with a number if something has that name.
fn free_name(path: PathBuf) -> PathBuf {
    let numbered = |number: usize| {
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        name.push(format!(".{number}"));
        path.with_file_name(name)
    };
    let candidates = std::iter::once(path.clone()).chain((1..).map(numbered));
    candidates.into_iter().find(|path| shared_fs::symlink_metadata(path).is_err()).unwrap_or(path)
}
