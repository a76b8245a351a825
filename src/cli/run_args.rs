//! What all commands that compute share: the options of workers, and the execution of a run with its events and signals.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use clap::Args;

use super::cluster::{self, EventLog, Template};
use super::device::devices;
use super::failure::Failure;
use super::pools;
use super::project::{Project, backend, cores, program, worker_program};
use super::signals::{EventSink, Signals};
use crate::io::download::redact_urls;
use crate::progress::Reporter;
use attrflow_engine::cluster::backend::ClusterBackend;
use attrflow_engine::exec::event::{Event, PlacedArtifact};
use attrflow_engine::exec::noop_cache::CachedRun;
use attrflow_engine::exec::noop_cache::NoopRun;
use attrflow_engine::exec::{Cancel, Run};
use attrflow_engine::kind::{Device, Downloads};
use attrflow_engine::pipeline::{MAX_DOWNLOAD_JOBS, MAX_WORKERS, RunTable};
use attrflow_engine::provenance::manifest::{Conditions, Manifest, Outcome};
use attrflow_engine::store::{Area, Store};
use attrflow_engine::worker::Backend;
use attrflow_engine::worker::protocol::WorkerConfig;

/// How to compute; results do not depend on it.
#[derive(Debug, Default, Args)]
pub(super) struct RunArgs {
    /// Number of workers on the CPU; GPUs have one each [default: run.jobs of the config, else by the number of cores]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_WORKERS)))]
    jobs: Option<u32>,
    /// Threads of each worker [default: run.threads of the config, else the cores are divided among the workers]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_WORKERS)))]
    threads: Option<u32>,
    /// The most rows sent through a network at once; affects memory and speed, and results only by rounding [default:
    /// run.micro_batch of the config, else 128 on the CPU, on a GPU 1024, and for loss passes what a short trial finds fastest]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    micro_batch: Option<u32>,
    /// Files to download at the same time [default: run.download_jobs of the config, else 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_DOWNLOAD_JOBS)))]
    download_jobs: Option<u32>,
}

impl RunArgs {
    /// One worker per GPU. On the CPU one worker per core with one thread each: fastest for small networks.
    pub fn conditions(&self, table: &RunTable, devices: &[Device]) -> Conditions {
        let given =
            |argument: Option<u32>, table: Option<u32>| argument.or(table).map(|number| number as usize);
        let cpu = devices[0] == Device::Cpu;
        let threads = given(self.threads, table.threads);
        let jobs = match given(self.jobs, table.jobs) {
            _ if !cpu => devices.len(),
            None => (cores() / threads.unwrap_or(1)).clamp(1, 8),
            Some(jobs) => jobs,
        };
        let threads = threads.unwrap_or_else(|| (cores() / jobs).max(1));
        // 0 lets the workers of GPUs try.
        let micro_batch = given(self.micro_batch, table.micro_batch).unwrap_or(if cpu { 128 } else { 0 });
        let name = |device: &Device| match device {
            Device::Cpu => "cpu".to_owned(),
            Device::Cuda(index) => format!("cuda:{index}"),
        };
        Conditions { jobs, threads, devices: devices.iter().map(name).collect(), micro_batch }
    }

    /// Threads of each worker, where they are given.
    pub fn threads(&self, table: &RunTable) -> Option<usize> {
        self.threads.or(table.threads).map(|threads| threads as usize)
    }

    /// What these options say of each worker of a cluster.
    pub fn template(&self, project: &Project, log: &str) -> Template {
        let (configs, _) = self.worker_configs(project, log);
        Template { config: configs[0].clone(), threads: self.threads(&project.pipeline.run) }
    }

    /// The workers' configurations, and the conditions that a manifest records.
    pub fn worker_configs(&self, project: &Project, log: &str) -> (Vec<WorkerConfig>, Conditions) {
        let table = &project.pipeline.run;
        let conditions = self.conditions(table, &project.devices);
        let Conditions { jobs, threads, micro_batch, .. } = conditions;
        let device = |slot: usize| project.devices[slot % project.devices.len()];
        let downloads = Downloads {
            folder: project.store.area(Area::Downloads),
            lock: project.pipeline.root.join("attrflow.lock"),
            at_once: self.download_jobs.unwrap_or(table.download_jobs) as usize,
        };
        let configs = (0..jobs).map(|slot| WorkerConfig {
            device: device(slot),
            threads,
            micro_batch,
            downloads: downloads.clone(),
            trials: project.store.area(Area::Trials),
            log: log.to_owned(),
        });
        (configs.collect(), conditions)
    }
}

/// What a run was started from, for its manifest.
pub(super) struct Origin<'a> {
    /// The pipeline file, or the manifest of `--from`.
    pub file: &'a Path,
    /// The `--set` arguments.
    pub sets: &'a [String],
    /// The name of the run on a cluster, where it was chosen.
    pub run: Option<&'a str>,
}

/// How a run ended.
pub(super) struct RunOutcome {
    pub manifest: Manifest,
    /// The manifest's file; none if the cache is read-only.
    pub path: Option<PathBuf>,
    /// The outputs of cached stages in the results folder, by stage and port.
    pub placed: BTreeMap<String, BTreeMap<String, PlacedArtifact>>,
    /// The signal that ended the run early.
    pub signal: Option<i32>,
}

