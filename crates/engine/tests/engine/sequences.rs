//! Any sequence of edits, kills and reruns gives the bytes of a clean run, and computes nothing twice.

use std::collections::{BTreeMap, BTreeSet};

use attrflow_engine::exec::{Cancel, CancelMode};
use attrflow_engine::identity::digest::Digest;
use attrflow_engine::provenance::manifest::Outcome;
use attrflow_engine::store::Store;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::in_process::Fault;
use crate::project::{CONFIG, PIPELINE, Project, Ran, project};

/// One step of a sequence: an edit, a loss of files, or a run.
#[derive(Debug, Clone)]
enum Step {
    /// Another value of a parameter; 0 is the initial one.
    Param(usize, usize),
    /// Other bytes in the source.
    Source(usize),
    /// `second` is renamed, or has its initial name.
    Name(bool),
    /// A stage's object is removed.
    Delete(usize),
    /// An output is removed from the results.
    Unshow(usize),
    /// A run to the end.
    Run,
    /// A run that is interrupted after this many events.
    Interrupt(usize),
    /// A run whose worker dies at a task.
    Die(usize),
}

const PARAMS: [(&str, [&str; 3]); 5] = [
    ("first.text", ["a", "apple", "c"]),
    ("second.text", ["b", "bat", "d"]),
    ("say.text", ["x", "xy", "z"]),
    ("count.to", ["4", "2", "5"]),
    ("items.two.text", ["'2'", "'3'", "'23'"]),
];
const TASKS: [&str; 4] = ["say", "number 0", "number 2", "count merge"];
const SHOWN: [&str; 3] = ["first/text.txt", "lines/folder", "last/two/text.txt"];

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..PARAMS.len(), 0..3_usize).prop_map(|(param, value)| Step::Param(param, value)),
        1 => (0..3_usize).prop_map(Step::Source),
        1 => any::<bool>().prop_map(Step::Name),
        1 => (0..5_usize).prop_map(Step::Delete),
        1 => (0..SHOWN.len()).prop_map(Step::Unshow),
        3 => Just(Step::Run),
        2 => (0..25_usize).prop_map(Step::Interrupt),
        2 => (0..TASKS.len()).prop_map(Step::Die),
    ]
}

/// A project, and the recorded results.
struct World {
    project: Project,
    values: [usize; PARAMS.len()],
    /// The output of each fingerprint.
    kept: BTreeMap<String, Vec<Digest>>,
    /// Objects that were removed.
    gone: BTreeSet<Digest>,
    last: Option<Ran>,
}

impl World {
    fn sets(&self) -> Vec<String> {
        let pairs = PARAMS.iter().zip(self.values);
        pairs.map(|((key, values), value)| format!("{key}={}", values[value])).collect()
    }

