//! `attrflow self-check`: computes a tiny project and holds every number against those of the Python originals.

mod checks;
mod numbers;
mod program;
mod project;

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args as ClapArgs;
use serde::Serialize;
use serde_json::json;

use super::device::devices;
use super::failure::Failure;
use super::project::backend;
use crate::io::words::count;
use crate::progress::{duration, line, print};
use attrflow_engine::kind::Device;
use attrflow_engine::worker::Backend as _;
use checks::Checks;
use program::Program;

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    attrflow self-check\n  \
    attrflow self-check --device cpu --json")]
pub(super) struct Args {
    /// Where to compute: auto, cpu, cuda, or a list such as cuda:0,cuda:1. The CPU is checked in any case
    #[arg(long, default_value = "auto")]
    device: String,
    /// Work in this new or empty folder and keep it: the project, its cache and its results
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Write one JSON object
    #[arg(long)]
    json: bool,
}

/// What was checked.
#[derive(Debug, Serialize)]
struct Check {
    name: String,
    passed: bool,
    /// What was found, and, if that is wrong, what was expected.
    found: String,
}

pub(super) fn self_check(args: &Args) -> Result<(), Failure> {
    let begun = Instant::now();
    let devices = devices(&args.device, backend(Vec::new())?.device_class())?;
    let gpu = (devices[0] != Device::Cpu).then_some(args.device.as_str());
    // Before there is a folder that a signal could leave behind.
    let program = Program::watch()?;
    let folder = Folder::new(args.keep.as_deref())?;
    let say = |check: &Check| {
        if !args.json {
            print(&line(&text(check)));
        }
    };
    let mut checks = Checks::new(&program, folder.path()?, &say);
    let ended = checks.all(gpu);
    // Not one that was interrupted.
    if let Err(failure @ Failure::Interrupted(_)) = ended {
        return Err(failure);
    }
    let (done, seconds) = (checks.done, begun.elapsed().as_secs_f64());
    let failed = done.iter().filter(|check| !check.passed).count();
    if args.json {
        let all = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "commit": env!("ATTRFLOW_COMMIT"),
            "device": if gpu.is_some() { "cuda" } else { "cpu" },
            "passed": failed == 0 && ended.is_ok(),
            "seconds": seconds,
            "checks": done,
        });
        print(&format!("{all}\n"));
    }
    ended?;
    if failed > 0 {
        let hint = if args.keep.is_some() { "" } else { "; --keep DIR keeps the project for a look" };
        let checks = count(done.len(), "check", "checks");
        return Err(Failure::Refused(format!("{failed} of {checks} failed{hint}")));
    }
    if !args.json {
        let checks = count(done.len(), "check", "checks");
        print(&format!("{checks} passed in {}\n", duration(seconds)));
    }
    Ok(())
}

/// A check in a line.
fn text(check: &Check) -> String {
    let word = if check.passed { "ok" } else { "FAILED" };
    format!("{:<23}  {word:<6}  {}", check.name, check.found)
}

/// The folder of the project.
enum Folder {
    Temporary(tempfile::TempDir),
    Kept(PathBuf),
}

impl Folder {
    fn new(keep: Option<&Path>) -> Result<Self, Failure> {
        let Some(folder) = keep else {
            let made = tempfile::Builder::new().prefix("attrflow-self-check-").tempdir();
            return made.map(Self::Temporary).map_err(|error| {
                let place = std::env::temp_dir();
                Failure::Refused(format!(
                    "no temporary folder could be made in {}: {error}; set TMPDIR to a folder that can be written",
                    place.display()
                ))
            });
        };
        let refused = |error: std::io::Error| Failure::Refused(error.to_string());
        fs_err::create_dir_all(folder).map_err(refused)?;
        if fs_err::read_dir(folder).map_err(refused)?.next().is_some() {
            return Err(Failure::Refused(format!("{} is not empty; nothing was written", folder.display())));
        }
        Ok(Self::Kept(folder.to_owned()))
    }

    /// Its absolute path, for programs that work in it.
    fn path(&self) -> Result<PathBuf, Failure> {
        let path = match self {
            Self::Temporary(folder) => folder.path(),
            Self::Kept(folder) => folder,
        };
        fs_err::canonicalize(path).map_err(|error| Failure::Refused(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_was_found() {
        let check = |passed, found: &str| text(&Check { name: "losses".into(), passed, found: found.into() });
        assert_eq!(check(true, "largest error 1e-7"), "losses                   ok      largest error 1e-7");
        assert_eq!(
            check(false, "value 3 is 2, expected 1"),
            "losses                   FAILED  value 3 is 2, expected 1"
        );
    }
}
