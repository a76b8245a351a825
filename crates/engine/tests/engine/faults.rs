//! Faults of a run: what is kept, and what the next run does.

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use attrflow_engine::exec::RunError;
use attrflow_engine::exec::event::Event;
use attrflow_engine::identity::digest::Digest;
use attrflow_engine::identity::recipe::Recipe;
use attrflow_engine::provenance::manifest::{self, Outcome};
use attrflow_engine::store::{Store, StoreError};
use serde_json::json;

use crate::in_process::Fault;
use crate::project::{CONFIG, PIPELINE, Project, Ran, files, project};

/// A stage that is independent of the others.
const APART: &str = "\n[stages.apart]\nkind = \"say\"\nparams = { text = \"apart\" }\n";

fn with(stages: &str) -> Project {
    let project = Project::new(&format!("{PIPELINE}{stages}"), CONFIG);
    project.write("source.txt", "source\n");
    project
}

/// The cache contains no half-written file, and the run's working folder is removed.
fn assert_clean(project: &Project) {
    for file in files(&project.cache) {
        let text = fs_err::read(&file).unwrap();
        assert!(!text.starts_with(b"half-wr"), "{} is half-written", file.display());
    }
    let tmp: Vec<_> = fs_err::read_dir(project.path("cache/tmp")).unwrap().flatten().collect();
    let names: Vec<_> = tmp.iter().map(|entry| entry.file_name()).collect();
    assert_eq!(names, ["gate"], "the working folder of the run is still there");
}

/// The index entries of the cache.
fn entries(project: &Project) -> Vec<PathBuf> {
    files(&project.path("cache/recipes-v2"))
}

const DIED: &str = "the worker process ended in the middle of the task (killed by the test)";

#[test]
fn a_unit_that_fails() {
    for (fault, error) in [(Fault::Fails, "failed by the test"), (Fault::Dies, DIED)] {
        let mut project = with(APART);
        project.backend.slots = 1;
        project.backend.fault = Some(("number 3".into(), fault));
        let ran = project.run(&[]);
        assert_eq!(ran.with(Outcome::Failed), ["lines"]);
        assert_eq!(ran.with(Outcome::Blocked), ["last[one]", "last[two]"]);
        assert_eq!(ran.ran(), ["apart", "first", "second"]);
        assert_eq!(ran.tasks, ["number 0", "number 1", "number 2", "say", "say", "say"]);
        let record = ran.stage("lines");
        assert_eq!(record.error.as_deref(), Some(error));
        assert_eq!((record.units_run, record.units_cached), (3, 0));
        assert!(record.fingerprint.is_some() && record.outputs.is_empty());
        assert!(ran.stage("last[one]").recipe.is_none());
        let failed: Vec<_> = ran
            .events
            .iter()
            .filter_map(|event| match event {
                Event::StageFailed { stage, unit, error } => {
                    Some((stage.as_str(), unit.as_deref(), &**error))
                }
                _ => None,
            })
            .collect();
        assert_eq!(failed, [("lines", Some("number 3"), error)]);
        assert!(!project.path("results/toy/lines").exists(), "a failed stage shows no results");
        assert_eq!(entries(&project).len(), 6, "three units and three stages; the failed one has no entry");
        assert_clean(&project);

        project.backend.fault = None;
        let healed = project.run(&[]);
        assert_eq!(healed.ran(), ["last[one]", "last[two]", "lines"]);
        assert_eq!(healed.tasks, ["count merge", "number 3", "say", "say"]);
        let record = healed.stage("lines");
        assert_eq!((record.units_run, record.units_cached), (1, 3));
        assert_clean(&project);
    }
}

#[test]
fn a_worker_that_died_is_replaced() {
    let counted =
        "[stages.counted]\nkind = \"count\"\nparams = { say = {} }\ninputs = { from = \"../source.txt\" }\n";
    let mut project = Project::new(&format!("{counted}{APART}"), "");
    project.write("source.txt", "source\n");
    project.backend.slots = 1;
    for (fault, starts) in [(Fault::Fails, 1), (Fault::Dies, 2)] {
        project.backend.fault = Some(("number 0".into(), fault.clone()));
        project.cache = project.path(if fault == Fault::Dies { "cache" } else { "cache-2" });
        let ran = project.run(&[]);
        assert_eq!((ran.with(Outcome::Failed), ran.ran()), (vec!["counted"], vec!["apart"]));
        assert_eq!(ran.starts, starts, "{fault:?}");
    }
}