    fn run(&mut self) -> Ran {
        let sets = self.sets();
        let ran = self.project.run(&sets.iter().map(String::as_str).collect::<Vec<_>>());
        for record in &ran.manifest.stages {
            let Some(fingerprint) = record.fingerprint.map(|fingerprint| fingerprint.to_string()) else {
                continue;
            };
            let cached = self
                .kept
                .get(&fingerprint)
                .is_some_and(|digests| digests.iter().all(|digest| !self.gone.contains(digest)));
            let digests: Vec<Digest> = record.outputs.values().map(|output| output.digest).collect();
            match record.outcome {
                Outcome::Ran => {
                    assert!(!cached, "{} ran, whose result was cached", record.stage);
                    // Other results with the same bytes are valid again.
                    self.gone.retain(|digest| !digests.contains(digest));
                    self.kept.insert(fingerprint, digests);
                }
                Outcome::Cached => assert!(cached, "{} was cached, whose result was not there", record.stage),
                _ => {}
            }
        }
        self.last = Some(ran.clone());
        ran
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Param(param, value) => self.values[*param] = *value,
            Step::Source(text) => self.project.write("source.txt", &format!("source {text}\n")),
            Step::Name(other) => {
                let name = if *other { "middle" } else { "second" };
                let text = PIPELINE.replace("[stages.second]", &format!("[stages.{name}]"));
                let text = text.replace("\"second.text\"", &format!("\"{name}.text\""));
                self.project.write("pipelines/toy.toml", &text);
            }
            Step::Delete(stage) => self.delete(*stage),
            Step::Unshow(name) => {
                let path = self.project.path("results/toy").join(SHOWN[*name]);
                // If there is nothing to remove, the step is skipped.
                let _ = if path.is_dir() { fs_err::remove_dir_all(path) } else { fs_err::remove_file(path) };
            }
            Step::Run => drop(self.run()),
            Step::Interrupt(events) => {
                self.project.interrupt = Some(*events);
                self.run();
                self.project.interrupt = None;
                self.project.stop = Cancel::default();
            }
            Step::Die(task) => {
                self.project.backend.fault = Some((TASKS[*task].into(), Fault::Dies));
                self.run();
                self.project.backend.fault = None;
            }
        }
    }

    /// Removes an object of the last run, and thereby all results with the same bytes.
    fn delete(&mut self, stage: usize) {
        let Some(last) = &self.last else { return };
        let Some(artifact) = last.manifest.stages[stage % last.manifest.stages.len()].outputs.values().next()
        else {
            return;
        };
        let store = Store::open(&self.project.cache).unwrap();
        let object = store.path(&artifact.digest);
        let removed =
            if object.is_dir() { fs_err::remove_dir_all(&object) } else { fs_err::remove_file(&object) };
        if removed.is_ok() {
            self.gone.insert(artifact.digest);
        }
    }
}

/// The results of these settings with an empty cache, remembered.
fn clean(world: &World, known: &mut BTreeMap<String, BTreeMap<String, String>>) -> BTreeMap<String, String> {
    let sets = world.sets();
    let source = world.project.read("source.txt");
    let pipeline = world.project.read("pipelines/toy.toml");
    let make = || {
        let fresh = Project::new(&pipeline, CONFIG);
        fresh.write("source.txt", &source);
        fresh.run(&sets.iter().map(String::as_str).collect::<Vec<_>>());
        fresh.results()
    };
    known.entry(format!("{sets:?}{source}{pipeline}")).or_insert_with(make).clone()
}

#[test]
fn any_sequence_of_edits_kills_and_reruns_ends_as_a_clean_run() {
    let cases = std::env::var("ATTRFLOW_SEQUENCES").ok().and_then(|text| text.parse().ok()).unwrap_or(24);
    let mut runner = TestRunner::new(Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: 200,
        ..Config::default()
    });
    let known = std::cell::RefCell::new(BTreeMap::new());
    let result = runner.run(&proptest::collection::vec(step(), 1..12), |steps| {
        let mut world = World {
            project: project(),
            values: [0; PARAMS.len()],
            kept: BTreeMap::new(),
            gone: BTreeSet::new(),
            last: None,
        };
        steps.iter().for_each(|step| world.step(step));
        let ran = world.run();
        prop_assert_eq!(ran.with(Outcome::Failed).len() + ran.with(Outcome::Interrupted).len(), 0);
        prop_assert_eq!(world.project.results(), clean(&world, &mut known.borrow_mut()));
        let again = world.run();
        prop_assert_eq!((again.ran(), again.starts), (vec![], 0));
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn a_run_interrupted_at_any_event_keeps_finished_work() {
    for haste in [CancelMode::Drain, CancelMode::Kill] {
        for events in 0..30 {
            let mut project = project();
            project.haste = haste;
            project.interrupt = Some(events);
            let ran = project.run(&[]);
            let stages = ran.manifest.stages.len();
            assert_eq!(stages, 5, "every stage is in the manifest");
            assert_eq!(ran.ran().len() + ran.with(Outcome::Interrupted).len(), stages);
            (project.interrupt, project.stop) = (None, Cancel::default());
            let rest = project.run(&[]);
            // Nothing twice, and nothing that was started and not kept.
            let (done, all) = (ran.tasks.len() + rest.tasks.len(), 9);
            assert_eq!(done, all, "{haste:?} after {events} events: {:?}, then {:?}", ran.tasks, rest.tasks);
        }
    }
}
