//! `--backend slurm`: a run whose workers are jobs of a cluster.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value as Json;

use super::failure::Failure;
use super::pools::has_libtorch;
use super::project::{Project, build};
use super::signals::EventSink;
use crate::progress::{json_line, print_error};
use attrflow_engine::cluster::backend::{ClusterBackend, Notice, Setup};
use attrflow_engine::cluster::slurm::{Slurm, script};
use attrflow_engine::cluster::takeover::{Takeover, dead_runs};
use attrflow_engine::cluster::{Bucket, LeaseState, PoolConfig, RunCarrier, RunConfig, RunFolder, runs};
use attrflow_engine::exec::Cancel;
use attrflow_engine::exec::event::Event;
use attrflow_engine::kind::Device;
use attrflow_engine::pipeline::cluster_table::ClusterTable;
use attrflow_engine::store::{Area, Store};
use attrflow_engine::worker::local::LocalBackend;
use attrflow_engine::worker::protocol::WorkerConfig;

/// What the command line says of each worker.
pub(super) struct Template {
    pub config: WorkerConfig,
    /// Where they are given.
    pub threads: Option<usize>,
}

/// What the workers of a run in this folder must know.
fn run_config(project: &Project, table: &ClusterTable, template: &Template, folder: &RunFolder) -> RunConfig {
    let mut pools = BTreeMap::new();
    let program = std::env::current_exe().unwrap_or_default();
    for (name, pool) in &table.pools {
        let mut worker = template.config.clone();
        // The scheduler gives each worker a GPU of its own, which is its first.
        worker.device = if project.devices[0] == Device::Cpu { Device::Cpu } else { Device::Cuda(0) };
        worker.threads = template.threads.unwrap_or(pool.cpus as usize);
        let script = script(folder, name, pool, &table.waits, table.store.as_deref(), &program);
        pools.insert(name.clone(), PoolConfig { worker, libtorch: has_libtorch(pool), script });
    }
    RunConfig {
        build: build(),
        pipeline: project.pipeline.name.clone(),
        root: project.pipeline.root.clone(),
        within: project.pipeline.within.clone(),
        numerics: project.numerics.clone(),
        pools,
        waits: table.waits.clone(),
        store: table.store.clone(),
    }
}

/// The folder of a cache's runs on a cluster.
pub(super) fn runs_folder(store: &Store) -> PathBuf {
    store.area(Area::Cluster)
}

/// A run on a cluster.
pub(super) struct ClusterRun {
    pub backend: ClusterBackend,
    /// What is left of an earlier run that this one took over.
    pub taken_over: Option<Takeover>,
    /// Writes each event where `attrflow attach` finds it.
    pub events: Arc<EventLog>,
}

/// Prepares a run on a cluster: what earlier runs of this pipeline finished is kept, and the workers of a dead one serve again.
pub(super) fn open(
    project: &Project,
    table: &ClusterTable,
    template: &Template,
    name: Option<&str>,
    cancel: &Arc<Cancel>,
    sink: &EventSink,
) -> Result<ClusterRun, Failure> {
    let warn = |message: String| sink(Event::Log { level: "WARN".into(), message });
    let failed = |error: std::io::Error| Failure::Refused(error.to_string());
    let dead = dead(project, table, template, name, |message| warn(message.to_owned())).map_err(failed)?;
    let mut heir = None;
    for (folder, same) in dead {
        let _lock = project.store.shared_lock(|| warn("waiting for `attrflow cache gc` to end".into()))?;
        let found = folder.config().map_err(failed)?;
        let carrier = RunCarrier::open(&folder, &found, next_epoch(&folder));
        let carrier = carrier.and_then(|carrier| match carrier {
            Some(mut carrier) => carrier.bring().map(|_| Some(carrier)),
            None => Ok(None),
        });
        let carrier = match carrier {
            Ok(carrier) => carrier,
            Err(error) => {
                let name = folder.name();
                warn(format!(
                    "run {name} is dead, and what is left of it cannot be read: {error}; `attrflow cancel {name}` forgets it"
                ));
                continue;
            }
        };
        let bucket = carrier.as_ref().map(|carrier| Arc::clone(carrier.bucket()));
        let mut takeover = Takeover::new(&folder, bucket);
        let kept = takeover.keep_finished(&project.store)?;
        if kept > 0 {
            let results = if kept == 1 { "1 result".to_owned() } else { format!("{kept} results") };
            warn(format!("run {} is dead; {results} that its workers had finished are kept", folder.name()));
        }
        match same.filter(|_| heir.is_none() && name.is_none_or(|name| name == folder.name())) {
            Some(config) => {
                let held = takeover.hold(&project.store)?;
                if held > 0 {
                    let tasks = if held == 1 { "1 task".to_owned() } else { format!("{held} tasks") };
                    warn(format!(
                        "its workers may still have {tasks} in hand: others do not compute them meanwhile"
                    ));
                }
                heir = Some((folder, config, takeover, carrier));
            }
            None => abandon(&folder).map_err(failed)?,
        }
    }
    let (folder, config, carrier, taken_over) = match heir {
        Some((folder, config, takeover, carrier)) => (folder, config, carrier, Some(takeover)),
        None => {
            let name = name.map_or_else(|| runs::new_name(&project.pipeline.name), str::to_owned);
            let folder = RunFolder::at(runs_folder(&project.store).join(name));
            let config = run_config(project, table, template, &folder);
            (folder, config, None, None)
        }
    };
    let events = Arc::new(EventLog::new(folder.clone()));
    let notice: EventSink = Arc::clone(sink);
    let notice = move |found: Notice| notice(event(found));
    let backend = backend_in(project, table, template, (folder, config, carrier), cancel, Box::new(notice))?;
    if taken_over.is_some() || name.is_some() {
        backend.start().map_err(Failure::Refused)?;
    }
    Ok(ClusterRun { backend, taken_over, events })
}

