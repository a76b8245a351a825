//! Digests: they identify the bytes of an artifact.

use std::fmt;
use std::fs::Metadata;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::regular_file::special;
use super::shared_fs;

/// The BLAKE3 hash of a file's bytes, of a folder's listing, or of a recipe.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// Hashes a file, in parallel where it is large.
    ///
    /// # Errors
    /// The file cannot be read, or is none: a FIFO or a device has no end.
    pub fn of_file(path: &Path) -> std::io::Result<Self> {
        Self::of_found(path, &shared_fs::metadata(path)?)
    }

    /// The same of a file that was looked at a moment ago.
    ///
    /// # Errors
    /// As [`Digest::of_file`].
    pub fn of_found(path: &Path, found: &Metadata) -> std::io::Result<Self> {
        /// Smaller files are not mapped.
        const SMALL: u64 = 16 << 10;
        if let Some(what) = special(found.file_type()) {
            let message = format!("{}: found {what}, expected a file or folder", path.display());
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, message));
        }
        let hash = shared_fs::again(|| {
            let mut hasher = blake3::Hasher::new();
            match found.len() < SMALL {
                true => hasher.update_reader(fs_err::File::open(path)?)?,
                false => hasher.update_mmap_rayon(path).map_err(|error| named(&error, path))?,
            };
            Ok(hasher.finalize())
        });
        Ok(Self::of_bytes(hash?, is_executable(found)))
    }

    /// The digest of a file with these bytes.
    ///
    /// A program and the same bytes without the permission to run them are two contents, as for git and Nix.
    pub fn of_bytes(hash: blake3::Hash, executable: bool) -> Self {
        if !executable {
            return hash.into();
        }
        let mut hasher = blake3::Hasher::new_derive_key("attrflow executable file v1");
        hasher.update(hash.as_bytes()).finalize().into()
    }

    /// The first eight hexadecimal digits, for people.
    pub fn short(&self) -> String {
        self.to_string()[..8].to_owned()
    }
}

/// Whether the owner of a file may execute it.
pub fn is_executable(found: &Metadata) -> bool {
    found.permissions().mode() & 0o100 != 0
}

fn named(error: &std::io::Error, path: &Path) -> std::io::Error {
    std::io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

impl From<blake3::Hash> for Digest {
    fn from(hash: blake3::Hash) -> Self {
        Self(*hash.as_bytes())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(blake3::Hash::from_bytes(self.0).to_hex().as_str())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for Digest {
    type Err = String;
    /// One spelling alone: a digest is a name of files, and equal ones must be equal texts.
    fn from_str(text: &str) -> Result<Self, String> {
        let lower = !text.bytes().any(|byte| byte.is_ascii_uppercase());
        let digest = blake3::Hash::from_hex(text).ok().filter(|_| lower).map(Self::from);
        digest
            .ok_or_else(|| format!("`{text}` is not a digest: expected 64 hexadecimal digits in lower case"))
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl TryFrom<String> for Digest {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// The files of a folder: relative path with `/`, size in bytes, digest; sorted by path.
///
/// Empty folders are not listed, nor stored: a folder is its files. A symbolic link is listed as the file that it points to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Listing(pub Vec<Listed>);

/// One file of a [`Listing`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Path below the folder.
    pub path: String,
    /// Size in bytes.
    pub size: u64,
    /// Digest of the bytes.
    pub digest: Digest,
}

impl Listing {
    /// The digest of the folder.
    pub fn digest(&self) -> Digest {
        let mut hasher = blake3::Hasher::new_derive_key("attrflow folder listing v1");
        for file in &self.0 {
            hasher.update(&(file.path.len() as u64).to_le_bytes());
            hasher.update(file.path.as_bytes());
            hasher.update(&file.digest.0);
        }
        hasher.finalize().into()
    }

    /// Total bytes of all files.
    pub fn size(&self) -> u64 {
        self.0.iter().map(|file| file.size).sum()
    }

    /// The names in the folder where the path `sub` leads to nothing: `a/b.txt` is there, say, in the place of `a/c.txt`.
    pub fn near(&self, sub: &str) -> Vec<&str> {
        let mut folder = sub;
        loop {
            folder = folder.rfind('/').map_or("", |end| &folder[..end]);
            let start = if folder.is_empty() { 0 } else { folder.len() + 1 };
            let below = self.0.iter().map(|file| file.path.as_str()).filter(|path| {
                start == 0 || path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
            });
            let mut names: Vec<&str> = below
                .map(|path| &path[..path[start..].find('/').map_or(path.len(), |end| start + end)])
                .collect();
            names.dedup();
            if !names.is_empty() || start == 0 {
                return names;
            }
        }
    }

    /// The digest of the file or folder at `sub`, `None` if it does not exist.
    pub fn sub(&self, sub: &str) -> Option<Digest> {
        if let Some(file) = self.0.iter().find(|file| file.path == sub) {
            return Some(file.digest);
        }
        let prefix = format!("{sub}/");
        let below = self.0.iter().filter_map(|file| {
            let path = file.path.strip_prefix(&prefix)?.to_owned();
            Some(Listed { path, ..file.clone() })
        });
        let below = Self(below.collect());
        (!below.0.is_empty()).then(|| below.digest())
    }
}
