//! Working folders: one per run, and in it one per attempt.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Area, Result, Store};
use crate::identity::regular_file;
use crate::identity::shared_fs;

/// What marks the folder as a cache: for backup programs, and for Git.
const MARKS: [(Area, &str); 2] = [
    (
        Area::CacheTag,
        "Signature: 8a477f597d28d172789f06886806bc55\n# attrflow's cache: safe to delete, costly to rebuild\n",
    ),
    (Area::GitIgnore, "*\n!.gitignore\n"),
];

/// The working folder of one run; the lock tells other runs that it is in use.
///
/// No two runs share a folder, and no two attempts a name, so a worker that outlives its run cannot touch the files of a later
/// one.
pub struct Scratch {
    folder: PathBuf,
    lock_path: PathBuf,
    _lock: fs_err::File,
    count: AtomicU64,
}

/// How the names of temporary files of earlier versions begin.
const WRITE: &str = "write-";

impl Store {
    /// A path for a temporary file, which is swept if its writer dies before renaming it.
    pub(super) fn temp_path(&self) -> Result<PathBuf> {
        let mut temporary = self.temporary.lock().expect("no panic under this lock");
        let scratch = match &mut *temporary {
            Some(scratch) => scratch,
            none => none.insert(self.scratch()?),
        };
        Ok(scratch.next())
    }

    /// Makes the working folder of a run, and removes those of dead runs.
    ///
    /// # Errors
    /// A folder that cannot be made.
    pub fn scratch(&self) -> Result<Scratch> {
        let tmp = self.area(Area::Tmp);
        shared_fs::create_dir_all(&tmp)?;
        for (area, text) in MARKS {
            let mark = self.area(area);
            if !shared_fs::exists(&mark) {
                shared_fs::write(&mark, text)?;
            }
        }
        let gate = gate(&tmp)?;
        gate.file().lock()?;
        sweep(&tmp)?;
        // One process may make several within a tick of the clock.
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let now = jiff::Timestamp::now().as_nanosecond();
        let name = format!("{}-{now:x}-{count}", std::process::id());
        let lock_path = tmp.join(format!("{name}.lock"));
        let lock = fs_err::File::create(&lock_path)?;
        lock.file().lock()?;
        let folder = tmp.join(name);
        shared_fs::create_own_dir(&folder)?;
        Ok(Scratch { folder, lock_path, _lock: lock, count: AtomicU64::new(0) })
    }
}

/// Held while a lock file is made and locked: a sweep in between would take it for a dead run's.
fn gate(tmp: &Path) -> Result<fs_err::File> {
    Ok(regular_file::lock_file(tmp.join("gate"))?)
}

/// Removes the files and folders whose lock nobody holds.
fn sweep(tmp: &Path) -> Result<()> {
    for entry in shared_fs::read_dir(tmp)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if !name.ends_with(".lock") && !name.starts_with(WRITE) {
            continue;
        }
        // A run that ends at this moment removes its own. NFS gives a lock for oneself only on a file that one may write.
        let opened = shared_fs::again(|| fs_err::OpenOptions::new().read(true).write(true).open(&path));
        let Ok(lock) = opened else { continue };
        if lock.file().try_lock().is_ok() {
            let folder = path.with_extension("");
            if shared_fs::is_dir(&folder) {
                // If an orphan still writes there, the next sweep removes it.
                if shared_fs::remove_dir_all(&folder).is_err() {
                    continue;
                }
            }
            let _ = shared_fs::remove_file(&path);
        }
    }
    Ok(())
}

impl Scratch {
    /// A new path.
    fn next(&self) -> PathBuf {
        self.folder.join(self.count.fetch_add(1, Ordering::Relaxed).to_string())
    }

    /// A new empty folder.
    ///
    /// # Errors
    /// A folder that cannot be made.
    pub fn attempt(&self) -> Result<Attempt> {
        let folder = self.next();
        shared_fs::create_own_dir(&folder)?;
        Ok(Attempt { folder })
    }

    /// Renames an attempt's folder for another attempt, if only small files are left in it, such as outputs that the store had
    /// already, and the empty folders of the names that it `leaves`. The files are removed with the run.
    ///
    /// Some file systems make new files the slower, the more were removed just before.
    pub fn recycle(&self, attempt: Attempt, leaves: &[&str]) -> Option<Attempt> {
        for entry in shared_fs::read_dir(&attempt.folder).ok()? {
            let path = entry.ok()?.path();
            let found = shared_fs::symlink_metadata(&path).ok()?;
            let name = path.file_name().and_then(|name| name.to_str())?;
            let usable = found.is_dir() && found.permissions().mode() & 0o700 == 0o700;
            if usable && leaves.contains(&name) && shared_fs::read_dir(&path).ok()?.next().is_none() {
                continue;
            }
            let small = found.is_file() && found.len() <= SMALL;
            if !small || shared_fs::rename(&path, self.next()).is_err() {
                return None;
            }
        }
        let folder = self.next();
        shared_fs::rename(&attempt.folder, &folder).ok()?;
        Some(Attempt { folder })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Best effort: the next run sweeps what is left.
        let _ = shared_fs::remove_dir_all(&self.folder);
        let _ = shared_fs::remove_file(&self.lock_path);
    }
}

/// The folder of one attempt at a unit; what is left in it is removed with it, at the latest with the run.
pub struct Attempt {
    folder: PathBuf,
}

impl Attempt {
    /// The folder.
    pub fn path(&self) -> &Path {
        &self.folder
    }
}

/// Files up to this size may wait until the end of the run to be removed.
const SMALL: u64 = 64 << 10;

impl Drop for Attempt {
    fn drop(&mut self) {
        // Empty folders and links are left until the run ends, see above.
        if holds_files(&self.folder) {
            let _ = shared_fs::remove_dir_all(&self.folder);
        }
    }
}

/// Whether there is anything below a folder but folders and links.
fn holds_files(folder: &Path) -> bool {
    shared_fs::read_dir(folder).into_iter().flatten().flatten().any(|entry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => holds_files(&entry.path()),
        Ok(kind) => !kind.is_symlink(),
        Err(_) => true,
    })
}