/// The number of the next run of a folder.
fn next_epoch(folder: &RunFolder) -> u64 {
    folder.lease().map_or(0, |lease| lease.epoch) + 1
}

/// The backend of a run in this folder, with this configuration.
fn backend_in(
    project: &Project,
    table: &ClusterTable,
    template: &Template,
    (folder, config, carrier): (RunFolder, RunConfig, Option<RunCarrier>),
    cancel: &Arc<Cancel>,
    notice: Box<dyn Fn(Notice) + Send + Sync>,
) -> Result<ClusterBackend, Failure> {
    let scripts = config.pools.iter().map(|(name, pool)| (name.clone(), pool.script.clone())).collect();
    let scheduler = Box::new(Slurm { run: folder.name(), scripts });
    let on_gpu = project.devices[0] != Device::Cpu;
    let mut params = project.pipeline.stages.iter().map(|stage| stage.stage.to_json());
    let one_gpu_model = on_gpu && params.any(|params| draws_by_batch(&params));
    let (pools, cancel) = (table.pools.clone(), Arc::clone(cancel));
    let epoch = next_epoch(&folder);
    let setup = Setup { folder, config, carrier, epoch, pools, scheduler, one_gpu_model, cancel, notice };
    Ok(ClusterBackend::new(setup, here(template)?))
}

/// Whether CUDA draws a stage's noise, whose numbers depend on the model of the GPU.
fn draws_by_batch(params: &Json) -> bool {
    match params {
        Json::Object(keys) => {
            keys.get("noise").is_some_and(|noise| noise == "per_batch") || keys.values().any(draws_by_batch)
        }
        Json::Array(items) => items.iter().any(draws_by_batch),
        _ => false,
    }
}

