//! What all verbs on a pipeline share: its file and folders.

use std::path::{Path, PathBuf};

use clap::Args;

use super::device::devices;
use super::failure::Failure;
use super::libtorch::{self, libtorch};
use super::pools::{self, ClusterArgs};
use attrflow_engine::config::text::{Sources, suggestion};
use attrflow_engine::identity::recipe::Numerics;
use attrflow_engine::kind::{Device, Registry};
use attrflow_engine::pipeline::cluster_table::{BackendName, ClusterTable};
use attrflow_engine::pipeline::{self, Pipeline};
use attrflow_engine::plan::graph::{self, Graph};
use attrflow_engine::provenance::manifest::Program;
use attrflow_engine::store::Store;
use attrflow_engine::worker::Backend as _;
use attrflow_engine::worker::local::{LocalBackend, WorkerProgram};
use attrflow_engine::worker::protocol::{DeviceClass, WorkerConfig};

/// The arguments that name a pipeline and stages of it.
#[derive(Debug, Args)]
pub(super) struct ProjectArgs {
    /// The pipeline file, such as pipelines/demo.toml
    pub pipeline: PathBuf,
    #[command(flatten)]
    pub settings: Settings,
    /// Only this stage and its dependencies (repeatable; the name of a repeated stage selects all its items)
    #[arg(long = "target", value_name = "STAGE")]
    pub targets: Vec<String>,
}

/// A word as a shell reads it.
pub(super) fn shell_word(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-+/=:,".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

/// The arguments that name a stage of a pipeline.
#[derive(Debug, Args)]
pub(super) struct StageArgs {
    /// The pipeline file, such as pipelines/demo.toml
    pub pipeline: PathBuf,
    /// The stage; the name of a repeated stage selects all its items
    pub stage: String,
    #[command(flatten)]
    pub settings: Settings,
}

impl StageArgs {
    /// Reads the pipeline, selects the stage and its dependencies, and opens the cache.
    pub fn open(&self, registry: &Registry) -> Result<Project, Failure> {
        self.settings.open(&self.pipeline, std::slice::from_ref(&self.stage), registry)
    }
}

/// The indices of the stages that the name selects.
pub(super) fn named(of: &StageArgs, project: &Project) -> Result<Vec<usize>, Failure> {
    graph::named(std::slice::from_ref(&of.stage), &project.pipeline).map_err(Failure::Usage)
}

/// The options that change a pipeline for one command, and its cache.
#[derive(Debug, Default, Clone, Args)]
pub(super) struct Settings {
    /// Override a config value: --set loss.time_samples=5 (repeatable)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
    /// Where to compute: auto, cpu, cuda, or a list such as cuda:0,cuda:1
    #[arg(long)]
    pub device: Option<String>,
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// The cache folder [default: cache beside the pipelines folder]
    #[arg(long, env = "ATTRFLOW_CACHE", value_name = "DIR")]
    pub cache: Option<PathBuf>,
    /// The libtorch to plan for, such as 2.11.0+cpu [default: the one found here; see attrflow doctor]
    #[arg(long, value_name = "VERSION", value_parser = libtorch::parse_version)]
    pub libtorch: Option<String>,
}

/// A pipeline that was read, with its cache.
pub(super) struct Project {
    pub pipeline: Pipeline,
    pub graph: Graph,
    pub store: Store,
    pub results: PathBuf,
    pub devices: Vec<Device>,
    /// Where its workers run, if not on this machine.
    pub cluster: Option<ClusterTable>,
    pub numerics: Numerics,
    /// The files that the pipeline was read from.
    pub sources: Sources,
}

impl ProjectArgs {
    /// These arguments as a command line, for hints.
    pub fn command(&self, verb: &str) -> String {
        let mut words = vec!["attrflow".to_owned(), verb.to_owned(), self.pipeline.display().to_string()];
        let Settings { sets, device, cluster: ClusterArgs { backend, profile }, cache, libtorch } =
            &self.settings;
        let backend =
            backend.map(|name| if name == BackendName::Slurm { "slurm" } else { "local" }.to_owned());
        let cache = cache.as_ref().map(|cache| cache.display().to_string());
        let named = |name: &'static str, values: &[String]| {
            values.iter().flat_map(|value| [name.to_owned(), value.clone()]).collect::<Vec<_>>()
        };
        words.extend(named("--set", sets));
        words.extend(named("--target", &self.targets));
        words.extend(named("--device", device.as_slice()));
        words.extend(named("--backend", backend.as_slice()));
        words.extend(named("--profile", profile.as_slice()));
        words.extend(named("--cache", cache.as_slice()));
        words.extend(named("--libtorch", libtorch.as_slice()));
        words.iter().map(|word| shell_word(word)).collect::<Vec<_>>().join(" ")
    }

    /// Reads the pipeline and opens its cache.
    pub fn open(&self, registry: &Registry) -> Result<Project, Failure> {
        self.settings.open(&self.pipeline, &self.targets, registry)
    }
}

impl Settings {
    /// The cache folder: the option's, else `cache` below `root`.
    pub fn cache_of(&self, root: &Path) -> PathBuf {
        self.cache.clone().unwrap_or_else(|| root.join("cache"))
    }

    /// Reads a pipeline, selects the targets and their dependencies, and opens the cache.
    pub fn open(&self, file: &Path, targets: &[String], registry: &Registry) -> Result<Project, Failure> {
        let file = &locate(file)?;
        let (pipeline, sources) = pipeline::load(file, &self.sets, registry)
            .map_err(|(problems, sources)| Failure::Pipeline(problems, sources))?;
        let results = pipeline.root.join("results").join(&pipeline.name);
        self.project(pipeline, sources, targets, results)
    }

