//! Downloads files from http(s) addresses into a folder of downloads: each is complete and verified, or absent.
//!
//! An interrupted download resumes where it stopped, in this run or a later one. Two processes never write one file:
//! the second waits, and uses the file of the first if it is still there.

mod address;
mod client;
mod error;
pub mod file_lock;
mod folder;
mod hash;
pub mod hub;
pub mod lock_file;
mod partial;
mod retry;
mod state;
#[cfg(test)]
mod tests;
mod transfer;

use std::path::{Path, PathBuf};
use std::time::SystemTime;

pub(super) use address::{join, shown};
pub use address::{name, redact_urls};
pub use client::{Client, Token};
pub use error::FetchError;
pub use folder::Finished;
pub use hash::sha256;
pub use retry::RetryPolicy;
pub use state::{Expected, Fetched};

use crate::io::mistaken;
use client::Verb;
use file_lock::FileLock;
use folder::Slot;
use partial::Partial;
use state::Note;
use transfer::Transfer;

/// Progress of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes in the partial file.
    pub done: u64,
    /// Size of the complete file, if known.
    pub total: Option<u64>,
}

/// One remote file.
#[derive(Debug, Clone)]
pub struct DownloadRequest {
    /// Its address without secrets, as in messages and the lock file.
    pub name: String,
    /// Its address.
    pub url: String,
    /// The secret that the server requires.
    pub token: Option<Token>,
    /// What is known about it.
    pub expected: Expected,
}

impl DownloadRequest {
    /// A file at an http(s) address.
    pub fn at(url: &str, sha256: Option<String>) -> Self {
        let expected = Expected { sha256, ..Expected::default() };
        Self { name: name(url), url: url.into(), token: None, expected }
    }

    /// Identifies the file in the folder of downloads.
    fn key(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        let Expected { sha256, blob, bytes } = &self.expected;
        // A query may contain a secret that changes; a digest identifies the file without it.
        let name = self.name.split('?').next().filter(|_| self.expected.has_digest()).unwrap_or(&self.name);
        for part in [Some(name), sha256.as_deref(), blob.as_deref()] {
            hasher.update(part.unwrap_or_default().as_bytes()).update(b"\0");
        }
        hasher.update(&bytes.unwrap_or_default().to_le_bytes());
        hasher.finalize().to_hex()[..32].to_owned()
    }
}

/// The last part of an address, without its query.
fn last_part(address: &str) -> &str {
    address.split(['?', '#']).next().and_then(|path| path.rsplit('/').next()).unwrap_or_default()
}

/// What a server sent in the place of the file at an address, from the first bytes: a page for a sign-in or an error, a
/// pointer, nothing, a file that is not of the kind that its name says. Pages and empty files are right where the name says so.
fn mistaken_download(address: &str, start: &[u8]) -> Option<String> {
    let name = last_part(address).to_ascii_lowercase();
    let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);
    let text = matches!(extension, "html" | "htm" | "xhtml" | "xml" | "svg" | "txt" | "md" | "php");
    let may_be_empty = text || extension == "py" || name.starts_with('.');
    let wrong = mistaken::pointer(start)
        || (mistaken::page(start).is_some() && !text)
        || (start.is_empty() && !may_be_empty);
    if wrong {
        return mistaken::mistaken(start);
    }
    let expected = mistaken::form(extension).filter(|(_, is_one)| !is_one(start) && !start.is_empty())?;
    let begin: String = String::from_utf8_lossy(start).chars().take(40).collect();
    Some(format!("{begin:?}, which is not how {} begins", expected.0))
}

/// Downloads files into one folder of downloads.
pub struct Fetcher<'a> {
    client: &'a Client,
    folder: PathBuf,
}

impl<'a> Fetcher<'a> {
    /// A fetcher into `folder`, which is created if missing.
    ///
    /// # Errors
    /// The folder cannot be created.
    pub fn new(client: &'a Client, folder: &Path) -> Result<Self, FetchError> {
        fs_err::create_dir_all(folder)?;
        Ok(Self { client, folder: folder.into() })
    }

