//! `attrflow doctor`: checks libtorch and the devices.

use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::doctor_cluster;
use super::failure::Failure;
use super::libtorch::{self, Place, libtorch, remedy};
use super::project::{Settings, cores, worker_program};
use crate::progress::print;
use attrflow_engine::kind::Registry;
use attrflow_engine::worker::local::{WorkerProgram, nvidia_driver};

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
    let worker = worker_program()?;
    let places = libtorch::places();
    let found = libtorch().as_ref().ok();
    let report = found.map(|found| ask(&worker, &found.folder)).transpose();
    let missing = match &report {
        Err(error) => Some(error.clone()),
        Ok(None) => libtorch().as_ref().err().cloned(),
        Ok(Some(report)) => fault(report),
    };
    let report = report.ok().flatten();
    let version = found.map(|found| found.version.as_str());
    if args.json {
        let all = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "commit": env!("ATTRFLOW_COMMIT"),
            "libtorch": version,
            "places": places,
            "cores": cores(),
            "driver": nvidia_driver(),
            "worker": report,
            "missing": missing,
        });
        print(&format!("{all}\n"));
    } else if let (Some(version), Some(report)) = (version, &report) {
        print(&describe(version, report, &places));
    }
    missing.map_or(Ok(()), |missing| Err(Failure::Missing(missing)))
}

/// What the worker program says of libtorch and the devices.
fn ask(worker: &WorkerProgram, folder: &Path) -> Result<DoctorReport, String> {
    let failed = |error| format!("{}: {error}", worker.path.display());
    let output = worker.command()?.arg("--doctor").output().map_err(failed)?;
    let report = serde_json::from_slice(&output.stdout).ok().filter(|_| output.status.success());
    report.ok_or_else(|| {
        let error = String::from_utf8_lossy(&output.stderr);
        format!("the libtorch in {} does not load: {}\n{}", folder.display(), error.trim(), remedy())
    })
}

/// What keeps the worker from computing as this machine could.
fn fault(report: &DoctorReport) -> Option<String> {
    match (nvidia_driver(), report.cuda, &report.cuda_error, report.computes) {
        (_, _, _, false) => Some("libtorch computes wrong numbers on this CPU".to_owned()),
        (true, false, Some(error), _) => Some(format!("cannot load the CUDA part of libtorch: {error}")),
        (true, false, None, _) => {
            Some("the driver is incompatible with this libtorch: see `nvidia-smi`".to_owned())
        }
        _ => None,
    }
}

fn describe(version: &str, report: &DoctorReport, places: &[Place]) -> String {
    let commit = match env!("ATTRFLOW_COMMIT") {
        "" => String::new(),
        commit => format!(" ({commit})"),
    };
    let yes = |value: bool| if value { "yes" } else { "no" };
    let note = if nvidia_driver() { "" } else { "note       no NVIDIA driver: stages compute on the CPU\n" };
    let places: Vec<String> =
        libtorch::describe(places).into_iter().map(|line| format!("searched   {line}\n")).collect();
    format!(
        "attrflow   {}{commit}\nlibtorch   {version} from {}\n{}cores      {}\nthreads    {} by default\n\
         cpu        computes: {}\ncuda       usable: {}, devices: {}, cuDNN: {}\ndriver     NVIDIA: {}\n{note}",
        env!("CARGO_PKG_VERSION"),
        report.library.as_deref().unwrap_or("an unknown path"),
        places.concat(),
        cores(),
        report.threads,
        yes(report.computes),
        yes(report.cuda),
        report.devices,
        yes(report.cudnn),
        yes(nvidia_driver()),
    )
}
