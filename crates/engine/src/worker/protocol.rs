//! The messages between a run and its workers, one JSON line each.
//!
//! A worker's first line is its [`Reply::Hello`]. Then it gets one [`TaskBatch`] after the other and answers each with
//! [`Reply`] lines, the last of which is `Done` or `Failed`.

use std::fmt::{self, Display, Formatter};
use std::io::Read as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::identity::digest::Listing;
use crate::kind::{Device, Downloads, Task};

/// Version of the protocol.
pub const VERSION: u32 = 1;

/// Work of one kind: one task, or several units that are computed together.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TaskBatch {
    /// The stage kind.
    pub kind: String,
    /// What to do; more than one only where all are units.
    pub tasks: Vec<Task>,
}

/// What a worker writes.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// What it is, before any task.
    Hello(Facts),
    /// Steps done and their total.
    Progress {
        /// The number of the task in its batch.
        task: usize,
        /// Steps done.
        done: u64,
        /// Steps in all.
        total: u64,
        /// How it goes, in a few words.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        note: Option<String>,
    },
    /// A line for the log.
    Log {
        /// `WARN`, `INFO`, `DEBUG` or `TRACE`.
        level: String,
        /// The line.
        message: String,
    },
    /// Some tasks begin; without this line, those of the first batch have begun.
    Started {
        /// Their numbers.
        tasks: Vec<usize>,
    },
    /// Some tasks are done, whatever becomes of the others.
    Finished {
        /// Their numbers.
        tasks: Vec<usize>,
        /// What each wrote, where that is known.
        #[serde(default)]
        files: Vec<Listing>,
        /// What the batch took so far.
        #[serde(default)]
        usage: Usage,
    },
    /// All tasks of the batch are done.
    Done(Usage),
    /// The batch failed.
    Failed {
        /// What went wrong, outermost first.
        error: String,
    },
}

/// The kind of device that numbers are computed on; it is part of a recipe.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceClass {
    /// The CPU.
    #[default]
    Cpu,
    /// A CUDA device.
    Cuda,
}

impl DeviceClass {
    /// As recipes name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        }
    }
}

impl From<Device> for DeviceClass {
    fn from(device: Device) -> Self {
        match device {
            Device::Cpu => Self::Cpu,
            Device::Cuda(_) => Self::Cuda,
        }
    }
}

/// What a worker says of itself and its machine.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// Version and commit of the program.
    pub build: String,
    /// [`VERSION`] of the protocol that it speaks.
    pub protocol: u32,
    /// Version of libtorch; none where it computes without.
    pub libtorch: Option<String>,
    /// What it computes on.
    pub device: DeviceClass,
    /// Model of the GPU.
    pub gpu: Option<String>,
    /// Compute capability of the GPU, such as `9.0`.
    pub compute_capability: Option<String>,
    /// Version of the GPU's driver.
    pub driver: Option<String>,
    /// Memory of the machine, in bytes; 0 where the system does not say.
    pub memory: u64,
    /// The machine's name.
    pub host: String,
    /// Why it cannot use its device, such as a missing GPU: every task fails for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

impl Display for Facts {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self {
            build,
            protocol: _,
            libtorch,
            device,
            gpu,
            compute_capability,
            driver,
            memory,
            host,
            trouble,
        } = self;
        write!(f, "{build} on {host} ({} GiB of memory), {}", memory >> 30, device.name())?;
        for (name, value) in [
            ("", gpu),
            ("compute capability ", compute_capability),
            ("driver ", driver),
            ("libtorch ", libtorch),
            ("which cannot serve: ", trouble),
        ] {
            if let Some(value) = value {
                write!(f, ", {name}{value}")?;
            }
        }
        Ok(())
    }
}

