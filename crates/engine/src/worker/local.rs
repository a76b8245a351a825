//! Workers as processes on this machine, with the protocol on their standard input and output.
//!
//! When the run is gone, a worker's input ends and so does the worker, with all that it started.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::SIGKILL;

use super::protocol::{DeviceClass, Facts, Reply, TaskError, Usage, VERSION, WorkerConfig};
use super::{Backend, Request, Work, Worker};
use crate::kind::Task;

/// Makes the command-line program a worker for the kinds that need no libtorch.
pub const LIGHT_WORKER: &str = "--light-worker";

/// Workers as processes of their own: what crashes or eats all memory is one task, not the run.
pub struct LocalBackend {
    /// The worker program, which computes with libtorch.
    pub worker: WorkerProgram,
    /// The command-line program, which computes what needs no libtorch when it gets [`LIGHT_WORKER`] and a configuration.
    pub front: PathBuf,
    /// One configuration per slot; none where only the device class is asked for.
    pub settings: Vec<WorkerConfig>,
}

impl Backend for LocalBackend {
    fn slots(&self) -> usize {
        self.settings.len()
    }

    fn device_class(&self) -> DeviceClass {
        match self.settings.first() {
            Some(config) => config.device.into(),
            None if nvidia_driver() => DeviceClass::Cuda,
            None => DeviceClass::Cpu,
        }
    }

    fn next(&self, request: &Request<'_>) -> Result<Option<Box<dyn Worker>>, TaskError> {
        let Request { slot, libtorch, cancel, .. } = *request;
        let program = if libtorch { &self.worker.path } else { &self.front };
        let config = serde_json::to_string(&self.settings[slot]).expect("a configuration is plain data");
        let mut command = match libtorch {
            true => self.worker.command().map_err(TaskError::Start)?,
            false => Command::new(program),
        };
        if !libtorch {
            command.arg(LIGHT_WORKER);
        }
        let failed =
            |what: &dyn std::fmt::Display| TaskError::Start(format!("{}: {what}", program.display()));
        let mut child = command
            .arg(config)
            // Ctrl-C is for the run, which lets the worker finish or ends it, with all that it started.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| failed(&error))?;
        let input = child.stdin.take().ok_or_else(|| failed(&"no input"))?;
        let output = child.stdout.take().ok_or_else(|| failed(&"no output"))?;
        let (input, output) = (Some(input), BufReader::new(output));
        let library = self.worker.libtorch.as_ref().ok().filter(|_| libtorch).cloned();
        let mut process = Process { child, input, output, library, facts: Facts::default() };
        let _working = cancel.enter(process.group());
        process.facts = process.hello()?;
        let (found, program) = (process.facts.protocol, program.display());
        if found != VERSION {
            let text = format!("{program} speaks version {found} of the protocol, this program {VERSION}");
            return Err(TaskError::Refused(text));
        }
        Ok(Some(Box::new(process)))
    }
}

/// Whether there is an NVIDIA GPU that this process may use. Asking libtorch would cost seconds on every command;
/// if it then cannot use the GPU, the worker says so.
pub fn nvidia_driver() -> bool {
    if std::env::var("CUDA_VISIBLE_DEVICES").is_ok_and(|visible| visible.is_empty() || visible == "-1") {
        return false;
    }
    // A container or a job may be given any one of them.
    let numbered = |name: &str| name.strip_prefix("nvidia").is_some_and(|n| n.parse::<u32>().is_ok());
    let nodes = fs_err::read_dir("/dev").into_iter().flatten().flatten();
    Path::new("/dev/dxg").exists()
        || nodes.into_iter().any(|node| numbered(&node.file_name().to_string_lossy()))
}

/// Bytes that a worker keeps when it has freed them, at most: more than a pass through a network takes.
const KEPT: &str = "17179869184";

/// The worker program, and the libtorch that it is to load.
#[derive(Debug, Clone)]
pub struct WorkerProgram {
    /// The program.
    pub path: PathBuf,
    /// The folder of libtorch's libraries, or why there is none.
    pub libtorch: Result<PathBuf, String>,
}

