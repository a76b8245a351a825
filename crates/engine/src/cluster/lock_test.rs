//! Whether a lock that a run holds is refused on a node, in both ways that the store locks.

use std::path::Path;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

/// Locks a file until it is closed.
///
/// # Errors
/// A file that cannot be made.
pub(super) fn hold(path: &Path) -> std::io::Result<fs_err::File> {
    let file = fs_err::File::create(path)?;
    // Where it cannot be locked, no worker is refused, and the run hears of that.
    let _ = lock_range(&file);
    let _ = file.file().try_lock();
    Ok(file)
}

/// Whether both locks of a file are refused here; `None` where it cannot be tried.
pub(super) fn is_refused(path: &Path) -> Option<bool> {
    let open = || fs_err::OpenOptions::new().read(true).write(true).open(path).ok();
    let by_range = lock_range(&open()?).is_err();
    Some(by_range && open()?.file().try_lock().is_err())
}

/// Locks the first byte of a file, for its opening alone.
fn lock_range(file: &fs_err::File) -> nix::Result<i32> {
    let first = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 1,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_SETLK(&first))
}