impl Facts {
    /// What any worker knows of its machine.
    pub fn of_machine(build: &str, device: Device) -> Self {
        let read = |path: &str| fs_err::read_to_string(path).unwrap_or_default();
        let memory = read("/proc/meminfo");
        let total = memory.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next());
        Self {
            build: build.to_owned(),
            protocol: VERSION,
            device: device.into(),
            memory: total.and_then(|kilobytes| kilobytes.parse::<u64>().ok()).unwrap_or_default() * 1024,
            host: read("/proc/sys/kernel/hostname").trim().to_owned(),
            ..Self::default()
        }
    }

    /// Why it must not compute under a recipe of this libtorch and device class.
    pub fn contradiction(&self, libtorch: &str, device: &str) -> Option<String> {
        let (host, found) = (&self.host, self.libtorch.as_deref().unwrap_or("none"));
        if found != libtorch {
            return Some(format!("the worker on `{host}` has libtorch {found}, this run needs {libtorch}"));
        }
        let class = self.device.name();
        (class != device)
            .then(|| format!("the worker on `{host}` computes on `{class}`, this run needs `{device}`"))
    }
}

/// What a batch took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Seconds from start to end.
    pub wall: f64,
    /// Seconds of processor time, over all threads of the worker.
    pub cpu: f64,
    /// Most memory that the worker had, in bytes: since the batch began where libtorch computes it, else since the worker started.
    pub peak_memory: u64,
    /// Device memory in use at the end, which libtorch never gives back, in bytes; 0 on the CPU.
    #[serde(default)]
    pub peak_device_memory: u64,
}

impl Usage {
    /// Starts to measure this process; `device`: the bytes of device memory in use.
    pub fn start(device: &dyn Fn() -> u64) -> impl Fn() -> Self {
        let cpu = || {
            let time = clock_gettime(ClockId::ProcessCPUTime);
            Duration::new(time.tv_sec as u64, time.tv_nsec as u32).as_secs_f64()
        };
        let (begun, before) = (Instant::now(), cpu());
        move || Self {
            wall: begun.elapsed().as_secs_f64(),
            cpu: cpu() - before,
            peak_memory: peak_memory(),
            peak_device_memory: device(),
        }
    }
}

/// Makes [`peak_memory`] begin anew, where the system can.
pub fn reset_peak_memory() {
    // 5: the peak alone, see proc(5).
    let _ = fs_err::write("/proc/self/clear_refs", "5");
}

/// The most memory that this process had so far, in bytes; 0 where the system does not say.
pub fn peak_memory() -> u64 {
    // Of a size that is not known, the standard library reads a few bytes at a time.
    const MOST: usize = 16 << 10;
    let mut status = Vec::with_capacity(MOST);
    if let Ok(file) = fs_err::File::open("/proc/self/status") {
        // Without it, the system does not say.
        let _ = file.take(MOST as u64).read_to_end(&mut status);
    }
    let status = String::from_utf8_lossy(&status);
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kilobytes.unwrap_or_default() * 1024
}

/// A batch that ended without a result.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// The stage refused or broke.
    #[error("{0}")]
    Failed(String),
    /// The worker's process ended in the middle, on a machine that works.
    #[error("the worker process ended in the middle of the task ({0})")]
    Died(String),
    /// The worker is gone for no fault of the task, such as with its machine: another worker gets the task.
    #[error("the worker was lost: {0}")]
    Lost(String),
    /// The worker ended in order before the task began: another worker gets the task.
    #[error("the worker left: {0}")]
    Left(String),
    /// The run was stopped before the task began.
    #[error("the run was stopped")]
    Stopped,
    /// The worker could not be started.
    #[error("cannot start a worker: {0}")]
    Start(String),
    /// The worker cannot serve this run, whatever the task.
    #[error("{0}")]
    Refused(String),
}

/// How a worker computes; nothing here may change a result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerConfig {
    /// Where.
    pub device: Device,
    /// With how many threads.
    pub threads: usize,
    /// Most rows to send through a network at once.
    pub micro_batch: usize,
    /// How to download files.
    pub downloads: Downloads,
    /// Where it keeps what trials found to be fastest: one folder for all workers, so that they compute alike.
    pub trials: PathBuf,
    /// The log filter.
    pub log: String,
}
