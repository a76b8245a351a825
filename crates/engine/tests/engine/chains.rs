//! Units of which each reads the one before.

use std::path::PathBuf;

use attrflow_engine::exec::Cancel;
use attrflow_engine::exec::event::Event;
use attrflow_engine::provenance::manifest::Outcome;
use attrflow_engine::store::{Entry, Store};

use crate::explain::describe;
use crate::in_process::Fault;
use crate::project::{Project, files, flip};

fn project() -> Project {
    let pipeline = "config = \"../configs/toy.toml\"\n[stages.train]\nkind = \"steps\"\n\
        params = { text = \"${text}\", to = \"${to}\", start = \"${start}\", salt = \"${salt}\" }\n";
    let project = Project::new(pipeline, "");
    project.write("salt", "");
    let salt = project.path("salt").display().to_string();
    project.write("configs/toy.toml", &format!("text = 's'\nto = 4\nstart = ''\nsalt = '{salt}'\n"));
    project
}

const ALL: [&str; 5] = ["step 0", "step 1", "step 2", "step 3", "steps merge"];

#[test]
fn each_unit_reads_the_one_before() {
    let project = project();
    let ran = project.run(&[]);
    assert_eq!(ran.tasks, ALL);
    assert_eq!(project.read("results/toy/train/text.txt"), "s0\ns1\ns2\ns3\n");
    let started: Vec<_> = ran
        .events
        .iter()
        .filter_map(|event| match event {
            Event::UnitStarted { unit: Some(unit), .. } => Some(unit.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(started, ALL[..4]);
    assert_eq!((ran.stage("train").units_run, ran.stage("train").units_cached), (4, 0));
    assert_eq!(project.run(&[]).starts, 0);
}

#[test]
fn a_chain_that_has_begun_ends_before_another_begins() {
    let pipeline = "[stages.train]\nkind = \"steps\"\neach = { text = [\"a\", \"b\", \"c\"] }\n\
        params = { text = \"${text}\", to = 3, salt = \"${salt}\" }\n";
    let mut project = Project::new(&format!("config = \"../configs/toy.toml\"\n{pipeline}"), "");
    project.write("salt", "");
    project.write("configs/toy.toml", &format!("salt = '{}'\n", project.path("salt").display()));
    project.backend.slots = 1;
    let ran = project.run(&[]);
    let finished: Vec<_> = ran
        .events
        .iter()
        .filter_map(|event| match event {
            Event::UnitFinished { stage, .. } => Some(stage.as_str()),
            _ => None,
        })
        .collect();
    let each = |stage| [stage; 3];
    assert_eq!(finished, [each("train[a]"), each("train[b]"), each("train[c]")].concat());
}

#[test]
fn it_resumes_at_the_unit_that_failed() {
    for fault in [Fault::Fails, Fault::Dies] {
        let mut project = project();
        project.backend.fault = Some(("step 2".into(), fault));
        let ran = project.run(&[]);
        assert_eq!((ran.with(Outcome::Failed), ran.stage("train").units_run), (vec!["train"], 2));
        project.backend.fault = None;
        let ran = project.run(&[]);
        assert_eq!(ran.tasks, ALL[2..]);
        assert_eq!((ran.stage("train").units_run, ran.stage("train").units_cached), (2, 2));
        assert_eq!(project.read("results/toy/train/text.txt"), "s0\ns1\ns2\ns3\n");
    }
}

#[test]
fn it_resumes_after_an_interruption() {
    let mut project = project();
    project.backend.slots = 2;
    // Run and stage started; then each unit starts, progresses twice and finishes.
    project.interrupt = Some(8);
    let ran = project.run(&[]);
    assert_eq!(ran.with(Outcome::Interrupted), ["train"]);
    let first = ran.tasks.len();
    assert!(0 < first && first < 4, "{:?}", ran.tasks);
    (project.interrupt, project.stop) = (None, Cancel::default());
    let ran = project.run(&[]);
    assert_eq!(ran.tasks, ALL[first..]);
    assert_eq!(ran.stage("train").units_cached, first);
}

#[test]
fn more_units_compute_only_those() {
    let mut project = project();
    project.run(&[]);
    assert_eq!(project.run(&["to=6"]).tasks, ["step 4", "step 5", "steps merge"]);
    assert_eq!(project.run(&["to=2"]).tasks, ["steps merge"]);
    assert_eq!(project.read("results/toy/train/text.txt"), "s0\ns1\n");
    project.force = vec!["train"];
    assert_eq!(project.run(&[]).tasks, ALL);
}

#[test]
fn another_first_unit_recomputes_all() {
    let project = project();
    project.run(&[]);
    assert_eq!(project.run(&["start=b"]).tasks, ALL);
    assert_eq!(project.read("results/toy/train/text.txt"), "bs0\ns1\ns2\ns3\n");
    assert_eq!(project.run(&["text=t"]).tasks, ALL);
    assert_eq!(project.run(&[]).tasks, [""; 0]);
}

/// A file in the folder of a step, as the store keeps it.
fn file_of(project: &Project, step: u32) -> PathBuf {
    let entries = files(&project.path("cache/recipes-v2")).into_iter().map(|path| {
        let entry: Entry = serde_json::from_slice(&fs_err::read(path).unwrap()).unwrap();
        entry
    });
    let is_step = |entry: &Entry| entry.recipe.unit.as_ref().is_some_and(|unit| unit["step"] == step);
    let entry = entries.into_iter().find(is_step).expect("an entry of the step");
    let folder = Store::open(&project.cache).unwrap().path(&entry.outputs["part"].digest);
    files(&folder).remove(0)
}

#[test]
fn damage_recomputes_the_unit_and_what_its_bytes_change() {
    let project = project();
    project.run(&[]);
    flip(&file_of(&project, 1));
    let ran = project.run(&["to=5"]);
    assert_eq!(ran.tasks, ["step 1", "step 4", "steps merge"], "its bytes are what they were");
    assert_eq!(ran.warnings().len(), 1, "{:?}", ran.warnings());
    assert_eq!((ran.stage("train").units_run, ran.stage("train").units_cached), (2, 3));

    // What is read besides the inputs is in no recipe: the unit gives other bytes.
    project.write("salt", "!");
    flip(&file_of(&project, 1));
    let ran = project.run(&["to=6"]);
    assert_eq!(ran.tasks, ["step 1", "step 2", "step 3", "step 4", "step 5", "steps merge"]);
    assert_eq!(project.read("results/toy/train/text.txt"), "s0\ns1!\ns2\ns3\ns4\ns5\n");
}

#[test]
fn plans_and_explanations_count_units() {
    let mut project = project();
    project.backend.fault = Some(("step 2".into(), Fault::Fails));
    project.run(&[]);
    project.backend.fault = None;
    let of = describe(&project, &[], "train");
    let predicted = &of.predicted["train"];
    assert_eq!(predicted.units.map(|units| (units.cached, units.total)), Some((2, 4)));
    assert_eq!(predicted.tasks, Some(1), "one after the other");
    assert_eq!(of.explanation.units.map(|units| (units.cached, units.total)), Some((2, 4)));
    project.run(&[]);
    let of = describe(&project, &[], "train");
    assert_eq!(of.explanation.units.map(|units| (units.cached, units.total)), Some((4, 4)));
}
