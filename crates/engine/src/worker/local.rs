//! Workers: what runs a task, and the line protocol to one in a process of its own.
//!
//! The runner writes one JSON line per [`TaskBatch`]; the worker answers with [`Reply`] lines, the last of which is
//! `Done` or `Failed`. When the runner is gone, the worker's input ends and so does the worker, with all that it started.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use crate::kind::{Device, Downloads, Task};

/// Work of one kind: one piece, or several units that are computed together.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TaskBatch {
    /// The stage kind.
    pub kind: String,
    /// What to do; more than one only where all are units.
    pub tasks: Vec<Task>,
}

/// What a worker says while it works.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// Steps done and their total.
    Progress {
        /// The piece that they are steps of.
        piece: usize,
        /// Steps done.
        done: u64,
        /// Steps in all.
        total: u64,
    },
    /// A line for the log.
    Log {
        /// `WARN`, `INFO`, `DEBUG` or `TRACE`.
        level: String,
        /// The line.
        message: String,
    },
    /// Some pieces are done, whatever becomes of the others.
    Finished {
        /// Their numbers.
        tasks: Vec<usize>,
    },
    /// The task is done, with all of its pieces.
    Done,
    /// The task failed.
    Failed {
        /// What went wrong, outermost first.
        error: String,
    },
}

/// A task that ended without a result.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// The stage refused or broke.
    #[error("{0}")]
    Failed(String),
    /// The worker's process ended in the middle.
    #[error("the worker process ended in the middle of the task ({0}); out of memory is the usual reason")]
    Died(String),
    /// The worker could not be started.
    #[error("cannot start a worker: {0}")]
    Start(String),
}

/// Runs tasks one after the other.
pub trait Worker {
    /// Runs one task; `said` hears progress and log lines.
    ///
    /// # Errors
    /// Why there is no result.
    fn run(&mut self, task: &TaskBatch, said: &mut dyn FnMut(Reply)) -> Result<(), TaskError>;
    /// The process group that it works in, to be killed where it must end at once.
    fn group(&self) -> Option<u32> {
        None
    }
}

/// Makes workers.
pub trait Backend: Sync {
    /// How many workers may run at once.
    fn slots(&self) -> usize;
    /// Starts a worker of a slot: a `light` one for the kinds that need no libtorch, else one for all others.
    ///
    /// # Errors
    /// Why it does not start.
    fn start(&self, slot: usize, light: bool) -> Result<Box<dyn Worker>, TaskError>;
}

/// How a worker process is told to compute; nothing here may change a result.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WorkerConfig {
    /// Where.
    pub device: Device,
    /// With how many threads.
    pub threads: usize,
    /// Most rows to send through a network at once.
    pub micro_batch: usize,
    /// How to bring remote files.
    pub downloads: Downloads,
    /// The log filter.
    pub log: String,
}

/// Makes the front program a light worker.
pub const LIGHT_WORKER: &str = "--light-worker";

/// Workers as processes of their own: what crashes or eats all memory is one task, not the run.
pub struct LocalBackend {
    /// The worker program.
    pub program: PathBuf,
    /// The front program, which is the light worker when it gets [`LIGHT_WORKER`] and a setting.
    pub front: PathBuf,
    /// One setting per slot.
    pub settings: Vec<WorkerConfig>,
}

impl Backend for LocalBackend {
    fn slots(&self) -> usize {
        self.settings.len()
    }

    fn start(&self, slot: usize, light: bool) -> Result<Box<dyn Worker>, TaskError> {
        let program = if light { &self.front } else { &self.program };
        let setting = serde_json::to_string(&self.settings[slot]).expect("a setting is plain data");
        let mut command = if light { Command::new(program) } else { heavy(program) };
        if light {
            command.arg(LIGHT_WORKER);
        }
        let program = program.display();
        let mut child = command
            .arg(setting)
            // Ctrl-C is the runner's to hear: what the worker is at is finished, or ended by the runner, with what it started.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| TaskError::Start(format!("{program}: {error}")))?;
        let input = child.stdin.take().ok_or_else(|| TaskError::Start(format!("{program}: no input")))?;
        let output = child.stdout.take().ok_or_else(|| TaskError::Start(format!("{program}: no output")))?;
        Ok(Box::new(Process { child, input: Some(input), output: BufReader::new(output), light }))
    }
}

