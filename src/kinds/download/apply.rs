//! Puts files into the output folder.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

use super::plan::{Item, Remote, Volume};
use crate::io::archive::{ArchiveError, Limits, unpack_volumes};
use crate::io::download::{FetchError, Finished, sha256};
use attrflow_engine::kind::Context;
use attrflow_engine::store::require_space;

/// Progress in bytes: downloaded, and of archives unpacked.
pub(super) struct Steps<'a> {
    pub done: u64,
    pub total: u64,
    pub cx: Context<'a>,
}

impl Steps<'_> {
    /// Reports progress within a step.
    pub fn at(&self, more: u64) {
        self.cx.progress((self.done + more).min(self.total), self.total);
    }

    pub fn add(&mut self, more: u64) {
        self.done += more;
        self.at(0);
    }
}

/// The size of a local file; 0 if it cannot be read, which is an error later.
pub(super) fn length(path: &Path) -> u64 {
    fs_err::metadata(path).map_or(0, |metadata| metadata.len())
}

/// Applies one item; `finished` holds the remote files that are still in the folder of downloads.
pub(super) fn apply(
    item: &Item<'_>,
    out: &Path,
    finished: &mut [Option<Finished>],
    remotes: &[Remote],
    steps: &mut Steps<'_>,
) -> anyhow::Result<()> {
    match item {
        Item::Folder(from, to) => copy_folder(from, &out.join(to))?,
        Item::Copy(from, expected, to) => {
            let target = free(out, to)?;
            reflink_copy::reflink_or_copy(from, &target)
                .with_context(|| format!("{}: cannot be copied", from.display()))?;
            if let Some(expected) = expected {
                verify(from, &target, expected)?;
            }
        }
        Item::Place(remote, to) => {
            let target = free(out, to)?;
            finished[*remote].as_ref().context("a file is placed once")?.place(&target)?;
        }
        Item::Unpack(volumes, to) => unpack(volumes, &out.join(to), finished, remotes, steps)?,
    }
    Ok(())
}

/// The path in the output folder, which must not exist yet.
fn free(out: &Path, to: &Path) -> anyhow::Result<PathBuf> {
    let target = out.join(to);
    ensure!(!target.exists(), "two files would become `{}`", to.display());
    fs_err::create_dir_all(target.parent().context("a file has a parent folder")?)?;
    Ok(target)
}

/// Checks the digest of `path`, which was copied from `origin`.
fn verify(origin: &Path, path: &Path, expected: &str) -> Result<(), FetchError> {
    let (found, _) = sha256(path)?;
    if found.eq_ignore_ascii_case(expected) {
        return Ok(());
    }
    let (origin, found) = (origin.display().to_string(), format!("sha256 {found}"));
    Err(FetchError::Digest { origin, found, expected: expected.to_owned() })
}

/// Unpacks the volumes, and removes those that were downloaded.
fn unpack(
    volumes: &[Volume<'_>],
    target: &Path,
    finished: &mut [Option<Finished>],
    remotes: &[Remote],
    steps: &mut Steps<'_>,
) -> anyhow::Result<()> {
    let mut paths = Vec::new();
    for volume in volumes {
        paths.push(match volume {
            Volume::Local(path, expected) => {
                if let Some(expected) = expected {
                    verify(path, path, expected)?;
                }
                path.to_path_buf()
            }
            Volume::Remote(remote) => {
                finished[*remote].as_ref().context("an archive is unpacked once")?.path()
            }
        });
    }
    let size = paths.iter().map(|path| length(path)).sum::<u64>();
    // Where a downloaded archive lies in the cache tells a user nothing.
    let address = match volumes.first() {
        Some(Volume::Remote(remote)) => Some(remotes[*remote].request.name.clone()),
        _ => None,
    };
    let name = address.as_deref().map(Path::new).or(paths.first().map(PathBuf::as_path));
    let name = name.unwrap_or(Path::new("")).to_path_buf();
    let mut on_progress = |done: u64, declared: u64| {
        let part = u128::from(size) * u128::from(done) / u128::from(declared.max(1));
        steps.at(u64::try_from(part).unwrap_or(u64::MAX));
    };
    let check_space = |needed| require_space(target, needed);
    let unpacked = unpack_volumes(&paths, &name, target, Limits::default(), &check_space, &mut on_progress);
    // An invalid archive without a known digest must be downloaded again.
    let is_removable = match &unpacked {
        Ok(_) => true,
        Err(ArchiveError::Unknown { .. } | ArchiveError::Unreadable { .. } | ArchiveError::Size { .. }) => {
            volumes.iter().all(|volume| match volume {
                Volume::Local(..) => false,
                Volume::Remote(remote) => !remotes[*remote].request.expected.has_digest(),
            })
        }
        Err(_) => false,
    };
    for volume in volumes.iter().filter(|_| is_removable) {
        if let Volume::Remote(remote) = volume
            && let Some(file) = finished[*remote].take()
        {
            file.remove()?;
        }
    }
    unpacked.map_err(|error| match (address, error) {
        // The system names a file that was written, or none.
        (Some(address), error @ ArchiveError::Io(_)) => anyhow::Error::new(error).context(address),
        (_, error) => error.into(),
    })?;
    steps.add(size);
    Ok(())
}

fn copy_folder(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs_err::create_dir_all(to)?;
    for entry in fs_err::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if fs_err::metadata(entry.path())?.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else {
            ensure!(!target.exists(), "two files would become `{}`", target.display());
            reflink_copy::reflink_or_copy(entry.path(), &target)
                .with_context(|| format!("{}: cannot be copied", entry.path().display()))?;
        }
    }
    Ok(())
}
