//! Files on their way: each is hashed as it goes, and appears whole or not at all.

use std::fs::Permissions;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};

use futures_util::TryStreamExt;
use object_store::path::Path as ObjectPath;
use object_store::{MultipartUpload, ObjectStoreExt, PutPayload};

use super::{Remote, RemoteError, Result};
use crate::identity::digest::Digest;
use crate::identity::{regular_file, shared_fs};

/// The size of an upload part; S3 requires at least 5 MiB.
const PIECE: usize = 8 << 20;

/// A file to send.
pub(crate) struct Sent {
    pub digest: Digest,
    pub path: PathBuf,
    pub size: u64,
}

/// The digest of a file with these bytes, executable if that is the expected one.
fn named(hash: blake3::Hash, expected: &Digest) -> Digest {
    let executable = Digest::of_bytes(hash, true);
    if executable == *expected { executable } else { hash.into() }
}

/// Uploads and hashes a file; it appears on the remote only if it matches its digest. Otherwise returns what is wrong.
pub(crate) async fn upload(remote: &Remote, to: &ObjectPath, file: &Sent) -> Result<Option<String>> {
    /// A file that another host replaced meanwhile is sent from its beginning.
    const TRIES: usize = 5;
    for _ in 1..TRIES {
        match upload_once(remote, to, file).await {
            Err(RemoteError::Io(error)) if shared_fs::is_stale(&error) => {}
            result => return result,
        }
    }
    upload_once(remote, to, file).await
}

async fn upload_once(remote: &Remote, to: &ObjectPath, file: &Sent) -> Result<Option<String>> {
    let fault = |what: String| Ok(Some(format!("{}: {what}", file.path.display())));
    let mut reader = match regular_file::open(&file.path) {
        Ok(reader) => reader,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return fault("it is missing".into()),
        Err(error) => return Err(error.into()),
    };
    let mut hasher = blake3::Hasher::new();
    let first = piece(&mut reader)?;
    hasher.update(&first);
    if first.len() < PIECE {
        let found = named(hasher.finalize(), &file.digest);
        if found != file.digest {
            return fault(format!("it is damaged: found {found}, expected {}", file.digest));
        }
        remote.write(to, first).await?;
        return Ok(None);
    }
    let mut upload = remote.store.put_multipart(to).await.map_err(|error| remote.describe(error))?;
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

/// Downloads and hashes a file; returns what is wrong with it, if anything.
pub(crate) async fn fetch(
    remote: &Remote,
    path: &ObjectPath,
    digest: &Digest,
    size: u64,
    to: &Path,
    tell: &dyn Fn(u64),
) -> Result<Option<String>> {
    let found = match remote.store.get(path).await {
        Ok(found) => found,
        Err(object_store::Error::NotFound { .. }) => return Ok(Some(format!("{path} is missing"))),
        Err(error) => return Err(remote.describe(error)),
    };
    if found.meta.size != size {
        return Ok(Some(format!("{path} has {} bytes, expected {size}", found.meta.size)));
    }
    if let Some(folder) = to.parent() {
        shared_fs::create_dir_all(folder)?;
    }
    let mut file = fs_err::File::create_new(to)?;
    let mut hasher = blake3::Hasher::new();
    let mut bytes = found.into_stream();
    while let Some(piece) = bytes.try_next().await.map_err(|error| remote.describe(error))? {
        hasher.update(&piece);
        file.write_all(&piece)?;
        tell(piece.len() as u64);
    }
    let found = hasher.finalize();
    if Digest::of_bytes(found, true) == *digest {
        fs_err::set_permissions(to, Permissions::from_mode(0o555))?;
        return Ok(None);
    }
    let found = Digest::from(found);
    Ok((found != *digest).then(|| format!("{path} is damaged: its digest is {found}")))
}

/// Whether a path stays below its folder.
pub(crate) fn is_plain(path: &Path) -> bool {
    let mut parts = path.components().peekable();
    parts.peek().is_some() && parts.all(|part| matches!(part, Component::Normal(_)))
}
