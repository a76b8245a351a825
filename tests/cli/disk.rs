//! Disks that are full, read-only, or another file system, with real mounts in a namespace of their own.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::project::{Project, Ran, files};
use crate::run::STAGES;

/// Whether this system lets a user mount in a namespace; without that there is nothing to test with.
fn can_mount() -> bool {
    let mut probe = Command::new("unshare");
    probe.args(["-rm", "sh", "-c", "mount -t tmpfs none /mnt"]);
    probe.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// Runs a script in the project's folder, with mounts that nobody else sees; `$A` is the program.
fn mounted(project: &Project, script: &str) -> Ran {
    let mut shell = Command::new("unshare");
    shell
        .args(["-rm", "sh", "-c", script])
        .env("A", env!("CARGO_BIN_EXE_attrflow"))
        .current_dir(&project.root);
    shell.env_remove("ATTRFLOW_CACHE").env_remove("ATTRFLOW_LOG");
    shell.output().unwrap().into()
}

#[test]
fn a_full_disk_is_reported_and_loses_no_finished_work() {
    if !can_mount() {
        return;
    }
    let whole = Project::finished();
    // From room for hardly anything to room for nearly all.
    for size in ["40k", "200k", "400k", "700k"] {
        let project = Project::new(6);
        let script = format!(
            "mkdir cache && mount -t tmpfs -o size={size} none cache
            $A run pipelines/demo.toml > out 2> err; echo $? > code
            mount -o remount,size=500m cache
            $A run pipelines/demo.toml --json > again 2> again.err; echo $? > again.code
            ls cache/tmp > tmp"
        );
        assert_eq!(mounted(&project, &script).code, 0);
        let read = |name: &str| fs_err::read_to_string(project.path(name)).unwrap();
        let (code, error) = (read("code"), read("err"));
        assert!(["1\n", "4\n"].contains(&code.as_str()), "{size}: {code}: {error}");
        assert!(error.contains("No space left on device"), "{size}: {error}");
        let cache = project.path("cache").display().to_string();
        assert!(error.contains(" free on the disk of ") && error.contains(&cache), "{size}: {error}");
        assert_eq!((read("again.code").as_str(), read("again.err").as_str()), ("0\n", ""), "{size}");
        assert_eq!(read("tmp"), "gate\n", "{size}");
        assert_eq!(project.results(), whole.results(), "{size}");
    }
}

#[test]
fn a_cache_on_another_file_system_gives_the_same_results() {
    let whole = Project::finished();
    let memory = Path::new("/dev/shm");
    if !memory.is_dir() {
        return;
    }
    let project = Project::new(6);
    let cache = tempfile::tempdir_in(memory).unwrap();
    let place = cache.path().join("cache").display().to_string();
    assert_eq!(project.run(&["--cache", &place]).computed(), STAGES);
    assert_eq!(project.results(), whole.results());
    assert!(!project.path("cache").exists());
    // Nothing to do, and something to bring back.
    fs_err::remove_dir_all(project.result("influence")).unwrap();
    assert_eq!(project.run(&["--cache", &place]).reused(), STAGES);
    assert_eq!(project.results(), whole.results());
    assert!(files(&cache.path().join("cache/objects")).len() > 30);
}
