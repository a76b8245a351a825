//! `attrflow plan --measure`: the workers that measure, and what they are told.

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

/// Makes the worker program measure once and end.
pub const MEASURE: &str = "--measure";

/// What a measuring worker is told.
#[derive(Serialize, Deserialize)]
struct Order {
    ask: MeasureRequest,
    /// An empty folder.
    folder: PathBuf,
}

/// What it answers.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    /// What it found, and the seconds that it took for that.
    Found(CostModel, f64),
    Failed(String),
}

/// Under what a run with these conditions would compute.
pub(super) fn circumstances(conditions: &Conditions) -> MachineProfile {
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

/// Measures all that the forecast outlines, and tells on standard error what is at it and what could not be measured.
///
/// # Errors
/// A cache that cannot be written, and a worker program that is missing.
pub(super) fn measure(
    project: &Project,
    planner: &Planner<'_>,
    forecast: &mut Forecast,
    how: &RunArgs,
    log: &str,
) -> Result<(), Failure> {
    let (settings, _) = how.settings(project, log);
    let scratch = project.store.scratch()?;
    // What is read of the cache must not be taken away meanwhile.
    let _use = project.store.shared_lock(|| {})?;
    let attempt = scratch.attempt()?;
    let bench = Workers { program: worker_program()?, settings, folder: attempt.path().to_path_buf() };
    let mut said = |said: MeasureEvent| {
        let line = match said {
            MeasureEvent::Measuring(stage) => format!("measuring {stage}"),
            MeasureEvent::Not(stage, why) => format!("{stage} is not measured: {why}"),
        };
        // Nobody may be there to read it.
        let _ = writeln!(std::io::stderr(), "{line}");
    };
    Ok(measure_all(forecast, planner, &bench, &mut said)?)
}

/// Worker processes that measure at the same time.
struct Workers {
    program: PathBuf,
    settings: Vec<WorkerConfig>,
    folder: PathBuf,
}

impl MeasureBackend for Workers {
    fn measure(&self, ask: &MeasureRequest) -> Result<Vec<CostModel>, String> {
        let folders = (0..self.settings.len()).map(|slot| self.folder.join(slot.to_string()));
        let work: Vec<(&WorkerConfig, PathBuf)> = self.settings.iter().zip(folders).collect();
        std::thread::scope(|scope| {
            let threads: Vec<_> =
                work.iter().map(|(setting, folder)| scope.spawn(|| self.one(ask, setting, folder))).collect();
            let found = threads.into_iter().map(|thread| thread.join());
            found.map(|found| found.unwrap_or_else(|_| Err("the measurement broke".into()))).collect()
        })
    }
}

impl Workers {
    fn one(&self, ask: &MeasureRequest, setting: &WorkerConfig, folder: &Path) -> Result<CostModel, String> {
        fs_err::create_dir_all(folder).map_err(|error| error.to_string())?;
        let begun = Instant::now();
        let answer = self.answer(&Order { ask: ask.clone(), folder: folder.to_path_buf() }, setting);
        let seconds = begun.elapsed().as_secs_f64();
        // What is left would only fill the disk until the plan is made.
        let _ = fs_err::remove_dir_all(folder);
        match answer? {
            Answer::Found(measured, busy) => {
                Ok(CostModel { start: measured.start + (seconds - busy).max(0.0), ..measured })
            }
            Answer::Failed(why) => Err(why),
        }
    }

    fn answer(&self, order: &Order, setting: &WorkerConfig) -> Result<Answer, String> {
        let broke = |error: &dyn std::fmt::Display| format!("{}: {error}", self.program.display());
        let setting = serde_json::to_string(setting).expect("a setting is plain data");
        let mut child = heavy(&self.program)
            .args([MEASURE, &setting])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| broke(&error))?;
        let text = serde_json::to_vec(order).expect("an order is plain data");
        if let Some(mut input) = child.stdin.take() {
            // A worker that is gone already tells why below.
            let _ = input.write_all(&text);
        }
        let output = child.wait_with_output().map_err(|error| broke(&error))?;
        // Libraries may have written before it.
        let last = output.stdout.rsplit(|byte| *byte == b'\n').find(|line| !line.is_empty());
        let answer = last.and_then(|line| serde_json::from_slice(line).ok());
        answer.ok_or_else(|| {
            format!("the worker process ended ({}); out of memory is the usual reason", output.status)
        })
    }
}

/// Measures what standard input says and writes what was found to standard output.
pub fn serve_measurement(
    computations: &[Computation],
    setting: &WorkerConfig,
    prepared: Result<(), String>,
    memory: &dyn Fn() -> Memory,
) {
    std::panic::set_hook(Box::new(|_| {}));
    let begun = Instant::now();
    let found = prepared.and_then(|()| {
        let order: Order = serde_json::from_reader(std::io::stdin()).map_err(|error| error.to_string())?;
        perform(&order, computations, setting, memory)
    });
    let answer = match found {
        Ok(measured) => Answer::Found(measured, begun.elapsed().as_secs_f64()),
        Err(why) => Answer::Failed(why),
    };
    let text = serde_json::to_string(&answer).expect("an answer is plain data");
    // Without a reader there is nobody to tell.
    let _ = writeln!(std::io::stdout(), "{text}");
}

fn perform(
    order: &Order,
    computations: &[Computation],
    setting: &WorkerConfig,
    memory: &dyn Fn() -> Memory,
) -> Result<CostModel, String> {
    let Order { ask: MeasureRequest { kind, params, inputs }, folder } = order;
    let computation = computations
        .iter()
        .find(|computation| computation.kind.name == kind)
        .ok_or_else(|| format!("this worker does not know the stage kind `{kind}`"))?;
    let WorkerConfig { device, micro_batch, ref downloads, .. } = *setting;
    let stage = (computation.from_json)(params)?;
    let cx = Context::new(device, micro_batch, downloads, &|_, _, _| {}, &|_| {});
    let found = catch_unwind(AssertUnwindSafe(|| measure_one(&*stage, inputs, folder, &cx, memory)));
    match found {
        Ok(found) => found.map_err(|error| describe(&error)),
        Err(panic) => Err(panic_message(panic.as_ref())),
    }
}
