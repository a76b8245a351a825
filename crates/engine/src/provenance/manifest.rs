//! The record of a run: its stages, their inputs and their outputs.

mod repeat;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, Permissions};
use std::io::{BufWriter, ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

pub use repeat::{Base, Repeat};

use crate::identity::digest::Digest;
use crate::identity::recipe::{Numerics, Recipe};
use crate::identity::regular_file;
use crate::identity::shared_fs;
use crate::store::{Adopted, Artifact};

/// The version of the format; older manifests are read too. Version 2 added `adopted`; 3 added `reads`, `params` and
/// `micro_batch`, for audits and replays; 4 added `left_out`; 5 renamed `reused` to `cached`;
/// 6 has short manifests, see [`Repeat`]; 7 added `workers`.
pub const FORMAT: u32 = 7;

/// The record of one run of one pipeline.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// The program that ran.
    pub attrflow: Program,
    /// The pipeline's name.
    pub pipeline: String,
    /// The pipeline file, as it was given.
    pub file: PathBuf,
    /// The real path of the project's folder; absent in manifests of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<PathBuf>,
    /// The pipeline file below it: `pipelines/demo.toml`; absent in manifests of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within: Option<PathBuf>,
    /// The `--set` arguments.
    pub sets: Vec<String>,
    /// When the run started, UTC, RFC 3339.
    pub started: String,
    /// Seconds from start to end.
    pub seconds: f64,
    /// How numbers were computed.
    pub numerics: Numerics,
    /// Properties of the run that are not hashed but may explain its time.
    pub conditions: Conditions,
    /// Stages of the pipeline that were not selected: their last results stay valid.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<String>,
    /// The stages in topological order.
    pub stages: Vec<StageRecord>,
}

impl Manifest {
    /// What tells pipelines of one name apart: the project, and the file in it.
    pub fn identity(&self) -> (Option<&Path>, Option<&Path>) {
        (self.root.as_deref(), self.within.as_deref())
    }
}

/// The version of attrflow.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Program {
    /// The version.
    pub version: String,
    /// The commit that it was built from, empty where unknown.
    pub commit: String,
}

/// The conditions of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conditions {
    /// Parallel workers.
    pub jobs: usize,
    /// Threads of each worker.
    pub threads: usize,
    /// Devices of the workers.
    pub devices: Vec<String>,
    /// The most rows sent through a network at once, which affects rounding; 0 where unknown.
    #[serde(default)]
    pub micro_batch: usize,
}

/// How a stage ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The result was in the cache.
    #[serde(alias = "reused")]
    Cached,
    /// It ran.
    Ran,
    /// It failed.
    Failed,
    /// A stage that it depends on failed.
    Blocked,
    /// The run was stopped before the stage finished; its finished units are kept.
    Interrupted,
}

/// One stage of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageRecord {
    /// The stage's name.
    pub stage: String,
    /// How it ended.
    pub outcome: Outcome,
    /// The recipe's hash; absent where the stage did not start.
    pub fingerprint: Option<Digest>,
    /// Its recipe.
    pub recipe: Option<Recipe>,
    /// All parameters, also those that are not hashed; null where unknown.
    #[serde(default, skip_serializing_if = "Json::is_null")]
    pub params: Json,
    /// The outputs of other stages that it reads, by input port.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub reads: BTreeMap<String, Reads>,
    /// Sources outside the store, by input port.
    pub sources: BTreeMap<String, PathBuf>,
    /// Outputs by port.
    pub outputs: BTreeMap<String, Artifact>,
    /// Where the outputs come from, if they were adopted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adopted: Option<Adopted>,
    /// Units that ran in this run.
    pub units_run: usize,
    /// Units that were in the cache.
    #[serde(alias = "units_reused")]
    pub units_cached: usize,
    /// Seconds of computing, summed over units; for a cached stage, those of the run that computed it.
    pub seconds: f64,
    /// The workers on a cluster that computed it in this run; absent where this machine did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workers: Option<StageWorkers>,
    /// Its error.
    pub error: Option<String>,
}

/// The workers on a cluster that computed a stage.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageWorkers {
    /// The pools that they are of.
    pub pools: BTreeSet<String>,
    /// Each worker, by its job and node.
    pub workers: BTreeSet<String>,
    /// The nodes.
    pub nodes: BTreeSet<String>,
    /// The models of their GPUs.
    pub gpu_models: BTreeSet<String>,
    /// The most memory of a worker, in bytes.
    pub peak_memory: u64,
    /// The most device memory of a worker, in bytes; 0 on the CPU.
    pub peak_device_memory: u64,
    /// The longest time that a worker had waited in the scheduler's queue, in seconds.
    pub queue_seconds: f64,
    /// Seconds of the workers' time, summed.
    pub node_seconds: f64,
    /// Workers that were lost while they computed it.
    pub lost: usize,
}

impl StageWorkers {
    /// Adds those of another part of the stage.
    pub fn add(&mut self, other: Self) {
        let Self { pools, workers, nodes, gpu_models, .. } = other;
        self.pools.extend(pools);
        self.workers.extend(workers);
        self.nodes.extend(nodes);
        self.gpu_models.extend(gpu_models);
        self.peak_memory = self.peak_memory.max(other.peak_memory);
        self.peak_device_memory = self.peak_device_memory.max(other.peak_device_memory);
        self.queue_seconds = self.queue_seconds.max(other.queue_seconds);
        self.node_seconds += other.node_seconds;
        self.lost += other.lost;
    }
}

