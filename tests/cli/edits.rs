//! What an edit runs again: what it must, and nothing else.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;

use attrflow_engine::provenance::manifest;

use crate::project::{Project, Ran, command, files};
use crate::run::STAGES;

#[test]
fn a_parameter_runs_only_the_stages_that_use_it() {
    let cases: [(&str, &[&str]); 4] = [
        (
            "loss.time_samples=4",
            &["influence[grin]", "influence[pizza]", "pretrain_loss", "ranking[grin]", "ranking[pizza]"],
        ),
        (
            "unlearn.lr=0.002",
            &[
                "influence[grin]",
                "influence[pizza]",
                "ranking[grin]",
                "ranking[pizza]",
                "unlearn[grin]",
                "unlearn[pizza]",
            ],
        ),
        ("ranking.rows=4", &["ranking[grin]", "ranking[pizza]"]),
        // The row that a batch holds changes the rounding of a sum alone, but it changes it.
        (
            "fisher.seed=1",
            &[
                "fisher",
                "influence[grin]",
                "influence[pizza]",
                "ranking[grin]",
                "ranking[pizza]",
                "unlearn[grin]",
                "unlearn[pizza]",
            ],
        ),
    ];
    let project = Project::finished();
    for (set, computed) in cases {
        assert_eq!(project.run(&["--set", set]).computed(), computed, "{set}");
        // And back: both results stay in the cache.
        assert_eq!(project.run(&[]).reused(), STAGES, "{set}");
    }
}

/// What a ranking shows is no part of a score: no fingerprint changes, and libtorch is not loaded.
#[test]
fn another_title_or_number_of_images_changes_no_score() {
    let project = Project::finished();
    let scores = || {
        let last = manifest::list(&project.path("cache/runs/demo")).pop().unwrap();
        let stages = manifest::read(&last).unwrap().stages.into_iter();
        let scores = stages.filter(|record| !record.stage.starts_with("ranking"));
        scores.map(|record| (record.stage, record.fingerprint.unwrap())).collect::<Vec<_>>()
    };
    let before = scores();
    assert!(before.iter().any(|(stage, _)| stage == "influence[grin]"));
    // Beside the program is a worker that only reports that it was started.
    let folder = project.path("bin");
    fs_err::create_dir(&folder).unwrap();
    let (program, worker, started) =
        (folder.join("attrflow"), folder.join("attrflow-worker"), project.path("started"));
    fs_err::copy(env!("CARGO_BIN_EXE_attrflow"), &program).unwrap();
    fs_err::write(&worker, format!("#!/bin/sh\ntouch {}\nexit 1\n", started.display())).unwrap();
    fs_err::set_permissions(&worker, Permissions::from_mode(0o755)).unwrap();
    project.edit("pipelines/demo.toml", "title = \"${query.caption}\"", "title = \"a title\"");
    for sets in [&[][..], &["--set", "ranking.images_shown=1"], &["--set", "ranking.rows=2"]] {
        let arguments = [&["run", "pipelines/demo.toml", "--json"], sets].concat();
        let ran: Ran = command(&program, &project.root).args(arguments).output().unwrap().into();
        assert_eq!(
            (ran.code, ran.computed()),
            (0, vec!["ranking[grin]".into(), "ranking[pizza]".into()]),
            "{ran:?}"
        );
        assert_eq!(scores(), before, "{sets:?}");
    }
    assert!(!started.exists(), "a worker with libtorch was started");
}

#[test]
fn a_query_runs_its_own_chain() {
    let project = Project::finished();
    project.edit("configs/demo.toml", "an emoji of grinning face", "an emoji of winking face");
    let chain = ["generate[grin]", "influence[grin]", "ranking[grin]", "unlearn[grin]"];
    assert_eq!(project.run(&[]).computed(), chain);

    let text = fs_err::read_to_string(project.path("configs/demo.toml")).unwrap();
    let query = "\n[[queries]]\nname = \"star\"\ncaption = \"a yellow star\"\nseed = 5\n";
    project.write("configs/demo.toml", text + query);
    let ran = project.run(&[]);
    assert_eq!(ran.computed(), ["generate[star]", "influence[star]", "ranking[star]", "unlearn[star]"]);
    assert_eq!(ran.reused(), STAGES);
    assert!(project.result("ranking/star/top.csv").is_file());
}

#[test]
fn a_comment_and_an_order_of_keys_run_nothing() {
    let project = Project::finished();
    project.edit(
        "configs/demo.toml",
        "steps = 4\nguidance_scale = 3.0",
        "guidance_scale = 3.0 # mild\nsteps = 4",
    );
    project.edit("configs/demo.toml", "batch_size = 4\nlr = 0.001", "batch_size = 4\nlr = 1e-3");
    assert_eq!(project.run(&[]).reused(), STAGES);
}

#[test]
fn a_caption_runs_the_stages_that_read_it() {
    let project = Project::finished();
    // Beyond the captions that are used: the bytes of the file change, the latents' do not.
    project.edit("data/demo/captions.json", "\"images\": [", "\"info\": {}, \"images\": [");
    let ran = project.run(&[]);
    assert_eq!(ran.computed(), ["data", "latents", "ranking[grin]", "ranking[pizza]"]);
}

#[test]
fn a_target_runs_what_it_needs() {
    let project = Project::finished();
    fs_err::remove_dir_all(project.path("cache")).unwrap();
    fs_err::remove_dir_all(project.path("results")).unwrap();
    assert_eq!(project.run(&["--target", "generate[grin]"]).computed(), ["data", "generate[grin]"]);
    let ran = project.run(&["--target", "generate", "--target", "latents"]);
    assert_eq!(ran.computed(), ["generate[pizza]", "latents"]);
    assert_eq!(ran.reused(), ["data", "generate[grin]"]);
    assert!(!project.result("influence").exists());
}

#[test]
fn force_computes_and_equal_bytes_stop_there() {
    let project = Project::finished();
    let before = project.results();
    let ran = project.run(&["--force", "fisher"]);
    assert_eq!(ran.computed(), ["fisher"]);
    assert_eq!(ran.events("unit_finished", "stage"), ["fisher"; 3]);
    assert_eq!(project.results(), before);
    assert_eq!(project.run(&["--force", "generate"]).computed(), ["generate[grin]", "generate[pizza]"]);
}

#[test]
fn removed_results_are_restored_and_removed_objects_recomputed() {
    let project = Project::finished();
    let before = project.results();
    fs_err::remove_dir_all(project.path("results/demo/influence")).unwrap();
    assert_eq!(project.run(&[]).reused(), STAGES);
    assert_eq!(project.results(), before);

    fs_err::remove_dir_all(project.path("cache/objects")).unwrap();
    assert_eq!(project.run(&[]).computed(), STAGES);
    assert_eq!(project.results(), before);
}

#[test]
fn a_damaged_index_entry_is_reported_and_costs_one_stage() {
    let project = Project::finished();
    let entries = files(&project.path("cache/recipes-v2"));
    let of_data =
        |path: &&std::path::PathBuf| fs_err::read_to_string(path).unwrap().contains("\"kind\":\"download\"");
    let entry = entries.values().find(of_data).unwrap();
    fs_err::write(entry, "{ \"recipe\"").unwrap();
    let ran = project.attrflow(["run", "pipelines/demo.toml"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.err.contains("/cache/recipes-v2/") && ran.err.contains(" is damaged: "), "{ran:?}");
    assert!(ran.out.contains("1 ran, 11 cached"), "{ran:?}");
}
