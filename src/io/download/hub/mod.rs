//! The Hugging Face Hub: the commit of a revision, the files of a repository, and their addresses.
//!
//! Source: the Hub's HTTP API, `/api/{datasets|models}/REPO/revision/REVISION` and `…/tree/COMMIT/FOLDER`.

mod address;
mod error;
#[cfg(test)]
mod tests;
mod token;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use url::Url;

pub use address::{HubAddress, Repo, RepoKind};
pub use error::HubError;

use super::{Client, DownloadRequest, Expected, FetchError, Token, join, shown};
use error::likely;

/// A file in a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubFile {
    /// Its path in the repository.
    pub path: String,
    /// Size and digest, which the Hub gives for every file.
    pub expected: Expected,
}

/// The Hub, or a mirror of it.
#[derive(Debug, Clone)]
pub struct Hub {
    endpoint: String,
    token: Option<Token>,
}

#[derive(Deserialize)]
struct Revision {
    sha: String,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    #[serde(default)]
    size: u64,
    oid: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    oid: String,
    size: u64,
}

impl Entry {
    fn file(self) -> HubFile {
        let expected = match self.lfs {
            Some(Lfs { oid, size }) => Expected { sha256: Some(oid), blob: None, bytes: Some(size) },
            None => Expected { sha256: None, blob: self.oid, bytes: Some(self.size) },
        };
        HubFile { path: self.path, expected }
    }
}

/// Escapes all that a path in an address may not contain.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'/');
/// The same for one part of a path.
const PART: &AsciiSet = &PLAIN.add(b'/');

impl Hub {
    /// The Hub at an endpoint such as `https://huggingface.co`.
    pub fn new(endpoint: &str, secret: Option<String>) -> Self {
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        let token = secret.map(|secret| Token::new(secret, &endpoint));
        Self { endpoint, token }
    }

    /// The Hub at `HF_ENDPOINT`, with the user's token.
    pub fn from_env() -> Self {
        let endpoint = std::env::var("HF_ENDPOINT").ok().filter(|endpoint| !endpoint.trim().is_empty());
        Self::new(endpoint.as_deref().unwrap_or("https://huggingface.co").trim(), token::from_env())
    }

    fn api(&self, repo: &Repo) -> String {
        let kind = match repo.kind {
            RepoKind::Model => "models",
            RepoKind::Dataset => "datasets",
        };
        format!("{}/api/{kind}/{}", self.endpoint, repo.name)
    }

    /// The current commit of a revision.
    ///
    /// # Errors
    /// See [`HubError`].
    pub fn commit(&self, client: &Client, repo: &Repo) -> Result<String, HubError> {
        if let Some(commit) = repo.commit() {
            return Ok(commit.to_owned());
        }
        let revision = utf8_percent_encode(&repo.revision, PART);
        let url = format!("{}/revision/{revision}", self.api(repo));
        let (Revision { sha }, _) = self.ask(client, repo, &url)?;
        let is_commit = Repo { revision: sha.clone(), ..repo.clone() }.commit().is_some();
        if !is_commit {
            return Err(self.answer(repo, format!("`sha` is `{sha}`, expected 40 hexadecimal digits")));
        }
        Ok(sha)
    }

    /// The files that an address selects at a commit, sorted by path.
    ///
    /// # Errors
    /// See [`HubError`]; an address that selects no file is [`HubError::Missing`].
    pub fn files(
        &self,
        client: &Client,
        address: &HubAddress,
        commit: &str,
    ) -> Result<Vec<HubFile>, HubError> {
        // So that an error names this commit, not a branch.
        let repo = &Repo { revision: commit.to_owned(), ..address.repo.clone() };
        let list = |folder: &str, below: bool| self.list(client, repo, commit, folder, below, usize::MAX);
        let missing = |what: &str| {
            // One page is enough for a hint.
            let all = self.list(client, repo, commit, "", true, 1)?.unwrap_or_default();
            let names = nearest(&address.path, all.into_iter().map(|entry| entry.path));
            Err(HubError::Missing { address: address.to_string(), what: what.to_owned(), names })
        };
        let base = address.base();
        let deep = if address.is_pattern() {
            address.path.matches('/').count() > base.matches('/').count() + usize::from(!base.is_empty())
        } else {
            address.folder
        };
        let Some(mut entries) = list(base, deep)? else { return missing("there is no such folder") };
        if !address.is_pattern() && !address.folder {
            entries.retain(|entry| entry.path == address.path);
            if entries.first().is_some_and(|entry| entry.kind == "directory") {
                entries = list(&address.path, true)?.unwrap_or_default();
            }
        }
        entries.retain(|entry| entry.kind == "file");
        if address.is_pattern() {
            entries.retain(|entry| address.matches(&entry.path));
        }
        if entries.is_empty() {
            return missing(if address.is_pattern() {
                "no file matches"
            } else {
                "there is no such file or folder"
            });
        }
        let within = |path: &str| path.split('/').all(|part| !["", ".", ".."].contains(&part));
        if let Some(entry) = entries.iter().find(|entry| !within(&entry.path)) {
            return Err(self.answer(repo, format!("the path {:?} leads outside the repository", entry.path)));
        }
        let mut files: Vec<HubFile> = entries.into_iter().map(Entry::file).collect();
        files.sort_by(|one, two| one.path.cmp(&two.path));
        Ok(files)
    }

