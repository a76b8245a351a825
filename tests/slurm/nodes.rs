//! What the nodes of a cluster may be like, and what every backend must do.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use attrflow_engine::cluster::backend::{ClusterBackend, Notice, Scheduler, Setup};
use attrflow_engine::cluster::slurm::{Slurm, script};
use attrflow_engine::cluster::{JobLine, PoolConfig, RunConfig, RunFolder, SlurmError};
use attrflow_engine::exec::Cancel;
use attrflow_engine::identity::recipe::Numerics;
use attrflow_engine::kind::{Device, Downloads};
use attrflow_engine::pipeline::cluster_table::{Pool, Waits};
use attrflow_engine::worker::local::{LocalBackend, WorkerProgram};
use attrflow_engine::worker::protocol::WorkerConfig;
use serde_json::Value as Json;

use crate::acts;
use crate::conformance::{Subject, conformance};
use crate::lab::{Lab, hellos, miniature, newest_run};
use crate::project::Project;

const RUN: [&str; 3] = ["run", "pipelines/demo.toml", "--json"];

/// The account of a stage in the newest manifest.
fn record(project: &Project, stage: &str) -> Json {
    let runs = fs_err::read_dir(project.path("cache/runs/demo")).unwrap().map(|run| run.unwrap().path());
    let newest = runs.filter(|path| path.extension().is_some_and(|ending| ending == "json")).max().unwrap();
    let manifest: Json = serde_json::from_slice(&fs_err::read(newest).unwrap()).unwrap();
    let stages = manifest["stages"].as_array().unwrap();
    stages.iter().find(|found| found["stage"] == stage).unwrap().clone()
}

#[test]
fn the_manifest_names_the_workers_of_each_stage() {
    let Some(lab) = Lab::up(&[]) else { return };
    let project = miniature(6, "\n[cluster.pools.cpu]\nworkers = 2\n");
    lab.attrflow(&project, &["run", "pipelines/demo.toml", "--target", "pretrain_loss"]).well();
    let workers = &record(&project, "pretrain_loss")["workers"];
    assert_eq!(workers["pools"], serde_json::json!(["cpu"]), "{workers}");
    assert!(workers["nodes"][0].as_str().unwrap().starts_with("node"), "{workers}");
    assert!(workers["peak_memory"].as_u64().unwrap() > 50_000_000, "{workers}");
    assert_eq!((workers["peak_device_memory"].as_u64(), workers["lost"].as_u64()), (Some(0), Some(0)));
    assert!(
        workers["node_seconds"].as_f64().unwrap() > 0.0 && workers["queue_seconds"].as_f64().unwrap() > 0.0
    );
    // What this machine computed has no such account.
    assert!(record(&project, "data")["workers"].is_null());
    let ranked: Vec<String> =
        workers["workers"].as_array().unwrap().iter().map(|name| name.to_string()).collect();
    assert!(ranked.iter().all(|name| name.contains(" on node")), "{ranked:?}");
}

#[test]
fn gpus_are_asked_for_and_each_worker_has_its_own() {
    let Some(lab) = Lab::up(&[("GPUS", "2"), ("NODES", "1"), ("CPUS", "4")]) else { return };
    let pool = "\n[cluster.pools.gpu]\nworkers = 2\ngpus = 1\n";
    let project = miniature(6, pool);
    let arguments = [&RUN[..], &["--print-script"]].concat();
    assert!(lab.attrflow(&project, &arguments).well().text.contains("#SBATCH --gres=gpu:1\n"));
    // The pretended GPUs cannot compute: on the CPU, each worker still has one of its own.
    lab.attrflow(&project, &["run", "pipelines/demo.toml", "--device", "cpu"]).well();
    let mut devices: Vec<String> =
        hellos(&project).iter().map(|hello| hello["visible_devices"].as_str().unwrap().to_owned()).collect();
    devices.sort();
    devices.dedup();
    assert_eq!(devices, ["0", "1"]);
    // On CUDA, the nodes are refused by name: no unit fails by them.
    let said =
        lab.attrflow(&project, &["run", "pipelines/demo.toml", "--target", "latents", "--device", "auto"]);
    assert_eq!(said.code, Some(1), "{}", said.text);
    assert!(
        said.text.contains("the worker on `node1` is refused") && said.text.contains("cuda:0 cannot be used"),
        "{}",
        said.text
    );
    assert!(!said.text.contains("stage `latents`"), "{}", said.text);
}

