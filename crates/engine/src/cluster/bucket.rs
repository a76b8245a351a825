//! The part of a bucket that stands in for a file system which the nodes share.
//!
//! ```text
//! attrflow-v1/objects/, listings/           what workers read, by digest; stays, and other runs find it there
//! attrflow-v1/cluster/RUN/run.json, front   as in the run's folder
//! attrflow-v1/cluster/RUN/log/              the logs of workers that ended
//! attrflow-v1/cluster/RUN/w/ATTEMPT/        a worker: hello, in.EPOCH/N, out/N (lines), results/NUMBER.TASK/
//! ```
//! Each object has one writer. Lines go into objects with growing numbers, so nothing is appended and nothing but `front` is
//! replaced: no server must do more than put, get, list and delete.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::{Either, select};
use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::path::Path as ObjectPath;

use super::folder::{Lease, Pause};
use super::messages::Input;
use crate::identity::digest::{Digest, Listed, Listing};
use crate::identity::shared_fs;
use crate::remote::{AT_ONCE, Remote, RemoteError, Result, Sent, fetch, is_plain, upload};
use crate::store::files_of;

/// Most messages that are read at once: they are short.
const MESSAGES_AT_ONCE: usize = 64;
/// Separates the address of a bucket from the name of a run in it.
const OF_RUN: char = '#';

/// A run's part of a bucket.
pub struct Bucket {
    remote: Remote,
    folder: ObjectPath,
    run: String,
    /// What this run has put there, by path.
    sent: Mutex<BTreeMap<PathBuf, Input>>,
    /// Whether transfers of files are broken off.
    stopped: AtomicBool,
}

impl Bucket {
    /// The part of a run in the bucket at an address.
    ///
    /// # Errors
    /// An address that leads to no bucket, or one that does not answer.
    pub fn open(address: &str, run: &str) -> Result<Self> {
        let remote = Remote::open(address, true)?;
        remote.block_on(remote.greet())?;
        let folder = remote.cluster().join(run.to_owned());
        Ok(Self {
            remote,
            folder,
            run: run.to_owned(),
            sent: Mutex::default(),
            stopped: AtomicBool::new(false),
        })
    }

    /// The same from one text, as a worker is given it; `None` for the path of a folder.
    pub(super) fn of_place(place: &str) -> Option<Result<Self>> {
        let (address, run) = place.rsplit_once(OF_RUN).filter(|(address, _)| address.contains("://"))?;
        Some(Self::open(address, run))
    }

    /// The text that leads a worker to a run.
    pub(super) fn place(address: &str, run: &str) -> String {
        format!("{address}{OF_RUN}{run}")
    }

    pub(super) fn run(&self) -> &str {
        &self.run
    }

    fn at(&self, name: &str) -> ObjectPath {
        name.split('/').fold(self.folder.clone(), |path, part| path.join(part.to_owned()))
    }

    fn result(&self, attempt: &str, number: u64, task: usize, file: &str) -> ObjectPath {
        self.at(&format!("w/{attempt}/results/{number}.{task}/{file}"))
    }

    /// Breaks off all transfers of files, and lets none begin.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Repeats what a server refused that is away for a moment, or does not show a file yet; for so many seconds.
    pub(super) fn patiently<T>(&self, seconds: f64, mut transfer: impl FnMut() -> Result<T>) -> Result<T> {
        let (begun, mut pause) = (Instant::now(), Pause::from(Duration::from_millis(200), 5.0));
        loop {
            match transfer() {
                Err(
                    RemoteError::Unreachable { .. }
                    | RemoteError::Failed { .. }
                    | RemoteError::Missing { .. },
                ) if begun.elapsed().as_secs_f64() < seconds && !self.stopped.load(Ordering::Relaxed) => {
                    pause.wait();
                }
                result => return result,
            }
        }
    }

    /// Runs a transfer of files to its end, or until it is broken off.
    fn transfer<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let stopped = async {
            while !self.stopped.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        self.remote.block_on(async {
            match select(pin!(work), pin!(stopped)).await {
                Either::Left((result, _)) => result,
                Either::Right(_) => Err(RemoteError::Io(std::io::Error::other("it was broken off"))),
            }
        })
    }