impl WorkerProgram {
    /// The program with the environment that libtorch computes in.
    ///
    /// # Errors
    /// Why there is no libtorch.
    pub fn command(&self) -> Result<Command, String> {
        let library = self.libtorch.as_ref().map_err(Clone::clone)?;
        let mut command = Command::new(&self.path);
        set_environment(&mut command, library);
        Ok(command)
    }
}

fn set_environment(command: &mut Command, library: &Path) {
    // The loader looks here before it looks where the program was linked.
    let others = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let others = std::env::split_paths(&others).filter(|folder| !folder.as_os_str().is_empty());
    // A folder with a `:` in its name cannot be said so; where the program was linked, it may be.
    if let Ok(folders) = std::env::join_paths(std::iter::once(library.to_path_buf()).chain(others)) {
        command.env("LD_LIBRARY_PATH", folders);
    }
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
}

struct Process {
    child: Child,
    /// Closed to end the worker.
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    /// The folder of libtorch's libraries, if it loads them.
    library: Option<PathBuf>,
    facts: Facts,
}

impl Process {
    /// Reads its first message. A library may have written to standard output before.
    fn hello(&mut self) -> Result<Facts, TaskError> {
        loop {
            match self.reply(&[])? {
                Ok(Reply::Hello(facts)) => return Ok(facts),
                other => tracing::info!("{}", other.map_or_else(|line| line, |reply| format!("{reply:?}"))),
            }
        }
    }

    /// Reads a line, which is a reply or what a library wrote.
    fn reply(&mut self, tasks: &[Task]) -> Result<Result<Reply, String>, TaskError> {
        let mut line = String::new();
        match self.output.read_line(&mut line) {
            Ok(0) | Err(_) => Err(self.died(tasks)),
            Ok(_) => Ok(serde_json::from_str(&line).map_err(|_| line.trim_end().to_owned())),
        }
    }

    /// Writes one line.
    fn write(&mut self, line: &str) -> std::io::Result<()> {
        let input = self.input.as_mut().ok_or(std::io::ErrorKind::BrokenPipe)?;
        input.write_all(format!("{line}\n").as_bytes())?;
        input.flush()
    }

    /// Why it died, in the middle of these tasks.
    fn died(&mut self, tasks: &[Task]) -> TaskError {
        let _ = self.child.kill();
        if self.library.is_none() {
            tasks.iter().for_each(|task| end_below(&task.out));
        }
        match (self.child.wait(), &self.library) {
            // What the dynamic loader ends with when a library is missing.
            (Ok(status), Some(library)) if status.code() == Some(127) => {
                let library = library.display();
                TaskError::Start(format!("the libtorch in {library} does not load; see `attrflow doctor`"))
            }
            // By the system, or by somebody who had the same in mind.
            (Ok(status), _) if status.signal() == Some(SIGKILL) => {
                TaskError::Died(format!("{status}: out of memory is the usual reason"))
            }
            (Ok(status), _) => TaskError::Died(status.to_string()),
            (Err(error), _) => TaskError::Died(error.to_string()),
        }
    }
}

impl Worker for Process {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn group(&self) -> Option<u32> {
        Some(self.child.id())
    }

    fn run(&mut self, work: &Work, on_reply: &mut dyn FnMut(Reply)) -> Result<Usage, TaskError> {
        let [batch] = work.batches.as_slice() else {
            return Err(TaskError::Failed("a worker on this machine takes one batch at once".into()));
        };
        // One that ended while it had nothing to do has taken no task with it.
        if let Ok(Some(status)) = self.child.try_wait() {
            return Err(TaskError::Left(format!("the idle worker process ended ({status})")));
        }
        let line = serde_json::to_string(batch).expect("a batch is plain data");
        if self.write(&line).is_err() {
            return Err(self.died(&batch.tasks));
        }
        loop {
            match self.reply(&batch.tasks)? {
                Ok(Reply::Done(usage)) => return Ok(usage),
                Ok(Reply::Failed { error }) => return Err(TaskError::Failed(error)),
                Ok(reply) => on_reply(reply),
                // A library wrote to standard output, which is no reason to fail.
                Err(message) => on_reply(Reply::Log { level: "INFO".into(), message }),
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.input.take());
        // One without libtorch ends by itself, once it has ended what it started.
        if self.library.is_some() {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

/// Ends the processes that work in a folder: a worker that was killed could not.
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
