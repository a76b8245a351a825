//! `self-check`: from an installed program with no project beside it, interrupted, and without libtorch.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::project::{Ran, command, files};

const CHECKS: [&str; 15] = [
    "libtorch",
    "pipeline",
    "latents",
    "text embeddings",
    "drawing",
    "losses",
    "Fisher information",
    "unlearned weights",
    "unlearned losses",
    "influence",
    "ranks",
    "ranking",
    "second run",
    "a flipped byte",
    "the run after it",
];
const LAST: &str = "two workers";

/// The program in a folder of its own, with a space in its path, and an empty folder for temporary files.
struct Installed {
    folder: TempDir,
}

impl Installed {
    fn new() -> Self {
        // Of the target's file system, where links can be made.
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let installed = Self { folder };
        for place in ["the bin", "the tmp"] {
            fs_err::create_dir(installed.path(place)).unwrap();
        }
        fs_err::hard_link(env!("CARGO_BIN_EXE_attrflow"), installed.path("the bin/attrflow")).unwrap();
        installed
    }

    fn with_worker() -> Self {
        let installed = Self::new();
        let worker = installed.path("the bin/attrflow-worker");
        fs_err::hard_link(env!("CARGO_BIN_EXE_attrflow-worker"), worker).unwrap();
        installed
    }

    fn path(&self, below: &str) -> PathBuf {
        self.folder.path().join(below)
    }

    /// The program in a folder where nobody can write, without a home.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = command(&self.path("the bin/attrflow"), Path::new("/proc"));
        command.args(arguments).env_remove("HOME").env("TMPDIR", self.path("the tmp"));
        command
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        self.command(arguments).output().unwrap().into()
    }

    fn assert_nothing_left(&self) {
        let left: Vec<String> = files(&self.path("the tmp")).into_keys().collect();
        assert_eq!(left, [""; 0]);
        assert!(fs_err::read_dir(self.path("the tmp")).unwrap().next().is_none());
    }
}

#[test]
fn an_installed_program_passes_anywhere() {
    let installed = Installed::with_worker();
    let mut check = installed.command(&["self-check", "--device", "cpu", "--json"]);
    // Settings of whoever runs it change nothing.
    let ran =
        Ran::from(check.env("ATTRFLOW_CACHE", "/proc/none").env("ATTRFLOW_LOG", "off").output().unwrap());
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    let [report] = ran.json().try_into().unwrap();
    assert_eq!((&report["passed"], &report["device"]), (&true.into(), &"cpu".into()), "{report}");
    let checks = report["checks"].as_array().unwrap();
    let names: Vec<&str> = checks.iter().map(|check| check["name"].as_str().unwrap()).collect();
    assert_eq!(names, [&CHECKS[..], &[LAST]].concat());
    assert!(checks.iter().all(|check| check["passed"] == true), "{report}");
    installed.assert_nothing_left();
}

#[test]
fn a_kept_project_is_an_ordinary_one() {
    let installed = Installed::with_worker();
    let kept = installed.path("kept");
    let ran = installed.run(&["self-check", "--device", "cpu", "--keep", kept.to_str().unwrap()]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    let lines: Vec<&str> = ran.out.lines().collect();
    assert_eq!(lines.len(), CHECKS.len() + 2, "{}", ran.out);
    for (line, name) in lines.iter().zip(CHECKS.iter().chain([&LAST])) {
        assert!(line.starts_with(&format!("{name:<23}  ok  ")), "{line}");
    }
    assert!(lines[lines.len() - 1].starts_with("16 checks passed in "), "{}", ran.out);
    let pipeline = kept.join("pipelines/self-check.toml");
    let ran = installed.run(&["status", pipeline.to_str().unwrap(), "--device", "cpu"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(kept.join("results/self-check/ranking/top.png").is_file());
    let ran = installed.run(&["self-check", "--keep", kept.to_str().unwrap()]);
    let message = format!("error: {} is not empty; nothing was written\n", kept.display());
    assert_eq!((ran.code, ran.err), (1, message));
}

#[test]
fn an_interrupted_check_leaves_nothing() {
    let installed = Installed::with_worker();
    for (signal, code) in [("INT", 130), ("TERM", 143)] {
        let mut check = installed.command(&["self-check", "--device", "cpu"]);
        let mut child = check.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.next().unwrap().unwrap().starts_with("libtorch"));
        // The pipeline runs when the project is there.
        let runs = || files(&installed.path("the tmp")).keys().any(|file| file.contains("/cache/"));
        while !runs() {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let id = child.id().to_string();
        assert!(Command::new("kill").args([&format!("-{signal}"), &id]).status().unwrap().success());
        assert_eq!(child.wait().unwrap().code(), Some(code), "{signal}");
        installed.assert_nothing_left();
    }
}

#[test]
fn without_libtorch_it_says_what_doctor_says() {
    let installed = Installed::new();
    let both = || {
        let [doctor, check] = [&["doctor"][..], &["self-check", "--json"]].map(|verb| installed.run(verb));
        assert_eq!((doctor.code, check.code), (1, 1), "{doctor:?} {check:?}");
        assert_eq!(check.err, doctor.err);
        check
    };
    assert!(both().err.contains("the worker program is missing"));
    let worker = installed.path("the bin/attrflow-worker");
    fs_err::write(&worker, "#!/bin/sh\necho libtorch_cpu.so: cannot open shared object file >&2\nexit 127\n")
        .unwrap();
    fs_err::set_permissions(&worker, PermissionsExt::from_mode(0o755)).unwrap();
    let ran = both();
    assert!(ran.err.contains("libtorch_cpu.so: cannot open shared object file"), "{ran:?}");
    let report = &ran.json()[0];
    assert_eq!(report["passed"], false);
    assert_eq!(report["checks"][0]["name"], "libtorch");
    installed.assert_nothing_left();
}
