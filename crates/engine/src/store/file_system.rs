//! Which file systems other hosts may write to.

use std::path::Path;

/// The numbers of file systems of one machine, as `statfs(2)` lists them: ext, XFS, Btrfs, ZFS, F2FS, tmpfs, ramfs, overlay.
const LOCAL: [i64; 9] = [
    0xEF53,
    0x5846_5342,
    0x9123_683E,
    0x2FC1_2FC1,
    0xF2F5_2010,
    0x0102_1994,
    0x8584_58F6,
    0x794C_7630,
    0x5265_4973,
];

/// Whether a file or folder may be on a file system that other hosts share: all that is not known to be of one machine.
pub fn is_network(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|found| !LOCAL.contains(&(found.f_type & 0xFFFF_FFFF)))
}