    /// An object of the run; `None` where there is none yet.
    pub(super) fn get(&self, name: &str) -> Result<Option<Vec<u8>>> {
        self.remote.block_on(self.remote.read(&self.at(name)))
    }

    /// Several at once, in the order of the names.
    pub(super) fn get_all(&self, names: &[String]) -> Result<Vec<Option<Vec<u8>>>> {
        let reads = names.iter().map(|name| async { self.remote.read(&self.at(name)).await });
        let reads: Vec<_> = reads.collect();
        self.remote.block_on(stream::iter(reads).buffered(MESSAGES_AT_ONCE).try_collect())
    }

    pub(super) fn put(&self, name: &str, bytes: Vec<u8>) -> Result<()> {
        self.remote.block_on(self.remote.write(&self.at(name), bytes))
    }

    /// The names right below a folder of the run.
    pub(super) fn children(&self, folder: &str) -> Result<Vec<String>> {
        self.remote.block_on(async {
            let found = self.remote.children(&self.at(folder)).await?;
            Ok(found.iter().filter_map(|path| path.filename()).map(str::to_owned).collect())
        })
    }

    /// Puts files and folders there for workers to read; what is there already is not sent again. A source that was changed and
    /// changed back is known by the digest that is `expected` of it.
    pub(super) fn send_inputs<'p>(
        &self,
        paths: impl IntoIterator<Item = &'p PathBuf>,
        expected: &BTreeMap<&Path, Digest>,
    ) -> Result<BTreeMap<PathBuf, Input>> {
        let mut sent = self.sent.lock().expect("no panic under this lock");
        let (mut inputs, mut files, mut listings) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        for path in paths {
            let is_expected =
                |input: &&Input| expected.get(path.as_path()).is_none_or(|digest| *digest == input.digest);
            if let Some(input) = sent.get(path).filter(is_expected) {
                inputs.insert(path.clone(), input.clone());
                continue;
            }
            let input = if shared_fs::metadata(path)?.is_dir() {
                let listing = files_of(path)?;
                for Listed { path: name, size, digest } in &listing.0 {
                    files.insert(*digest, Sent { digest: *digest, path: path.join(name), size: *size });
                }
                let digest = listing.digest();
                listings.push((digest, listing));
                Input { digest, size: None }
            } else {
                let (digest, size) = (Digest::of_file(path)?, shared_fs::metadata(path)?.len());
                files.insert(digest, Sent { digest, path: path.clone(), size });
                Input { digest, size: Some(size) }
            };
            inputs.insert(path.clone(), input);
        }
        self.transfer(async {
            let transfers = files.values().map(|file| async {
                let to = self.remote.object(&file.digest);
                match self.remote.size(&to).await? == Some(file.size) {
                    true => Ok(()),
                    false => self.send(&to, file).await,
                }
            });
            all(transfers).await?;
            // A listing comes after all that it lists.
            all(listings.iter().map(|(digest, listing)| async {
                let to = self.remote.listing(digest);
                match self.remote.size(&to).await? {
                    Some(_) => Ok(()),
                    None => {
                        let text = serde_json::to_vec(listing).map_err(std::io::Error::from)?;
                        self.remote.write(&to, text).await
                    }
                }
            }))
            .await
        })?;
        sent.extend(inputs.clone());
        Ok(inputs)
    }

    /// Brings files and folders that a worker reads to where each is wanted; every file is compared with its digest.
    pub(super) fn fetch_inputs(&self, wanted: &[(&Input, PathBuf)]) -> Result<()> {
        self.transfer(all(wanted.iter().map(|(input, to)| self.fetch_input(input, to))))
    }

    async fn fetch_input(&self, input: &Input, to: &Path) -> Result<()> {
        let listing = match input.size {
            Some(size) => {
                return self.fetch(&self.remote.object(&input.digest), &input.digest, size, to).await;
            }
            None => self.remote.read(&self.remote.listing(&input.digest)).await?,
        };
        let listing = listing.and_then(|text| serde_json::from_slice::<Listing>(&text).ok());
        let listing = listing.filter(|listing| listing.digest() == input.digest);
        let listing = listing.ok_or_else(|| self.remote.missing(format!("no folder {}", input.digest)))?;
        shared_fs::create_dir_all(to)?;
        self.fetch_all(&listing, to, |file| self.remote.object(&file.digest)).await?;
        listing.0.iter().try_for_each(|file| keep_from_writing(&to.join(&file.path)))
    }

    /// Puts what a task wrote there.
    pub(super) fn send_result(
        &self,
        (attempt, number, task): (&str, u64, usize),
        folder: &Path,
        files: &Listing,
    ) -> Result<()> {
        self.transfer(all(files.0.iter().map(|file| async {
            let sent = Sent { digest: file.digest, path: folder.join(&file.path), size: file.size };
            self.send(&self.result(attempt, number, task, &file.path), &sent).await
        })))
    }

    /// Brings what a task wrote; each file is compared with its digest.
    pub(super) fn fetch_result(
        &self,
        (attempt, number, task): (&str, u64, usize),
        files: &Listing,
        to: &Path,
    ) -> Result<()> {
        let place = |file: &Listed| self.result(attempt, number, task, &file.path);
        self.transfer(self.fetch_all(files, to, place))
    }

    /// Tells its workers that the run is over.
    ///
    /// # Errors
    /// A bucket that cannot be written to.
    pub fn end(&self, lease: &Lease) -> Result<()> {
        self.put("front", serde_json::to_vec(lease).map_err(std::io::Error::from)?)
    }

    /// Removes all of the run, but its last sign of life: a worker that comes late sees there that the run is over.
    ///
    /// # Errors
    /// A bucket that cannot be listed or written to.
    pub fn clear(&self) -> Result<()> {
        self.remote.block_on(async {
            let names = self.remote.names(&self.folder).await?;
            let front = self.at("front");
            all(names.iter().filter(|name| **name != front).map(|name| self.remote.remove(name))).await
        })
    }

    async fn send(&self, to: &ObjectPath, file: &Sent) -> Result<()> {
        match upload(&self.remote, to, file).await? {
            None => Ok(()),
            Some(fault) => Err(RemoteError::Io(std::io::Error::other(fault))),
        }
    }

    async fn fetch_all(
        &self,
        files: &Listing,
        folder: &Path,
        place: impl Fn(&Listed) -> ObjectPath,
    ) -> Result<()> {
        // The other side must not choose where on this machine a file is written.
        if let Some(file) = files.0.iter().find(|file| !is_plain(Path::new(&file.path))) {
            return Err(self.remote.missing(format!("a file outside its folder: {}", file.path)));
        }
        all(files.0.iter().map(|file| {
            let (from, to) = (place(file), folder.join(&file.path));
            async move { self.fetch(&from, &file.digest, file.size, &to).await }
        }))
        .await
    }

    async fn fetch(&self, from: &ObjectPath, digest: &Digest, size: u64, to: &Path) -> Result<()> {
        // What an interrupted transfer left.
        let _ = shared_fs::remove_file(to);
        match fetch(&self.remote, from, digest, size, to, &|_| {}).await? {
            None => Ok(()),
            Some(fault) => Err(self.remote.missing(fault)),
        }
    }
}

/// As in the cache: other tasks read it too.
fn keep_from_writing(file: &Path) -> Result<()> {
    let mode = fs_err::metadata(file)?.permissions().mode();
    Ok(fs_err::set_permissions(file, Permissions::from_mode(mode & !0o222))?)
}

/// Transfers, so many at once.
async fn all(transfers: impl Iterator<Item = impl Future<Output = Result<()>>>) -> Result<()> {
    let transfers: Vec<_> = transfers.collect();
    stream::iter(transfers).buffer_unordered(AT_ONCE).try_collect().await
}

/// Where Slurm writes the output of a task of a node that does not share the run's folder.
pub(super) fn log_on_node(run: &str, array: &str, task: &str) -> PathBuf {
    PathBuf::from(format!("/tmp/attrflow-{run}-{array}_{task}.log"))
}
