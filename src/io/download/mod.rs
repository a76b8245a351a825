//! Brings files from http(s) addresses into a folder of downloads, whole and checked, or not at all.
//!
//! A download that breaks off goes on where it stopped, in this run or a later one. Two processes never write one
//! file: the second waits, and takes what the first one finished if it is still there.

mod address;
mod client;
mod error;
pub mod file_lock;
mod hash;
pub mod hub;
pub mod lock_file;
mod partial;
mod parts;
mod state;
#[cfg(test)]
mod tests;
mod transfer;

use std::path::{Path, PathBuf};
use std::time::SystemTime;

pub(super) use address::{join, shown};
pub use address::{name, redact_urls};
pub use client::{Client, RetryPolicy, Token};
pub use error::FetchError;
pub use hash::sha256;
pub use parts::Finished;
pub use state::{Expected, Fetched};

use client::Verb;
use file_lock::FileLock;
use partial::Partial;
use parts::Slot;
use state::Note;
use transfer::Transfer;

/// How far a transfer has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes in the partial file.
    pub done: u64,
    /// Bytes of the whole, if known.
    pub total: Option<u64>,
}

/// One remote file.
#[derive(Debug, Clone)]
pub struct DownloadRequest {
    /// Its address as messages and the lock file name it: without secrets.
    pub name: String,
    /// Where its bytes are.
    pub url: String,
    /// The secret that the server wants.
    pub token: Option<Token>,
    /// What is known of it.
    pub expected: Expected,
}

impl DownloadRequest {
    /// A file at an http(s) address.
    pub fn at(url: &str, sha256: Option<String>) -> Self {
        let expected = Expected { sha256, ..Expected::default() };
        Self { name: name(url), url: url.into(), token: None, expected }
    }

    /// Names the file in the folder of downloads.
    fn key(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        let Expected { sha256, blob, bytes } = &self.expected;
        // A secret in the query may be a new one each time; a digest is not.
        let name = self.name.split('?').next().filter(|_| self.expected.has_digest()).unwrap_or(&self.name);
        for part in [Some(name), sha256.as_deref(), blob.as_deref()] {
            hasher.update(part.unwrap_or_default().as_bytes()).update(b"\0");
        }
        hasher.update(&bytes.unwrap_or_default().to_le_bytes());
        hasher.finalize().to_hex()[..32].to_owned()
    }
}

/// Brings files into one folder of downloads.
pub struct Fetcher<'a> {
    client: &'a Client,
    folder: PathBuf,
}

impl<'a> Fetcher<'a> {
    /// A fetcher into `folder`, which is made if need be.
    ///
    /// # Errors
    /// A folder that cannot be made.
    pub fn new(client: &'a Client, folder: &Path) -> Result<Self, FetchError> {
        fs_err::create_dir_all(folder)?;
        Ok(Self { client, folder: folder.into() })
    }

    fn slot(&self, wanted: &DownloadRequest) -> Slot {
        Slot::new(&self.folder, &wanted.key())
    }

    /// Bytes of the file that are here already.
    pub fn present(&self, wanted: &DownloadRequest) -> u64 {
        self.slot(wanted).bytes()
    }

    /// The size of the file, if it or the server tells: some refuse the question.
    pub fn size(&self, wanted: &DownloadRequest) -> Option<u64> {
        if let Some(finished) = self.slot(wanted).finished() {
            return Some(finished.bytes);
        }
        if wanted.expected.bytes.is_some() {
            return wanted.expected.bytes;
        }
        let response = self.client.ask(Verb::Head, &wanted.url, wanted.token.as_ref(), &[]).ok()?;
        transfer::length(response.headers()).filter(|_| response.status().is_success())
    }

    /// Brings a file, or finds it finished.
    ///
    /// # Errors
    /// See [`FetchError`]. What came stays for the next attempt, unless it was the wrong file.
    pub fn fetch(
        &self,
        wanted: &DownloadRequest,
        heard: &mut dyn FnMut(Progress),
    ) -> Result<Finished, FetchError> {
        let slot = self.slot(wanted);
        loop {
            let held = match FileLock::try_exclusive(&slot.lock())? {
                Some(alone) => {
                    if slot.finished().is_none()
                        && let Err(error) = self.bring(wanted, &slot, heard)
                    {
                        if slot.bytes() == 0 {
                            slot.clear()?;
                            alone.remove()?;
                        }
                        return Err(error);
                    }
                    alone.downgrade()?
                }
                None => {
                    tracing::info!("waiting for another download of {}", wanted.name);
                    FileLock::shared(&slot.lock())?
                }
            };
            // Whoever was waited for may have been killed, or had the file for itself.
            if let Some(fetched) = slot.finished() {
                heard(Progress { done: fetched.bytes, total: Some(fetched.bytes) });
                return Ok(Finished::new(slot, held, fetched));
            }
        }
    }

    fn bring(
        &self,
        wanted: &DownloadRequest,
        slot: &Slot,
        heard: &mut dyn FnMut(Progress),
    ) -> Result<(), FetchError> {
        let expected = &wanted.expected;
        let blob = expected.git().map(|(_, size)| size);
        let mut note = slot.note().unwrap_or_else(|| Note::new(wanted.name.clone()));
        note.finished = None;
        let mut again = |note: &mut Note, keep: bool| {
            let mut partial = Partial::open(&slot.part(), keep, blob)?;
            let resumed = partial.bytes() > 0;
            let save = |note: &Note| slot.save(note);
            Transfer { client: self.client, wanted, save: &save, heard }.run(&mut partial, note)?;
            Ok::<_, FetchError>((partial.finish()?, resumed))
        };
        // Without a digest or a version nothing tells whether an old part belongs to the file that is there today.
        let keep = expected.has_digest() || note.is_resumable();
        let (mut fetched, resumed) = again(&mut note, keep)?;
        if resumed && expected.fault(&fetched).is_some() {
            // The old part was of another file: once more, from nothing.
            (fetched, _) = again(&mut note, false)?;
        }
        if let Some((found, expected)) = expected.fault(&fetched) {
            slot.clear()?;
            return Err(FetchError::Digest { origin: wanted.name.clone(), found, expected });
        }
        Ok(slot.finish(&mut note, &fetched)?)
    }

    /// Removes downloads that nobody asked for in a month.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn sweep(&self) -> Result<(), FetchError> {
        Ok(parts::sweep(&self.folder, SystemTime::now())?)
    }
}
