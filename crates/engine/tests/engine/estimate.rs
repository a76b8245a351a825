//! Estimates of a run's cost before it, on toy kinds.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

use attrflow_engine::estimate::{
    Forecast, MachineProfile, MeasureBackend, MeasureEvent, MeasureRequest, measure,
};
use attrflow_engine::explain::{Prediction, Predictor};
use attrflow_engine::kind::{ArtifactShape, Context, Device, Downloads, ExpectedInputs};
use attrflow_engine::pipeline;
use attrflow_engine::plan::graph::Graph;
use attrflow_engine::plan::{Action, Planner};
use attrflow_engine::store::Store;
use attrflow_engine::worker::measure::{CostModel, Memory, measure as measure_one};

use crate::project::Project;
use crate::toys::{Count, Say, registry};

const PIPELINE: &str = r#"
config = "../configs/toy.toml"

[stages.lines]
kind = "count"
params = { say = {}, to = "${to}" }
inputs = { from = "../source.txt" }

[stages.again]
kind = "count"
params = { say = {}, to = 6 }
inputs = { from = "lines.lines" }

[stages.other]
kind = "count"
params = { say = { text = "other" } }
inputs = { from = "lines.lines" }

[stages.echo]
kind = "echo"
inputs = { lines = "other.lines" }

[stages.last]
kind = "count"
params = { say = {} }
inputs = { from = "echo.text" }
"#;

fn project() -> Project {
    let project = Project::new(PIPELINE, "to = 4\n");
    project.write("source.txt", "source\n");
    project
}

/// Returns the given result and records the requests.
struct Given {
    found: Result<Vec<CostModel>, String>,
    requests: RefCell<Vec<MeasureRequest>>,
}

impl MeasureBackend for Given {
    fn measure(&self, ask: &MeasureRequest) -> Result<Vec<CostModel>, String> {
        self.requests.borrow_mut().push(ask.clone());
        self.found.clone()
    }
}

fn given(found: Result<Vec<CostModel>, &str>) -> Given {
    Given { found: found.map_err(str::to_owned), requests: RefCell::default() }
}

fn circumstances(threads: usize) -> MachineProfile {
    MachineProfile { jobs: 2, threads, micro_batch: 8, hardware: "a machine".into(), pools: BTreeMap::new() }
}

/// Plans a project with this many threads; returns the estimate, the events, and the predictions by stage.
fn with<T>(
    project: &Project,
    threads: usize,
    backend: Option<&Given>,
    look: impl Fn(&Forecast, &dyn Fn(&str) -> Option<Prediction>) -> T,
) -> (Vec<MeasureEvent>, T) {
    let (pipeline, _) = pipeline::load(&project.path("pipelines/toy.toml"), &[], &registry())
        .unwrap_or_else(|(problems, sources)| panic!("{}", problems.render(&sources, false)));
    let graph = Graph::new(&pipeline).ok().unwrap();
    let store = Store::open(&project.cache).unwrap();
    let planner = Planner::new(&pipeline, &store, &project.numerics, &[]);
    let actions = planner.all(&graph).unwrap();
    let mut forecast = Forecast::new(&planner, &actions, &circumstances(threads));
    let mut events = Vec::new();
    if let Some(backend) = backend {
        measure(&mut forecast, &planner, backend, &mut |one| events.push(one)).unwrap();
    }
    let predictor = Predictor::new(&planner, &forecast);
    let predict = |name: &str| {
        let of = |(index, _): &&(usize, Action)| pipeline.stages[*index].id == name;
        let (index, verdict) = actions.iter().find(of).unwrap();
        predictor.predict(&pipeline.stages[*index], verdict).unwrap()
    };
    let seen = look(&forecast, &predict);
    (events, seen)
}

const FIRST: CostModel = CostModel { start: 1.0, task: 0.5, step: 2.0, merge: 0.01, host: 1000, device: 7 };
const SECOND: CostModel = CostModel { start: 3.0, task: 1.5, step: 4.0, merge: 0.03, host: 3000, device: 5 };

#[test]
fn shapes_propagate_before_anything_ran() {
    with(&project(), 1, None, |forecast, predict| {
        let lines = forecast.of("lines").unwrap();
        assert_eq!(
            lines.inputs.shape("from").unwrap(),
            &ArtifactShape::Path(lines.inputs.inputs().path("from").to_path_buf())
        );
        let again = forecast.of("again").unwrap();
        assert_eq!(again.inputs.shapes["from"], ArtifactShape::Bytes(400));
        let predicted = predict("again").unwrap();
        assert_eq!((predicted.bytes, predicted.disk, predicted.seconds), (Some(600), Some(660), None));
        // A kind without estimates ends the chain.
        let why = forecast.of("last").unwrap().estimate.as_ref().unwrap_err();
        assert_eq!(why, "the input `from` is unknown until `echo` has run");
    });
}

