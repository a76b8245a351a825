//! The folder of a run on a cluster: its files, the run's sign of life, and lines that are appended and followed.

use std::fs::Permissions;
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::marker::PhantomData;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::messages::{Hello, RunConfig};
use crate::identity::digest::{Digest, Listed, Listing};
use crate::identity::regular_file;
use crate::store::{is_network, names};
use crate::worker::cancel::CancelMode;

/// The folder of one run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunFolder(PathBuf);

impl RunFolder {
    /// The folder at a path.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The run's name.
    pub fn name(&self) -> String {
        self.0.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// The events of the run, one JSON line each.
    pub fn events(&self) -> PathBuf {
        self.0.join("events.jsonl")
    }

    /// What the scheduler writes for each task.
    pub fn log(&self) -> PathBuf {
        self.0.join("log")
    }

    /// What the process of the run itself writes when nobody is there to read it.
    pub fn front_log(&self) -> PathBuf {
        self.log().join("run.log")
    }

    /// The file that the run holds locked, for its workers to try.
    pub(super) fn lock_test(&self) -> PathBuf {
        self.0.join("lock-test")
    }

    /// The folders of the workers.
    pub(super) fn workers(&self) -> PathBuf {
        self.0.join("w")
    }

    /// What the workers said of themselves, each with the time that the file system gave the file.
    pub fn hellos(&self) -> Vec<(Hello, SystemTime)> {
        let workers = fs_err::read_dir(self.workers()).into_iter().flatten().flatten();
        let found = workers.filter_map(|worker| {
            let written = fs_err::metadata(worker.path().join("hello")).and_then(|found| found.modified());
            Some((AttemptFolder::at(worker.path()).hello().ok()?, written.ok()?))
        });
        found.collect()
    }

    /// Makes the folder, with what its workers must know.
    ///
    /// # Errors
    /// A folder or file that cannot be made.
    pub fn create(&self, config: &RunConfig) -> std::io::Result<()> {
        fs_err::create_dir_all(self.log())?;
        fs_err::create_dir_all(self.workers())?;
        // What tasks write there may be anything.
        fs_err::set_permissions(&self.0, Permissions::from_mode(0o700))?;
        replace(&self.0.join("run.json"), &serde_json::to_vec_pretty(config)?)
    }

    /// What the workers of the run must know.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn config(&self) -> std::io::Result<RunConfig> {
        Ok(serde_json::from_slice(&regular_file::read(self.0.join("run.json"))?)?)
    }

    /// Asks the run to end.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn request_cancel(&self, mode: CancelMode) -> std::io::Result<()> {
        let text = if mode == CancelMode::Kill { "kill" } else { "drain" };
        replace(&self.0.join("cancel"), text.as_bytes())
    }

    /// Forgets what an earlier run was asked.
    pub(super) fn forget_cancel(&self) {
        // There is rarely any.
        let _ = fs_err::remove_file(self.0.join("cancel"));
    }

    /// How soon the run was asked to end.
    pub(super) fn cancel_request(&self) -> Option<CancelMode> {
        let text = regular_file::read_to_string(self.0.join("cancel")).ok()?;
        Some(if text == "kill" { CancelMode::Kill } else { CancelMode::Drain })
    }

    /// The run's sign of life.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn lease(&self) -> std::io::Result<Lease> {
        Ok(serde_json::from_slice(&regular_file::read(self.0.join("front"))?)?)
    }

    /// Writes the run's sign of life.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write_lease(&self, lease: &Lease) -> std::io::Result<()> {
        replace(&self.0.join("front"), &serde_json::to_vec(lease)?)
    }
}

/// The folder of one worker; a task that is started again is another.
#[derive(Debug, Clone)]
pub(super) struct AttemptFolder(PathBuf);

impl AttemptFolder {
    pub fn at(path: PathBuf) -> Self {
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn name(&self) -> String {
        self.0.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// The lines of the run of this epoch. Each run has a file of its own: two that append to one file would mix their lines.
    pub fn inbox(&self, epoch: u64) -> PathBuf {
        self.0.join(format!("in.{epoch}.jsonl"))
    }

    /// The lines of the worker.
    pub fn outbox(&self) -> PathBuf {
        self.0.join("out.jsonl")
    }

    /// Where a task of an assignment writes.
    pub fn output(&self, number: u64, task: usize) -> PathBuf {
        self.0.join("out").join(format!("{number}.{task}"))
    }

    /// Removes all but the hello.
    pub fn clear(&self) {
        for entry in fs_err::read_dir(&self.0).into_iter().flatten().flatten() {
            let path = entry.path();
            if entry.file_name() != "hello" {
                // Best effort: gc removes what is left.
                let _ =
                    if path.is_dir() { fs_err::remove_dir_all(&path) } else { fs_err::remove_file(&path) };
            }
        }
    }

    pub fn hello(&self) -> std::io::Result<Hello> {
        Ok(serde_json::from_slice(&regular_file::read(self.0.join("hello"))?)?)
    }

    pub fn write_hello(&self, hello: &Hello) -> std::io::Result<()> {
        replace(&self.0.join("hello"), &serde_json::to_vec(hello)?)
    }
}

/// A run's sign of life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Workers obey the run of the highest.
    pub epoch: u64,
    /// Grows while the run lives.
    pub beat: u64,
    /// The host of the run.
    pub host: String,
    /// The process of the run.
    pub pid: u32,
    /// Whether it goes on.
    pub state: LeaseState,
}

/// Whether a run goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeaseState {
    /// It does.
    Running,
    /// It is over, and its workers have to end.
    Ended,
}

