//! The store on a file system that answers as NFS may: `tests/faults/file_system.c` is put between it and the C library.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use attrflow_engine::identity::digest::Digest;
use attrflow_engine::maintenance::{Inventory, Verify};
use attrflow_engine::maintenance::{Pull, Push};
use attrflow_engine::remote::Remote;
use attrflow_engine::store::{Lookup, Store};

use crate::maintenance::{POLICY, collect, plan};
use crate::project::{Project, project};

/// The parts of a cache, and the results beside it, in whose place an answer is wrong while a run computes.
const AREAS: [&str; 9] = [
    "/cache/recipes-v2",
    "/cache/units-v1",
    "/cache/tmp",
    "/cache/runs",
    "/cache/file-state-v1",
    "/cache/noop-v1",
    "/cache/store.lock",
    "/cache/units.lock",
    "/results/",
];

/// The library that answers; `None` where there is no C compiler.
fn library() -> Option<&'static Path> {
    static LIBRARY: OnceLock<Option<PathBuf>> = OnceLock::new();
    let built = LIBRARY.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        fs_err::create_dir_all(folder).unwrap();
        // Tests run at once, in processes of their own.
        let mine = folder.join(format!("file_system-{}.so", std::process::id()));
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/faults/file_system.c");
        let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
        let built = Command::new(compiler)
            .args(["-shared", "-fPIC", "-O0", "-w", "-fno-delete-null-pointer-checks", "-o"])
            .arg(&mine)
            .arg(source)
            .output();
        let built = built.ok()?;
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        Some(mine)
    });
    assert!(built.is_some() || std::env::var("CI").is_err(), "no C compiler was found");
    built.as_deref()
}

/// Runs a test of this file under a fault; what it wrote to standard output.
fn under(fault: &str, below: &str, test: &str) -> Option<String> {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("file_system::{test}"), "--ignored", "--nocapture", "--test-threads=1"])
        .env("LD_PRELOAD", library()?)
        .env("ATTRFLOW_TEST_FAULT", fault)
        .env("ATTRFLOW_TEST_BELOW", below)
        .env("ATTRFLOW_TEST_SWITCH", folder.path().join("on"))
        .env("ATTRFLOW_TEST_OPENED", folder.path().join("opened"))
        .env("ATTRFLOW_SHARED_FILE_SYSTEM", "1")
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success() && out.contains("1 passed"), "{fault} below {below}:\n{out}\n{err}");
    Some(out)
}

/// From here on, answers are wrong; not any more when the value is dropped.
struct Faults(PathBuf);

impl Faults {
    fn on() -> Self {
        let switch = PathBuf::from(std::env::var("ATTRFLOW_TEST_SWITCH").unwrap());
        fs_err::write(&switch, "").unwrap();
        Self(switch)
    }
}

impl Drop for Faults {
    fn drop(&mut self) {
        fs_err::remove_file(&self.0).unwrap();
    }
}

fn store(project: &Project) -> Store {
    Store::open(&project.cache).unwrap()
}

#[test]
fn a_run_stands_stale_files_and_repeated_requests() {
    for fault in ["stale", "repeat"] {
        for area in AREAS {
            under(fault, area, "a_run");
        }
    }
}

#[test]
#[ignore = "a part of the test above"]
fn a_run() {
    let (undisturbed, disturbed) = (project(), project());
    let expected = undisturbed.run(&[]);
    undisturbed.run(&["first.text=new"]);
    {
        let _faults = Faults::on();
        let ran = disturbed.run(&[]);
        let errors: Vec<&String> =
            ran.manifest.stages.iter().filter_map(|stage| stage.error.as_ref()).collect();
        assert_eq!((errors, ran.tasks), (Vec::<&String>::new(), expected.tasks));
        assert_eq!(disturbed.run(&[]).tasks, [""; 0]);
        disturbed.run(&["first.text=new"]);
    }
    assert_eq!(disturbed.results(), undisturbed.results());
    assert_eq!(disturbed.run(&["first.text=new"]).tasks, [""; 0]);
}

#[test]
fn what_keeps_a_cache_stands_them_too() {
    for fault in ["stale", "repeat"] {
        for area in AREAS.into_iter().chain(["/cache/objects", "/cache/quarantine"]) {
            under(fault, area, "maintenance_of_a_cache");
        }
    }
}

