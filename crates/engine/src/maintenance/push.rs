//! Sending results to a remote.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Serialize;

use crate::identity::digest::{Digest, Listing};
use crate::identity::regular_file;
use crate::provenance::manifest::{self, Repeat};
use crate::remote::{AT_ONCE, Progress, Remote, RemoteError, Result, Sent, upload};
use crate::store::{Entry, Store};

/// The results to push, and their cache.
pub struct Push<'a> {
    /// The cache.
    pub store: &'a Store,
    /// Results by fingerprint.
    pub entries: BTreeMap<Digest, Entry>,
    /// Manifests: the pipeline, and the file.
    pub manifests: Vec<(String, PathBuf)>,
    /// Also send files that exist on the remote: they may be damaged there.
    pub again: bool,
    /// Receives the progress.
    pub progress: Progress<'a>,
}

/// The result of a push.
#[derive(Debug, Default, Serialize)]
pub struct Pushed {
    /// Files sent.
    pub sent: usize,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Files that already existed.
    pub there: usize,
    /// Their bytes.
    pub there_bytes: u64,
    /// Results whose entry is now on the remote.
    pub entries: usize,
    /// What was not sent, and why: a damaged or missing object.
    pub refused: Vec<String>,
}

impl Push<'_> {
    /// Sends objects, then entries, then manifests.
    ///
    /// An object that does not match its digest is not sent, nor any entry that needs it.
    ///
    /// # Errors
    /// A remote that refuses or cannot be reached, and a cache that cannot be read.
    pub fn execute(&self, remote: &Remote) -> Result<Pushed> {
        remote.block_on(self.send(remote))
    }

    async fn send(&self, remote: &Remote) -> Result<Pushed> {
        remote.greet().await?;
        let mut pushed = Pushed::default();
        let mut bad: BTreeSet<Digest> = BTreeSet::new();
        let mut files: BTreeMap<Digest, Sent> = BTreeMap::new();
        let mut listings: BTreeMap<Digest, Listing> = BTreeMap::new();
        // The files of each folder: a bad file makes the folder bad.
        let artifacts = self.entries.values().flat_map(|entry| entry.outputs.values());
        for artifact in artifacts {
            let object = self.store.path(&artifact.digest);
            if !artifact.folder {
                let file = Sent { digest: artifact.digest, path: object, size: artifact.size };
                files.insert(artifact.digest, file);
                continue;
            }
            match self.store.listing(&artifact.digest)? {
                Some(listing) if listing.digest() == artifact.digest => {
                    for file in &listing.0 {
                        let path = object.join(&file.path);
                        files.insert(file.digest, Sent { digest: file.digest, path, size: file.size });
                    }
                    listings.insert(artifact.digest, listing);
                }
                _ => _ = bad.insert(artifact.digest),
            }
        }
        let total = files.values().map(|file| file.size).sum();
        let done = Cell::new(0);
        let (counts, refused) = (RefCell::new(&mut pushed), RefCell::new(Vec::new()));
        let transfers = files.values().map(|file| async {
            let to = remote.object(&file.digest);
            let there = !self.again && remote.size(&to).await? == Some(file.size);
            let fault = if there { None } else { upload(remote, &to, file).await? };
            done.set(done.get() + file.size);
            (self.progress)(done.get(), total);
            let mut counts = counts.borrow_mut();
            match (there, fault) {
                (true, _) => {
                    counts.there += 1;
                    counts.there_bytes += file.size;
                }
                (false, None) => {
                    counts.sent += 1;
                    counts.sent_bytes += file.size;
                }
                (false, Some(fault)) => refused.borrow_mut().push((file.digest, fault)),
            }
            Ok::<(), RemoteError>(())
        });
        let transfers: Vec<_> = transfers.collect();
        stream::iter(transfers).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
        for (digest, fault) in refused.into_inner() {
            bad.insert(digest);
            pushed.refused.push(fault);
        }
        for (digest, listing) in &listings {
            if listing.0.iter().any(|file| bad.contains(&file.digest)) {
                bad.insert(*digest);
                continue;
            }
            let path = remote.listing(digest);
            if self.again || remote.size(&path).await?.is_none() {
                remote.write(&path, serde_json::to_vec(listing).map_err(std::io::Error::from)?).await?;
            }
        }
        self.send_entries(remote, &bad, &mut pushed).await?;
        Ok(pushed)
    }

    async fn send_entries(&self, remote: &Remote, bad: &BTreeSet<Digest>, pushed: &mut Pushed) -> Result<()> {
        let spoiled = |entry: &&Entry| entry.outputs.values().any(|output| bad.contains(&output.digest));
        let whole = self.entries.iter().filter(|(_, entry)| !spoiled(entry));
        let transfers = whole.map(|(fingerprint, entry)| async move {
            let path = remote.entry(fingerprint);
            if self.again || remote.size(&path).await?.is_none() {
                remote.write(&path, serde_json::to_vec_pretty(entry).map_err(std::io::Error::from)?).await?;
            }
            Ok::<usize, RemoteError>(1)
        });
        let transfers: Vec<_> = transfers.collect();
        let sent: Vec<usize> = stream::iter(transfers).buffer_unordered(AT_ONCE).try_collect().await?;
        pushed.entries = sent.into_iter().sum();
        let spoiled = self.entries.values().filter(spoiled).count();
        if spoiled > 0 {
            let results = if spoiled == 1 { "result was" } else { "results were" };
            pushed
                .refused
                .push(format!("{spoiled} {results} not sent: `attrflow cache verify` quarantines them"));
            // A manifest is sent only if all its results can be pulled.
            return Ok(());
        }
        for (pipeline, path) in &self.manifests {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let to = remote.runs(pipeline).join(name);
            if self.again || remote.size(&to).await?.is_none() {
                // A short manifest is of use only beside the one that it names.
                let text = match Repeat::base_of(path) {
                    Some(_) => {
                        serde_json::to_vec_pretty(&manifest::read(path)?).map_err(std::io::Error::from)?
                    }
                    None => regular_file::read(path)?,
                };
                remote.write(&to, text).await?;
            }
        }
        Ok(())
    }
}