#[test]
fn a_node_with_another_libtorch_is_refused_by_name() {
    let Some(lab) = Lab::up(&[]) else { return };
    let torch = torch_library();
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let other = folder.path().join("torch");
    fs_err::create_dir_all(other.join("lib")).unwrap();
    fs_err::write(other.join("version.py"), "__version__ = '2.11.9'\n").unwrap();
    for library in fs_err::read_dir(&torch).unwrap().flatten() {
        let to = other.join("lib").join(library.file_name());
        // The system names a library by its own path, which a link to it would not change.
        match fs_err::hard_link(library.path(), &to) {
            Ok(()) => {}
            Err(_) => drop(fs_err::copy(library.path(), &to)),
        }
    }
    // What it needs lies beside it.
    for beside in fs_err::read_dir(torch.parent().unwrap().parent().unwrap()).unwrap().flatten() {
        if beside.file_name() != "torch" {
            fs_err::os::unix::fs::symlink(beside.path(), folder.path().join(beside.file_name())).unwrap();
        }
    }
    let other = other.display();
    let setup = format!("test $SLURMD_NODENAME = node1 && export ATTRFLOW_LIBTORCH={other}");
    let project = miniature(6, &format!("\n[cluster.pools.cpu]\nworkers = 3\nsetup = [{setup:?}]\n"));
    let said = lab.attrflow(&project, &["run", "pipelines/demo.toml", "--target", "latents"]).well();
    assert!(said.text.contains("the worker on `node1` is refused, and the node is avoided"), "{}", said.text);
    assert!(said.text.contains("has libtorch 2.11.9, this run needs"), "{}", said.text);
    let nodes = &record(&project, "latents")["workers"]["nodes"];
    assert!(!nodes.to_string().contains("node1"), "{nodes}");
}

/// The folder of the libtorch that the program was built with.
fn torch_library() -> PathBuf {
    let doctor = std::process::Command::new(env!("CARGO_BIN_EXE_attrflow"))
        .args(["doctor", "--json"])
        .output()
        .unwrap();
    let report: Json = serde_json::from_slice(&doctor.stdout).unwrap();
    Path::new(report["worker"]["library"].as_str().unwrap()).parent().unwrap().to_path_buf()
}

#[test]
fn a_run_goes_on_by_itself_and_is_followed_and_ended_from_elsewhere() {
    let Some(lab) = Lab::up(&[]) else { return };
    let project = miniature(6, "\n[cluster.pools.cpu]\nworkers = 2\n");
    let started = lab.attrflow(&project, &[&RUN[..], &["--detach"]].concat()).well();
    let name: Json = serde_json::from_str(&started.text).unwrap();
    let name = name["run"].as_str().unwrap().to_owned();
    let runs = lab.attrflow(&project, &["runs"]).well().text;
    assert!(runs.contains(&name) && runs.contains("running"), "{runs}");
    let events =
        |text: &str| text.lines().map(|line| serde_json::from_str::<Json>(line).unwrap()).collect::<Vec<_>>();
    let followed = lab.attrflow(&project, &["attach", &name, "--json"]).well();
    let again = lab.attrflow(&project, &["attach", &name, "--json"]).well();
    assert_eq!(events(&followed.text), events(&again.text), "two that follow see the same");
    let log = fs_err::read_to_string(newest_run(&project).join("events.jsonl")).unwrap();
    let finished = |events: &[Json]| events.iter().filter(|event| event["event"] == "stage_finished").count();
    assert!(
        finished(&events(&followed.text)) > 5 && finished(&events(&log)) == finished(&events(&followed.text))
    );
    assert!(lab.attrflow(&project, &["logs", &name]).well().text.contains("run.log"));
    // Its last event is written before its process ends.
    let has_ended = || lab.attrflow(&project, &["runs", "--json"]).well().text.contains("\"ended\"");
    crate::lab::wait(30, "its process has ended", has_ended);
    assert!(lab.tasks().is_empty());

    // One that is to end ends, and what it finished is kept.
    fs_err::remove_dir_all(project.path("cache/recipes-v2")).unwrap();
    lab.attrflow(&project, &[&RUN[..], &["--detach"]].concat()).well();
    crate::lab::wait(30, "it has a worker", || !lab.tasks().is_empty());
    let ended = lab.attrflow(&project, &["cancel", "--now"]).well();
    assert!(ended.text.contains("no job of it is left"), "{}", ended.text);
    assert!(lab.tasks().is_empty());
    let said = lab.attrflow(&project, &["attach", "no-such-run"]);
    assert_eq!(said.code, Some(2), "{}", said.text);
    lab.attrflow(&project, &RUN).well();
}

