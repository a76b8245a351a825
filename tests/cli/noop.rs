//! A no-op run is repeated without a plan, unless anything changed.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use attrflow_engine::provenance::manifest;
use serde_json::Value as Json;

use crate::project::{Project, Ran, files};

const RECALLED: &str = "cache/noop-v1/demo";

/// A finished project of which a run was noted.
fn noted() -> Project {
    let project = Project::finished();
    // What changed a moment ago is not noted, and what the first run restores or learns is such a change.
    for _ in 0..20 {
        project.run(&[]);
        if project.path(RECALLED).exists() {
            return project;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("no run was noted");
}

/// What a run said, without what is of its own.
fn said(ran: &Ran) -> Vec<Json> {
    let mut lines = ran.json();
    for line in &mut lines {
        let line = line.as_object_mut().unwrap();
        line.remove("time");
        line.remove("seconds");
        line.remove("manifest");
    }
    lines
}

fn last(project: &Project) -> Json {
    let path = manifest::list(&project.path("cache/runs/demo")).remove(0);
    let mut manifest = serde_json::to_value(manifest::read(&path).unwrap()).unwrap();
    for key in ["started", "seconds"] {
        manifest[key] = Json::Null;
    }
    manifest
}

fn forget(project: &Project) {
    fs_err::remove_file(project.path(RECALLED)).unwrap();
}

#[test]
fn a_repeated_noop_equals_a_planned_one() {
    let project = noted();
    let repeated = project.run(&[]);
    let manifest = last(&project);
    let text = project.attrflow(["run", "pipelines/demo.toml"]).out;
    let plan = |more: &[&str]| project.attrflow([&["plan", "pipelines/demo.toml"], more].concat()).out;
    let plans = [plan(&[]), plan(&["--json"])];
    forget(&project);
    let found = project.run(&[]);
    assert_eq!(said(&repeated), said(&found));
    assert_eq!(manifest, last(&project));
    assert_eq!(manifest["stages"].as_array().unwrap().len(), 12);
    forget(&project);
    let rows = |text: &str| {
        text.lines().filter(|line| !line.contains("manifest ")).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(rows(&text), rows(&project.attrflow(["run", "pipelines/demo.toml"]).out));
    let _ = fs_err::remove_file(project.path(RECALLED));
    assert_eq!(plans, [plan(&[]), plan(&["--json"])]);
    assert_eq!(project.attrflow(["audit", "last"]).code, 0);
}

#[test]
fn every_change_prevents_a_repeated_noop() {
    let project = noted();
    let whole = fs_err::read(project.path(RECALLED)).unwrap();
    let object = || -> PathBuf {
        let record = &last(&project)["stages"][2];
        let digest = record["outputs"].as_object().unwrap().values().next().unwrap()["digest"]
            .as_str()
            .unwrap()
            .to_owned();
        project.path("cache/objects").join(&digest[..2]).join(digest)
    };
    let entry = || {
        let fingerprint = last(&project)["stages"][2]["fingerprint"].as_str().unwrap().to_owned();
        project.path("cache/recipes-v2").join(&fingerprint[..2]).join(format!("{fingerprint}.json"))
    };
    let again = |what: &str, computed: &[&str]| {
        let ran = project.run(&[]);
        assert_eq!(ran.computed(), computed, "{what}");
        fs_err::write(project.path(RECALLED), &whole).unwrap();
    };
    let (object, entry) = (object(), entry());
    let stage = last(&project)["stages"][2]["stage"].as_str().unwrap().to_owned();
    // A value and back; a comment; a source of the same size.
    project.edit("configs/demo.toml", "lr = 0.001", "lr = 0.002");
    let both = ["influence", "ranking", "unlearn"]
        .map(|stage| [format!("{stage}[grin]"), format!("{stage}[pizza]")]);
    again("a value", &both.iter().flatten().map(String::as_str).collect::<Vec<_>>());
    project.edit("configs/demo.toml", "lr = 0.002", "lr = 0.001");
    again("the value back", &[]);
    project.edit("pipelines/parts/emoji.toml", "[stages.latents]", "# a comment\n[stages.latents]");
    again("a comment", &[]);
    // An object, an index entry, a file of the results.
    fs_err::remove_file(&object).unwrap();
    again("an object", &[stage.as_str()]);
    fs_err::remove_file(&entry).unwrap();
    again("an index entry", &[stage.as_str()]);
    let shown = project.result("ranking/grin/top.csv");
    let text = fs_err::read(&shown).unwrap();
    fs_err::remove_file(&shown).unwrap();
    again("a result", &[]);
    assert_eq!(fs_err::read(&shown).unwrap(), text);
    let image = files(&project.path("results/demo/data")).into_values().next().unwrap();
    fs_err::remove_file(&image).unwrap();
    again("a file of a folder", &[]);
    assert!(image.exists());
    // A flipped byte of an object, with the times that it had.
    let object =
        project.path("cache/objects").join(object.strip_prefix(project.path("cache/objects")).unwrap());
    let mut bytes = fs_err::read(&object).unwrap();
    let modified = fs_err::metadata(&object).unwrap().modified().unwrap();
    bytes[0] ^= 1;
    fs_err::set_permissions(&object, PermissionsExt::from_mode(0o644)).unwrap();
    fs_err::write(&object, bytes).unwrap();
    fs_err::File::options().write(true).open(&object).unwrap().file().set_modified(modified).unwrap();
    let ran = project.attrflow(["run", "pipelines/demo.toml", "--json"]);
    assert!(ran.code == 0 && ran.computed() == [stage.as_str()], "{ran:?}");
    fs_err::write(project.path(RECALLED), &whole).unwrap();

    // Another question is not answered by it.
    let with = |more: &[&str]| project.run(more).computed();
    assert_eq!(
        with(&["--set", "unlearn.lr=0.003", "--target", "unlearn"]),
        ["unlearn[grin]", "unlearn[pizza]"]
    );
    fs_err::write(project.path(RECALLED), &whole).unwrap();
    assert_eq!(with(&["--force", "data"]), ["data"]);
    fs_err::write(project.path(RECALLED), &whole).unwrap();
    let ran = project.run(&["--target", "data"]);
    assert_eq!((ran.computed().len(), ran.reused()), (0, vec!["data".to_owned()]));
}

#[test]
fn a_damaged_noop_record_is_ignored() {
    let project = noted();
    let whole = fs_err::read(project.path(RECALLED)).unwrap();
    let right = said(&project.run(&[]));
    for place in (0..whole.len()).step_by(whole.len() / 12) {
        let mut bytes = whole.clone();
        bytes[place] ^= 0x20;
        fs_err::write(project.path(RECALLED), &bytes).unwrap();
        assert_eq!(said(&project.run(&[])), right, "byte {place}");
        fs_err::write(project.path(RECALLED), &whole[..place]).unwrap();
        assert_eq!(said(&project.run(&[])), right, "cut at {place}");
    }
    project.attrflow(["audit", "last"]);
}

#[test]
fn environment_variables_are_part_of_the_noop_key() {
    let project = Project::finished();
    project.edit("pipelines/demo.toml", "config = ", "env = [\"ATTRFLOW_TEST_SEED\"]\nconfig = ");
    project.edit("configs/demo.toml", "seed = 1", "seed = \"${env:ATTRFLOW_TEST_SEED:-1}\"");
    let run = |seed: &str| {
        let mut program = crate::project::command(env!("CARGO_BIN_EXE_attrflow").as_ref(), &project.root);
        program.env("ATTRFLOW_TEST_SEED", seed).args([
            "run",
            "pipelines/demo.toml",
            "--json",
            "--target",
            "generate",
        ]);
        Ran::from(program.output().unwrap())
    };
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(run("").computed(), [""; 0]);
    }
    assert!(project.path(RECALLED).exists());
    assert_eq!(run("7").computed(), ["generate[pizza]"]);
}

/// A project of command stages of which a run was noted.
fn steps(pipeline: &str, config: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let root = fs_err::canonicalize(folder.path()).unwrap();
    fs_err::write(root.join("p.toml"), pipeline).unwrap();
    fs_err::write(root.join("c.toml"), config).unwrap();
    (folder, root)
}

fn step(root: &std::path::Path, variables: &[(&str, &str)], more: &[&str]) -> Ran {
    let mut program = crate::project::command(env!("CARGO_BIN_EXE_attrflow").as_ref(), root);
    program.envs(variables.iter().copied()).args(["run", "p.toml", "--device", "cpu", "--json"]).args(more);
    let ran = Ran::from(program.output().unwrap());
    assert_eq!(ran.code, 0, "{ran:?}");
    ran
}

/// Runs until a run was noted.
fn note(root: &std::path::Path, variables: &[(&str, &str)]) {
    for _ in 0..30 {
        step(root, variables, &[]);
        if root.join("cache/noop-v1/p").exists() {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("no run was noted");
}

const STEP: &str =
    "kind = \"command\"\nparams = { argv = [\"sh\", \"-c\", \"echo $COUNTED > o\"], outputs = { o = \"o\" }";

#[test]
fn variables_declared_by_a_command_are_part_of_the_noop_key() {
    let (_folder, root) = steps(&format!("[stages.a]\n{STEP}, env_counted = [\"COUNTED\"] }}\n"), "");
    let shown = || fs_err::read_to_string(root.join("results/p/a/o")).unwrap();
    note(&root, &[("COUNTED", "1")]);
    assert_eq!(step(&root, &[("COUNTED", "2")], &[]).computed(), ["a"]);
    assert_eq!(shown(), "2\n");
    assert_eq!(step(&root, &[("COUNTED", "1")], &[]).computed(), [""; 0]);
    assert_eq!(shown(), "1\n");
}

#[test]
fn results_of_another_run_are_removed() {
    let pipeline =
        format!("config = \"c.toml\"\n[stages.a]\n{STEP} }}\n[stages.b]\nwhen = \"${{extra}}\"\n{STEP} }}\n");
    let (_folder, root) = steps(&pipeline, "extra = false\n");
    note(&root, &[]);
    step(&root, &[], &["--set", "extra=true"]);
    assert!(root.join("results/p/b/o").exists());
    // As it was noted before that.
    step(&root, &[], &[]);
    assert!(!root.join("results/p/b/o").exists());
}

#[test]
fn hard_links_are_checked() {
    let (_folder, root) = steps("include = [\"a.toml\", \"b.toml\"]\n", "");
    fs_err::write(root.join("a.toml"), format!("[stages.a]\n{STEP} }}\n")).unwrap();
    std::os::unix::fs::symlink("a.toml", root.join("b.toml")).unwrap();
    note(&root, &[]);
    fs_err::remove_file(root.join("b.toml")).unwrap();
    fs_err::write(root.join("b.toml"), format!("[stages.b]\n{STEP}, values = {{ b = 1 }} }}\n")).unwrap();
    assert_eq!(step(&root, &[], &[]).computed(), ["b"]);
}

#[test]
fn a_copied_cache_has_noop_records_of_its_own() {
    let (_folder, root) = steps(&format!("[stages.a]\n{STEP} }}\n"), "");
    note(&root, &[]);
    crate::project::copy(&root.join("cache"), &root.join("other"));
    fs_err::remove_dir_all(root.join("other/objects")).unwrap();
    assert_eq!(step(&root, &[], &["--cache", "other"]).computed(), ["a"]);
}
