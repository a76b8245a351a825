//! Runs that are killed at any moment: what was kept is right, and is not computed again.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value as Json;

use crate::project::{Project, command, files};

const IMAGES: usize = 20;

/// The index entries: what the bytes are tells whether an entry was written again, for they hold the seconds.
type Index = BTreeMap<String, Vec<u8>>;

fn index(project: &Project) -> Index {
    let files = files(&project.path("cache/recipes-v1")).into_iter();
    // A kill may leave the temporary file of an entry beside it.
    let entries = files.filter(|(name, _)| name.ends_with(".json"));
    entries.map(|(name, path)| (name, fs_err::read(path).unwrap())).collect()
}

fn units(index: &Index) -> usize {
    let entry = |bytes: &Vec<u8>| serde_json::from_slice::<Json>(bytes).unwrap();
    index.values().filter(|bytes| !entry(bytes)["recipe"]["unit"].is_null()).count()
}

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

/// Processes that work in the project's folder: workers, once their runner is gone.
fn at_work(project: &Project) -> usize {
    let root = fs_err::canonicalize(&project.root).unwrap();
    let processes = fs_err::read_dir("/proc").unwrap().filter_map(Result::ok);
    processes
        .filter(|process| fs_err::read_link(process.path().join("cwd")).is_ok_and(|cwd| cwd == root))
        .count()
}

fn wait_for_orphans(project: &Project) {
    let begun = Instant::now();
    while at_work(project) > 0 {
        assert!(begun.elapsed() < Duration::from_secs(10), "a worker outlives its runner");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Brings the project to its end and compares it with one that nobody disturbed.
fn finish(project: &Project, undisturbed: &Project) {
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

fn undisturbed() -> Project {
    let project = Project::new(IMAGES);
    project.run(&[]);
    project
}

#[test]
fn a_run_killed_as_its_results_come_goes_on_from_them() {
    let undisturbed = undisturbed();
    let all = index(&undisturbed).len();
    let project = Project::new(IMAGES);
    let mut kills = 0;
    for more in [0, 1, 2, 1, 3, 2, 5, 1, 4, 2, 3] {
        let before = index(&project);
        let entries =
            || files(&project.path("cache/recipes-v1")).keys().filter(|name| name.ends_with(".json")).count();
        // With nothing to wait for, the moment is that of the first lock.
        let locks = files(&project.path("cache/locks")).len();
        let now = || match more {
            0 => files(&project.path("cache/locks")).len() > locks,
            more => entries() >= before.len() + more,
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
fn a_run_killed_at_random_ends_as_if_it_had_not_been() {
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

#[test]
fn a_view_left_half_made_is_swept() {
    let project = Project::finished();
    let before = project.results();
    project.write("results/demo/.attrflow-dead/old/array.npy", "x");
    fs_err::remove_file(project.result("influence/grin/top.csv")).unwrap();
    project.run(&[]);
    assert_eq!(project.results(), before);
}
