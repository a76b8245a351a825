//! `attrflow.lock`: the digests of remote files at their first download.
//!
//! One entry per line, sorted, so that changes are easy to read under version control.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::Permissions;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::file_lock::FileLock;

/// The pinned content of a remote file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pin {
    /// SHA-256 in hexadecimal.
    pub sha256: String,
    /// Size.
    pub bytes: u64,
}

/// The contents of a lock file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pins {
    /// The format's version; 0 for a new file.
    #[serde(default)]
    pub version: u32,
    /// Commits by `datasets/OWNER/REPO@REVISION`.
    #[serde(default)]
    pub hub: BTreeMap<String, String>,
    /// Files by address.
    #[serde(default)]
    pub files: BTreeMap<String, Pin>,
}

const VERSION: u32 = 1;
const HEAD: &str = "# Written by attrflow: digests of remote files at their first download.\n\
                    # To accept the current content of an address, remove its line; run with --force STAGE if the old content is cached.\n";

/// Why a lock file cannot be used or updated.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// The operating system refused; fs-err puts the path into the message.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Not a valid lock file.
    #[error("{}: {reason}", path.display())]
    Damaged {
        /// The lock file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Another run pinned other content in the meantime.
    #[error("{}: `{address}`: another run has just pinned sha256 {pinned}, this run downloaded {found}", path.display())]
    Conflict {
        /// The lock file.
        path: PathBuf,
        /// The address.
        address: String,
        /// The digest in the file.
        pinned: String,
        /// The digest of this run.
        found: String,
    },
}

impl PinError {
    /// Whether this user may not write the lock file.
    pub fn is_read_only(&self) -> bool {
        use io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
        matches!(self, PinError::Io(error) if matches!(error.kind(), PermissionDenied | ReadOnlyFilesystem))
    }
}

impl Pins {
    /// Reads a lock file; a missing one is empty.
    ///
    /// # Errors
    /// The file cannot be read, or is not a valid lock file.
    pub fn read(path: &Path) -> Result<Self, PinError> {
        // Reading a FIFO would wait for ever.
        if fs_err::metadata(path).is_ok_and(|found| !found.is_file()) {
            return Err(PinError::Damaged { path: path.into(), reason: "it is no regular file".into() });
        }
        let text = match fs_err::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(error.into()),
        };
        let damaged = |reason: String| PinError::Damaged { path: path.into(), reason };
        let pins: Self = toml::from_str(&text).map_err(|error| damaged(error.to_string()))?;
        if !text.is_empty() && pins.version != VERSION {
            return Err(damaged(format!("`version` is {}, expected {VERSION}", pins.version)));
        }
        Ok(pins)
    }

    /// The pinned commit of a repository; if there is none, pins `found`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn commit(path: &Path, repo: &str, found: &str) -> Result<String, PinError> {
        let _lock = FileLock::exclusive(path)?;
        let mut pins = Self::read(path)?;
        if let Some(commit) = pins.hub.get(repo) {
            return Ok(commit.clone());
        }
        pins.hub.insert(repo.to_owned(), found.to_owned());
        pins.write(path)?;
        Ok(found.to_owned())
    }

    /// Adds these pins to a lock file, and writes it if it changed. A commit that another run pinned first is kept.
    ///
    /// # Errors
    /// The file cannot be written, or an address is pinned with another digest.
    pub fn add_to(self, path: &Path) -> Result<(), PinError> {
        if self.hub.is_empty() && self.files.is_empty() {
            return Ok(());
        }
        let _lock = FileLock::exclusive(path)?;
        let before = Self::read(path)?;
        let mut pins = before.clone();
        for (repo, commit) in self.hub {
            pins.hub.entry(repo).or_insert(commit);
        }
        for (address, pin) in self.files {
            let pinned = pins.files.entry(address.clone()).or_insert_with(|| pin.clone());
            if *pinned != pin {
                let (pinned, found) = (pinned.sha256.clone(), pin.sha256);
                return Err(PinError::Conflict { path: path.into(), address, pinned, found });
            }
        }
        if pins != before {
            pins.write(path)?;
        }
        Ok(())
    }

    /// Replaces the lock file, which must be locked.
    fn write(&self, path: &Path) -> io::Result<()> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        // The umask decides who may read it: it is meant to be shared.
        let mut file = tempfile::Builder::new()
            .prefix(".attrflow.lock-")
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(folder.unwrap_or(Path::new(".")))?;
        file.write_all(self.text().as_bytes())?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        Ok(())
    }

    fn text(&self) -> String {
        let quoted = |text: &str| toml::Value::from(text).to_string();
        let mut out = format!("{HEAD}version = {VERSION}\n");
        // Writing to a String cannot fail.
        if !self.hub.is_empty() {
            out.push_str("\n[hub]\n");
            for (repo, commit) in &self.hub {
                let _ = writeln!(out, "{} = {}", quoted(repo), quoted(commit));
            }
        }
        if !self.files.is_empty() {
            out.push_str("\n[files]\n");
            for (address, Pin { sha256, bytes }) in &self.files {
                let _ =
                    writeln!(out, "{} = {{ sha256 = {}, bytes = {bytes} }}", quoted(address), quoted(sha256));
            }
        }
        out
    }
}

