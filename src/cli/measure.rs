//! `attrflow plan --measure`: measures with the workers that a run would have.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::Write;
use std::sync::Arc;

use super::cluster::{Template, apart};
use super::failure::Failure;
use super::pools;
use super::project::{Project, cores, worker_program};
use super::run_args::RunArgs;
use super::signals::Signals;
use crate::progress::print_error;
use attrflow_engine::cluster::backend::{ClusterBackend, Notice};
use attrflow_engine::estimate::{Forecast, MachineProfile, MeasureEvent, measure as measure_all};
use attrflow_engine::exec::Cancel;
use attrflow_engine::pipeline::cluster_table::ClusterTable;
use attrflow_engine::plan::Planner;
use attrflow_engine::provenance::manifest::Conditions;
use attrflow_engine::worker::measure::{CostModel, MeasureBackend, MeasureRequest, MeasureWorkers};
use attrflow_engine::worker::{Backend, Request, Worker};

/// The machine and the workers of a run under these conditions.
pub(super) fn machine_profile(conditions: &Conditions) -> MachineProfile {
    let Conditions { jobs, threads, devices, micro_batch } = conditions;
    let cpu = fs_err::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let mut hardware = format!("{} x {}", cores(), model.map_or("unknown processor", |(_, model)| model));
    if devices.iter().any(|device| device != "cpu") {
        let cards = fs_err::read_dir("/proc/driver/nvidia/gpus").into_iter().flatten().flatten();
        let texts = cards.filter_map(|card| fs_err::read_to_string(card.path().join("information")).ok());
        let mut models: Vec<String> = texts
            .filter_map(|text| {
                Some(text.lines().find_map(|line| line.strip_prefix("Model:"))?.trim().to_owned())
            })
            .collect();
        models.sort();
        hardware += &format!(", {}", models.join(", "));
    }
    MachineProfile {
        jobs: *jobs,
        threads: *threads,
        micro_batch: *micro_batch,
        hardware,
        pools: BTreeMap::new(),
    }
}

/// The same with the pools of the project's cluster, if it has one.
pub(super) fn profile(project: &Project, conditions: &Conditions, how: &RunArgs) -> MachineProfile {
    let mut profile = machine_profile(conditions);
    if let Some(table) = &project.cluster {
        profile.pools = pools::profiles(table, how.threads(&project.pipeline.run));
    }
    profile
}

/// One worker of each pool that measures, asked for when it is needed.
struct ClusterMeasure<'a> {
    backend: &'a ClusterBackend,
    cancel: &'a Cancel,
    workers: RefCell<BTreeMap<usize, Box<dyn Worker>>>,
}

impl MeasureBackend for ClusterMeasure<'_> {
    fn measure(&self, request: &MeasureRequest) -> Result<Vec<CostModel>, String> {
        let kinds = crate::kinds::kinds();
        let kind = kinds.into_iter().find(|kind| kind.name == request.kind).ok_or("an unknown kind")?;
        let serves = |slot: &usize| self.backend.serves(self.backend.pool(*slot), kind);
        let slot = (0..self.backend.slots()).find(serves).ok_or("no pool serves it")?;
        let mut workers = self.workers.borrow_mut();
        let worker = match workers.entry(self.backend.pool(slot)) {
            Entry::Occupied(worker) => worker.into_mut(),
            Entry::Vacant(place) => {
                let ask = Request { slot, libtorch: kind.libtorch, waiting: &|| 1, cancel: self.cancel };
                let worker = self.backend.next(&ask).map_err(|error| error.to_string())?;
                place.insert(worker.ok_or("interrupted")?)
            }
        };
        Ok(vec![worker.measure(request)?])
    }
}

/// Measures on the nodes of a cluster, with one short job in each pool.
fn measure_on_cluster(
    project: &Project,
    table: &ClusterTable,
    planner: &Planner<'_>,
    forecast: &mut Forecast,
    template: &Template,
    report: &mut dyn FnMut(MeasureEvent),
) -> Result<(), Failure> {
    let cancel = Arc::new(Cancel::default());
    let signals = Signals::watch(Arc::clone(&cancel), Arc::new(|_| {}), true);
    let notice = |notice: Notice| {
        if let Notice::Warning(message) = notice {
            print_error(&format!("warning: {message}"));
        }
    };
    let (backend, folder) = apart("measure", project, table, template, &cancel, Box::new(notice))?;
    let workers = ClusterMeasure { backend: &backend, cancel: &cancel, workers: RefCell::default() };
    let measured = measure_all(forecast, planner, &workers, report);
    drop(workers);
    let ended = backend.end().map_err(Failure::Refused);
    let _ = fs_err::remove_dir_all(folder.path());
    if let Some(signal) = signals.received() {
        return Err(Failure::Interrupted(signal));
    }
    measured?;
    ended
}

/// Measures all stages of the forecast; reports progress and failed measurements on standard error.
///
/// # Errors
/// A cache that cannot be written, and a missing worker program.
pub(super) fn measure(
    project: &Project,
    planner: &Planner<'_>,
    forecast: &mut Forecast,
    how: &RunArgs,
    log: &str,
) -> Result<(), Failure> {
    let mut report = |event: MeasureEvent| {
        let line = match event {
            MeasureEvent::Measuring(stage) => format!("measuring {stage}"),
            MeasureEvent::Not(stage, why) => format!("cannot measure {stage}: {why}"),
        };
        // Standard error may be closed.
        let _ = writeln!(std::io::stderr(), "{line}");
    };
    if let Some(table) = &project.cluster {
        let _use = project.store.shared_lock(|| {})?;
        return measure_on_cluster(
            project,
            table,
            planner,
            forecast,
            &how.template(project, log),
            &mut report,
        );
    }
    let (configs, _) = how.worker_configs(project, log);
    let scratch = project.store.scratch()?;
    // Keeps gc from removing inputs meanwhile.
    let _use = project.store.shared_lock(|| {})?;
    let attempt = scratch.attempt()?;
    let workers =
        MeasureWorkers { program: worker_program()?, configs, folder: attempt.path().to_path_buf() };
    Ok(measure_all(forecast, planner, &workers, &mut report)?)
}
