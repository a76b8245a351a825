//! Carries the messages of a run and its workers through a bucket, where they share no file system: on both sides they are files.

use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::bucket::Bucket;
use super::folder::{AttemptFolder, LeaseState, Pause, RunFolder, replace, visible};
use super::messages::RunConfig;
use crate::identity::regular_file;
use crate::remote::Result;

/// The shortest pause between two looks into a bucket: each costs money.
const SHORTEST: Duration = Duration::from_millis(50);

/// The lines of a file that is written here, on their way into objects.
struct Outgoing {
    file: PathBuf,
    name: String,
    read: u64,
    next: u64,
    /// An object that may have arrived: the same bytes are sent until that is known.
    pending: Vec<u8>,
}

impl Outgoing {
    fn new(file: PathBuf, name: String) -> Self {
        Self { file, name, read: 0, next: 0, pending: Vec::new() }
    }

    /// Sends the whole lines since the last call; returns whether there were any.
    fn send(&mut self, bucket: &Bucket) -> Result<bool> {
        if self.pending.is_empty() {
            let Ok(mut file) = fs_err::File::open(&self.file) else { return Ok(false) };
            file.seek(SeekFrom::Start(self.read))?;
            file.read_to_end(&mut self.pending)?;
            let whole = self.pending.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            self.pending.truncate(whole);
        }
        if self.pending.is_empty() {
            return Ok(false);
        }
        bucket.put(&numbered(&self.name, self.next), self.pending.clone())?;
        self.read += self.pending.len() as u64;
        self.next += 1;
        self.pending.clear();
        Ok(true)
    }
}

/// The lines of a file that is written on the other side.
struct Incoming {
    file: PathBuf,
    name: String,
    next: u64,
    /// How many objects are asked for at once.
    window: u64,
    /// When there was something.
    heard: Instant,
    looked: Option<Instant>,
}

impl Incoming {
    /// All of them, from the first: what an earlier process of this host brought may end in the middle of a line.
    fn new(file: PathBuf, name: String) -> Self {
        let _ = fs_err::remove_file(&file);
        Self { file, name, next: 0, window: 1, heard: Instant::now(), looked: None }
    }

    /// Whether to look: one that has been silent for long has likely ended.
    fn is_due(&self) -> bool {
        const QUIET: Duration = Duration::from_secs(900);
        const SELDOM: Duration = Duration::from_secs(60);
        self.heard.elapsed() < QUIET || self.looked.is_none_or(|looked| looked.elapsed() >= SELDOM)
    }

    /// The next objects: one, and more of them while there are many.
    fn wanted(&self) -> impl Iterator<Item = String> {
        (self.next..self.next + self.window).map(|number| numbered(&self.name, number))
    }

    /// Takes what was found of the objects that were wanted, to the first that is missing; returns whether there may be more.
    fn take(&mut self, found: impl Iterator<Item = Option<Vec<u8>>>) -> Result<bool> {
        const LARGEST: u64 = 64;
        let before = self.next;
        let mut file = None;
        for lines in found.map_while(|lines| lines) {
            let file = match &mut file {
                Some(file) => file,
                none => none.insert(fs_err::OpenOptions::new().create(true).append(true).open(&self.file)?),
            };
            file.write_all(&lines)?;
            self.next += 1;
            self.heard = Instant::now();
        }
        let all = self.next == before + self.window;
        self.window = if all { (2 * self.window).min(LARGEST) } else { 1 };
        Ok(all)
    }
}

fn numbered(name: &str, number: u64) -> String {
    format!("{name}/{number:08}")
}

/// The run's side.
pub struct RunCarrier {
    bucket: Arc<Bucket>,
    folder: RunFolder,
    epoch: u64,
    front: Vec<u8>,
    workers: BTreeMap<String, (Incoming, Outgoing)>,
    /// When new workers are looked for again.
    listed: Option<Instant>,
}

impl RunCarrier {
    /// Carries for the run of a folder with this configuration and epoch; none where the nodes share the folder.
    ///
    /// # Errors
    /// A bucket that does not answer.
    pub fn open(folder: &RunFolder, config: &RunConfig, epoch: u64) -> Result<Option<Self>> {
        let Some(store) = &config.store else { return Ok(None) };
        let bucket = Arc::new(Bucket::open(store, &folder.name())?);
        let (folder, front, workers) = (folder.clone(), Vec::new(), BTreeMap::new());
        Ok(Some(Self { bucket, folder, epoch, front, workers, listed: None }))
    }

    /// The run's part of the bucket.
    pub fn bucket(&self) -> &Arc<Bucket> {
        &self.bucket
    }