/// The location of an entry for messages: `attrflow.lock:7`.
pub fn place(path: &Path, key: &str) -> String {
    let text = fs_err::read_to_string(path).unwrap_or_default();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let start = toml::Value::from(key).to_string();
    match text.lines().position(|line| line.trim_start().starts_with(&start)) {
        Some(line) => format!("{name}:{}", line + 1),
        None => name.into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pins(files: &[(&str, &str)]) -> Pins {
        let pin = |sha256: &str| Pin { sha256: sha256.into(), bytes: 3 };
        let files = files.iter().map(|(address, sha256)| ((*address).to_owned(), pin(sha256))).collect();
        Pins { files, ..Pins::default() }
    }

    #[test]
    fn entries_are_added_sorted_and_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("attrflow.lock");
        Pins::default().add_to(&path).unwrap();
        assert!(!path.exists());
        pins(&[("https://z.example/\"f\"", "ff")]).add_to(&path).unwrap();
        let mut more = pins(&[("https://a.example/f", "aa")]);
        more.hub.insert("datasets/o/r@main".into(), "c0".into());
        more.clone().add_to(&path).unwrap();
        let text = fs_err::read_to_string(&path).unwrap();
        let expected = format!(
            "{HEAD}version = 1\n\n[hub]\n\"datasets/o/r@main\" = \"c0\"\n\n[files]\n\
             \"https://a.example/f\" = {{ sha256 = \"aa\", bytes = 3 }}\n\
             'https://z.example/\"f\"' = {{ sha256 = \"ff\", bytes = 3 }}\n"
        );
        assert_eq!(text, expected);
        assert_eq!(place(&path, "https://a.example/f"), "attrflow.lock:9");
        assert_eq!(place(&path, "https://b.example/f"), "attrflow.lock");
        more.hub.insert("datasets/o/r@main".into(), "c1".into());
        more.add_to(&path).unwrap();
        assert_eq!(Pins::commit(&path, "datasets/o/r@main", "c1").unwrap(), "c0");
        assert_eq!(fs_err::read_to_string(&path).unwrap(), text, "the first commit stays");
        let error = pins(&[("https://a.example/f", "bb")]).add_to(&path).unwrap_err().to_string();
        assert!(error.contains("another run has just pinned sha256 aa, this run downloaded bb"), "{error}");
        assert_eq!(fs_err::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_invalid_lock_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("attrflow.lock");
        for (text, reason) in [
            ("version = 2\n", "`version` is 2, expected 1"),
            ("[files]\n", "`version` is 0"),
            ("version = 1\n[other]\n", "unknown field `other`"),
            ("<<<<<<< HEAD\n", "attrflow.lock"),
        ] {
            fs_err::write(&path, text).unwrap();
            let error = Pins::read(&path).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn a_read_only_lock_file_is_recognised() {
        let of = |kind: io::ErrorKind| PinError::Io(kind.into()).is_read_only();
        assert!(of(io::ErrorKind::ReadOnlyFilesystem) && of(io::ErrorKind::PermissionDenied));
        assert!(!of(io::ErrorKind::StorageFull));
    }

    #[test]
    fn concurrent_runs_agree_on_one_commit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("attrflow.lock");
        let commit = |index: usize| Pins::commit(&path, "datasets/o/r@main", &format!("c{index}")).unwrap();
        let commits: Vec<String> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..16).map(|index| scope.spawn(move || commit(index))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let pinned = Pins::read(&path).unwrap().hub.remove("datasets/o/r@main").unwrap();
        assert_eq!(commits, [pinned.as_str(); 16]);
    }

    #[test]
    fn concurrent_runs_lose_no_entry() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("attrflow.lock");
        std::thread::scope(|scope| {
            for index in 0..16 {
                let path = &path;
                scope.spawn(move || {
                    pins(&[(&format!("https://a.example/{index}"), "aa")]).add_to(path).unwrap()
                });
            }
        });
        assert_eq!(Pins::read(&path).unwrap().files.len(), 16);
    }
}
