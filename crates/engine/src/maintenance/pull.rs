//! Downloads results from a remote.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;

use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Serialize;

use crate::identity::digest::{Digest, Listing};
use crate::identity::shared_fs;
use crate::provenance::manifest::Manifest;
use crate::remote::{AT_ONCE, Progress, Remote, RemoteError, Result, fetch, is_plain};
use crate::store::{Artifact, Entry, Scratch, Store};

/// Maximum parallel artifacts; for each, up to [`AT_ONCE`] files.
const ARTIFACTS: usize = 4;

/// The results to pull, and their cache.
pub struct Pull<'a> {
    /// The cache.
    pub store: &'a Store,
    /// The pipeline whose run is pulled; `None` for the only one of the remote.
    pub pipeline: Option<&'a str>,
    /// How many runs back.
    pub back: usize,
    /// Pull everything.
    pub all: bool,
    /// Receives the progress.
    pub progress: Progress<'a>,
}

/// The result of a pull.
#[derive(Debug, Default, Serialize)]
pub struct Pulled {
    /// Files downloaded.
    pub downloaded: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Results that are now cached.
    pub entries: usize,
    /// Results that were already cached.
    pub there: usize,
    /// Manifests downloaded.
    pub manifests: usize,
    /// What was refused, and why.
    pub refused: Vec<String>,
}

/// A manifest with its path below the folder of runs.
struct Record {
    pipeline: String,
    name: String,
    text: Vec<u8>,
    manifest: Manifest,
}

