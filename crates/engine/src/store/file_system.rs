//! Which file systems other hosts may write to: there, device numbers differ between hosts, and clocks may.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::identity::shared_fs;

/// The types of file systems of one machine, as the kernel names them.
const LOCAL: [&str; 15] = [
    "bcachefs", "btrfs", "erofs", "exfat", "ext2", "ext3", "ext4", "f2fs", "jfs", "overlay", "ramfs",
    "squashfs", "tmpfs", "xfs", "zfs",
];

/// Says that all files are on a file system that other hosts share (`1`), or that none is (`0`), where the kernel does not tell:
/// in a container, or behind a mount of one machine.
const SETTING: &str = "ATTRFLOW_SHARED_FILE_SYSTEM";

/// Whether a file or folder is on a file system that other hosts may share.
pub fn is_network(path: &Path) -> bool {
    shared_fs::metadata(path).is_ok_and(|found| is_shared(found.dev()))
}

/// Whether the file system of a device number may be shared by other hosts; one that is not known counts as local.
pub(super) fn is_shared(device: u64) -> bool {
    static SET: OnceLock<Option<bool>> = OnceLock::new();
    let set = SET.get_or_init(|| match std::env::var(SETTING).as_deref() {
        Ok("1") => Some(true),
        Ok("0") => Some(false),
        _ => None,
    });
    if let Some(set) = set {
        return *set;
    }
    static KNOWN: Mutex<Option<HashMap<u64, bool>>> = Mutex::new(None);
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let known = known.get_or_insert_with(HashMap::new);
    *known.entry(device).or_insert_with(|| {
        let mounts = fs_err::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        mounts.lines().find_map(|line| kind_of(line, device)).is_some_and(|kind| !LOCAL.contains(&kind))
    })
}

/// The type of file system in a line of `/proc/self/mountinfo`, if it is that of a device.
fn kind_of(line: &str, device: u64) -> Option<&str> {
    let numbers = line.split(' ').nth(2)?.split_once(':')?;
    let (major, minor) = (numbers.0.parse().ok()?, numbers.1.parse().ok()?);
    (rustix::fs::makedev(major, minor) == device)
        .then(|| line.split_once(" - ")?.1.split(' ').next())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_type_follows_the_dash() {
        let line = "36 35 0:52 / /home rw,relatime shared:1 - nfs4 server:/home rw,vers=4.2";
        assert_eq!(kind_of(line, rustix::fs::makedev(0, 52)), Some("nfs4"));
        assert_eq!(kind_of(line, rustix::fs::makedev(0, 53)), None);
    }
}