#[test]
#[ignore = "a part of the test above"]
fn maintenance_of_a_cache() {
    let (here, there) = (project(), project());
    here.run(&[]);
    here.run(&["first.text=new"]);
    let results = here.results();
    let remote = here.path("remote");
    let victim = store(&here).path(&Digest::from(blake3::hash(b"damaged")));
    fs_err::create_dir_all(victim.parent().unwrap()).unwrap();
    fs_err::write(&victim, "other bytes").unwrap();
    {
        let _faults = Faults::on();
        let inventory = Inventory::of(&store(&here)).unwrap();
        let checked = Verify { store: &store(&here), progress: &|_, _| () }.execute().unwrap();
        assert_eq!(checked.rebuilds.len(), 0, "what no entry names is quarantined, and nothing else");
        let entries = inventory.items.into_iter().filter(|(_, item)| !item.is_unit());
        let entries = entries.map(|(fingerprint, item)| (fingerprint, item.entry)).collect();
        let to = Remote::open(remote.to_str().unwrap(), true).unwrap();
        let pushing =
            Push { store: &store(&here), entries, manifests: Vec::new(), again: false, progress: &|_, _| () };
        assert_eq!(pushing.execute(&to).unwrap().refused, [""; 0]);
        let pulling =
            Pull { store: &store(&there), pipeline: None, back: 0, all: true, progress: &|_, _| () };
        pulling.execute(&to).unwrap();
        assert!(!plan(&here, &POLICY).steps.is_empty());
        collect(&here, &POLICY);
    }
    assert_eq!(here.run(&["first.text=new"]).ran(), [""; 0]);
    assert_eq!(here.results(), results);
    assert_eq!(there.run(&["first.text=new"]).ran(), [""; 0]);
    assert_eq!(there.results(), results);
}

#[test]
fn files_of_another_host_that_are_not_seen_yet_cost_time_and_no_result() {
    under("late", "/cache/", "late_files");
}

#[test]
#[ignore = "a part of the test above"]
fn late_files() {
    let project = project();
    let ran = project.run(&[]);
    let fingerprint = ran.stage("first").fingerprint.unwrap();
    {
        let _faults = Faults::on();
        // What another host has just written is a miss, and not an error.
        assert!(matches!(store(&project).find(&fingerprint).unwrap(), Lookup::Miss));
        std::thread::sleep(Duration::from_secs(3));
        assert!(matches!(store(&project).find(&fingerprint).unwrap(), Lookup::Hit(_)));
    }
    assert_eq!(project.run(&[]).tasks, [""; 0]);
}

#[test]
fn another_host_that_numbers_the_file_system_differently_hashes_nothing_again() {
    let Some(first) = under("count", "/cache/objects", "opened_objects") else { return };
    let other = under("count,device", "/cache/objects", "opened_objects").unwrap();
    let count = |text: &str| {
        text.lines().find_map(|line| line.strip_prefix("opened ")?.parse::<usize>().ok()).unwrap()
    };
    assert_eq!((count(&first), count(&other)), (0, 0), "{other}");
}

#[test]
#[ignore = "a part of the test above"]
fn opened_objects() {
    let project = project();
    project.run(&[]);
    // Past the racy window of a file server's clock, the objects are hashed once more and remembered.
    std::thread::sleep(Duration::from_millis(2100));
    project.run(&[]);
    project.run(&[]);
    {
        let _faults = Faults::on();
        assert_eq!(project.run(&[]).tasks, [""; 0]);
    }
    let opened = fs_err::read_to_string(std::env::var("ATTRFLOW_TEST_OPENED").unwrap()).unwrap_or_default();
    // Of a folder, only the list of its files is read.
    println!("\nopened {}", opened.lines().filter(|path| !path.ends_with(".list")).count());
    println!("{opened}");
}

#[test]
fn where_locks_are_granted_to_everybody_leases_are_not() {
    under("nolock", "/cache/", "leases");
}

#[test]
#[ignore = "a part of the test above"]
fn leases() {
    let project = project();
    let (one, other) = (store(&project), store(&project));
    let fingerprint = Digest::from(blake3::hash(b"a unit"));
    let _faults = Faults::on();
    assert!(one.try_lock(&fingerprint).unwrap().is_some());
    let both = (one.try_lock(&fingerprint).unwrap(), other.try_lock(&fingerprint).unwrap());
    assert!(both.0.is_some() && both.1.is_some(), "the locks of this file system hold nobody off");
    drop(both);
    let longest = Duration::from_millis(1000);
    assert!(one.note_locks(false, longest).unwrap() && !one.note_locks(false, longest).unwrap());
    assert!(other.note_locks(false, longest).unwrap());
    assert!(one.lock_doubt().unwrap().contains("not respected between hosts"));
    let held = one.try_lock(&fingerprint).unwrap();
    assert!(held.is_some() && other.try_lock(&fingerprint).unwrap().is_none());
    // While its holder lives, it stays however long it is held.
    std::thread::sleep(longest * 2);
    assert!(other.try_lock(&fingerprint).unwrap().is_none());
    drop(held);
    assert!(other.try_lock(&fingerprint).unwrap().is_some(), "it was given back");
    // A holder that died leaves its lease; it is taken away when its sign of life has not changed for long enough.
    std::mem::forget(one.try_lock(&fingerprint).unwrap());
    assert!(other.try_lock(&fingerprint).unwrap().is_none());
    drop(one);
    let begun = Instant::now();
    while other.try_lock(&fingerprint).unwrap().is_none() {
        assert!(begun.elapsed() < Duration::from_secs(20), "a dead holder's lease stays");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(begun.elapsed() > longest / 2, "it was taken away at once");
}
