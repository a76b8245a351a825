//! Measures the time and memory of a kind's work by doing a small part of it in worker processes.

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::local::WorkerProgram;
use super::protocol::WorkerConfig;
use super::serve::panic_message;
use crate::kind::{Computation, Compute, Context, ExpectedInputs, Step, Task, Trial, describe};

/// Seconds that a trial should take, to separate the time of steps from that of the task.
const ENOUGH: f64 = 3.0;
/// A trial this long is not repeated for a warm start.
const LONG: f64 = 10.0;
/// The largest trial, as a multiple of the smallest.
const LARGEST: f64 = 4096.0;

/// What a worker measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CostModel {
    /// Seconds from a worker's start to its first task, and what that task takes more than later ones.
    pub start: f64,
    /// Seconds of a task without its steps, such as for loading a network.
    pub task: f64,
    /// Seconds of a step.
    pub step: f64,
    /// Seconds of the merge per byte of the units.
    pub merge: f64,
    /// Peak memory of the worker process, in bytes.
    pub host: u64,
    /// Peak device memory, in bytes; 0 on the CPU.
    pub device: u64,
}

/// The memory of a process.
#[derive(Debug, Clone, Copy, Default)]
pub struct Memory {
    /// Peak memory of the machine so far, in bytes.
    pub host: u64,
    /// Device memory in use, in bytes.
    pub device: u64,
}

/// Does a small part of a stage's work three times, and derives the cost of all of it.
///
/// The first run warms up: libraries choose their algorithms, and memory is allocated. The second is as small as the kind
/// allows, the third long enough to be timed: their difference gives the time of a step, the rest is the task's.
/// `folder` is empty and receives the files of the trials.
///
/// # Errors
/// Inputs whose shapes are unknown, and all errors of the work.
pub fn measure(
    stage: &dyn Compute,
    inputs: &ExpectedInputs,
    folder: &Path,
    cx: &Context<'_>,
    memory: &dyn Fn() -> Memory,
) -> anyhow::Result<CostModel> {
    let (mut parts, mut count): (Vec<PathBuf>, usize) = (Vec::new(), 0);
    let mut run = |wanted: u64| -> anyhow::Result<(u64, f64)> {
        let place = folder.join(count.to_string());
        let (given, out) = (place.join("in"), place.join("out"));
        fs_err::create_dir_all(&given)?;
        fs_err::create_dir_all(&out)?;
        let Trial { stage, inputs, units, steps, merges: _ } = stage.trial(inputs, wanted, &given, cx)?;
        let task =
            |step, out: &Path| Task { params: Json::Null, inputs: inputs.clone(), step, out: out.into() };
        let mut tasks = Vec::new();
        let alone = units.len() == 1;
        for (number, unit) in units.into_iter().enumerate() {
            let out = if alone { out.clone() } else { out.join(number.to_string()) };
            fs_err::create_dir_all(&out)?;
            tasks.push(task(Step::Unit(unit), &out));
        }
        let begun = Instant::now();
        match tasks.is_empty() {
            true => stage.run(&task(Step::Whole, &out), cx)?,
            false => stage.run_batch(&tasks, cx)?,
        }
        let seconds = begun.elapsed().as_secs_f64();
        parts.extend(tasks.into_iter().map(|task| task.out));
        count += 1;
        Ok((steps.max(1), seconds))
    };
    let (few, cold) = run(1)?;
    let (few, warm) = if cold > LONG { (few, cold) } else { run(few)? };
    // Even what a task takes besides may be most of it, so steps are doubled until they show.
    let mut more = (few, warm);
    let mut wanted = few * 2;
    while more.1 - warm < ENOUGH {
        more = run(wanted)?;
        let rise = more.1 - warm;
        if more.0 < wanted || (more.0 as f64) >= few as f64 * LARGEST || more.1 > LONG * 2.0 {
            break;
        }
        let factor = if rise > 0.05 * ENOUGH { 1.15 * ENOUGH / rise } else { 8.0 };
        wanted = (few as f64 + (more.0 - few) as f64 * factor.clamp(1.5, 16.0)).ceil() as u64;
    }
    let slope = (more.1 - warm) / (more.0.saturating_sub(few)).max(1) as f64;
    let step = if more.0 > few && slope > 0.0 { slope } else { more.1 / more.0 as f64 };
    let merge = join(stage, inputs, folder, &parts, cx)?;
    let Memory { host, device } = memory();
    Ok(CostModel {
        start: (cold - warm).max(0.0),
        task: (warm - step * few as f64).max(0.0),
        step,
        merge,
        host,
        device,
    })
}

