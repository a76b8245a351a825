//! Plans the downloads of a list of files, and what to do with each file.

use std::cell::LazyCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use super::{Download, File, volume};
use crate::io::download::hub::{Hub, HubAddress, HubFile, Repo};
use crate::io::download::lock_file::{Pins, place};
use crate::io::download::{Client, DownloadRequest, FetchError};

/// A remote file.
pub(super) struct Remote {
    pub request: DownloadRequest,
    pub repo: Option<Repo>,
    pub check: Check,
}

/// The source of the file's expected digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Check {
    /// The pipeline.
    Given,
    /// The lock file.
    Pinned,
    /// None yet.
    New,
}

/// A volume of an archive.
pub(super) enum Volume<'a> {
    Local(&'a Path, Option<&'a str>),
    Remote(usize),
}

/// One step; the last field is the path in the output folder.
pub(super) enum Item<'a> {
    /// Copy a local folder.
    Folder(&'a Path, PathBuf),
    /// Copy a local file.
    Copy(&'a Path, Option<&'a str>, PathBuf),
    /// Place a downloaded file.
    Place(usize, PathBuf),
    /// Unpack an archive.
    Unpack(Vec<Volume<'a>>, PathBuf),
}

/// All steps.
pub(super) struct Plan<'a> {
    /// The files to download.
    pub remotes: Vec<Remote>,
    /// The steps after that, in the list's order.
    pub items: Vec<Item<'a>>,
    /// The commits of revisions, by repository and revision.
    pub commits: BTreeMap<String, String>,
}

/// Makes plans.
pub(super) struct Planner<'p> {
    pub client: &'p Client,
    pub hub: &'p LazyCell<Hub, &'p dyn Fn() -> Hub>,
    pub pins: &'p Pins,
    /// The lock file of the pins.
    pub lock: &'p Path,
}

