//! A folder or an S3 bucket that others can reach: where it is, what its errors mean, and files by their digests.
//!
//! ```text
//! attrflow-v1/objects/ab/ab12…            the bytes of a file; of a folder, those of its files
//! attrflow-v1/listings/ab/ab12….json      the files of a folder
//! attrflow-v1/recipes-v2/ab/ab34….json    what a fingerprint gave
//! attrflow-v1/runs/PIPELINE/TIME.json     manifests
//! attrflow-v1/cluster/RUN/                a run on a cluster without a common file system
//! ```
//! Every name is derived from the content, so two writers never conflict. Objects go before entries, entries before
//! manifests, and each appears completely or not at all: objects of an interrupted push need not be sent again.

#[cfg_attr(not(feature = "s3"), path = "no_buckets.rs")]
mod credentials;
mod transfer;

use std::path::Path as FilePath;
use std::sync::Arc;

use futures_util::TryStreamExt;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

use crate::identity::digest::Digest;
use crate::identity::shared_fs;
use crate::store::{Area, StoreError};

pub(crate) use transfer::{Sent, fetch, is_plain, upload};

/// Version of the format, part of the folder's name.
const FORMAT: u32 = 1;
/// Maximum parallel transfers.
pub(crate) const AT_ONCE: usize = 16;

