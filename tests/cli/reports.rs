//! What the verbs say of a project: plan, status, doctor, events and the manifest.

use attrflow_engine::provenance::manifest;
use serde_json::Value as Json;

use crate::project::{Project, files};
use crate::run::STAGES;

#[test]
fn events_begin_with_the_run_and_end_with_it() {
    let project = Project::finished();
    let lines = project.run(&["--set", "loss.time_samples=4"]).json();
    let (first, last) = (&lines[0], &lines[lines.len() - 1]);
    assert_eq!((first["event"].as_str(), first["stages"].as_u64()), (Some("run_started"), Some(12)));
    assert_eq!(last["event"], "run_finished");
    assert_eq!((last["ran"].as_u64(), last["cached"].as_u64()), (Some(5), Some(7)));
    let started = lines.iter().find(|line| line["event"] == "stage_started").unwrap();
    let change = &started["reason"]["changes"][0];
    assert_eq!(change["field"], "params.loss.time_samples");
    assert_eq!((&change["old"], &change["new"]), (&Json::from("2"), &Json::from("4")));
    let place = lines.iter().find(|line| line["event"] == "stage_finished").unwrap();
    assert!(std::path::Path::new(place["outputs"]["losses"]["path"].as_str().unwrap()).is_file(), "{place}");
}

#[test]
fn plan_names_the_key_with_its_old_and_new_value() {
    let project = Project::finished();
    let plan = |arguments: &[&str]| {
        let ran = project.attrflow([&["plan", "pipelines/demo.toml"], arguments].concat());
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
        ran.out
    };
    assert!(plan(&[]).ends_with("0 to run, 12 cached, 0 pending\n"));
    let text = plan(&["--set", "loss.time_samples=4"]);
    let line = |stage: &str| text.lines().find(|line| line.starts_with(stage)).unwrap().to_owned();
    assert!(line("pretrain_loss").contains("run"), "{text}");
    assert!(
        line("pretrain_loss").ends_with("params.loss.time_samples: 2 -> 4 (--set loss.time_samples)"),
        "{text}"
    );
    // It reads what is not there yet, but it surely runs.
    assert!(
        line("influence[grin]")
            .contains("params.loss.time_samples: 2 -> 4 (--set loss.time_samples), after pretrain_loss"),
        "{text}"
    );
    assert!(line("fisher").contains("cached"), "{text}");
    assert!(text.ends_with("3 to run, 7 cached, 2 pending\n"), "{text}");
    let text = plan(&["--force", "latents"]);
    assert!(text.ends_with("1 to run, 3 cached, 8 pending\n"), "{text}");

    // Nothing of it ran, and `--dry-run` says the same.
    let ran = project.attrflow(["run", "pipelines/demo.toml", "--dry-run", "--force", "latents"]);
    assert_eq!((ran.code, ran.out), (0, text));
    let ran = project.attrflow(["plan", "pipelines/demo.toml", "--json"]);
    let mut lines = ran.json();
    assert_eq!(lines.pop().unwrap()["stages"]["cached"], 12);
    assert_eq!(lines.len(), 12);
    assert!(lines.iter().all(|line| line["action"] == "cached"), "{ran:?}");
}

#[test]
fn a_plan_of_a_new_project_writes_nothing() {
    let project = Project::new(6);
    for verb in ["plan", "status"] {
        let ran = project.attrflow([verb, "pipelines/demo.toml"]);
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
        assert!(ran.out.contains(if verb == "plan" { "never run before" } else { "never run" }), "{ran:?}");
    }
    assert!(!project.path("results").exists());
    // What was learnt about sources is all that is kept, beside the empty file that guards its writing.
    assert_eq!(project.cached(""), [".gitignore", "CACHEDIR.TAG", "file-state-v1", "tmp/gate"]);
}