impl Pull<'_> {
    /// Downloads objects, then entries, then manifests; nothing is used before its bytes match its digest.
    ///
    /// # Errors
    /// A remote that refuses, cannot be reached or lacks the requested run, and a cache that cannot be written.
    pub fn execute(&self, remote: &Remote) -> Result<Pulled> {
        remote.block_on(self.pull(remote))
    }

    async fn pull(&self, remote: &Remote) -> Result<Pulled> {
        remote.greet().await?;
        let mut pulled = Pulled::default();
        let records = self.records(remote, &mut pulled).await?;
        let mut stages: BTreeMap<Digest, String> = BTreeMap::new();
        for record in &records {
            for stage in record.manifest.stages.iter().filter(|stage| !stage.outputs.is_empty()) {
                stage.fingerprint.iter().for_each(|found| _ = stages.insert(*found, stage.stage.clone()));
            }
        }
        let mut wanted: BTreeSet<Digest> = stages.keys().copied().collect();
        if self.all {
            let named = remote.names(&remote.recipes()).await?;
            wanted.extend(
                named
                    .iter()
                    .filter_map(|path| path.filename()?.strip_suffix(".json")?.parse::<Digest>().ok()),
            );
        }
        let entries = self.entries(remote, &wanted, &stages, &mut pulled).await?;
        let bad = self.objects(remote, &entries, &mut pulled).await?;
        for (fingerprint, entry) in &entries {
            if entry.outputs.values().any(|output| bad.contains(&output.digest)) {
                let what = stages.get(fingerprint).map_or_else(|| fingerprint.short(), Clone::clone);
                pulled.refused.push(format!("the result of `{what}` was refused"));
                continue;
            }
            self.store.take_entry(entry)?;
            pulled.entries += 1;
        }
        self.store.try_flush()?;
        if pulled.refused.is_empty() {
            for record in &records {
                pulled.manifests += usize::from(self.keep(record)?);
            }
        }
        Ok(pulled)
    }

    /// The manifests of the requested runs.
    async fn records(&self, remote: &Remote, pulled: &mut Pulled) -> Result<Vec<Record>> {
        let folder = remote.all_runs();
        let mut found: BTreeMap<String, Vec<object_store::path::Path>> = BTreeMap::new();
        for path in remote.names(&folder).await? {
            let below: Vec<String> = path
                .prefix_match(&folder)
                .into_iter()
                .flatten()
                .map(|part| part.as_ref().to_owned())
                .collect();
            if let [pipeline, name] = below.as_slice()
                && name.ends_with(".json")
                && is_plain(Path::new(pipeline))
                && is_plain(Path::new(name))
            {
                found.entry(pipeline.clone()).or_default().push(path);
            }
        }
        let chosen = match self.all {
            true => found.values().flatten().collect(),
            false => vec![self.choose(remote, &found)?],
        };
        let mut records = Vec::new();
        for path in chosen {
            let Some(text) = remote.read(path).await? else { continue };
            match serde_json::from_slice::<Manifest>(&text) {
                Ok(manifest) => {
                    let parts: Vec<String> = path.parts().map(|part| part.as_ref().to_owned()).collect();
                    let [.., pipeline, name] = parts.as_slice() else { continue };
                    let (pipeline, name) = (pipeline.clone(), name.clone());
                    records.push(Record { pipeline, name, text, manifest });
                }
                Err(error) => pulled.refused.push(format!("{path}: not a manifest: {error}")),
            }
        }
        Ok(records)
    }

    fn choose<'p>(
        &self,
        remote: &Remote,
        found: &'p BTreeMap<String, Vec<object_store::path::Path>>,
    ) -> Result<&'p object_store::path::Path> {
        let names = || found.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        let of = |pipeline: &str, paths: &'p [object_store::path::Path]| {
            let count = paths.len();
            paths.iter().rev().nth(self.back).ok_or_else(|| {
                remote.missing(format!("{count} runs of `{pipeline}`, none of them {} back", self.back))
            })
        };
        match (self.pipeline, found.len()) {
            (_, 0) => Err(remote.missing("no runs: push one first".into())),
            (Some(name), _) => match found.get(name) {
                Some(paths) => of(name, paths),
                None => Err(remote.missing(format!("no run of `{name}`, only of {}", names()))),
            },
            (None, 1) => found
                .iter()
                .next()
                .map_or_else(|| Err(remote.missing("no runs".into())), |(name, paths)| of(name, paths)),
            (None, _) => Err(remote.missing(format!("runs of several pipelines: name one of {}", names()))),
        }
    }

    /// The entries that are not cached yet.
    async fn entries(
        &self,
        remote: &Remote,
        wanted: &BTreeSet<Digest>,
        stages: &BTreeMap<Digest, String>,
        pulled: &mut Pulled,
    ) -> Result<BTreeMap<Digest, Entry>> {
        let mut open = Vec::new();
        for fingerprint in wanted {
            // A damaged local entry is replaced.
            match self.store.lookup(fingerprint) {
                Ok(Some(_)) => pulled.there += 1,
                _ => open.push(*fingerprint),
            }
        }
        let reads = open.into_iter().map(|fingerprint| async move {
            Ok::<_, RemoteError>((fingerprint, remote.read(&remote.entry(&fingerprint)).await?))
        });
        let texts: Vec<_> = stream::iter(reads).buffer_unordered(AT_ONCE).try_collect().await?;
        let mut entries = BTreeMap::new();
        for (fingerprint, text) in texts {
            let path = remote.entry(&fingerprint);
            let Some(text) = text else {
                let stage = stages.get(&fingerprint).map_or_else(|| fingerprint.short(), Clone::clone);
                pulled.refused.push(format!("the result of `{stage}` is missing: {path}"));
                continue;
            };
            match serde_json::from_slice::<Entry>(&text) {
                Ok(entry) => match entry.fault(&fingerprint) {
                    None => _ = entries.insert(fingerprint, entry),
                    Some(fault) => pulled.refused.push(format!("{path} is damaged: {fault}")),
                },
                Err(error) => pulled.refused.push(format!("{path} is damaged: {error}")),
            }
        }
        Ok(entries)
    }

    /// Downloads the artifacts of the entries, and returns those that could not be downloaded.
    async fn objects(
        &self,
        remote: &Remote,
        entries: &BTreeMap<Digest, Entry>,
        pulled: &mut Pulled,
    ) -> Result<BTreeSet<Digest>> {
        let mut artifacts: BTreeMap<Digest, &Artifact> = BTreeMap::new();
        for artifact in entries.values().flat_map(|entry| entry.outputs.values()) {
            if !self.store.has(artifact)? {
                artifacts.insert(artifact.digest, artifact);
            }
        }
        let total = artifacts.values().map(|artifact| artifact.size).sum();
        let scratch = self.store.scratch()?;
        let (done, bad) = (Cell::new(0), RefCell::new(BTreeSet::new()));
        let counts = RefCell::new(pulled);
        let tell = |bytes: u64| {
            done.set(done.get() + bytes);
            (self.progress)(done.get(), total);
        };
        let transfers = artifacts.values().map(|artifact| async {
            let result = self.artifact(remote, artifact, &scratch, &tell).await?;
            let mut counts = counts.borrow_mut();
            match result {
                Ok(files) => {
                    counts.downloaded += files;
                    counts.bytes += artifact.size;
                }
                Err(faults) => {
                    counts.refused.extend(faults);
                    bad.borrow_mut().insert(artifact.digest);
                }
            }
            Ok::<(), RemoteError>(())
        });
        let transfers: Vec<_> = transfers.collect();
        stream::iter(transfers).buffer_unordered(ARTIFACTS).try_collect::<()>().await?;
        Ok(bad.into_inner())
    }

    /// Downloads one artifact and caches it; returns its number of files, or what is wrong with it.
    async fn artifact(
        &self,
        remote: &Remote,
        artifact: &Artifact,
        scratch: &Scratch,
        tell: &dyn Fn(u64),
    ) -> Result<std::result::Result<usize, Vec<String>>> {
        let attempt = scratch.attempt()?;
        let target = attempt.path().join("object");
        let mut count = 1;
        if artifact.folder {
            let path = remote.listing(&artifact.digest);
            let listing = match remote.read(&path).await? {
                None => return Ok(Err(vec![format!("{path} is missing")])),
                Some(text) => serde_json::from_slice::<Listing>(&text),
            };
            let listing = match listing {
                Ok(listing) if listing.digest() == artifact.digest => listing,
                Ok(_) => return Ok(Err(vec![format!("{path} lists another folder")])),
                Err(error) => return Ok(Err(vec![format!("{path} is damaged: {error}")])),
            };
            // The remote's writer must not choose where on this machine a file is written.
            if let Some(file) = listing.0.iter().find(|file| !is_plain(Path::new(&file.path))) {
                return Ok(Err(vec![format!("{path} names a file outside its folder: {}", file.path)]));
            }
            shared_fs::create_own_dir(&target)?;
            let transfers = listing.0.iter().map(|file| {
                let to = target.join(&file.path);
                async move {
                    fetch(remote, &remote.object(&file.digest), &file.digest, file.size, &to, tell).await
                }
            });
            let transfers: Vec<_> = transfers.collect();
            let faults: Vec<Option<String>> =
                stream::iter(transfers).buffer_unordered(AT_ONCE).try_collect().await?;
            let faults: Vec<String> = faults.into_iter().flatten().collect();
            if !faults.is_empty() {
                return Ok(Err(faults));
            }
            count = listing.0.len();
        } else if let Some(fault) =
            fetch(remote, &remote.object(&artifact.digest), &artifact.digest, artifact.size, &target, tell)
                .await?
        {
            return Ok(Err(vec![fault]));
        }
        Ok(self.store.take(&target, artifact)?.map(|()| count).map_err(|fault| vec![fault]))
    }

    /// Writes a manifest under its name; returns whether it is new.
    fn keep(&self, record: &Record) -> Result<bool> {
        let folder = self.store.runs(&record.pipeline);
        shared_fs::create_dir_all(&folder)?;
        let mut file = tempfile::Builder::new().prefix("write-").tempfile_in(&folder)?;
        file.write_all(&record.text)?;
        match file.persist_noclobber(folder.join(&record.name)) {
            Ok(_) => Ok(true),
            Err(error) if error.error.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error.error.into()),
        }
    }
}