    /// Selects the targets of a pipeline and their dependencies, and opens the cache.
    pub fn project(
        &self,
        pipeline: Pipeline,
        mut sources: Sources,
        targets: &[String],
        results: PathBuf,
    ) -> Result<Project, Failure> {
        let mut graph = match Graph::new(&pipeline) {
            Ok(graph) => graph,
            Err(problems) => return Err(Failure::Pipeline(problems, sources)),
        };
        graph.select(targets, &pipeline).map_err(Failure::Usage)?;
        let cache = self.cache_of(&pipeline.root);
        tracing::info!(
            "pipeline {}: {} stages in {}, cache {}",
            pipeline.name,
            pipeline.stages.len(),
            pipeline.root.display(),
            cache.display()
        );
        let store = Store::open(&cache)?;
        let cluster = pools::table(&self.cluster, self.device.as_deref(), &pipeline, &mut sources)?;
        let auto = match &cluster {
            Some(table) => pools::device_class(table),
            None => backend(Vec::new())?.device_class(),
        };
        let devices = devices(self.device.as_deref().unwrap_or(&pipeline.run.device), auto)?;
        let class = DeviceClass::from(devices[0]);
        let version = libtorch::assumed(self.libtorch.as_deref());
        if self.libtorch.is_none() && libtorch().is_err() {
            let other =
                "--libtorch VERSION plans for another; `attrflow doctor` says where it was looked for";
            tracing::warn!("there is no libtorch here: planning for {version}, as built with; {other}");
        }
        let numerics = Numerics {
            libtorch: version,
            device: class.name().to_owned(),
            // libtorch's CUDA kernels need not be bitwise reproducible.
            deterministic: class == DeviceClass::Cpu,
        };
        Ok(Project { pipeline, graph, store, results, devices, cluster, numerics, sources })
    }
}

impl Project {
    /// Whether a selected stage computes with libtorch.
    pub fn needs_libtorch(&self) -> bool {
        self.graph.order().iter().any(|stage| self.pipeline.stages[*stage].kind().libtorch)
    }
}

/// The folders from the current one upward.
fn around() -> Vec<PathBuf> {
    let here = std::env::current_dir().unwrap_or_default();
    here.ancestors().map(Path::to_path_buf).collect()
}

/// The cache of the project that the current folder is in: beside its `pipelines` folder, else `./cache`.
pub(super) fn default_cache() -> PathBuf {
    let is_project =
        |folder: &PathBuf| folder.join("pipelines").is_dir() || folder.join("cache/CACHEDIR.TAG").is_file();
    let found = around().into_iter().position(|folder| is_project(&folder));
    let mut path: PathBuf = std::iter::repeat_n("..", found.unwrap_or(0)).collect();
    path.push("cache");
    path
}

/// The folder of pipelines of the project that the current folder is in.
pub(super) fn pipelines() -> Option<PathBuf> {
    let found = around().into_iter().position(|folder| folder.join("pipelines").is_dir())?;
    Some(std::iter::repeat_n("..", found).collect::<PathBuf>().join("pipelines"))
}

/// The pipeline file: as given, else below a folder around the current one.
fn locate(file: &Path) -> Result<PathBuf, Failure> {
    if file.is_absolute() || file.exists() {
        return Ok(file.to_path_buf());
    }
    let found = around().into_iter().position(|folder| folder.join(file).is_file());
    if let Some(levels) = found.filter(|levels| *levels > 0) {
        return Ok(std::iter::repeat_n("..", levels).collect::<PathBuf>().join(file));
    }
    let files = pipelines().into_iter().flat_map(fs_err::read_dir).flatten().flatten();
    let names: Vec<String> = files
        .map(|entry| format!("pipelines/{}", entry.file_name().to_string_lossy()))
        .filter(|name| name.ends_with(".toml"))
        .collect();
    let hint = suggestion(&file.display().to_string(), names.iter().map(String::as_str));
    let hint = hint.map_or_else(String::new, |hint| format!("; {hint}"));
    Err(Failure::Usage(format!("there is no pipeline file {}{hint}", file.display())))
}

/// This program.
pub(super) fn program() -> Program {
    Program { version: env!("CARGO_PKG_VERSION").to_owned(), commit: env!("ATTRFLOW_COMMIT").to_owned() }
}

/// The number of cores that this process may use.
pub(super) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Version and commit, as a worker names its build.
pub fn build() -> String {
    format!("{} {}", env!("CARGO_PKG_VERSION"), env!("ATTRFLOW_COMMIT"))
}

/// The workers of this machine: this program, and the worker program beside it, which may be missing.
pub(super) fn backend(settings: Vec<WorkerConfig>) -> Result<LocalBackend, Failure> {
    let front = std::env::current_exe().map_err(|error| Failure::Missing(error.to_string()))?;
    let libtorch = libtorch().as_ref().map(|found| found.folder.join("lib")).map_err(Clone::clone);
    let worker = WorkerProgram { path: front.with_file_name("attrflow-worker"), libtorch };
    Ok(LocalBackend { worker, front, settings })
}

/// The worker program, which must be there.
pub(super) fn worker_program() -> Result<WorkerProgram, Failure> {
    let worker = backend(Vec::new())?.worker;
    if worker.path.exists() {
        return Ok(worker);
    }
    let message = format!(
        "the worker program is missing: expected it at {}. A copy of `attrflow` needs a copy of `attrflow-worker` beside it; a symbolic link needs none",
        worker.path.display()
    );
    Err(Failure::Missing(message))
}