#[test]
fn measurements_are_kept_for_equal_work() {
    let project = project();
    let backend = given(Ok(vec![FIRST, SECOND]));
    let seconds = |_: &Forecast, predict: &dyn Fn(&str) -> Option<Prediction>| {
        ["lines", "again", "other", "last"].map(|name| predict(name).unwrap().seconds)
    };
    let (events, found) = with(&project, 1, Some(&backend), seconds);
    // `lines` and `again` differ only in the amount of work.
    let why = "the input `from` is unknown until `echo` has run".to_owned();
    let measuring = |name: &str| MeasureEvent::Measuring(name.into());
    assert_eq!(events, [measuring("lines"), measuring("other"), MeasureEvent::Not("last".into(), why)]);
    assert_eq!(backend.requests.borrow().len(), 2);
    // The mean of the workers: 1 second a task, 3 a step, and 0.02 for each of 10 bytes a task.
    assert_eq!(found, [Some(16.8), Some(25.2), Some(16.8), None]);
    assert_eq!(with(&project, 1, None, seconds).1, found, "kept");
    assert_eq!(with(&project, 2, None, seconds).1, [None; 4], "measured with other threads");
    with(&project, 1, None, |_, predict| {
        let predicted = predict("lines").unwrap();
        assert_eq!((predicted.host_memory, predicted.device_memory), (Some(3000), Some(7)));
        assert_eq!((predicted.tasks, predicted.basis.as_str()), (Some(4), "a measurement on this machine"));
        assert!((predicted.joining - 0.8).abs() < 1e-9, "{predicted:?}");
    });
    // Cached units take no time.
    project.run(&[]);
    project.write("configs/toy.toml", "to = 6\n");
    with(&project, 1, None, |forecast, predict| {
        assert!(forecast.of("again").is_some());
        let predicted = predict("lines").unwrap();
        assert_eq!((predicted.tasks, predicted.seconds), (Some(2), Some(9.2)));
        assert_eq!(predicted.disk, Some(620));
    });
}

#[test]
fn failed_measurements_are_reported_and_not_kept() {
    let project = project();
    let backend = given(Err("out of memory"));
    let (events, ()) = with(&project, 1, Some(&backend), |_, predict| {
        assert_eq!(predict("lines").unwrap().seconds, None);
    });
    assert!(events.contains(&MeasureEvent::Not("lines".into(), "out of memory".into())), "{events:?}");
    assert!(!project.cache.join("costs-v1").exists());
    // A damaged file is ignored.
    let backend = given(Ok(vec![FIRST]));
    let seconds =
        |_: &Forecast, predict: &dyn Fn(&str) -> Option<Prediction>| predict("lines").unwrap().seconds;
    assert!(with(&project, 1, Some(&backend), seconds).1.is_some());
    for file in fs_err::read_dir(project.cache.join("costs-v1")).unwrap() {
        fs_err::write(file.unwrap().path(), "{").unwrap();
    }
    assert_eq!(with(&project, 1, None, seconds).1, None);
}

#[test]
fn a_trial_does_real_work() {
    let folder = tempfile::tempdir().unwrap();
    let downloads = Downloads { folder: "downloads".into(), lock: "attrflow.lock".into(), at_once: 1 };
    let cx = Context::new(Device::Cpu, 1, (&downloads, Path::new("trials")), &|_, _, _, _| {}, &|_| {});
    let count = Count { say: Say { text: "x".into(), times: 1 }, to: 4, title: String::new() };
    let mut inputs = ExpectedInputs::default();
    inputs.shapes.insert("from".into(), ArtifactShape::Bytes(9));
    let memory = || Memory { host: 5, device: 6 };
    let measured = measure_one(&count, &inputs, folder.path(), &cx, &memory).unwrap();
    assert_eq!((measured.host, measured.device), (5, 6));
    let CostModel { start, task, step, merge, .. } = measured;
    assert!(
        [start, task, merge].iter().all(|seconds| (0.0..5.0).contains(seconds)) && step > 0.0,
        "{measured:?}"
    );
    let line = fs_err::read_to_string(folder.path().join("0/out/line")).unwrap();
    assert_eq!(line, "made up\n0x\n");
    assert!(folder.path().join("merge-out/folder/lines.txt").is_file());
}