/// Seconds for each byte of joining the parts of the trials.
fn join(
    stage: &dyn Compute,
    inputs: &ExpectedInputs,
    folder: &Path,
    parts: &[PathBuf],
    cx: &Context<'_>,
) -> anyhow::Result<f64> {
    let (given, out) = (folder.join("merge-in"), folder.join("merge-out"));
    fs_err::create_dir_all(&given)?;
    fs_err::create_dir_all(&out)?;
    let trial = stage.trial(inputs, 1, &given, cx)?;
    if !trial.merges {
        return Ok(0.0);
    }
    let begun = Instant::now();
    let step = Step::Merge(parts.to_vec());
    trial.stage.merge(&Task { params: Json::Null, inputs: trial.inputs, step, out }, parts, cx)?;
    let seconds = begun.elapsed().as_secs_f64();
    let bytes: u64 = parts.iter().map(|part| length(part)).sum();
    Ok(seconds / bytes.max(1) as f64)
}

/// Bytes of the files in a folder.
fn length(folder: &Path) -> u64 {
    let files = fs_err::read_dir(folder).into_iter().flatten().flatten();
    files.filter_map(|file| file.metadata().ok()).filter(|file| file.is_file()).map(|file| file.len()).sum()
}

/// The argument that makes a worker measure once and exit.
pub const MEASURE: &str = "--measure";

/// A request to measure a stage.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MeasureRequest {
    /// The stage kind.
    pub kind: String,
    /// Its parameters.
    pub params: Json,
    /// The shapes of its inputs.
    pub inputs: ExpectedInputs,
}

/// Measures with as many parallel workers as a run would use: they share the machine's memory and bandwidth.
pub trait MeasureBackend {
    /// The result of each worker.
    ///
    /// # Errors
    /// Why a worker has no result.
    fn measure(&self, ask: &MeasureRequest) -> Result<Vec<CostModel>, String>;
}

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
enum MeasureReply {
    /// The measurement, and the seconds that it took.
    Found(CostModel, f64),
    Failed(String),
}

/// Worker processes that measure at the same time.
pub struct MeasureWorkers {
    /// The worker program.
    pub program: WorkerProgram,
    /// One configuration per worker.
    pub configs: Vec<WorkerConfig>,
    /// An empty folder for what the trials read and write.
    pub folder: PathBuf,
}

impl MeasureBackend for MeasureWorkers {
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

impl MeasureWorkers {
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
            MeasureReply::Found(measured, busy) => {
                Ok(CostModel { start: measured.start + (seconds - busy).max(0.0), ..measured })
            }
            MeasureReply::Failed(why) => Err(why),
        }
    }

    fn ask(&self, request: &WorkerRequest, config: &WorkerConfig) -> Result<MeasureReply, String> {
        let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", self.program.path.display());
        let config = serde_json::to_string(config).expect("a configuration is plain data");
        let mut child = self
            .program
            .command()?
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
        Ok(measured) => MeasureReply::Found(measured, begun.elapsed().as_secs_f64()),
        Err(why) => MeasureReply::Failed(why),
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
    let WorkerConfig { device, micro_batch, ref downloads, ref trials, .. } = *config;
    let stage = (computation.from_json)(params)?;
    let cx = Context::new(device, micro_batch, (downloads, trials), &|_, _, _, _| {}, &|_| {});
    let found = catch_unwind(AssertUnwindSafe(|| measure(&*stage, inputs, folder, &cx, memory)));
    match found {
        Ok(found) => found.map_err(|error| describe(&error)),
        Err(panic) => Err(panic_message(panic.as_ref())),
    }
}