    /// The request for a file at a commit.
    pub fn request(&self, repo: &Repo, commit: &str, file: &HubFile) -> DownloadRequest {
        let path = utf8_percent_encode(&file.path, PLAIN);
        DownloadRequest {
            name: repo.address(&file.path),
            url: format!("{}/{}/resolve/{commit}/{path}", self.endpoint, repo.page()),
            token: self.token.clone(),
            expected: file.expected.clone(),
        }
    }

    /// Adds the most likely cause to a failed download from the Hub.
    pub fn explain(&self, repo: &Repo, error: FetchError) -> HubError {
        match error {
            FetchError::Status { status, .. } => self.refused(repo, status, None),
            error => error.into(),
        }
    }

    /// The entries of a folder, and with `below` of all its subfolders; `None` if there is no such folder.
    fn list(
        &self,
        client: &Client,
        repo: &Repo,
        commit: &str,
        folder: &str,
        below: bool,
        max_pages: usize,
    ) -> Result<Option<Vec<Entry>>, HubError> {
        let slash = if folder.is_empty() { "" } else { "/" };
        let folder = utf8_percent_encode(folder, PLAIN);
        let mut url = format!("{}/tree/{commit}{slash}{folder}?recursive={below}", self.api(repo));
        let mut entries = Vec::new();
        for _ in 0..max_pages {
            let answer = self.ask::<Vec<Entry>>(client, repo, &url);
            let (page, link) = match answer {
                Err(HubError::Refused { code: Some(code), .. }) if code == "EntryNotFound" => {
                    return Ok(None);
                }
                answer => answer?,
            };
            entries.extend(page);
            let Some(link) = link.as_deref().and_then(next_page) else { break };
            let next = Url::parse(&url).map_err(|error| error.to_string()).and_then(|url| join(&url, link));
            url = next
                .map_err(|error| self.answer(repo, format!("the address of a next page: {error}")))?
                .into();
        }
        Ok(Some(entries))
    }

    /// The answer's body, and its `Link` header.
    fn ask<T: DeserializeOwned>(
        &self,
        client: &Client,
        repo: &Repo,
        url: &str,
    ) -> Result<(T, Option<String>), HubError> {
        let response = client.text(url, self.token.as_ref())?;
        let header = |name: &str| {
            response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
        };
        if !response.status().is_success() {
            return Err(self.refused(repo, response.status(), header("x-error-code").as_deref()));
        }
        let body = serde_json::from_str(response.body())
            .map_err(|error| self.answer(repo, format!("{error}, in the answer of {}", shown(url))))?;
        Ok((body, header("link")))
    }

    fn refused(&self, repo: &Repo, status: ureq::http::StatusCode, code: Option<&str>) -> HubError {
        let likely = likely(status, code, repo, self.token.is_some());
        HubError::Refused { repo: repo.to_string(), status, code: code.map(str::to_owned), likely }
    }

    fn answer(&self, repo: &Repo, reason: String) -> HubError {
        HubError::Answer { repo: repo.to_string(), reason }
    }
}

/// The address in a `Link: <ADDRESS>; rel="next"`.
fn next_page(link: &str) -> Option<&str> {
    let next = link.split(',').find(|link| link.contains("rel=\"next\""))?;
    let (address, _) = next.trim().strip_prefix('<')?.split_once('>')?;
    Some(address)
}

/// The paths most similar to the missing one, up to three.
fn nearest(path: &str, paths: impl Iterator<Item = String>) -> Vec<String> {
    let mut near: Vec<(f64, String)> = paths
        .map(|other| (strsim::jaro_winkler(path, &other), other))
        .filter(|(similarity, _)| *similarity > 0.7)
        .collect();
    near.sort_by(|one, two| two.0.total_cmp(&one.0).then_with(|| one.1.cmp(&two.1)));
    near.into_iter().take(3).map(|(_, path)| path).collect()
}
