//! Runs that are killed at any moment: what was kept is right, and is not computed again.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::index_entries::{index, units};
use crate::project::{Project, Ran, command, files};

pub const IMAGES: usize = 20;

/// Starts a run and kills it when `now` says so; `false` where it had ended before.
fn killed(project: &Project, mut now: impl FnMut() -> bool) -> bool {
    let mut run = command(Path::new(env!("CARGO_BIN_EXE_attrflow")), &project.root);
    run.args(["run", "pipelines/demo.toml"]).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = run.spawn().unwrap();
    while !now() {
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{status}");
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    true
}

/// Processes that work in the project's folder: the runner and its workers.
pub fn at_work(project: &Project) -> Vec<PathBuf> {
    let root = fs_err::canonicalize(&project.root).unwrap();
    let processes = fs_err::read_dir("/proc").unwrap().filter_map(Result::ok).map(|process| process.path());
    processes.filter(|process| fs_err::read_link(process.join("cwd")).is_ok_and(|cwd| cwd == root)).collect()
}

pub fn wait_for_orphans(project: &Project) {
    let begun = Instant::now();
    while !at_work(project).is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(10), "a worker outlives its runner");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Units that are being computed, by the system's own list of locks.
pub fn locks(project: &Project) -> usize {
    let Ok(file) = fs_err::metadata(project.path("cache/units.lock")) else { return 0 };
    let list = fs_err::read_to_string("/proc/locks").unwrap();
    let of = format!(":{} ", file.ino());
    list.lines().filter(|line| line.contains(" OFDLCK ") && line.contains(&of)).count()
}

/// Brings the project to its end and compares it with one that nobody disturbed.
pub fn finish(project: &Project, undisturbed: &Project) {
    let before = index(project);
    let ran = project.run(&[]);
    let after = index(project);
    assert!(before.iter().all(|(name, bytes)| after.get(name) == Some(bytes)), "an entry was written again");
    assert_eq!(ran.events("unit_finished", "unit").len(), units(&after) - units(&before));
    assert!(after.keys().eq(index(undisturbed).keys()));
    assert_eq!(project.results(), undisturbed.results());
    assert_eq!(project.cached("tmp"), ["gate"]);
    wait_for_orphans(project);
}

pub fn undisturbed() -> Project {
    let project = Project::new(IMAGES);
    project.run(&[]);
    project
}

#[test]
fn a_run_killed_among_its_results_resumes() {
    let undisturbed = undisturbed();
    let all = index(&undisturbed).len();
    let project = Project::new(IMAGES);
    let mut kills = 0;
    for more in [0, 1, 2, 1, 3, 2, 5, 1, 4, 2, 3] {
        let before = index(&project);
        let entries =
            || files(&project.path("cache/recipes-v2")).keys().filter(|name| name.ends_with(".json")).count();
        // With nothing to wait for, the moment is that of the first lock.
        let now = || match more {
            0 => locks(&project) > 0,
            more => {
                let now = entries() >= before.len() + more;
                // Or there would be no orphan to wait for.
                assert!(!now || at_work(&project).len() >= 2, "{:?}", at_work(&project));
                now
            }
        };
        kills += usize::from(killed(&project, now));
        let after = index(&project);
        assert!(
            before.iter().all(|(name, bytes)| after.get(name) == Some(bytes)),
            "an entry was written again"
        );
        wait_for_orphans(&project);
    }
    assert!(kills >= 10 && index(&project).len() < all, "{kills} kills, {} of {all}", index(&project).len());
    finish(&project, &undisturbed);
}

#[test]
#[ignore = "kills for a minute and a half"]
fn a_run_killed_at_random_gives_the_results_of_a_clean_run() {
    let undisturbed = undisturbed();
    let mut seed = 20_240_607_u64;
    let mut kills = 0;
    for _ in 0..2 {
        let project = Project::new(IMAGES);
        for _ in 0..6 {
            // Knuth's generator; its high bits are good enough for delays of 20 to 1520 ms.
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let delay = Duration::from_millis(20 + (seed >> 33) % 1500);
            let begun = Instant::now();
            kills += usize::from(killed(&project, || begun.elapsed() >= delay));
            wait_for_orphans(&project);
        }
        finish(&project, &undisturbed);
    }
    assert!(kills >= 6, "{kills} kills");
}

/// Seconds of the units that a run computed; a unit that another run computed has none.
fn computed(ran: &Ran) -> usize {
    let events = ran.json().into_iter().filter(|line| line["event"] == "unit_finished");
    events.filter(|line| line["seconds"].as_f64().unwrap() > 0.0).count()
}

#[test]
fn two_runs_at_once_share_the_work() {
    let undisturbed = undisturbed();
    let project = Project::new(IMAGES);
    let start = || {
        let mut run = command(Path::new(env!("CARGO_BIN_EXE_attrflow")), &project.root);
        run.args(["run", "pipelines/demo.toml", "--json", "--jobs", "1"]);
        run.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let children = [start(), start()];
    let ran = children.map(|child| Ran::from(child.wait_with_output().unwrap()));
    for ran in &ran {
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    }
    assert_eq!(computed(&ran[0]) + computed(&ran[1]), units(&index(&project)));
    assert_eq!(project.results(), undisturbed.results());
    assert_eq!(project.cached("tmp"), ["gate"]);
}

#[test]
fn a_long_task_ends_when_its_run_is_killed() {
    let project = Project::finished();
    let mut run = command(Path::new(env!("CARGO_BIN_EXE_attrflow")), &project.root);
    // Minutes of computing, in one task.
    run.args(["run", "pipelines/demo.toml", "--json", "--set", "unlearn.grad_accum_steps=5000"]);
    let mut run = run.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(run.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("\"progress\"")));
    assert!(at_work(&project).len() >= 2);
    run.kill().unwrap();
    run.wait().unwrap();
    wait_for_orphans(&project);
}

#[test]
fn a_killed_worker_fails_only_its_stage() {
    let project = Project::new(6);
    let mut run = command(Path::new(env!("CARGO_BIN_EXE_attrflow")), &project.root);
    run.args(["run", "pipelines/demo.toml", "--jobs", "1", "--target", "latents"]);
    let run = run.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let worker = |process: &PathBuf| {
        fs_err::read_link(process.join("exe")).is_ok_and(|program| program.ends_with("attrflow-worker"))
    };
    // As the system does when memory runs out.
    let found = loop {
        match at_work(&project).into_iter().find(worker) {
            Some(process) => break process,
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    };
    let id = found.file_name().unwrap();
    assert!(Command::new("kill").arg("-9").arg(id).status().unwrap().success());
    let ran = Ran::from(run.wait_with_output().unwrap());
    assert_eq!(ran.code, 1, "{ran:?}");
    let errors: Vec<&str> = ran.err.lines().filter(|line| line.starts_with("error: ")).collect();
    assert!(errors.len() == 1 && errors[0].starts_with("error: stage `latents`"), "{ran:?}");
    let reason = "the worker process ended in the middle of the task (signal: 9 (SIGKILL): \
                  out of memory is the usual reason)";
    assert!(errors[0].ends_with(reason), "{ran:?}");
    // What another worker computed before is kept.
    assert_eq!(index(&project).len(), 1);
    assert_eq!(project.cached("tmp"), ["gate"]);
    assert_eq!(project.run(&["--target", "latents"]).computed(), ["latents"]);
}

#[test]
fn a_half_written_results_folder_is_cleaned() {
    let project = Project::finished();
    let before = project.results();
    project.write("results/demo/.attrflow-dead/old/array.npy", "x");
    fs_err::remove_file(project.result("ranking/grin/top.csv")).unwrap();
    project.run(&[]);
    assert_eq!(project.results(), before);
}