/// An output of another stage, or a path below it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reads {
    /// The stage that produces it.
    pub stage: String,
    /// Its output port.
    pub port: String,
    /// The path below, if it is not the whole output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub below: Option<String>,
}

impl std::fmt::Display for Reads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.stage, self.port)?;
        self.below.iter().try_for_each(|below| write!(f, "/{below}"))
    }
}

/// Writes a manifest to the folder of runs and returns its path.
///
/// # Errors
/// A write that failed.
pub fn write(folder: &Path, manifest: &Manifest) -> std::io::Result<PathBuf> {
    match repeat::repeated(folder, manifest) {
        Some(base) => write_repeat(folder, manifest, &base),
        // That of many stages is as large as all that the run knows of them: it is never whole in memory.
        None => write_with(folder, &manifest.started, |file| {
            let mut file = BufWriter::new(file);
            serde_json::to_writer_pretty(&mut file, manifest)?;
            file.flush()
        }),
    }
}

/// Writes the manifest of a run that repeats the stages of an earlier one, without its own.
///
/// # Errors
/// A write that failed, or arguments too long for a short manifest whose stages are not given.
pub fn write_repeat(folder: &Path, manifest: &Manifest, base: &Base) -> std::io::Result<PathBuf> {
    let text = match Repeat::text(manifest, base) {
        Some(text) => text,
        None => serde_json::to_vec_pretty(&Repeat::whole(folder, manifest, base)?)?,
    };
    write_with(folder, &manifest.started, |file| file.write_all(&text))
}

fn write_with(
    folder: &Path,
    started: &str,
    text: impl FnOnce(&mut File) -> std::io::Result<()>,
) -> std::io::Result<PathBuf> {
    shared_fs::create_dir_all(folder)?;
    let readable = Permissions::from_mode(0o666);
    let mut file = tempfile::Builder::new().permissions(readable).tempfile_in(folder)?;
    text(file.as_file_mut())?;
    file.write_all(b"\n")?;
    // Names sort by time. A clock may have been set back: a number then sorts the name behind the newest run's.
    let mut stamp: String = started.chars().filter(|c| !matches!(c, '-' | ':')).collect();
    let mut number = 0;
    if let Some(newest) = manifests(folder)
        .map(|path| stem(&path))
        .filter(|stem| is_stamp(stem))
        .max()
        .filter(|newest| *newest >= stamp)
    {
        let (time, count) = newest.split_once('-').unwrap_or((&newest, ""));
        (stamp, number) = (time.to_owned(), count.parse().unwrap_or(0) + 1);
    }
    for number in number.. {
        let name = if number == 0 { format!("{stamp}.json") } else { format!("{stamp}-{number:04}.json") };
        let path = folder.join(name);
        match file.persist_noclobber(&path) {
            Ok(_) => return Ok(path),
            Err(error) if error.error.kind() == ErrorKind::AlreadyExists => file = error.file,
            Err(error) => return Err(error.error),
        }
    }
    unreachable!("the loop never ends")
}

/// Whether a name has the form that [`write`] uses: `20261126T112103.676570Z`, and a number.
fn is_stamp(name: &str) -> bool {
    let time = name.split('-').next().unwrap_or(name);
    time.ends_with('Z') && time.starts_with(|c: char| c.is_ascii_digit()) && time.contains('T')
}

/// The name of a manifest's file without its extension.
fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// Reads a manifest.
///
/// # Errors
/// A file that cannot be read, or is not a manifest.
pub fn read(path: &Path) -> std::io::Result<Manifest> {
    parse(path, &regular_file::read(path)?)
}

/// Parses a manifest from the bytes of a file.
///
/// # Errors
/// Bytes that are not a manifest.
pub fn parse(path: &Path, text: &[u8]) -> std::io::Result<Manifest> {
    known_format(path, text)?;
    match Repeat::parse(text) {
        Some(repeat) => repeat.resolve(path),
        None => whole(path, text),
    }
}

/// Refuses a manifest of a newer version, as [`ErrorKind::Unsupported`], before a field of it is read.
fn known_format(path: &Path, text: &[u8]) -> std::io::Result<()> {
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    match serde_json::from_slice(text) {
        Ok(Format { format }) if format > FORMAT => {
            let what = format!("{}: manifest format {format}, expected at most {FORMAT}", path.display());
            Err(std::io::Error::new(ErrorKind::Unsupported, what))
        }
        _ => Ok(()),
    }
}

fn whole(path: &Path, text: &[u8]) -> std::io::Result<Manifest> {
    let fault = |error| std::io::Error::other(format!("{}: not a manifest: {error}", path.display()));
    serde_json::from_slice(text).map_err(fault)
}

/// The path of a manifest's signature.
pub fn signature_path(file: &Path) -> PathBuf {
    let mut path = file.as_os_str().to_owned();
    path.push(".minisig");
    path.into()
}

/// The manifests in a folder, newest first.
pub fn list(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = manifests(folder).collect();
    paths.sort_by_cached_key(|path| std::cmp::Reverse(stem(path)));
    paths
}

fn manifests(folder: &Path) -> impl Iterator<Item = PathBuf> {
    let paths = shared_fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    paths.filter(|path| path.extension().is_some_and(|extension| extension == "json"))
}
