//! A clock that jumps: the program's own is moved, while the file system keeps the time that it has.

use std::path::{Path, PathBuf};
use std::process::Command;

use attrflow_engine::provenance::manifest;

use crate::project::{Project, Ran, command};

/// Moves the wall clock of a process by `CLOCK_JUMP` seconds.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = syscall(SYS_clock_gettime, clock, now);
    const char *jump = getenv("CLOCK_JUMP");
    if (result == 0 && jump && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += atol(jump);
    return result;
}
"#;

const YEAR: i64 = 365 * 24 * 3600;

fn shim(folder: &Path) -> PathBuf {
    let (source, library) = (folder.join("clock.c"), folder.join("clock.so"));
    fs_err::write(&source, SHIM).unwrap();
    let built =
        Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).status().unwrap();
    assert!(built.success());
    library
}

fn run(project: &Project, shim: &Path, jump: i64, arguments: &[&str]) -> Ran {
    let mut program = command(Path::new(env!("CARGO_BIN_EXE_attrflow")), &project.root);
    program.env("LD_PRELOAD", shim).env("CLOCK_JUMP", jump.to_string());
    program.args(["run", "pipelines/demo.toml", "--json"]).args(arguments).output().unwrap().into()
}

#[test]
fn a_clock_that_jumps_hides_no_change_and_computes_nothing_twice() {
    let whole = Project::finished();
    let project = Project::new(6);
    let shim = shim(project.root.parent().unwrap());
    let ran = run(&project, &shim, -10 * YEAR, &[]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    assert_eq!(project.results(), whole.results());
    let begun = |project: &Project| {
        let path = manifest::list(&project.path("cache/runs/demo")).remove(0);
        manifest::read(&path).unwrap().started
    };
    assert!(begun(&project).as_str() < "2025", "the clock did not move: {}", begun(&project));
    for jump in [0, 20 * YEAR, -20 * YEAR, 1, -1] {
        let ran = run(&project, &shim, jump, &[]);
        assert_eq!((ran.code, ran.computed().len()), (0, 0), "{jump}: {ran:?}");
    }
    // A source that changes without a change of its size, between any two clocks.
    let captions = "data/demo/captions.json";
    for (jump, from, to) in [(20 * YEAR, "face", "mace"), (-20 * YEAR, "mace", "lace"), (0, "lace", "face")] {
        project.edit(captions, from, to);
        let ran = run(&project, &shim, jump, &["--target", "latents"]);
        assert!(
            ran.code == 0 && ran.computed().contains(&"data".to_owned()) != (jump == 0),
            "{jump}: {ran:?}"
        );
    }
    // The last run is the last one, whatever time it thought it was.
    run(&project, &shim, -30 * YEAR, &["--target", "data"]);
    assert!(begun(&project).as_str() < "2000", "{}", begun(&project));
    let ran = run(&project, &shim, 0, &[]);
    assert_eq!((ran.code, ran.computed().len()), (0, 0), "{ran:?}");
    assert_eq!(project.results(), whole.results());
}