/// Replaces a file, so that a reader finds the old or the new text.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.{}", std::process::id()));
    let mut file = fs_err::File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    drop(file);
    fs_err::rename(&temporary, path)
}

/// Appends lines to a file that no one else writes.
pub(super) struct Appender(fs_err::File);

impl Appender {
    pub fn open(path: &Path) -> std::io::Result<Self> {
        Ok(Self(fs_err::OpenOptions::new().create(true).append(true).open(path)?))
    }

    pub fn append(&mut self, line: &impl Serialize) -> std::io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        self.0.write_all(&text)
    }

    /// Puts all lines where another host can read them.
    pub fn sync(&self) -> std::io::Result<()> {
        self.0.sync_data()
    }
}

/// Follows the lines of a file that another process appends.
pub(super) struct Follower<T> {
    path: PathBuf,
    offset: u64,
    /// The beginning of a line whose end was not there yet.
    rest: Vec<u8>,
    lines: PhantomData<T>,
}

impl<T: DeserializeOwned> Follower<T> {
    pub fn new(path: PathBuf) -> Self {
        Self { path, offset: 0, rest: Vec::new(), lines: PhantomData }
    }

    /// The whole lines since the last call; none where there is no file yet. It is opened each time: network file systems look
    /// for news when a file is opened.
    pub fn read(&mut self) -> std::io::Result<Vec<T>> {
        let mut file = match fs_err::File::open(&self.path) {
            Err(error) if is_absent(&error) => return Ok(Vec::new()),
            file => file?,
        };
        file.seek(SeekFrom::Start(self.offset))?;
        let read = file.read_to_end(&mut self.rest)?;
        self.offset += read as u64;
        let Some(end) = self.rest.iter().rposition(|byte| *byte == b'\n') else { return Ok(Vec::new()) };
        let whole: Vec<u8> = self.rest.drain(..=end).collect();
        let lines = whole.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| Ok(serde_json::from_slice(line)?)).collect()
    }
}

/// Whether a file is not there, or not yet, or no longer under this name on another host.
pub(super) fn is_absent(error: &std::io::Error) -> bool {
    error.kind() == ErrorKind::NotFound || error.kind() == ErrorKind::StaleNetworkFileHandle
}

/// Retries what another host has just made.
pub(super) fn visible<T>(mut read: impl FnMut() -> std::io::Result<T>) -> std::io::Result<T> {
    const VISIBLE: Duration = Duration::from_secs(120);
    let (begun, mut pause) = (Instant::now(), Pause::new(1.0));
    loop {
        match read() {
            Err(error) if is_absent(&error) && begun.elapsed() < VISIBLE => pause.wait(),
            result => return result,
        }
    }
}

/// Grows from a short pause to the longest while nothing happens.
pub(super) struct Pause {
    shortest: Duration,
    longest: Duration,
    next: Duration,
}

impl Pause {
    pub fn new(longest: f64) -> Self {
        Self::from(Duration::from_millis(5), longest)
    }

    /// With another shortest pause.
    pub fn from(shortest: Duration, longest: f64) -> Self {
        Self { shortest, longest: Duration::from_secs_f64(longest), next: shortest }
    }

    /// Something happened: soon there may be more.
    pub fn reset(&mut self) {
        self.next = self.shortest;
    }

    pub fn wait(&mut self) {
        std::thread::sleep(self.step());
    }

    /// The next pause: a twentieth of the time since something happened.
    pub fn step(&mut self) -> Duration {
        let now = self.next.min(self.longest);
        self.next = (self.next * 21 / 20).min(self.longest);
        now
    }
}

/// Notes when something last changed, by this host's clock: those of two hosts are never compared.
pub(super) struct Seen<T> {
    last: Option<T>,
    at: Instant,
}

impl<T: PartialEq> Seen<T> {
    pub fn new() -> Self {
        Self { last: None, at: Instant::now() }
    }

    /// Takes a look; returns how long it has been the same.
    pub fn look(&mut self, now: T) -> Duration {
        if self.last.as_ref() != Some(&now) {
            (self.last, self.at) = (Some(now), Instant::now());
        }
        self.at.elapsed()
    }
}

/// What a task wrote, put where another host can read it.
pub(super) fn listing(folder: &Path) -> std::io::Result<Listing> {
    let names = names(folder).map_err(std::io::Error::other)?;
    let shared = is_network(folder);
    let listed = names.into_iter().map(|path| {
        let file: PathBuf = folder.join(&path);
        if shared {
            fs_err::File::open(&file)?.sync_all()?;
        }
        let size = fs_err::metadata(&file)?.len();
        Ok(Listed { size, digest: Digest::of_file(&file)?, path })
    });
    Ok(Listing(listed.collect::<std::io::Result<_>>()?))
}