#[test]
fn doctor_says_what_a_node_has() {
    let Some(lab) = Lab::up(&[]) else { return };
    let project = miniature(6, "\n[cluster.pools.cpu]\nworkers = 2\n");
    let said = lab.attrflow(&project, &["doctor", "--cluster", "pipelines/demo.toml", "--json"]).well();
    let report: Json = serde_json::from_str(said.text.lines().last().unwrap()).unwrap();
    let pool = &report["pools"][0];
    assert_eq!((pool["pool"].as_str(), pool["locks"].as_bool()), (Some("cpu"), Some(true)), "{report}");
    assert!(pool["clock"].as_f64().unwrap().abs() < 0.5, "one machine has one clock: {report}");
    assert!(pool["round_trip"].as_f64().unwrap() < 2.0, "{report}");
    assert!(lab.tasks().is_empty());
}

/// Slurm's programs, told of the lab: a test does not change its own environment.
struct InLab<'a>(&'a Lab, Slurm);

impl Scheduler for InLab<'static> {
    fn submit(&self, pool: &str, count: u32, _: &[String]) -> Result<String, SlurmError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs_err::write(file.path(), &self.1.scripts[pool]).unwrap();
        let array = format!("--array=0-{}", count - 1);
        Ok(self.0.ask("sbatch", &["--parsable", &array, &file.path().display().to_string()]))
    }
    fn queue(&self) -> Result<Vec<JobLine>, SlurmError> {
        let name = format!("attrflow-{}", self.1.run);
        let text =
            self.0.ask("squeue", &["-h", "-a", "-r", "-t", "all", "-n", &name, "-o", "%F|%K|%T|%r|%N|%L|%k"]);
        Ok(text.lines().filter_map(JobLine::parse).collect())
    }
    fn cancel(&self, _: bool) -> Result<(), SlurmError> {
        self.0.ask("scancel", &[&format!("--name=attrflow-{}", self.1.run)]);
        Ok(())
    }
}

#[test]
fn workers_on_a_cluster_do_what_every_backend_must() {
    let Some(lab) = Lab::up(&[]) else { return };
    // It lives as long as the process: the backend's threads use it.
    let lab: &'static Lab = Box::leak(Box::new(lab));
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let run = RunFolder::at(folder.path().join("conformance"));
    let downloads = Downloads { folder: folder.path().into(), lock: folder.path().join("lock"), at_once: 1 };
    let worker = WorkerConfig {
        device: Device::Cpu,
        threads: 1,
        micro_batch: 1,
        downloads,
        trials: folder.path().join("trials"),
        log: "info".into(),
    };
    let pool = Pool { workers: 2, kinds: vec!["command".into()], ..Pool::default() };
    let waits = Waits { poll: 0.1, heartbeat: 0.5, silent: 4.0, squeue: 1.0, leave: 10, ..Waits::default() };
    let program = Path::new(env!("CARGO_BIN_EXE_attrflow"));
    let text = script(&run, "shell", &pool, &waits, None, program);
    let config = RunConfig {
        build: attrflow::cli::build(),
        pipeline: "conformance".into(),
        root: folder.path().into(),
        within: None,
        numerics: Numerics { libtorch: "none".into(), device: "cpu".into(), deterministic: true },
        pools: [("shell".to_owned(), PoolConfig { worker, libtorch: false, script: text.clone() })].into(),
        waits,
        store: None,
    };
    let slurm = Slurm { run: run.name(), scripts: [("shell".to_owned(), text)].into() };
    let setup = Setup {
        folder: run,
        config,
        carrier: None,
        epoch: 1,
        pools: [("shell".to_owned(), pool)].into(),
        scheduler: Box::new(InLab(lab, slurm)),
        one_gpu_model: false,
        cancel: Arc::new(Cancel::default()),
        notice: Box::new(|notice: Notice| println!("{notice:?}")),
    };
    let worker = WorkerProgram { path: PathBuf::new(), libtorch: Err("there is none".into()) };
    let none = LocalBackend { worker, front: PathBuf::new(), settings: Vec::new() };
    let backend = ClusterBackend::new(setup, none);
    let (kind, file) = ("command", "file");
    let params = &acts::params;
    conformance(&Subject { backend: &backend, libtorch: false, kind, params, file, progress: false });
    backend.end().unwrap();
    assert!(lab.tasks().is_empty());
    lab.does(&["down"]);
}
