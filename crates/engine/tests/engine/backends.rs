//! The toys' backend does what every backend must, and what a run makes of its workers.

use std::path::PathBuf;
use std::time::Duration;

use attrflow_engine::config::param::Validate;
use attrflow_engine::exec::RunError;
use attrflow_engine::kind::{Compute, Context, Device, Kind, KindInfo, Output, Stage, Task};
use attrflow_engine::params;
use attrflow_engine::provenance::manifest::Outcome;
use attrflow_engine::worker::protocol::{DeviceClass, Facts};
use serde_json::json;

use crate::conformance::{Act, Subject, conformance};
use crate::in_process::{Fault, InProcess};
use crate::project::{facts, project};

params! {
    /// Does one thing, for the conformance tests.
    pub struct Acts {
        act: String,
        own: String = "".to_owned(),
        other: String = "".to_owned(),
    }
}
impl Validate for Acts {}

impl Kind for Acts {
    const INFO: KindInfo = KindInfo {
        outputs: &[Output::new("file", "file", "text")],
        ..KindInfo::new::<Self>("acts", 1, "does one thing")
    };
}

impl Stage for Acts {}

impl Compute for Acts {
    fn run(&self, task: &Task, cx: &Context<'_>) -> anyhow::Result<()> {
        cx.progress(1, 1);
        match self.act.as_str() {
            "meet" => {
                fs_err::write(&self.own, "")?;
                while !PathBuf::from(&self.other).exists() {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            "write" | "log" => {}
            failure => anyhow::bail!("{failure}"),
        }
        Ok(fs_err::write(task.out.join("file"), "done")?)
    }
}

#[test]
fn workers_in_this_process() {
    let facts = Facts { libtorch: Some("1".into()), ..Facts::of_machine("the toys", Device::Cpu) };
    let backend = InProcess { slots: 2, facts, ..InProcess::default() };
    let params = |act: &Act| match act {
        Act::Write => json!({ "act": "write", "own": "", "other": "" }),
        Act::Log => json!({ "act": "log", "own": "a line", "other": "" }),
        Act::Fail => json!({ "act": "no luck", "own": "", "other": "" }),
        Act::Die => json!({ "act": "dies", "own": "", "other": "" }),
        Act::Meet(own, other) => json!({ "act": "meet", "own": own, "other": other }),
        Act::Hang(id) => unreachable!("no process writes {}", id.display()),
    };
    let (kind, params, file) = ("acts", &params, "file");
    conformance(&Subject { backend: &backend, libtorch: true, kind, params, file, progress: true });
}

#[test]
fn a_worker_that_contradicts_the_recipe_ends_the_run() {
    let mut project = project();
    let fits = facts(&project.numerics);
    let other = Facts { libtorch: Some("2".into()), host: "node1".into(), ..fits.clone() };
    let gpu = Facts { device: DeviceClass::Cuda, host: "node1".into(), ..fits.clone() };
    let refused = [
        (other, "the worker on `node1` has libtorch 2, this run needs 1"),
        (gpu, "the worker on `node1` computes on `cuda`, this run needs `cpu`"),
        (Facts { libtorch: None, ..fits }, "the worker on `` has libtorch none, this run needs 1"),
    ];
    for (facts, message) in refused {
        project.facts = Some(facts);
        match project.try_run(&[], &[]) {
            Err(RunError::Worker(error)) => assert_eq!(error, message),
            other => panic!("it was not refused: {:?}", other.map(|ran| ran.tasks)),
        }
    }
    // No unit failed by that: nothing is recorded, and nothing in the way of the next run.
    assert!(!project.path("cache/runs/toy").exists());
    project.facts = None;
    assert_eq!(project.run(&[]).with(Outcome::Failed), [""; 0]);
}

#[test]
fn a_lost_worker_costs_its_tasks_once() {
    let mut project = project();
    project.backend.slots = 1;
    project.backend.fault = Some(("number 1".into(), Fault::Lost(1)));
    let ran = project.run(&[]);
    assert_eq!(ran.with(Outcome::Failed), [""; 0]);
    let warning = "a worker was lost (lost by the test); what it was computing is computed again";
    assert_eq!(ran.warnings(), [warning]);
    assert_eq!((ran.starts, ran.stage("lines").units_run), (2, 4));

    project.cache = project.path("cache-2");
    project.backend.fault = Some(("number 1".into(), Fault::Lost(2)));
    let ran = project.run(&[]);
    assert_eq!(ran.with(Outcome::Failed), ["lines"]);
    assert_eq!(ran.stage("lines").error.as_deref(), Some("the worker was lost: lost by the test"));
    assert_eq!(ran.stage("lines").units_run, 3);
}

#[test]
fn two_devices_share_a_run_each_with_its_kinds() {
    let mut project = project();
    let expected = project.run(&[]);
    let results = project.results();
    project.cache = project.path("cache-2");
    project.backend = InProcess { slots: 4, devices: true, ..InProcess::default() };
    let ran = project.run(&[]);
    // That each stage is computed by its own device, the worker itself asserts.
    assert_eq!((ran.tasks, project.results()), (expected.tasks, results));
    assert!(ran.starts >= 2, "{}", ran.starts);
}

#[test]
fn work_that_is_given_together_is_kept_one_by_one() {
    let mut project = project();
    project.backend.slots = 1;
    let expected = project.run(&[]);
    let results = project.results();
    project.cache = project.path("cache-2");
    project.backend.seconds = 1000.0;
    let ran = project.run(&[]);
    assert_eq!((ran.tasks, project.results()), (expected.tasks, results));
    let given = project.backend.given.lock().unwrap().clone();
    // The first of a kind is measured alone; then there is more at once.
    assert!(given[0] == 1 && given.iter().any(|batches| *batches > 1), "{given:?}");

    // One that fails in the middle takes nothing with it that was done before, and is computed alone.
    project.cache = project.path("cache-3");
    project.backend.fault = Some(("number 2".into(), Fault::Fails));
    let ran = project.run(&[]);
    assert_eq!(ran.with(Outcome::Failed), ["lines"]);
    assert_eq!(ran.stage("lines").error.as_deref(), Some("failed by the test"));
    assert!(ran.stage("lines").units_run >= 2, "{}", ran.stage("lines").units_run);
}
