//! `attrflow run`: bring a pipeline's results up to date.

use std::sync::Mutex;

use clap::Args as ClapArgs;

use super::exit::Failure;
use super::project::{Project, ProjectArgs, cores, worker_program};
use crate::exec::Run;
use crate::exec::worker::{Processes, Setting};
use crate::graph;
use crate::io::fetch::hushed;
use crate::manifest::{Conditions, Outcome};
use crate::pipeline::MOST_DOWNLOADS;
use crate::report::{self, Reporter};
use crate::stage::{Device, Downloads, Registry};

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    #[command(flatten)]
    project: ProjectArgs,
    /// Workers at once on the CPU; on GPUs there is one per device [default: from the number of cores]
    #[arg(short, long)]
    jobs: Option<usize>,
    /// Threads of each worker [default: cores / jobs]
    #[arg(long)]
    threads: Option<usize>,
    /// Most rows to send through a network at once; changes memory and speed, and results by rounding at most
    #[arg(long)]
    micro_batch: Option<usize>,
    /// Most files to download at once [default: 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST_DOWNLOADS)))]
    downloads: Option<u32>,
    /// Compute this stage whatever the cache holds (repeatable)
    #[arg(long, value_name = "STAGE")]
    force: Vec<String>,
    /// Only show what would run, as `plan` does
    #[arg(long)]
    dry_run: bool,
    /// Write every event to standard output as a line of JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, registry: &Registry, log: &str) -> Result<(), Failure> {
    let project = args.project.open(registry)?;
    let forced = graph::named(&args.force, &project.pipeline).map_err(Failure::Usage)?;
    if args.dry_run {
        return super::plan::show(&project, &forced, args.json);
    }
    let (settings, conditions) = settings(args, &project, log)?;
    let front = std::env::current_exe().map_err(|error| Failure::Missing(error.to_string()))?;
    let backend = Processes { program: worker_program()?, front, settings };
    let reporter: Mutex<Box<dyn Reporter>> = Mutex::new(report::choose(args.json));
    let run = Run {
        pipeline: &project.pipeline,
        graph: &project.graph,
        store: &project.store,
        backend: &backend,
        numerics: &project.numerics,
        forced: &forced,
        results: project.results.clone(),
        file: args.project.pipeline.clone(),
        // The manifest is kept, and meant to be shown.
        sets: args.project.settings.sets.iter().map(|set| hushed(set)).collect(),
        conditions,
        emit: &|event| reporter.lock().expect("reporters do not panic").hear(&event),
    };
    let manifest = run.execute()?;
    match manifest.stages.iter().filter(|record| record.outcome == Outcome::Failed).count() {
        0 => Ok(()),
        failed => Err(Failure::Stages(failed)),
    }
}

/// One worker per GPU; on the CPU one per core, each with one thread, is what small networks profit from most.
fn settings(args: &Args, project: &Project, log: &str) -> Result<(Vec<Setting>, Conditions), Failure> {
    let table = &project.pipeline.run;
    let given = |argument: Option<usize>, table: u32| argument.unwrap_or(table as usize);
    let cpu = project.devices[0] == Device::Cpu;
    let jobs = match given(args.jobs, table.jobs) {
        _ if !cpu => project.devices.len(),
        0 => cores().min(8),
        jobs => jobs,
    };
    let threads = match given(args.threads, table.threads) {
        0 => (cores() / jobs).max(1),
        threads => threads,
    };
    let micro_batch = match given(args.micro_batch, table.micro_batch) {
        0 if cpu => 32,
        0 => 1024,
        rows => rows,
    };
    let device = |slot: usize| project.devices[slot % project.devices.len()];
    let downloads = Downloads {
        folder: project.store.root().join("downloads"),
        lock: project.pipeline.root.join("attrflow.lock"),
        at_once: args.downloads.unwrap_or(table.downloads) as usize,
    };
    let settings = (0..jobs).map(|slot| Setting {
        device: device(slot),
        threads,
        micro_batch,
        downloads: downloads.clone(),
        log: log.to_owned(),
    });
    let name = |device: &Device| match device {
        Device::Cpu => "cpu".to_owned(),
        Device::Cuda(index) => format!("cuda:{index}"),
    };
    let devices = project.devices.iter().map(name).collect();
    Ok((settings.collect(), Conditions { jobs, threads, devices, micro_batch }))
}