/// Bytes that a worker keeps when it has freed them, at most: more than a pass through a network takes.
const KEPT: &str = "17179869184";

/// The worker program with the environment that libtorch computes in.
pub fn heavy(program: &Path) -> Command {
    let mut command = Command::new(program);
    command
        // cuBLAS repeats bit for bit only with a workspace of fixed size.
        .env("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        // Which precision is used is part of every recipe, and not for an environment to say.
        .env_remove("NVIDIA_TF32_OVERRIDE")
        .env_remove("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE");
    // Activations come and go by the hundred megabytes. Given back to the system each time, and taken again page by page,
    // they cost a third of all time on a CPU; kept, and in large pages, next to nothing.
    for (name, value) in [("MALLOC_MMAP_THRESHOLD_", KEPT), ("MALLOC_TRIM_THRESHOLD_", KEPT)] {
        command.env(name, value);
    }
    let tunables = std::env::var("GLIBC_TUNABLES").map_or_else(|_| String::new(), |own| format!(":{own}"));
    command.env("GLIBC_TUNABLES", format!("glibc.malloc.hugetlb=1{tunables}"));
    command
}

struct Process {
    child: Child,
    /// Closed to tell a worker to end.
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    light: bool,
}

impl Process {
    /// Writes one line.
    fn tell(&mut self, line: &str) -> std::io::Result<()> {
        let input = self.input.as_mut().ok_or(std::io::ErrorKind::BrokenPipe)?;
        input.write_all(format!("{line}\n").as_bytes())?;
        input.flush()
    }

    /// Why it died, in the middle of a task.
    fn died(&mut self, task: &TaskBatch) -> TaskError {
        let _ = self.child.kill();
        if self.light {
            task.tasks.iter().for_each(|piece| end_below(&piece.out));
        }
        match self.child.wait() {
            // What the dynamic loader ends with when a library is missing.
            Ok(status) if status.code() == Some(127) && !self.light => {
                TaskError::Start("libtorch does not load; see `attrflow doctor`".into())
            }
            Ok(status) => TaskError::Died(status.to_string()),
            Err(error) => TaskError::Died(error.to_string()),
        }
    }
}

impl Worker for Process {
    fn group(&self) -> Option<u32> {
        Some(self.child.id())
    }

    fn run(&mut self, task: &TaskBatch, said: &mut dyn FnMut(Reply)) -> Result<(), TaskError> {
        let line = serde_json::to_string(task).expect("a task is plain data");
        if self.tell(&line).is_err() {
            return Err(self.died(task));
        }
        let mut line = String::new();
        loop {
            line.clear();
            match self.output.read_line(&mut line) {
                Ok(0) | Err(_) => return Err(self.died(task)),
                Ok(_) => {}
            }
            match serde_json::from_str(&line) {
                Ok(Reply::Done) => return Ok(()),
                Ok(Reply::Failed { error }) => return Err(TaskError::Failed(error)),
                Ok(reply) => said(reply),
                // A library wrote to standard output: worth seeing, nothing to fail for.
                Err(_) => said(Reply::Log { level: "INFO".into(), message: line.trim_end().to_owned() }),
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.input.take());
        // A light worker ends by itself, once it has ended what it started.
        if !self.light {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

/// Ends the processes that work in a folder: a light worker that was killed could not.
fn end_below(folder: &Path) {
    let Ok(folder) = fs_err::canonicalize(folder) else { return };
    for process in fs_err::read_dir("/proc").into_iter().flatten().flatten() {
        let works = |cwd: PathBuf| cwd.starts_with(&folder);
        let id = process.file_name().to_str().and_then(|id| id.parse().ok()).and_then(Pid::from_raw);
        if let Some(id) = id
            && fs_err::read_link(process.path().join("cwd")).is_ok_and(works)
        {
            // One that ended meanwhile needs no end.
            let _ = kill_process(id, Signal::KILL);
        }
    }
}
