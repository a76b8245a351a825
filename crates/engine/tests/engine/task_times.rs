//! When tasks ran, beside the manifest.

use attrflow_engine::provenance::{manifest, task_times};

use crate::project::project;

#[test]
fn the_times_of_tasks_are_beside_the_manifest() {
    let project = project();
    let run = project.run(&[]).manifest;
    let times = || task_times::read(&manifest::list(&project.cache.join("runs/toy"))[0]).unwrap();
    let tasks = times();
    for record in &run.stages {
        let of_stage = tasks.iter().filter(|task| task.stage == record.stage).count();
        // The units, and their merge.
        assert!(of_stage > 0 && of_stage >= record.units_run, "{}: {of_stage}", record.stage);
    }
    assert!(tasks.iter().all(|task| 0.0 <= task.begin && task.begin <= task.end && task.end <= run.seconds));
    assert!(tasks.iter().all(|task| task.worker.starts_with("worker ")));
    project.run(&[]);
    assert!(times().is_empty(), "nothing was computed");
}