/// Why a transfer failed.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// The address is not a known kind of remote.
    #[error("`{address}` is not a remote: {reason}; expected a folder, file:///FOLDER or s3://BUCKET/PREFIX")]
    Address {
        /// As given.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A build without buckets.
    #[error("{address}: this program was built without S3; `make build` builds it with S3")]
    NoBuckets {
        /// As given.
        address: String,
    },
    /// The keys are missing, wrong, or lack a permission.
    #[error("{address} refuses the keys, or they lack the permission: {error}")]
    Keys {
        /// As given.
        address: String,
        /// The error of the server.
        error: String,
    },
    /// The bucket does not exist.
    #[error("{address}: no such bucket at this endpoint: {error}")]
    Bucket {
        /// As given.
        address: String,
        /// The error of the server.
        error: String,
    },
    /// The remote cannot be reached.
    #[error("{address} cannot be reached{endpoint}: {error}")]
    Unreachable {
        /// As given.
        address: String,
        /// ` at ENDPOINT`, where one was set.
        endpoint: String,
        /// The error.
        error: String,
    },
    /// The remote has another format.
    #[error("{address} contains {found}, which this version does not read: expected attrflow-v{FORMAT}")]
    Form {
        /// As given.
        address: String,
        /// The folder that was found.
        found: String,
    },
    /// The requested item is not there.
    #[error("{address} has {what}")]
    Missing {
        /// As given.
        address: String,
        /// What is missing, and what is there instead.
        what: String,
    },
    /// Any other error of the remote.
    #[error("{address}: {error}")]
    Failed {
        /// As given.
        address: String,
        /// The error.
        error: String,
    },
    /// The cache could not be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file of this machine could not be read or written.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

pub(crate) type Result<T> = std::result::Result<T, RemoteError>;

/// The progress of a transfer: bytes done, and total bytes.
pub type Progress<'a> = &'a dyn Fn(u64, u64);

/// A remote: results are pushed to it and pulled from it.
pub struct Remote {
    address: String,
    store: Arc<dyn ObjectStore>,
    root: Path,
    /// Keeps connections between transfers.
    runtime: tokio::runtime::Runtime,
}

impl Remote {
    /// Opens the remote at an address; `make` allows a folder to be created.
    ///
    /// # Errors
    /// An invalid address; the remote is not contacted yet.
    pub fn open(address: &str, make: bool) -> Result<Self> {
        let fault = |reason: String| RemoteError::Address { address: address.to_owned(), reason };
        let (store, prefix): (Arc<dyn ObjectStore>, &str) = match address.split_once("://") {
            Some(("s3", rest)) => {
                let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
                if bucket.is_empty() {
                    return Err(fault("it names no bucket".into()));
                }
                (credentials::bucket_of(address, bucket)?, prefix)
            }
            Some(("file", path)) if path.starts_with('/') => (Arc::new(folder(address, path, make)?), ""),
            Some((scheme, _)) => return Err(fault(format!("unknown scheme `{scheme}`"))),
            None if address.is_empty() => return Err(fault("it is empty".into())),
            None => (Arc::new(folder(address, address, make)?), ""),
        };
        let prefix = Path::parse(prefix.trim_matches('/')).map_err(|error| fault(error.to_string()))?;
        let root = prefix.join(format!("attrflow-v{FORMAT}"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { address: address.to_owned(), store, root, runtime })
    }

    /// Runs a transfer to completion on this thread.
    pub(crate) fn block_on<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        self.runtime.block_on(work)
    }

    pub(crate) fn object(&self, digest: &Digest) -> Path {
        self.named(Area::Objects.name(), digest, "")
    }

    pub(crate) fn listing(&self, digest: &Digest) -> Path {
        self.named("listings", digest, ".json")
    }

    pub(crate) fn recipes(&self) -> Path {
        self.root.clone().join(Area::Recipes.name())
    }

    pub(crate) fn entry(&self, fingerprint: &Digest) -> Path {
        self.named(Area::Recipes.name(), fingerprint, ".json")
    }

    /// The folder of runs on a cluster whose nodes share no file system.
    pub(crate) fn cluster(&self) -> Path {
        self.root.clone().join(Area::Cluster.name())
    }

    pub(crate) fn all_runs(&self) -> Path {
        self.root.clone().join(Area::Runs.name())
    }

    pub(crate) fn runs(&self, pipeline: &str) -> Path {
        self.all_runs().join(pipeline.to_owned())
    }

    fn named(&self, folder: &str, digest: &Digest, ending: &str) -> Path {
        let name = digest.to_string();
        self.root.clone().join(folder).join(name[..2].to_owned()).join(format!("{name}{ending}"))
    }

    /// Refuses a remote with unsupported formats only, and one that does not answer, before any work is done.
    pub(crate) async fn greet(&self) -> Result<()> {
        let above = Path::from_iter(self.root.parts().take(self.root.parts_count() - 1));
        let above = Some(above).filter(|above| above.parts_count() > 0);
        let found = self.store.list_with_delimiter(above.as_ref()).await.map_err(|e| self.describe(e))?;
        let names = found.common_prefixes.iter().filter_map(|path| path.filename());
        let forms: Vec<&str> = names.filter(|name| name.starts_with("attrflow-v")).collect();
        let own = format!("attrflow-v{FORMAT}");
        match forms.iter().max() {
            Some(found) if !forms.contains(&own.as_str()) => {
                Err(RemoteError::Form { address: self.address.clone(), found: (*found).to_owned() })
            }
            _ => Ok(()),
        }
    }

    /// The bytes at a path, `None` if it does not exist.
    pub(crate) async fn read(&self, path: &Path) -> Result<Option<Vec<u8>>> {
        match self.store.get(path).await {
            Ok(found) => Ok(Some(found.bytes().await.map_err(|error| self.describe(error))?.to_vec())),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.describe(error)),
        }
    }

    /// The size of the file at a path, `None` if it does not exist.
    pub(crate) async fn size(&self, path: &Path) -> Result<Option<u64>> {
        match self.store.head(path).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.describe(error)),
        }
    }

    pub(crate) async fn write(&self, path: &Path, bytes: Vec<u8>) -> Result<()> {
        self.store.put(path, bytes.into()).await.map_err(|error| self.describe(error))?;
        Ok(())
    }

    /// The paths below a folder, sorted.
    pub(crate) async fn names(&self, folder: &Path) -> Result<Vec<Path>> {
        let listed = self.store.list(Some(folder)).map_ok(|meta| meta.location);
        let mut paths: Vec<Path> = listed.try_collect().await.map_err(|error| self.describe(error))?;
        paths.sort();
        Ok(paths)
    }

    /// The folders and files right below a folder.
    pub(crate) async fn children(&self, folder: &Path) -> Result<Vec<Path>> {
        let found =
            self.store.list_with_delimiter(Some(folder)).await.map_err(|error| self.describe(error))?;
        let files = found.objects.into_iter().map(|meta| meta.location);
        Ok(found.common_prefixes.into_iter().chain(files).collect())
    }

    pub(crate) async fn remove(&self, path: &Path) -> Result<()> {
        match self.store.delete(path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.describe(error)),
        }
    }

    pub(crate) fn missing(&self, what: String) -> RemoteError {
        RemoteError::Missing { address: self.address.clone(), what }
    }

    /// Translates an error of the library for the user of the address.
    fn describe(&self, error: object_store::Error) -> RemoteError {
        use object_store::Error as E;
        let address = self.address.clone();
        let text = error.to_string();
        let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
        let refused = ["InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "403 Forbidden"];
        match error {
            E::PermissionDenied { .. } | E::Unauthenticated { .. } => {
                RemoteError::Keys { address, error: text }
            }
            _ if has(&["NoSuchBucket"]) => RemoteError::Bucket { address, error: text },
            _ if has(&refused) => RemoteError::Keys { address, error: text },
            E::Generic { .. } if has(&["error sending request", "HTTP error", "onnect"]) => {
                let set = credentials::endpoint().map(|endpoint| format!(" at {endpoint}"));
                RemoteError::Unreachable { address, endpoint: set.unwrap_or_default(), error: text }
            }
            _ => RemoteError::Failed { address, error: text },
        }
    }
}

/// A local folder, or one of a mounted file system.
fn folder(address: &str, path: &str, make: bool) -> Result<LocalFileSystem> {
    let path = FilePath::new(path);
    if make {
        shared_fs::create_dir_all(path)?;
    } else if !shared_fs::is_dir(path) {
        let reason = "no such folder".to_owned();
        return Err(RemoteError::Address { address: address.to_owned(), reason });
    }
    let store = LocalFileSystem::new_with_prefix(path)
        .map_err(|error| RemoteError::Failed { address: address.to_owned(), error: error.to_string() })?;
    // Files must be durable once they have their name, also after a power cut.
    Ok(store.with_fsync(true))
}