#[test]
fn a_merge_that_fails() {
    for fault in [Fault::Fails, Fault::Dies] {
        let mut project = project();
        project.backend.fault = Some(("count merge".into(), fault));
        let ran = project.run(&[]);
        assert_eq!(ran.with(Outcome::Failed), ["lines"]);
        assert_eq!(ran.stage("lines").units_run, 4);
        assert_clean(&project);
        project.backend.fault = None;
        assert_eq!(project.run(&[]).tasks, ["count merge", "say", "say"], "all units were kept");
    }
}

#[test]
fn units_finish_after_another_failed() {
    let mut project = project();
    project.backend.slots = 4;
    project.backend.pause = Duration::from_millis(50);
    project.backend.fault = Some(("number 0".into(), Fault::Fails));
    let ran = project.run(&[]);
    let units = ran.tasks.iter().filter(|task| task.starts_with("number")).count();
    assert!(units >= 1, "the other slots had begun");
    assert_eq!(ran.stage("lines").units_run, units, "the manifest counts them");
    assert_clean(&project);
    project.backend.fault = None;
    let healed = project.run(&[]);
    assert_eq!(healed.stage("lines").units_cached, units, "their results were kept");
    assert_eq!(healed.stage("lines").units_run, 4 - units);
}

#[test]
fn a_stage_that_refuses() {
    let project = with(APART);
    let ran = project.run(&["second.text=!"]);
    assert_eq!(ran.with(Outcome::Failed), ["second"]);
    assert_eq!(ran.with(Outcome::Blocked), ["last[one]", "last[two]", "lines"]);
    assert_eq!(ran.ran(), ["apart", "first"]);
    assert_eq!(ran.stage("second").error.as_deref(), Some("failing as requested"));
    let blocked = |event: &Event| matches!(event, Event::StageBlocked { by, .. } if by == "second");
    assert_eq!(ran.events.iter().filter(|event| blocked(event)).count(), 3);
    // It is tried again, and the other stages are not.
    assert_eq!(project.run(&["second.text=!"]).starts, 1);

    let written = manifest::list(&project.path("cache/runs/toy"));
    assert_eq!(written.len(), 2);
    let read = manifest::read(&written[1]).unwrap();
    assert_eq!(serde_json::to_value(&read).unwrap(), serde_json::to_value(&ran.manifest).unwrap());
}

#[test]
fn an_output_that_is_missing() {
    let project = project();
    let ran = project.run(&["second.text=nothing"]);
    assert_eq!(ran.with(Outcome::Failed), ["second"]);
    assert_eq!(ran.stage("second").error.as_deref(), Some("the stage wrote no `text.txt`"));
    assert_eq!(entries(&project).len(), 1, "`first` alone has an entry");
}

#[test]
fn a_missing_path_below_an_output() {
    let project = with("\n[stages.below]\nkind = \"say\"\ninputs = { a = \"lines.lines/sub/titel.txt\" }\n");
    let ran = project.run(&[]);
    assert_eq!(ran.with(Outcome::Failed), ["below"]);
    let why = "the input `a` reads `sub/titel.txt` below the output `lines.lines`, which has sub/title.txt";
    assert_eq!(ran.stage("below").error.as_deref(), Some(why));
}

#[test]
fn units_that_finish_in_any_order() {
    let expected =
        "Tsource\nah".replace("ah", "aa") + &(0..4).map(|n| format!("source\naab{n}x\n")).collect::<String>();
    for (slots, reversed) in [(1, false), (4, false), (4, true)] {
        let mut project = project();
        project.backend.slots = slots;
        project.backend.reversed = reversed;
        let ran = project.run(&[]);
        let finished: Vec<&str> = ran
            .events
            .iter()
            .filter_map(|event| match event {
                Event::UnitFinished { unit, .. } => Some(unit.as_str()),
                _ => None,
            })
            .collect();
        assert_eq!(finished.len(), 4);
        if reversed {
            assert_eq!(finished, ["number 3", "number 2", "number 1", "number 0"]);
        }
        assert_eq!(project.read("results/toy/lines/folder/lines.txt"), expected, "{slots} slots");
    }
}

#[test]
fn working_folders_of_dead_runs() {
    let project = project();
    for name in ["1-dead", "2-alive"] {
        project.write(&format!("cache/tmp/{name}/0/line"), "half-wr");
        project.write(&format!("cache/tmp/{name}.lock"), "");
    }
    let alive = fs_err::File::open(project.path("cache/tmp/2-alive.lock")).unwrap();
    alive.file().lock().unwrap();
    project.run(&[]);
    let there = |name: &str| project.path("cache/tmp").join(name).exists();
    assert!(!there("1-dead") && !there("1-dead.lock"));
    assert!(there("2-alive/0/line") && there("2-alive.lock"), "a living run's folder was swept");
    drop(alive);
    project.run(&["first.text=b"]);
    assert_clean(&project);
}