impl Planner<'_> {
    /// Resolves addresses on the Hub; other servers get no request yet.
    pub fn plan<'a>(&self, params: &'a Download) -> anyhow::Result<Plan<'a>> {
        let mut plan = Plan { remotes: Vec::new(), items: Vec::new(), commits: BTreeMap::new() };
        for files in params.files.chunk_by(|before, file| file.continues(before)) {
            // Several files are the volumes of one archive.
            let mut volumes = Vec::new();
            for file in files {
                self.add(file, &mut plan, &mut volumes)?;
            }
            if let Some(first) = files.first().filter(|_| !volumes.is_empty()) {
                plan.items.push(Item::Unpack(volumes, first.target().into()));
            }
        }
        Ok(plan)
    }

    fn add<'a>(
        &self,
        file: &'a File,
        plan: &mut Plan<'a>,
        volumes: &mut Vec<Volume<'a>>,
    ) -> anyhow::Result<()> {
        let target = PathBuf::from(file.target());
        let sha256 = file.sha256.as_deref();
        if let Some(path) = file.from.local() {
            match () {
                () if path.is_dir() => plan.items.push(Item::Folder(path, target)),
                () if file.unpack => volumes.push(Volume::Local(path, sha256)),
                () => plan.items.push(Item::Copy(path, sha256, target)),
            }
        } else if let Some(address) = file.hub() {
            let address = address.map_err(anyhow::Error::msg)?;
            self.add_hub(&address, file, plan, volumes)?;
        } else {
            let remote = self.remote(DownloadRequest::at(&file.from.0, None), None, sha256, plan)?;
            match file.unpack {
                true => volumes.push(Volume::Remote(remote)),
                false => plan.items.push(Item::Place(remote, target)),
            }
        }
        Ok(())
    }

    fn add_hub<'a>(
        &self,
        address: &HubAddress,
        file: &'a File,
        plan: &mut Plan<'a>,
        volumes: &mut Vec<Volume<'a>>,
    ) -> anyhow::Result<()> {
        let repo = &address.repo;
        let (commit, found) = self.found(address, plan)?;
        let mut remotes = Vec::new();
        let is_file = found.iter().all(|found| found.path == address.path);
        if !is_file && file.sha256.is_some() {
            bail!("{address}: several files have no common SHA-256, but `sha256` is given");
        }
        for found in &found {
            let request = self.hub.request(repo, &commit, found);
            remotes.push(self.remote(request, Some(repo.clone()), file.sha256.as_deref(), plan)?);
        }
        let target = PathBuf::from(file.target());
        if is_file && file.unpack {
            // Its other volumes may be listed next to it.
            volumes.extend(remotes.into_iter().map(Volume::Remote));
        } else if file.unpack {
            let files: Vec<_> = found.iter().map(|found| found.path.as_str()).zip(remotes).collect();
            for archive in archives(address, &files)? {
                plan.items.push(Item::Unpack(archive, target.clone()));
            }
        } else {
            let base = if address.is_pattern() { address.base() } else { &address.path };
            for (found, remote) in found.iter().zip(remotes) {
                let below = found.path.strip_prefix(base).unwrap_or(&found.path).trim_start_matches('/');
                let place = if below.is_empty() { target.clone() } else { target.join(below) };
                plan.items.push(Item::Place(remote, place));
            }
        }
        Ok(())
    }

    /// The files of an address on the Hub, at the pinned commit or else at the current one.
    fn found(&self, address: &HubAddress, plan: &mut Plan<'_>) -> anyhow::Result<(String, Vec<HubFile>)> {
        let name = address.repo.to_string();
        let files = |commit: &str| self.hub.files(self.client, address, commit);
        let pinned = |commit: String| {
            let files = files(&commit)
                .with_context(|| format!("{} pins commit {commit}", place(self.lock, &name)))?;
            Ok((commit, files))
        };
        if let Some(commit) = self.pins.hub.get(&name).or(plan.commits.get(&name)) {
            return pinned(commit.clone());
        }
        let found = self.hub.commit(self.client, &address.repo)?;
        let listed = files(&found)?;
        if address.repo.commit().is_some() {
            return Ok((found, listed));
        }
        // Pinned at once, so that concurrent runs use one commit even if the branch moves.
        let commit = match Pins::commit(self.lock, &name, &found) {
            Err(error) if error.is_read_only() => found.clone(), // a warning follows with the files
            commit => commit?,
        };
        plan.commits.insert(name.clone(), commit.clone());
        if commit == found { Ok((commit, listed)) } else { pinned(commit) }
    }

    /// Adds a file to download, with the digest of the pipeline or the lock file.
    fn remote(
        &self,
        mut request: DownloadRequest,
        repo: Option<Repo>,
        given: Option<&str>,
        plan: &mut Plan<'_>,
    ) -> anyhow::Result<usize> {
        let pin = self.pins.files.get(&request.name);
        let (known, check) = match (given, pin) {
            (Some(given), _) => (Some(given), Check::Given),
            (None, Some(pin)) => (Some(pin.sha256.as_str()), Check::Pinned),
            (None, None) => (None, Check::New),
        };
        if let Some(known) = known {
            if let Some(there) = request.expected.sha256.filter(|there| !there.eq_ignore_ascii_case(known)) {
                let (origin, found) = (request.name, format!("the Hub has sha256 {there}"));
                let expected = known.to_owned();
                return Err(self.describe(FetchError::Digest { origin, found, expected }, check));
            }
            request.expected.sha256 = Some(known.to_ascii_lowercase());
        }
        if check == Check::Pinned {
            request.expected.bytes = request.expected.bytes.or(pin.map(|pin| pin.bytes));
        }
        plan.remotes.push(Remote { request, repo, check });
        Ok(plan.remotes.len() - 1)
    }

    /// Adds the lock file's entry to a wrong digest.
    pub fn describe(&self, error: FetchError, check: Check) -> anyhow::Error {
        match &error {
            FetchError::Digest { origin, .. } if check == Check::Pinned => {
                let place = place(self.lock, origin);
                anyhow::anyhow!(
                    "{error}, pinned by {place} since the first download: remove that line to accept the current \
                     content of the address"
                )
            }
            _ => error.into(),
        }
    }
}

/// Groups files into archives: consecutive volumes form one, each other file is its own.
fn archives<'a>(address: &HubAddress, files: &[(&str, usize)]) -> anyhow::Result<Vec<Vec<Volume<'a>>>> {
    let mut archives: Vec<Vec<Volume<'a>>> = Vec::new();
    let mut before = None;
    for (path, remote) in files {
        let volume = volume(path);
        match volume {
            Some((_, 1)) | None => archives.push(Vec::new()),
            Some((archive, number)) if number == 0 || before != Some((archive, number - 1)) => {
                let missing = number.saturating_sub(1);
                bail!("{address}: `{path}` exists, but not `{archive}.{missing:03}` before it");
            }
            Some(_) => {}
        }
        archives.last_mut().context("a first volume starts an archive")?.push(Volume::Remote(*remote));
        before = volume;
    }
    Ok(archives)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consecutive_volumes_are_one_archive() {
        let address = HubAddress::parse("hf://datasets/o/r/*").unwrap();
        let lengths = |names: &[&str]| {
            let files: Vec<_> = names.iter().copied().zip(0..).collect();
            archives(&address, &files).map(|archives| archives.iter().map(Vec::len).collect::<Vec<_>>())
        };
        assert_eq!(lengths(&["a.zip", "b.7z.001", "b.7z.002", "c.7z.001"]).unwrap(), [1, 2, 1]);
        let gap = lengths(&["b.7z.001", "b.7z.003"]).unwrap_err().to_string();
        assert_eq!(gap, "hf://datasets/o/r@main/*: `b.7z.003` exists, but not `b.7z.002` before it");
        assert!(lengths(&["a.zip", "b.7z.002"]).is_err());
        assert!(lengths(&["a.zip", "b.7z.000"]).is_err());
    }
}
