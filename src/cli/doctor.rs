//! `attrflow doctor`: checks libtorch and the devices.

use std::path::PathBuf;
use std::process::Command;

use clap::Args as ClapArgs;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::doctor_cluster;
use super::failure::Failure;
use super::project::{Settings, cores, worker_program};
use crate::progress::print;
use attrflow_engine::kind::Registry;
use attrflow_engine::worker::local::nvidia_driver;

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    attrflow doctor --json\n  \
    attrflow doctor --cluster pipelines/demo.toml --profile lab")]
pub(super) struct Args {
    /// Check the cluster of this pipeline's config and profile: a short job in each pool says what its node has
    #[arg(long, value_name = "PIPELINE")]
    cluster: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
    /// Write one JSON object
    #[arg(long)]
    json: bool,
}

/// The reply of a worker to `--doctor`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DoctorReport {
    /// The path that libtorch was loaded from.
    pub library: Option<String>,
    /// Why the CUDA part of libtorch could not be loaded.
    pub cuda_error: Option<String>,
    /// Whether libtorch can compute on a GPU.
    pub cuda: bool,
    /// Whether libtorch has cuDNN.
    pub cudnn: bool,
    /// The number of CUDA devices.
    pub devices: i64,
    /// libtorch's default number of threads.
    pub threads: i32,
    /// Whether a small matrix product on the CPU is right.
    pub computes: bool,
}

pub(super) fn doctor(args: &Args, registry: &Registry, log: &str) -> Result<(), Failure> {
    if let Some(pipeline) = &args.cluster {
        return doctor_cluster::check(pipeline, &args.settings, registry, log, args.json);
    }
    let program = worker_program()?;
    let output = Command::new(&program)
        .arg("--doctor")
        .output()
        .map_err(|error| Failure::Missing(format!("{}: {error}", program.display())))?;
    let report: Option<DoctorReport> = serde_json::from_slice(&output.stdout).ok();
    let Some(report) = report.filter(|_| output.status.success()) else {
        let error = String::from_utf8_lossy(&output.stderr);
        return Err(Failure::Missing(format!(
            "cannot load libtorch: {}\nsearched {}\nhelp: run `make setup`, then build again",
            error.trim(),
            env!("ATTRFLOW_LIBTORCH_LIB")
        )));
    };
    let missing = match (nvidia_driver(), report.cuda, &report.cuda_error, report.computes) {
        (_, _, _, false) => Some("libtorch computes wrong numbers on this CPU".to_owned()),
        (true, false, Some(error), _) => Some(format!("cannot load the CUDA part of libtorch: {error}")),
        (true, false, None, _) => {
            Some("the driver is incompatible with this libtorch: see `nvidia-smi`".to_owned())
        }
        _ => None,
    };
    if args.json {
        let all = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "commit": env!("ATTRFLOW_COMMIT"),
            "libtorch": env!("ATTRFLOW_LIBTORCH_VERSION"),
            "cores": cores(),
            "driver": nvidia_driver(),
            "worker": report,
            "missing": missing,
        });
        print(&format!("{all}\n"));
    } else {
        print(&describe(&report));
    }
    match missing {
        Some(missing) => Err(Failure::Missing(missing)),
        None => Ok(()),
    }
}

fn describe(report: &DoctorReport) -> String {
    let commit = match env!("ATTRFLOW_COMMIT") {
        "" => String::new(),
        commit => format!(" ({commit})"),
    };
    let yes = |value: bool| if value { "yes" } else { "no" };
    let note = if nvidia_driver() { "" } else { "note       no NVIDIA driver: stages compute on the CPU\n" };
    format!(
        "attrflow   {}{commit}\nlibtorch   {} from {}\ncores      {}\nthreads    {} by default\n\
         cpu        computes: {}\ncuda       usable: {}, devices: {}, cuDNN: {}\ndriver     NVIDIA: {}\n{note}",
        env!("CARGO_PKG_VERSION"),
        env!("ATTRFLOW_LIBTORCH_VERSION"),
        report.library.as_deref().unwrap_or("an unknown path"),
        cores(),
        report.threads,
        yes(report.computes),
        yes(report.cuda),
        report.devices,
        yes(report.cudnn),
        yes(nvidia_driver()),
    )
}
