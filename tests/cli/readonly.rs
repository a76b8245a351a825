//! A project, or only its cache, on a read-only file system.

use std::process::Command;

use crate::project::Project;

/// Runs the program with some of the project's folders mounted read-only; `None` where the system lets nobody mount.
fn run_read_only(project: &Project, folders: &[&str], arguments: &str) -> Option<(i32, String, String)> {
    let mounts: Vec<String> = folders
        .iter()
        .map(|folder| format!("mount --bind {folder} {folder} && mount -o remount,ro,bind {folder}"))
        .collect();
    // A mount over the folder that it is in counts only for what enters it anew.
    let enter = format!("cd {}", project.root.display());
    let script = |last: &str| format!("{enter} && {} && {enter} && {last}", mounts.join(" && "));
    let unshare = |last: &str| {
        let mut command = Command::new("unshare");
        command.args(["-rm", "sh", "-c", &script(last)]).env_remove("ATTRFLOW_CACHE").output()
    };
    let probe = format!("! touch {}/probe 2>/dev/null", folders[0]);
    if !unshare(&probe).is_ok_and(|output| output.status.success()) {
        return None;
    }
    let output = unshare(&format!("{} {arguments}", env!("CARGO_BIN_EXE_attrflow"))).unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Some((output.status.code().unwrap(), text(output.stdout), text(output.stderr)))
}

const SKIPPED: &str = "skipped: nothing can be mounted here";

#[test]
fn a_read_only_project_is_cached() {
    let project = Project::finished();
    for round in ["copied", "known"] {
        for verb in ["run", "plan", "status"] {
            let command = format!("{verb} pipelines/demo.toml");
            let Some((code, out, err)) = run_read_only(&project, &["."], &command) else {
                return std::io::Write::write_all(&mut std::io::stderr(), SKIPPED.as_bytes()).unwrap();
            };
            assert_eq!(code, 0, "{round}: {verb}: {out}{err}");
            if verb == "run" {
                assert!(out.contains("0 ran, 12 cached"), "{round}: {out}{err}");
                assert_eq!(err.matches("; not saved: ").count(), 1, "{round}: {out}{err}");
                assert!(err.contains("the manifest"), "{round}: {out}{err}");
            }
        }
        project.run(&[]);
        std::thread::sleep(std::time::Duration::from_millis(120));
        project.run(&[]);
    }
}

#[test]
fn results_are_restored_from_a_read_only_cache() {
    let project = Project::finished();
    project.run(&[]);
    let before = project.results();
    fs_err::remove_file(project.result("fisher/fisher.safetensors")).unwrap();
    fs_err::remove_dir_all(project.result("data")).unwrap();
    fs_err::remove_file(project.result("latents/latents.npy")).unwrap();
    project.write("results/demo/latents/latents.npy", "mine");
    let Some((code, out, err)) = run_read_only(&project, &["cache"], "run pipelines/demo.toml") else {
        return std::io::Write::write_all(&mut std::io::stderr(), SKIPPED.as_bytes()).unwrap();
    };
    assert_eq!(code, 0, "{out}{err}");
    assert!(out.contains("0 ran, 12 cached"), "{out}{err}");
    assert!(err.contains("latents.npy held other bytes than the stage gave and is restored"), "{out}{err}");
    let kept = project.path("results/demo/kept");
    assert_eq!(fs_err::read_to_string(kept.join("latents/latents.npy")).unwrap(), "mine");
    fs_err::remove_dir_all(kept).unwrap();
    assert_eq!(project.results(), before);
}