    /// Puts there what workers must know before they can begin.
    ///
    /// # Errors
    /// A bucket that cannot be used.
    pub(super) fn begin(&mut self) -> Result<()> {
        let mut config = self.folder.config()?;
        // Scripts may load keys, and no worker needs them.
        config.pools.values_mut().for_each(|pool| pool.script.clear());
        self.bucket.put("run.json", serde_json::to_vec(&config).map_err(std::io::Error::from)?)
    }

    /// Brings all that the workers said since the last call; returns whether there was anything.
    ///
    /// # Errors
    /// A bucket that cannot be read.
    pub fn bring(&mut self) -> Result<bool> {
        /// New workers are rare.
        const EVERY: Duration = Duration::from_secs(1);
        let mut news = false;
        if self.listed.is_none_or(|listed| listed.elapsed() >= EVERY) {
            for name in self.bucket.children("w")? {
                news |= !self.workers.contains_key(&name) && self.greet(&name)?;
            }
            self.listed = Some(Instant::now());
        }
        let due = self.workers.iter_mut().filter(|(_, (incoming, _))| incoming.is_due());
        let due = due.map(|(name, (incoming, _))| {
            incoming.looked = Some(Instant::now());
            name.clone()
        });
        let mut names: Vec<String> = due.collect();
        while !names.is_empty() {
            let wanted: Vec<Vec<String>> =
                names.iter().map(|name| self.workers[name].0.wanted().collect()).collect();
            let mut found = self.bucket.get_all(&wanted.concat())?.into_iter();
            let mut more = Vec::new();
            for (name, wanted) in names.into_iter().zip(wanted) {
                let found: Vec<_> = found.by_ref().take(wanted.len()).collect();
                let Some((incoming, _)) = self.workers.get_mut(&name) else { continue };
                news |= found.first().is_some_and(Option::is_some);
                if incoming.take(found.into_iter())? {
                    more.push(name);
                }
            }
            names = more;
        }
        Ok(news)
    }

    /// Takes note of a worker once it has said hello.
    fn greet(&mut self, name: &str) -> Result<bool> {
        let below = format!("w/{name}");
        let Some(hello) = self.bucket.get(&format!("{below}/hello"))? else { return Ok(false) };
        let attempt = AttemptFolder::at(self.folder.workers().join(name));
        fs_err::create_dir_all(attempt.path())?;
        let incoming = Incoming::new(attempt.outbox(), format!("{below}/out"));
        let outgoing = Outgoing::new(attempt.inbox(self.epoch), format!("{below}/in.{}", self.epoch));
        self.workers.insert(name.to_owned(), (incoming, outgoing));
        replace(&attempt.path().join("hello"), &hello)?;
        Ok(true)
    }

    fn send_front(&mut self) -> Result<bool> {
        let front = regular_file::read(self.folder.path().join("front"))?;
        let is_new = front != self.front;
        if is_new {
            self.bucket.put("front", front.clone())?;
            self.front = front;
        }
        Ok(is_new)
    }

    fn send(&mut self) -> Result<bool> {
        let mut news = self.send_front()?;
        for (_, outgoing) in self.workers.values_mut() {
            news |= outgoing.send(&self.bucket)?;
        }
        Ok(news)
    }

    /// Carries until the run is over. `brought` is told each time when there was no more news; `failed` gets the first of several
    /// failures in a row.
    pub(super) fn carry(
        &mut self,
        poll: f64,
        over: impl Fn() -> bool,
        brought: impl Fn(),
        mut failed: impl FnMut(String),
    ) {
        let look = |_| {
            let news = self.send()? | self.bring()?;
            brought();
            Ok(news)
        };
        carry(poll, over, look, &mut failed);
    }

    /// Brings the logs of workers that ended, and removes the messages from the bucket.
    pub(super) fn end(&mut self) -> Result<()> {
        for name in self.bucket.children("log")? {
            if let Some(text) = self.bucket.get(&format!("log/{name}"))? {
                fs_err::write(self.folder.log().join(name), text)?;
            }
        }
        self.bucket.clear()
    }
}

/// A worker's side, in a folder of its own.
pub(super) struct NodeCarrier<'a> {
    bucket: &'a Bucket,
    folder: &'a RunFolder,
    front: Vec<u8>,
    epoch: u64,
    worker: Option<(AttemptFolder, Incoming, Outgoing)>,
}

