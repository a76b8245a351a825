//! The runs of a cache on a cluster: those that go on, and those that are over.

use std::path::Path;
use std::time::{Duration, Instant};

use super::folder::{Lease, LeaseState, RunFolder, Seen};
use crate::kind::Device;
use crate::worker::protocol::Facts;

/// The runs below a folder, newest first.
///
/// # Errors
/// A folder that cannot be read.
pub fn list(folder: &Path) -> std::io::Result<Vec<RunFolder>> {
    let entries = match fs_err::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut runs = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            runs.push((entry.metadata()?.modified()?, RunFolder::at(entry.path())));
        }
    }
    runs.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.name().cmp(&b.1.name())));
    Ok(runs.into_iter().map(|(_, run)| run).collect())
}

/// A name for a new run of a pipeline.
pub fn new_name(pipeline: &str) -> String {
    let now = jiff::Timestamp::now();
    let digits = u32::from_le_bytes(
        *blake3::hash(format!("{now} {}", std::process::id()).as_bytes())
            .as_bytes()
            .first_chunk()
            .expect("32 bytes"),
    );
    format!("{pipeline}-{}-{:04x}", now.strftime("%Y%m%dT%H%M%S"), digits & 0xffff)
}

/// Whether a run's process gives signs of life; `waiting` is told when that takes some time to find out.
///
/// Of a process of this host the system knows; of another host's, only a change of its lease can tell.
pub fn is_alive(folder: &RunFolder, lease: &Lease, mut waiting: impl FnMut(&str, Duration)) -> bool {
    if lease.state == LeaseState::Ended {
        return false;
    }
    let waits = folder.config().map(|config| config.waits).unwrap_or_default();
    if lease.host == Facts::of_machine("", Device::Cpu).host && is_process(lease.pid) {
        return is_locked(folder);
    }
    if lease.host == Facts::of_machine("", Device::Cpu).host {
        return false;
    }
    let longest = Duration::from_secs_f64(waits.lease);
    waiting(&folder.name(), longest);
    let (mut seen, begun) = (Seen::new(), Instant::now());
    seen.look((lease.epoch, lease.beat));
    while begun.elapsed() < longest {
        std::thread::sleep(Duration::from_secs_f64(waits.poll));
        match folder.lease() {
            Ok(now) if now.state == LeaseState::Ended => return false,
            Ok(now) if (now.epoch, now.beat) != (lease.epoch, lease.beat) => return true,
            _ => {}
        }
    }
    false
}

fn is_process(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// Whether the run's process holds its lock: its number may be another process's now.
fn is_locked(folder: &RunFolder) -> bool {
    let file = fs_err::OpenOptions::new().read(true).write(true).open(folder.lock_test());
    file.is_ok_and(|file| file.file().try_lock().is_err())
}
