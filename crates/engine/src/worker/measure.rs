//! How long a kind's work takes and how much memory, found by doing some of it.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::kind::{Compute, Context, ExpectedInputs, Step, Task};

/// Seconds that a trial should take to tell the time of a step apart from what a task takes besides.
const ENOUGH: f64 = 3.0;
/// A trial this long is not repeated to have it warm.
const LONG: f64 = 10.0;
/// How many times the smallest trial the largest may be.
const LARGEST: f64 = 4096.0;

/// What a worker found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CostModel {
    /// Seconds from a worker's start to its first task, with what that takes more than later ones.
    pub start: f64,
    /// Seconds that a task takes besides its steps, such as for loading a network.
    pub task: f64,
    /// Seconds of a step.
    pub step: f64,
    /// Seconds that joining takes for each byte of the parts.
    pub merge: f64,
    /// Most memory that the worker process had, in bytes.
    pub host: u64,
    /// Most memory of the device that it had, in bytes; 0 on the CPU.
    pub device: u64,
}

/// What a process takes of memory.
#[derive(Debug, Clone, Copy, Default)]
pub struct Memory {
    /// The most that it had so far of the machine's, in bytes.
    pub host: u64,
    /// What it has of the device's, in bytes.
    pub device: u64,
}

/// The most memory that this process had so far, in bytes; 0 where the system does not tell.
pub fn peak_memory() -> u64 {
    let status = fs_err::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kilobytes.unwrap_or_default() * 1024
}

/// Does a small piece of a stage's work three times and says what all of it will take.
///
/// The first run warms up: libraries choose their algorithms and memory is asked of the system. Of the other two, one is as
/// small as the kind can make it and one long enough to be timed: their difference is the steps', the rest the task's.
/// `folder` is empty and gets what the trials read and write.
///
/// # Errors
/// Inputs whose shapes are not known, and whatever keeps the work from being done.
pub fn measure(
    stage: &dyn Compute,
    inputs: &ExpectedInputs,
    folder: &Path,
    cx: &Context<'_>,
    memory: &dyn Fn() -> Memory,
) -> anyhow::Result<CostModel> {
    let mut parts: Vec<PathBuf> = Vec::new();
    let mut run = |wanted: u64| -> anyhow::Result<(u64, f64)> {
        let place = folder.join(parts.len().to_string());
        let (given, out) = (place.join("in"), place.join("out"));
        fs_err::create_dir_all(&given)?;
        fs_err::create_dir_all(&out)?;
        let trial = stage.trial(inputs, wanted, &given, cx)?;
        let begun = Instant::now();
        let step = trial.unit.map_or(Step::Whole, Step::Unit);
        trial.stage.run(&Task { params: Json::Null, inputs: trial.inputs, step, out: out.clone() }, cx)?;
        let seconds = begun.elapsed().as_secs_f64();
        parts.push(out);
        Ok((trial.steps.max(1), seconds))
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