impl<'a> NodeCarrier<'a> {
    /// Brings what a worker must know before it can begin.
    pub fn begin(bucket: &'a Bucket, folder: &'a RunFolder) -> Result<Self> {
        fs_err::create_dir_all(folder.workers())?;
        let mut carrier = Self { bucket, folder, front: Vec::new(), epoch: 0, worker: None };
        carrier.bring()?;
        if folder.lease().is_ok_and(|lease| lease.state == LeaseState::Ended) {
            return Err(std::io::Error::other("the run is over").into());
        }
        let absent = || std::io::Error::new(std::io::ErrorKind::NotFound, "the bucket has no such run");
        let config = visible(|| match bucket.get("run.json") {
            Ok(found) => found.ok_or_else(absent),
            Err(error) => Err(std::io::Error::other(error)),
        })?;
        fs_err::write(folder.path().join("run.json"), config)?;
        carrier.bring()?;
        Ok(carrier)
    }

    fn bring(&mut self) -> Result<bool> {
        let front = self.bucket.get("front")?.filter(|front| *front != self.front);
        let mut news = front.is_some();
        if let Some(front) = front {
            replace(&self.folder.path().join("front"), &front)?;
            self.front = front;
        }
        let Some((attempt, incoming, _)) = &mut self.worker else { return Ok(news) };
        let epoch = self.folder.lease().map_or(self.epoch, |lease| lease.epoch);
        if epoch != self.epoch {
            self.epoch = epoch;
            *incoming = Incoming::new(attempt.inbox(epoch), format!("w/{}/in.{epoch}", attempt.name()));
        }
        loop {
            let found = self.bucket.get_all(&incoming.wanted().collect::<Vec<_>>())?;
            news |= found[0].is_some();
            if !incoming.take(found.into_iter())? {
                return Ok(news);
            }
        }
    }

    fn send(&mut self) -> Result<bool> {
        if self.worker.is_none() {
            let attempts = fs_err::read_dir(self.folder.workers())?;
            let attempt = attempts.flatten().map(|entry| AttemptFolder::at(entry.path())).next();
            let hello = attempt
                .and_then(|attempt| Some((regular_file::read(attempt.path().join("hello")).ok()?, attempt)));
            let Some((hello, attempt)) = hello else { return Ok(false) };
            let below = format!("w/{}", attempt.name());
            self.bucket.put(&format!("{below}/hello"), hello)?;
            self.epoch = self.folder.lease().map_or(0, |lease| lease.epoch);
            let incoming = Incoming::new(attempt.inbox(self.epoch), format!("{below}/in.{}", self.epoch));
            let outgoing = Outgoing::new(attempt.outbox(), format!("{below}/out"));
            self.worker = Some((attempt, incoming, outgoing));
        }
        self.worker.as_mut().map_or(Ok(false), |(_, _, outgoing)| outgoing.send(self.bucket))
    }

    /// Carries until the worker ended, and what it said last has arrived.
    pub fn carry(&mut self, poll: f64, over: &AtomicBool) {
        let look = |last| match last {
            // One call sends all that was written.
            true => self.send(),
            false => Ok(self.send()? | self.bring()?),
        };
        carry(poll, || over.load(Ordering::Relaxed), look, &mut |error| tracing::warn!("{error}"));
    }

    /// Puts the log of this worker there.
    pub fn send_log(&self, log: &Path) {
        const MOST: usize = 1 << 20;
        let Ok(text) = regular_file::read(log) else { return };
        let name = log.file_name().unwrap_or_default().to_string_lossy();
        // Without it, the run is the same.
        if self.bucket.put(&format!("log/{name}"), text[text.len().saturating_sub(MOST)..].to_vec()).is_ok() {
            let _ = fs_err::remove_file(log);
        }
    }
}

/// Looks again and again until it is over, and once more then; while nothing happens, ever less often. What failed is tried
/// again.
fn carry(
    poll: f64,
    over: impl Fn() -> bool,
    mut look: impl FnMut(bool) -> Result<bool>,
    failed: &mut dyn FnMut(String),
) {
    /// A bucket that does not answer at the end holds nobody up for longer.
    const LAST: usize = 3;
    let mut pause = Pause::from(SHORTEST, poll);
    let (mut told, mut lasts) = (false, 0);
    loop {
        let last = over();
        match look(last) {
            Ok(news) => {
                told = false;
                if news {
                    pause.reset();
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut told, true) {
                    failed(error.to_string());
                }
                if last && lasts < LAST {
                    lasts += 1;
                    std::thread::sleep(Duration::from_secs(1));
                    continue;
                }
            }
        }
        if last {
            return;
        }
        let next = Instant::now() + pause.step();
        while Instant::now() < next && !over() {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