/// Keeps what the workers of an earlier run still finish, until the run is over: they end what they have in hand.
pub(super) fn keep_late_results(store: &Store, mut takeover: Takeover, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) && !takeover.is_over() {
        if let Err(error) = takeover.keep_finished(store) {
            tracing::warn!("what an earlier run's workers finished is computed again: {error}");
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The name of the run to begin: that of a dead one whose workers would serve it, else a new one.
pub(super) fn choose_name(
    project: &Project,
    table: &ClusterTable,
    template: &Template,
) -> std::io::Result<String> {
    let dead = dead(project, table, template, None, print_error)?;
    let heir = dead.into_iter().find_map(|(folder, same)| same.map(|_| folder.name()));
    Ok(heir.unwrap_or_else(|| runs::new_name(&project.pipeline.name)))
}

/// The dead runs of this pipeline; with the configuration of those whose workers would serve a run now. `known` is dead.
fn dead(
    project: &Project,
    table: &ClusterTable,
    template: &Template,
    known: Option<&str>,
    told: impl Fn(&str),
) -> std::io::Result<Vec<(RunFolder, Option<RunConfig>)>> {
    let base = runs_folder(&project.store);
    let probe = run_config(project, table, template, &RunFolder::at(base.join("probe")));
    let told = |run: &str, longest: Duration| told(&looking(run, longest));
    let dead = dead_runs(runs::list(&base)?, &probe, known, told).into_iter().map(|folder| {
        let now = run_config(project, table, template, &folder);
        let same = folder.config().is_ok_and(|found| found == now);
        (folder, same.then_some(now))
    });
    Ok(dead.collect())
}

/// That it takes so long to find out whether a run of another host lives.
fn looking(run: &str, longest: Duration) -> String {
    let seconds = longest.as_secs_f64();
    format!("run {run} began on another host: looking for {seconds:.0} s whether it lives")
}

/// A backend that serves no run, for a look at its workers; `name` tells what for. No run takes its folder over.
pub(super) fn apart(
    name: &str,
    project: &Project,
    table: &ClusterTable,
    template: &Template,
    cancel: &Arc<Cancel>,
    notice: Box<dyn Fn(Notice) + Send + Sync>,
) -> Result<(ClusterBackend, RunFolder), Failure> {
    let folder = RunFolder::at(runs_folder(&project.store).join(runs::new_name(name)));
    let mut config = run_config(project, table, template, &folder);
    (config.pipeline, config.within) = (name.to_owned(), None);
    let backend = backend_in(project, table, template, (folder.clone(), config, None), cancel, notice)?;
    Ok((backend, folder))
}

/// Ends what is left of a dead run.
pub(super) fn abandon(folder: &RunFolder) -> std::io::Result<()> {
    let mut lease = folder.lease()?;
    (lease.epoch, lease.state) = (lease.epoch + 1, LeaseState::Ended);
    folder.write_lease(&lease)?;
    let bucket = folder.config().ok().and_then(|config| config.store);
    let bucket = bucket.map(|store| Bucket::open(&store, &folder.name())).transpose();
    let told =
        bucket.as_ref().map_or(Ok(()), |bucket| bucket.as_ref().map_or(Ok(()), |bucket| bucket.end(&lease)));
    if let Err(error) = attrflow_engine::cluster::slurm::cancel(&folder.name(), false) {
        tracing::warn!("jobs of run {} may be left: {error}", folder.name());
    }
    let cleared = bucket.and_then(|bucket| bucket.map_or(Ok(()), |bucket| bucket.clear()));
    if let Err(error) = told.and(cleared) {
        tracing::warn!("messages of run {} may be left in the bucket: {error}", folder.name());
    }
    Ok(())
}

/// Workers without libtorch on this machine, for downloads and the like.
fn here(template: &Template) -> Result<LocalBackend, Failure> {
    const SLOTS: usize = 2;
    let mut config = template.config.clone();
    config.device = Device::Cpu;
    super::project::backend(vec![config; SLOTS])
}

fn event(notice: Notice) -> Event {
    match notice {
        Notice::Pool { pool, running, pending, reason } => Event::Pool {
            pool,
            running,
            pending,
            reason: Some(reason).filter(|reason| reason != "None" && !reason.is_empty()),
        },
        Notice::Warning(message) => Event::Log { level: "WARN".into(), message },
    }
}

/// The events of a run, in its folder once it has one.
pub(super) struct EventLog {
    folder: RunFolder,
    lines: Mutex<(Vec<u8>, Option<fs_err::File>)>,
}

impl EventLog {
    fn new(folder: RunFolder) -> Self {
        Self { folder, lines: Mutex::default() }
    }

    /// Writes an event; what cannot be written is not shown by `attrflow attach`.
    pub fn write(&self, event: &Event) {
        let mut guard = self.lines.lock().expect("no panic under this lock");
        let (lines, file) = &mut *guard;
        lines.extend(json_line(event).into_bytes());
        if file.is_none() && self.folder.log().is_dir() {
            *file = fs_err::OpenOptions::new().create(true).append(true).open(self.folder.events()).ok();
        }
        if let Some(file) = file
            && file.write_all(lines).is_ok()
        {
            lines.clear();
        }
    }
}

/// The script of each pool, as `run --print-script` shows it.
pub(super) fn scripts(project: &Project, table: &ClusterTable, template: &Template) -> String {
    let name = runs::new_name(&project.pipeline.name);
    let folder = RunFolder::at(runs_folder(&project.store).join(name));
    let config = run_config(project, table, template, &folder);
    let scripts = config.pools.iter().map(|(name, pool)| {
        let most = table.pools.get(name).map_or(1, |pool| pool.workers);
        format!("# pool {name}: sbatch --parsable --array=0-{}, of at most as many tasks as there is work for\n{}", most - 1, pool.script)
    });
    scripts.collect::<Vec<_>>().join("\n")
}

/// The folder of the cache of a command without a pipeline.
pub(super) fn base(cache: Option<&Path>) -> PathBuf {
    cache.map_or_else(super::project::default_cache, Path::to_path_buf).join(Area::Cluster.name())
}
