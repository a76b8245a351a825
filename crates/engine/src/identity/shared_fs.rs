//! File operations as a network file system answers them.
//!
//! Another host may have replaced a file that is open here: the answer is ESTALE, and asking again gives the new one. A request
//! may be repeated on its way, so that the second finds nothing to do: what was asked for is then there. `tests/engine/file_system.rs`
//! tries each operation of the store under these answers.

use std::fs::{Metadata, Permissions};
use std::io::{ErrorKind, Result};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

/// Asks again where a file was replaced meanwhile.
///
/// # Errors
/// Those of the operation, ESTALE only if it stays.
pub fn again<T>(mut operation: impl FnMut() -> Result<T>) -> Result<T> {
    const PAUSES: [u64; 6] = [1, 5, 20, 100, 300, 1000];
    for pause in PAUSES {
        match operation() {
            Err(error) if is_stale(&error) => std::thread::sleep(Duration::from_millis(pause)),
            result => return result,
        }
    }
    operation()
}

/// Whether a file was replaced by another host.
pub fn is_stale(error: &std::io::Error) -> bool {
    error.kind() == ErrorKind::StaleNetworkFileHandle
}

/// [`fs_err::metadata`]
///
/// # Errors
/// As there.
pub fn metadata(path: impl AsRef<Path>) -> Result<Metadata> {
    again(|| fs_err::metadata(path.as_ref()))
}

/// [`fs_err::symlink_metadata`]
///
/// # Errors
/// As there.
pub fn symlink_metadata(path: impl AsRef<Path>) -> Result<Metadata> {
    again(|| fs_err::symlink_metadata(path.as_ref()))
}

/// Whether there is anything; a link counts by its target.
pub fn exists(path: impl AsRef<Path>) -> bool {
    metadata(path).is_ok()
}

/// Whether there is a folder.
pub fn is_dir(path: impl AsRef<Path>) -> bool {
    metadata(path).is_ok_and(|found| found.is_dir())
}

/// [`fs_err::read_dir`]
///
/// # Errors
/// As there.
pub fn read_dir(path: impl AsRef<Path>) -> Result<fs_err::ReadDir> {
    again(|| fs_err::read_dir(path.as_ref()))
}

/// [`fs_err::write`]
///
/// # Errors
/// As there.
pub fn write(path: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> Result<()> {
    again(|| fs_err::write(path.as_ref(), bytes.as_ref()))
}

/// [`fs_err::File::open`]
///
/// # Errors
/// As there.
pub fn open(path: impl AsRef<Path>) -> Result<fs_err::File> {
    again(|| fs_err::File::open(path.as_ref()))
}

/// [`fs_err::create_dir_all`]; a folder that is there already is as good.
///
/// # Errors
/// As there.
pub fn create_dir_all(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    again(|| match fs_err::create_dir_all(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        result => result,
    })
}

/// Makes a folder of a name that nobody else uses: if it is there, this request was repeated.
///
/// # Errors
/// As [`fs_err::create_dir`].
pub fn create_own_dir(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    again(|| match fs_err::create_dir(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        result => result,
    })
}

/// [`fs_err::rename`]; where the source is gone and the target is there, it was done.
///
/// # Errors
/// As there.
pub fn rename(from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
    let (from, to) = (from.as_ref(), to.as_ref());
    again(|| match fs_err::rename(from, to) {
        Err(error) if is_repeated(&error) && is_gone(from) && fs_err::symlink_metadata(to).is_ok() => Ok(()),
        result => result,
    })
}

/// [`fs_err::hard_link`]; a link that is there already and leads to the same file is as good.
///
/// # Errors
/// As there.
pub fn hard_link(from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
    let (from, to) = (from.as_ref(), to.as_ref());
    again(|| match fs_err::hard_link(from, to) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists && is_same_file(from, to) => Ok(()),
        result => result,
    })
}

fn is_same_file(one: &Path, other: &Path) -> bool {
    let number = |path| fs_err::symlink_metadata(path).map(|found| (found.dev(), found.ino()));
    matches!((number(one), number(other)), (Ok(one), Ok(other)) if one == other)
}

/// What the second of two equal requests is answered.
fn is_repeated(error: &std::io::Error) -> bool {
    [ErrorKind::NotFound, ErrorKind::AlreadyExists, ErrorKind::DirectoryNotEmpty].contains(&error.kind())
}

fn is_gone(path: &Path) -> bool {
    fs_err::symlink_metadata(path).is_err_and(|error| error.kind() == ErrorKind::NotFound)
}

/// [`fs_err::set_permissions`]
///
/// # Errors
/// As there.
pub fn set_permissions(path: impl AsRef<Path>, permissions: &Permissions) -> Result<()> {
    again(|| fs_err::set_permissions(path.as_ref(), permissions.clone()))
}

/// [`fs_err::remove_file`]
///
/// # Errors
/// As there.
pub fn remove_file(path: impl AsRef<Path>) -> Result<()> {
    again(|| fs_err::remove_file(path.as_ref()))
}

/// [`fs_err::remove_dir_all`]
///
/// # Errors
/// As there.
pub fn remove_dir_all(path: impl AsRef<Path>) -> Result<()> {
    again(|| fs_err::remove_dir_all(path.as_ref()))
}
