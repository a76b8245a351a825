//! Files that a user put into a folder of results: they are moved aside before the folder is replaced or removed.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::{Result, names};
use crate::identity::digest::Listing;

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
            "{} is not a result of the stage; it was moved to {}",
            self.from.display(),
            self.to.display()
        )
    }
}

/// Moves the files of a folder that are not in its listing to `ROOT/kept/PATH`. Without a listing those are moved that can be
/// written to, as results cannot.
pub(super) fn move_aside(root: &Path, path: &Path, listing: Option<&Listing>) -> Result<Vec<MovedFile>> {
    let folder = root.join(path);
    let found = fs_err::symlink_metadata(&folder);
    if !found.is_ok_and(|found| found.is_dir()) {
        return Ok(Vec::new());
    }
    let ours: Option<BTreeSet<&str>> =
        listing.map(|listing| listing.0.iter().map(|file| file.path.as_str()).collect());
    let mut moved = Vec::new();
    for name in names(&folder)? {
        let from = folder.join(&name);
        let is_ours = match &ours {
            Some(ours) => ours.contains(name.as_str()),
            None => fs_err::metadata(&from)?.permissions().mode() & 0o222 == 0,
        };
        if is_ours {
            continue;
        }
        let to = free_name(root.join(KEPT).join(path).join(&name));
        fs_err::create_dir_all(to.parent().unwrap_or(root))?;
        fs_err::rename(&from, &to)?;
        moved.push(MovedFile { from, to });
    }
    Ok(moved)
}

/// The path, with a number if something has that name.
fn free_name(path: PathBuf) -> PathBuf {
    let numbered = |number: usize| {
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        name.push(format!(".{number}"));
        path.with_file_name(name)
    };
    let candidates = std::iter::once(path.clone()).chain((1..).map(numbered));
    candidates.into_iter().find(|path| fs_err::symlink_metadata(path).is_err()).unwrap_or(path)
}