impl RunOutcome {
    /// # Errors
    /// A signal ended the run early.
    pub fn check_interrupted(&self) -> Result<(), Failure> {
        self.signal.map_or(Ok(()), |signal| Err(Failure::Interrupted(signal)))
    }
}

/// Computes the selected stages that are not cached. Failed stages are in the manifest.
///
/// # Errors
/// An unusable cache, and a missing worker program.
pub(super) fn execute(
    project: &Project,
    forced: &[usize],
    how: &RunArgs,
    origin: Origin<'_>,
    reporter: Box<dyn Reporter>,
    log: &str,
) -> Result<RunOutcome, Failure> {
    let (configs, mut conditions) = how.worker_configs(project, log);
    let worker = worker_program()?;
    if project.cluster.is_none() && project.needs_libtorch() {
        worker.libtorch.map_err(Failure::Missing)?;
    }
    let local = backend(configs)?;
    let reporter = Arc::new(Mutex::new(reporter));
    let stop = Arc::new(Cancel::default());
    let received = Arc::new(Mutex::new((None, BTreeMap::new())));
    let log_events: Arc<OnceLock<Arc<EventLog>>> = Arc::default();
    let sink: EventSink = {
        let (reporter, received, events) =
            (Arc::clone(&reporter), Arc::clone(&received), Arc::clone(&log_events));
        Arc::new(move |event| {
            if let Some(events) = events.get() {
                events.write(&event);
            }
            let (path, placed) = &mut *received.lock().expect("no panic under this lock");
            match &event {
                Event::RunFinished { manifest, .. } => path.clone_from(manifest),
                Event::StageCached { stage, outputs, .. } => {
                    _ = placed.insert(stage.clone(), outputs.clone())
                }
                _ => {}
            }
            reporter.lock().expect("reporters do not panic").on_event(&event);
        })
    };
    let signals = Signals::watch(Arc::clone(&stop), Arc::clone(&sink), project.cluster.is_some());
    let mut taken_over = None;
    let cluster = match &project.cluster {
        None => None,
        Some(table) => {
            let run = cluster::open(project, table, &how.template(project, log), origin.run, &stop, &sink)?;
            let _ = log_events.set(Arc::clone(&run.events));
            taken_over = run.taken_over;
            (conditions.jobs, conditions.threads) = pools::size(table, how.threads(&project.pipeline.run));
            Some(run.backend)
        }
    };
    let backend: &dyn Backend = match &cluster {
        Some(backend) => backend,
        None => &local,
    };
    let run = Run {
        pipeline: &project.pipeline,
        graph: &project.graph,
        store: &project.store,
        backend,
        numerics: &project.numerics,
        forced,
        results: project.results.clone(),
        file: origin.file.to_path_buf(),
        // Manifests are published: no tokens.
        sets: origin.sets.iter().map(|set| redact_urls(set)).collect(),
        program: program(),
        conditions,
        stop: &stop,
        emit: &|event| sink(event),
    };
    let over = AtomicBool::new(false);
    let manifest = std::thread::scope(|scope| {
        if let Some(earlier) = taken_over {
            scope.spawn(|| cluster::keep_late_results(&project.store, earlier, &over));
        }
        let manifest = run.execute();
        over.store(true, Ordering::Relaxed);
        manifest
    });
    let ended = cluster.as_ref().map(ClusterBackend::end);
    if let Some(Err(error)) = ended {
        sink(Event::Log { level: "WARN".into(), message: error });
    }
    let interrupted =
        |manifest: &Manifest| manifest.stages.iter().any(|record| record.outcome == Outcome::Interrupted);
    let signal = signals.received();
    let manifest = match (manifest, signal) {
        (Err(_), Some(signal)) => return Err(Failure::Interrupted(signal)),
        (manifest, _) => manifest?,
    };
    // Without a signal, `attrflow cancel` ended it. A signal that came after the last stage changed nothing.
    let signal =
        signal.or(stop.mode().map(|_| signal_hook::consts::SIGTERM)).filter(|_| interrupted(&manifest));
    let (path, placed) = std::mem::take(&mut *received.lock().expect("no panic under this lock"));
    Ok(RunOutcome { manifest, path, placed, signal })
}

/// Reports a run that the no-op cache knows to be complete, and writes its manifest.
///
/// # Errors
/// An unusable cache.
pub(super) fn repeat(
    run: NoopRun,
    store: &Store,
    how: &RunArgs,
    device: Option<&str>,
    origin: Origin<'_>,
    mut reporter: Box<dyn Reporter>,
) -> Result<RunOutcome, Failure> {
    let begun = Instant::now();
    let devices = devices(device.unwrap_or(&run.run.device), backend(Vec::new())?.device_class())?;
    let conditions = how.conditions(&run.run, &devices);
    let sets = origin.sets.iter().map(|set| redact_urls(set)).collect();
    let reporter = std::cell::RefCell::new(&mut reporter);
    let emit = |event: Event| reporter.borrow_mut().on_event(&event);
    let again =
        CachedRun { run, store, file: origin.file, sets, program: program(), conditions, begun, emit: &emit };
    let (manifest, path) = again.execute()?;
    Ok(RunOutcome { manifest, path, placed: BTreeMap::new(), signal: None })
}

/// Fails if a stage failed.
pub(super) fn check_failed(manifest: &Manifest) -> Result<(), Failure> {
    match manifest.stages.iter().filter(|record| record.outcome == Outcome::Failed).count() {
        0 => Ok(()),
        failed => Err(Failure::Stages(failed)),
    }
}
