//! `attrflow plan --measure`: measures with the workers that a run would have.

use std::io::Write;

use super::failure::Failure;
use super::project::{Project, cores, worker_program};
use super::run_args::RunArgs;
use attrflow_engine::estimate::{Forecast, MachineProfile, MeasureEvent, measure as measure_all};
use attrflow_engine::plan::Planner;
use attrflow_engine::provenance::manifest::Conditions;
use attrflow_engine::worker::measure::MeasureWorkers;

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
    MachineProfile { jobs: *jobs, threads: *threads, micro_batch: *micro_batch, hardware }
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
    let (configs, _) = how.worker_configs(project, log);
    let scratch = project.store.scratch()?;
    // Keeps gc from removing inputs meanwhile.
    let _use = project.store.shared_lock(|| {})?;
    let attempt = scratch.attempt()?;
    let workers =
        MeasureWorkers { program: worker_program()?, configs, folder: attempt.path().to_path_buf() };
    let mut report = |event: MeasureEvent| {
        let line = match event {
            MeasureEvent::Measuring(stage) => format!("measuring {stage}"),
            MeasureEvent::Not(stage, why) => format!("cannot measure {stage}: {why}"),
        };
        // Standard error may be closed.
        let _ = writeln!(std::io::stderr(), "{line}");
    };
    Ok(measure_all(forecast, planner, &workers, &mut report)?)
}