#[test]
fn two_runs_at_once() {
    for round in 0..5 {
        let mut project = project();
        project.backend.pause = Duration::from_millis(5);
        let (one, two) = std::thread::scope(|scope| {
            let one = scope.spawn(|| project.run(&[]));
            let two = scope.spawn(|| project.run(&[]));
            (one.join().unwrap(), two.join().unwrap())
        });
        let mut tasks: Vec<&String> = one.tasks.iter().chain(&two.tasks).collect();
        tasks.sort();
        let expected =
            ["count merge", "number 0", "number 1", "number 2", "number 3", "say", "say", "say", "say"];
        assert_eq!(tasks, expected, "round {round}: something was computed twice, or never");
        for (a, b) in one.manifest.stages.iter().zip(&two.manifest.stages) {
            assert_eq!((&a.stage, &a.outputs), (&b.stage, &b.outputs));
        }
        assert_eq!(project.run(&[]).starts, 0);
        assert_clean(&project);
    }
}

/// One run starts and removes leftovers while others end.
#[test]
fn working_folders_made_and_removed_at_once() {
    let folder = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let store = Store::open(folder.path()).unwrap();
                for _ in 0..200 {
                    let scratch = store.scratch().unwrap();
                    let attempt = scratch.attempt().unwrap();
                    assert!(attempt.path().is_dir(), "another run took it for a dead run's");
                }
            });
        }
    });
}

#[test]
fn a_lock_keeps_others_waiting() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let other = Store::open(folder.path()).unwrap();
    let fingerprint = recipe("a").fingerprint();
    let lock = store.lock(&fingerprint, || {}).unwrap();
    drop(other.lock(&recipe("b").fingerprint(), || {}).unwrap());
    let (sender, receiver) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let _lock = other.lock(&fingerprint, || {}).unwrap();
            sender.send(()).unwrap();
        });
        assert!(receiver.recv_timeout(Duration::from_millis(100)).is_err(), "two held one lock");
        drop(lock);
        receiver.recv_timeout(Duration::from_secs(20)).unwrap();
    });
}

/// The index file of a stage.
fn entry_of(project: &Project, ran: &Ran, stage: &str) -> PathBuf {
    let name = ran.stage(stage).fingerprint.unwrap().to_string();
    project.path("cache/recipes-v2").join(&name[..2]).join(format!("{name}.json"))
}

/// Makes a file of the store unreadable; returns its content.
fn break_file(path: &Path) -> Vec<u8> {
    let bytes = fs_err::read(path).unwrap();
    fs_err::remove_file(path).unwrap();
    fs_err::create_dir(path).unwrap();
    bytes
}

fn heal_file(path: &Path, bytes: &[u8]) {
    fs_err::remove_dir(path).unwrap();
    fs_err::write(path, bytes).unwrap();
}

/// A run that must stop because of an unreadable file.
fn broken(result: Result<Ran, RunError>, path: &Path) {
    match result {
        Err(RunError::Store(StoreError::Io(error))) => {
            assert!(error.to_string().contains(path.to_str().unwrap()), "{error}")
        }
        Err(error) => panic!("another error: {error}"),
        Ok(ran) => panic!("it ran {:?}", ran.ran()),
    }
}

/// A truncated entry, or one that does not match its checksum, is ignored and costs only its own stage.
#[test]
fn a_damaged_index() {
    let project = project();
    let ran = project.run(&[]);
    let (second, first) = (entry_of(&project, &ran, "second"), entry_of(&project, &ran, "first"));
    let text = fs_err::read_to_string(&second).unwrap();
    let lied = text.replace(&ran.stage("second").outputs["text"].digest.to_string(), &"0".repeat(64));
    assert_ne!(lied, text);
    let damage = [
        (text[..text.len() / 2].to_owned(), "EOF"),
        (String::new(), "EOF"),
        (fs_err::read_to_string(&first).unwrap(), "not that of its name"),
        (lied, "its outputs do not have its checksum"),
    ];
    for (wrong, why) in damage {
        fs_err::write(&second, wrong).unwrap();
        let healed = project.run(&[]);
        assert_eq!(healed.ran(), ["second"], "{why}");
        let warned = |message: &str| message.contains(second.to_str().unwrap()) && message.contains(why);
        assert!(healed.warnings().iter().any(|message| warned(message)), "{:?}", healed.warnings());
        assert_eq!(project.run(&[]).ran(), [""; 0], "{why}");
    }
    let bytes = break_file(&second);
    broken(project.try_run(&[], &[]), &second);
    heal_file(&second, &bytes);
    assert_eq!(project.run(&[]).ran(), [""; 0]);
}

