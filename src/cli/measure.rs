//! `attrflow plan --measure`: the workers that measure, and their requests.

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::failure::Failure;
use super::project::{Project, cores, worker_program};
use super::run_args::RunArgs;
use attrflow_engine::estimate::{
    Forecast, MachineProfile, MeasureBackend, MeasureEvent, MeasureRequest, measure as measure_all,
};
use attrflow_engine::kind::{Computation, Context, describe};
use attrflow_engine::plan::Planner;
use attrflow_engine::provenance::manifest::Conditions;
use attrflow_engine::worker::local::{WorkerConfig, heavy};
use attrflow_engine::worker::measure::{CostModel, Memory, measure as measure_one};
use attrflow_engine::worker::serve::panic_message;

/// The argument that makes a worker measure once and exit.
pub const MEASURE: &str = "--measure";

/// The request to a measuring worker.
#[derive(Serialize, Deserialize)]
struct WorkerRequest {
    request: MeasureRequest,
    /// An empty folder.
    folder: PathBuf,
}

/// Its reply.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Reply {
    /// The measurement, and the seconds that it took.
    Found(CostModel, f64),
    Failed(String),
}

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
    let workers = Workers { program: worker_program()?, configs, folder: attempt.path().to_path_buf() };
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

/// Worker processes that measure at the same time.
struct Workers {
    program: PathBuf,
    configs: Vec<WorkerConfig>,
    folder: PathBuf,
}

impl MeasureBackend for Workers {
    fn measure(&self, request: &MeasureRequest) -> Result<Vec<CostModel>, String> {
        let folders = (0..self.configs.len()).map(|slot| self.folder.join(slot.to_string()));
        let work: Vec<(&WorkerConfig, PathBuf)> = self.configs.iter().zip(folders).collect();
        std::thread::scope(|scope| {
            let threads: Vec<_> = work
                .iter()
                .map(|(config, folder)| scope.spawn(|| self.one(request, config, folder)))
                .collect();
            let found = threads.into_iter().map(|thread| thread.join());
            found.map(|found| found.unwrap_or_else(|_| Err("the measurement panicked".into()))).collect()
        })
    }
}

impl Workers {
    fn one(
        &self,
        request: &MeasureRequest,
        config: &WorkerConfig,
        folder: &Path,
    ) -> Result<CostModel, String> {
        fs_err::create_dir_all(folder).map_err(|error| error.to_string())?;
        let begun = Instant::now();
        let reply =
            self.ask(&WorkerRequest { request: request.clone(), folder: folder.to_path_buf() }, config);
        let seconds = begun.elapsed().as_secs_f64();
        // Frees the disk before the next measurement.
        let _ = fs_err::remove_dir_all(folder);
        match reply? {
            Reply::Found(measured, busy) => {
                Ok(CostModel { start: measured.start + (seconds - busy).max(0.0), ..measured })
            }
            Reply::Failed(why) => Err(why),
        }
    }

    fn ask(&self, request: &WorkerRequest, config: &WorkerConfig) -> Result<Reply, String> {
        let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", self.program.display());
        let config = serde_json::to_string(config).expect("a configuration is plain data");
        let mut child = heavy(&self.program)
            .args([MEASURE, &config])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| failed(&error))?;
        let text = serde_json::to_vec(request).expect("a request is plain data");
        if let Some(mut input) = child.stdin.take() {
            // The exit status of a worker that has ended is reported below.
            let _ = input.write_all(&text);
        }
        let output = child.wait_with_output().map_err(|error| failed(&error))?;
        // Libraries may have written to standard output before.
        let last = output.stdout.rsplit(|byte| *byte == b'\n').find(|line| !line.is_empty());
        let reply = last.and_then(|line| serde_json::from_slice(line).ok());
        reply.ok_or_else(|| {
            format!("the worker process ended ({}); the usual cause is too little memory", output.status)
        })
    }
}

/// Reads a request from standard input, measures, and writes the reply to standard output.
pub fn serve_measurement(
    computations: &[Computation],
    config: &WorkerConfig,
    prepared: Result<(), String>,
    memory: &dyn Fn() -> Memory,
) {
    std::panic::set_hook(Box::new(|_| {}));
    let begun = Instant::now();
    let found = prepared.and_then(|()| {
        let request: WorkerRequest =
            serde_json::from_reader(std::io::stdin()).map_err(|error| error.to_string())?;
        perform(&request, computations, config, memory)
    });
    let reply = match found {
        Ok(measured) => Reply::Found(measured, begun.elapsed().as_secs_f64()),
        Err(why) => Reply::Failed(why),
    };
    let text = serde_json::to_string(&reply).expect("a reply is plain data");
    // The reader may have ended.
    let _ = writeln!(std::io::stdout(), "{text}");
}

fn perform(
    request: &WorkerRequest,
    computations: &[Computation],
    config: &WorkerConfig,
    memory: &dyn Fn() -> Memory,
) -> Result<CostModel, String> {
    let WorkerRequest { request: MeasureRequest { kind, params, inputs }, folder } = request;
    let computation = computations
        .iter()
        .find(|computation| computation.kind.name == kind)
        .ok_or_else(|| format!("the worker does not know the stage kind `{kind}`"))?;
    let WorkerConfig { device, micro_batch, ref downloads, .. } = *config;
    let stage = (computation.from_json)(params)?;
    let cx = Context::new(device, micro_batch, downloads, &|_, _, _| {}, &|_| {});
    let found = catch_unwind(AssertUnwindSafe(|| measure_one(&*stage, inputs, folder, &cx, memory)));
    match found {
        Ok(found) => found.map_err(|error| describe(&error)),
        Err(panic) => Err(panic_message(panic.as_ref())),
    }
}
