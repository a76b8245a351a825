//! Sending results to a remote.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::PathBuf;

use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::{MultipartUpload, ObjectStoreExt, PutPayload};
use serde::Serialize;

use super::{AT_ONCE, Progress, Remote, RemoteError, Result};
use crate::identity::digest::{Digest, Listing};
use crate::identity::{regular_file, shared_fs};
use crate::provenance::manifest::{self, Repeat};
use crate::store::{Entry, Store};

/// The size of an upload part; S3 requires at least 5 MiB.
const PIECE: usize = 8 << 20;

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

/// A file to send.
struct File {
    digest: Digest,
    path: PathBuf,
    size: u64,
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
        let mut files: BTreeMap<Digest, File> = BTreeMap::new();
        let mut listings: BTreeMap<Digest, Listing> = BTreeMap::new();
        // The files of each folder: a bad file makes the folder bad.
        let artifacts = self.entries.values().flat_map(|entry| entry.outputs.values());
        for artifact in artifacts {
            let object = self.store.path(&artifact.digest);
            if !artifact.folder {
                let file = File { digest: artifact.digest, path: object, size: artifact.size };
                files.insert(artifact.digest, file);
                continue;
            }
            match self.store.listing(&artifact.digest)? {
                Some(listing) if listing.digest() == artifact.digest => {
                    for file in &listing.0 {
                        let path = object.join(&file.path);
                        files.insert(file.digest, File { digest: file.digest, path, size: file.size });
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
            let there = !self.again && remote.size(&remote.object(&file.digest)).await? == Some(file.size);
            let fault = if there { None } else { upload(remote, file).await? };
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

/// The digest of a file with these bytes, executable if that is the expected one.
fn named(hash: blake3::Hash, expected: &Digest) -> Digest {
    let executable = Digest::of_bytes(hash, true);
    if executable == *expected { executable } else { hash.into() }
}

/// Uploads and hashes a file; it appears on the remote only if it matches its digest. Otherwise returns what is wrong.
async fn upload(remote: &Remote, file: &File) -> Result<Option<String>> {
    /// A file that another host replaced meanwhile is sent from its beginning.
    const TRIES: usize = 5;
    for _ in 1..TRIES {
        match upload_once(remote, file).await {
            Err(RemoteError::Io(error)) if shared_fs::is_stale(&error) => {}
            result => return result,
        }
    }
    upload_once(remote, file).await
}

async fn upload_once(remote: &Remote, file: &File) -> Result<Option<String>> {
    let fault = |what: String| Ok(Some(format!("{}: {what}", file.path.display())));
    let mut reader = match regular_file::open(&file.path) {
        Ok(reader) => reader,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return fault("it is missing".into()),
        Err(error) => return Err(error.into()),
    };
    let path = remote.object(&file.digest);
    let mut hasher = blake3::Hasher::new();
    let first = piece(&mut reader)?;
    hasher.update(&first);
    if first.len() < PIECE {
        let found = named(hasher.finalize(), &file.digest);
        if found != file.digest {
            return fault(format!("it is damaged: found {found}, expected {}", file.digest));
        }
        remote.write(&path, first).await?;
        return Ok(None);
    }
    let mut upload = remote.store.put_multipart(&path).await.map_err(|error| remote.describe(error))?;
    let sent = parts(remote, upload.as_mut(), first, &mut reader, &mut hasher).await;
    let found = named(hasher.finalize(), &file.digest);
    match sent {
        Ok(()) if found == file.digest => {
            upload.complete().await.map_err(|error| remote.describe(error))?;
            Ok(None)
        }
        sent => {
            // A failed abort leaves unused parts, which cost space but have no name.
            let _ = upload.abort().await;
            sent?;
            fault(format!("it is damaged: found {found}, expected {}", file.digest))
        }
    }
}

async fn parts(
    remote: &Remote,
    upload: &mut dyn MultipartUpload,
    first: Vec<u8>,
    reader: &mut impl Read,
    hasher: &mut blake3::Hasher,
) -> Result<()> {
    let mut next = first;
    while !next.is_empty() {
        let payload = PutPayload::from(next);
        upload.put_part(payload).await.map_err(|error| remote.describe(error))?;
        next = piece(reader)?;
        hasher.update(&next);
    }
    Ok(())
}

/// The next bytes of a file; shorter than a part only at its end.
fn piece(reader: &mut impl Read) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(PIECE as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}