/// A run that ends early must not record results that are not placed.
#[test]
fn a_run_that_ends_in_the_middle() {
    let project = project();
    let old = project.run(&[]);
    let before = project.results();
    let new = project.run(&["first.times=3"]);
    project.run(&[]);
    assert_eq!(project.results(), before);
    // `first` is placed with its new bytes, then the lookup of `second` fails.
    let entry = entry_of(&project, &new, "second");
    let bytes = break_file(&entry);
    broken(project.try_run(&["first.times=3"], &[]), &entry);
    assert_ne!(project.results(), before);
    heal_file(&entry, &bytes);
    assert_eq!(project.run(&[]).ran(), [""; 0]);
    assert_eq!(project.results(), before, "the results are not those of the manifest");
    assert!(old.ran().contains(&"first"));
}

/// Queued jobs are not started once the run cannot continue.
#[test]
fn the_queue_of_a_run_that_cannot_continue() {
    let stages = r#"
[stages.early]
kind = "say"

[stages.reader]
kind = "say"
inputs = { a = "early.text" }

[stages.slow]
kind = "count"
params = { say = {}, to = 40 }
inputs = { from = "../source.txt" }
"#;
    let mut project = Project::new(stages, "");
    project.write("source.txt", "source\n");
    let ran = project.run(&[]);
    let entry = entry_of(&project, &ran, "reader");
    break_file(&entry);
    fs_err::remove_dir_all(project.path("cache/objects")).unwrap();
    project.backend.slots = 1;
    project.backend.pause = Duration::from_millis(10);
    broken(project.try_run(&[], &["reader"]), &entry);
    fs_err::remove_dir_all(project.path("cache/objects")).unwrap();
    broken(project.try_run(&[], &[]), &entry);
    fs_err::remove_dir(&entry).unwrap();
    let healed = project.run(&[]);
    let cached = healed.stage("slow").units_cached;
    assert!(cached < 20, "{cached} units were computed by a run that could not go on");
}

#[test]
fn a_damaged_file_state() {
    let project = project();
    std::thread::sleep(Duration::from_millis(120));
    project.run(&[]);
    for text in ["", "{", "[1]", "\u{0}\u{0}"] {
        project.write("cache/file-state-v1", text);
        assert_eq!(project.run(&[]).starts, 0, "{text:?}");
        assert!(project.remembers("source.txt"), "{text:?} was not replaced");
    }
}

#[test]
fn a_damaged_record_of_results() {
    let project = project();
    project.run(&[]);
    let before = project.results();
    for text in ["", "{", "[1]"] {
        project.write("results/toy/.shown.json", text);
        assert_eq!(project.run(&[]).starts, 0, "{text:?}");
        assert_eq!(project.results(), before);
    }
}

fn recipe(kind: &str) -> Recipe {
    Recipe {
        kind: kind.into(),
        version: 1,
        params: json!({}),
        inputs: Default::default(),
        numerics: None,
        unit: None,
    }
}

fn write(folder: &Path, name: &str, text: &str) -> (String, PathBuf) {
    let path = folder.join(name);
    fs_err::write(&path, text).unwrap();
    (name.to_owned(), path)
}

#[test]
fn an_entry_appears_only_with_all_outputs() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("cache")).unwrap();
    let recipe = recipe("a");
    let fingerprint = recipe.fingerprint();
    assert!(store.lookup(&fingerprint).unwrap().is_none());
    let one = write(folder.path(), "one", "1");
    let two = ("two".to_owned(), folder.path().join("two"));
    let result = store.commit(&recipe, &[one, two], None, 1.0);
    assert!(matches!(result, Err(StoreError::MissingOutput(name)) if name == "two"));
    assert!(store.lookup(&fingerprint).unwrap().is_none(), "an entry without one of its outputs");

    let outputs = [write(folder.path(), "one", "1"), write(folder.path(), "two", "2")];
    let entry = store.commit(&recipe, &outputs, None, 1.0).unwrap();
    let found = store.lookup(&fingerprint).unwrap().unwrap();
    assert_eq!((&found.outputs, &found.recipe), (&entry.outputs, &recipe));
    let object = store.path(&found.outputs["two"].digest);
    assert_eq!(fs_err::read_to_string(&object).unwrap(), "2");
    assert!(fs_err::metadata(&object).unwrap().permissions().readonly());
    assert_eq!(found.outputs["two"].digest, Digest::of_file(&object).unwrap());
    fs_err::remove_file(&object).unwrap();
    assert!(store.lookup(&fingerprint).unwrap().is_none(), "an entry whose object is gone");
}
