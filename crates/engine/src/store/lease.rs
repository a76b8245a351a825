//! Locks for a file system whose own are not respected by other hosts: files that are made by `link`, and kept by a sign of life.
//!
//! ```text
//! leases-v1/FINGERPRINT     a link to the name of the holder
//! leases-v1/holders/ID      the holder's sign of life: a number that grows
//! leases-v1/holders/ID.name its name
//! ```
//! A holder whose number has not changed for as long as the lease says, by this host's clock, is dead, and its leases are taken
//! away. Two hosts that take one for dead wrongly compute a unit twice, which is harmless.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Area, Result, Store};
use crate::identity::digest::Digest;
use crate::identity::{regular_file, shared_fs};

/// The leases of one process.
pub(super) struct Leases {
    folder: PathBuf,
    holder: String,
    longest: Duration,
    /// The numbers of other holders, and when they were first seen.
    seen: Mutex<HashMap<String, (String, Instant)>>,
    over: Arc<AtomicBool>,
    count: AtomicU64,
}

/// A fingerprint that is leased; given back when dropped.
pub(super) struct Lease(PathBuf);

impl Drop for Lease {
    fn drop(&mut self) {
        // One that stays is taken away when this process is dead.
        let _ = shared_fs::remove_file(&self.0);
    }
}

impl Leases {
    pub fn new(store: &Store, longest: Duration) -> Result<Self> {
        let folder = store.area(Area::Leases);
        let holders = folder.join("holders");
        shared_fs::create_dir_all(&holders)?;
        let now = jiff::Timestamp::now().as_nanosecond();
        let host = fs_err::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let holder = format!("{}-{}-{now:x}-{number}", host.trim(), std::process::id());
        shared_fs::write(holders.join(format!("{holder}.name")), &holder)?;
        let life = holders.join(&holder);
        shared_fs::write(&life, "0")?;
        let over = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&over);
        std::thread::spawn(move || {
            let mut beat = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                std::thread::sleep((longest / 8).min(Duration::from_millis(250)));
                beat += 1;
                // Silence costs this process its leases, and no result.
                let _ = shared_fs::write(&life, beat.to_string());
            }
            let _ = fs_err::remove_file(&life);
            let _ = fs_err::remove_file(life.with_file_name(format!("{}.name", name_of(&life))));
        });
        let seen = Mutex::default();
        Ok(Self { folder, holder, longest, seen, over, count: AtomicU64::new(0) })
    }

    /// Takes the lease of a fingerprint; `None` where a living holder has it.
    pub fn try_take(&self, fingerprint: &Digest) -> Result<Option<Lease>> {
        let path = self.folder.join(fingerprint.to_string());
        let name = self.folder.join("holders").join(format!("{}.name", self.holder));
        for _ in 0..2 {
            let error = match shared_fs::hard_link(&name, &path) {
                Ok(()) => return Ok(Some(Lease(path))),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => error,
                Err(error) => return Err(error.into()),
            };
            let Ok(holder) = regular_file::read_to_string(&path) else { continue };
            if !self.is_dead(&holder) {
                return Ok(None);
            }
            tracing::debug!("{error}: its holder {holder} is dead");
            self.evict(&path, &holder)?;
        }
        Ok(None)
    }

    /// Whether a holder gave no sign of life for too long.
    fn is_dead(&self, holder: &str) -> bool {
        let beat = regular_file::read_to_string(self.folder.join("holders").join(holder)).unwrap_or_default();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let (known, since) = seen.entry(holder.to_owned()).or_insert_with(|| (beat.clone(), Instant::now()));
        if *known != beat {
            (*known, *since) = (beat, Instant::now());
        }
        since.elapsed() > self.longest
    }

    /// Takes a lease away from a dead holder. Another host may have done so, and may hold it now: then it is put back.
    fn evict(&self, path: &Path, dead: &str) -> Result<()> {
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let aside = self.folder.join("holders").join(format!("{}.evicted.{number}", self.holder));
        match shared_fs::rename(path, &aside) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            result => result?,
        }
        if regular_file::read_to_string(&aside).is_ok_and(|holder| holder != dead) {
            let _ = shared_fs::hard_link(&aside, path);
        }
        Ok(shared_fs::remove_file(&aside)?)
    }
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

impl Drop for Leases {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

impl Store {
    /// Takes note of whether a lock of this host is respected by another. Where it is not, fingerprints are leased from now on, and
    /// gc refuses. Returns whether that is new.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn note_locks(&self, hold: bool, longest: Duration) -> Result<bool> {
        if self.locks_noted.set(hold).is_err() {
            return Ok(false);
        }
        let at = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ");
        self.write(&self.area(Area::LockTest), format!("{{\"hold\":{hold},\"at\":\"{at}\"}}\n").as_bytes())?;
        if !hold {
            let leases = Leases::new(self, longest)?;
            // The first word counts.
            let _ = self.leases.set(leases);
        }
        Ok(!hold)
    }

    /// Why it cannot be known that nobody else uses the cache, if so.
    #[must_use]
    pub fn lock_doubt(&self) -> Option<String> {
        let tested = regular_file::read_to_string(self.area(Area::LockTest)).ok();
        match tested {
            Some(text) if text.contains("\"hold\":false") => Some(
                "locks are not respected between hosts on this file system, as a run found".into(),
            ),
            None if super::is_network(&self.root) => Some(
                "the cache is on a file system that other hosts may share, and whether they respect its locks was never tested; \
                 `attrflow doctor --cluster` tests it"
                    .into(),
            ),
            _ => None,
        }
    }
}
