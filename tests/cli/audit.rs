//! `attrflow audit` and `attrflow diff` on a finished project.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use attrflow_engine::provenance::manifest;
use serde_json::Value as Json;

use crate::project::Project;

fn flip(file: &Path) {
    fs_err::set_permissions(file, PermissionsExt::from_mode(0o644)).unwrap();
    let mut bytes = fs_err::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs_err::write(file, bytes).unwrap();
}

#[test]
fn an_audit_of_a_finished_run_is_clean_and_lists_what_it_checked() {
    let project = Project::finished();
    let path = manifest::list(&project.path("cache/runs/demo"))[0].clone();
    let ran = project.attrflow(["audit", "last"]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    assert!(ran.out.starts_with("cache/runs/demo/"), "{ran:?}");
    assert!(ran.out.contains(": checked 12 stages, 12 recipes, "), "{ran:?}");
    assert!(ran.out.ends_with("\nno difference\n"), "{ran:?}");
    let ran = project.attrflow(["audit", path.to_str().unwrap(), "--json"]);
    let summary = ran.json().pop().unwrap();
    assert_eq!((ran.code, &summary["findings"], &summary["recipes"]), (0, &0.into(), &12.into()));

    // From elsewhere, a manifest knows its cache; a copy of it does not.
    let away = tempfile::tempdir().unwrap();
    let copy = away.path().join("copy.json");
    fs_err::copy(&path, &copy).unwrap();
    let run = |arguments: &[&str]| {
        let mut command = crate::project::command(Path::new(env!("CARGO_BIN_EXE_attrflow")), away.path());
        crate::project::Ran::from(command.args(arguments).output().unwrap())
    };
    assert_eq!(run(&["audit", path.to_str().unwrap()]).code, 0);
    let ran = run(&["audit", "copy.json"]);
    assert!(ran.code == 2 && ran.err.ends_with("name it with --cache\n"), "{ran:?}");
    let cache = project.path("cache");
    assert_eq!(run(&["audit", "copy.json", "--cache", cache.to_str().unwrap()]).code, 0);
}

#[test]
fn a_flipped_byte_is_named_and_exits_with_3() {
    let project = Project::finished();
    // A manifest that names this copy's sources.
    project.run(&[]);
    let path = manifest::list(&project.path("cache/runs/demo"))[0].clone();
    let manifest = manifest::read(&path).unwrap();
    let losses = manifest.stages.iter().find(|record| record.stage == "pretrain_loss").unwrap();
    let digest = losses.outputs["losses"].digest.to_string();
    let object = project.path("cache/objects").join(&digest[..2]).join(&digest);
    let whole = fs_err::read(&object).unwrap();
    flip(&object);
    let ran = project.attrflow(["audit", "demo:last"]);
    assert_eq!((ran.code, ran.err.as_str()), (3, ""), "{ran:?}");
    let first = ran.out.lines().next().unwrap();
    assert!(first.starts_with("pretrain_loss: ") && first.contains(&digest), "{first}");
    assert!(first.contains("was modified: found ") && !ran.out.contains("no difference"), "{ran:?}");
    let ran = project.attrflow(["audit", "last", "--all", "--json"]);
    let lines = ran.json();
    assert_eq!((ran.code, lines.len()), (3, 2), "{ran:?}");
    assert_eq!((&lines[0]["fault"], &lines[0]["differs"]), (&"bytes".into(), &true.into()));
    fs_err::write(&object, whole).unwrap();

    // A source, and the manifest itself.
    let source = project.path("data/demo/captions.json");
    let text = fs_err::read(&source).unwrap();
    flip(&source);
    let ran = project.attrflow(["audit", "last"]);
    assert!(
        ran.code == 3 && ran.out.starts_with("data: its source ") && ran.out.contains("captions.json"),
        "{ran:?}"
    );
    fs_err::write(&source, text).unwrap();
    let text = fs_err::read_to_string(&path).unwrap();
    fs_err::write(&path, text.replacen(r#""time_samples": 2"#, r#""time_samples": 3"#, 1)).unwrap();
    let ran = project.attrflow(["audit", "last"]);
    assert!(ran.code == 3 && ran.out.contains("the fingerprint of its recipe is"), "{ran:?}");
    fs_err::write(&path, "{").unwrap();
    let ran = project.attrflow(["audit", "last"]);
    assert!(ran.code == 2 && ran.err.contains(": not a manifest: "), "{ran:?}");
    fs_err::write(&path, text).unwrap();

    // Gone is not different.
    fs_err::remove_file(&object).unwrap();
    let ran = project.attrflow(["audit", "last"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.out.starts_with("pretrain_loss: its output `losses` is no longer in the cache\n"), "{ran:?}");
    assert_eq!(ran.err, "error: no difference, but one item could not be checked\n");
}

#[test]
fn a_diff_says_what_changed_and_whether_it_mattered() {
    let project = Project::finished();
    project.run(&["--jobs", "1"]);
    let ran = project.attrflow(["diff", "last~1", "last"]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    assert!(
        ran.out.contains("  conditions.jobs: 2 -> 1\n") && ran.out.ends_with("\nthe same results\n"),
        "{ran:?}"
    );
    project.run(&["--set", "unlearn.lr=0.002", "--target", "unlearn"]);
    let ran = project.attrflow(["diff", "last~1", "last"]);
    assert_eq!((ran.code, ran.err.as_str()), (3, ""), "{ran:?}");
    assert!(ran.out.contains("\nrecipe of unlearn[grin]\n  params.lr: 0.001 -> 0.002\n"), "{ran:?}");
    assert!(ran.out.contains("\nresults of unlearn[grin]\n  outputs.weights: "), "{ran:?}");
    assert!(ran.out.contains("\nresults of influence[grin]\n  ended: done -> absent\n"), "{ran:?}");
    let ran = project.attrflow(["diff", "last~1", "last", "--json"]);
    let line: Json = ran.json().remove(0);
    assert_eq!((ran.code, &line["same_results"]), (3, &false.into()), "{line}");
    let ran = project.attrflow(["diff", "last", "last~9"]);
    assert!(
        ran.code == 2 && ran.err.contains("there is no run 9 before the last: demo has 3 runs in "),
        "{ran:?}"
    );
}
