//! What a list of files comes to: which remote files are wanted, and what becomes of each.

use std::cell::LazyCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use super::{Download, File, volume};
use crate::io::download::hub::{Hub, HubAddress, HubFile, Repo};
use crate::io::download::lock_file::{Pins, place};
use crate::io::download::{Client, DownloadRequest, FetchError};

/// A remote file, and what was known of it before.
pub(super) struct Remote {
    pub wanted: DownloadRequest,
    pub repo: Option<Repo>,
    pub check: Check,
}

/// Where the digest comes from that the file must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Check {
    /// The pipeline gives it.
    Given,
    /// The lock file has it.
    Pinned,
    /// The lock file has none yet.
    New,
}

/// A file of an archive.
pub(super) enum Volume<'a> {
    Local(&'a Path, Option<&'a str>),
    Remote(usize),
}

/// One step towards the output folder; the last part is the place in it.
pub(super) enum Item<'a> {
    /// A local folder is copied.
    Folder(&'a Path, PathBuf),
    /// A local file is copied.
    Copy(&'a Path, Option<&'a str>, PathBuf),
    /// A remote file gets its place.
    Place(usize, PathBuf),
    /// An archive is unpacked.
    Unpack(Vec<Volume<'a>>, PathBuf),
}

/// Everything there is to do.
pub(super) struct Plan<'a> {
    /// What must come.
    pub remotes: Vec<Remote>,
    /// What then happens, in the list's order.
    pub items: Vec<Item<'a>>,
    /// The commits that revisions were found to be, by repository and revision.
    pub commits: BTreeMap<String, String>,
}

/// What a plan is made with.
pub(super) struct Planner<'p> {
    pub client: &'p Client,
    pub hub: &'p LazyCell<Hub, &'p dyn Fn() -> Hub>,
    pub pins: &'p Pins,
    /// The file that the pins are in.
    pub lock: &'p Path,
}

impl Planner<'_> {
    /// Asks the Hub what its addresses stand for; other servers are asked nothing yet.
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
            let wanted = self.hub.wanted(repo, &commit, found);
            remotes.push(self.remote(wanted, Some(repo.clone()), file.sha256.as_deref(), plan)?);
        }
        let target = PathBuf::from(file.target());
        if is_file && file.unpack {
            // Its other volumes may be listed beside it.
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

    /// The files that an address on the Hub stands for, at the commit that is pinned or is found now.
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
        // Pinned as soon as it is known: another run that asked before the branch moved must not take another one.
        let commit = match Pins::commit(self.lock, &name, &found) {
            Err(error) if error.is_read_only() => found.clone(), // told of with the files
            commit => commit?,
        };
        plan.commits.insert(name.clone(), commit.clone());
        if commit == found { Ok((commit, listed)) } else { pinned(commit) }
    }

    /// Adds a file to what must come, with the digest that the pipeline gives or the lock file has.
    fn remote(
        &self,
        mut wanted: DownloadRequest,
        repo: Option<Repo>,
        given: Option<&str>,
        plan: &mut Plan<'_>,
    ) -> anyhow::Result<usize> {
        let pin = self.pins.files.get(&wanted.name);
        let (known, check) = match (given, pin) {
            (Some(given), _) => (Some(given), Check::Given),
            (None, Some(pin)) => (Some(pin.sha256.as_str()), Check::Pinned),
            (None, None) => (None, Check::New),
        };
        if let Some(known) = known {
            if let Some(there) = wanted.expected.sha256.filter(|there| !there.eq_ignore_ascii_case(known)) {
                let (origin, found) = (wanted.name, format!("the Hub has a file of sha256 {there}"));
                let expected = known.to_owned();
                return Err(self.describe(FetchError::Digest { origin, found, expected }, check));
            }
            wanted.expected.sha256 = Some(known.to_ascii_lowercase());
        }
        if check == Check::Pinned {
            wanted.expected.bytes = wanted.expected.bytes.or(pin.map(|pin| pin.bytes));
        }
        plan.remotes.push(Remote { wanted, repo, check });
        Ok(plan.remotes.len() - 1)
    }

    /// The error with what the lock file has to do with it.
    pub fn describe(&self, error: FetchError, check: Check) -> anyhow::Error {
        match &error {
            FetchError::Digest { origin, .. } if check == Check::Pinned => {
                let place = place(self.lock, origin);
                anyhow::anyhow!(
                    "{error}, which {place} pins since the first download: remove that line to accept what the \
                     address gives today"
                )
            }
            _ => error.into(),
        }
    }
}

/// Sorts found files into archives: volumes that follow each other are one, every other file is its own.
fn archives<'a>(address: &HubAddress, files: &[(&str, usize)]) -> anyhow::Result<Vec<Vec<Volume<'a>>>> {
    let mut archives: Vec<Vec<Volume<'a>>> = Vec::new();
    let mut before = None;
    for (path, remote) in files {
        let volume = volume(path);
        match volume {
            Some((_, 1)) | None => archives.push(Vec::new()),
            Some((archive, number)) if number == 0 || before != Some((archive, number - 1)) => {
                let missing = number.saturating_sub(1);
                bail!("{address}: there is `{path}`, but not `{archive}.{missing:03}` before it");
            }
            Some(_) => {}
        }
        archives.last_mut().context("an archive has begun")?.push(Volume::Remote(*remote));
        before = volume;
    }
    Ok(archives)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_one_archive_in_order_and_without_a_gap() {
        let address = HubAddress::parse("hf://datasets/o/r/*").unwrap();
        let lengths = |names: &[&str]| {
            let files: Vec<_> = names.iter().copied().zip(0..).collect();
            archives(&address, &files).map(|archives| archives.iter().map(Vec::len).collect::<Vec<_>>())
        };
        assert_eq!(lengths(&["a.zip", "b.7z.001", "b.7z.002", "c.7z.001"]).unwrap(), [1, 2, 1]);
        let gap = lengths(&["b.7z.001", "b.7z.003"]).unwrap_err().to_string();
        assert_eq!(gap, "hf://datasets/o/r@main/*: there is `b.7z.003`, but not `b.7z.002` before it");
        assert!(lengths(&["a.zip", "b.7z.002"]).is_err());
        assert!(lengths(&["a.zip", "b.7z.000"]).is_err());
    }
}