#[test]
fn status_names_states_and_folders() {
    let project = Project::finished();
    let ran = project.attrflow(["status", "pipelines/demo.toml"]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    for stage in STAGES {
        let line = ran.out.lines().find(|line| line.starts_with(stage)).unwrap();
        assert!(line.contains("cached") && line.contains(" results/demo/"), "{line}");
    }
    assert!(ran.out.contains("\nlast run: cache/runs/demo/"), "{ran:?}");
    let ran = project.attrflow(["status", "pipelines/demo.toml", "--set", "unlearn.lr=1", "--json"]);
    let state = |stage: &str| {
        let line = ran.json().into_iter().find(|line| line["stage"] == stage).unwrap();
        line["state"].as_str().unwrap().to_owned()
    };
    let states = ["fisher", "unlearn[grin]", "influence[grin]"].map(state);
    assert_eq!(states, ["cached", "out of date", "pending"]);
}

#[test]
fn doctor_says_that_the_cpu_computes() {
    let project = Project::new(1);
    let ran = project.attrflow(["doctor"]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    assert!(ran.out.contains("cpu        computes: yes"), "{ran:?}");
    assert!(ran.out.contains(env!("CARGO_PKG_VERSION")), "{ran:?}");
    let report = &project.attrflow(["doctor", "--json"]).json()[0];
    assert_eq!((&report["worker"]["computes"], &report["missing"]), (&true.into(), &Json::Null), "{report}");
    assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
    assert!(report["worker"]["library"].as_str().unwrap().ends_with("libtorch_cpu.so"), "{report}");
}

#[test]
fn kinds_documents_every_kind_with_its_parameters() {
    let project = Project::new(1);
    let list = project.attrflow(["kinds"]);
    assert_eq!((list.code, list.err.as_str()), (0, ""), "{list:?}");
    for kind in ["download", "latents", "pretrain-loss", "fisher", "generate", "unlearn", "influence"] {
        assert!(list.out.lines().any(|line| line.starts_with(kind)), "{list:?}");
        let one = project.attrflow(["kinds", kind]);
        assert!(one.code == 0 && one.out.contains("\nparams\n"), "{one:?}");
    }
    let unlearn = project.attrflow(["kinds", "unlearn"]).out;
    assert!(
        unlearn.contains("  lr (a number; not set by default)\n      Learning rate, 0.01 as published"),
        "{unlearn}"
    );
    assert!(unlearn.contains("  damping (a number; default 0.0)"), "{unlearn}");
    let influence = project.attrflow(["kinds", "influence"]).out;
    assert!(
        influence.contains("  loss (a table; inherited from the stage on `pretrain_loss`)"),
        "{influence}"
    );
    assert!(influence.contains("    time_samples (an integer"), "{influence}");
    let wrong = project.attrflow(["kinds", "unlern"]);
    assert!(wrong.code == 2 && wrong.err.contains("did you mean `unlearn`?"), "{wrong:?}");
}

#[test]
fn the_manifest_says_what_ran_from_what_to_what() {
    let project = Project::finished();
    let ran = project.attrflow(["run", "pipelines/demo.toml", "--set", "unlearn.lr=0.002", "--jobs", "1"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let runs = manifest::list(&project.path("cache/runs/demo"));
    assert_eq!(runs.len(), 2);
    let manifest = manifest::read(&runs[0]).unwrap();
    assert_eq!(manifest.attrflow.version, env!("CARGO_PKG_VERSION"));
    assert_eq!(
        (manifest.pipeline.as_str(), manifest.sets.as_slice()),
        ("demo", &["unlearn.lr=0.002".to_owned()][..])
    );
    assert_eq!(manifest.numerics.device, "cpu");
    assert!(manifest.numerics.libtorch.starts_with("2."), "{}", manifest.numerics.libtorch);
    assert_eq!((manifest.conditions.jobs, manifest.conditions.threads), (1, 1));
    assert_eq!(manifest.stages.len(), STAGES.len());
    for record in &manifest.stages {
        let (stage, recipe) = (&record.stage, record.recipe.as_ref().unwrap());
        assert_eq!(record.fingerprint, Some(recipe.fingerprint()), "{stage}");
        let ran = ["unlearn", "influence", "ranking"].contains(&recipe.kind.as_str());
        assert_eq!(
            record.outcome,
            if ran { manifest::Outcome::Ran } else { manifest::Outcome::Cached },
            "{stage}"
        );
        assert_eq!(recipe.numerics.is_some(), stage != "data" && recipe.kind != "ranking");
        // What a stage read is what another one wrote.
        let written: Vec<_> =
            manifest.stages.iter().flat_map(|r| r.outputs.values()).map(|a| a.digest).collect();
        let read = recipe.inputs.get("weights").or(recipe.inputs.get("latents"));
        assert!(read.is_none_or(|digest| written.contains(digest)), "{stage}");
        for artifact in record.outputs.values().filter(|artifact| !artifact.folder) {
            let bytes = files(&project.path("cache/objects"));
            let object = bytes.iter().find(|(name, _)| name.ends_with(&artifact.digest.to_string())).unwrap();
            assert_eq!(
                attrflow_engine::identity::digest::Digest::of_file(object.1).unwrap(),
                artifact.digest,
                "{stage}"
            );
        }
    }
}
