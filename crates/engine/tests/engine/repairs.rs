//! Repairs by a run: changed sources, damaged objects, results of removed stages.

use attrflow_engine::provenance::manifest::Outcome;

use crate::in_process::Fault;
use crate::project::project;

#[test]
fn a_source_that_changes_while_it_is_read_fails_its_stage() {
    let mut project = project();
    let source = project.path("source.txt");
    project.backend.fault = Some(("say".into(), Fault::Rewrites(source, "other\n".into())));
    let ran = project.run_targets(&["first"]);
    let error = ran.stage("first").error.clone().unwrap();
    assert!(
        error.contains("the input `a` changed while it was read: ") && error.ends_with("source.txt"),
        "{error}"
    );
    // Neither the old nor the new text gets the other's result.
    project.backend.fault = None;
    assert_eq!(project.run_targets(&["first"]).ran(), ["first"]);
    assert_eq!(project.read("results/toy/first/text.txt"), "other\naa");
    project.write("source.txt", "source\n");
    assert_eq!(project.run_targets(&["first"]).ran(), ["first"]);
    assert_eq!(project.read("results/toy/first/text.txt"), "source\naa");
}

#[test]
fn a_panic_in_the_engine_fails_the_stage_and_ends_the_run() {
    let mut project = project();
    project.backend.fault = Some(("number 1".into(), Fault::Panics));
    let ran = project.run(&[]);
    assert_eq!(ran.with(Outcome::Failed), ["lines"]);
    assert!(ran.stage("lines").error.as_ref().unwrap().contains("which is a bug"));
    project.backend.fault = None;
    assert_eq!(project.run(&[]).with(Outcome::Failed), [""; 0]);
}

#[test]
fn a_damaged_object_is_replaced_when_its_stage_is_forced() {
    let mut project = project();
    let ran = project.run(&[]);
    let digest = ran.stage("first").outputs["text"].digest.to_string();
    let object = project.cache.join("objects").join(&digest[..2]).join(&digest);
    let right = fs_err::read(&object).unwrap();
    // The same size, so that only the bytes differ.
    let wrong: Vec<u8> = right.iter().map(|byte| byte ^ 1).collect();
    let replace = |bytes: &[u8]| {
        fs_err::remove_file(&object).unwrap();
        fs_err::write(&object, bytes).unwrap();
    };
    replace(&wrong);
    project.force = vec!["first"];
    assert_eq!(project.run(&[]).ran(), ["first"]);
    assert_eq!(fs_err::read(&object).unwrap(), right);
    // A wrong size is noticed without hashing.
    replace(b"short");
    project.force = vec![];
    assert_eq!(project.run(&[]).ran(), ["first"]);
    assert_eq!(fs_err::read(&object).unwrap(), right);
}

#[test]
fn results_of_removed_stages_are_removed() {
    let project = project();
    project.run(&[]);
    assert!(project.path("results/toy/last/two/text.txt").exists());
    fs_err::write(project.path("results/toy/second/mine.txt"), "kept").unwrap();
    project.replace("configs/toy.toml", "name = \"two\"", "name = \"deux\"");
    project.replace("pipelines/toy.toml", "[stages.second]", "[stages.middle]");
    project.replace("pipelines/toy.toml", "\"second.text\"", "\"middle.text\"");
    let ran = project.run_targets(&["first"]);
    assert_eq!(ran.ran(), [""; 0]);
    assert!(!project.path("results/toy/last/two").exists());
    assert!(!project.path("results/toy/second/text.txt").exists());
    // The user's own files stay; so do other stages, selected or not.
    assert_eq!(project.read("results/toy/second/mine.txt"), "kept");
    assert!(project.path("results/toy/last/one/text.txt").exists());
}
