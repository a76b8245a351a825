//! The edits and faults that distinguish workflow engines, on a chain of seven stages, each with its ideal number of
//! runs.

use std::time::{Duration, SystemTime};

use attrflow_engine::exec::{Cancel, CancelMode};
use attrflow_engine::provenance::manifest::Outcome;
use attrflow_engine::store::Store;

use crate::in_process::Fault;
use crate::project::Project;

const NAMES: [&str; 7] = ["data", "latents", "loss", "fisher", "unlearn", "influence", "show"];

/// Seven stages in a row: the fourth has a parameter, and three stages behind it.
fn chain() -> Project {
    let stage = |(place, name): (usize, &&str)| {
        let input = match place {
            0 => "../source.txt".to_owned(),
            place => format!("{}.text", NAMES[place - 1]),
        };
        let text = format!("${{{name}.text}}");
        format!(
            "[stages.{name}]\nkind = \"say\"\nparams = {{ text = \"{text}\" }}\ninputs = {{ a = \"{input}\" }}\n"
        )
    };
    let stages: String = NAMES.iter().enumerate().map(stage).collect();
    let values: String = NAMES.iter().map(|name| format!("[{name}]\ntext = \"{name}\"\n")).collect();
    let project = Project::new(
        &format!("config = \"../configs/toy.toml\"\n{stages}"),
        &format!("{values}[unused]\nkey = 1\n"),
    );
    project.write("source.txt", "source\n");
    project
}

const VALUES: &str = "configs/toy.toml";
const FISHER: &str = "[fisher]\ntext = \"fisher\"";

type Edit = fn(&mut Project);

/// An edit of a project that has run, and the number of stages that should then run.
const EDITS: &[(&str, usize, Edit)] = &[
    ("nothing", 0, |_| {}),
    ("one parameter of `fisher`", 4, |p| p.replace(VALUES, FISHER, "[fisher]\ntext = \"g\"")),
    ("back to the old value", 0, |p| {
        p.replace(VALUES, FISHER, "[fisher]\ntext = \"g\"");
        p.run(&[]);
        p.replace(VALUES, "[fisher]\ntext = \"g\"", FISHER);
    }),
    ("upstream runs again to the same bytes", 1, |p| {
        p.replace(VALUES, "text = \"data\"", "text = \"dates\"")
    }),
    ("a key that no stage uses", 0, |p| p.replace(VALUES, "key = 1", "key = 2")),
    ("touch a source", 0, |p| {
        let file = fs_err::OpenOptions::new().write(true).open(p.path("source.txt")).unwrap();
        file.file().set_modified(SystemTime::now() + Duration::from_secs(60)).unwrap();
    }),
    ("delete an intermediate", 0, |p| fs_err::remove_dir_all(p.path("results/toy/loss")).unwrap()),
    ("delete an intermediate's object", 1, |p| {
        let ran = p.run(&[]);
        let object = Store::open(&p.cache).unwrap().path(&ran.stage("loss").outputs["text"].digest);
        fs_err::remove_file(object).unwrap();
    }),
    ("rename a stage", 0, |p| {
        p.replace("pipelines/toy.toml", "[stages.fisher]", "[stages.diagonal]");
        p.replace("pipelines/toy.toml", "\"fisher.text\"", "\"diagonal.text\"");
    }),
    ("move the project", 0, Project::move_away),
    ("other workers and threads", 0, |p| {
        p.conditions.threads = 9;
        p.backend.slots = 4;
    }),
];

/// A fault of the first run, and the number of stages that the second should then run.
const FAULTS: &[(&str, usize, Edit)] = &[
    ("the first worker dies", 7, |p| p.backend.fault = Some(("say".into(), Fault::Dies))),
    ("interrupted after the second stage", 5, |p| (p.interrupt, p.haste) = (Some(6), CancelMode::Drain)),
    ("a dead run's lock", 7, |p| {
        let store = Store::open(&p.cache).unwrap();
        let fingerprint = chain().run(&[]).stage("data").fingerprint.unwrap();
        // The system releases the lock of a killed process.
        drop(store.lock(&fingerprint, || {}).unwrap());
        assert!(p.cache.join("units.lock").exists());
        p.interrupt = Some(0);
    }),
    ("a dead run's half-written output", 7, |p| {
        p.write("cache/tmp/1-dead/0/text.txt", "half-wr");
        p.write("cache/tmp/1-dead.lock", "");
        p.interrupt = Some(0);
    }),
];

#[expect(clippy::print_stdout, reason = "the table is to be seen")]
/// Compares the stages of the next run with the ideal, and its results with those of a clean run; prints a row.
fn held(what: &str, ideal: usize, project: &mut Project) {
    let ran = project.run(&[]);
    println!("{what:<40} {:>3} of {} ran, ideal {ideal}", ran.ran().len(), NAMES.len());
    assert_eq!(ran.ran().len(), ideal, "{what}: {:?}", ran.ran());
    assert_eq!(ran.with(Outcome::Cached).len(), NAMES.len() - ideal, "{what}");
    let results = project.results();
    project.cache = project.path("another-cache");
    fs_err::remove_dir_all(project.path("results")).unwrap();
    project.run(&[]);
    assert_eq!(project.results(), results, "{what}: not the bytes of a clean run");
}

#[test]
fn every_edit_runs_what_it_must_and_nothing_else() {
    for (what, ideal, edit) in EDITS {
        let mut project = chain();
        assert_eq!(project.run(&[]).ran().len(), NAMES.len());
        edit(&mut project);
        held(what, *ideal, &mut project);
    }
}

#[test]
fn every_fault_costs_what_it_must_and_nothing_else() {
    for (what, ideal, fault) in FAULTS {
        let mut project = chain();
        fault(&mut project);
        let first = project.run(&[]);
        assert!(first.ran().len() < NAMES.len(), "{what}: nothing went wrong");
        (project.interrupt, project.stop, project.backend.fault) = (None, Cancel::default(), None);
        held(what, *ideal, &mut project);
    }
}
