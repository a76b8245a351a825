//! Slurm's client programs: the script of a pool, `sbatch`, `squeue`, `scancel`.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::bucket::{Bucket, log_on_node};
use super::error::SlurmError;
use super::folder::RunFolder;
use super::jobs::JobLine;
use super::node::CLUSTER_WORKER;
use super::pool::Scheduler;
use crate::pipeline::cluster_table::{Pool, Waits};

/// A controller that does not answer holds up a client for about 20 seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// The workers of a run as jobs of Slurm.
pub struct Slurm {
    /// The run's name.
    pub run: String,
    /// The scripts of its pools.
    pub scripts: BTreeMap<String, String>,
}

impl Scheduler for Slurm {
    fn submit(&self, pool: &str, count: u32, exclude: &[String]) -> Result<String, SlurmError> {
        submit(self.scripts.get(pool).map_or("", String::as_str), count, exclude)
    }
    fn queue(&self) -> Result<Vec<JobLine>, SlurmError> {
        queue(&self.run)
    }
    fn cancel(&self, only_pending: bool) -> Result<(), SlurmError> {
        cancel(&self.run, only_pending)
    }
}

/// The name of a run's jobs, by which they are found again.
pub(super) fn job_name(run: &str) -> String {
    format!("attrflow-{run}")
}

/// The options of `sbatch` and the shell that start the workers of a pool; `store`: the bucket of nodes that do not share the
/// run's folder.
pub fn script(
    folder: &RunFolder,
    name: &str,
    pool: &Pool,
    waits: &Waits,
    store: Option<&str>,
    program: &Path,
) -> String {
    let run = folder.name();
    let Pool { gpus, cpus, memory, time, slurm, setup, launch, .. } = pool;
    let (log, place) = match store {
        None => (folder.log().join("%A_%a.log"), folder.path().display().to_string()),
        Some(store) => (log_on_node(&run, "%A", "%a"), Bucket::place(store, &run)),
    };
    let mut options = vec![
        format!("--job-name={}", job_name(&run)),
        format!("--comment=attrflow:{run}:{name}"),
        format!("--output={}", log.display()),
        "--open-mode=append".to_owned(),
        "--requeue".to_owned(),
        "--export=NONE".to_owned(),
        format!("--signal=B:USR1@{}", waits.leave),
        "--ntasks=1".to_owned(),
        format!("--cpus-per-task={cpus}"),
    ];
    // The folder of the submission may be missing there.
    options.extend(store.map(|_| "--chdir=/tmp".to_owned()));
    options.extend((*gpus > 0).then(|| format!("--gres=gpu:{gpus}")));
    let named = [
        ("mem", memory),
        ("time", time),
        ("partition", &slurm.partition),
        ("account", &slurm.account),
        ("qos", &slurm.qos),
    ];
    options.extend(named.into_iter().filter_map(|(key, value)| Some(format!("--{key}={}", value.as_ref()?))));
    options.extend(slurm.extra.iter().cloned());
    let mut text = "#!/bin/bash\n".to_owned();
    options.iter().for_each(|option| text += &format!("#SBATCH {}\n", quoted(option)));
    setup.iter().for_each(|line| text += &format!("{line}\n"));
    let program = pool.program.clone().unwrap_or_else(|| program.display().to_string());
    let words = launch.iter().cloned().chain([program, CLUSTER_WORKER.to_owned(), place, name.to_owned()]);
    let words: Vec<String> = words.map(|word| quoted(&word)).collect();
    // Signals must reach the worker itself.
    text + &format!("exec {}\n", words.join(" "))
}

/// A word of shell; `sbatch` reads its own lines in the same way.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-+/=:,@%".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

/// Submits a job array of so many workers; returns its number.
///
/// # Errors
/// See [`SlurmError`].
pub fn submit(script: &str, count: u32, exclude: &[String]) -> Result<String, SlurmError> {
    let mut command = Command::new("sbatch");
    command.args(["--parsable", &format!("--array=0-{}", count.saturating_sub(1))]);
    if !exclude.is_empty() {
        command.arg(format!("--exclude={}", exclude.join(",")));
    }
    let text = ask(command, script)?;
    // With several clusters, `;CLUSTER` follows.
    Ok(text.trim().split(';').next().unwrap_or_default().to_owned())
}

/// All tasks of a run's jobs that Slurm remembers, in one question.
///
/// # Errors
/// See [`SlurmError`].
pub fn queue(run: &str) -> Result<Vec<JobLine>, SlurmError> {
    let mut command = Command::new("squeue");
    command.args(["-h", "-a", "-r", "-t", "all", "-n", &job_name(run)]);
    command.args(["-o", "%F|%K|%T|%r|%N|%L|%k"]);
    Ok(ask(command, "")?.lines().filter_map(JobLine::parse).collect())
}

/// Cancels all jobs of a run, or those that wait.
///
/// # Errors
/// See [`SlurmError`].
pub fn cancel(run: &str, only_pending: bool) -> Result<(), SlurmError> {
    let mut command = Command::new("scancel");
    command.args(["--quiet", &format!("--name={}", job_name(run))]);
    if only_pending {
        command.arg("--state=PENDING");
    }
    ask(command, "").map(drop)
}

/// Runs a client program that may hang while the controller is away.
fn ask(mut command: Command, input: &str) -> Result<String, SlurmError> {
    let name = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => SlurmError::Refused(format!(
            "`{name}` is not installed here: run on a host from which jobs are submitted"
        )),
        _ => SlurmError::Refused(format!("{name}: {error}")),
    })?;
    // A program that does not read has said why.
    let _ = child.stdin.take().map(|mut pipe| pipe.write_all(input.as_bytes()));
    let reader = |pipe: Option<Box<dyn Read + Send>>| {
        std::thread::spawn(move || {
            let mut text = String::new();
            let _ = pipe.map(|mut pipe| pipe.read_to_string(&mut text));
            text
        })
    };
    let out = reader(child.stdout.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>));
    let err = reader(child.stderr.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>));
    let begun = Instant::now();
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if begun.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(10)),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(SlurmError::Absent(format!("{name} does not answer")));
            }
        }
    };
    let (out, err) = (out.join().unwrap_or_default(), err.join().unwrap_or_default());
    if status.success() {
        return Ok(out);
    }
    // Each line begins with the program's name.
    let lines = err
        .trim()
        .lines()
        .map(|line| line.trim_start_matches(&format!("{name}: ")).trim_start_matches("error: "));
    let text = lines.collect::<Vec<_>>().join("; ");
    let words = [
        "Unable to contact",
        "timed out",
        "Connection refused",
        "Communication",
        "Zero Bytes",
        "slurm_receive",
    ];
    match words.iter().any(|word| text.contains(word)) {
        true => Err(SlurmError::Absent(text)),
        false => Err(SlurmError::Refused(if text.is_empty() { format!("{name}: {status}") } else { text })),
    }
}