    fn slot(&self, request: &DownloadRequest) -> Slot {
        Slot::new(&self.folder, &request.key())
    }

    /// Bytes of the file that are already downloaded.
    pub fn present(&self, request: &DownloadRequest) -> u64 {
        self.slot(request).bytes()
    }

    /// The size of the file, if it is known or the server answers a HEAD request.
    pub fn size(&self, request: &DownloadRequest) -> Option<u64> {
        if let Some(finished) = self.slot(request).finished() {
            return Some(finished.bytes);
        }
        if request.expected.bytes.is_some() {
            return request.expected.bytes;
        }
        let response = self.client.ask(Verb::Head, &request.url, request.token.as_ref(), &[]).ok()?;
        transfer::length(response.headers()).filter(|_| response.status().is_success())
    }

    /// Downloads a file, or finds it downloaded.
    ///
    /// # Errors
    /// See [`FetchError`]. The bytes so far are kept for the next attempt, unless it was the wrong file.
    pub fn fetch(
        &self,
        request: &DownloadRequest,
        on_progress: &mut dyn FnMut(Progress),
    ) -> Result<Finished, FetchError> {
        let slot = self.slot(request);
        loop {
            let lock = match FileLock::try_exclusive(&slot.lock())? {
                Some(exclusive) => {
                    if slot.finished().is_none()
                        && let Err(error) = self.download(request, &slot, on_progress)
                    {
                        if slot.bytes() == 0 {
                            slot.clear()?;
                            exclusive.remove()?;
                        }
                        return Err(error);
                    }
                    exclusive.downgrade()?
                }
                None => {
                    tracing::info!("waiting for another download of {}", request.name);
                    FileLock::shared(&slot.lock())?
                }
            };
            // The other process may have been killed, or have removed the file after use.
            if let Some(fetched) = slot.finished() {
                on_progress(Progress { done: fetched.bytes, total: Some(fetched.bytes) });
                return Ok(Finished::new(slot, lock, fetched));
            }
        }
    }

    fn download(
        &self,
        request: &DownloadRequest,
        slot: &Slot,
        on_progress: &mut dyn FnMut(Progress),
    ) -> Result<(), FetchError> {
        let expected = &request.expected;
        let blob = expected.git().map(|(_, size)| size);
        let mut note = slot.note().unwrap_or_else(|| Note::new(request.name.clone()));
        note.finished = None;
        let mut transfer = |note: &mut Note, keep: bool| {
            let mut partial = Partial::open(&slot.part(), keep, blob)?;
            let resumed = partial.bytes() > 0;
            let save = |note: &Note| slot.save(note);
            Transfer { client: self.client, request, save: &save, on_progress }.run(&mut partial, note)?;
            Ok::<_, FetchError>((partial.finish()?, resumed))
        };
        // Without a digest or a version, nobody knows whether an old part belongs to the current file.
        let keep = expected.has_digest() || note.is_resumable();
        let (mut fetched, resumed) = transfer(&mut note, keep)?;
        if resumed && expected.fault(&fetched).is_some() {
            // The old part was of another file: start again.
            (fetched, _) = transfer(&mut note, false)?;
        }
        if let Some((found, expected)) = expected.fault(&fetched) {
            slot.clear()?;
            return Err(FetchError::Digest { origin: request.name.clone(), found, expected });
        }
        if !expected.has_digest()
            && let Some(found) = mistaken_download(&request.name, &slot.start()?)
        {
            slot.clear()?;
            let name = last_part(&request.name).to_owned();
            return Err(FetchError::Mistaken { url: request.name.clone(), found, name });
        }
        Ok(slot.finish(&mut note, &fetched)?)
    }

    /// Removes downloads that were not used for a month.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn sweep(&self) -> Result<(), FetchError> {
        Ok(folder::sweep(&self.folder, SystemTime::now())?)
    }
}
