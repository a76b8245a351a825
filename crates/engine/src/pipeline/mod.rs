//! Pipeline files: parsed into typed stages, with every fault reported at its location.
//!
//! ```toml
//! config = "../configs/demo.toml"
//!
//! [stages.generate]
//! kind   = "generate"
//! each   = { query = "${queries}" }           # one stage per item of the config's list
//! inputs = { unet = "data.files/model/unet" } # stage.port, a path below it, or ./a/path
//! params = { caption = "${query.caption}", steps = "${generate.steps}" }
//! ```
//!
//! A stage can be disabled, and an input can list several sources: the first one whose stage is enabled is used.
//!
//! ```toml
//! [stages.latents]
//! when = "${compute.latents}"       # or "not ${…}", or an array of both, of which at least one must hold
//!
//! [stages.fisher.inputs]
//! latents = ["latents.latents", "published.files/train_latents.npy"]
//!
//! [stages.influence.inputs]
//! images = ["coco.files/train2017", ""] # `""` leaves an optional input open
//! ```
//!
//! A disabled stage is not part of the pipeline: it is not listed, not run, and its results are not shown. Its names
//! are still checked, and its references to the config mark the keys as read. If all sources of an input are disabled,
//! that is a fault, even for an optional input, unless the last alternative is `""`.
//!
//! A stage repeats over each combination of several lists, a file includes the stages of others, `[defaults.KIND]` sets
//! default parameters, and `${env:NAME}` reads the environment: see `pipelines/README.md`.
//!
//! A relative path starts from the folder of the file that contains it, or that contains its leading `${…}`; in a
//! `--set`, from the working folder.

pub mod cluster_table;
mod condition;
mod defaults;
mod env_vars;
mod expand;
mod files;
mod inputs;
mod items;
mod reference;
mod resolve;
pub mod schema;
mod scope;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::config::param::{Param, Reader, Validate, unknown_key};
use crate::config::sorted_map::SortedMap;
use crate::config::text::{Origin, Problems, Sources};
use crate::config::tree::{self, Entry, Node, Table, Value};
use crate::kind::{KindInfo, Port, Registry, Stage};
use crate::params;
use cluster_table::ClusterTable;
use files::Parts;

/// A pipeline after all checks: every name resolves and every parameter has its type.
pub struct Pipeline {
    /// The file's name without extension.
    pub name: String,
    /// The folder of `cache/` and `results/`.
    pub root: PathBuf,
    /// The file below it: `pipelines/demo.toml`.
    pub within: Option<PathBuf>,
    /// The stages, repeated ones expanded, in file order.
    pub stages: Vec<StageNode>,
    /// The disabled stages.
    pub off: Vec<DisabledStage>,
    /// The config's `[run]` table: how to compute; it does not change results.
    pub run: RunTable,
    /// The config's `[cluster]` table: where to compute; it does not change results.
    pub cluster: ClusterTable,
    /// The declared environment variables that the pipeline reads, with their values; they are hashed.
    pub env: BTreeMap<String, String>,
    /// All environment variables that the pipeline reads, with their values, hashed or not.
    pub variables: BTreeMap<String, Option<String>>,
    /// The paths of `--set` arguments that no stage uses, each of which was warned of.
    pub unused_sets: Vec<String>,
    /// The config with the `--set` arguments applied, with the location of each value.
    pub config: Node,
}

/// The table of run settings in the config.
const RUN: &str = "run";
/// The table of clusters in the config.
const CLUSTER: &str = "cluster";
/// The table of default parameters.
const DEFAULTS: &str = "defaults";
/// The largest `download_jobs`.
pub const MAX_DOWNLOAD_JOBS: u32 = 64;
/// The most workers, and the most threads of each: a system runs out of both not far above.
pub const MAX_WORKERS: u32 = 1024;
/// The default of `download_jobs`.
pub const DOWNLOAD_JOBS: u32 = 4;

params! {
    /// Run settings. They are not hashed, and the command line takes precedence.
    pub struct RunTable {
        /// `auto`, `cpu`, `cuda`, or a list such as `cuda:0,cuda:1`; `auto` uses a GPU if there is one.
        device: String = "auto".to_owned(),
        /// Parallel workers on the CPU, at least 1; by default chosen from the number of cores.
        jobs: Option<u32> = None,
        /// Threads of each worker, at least 1; by default the cores are divided among the workers.
        threads: Option<u32> = None,
        /// The most rows sent through a network at once, at least 1; by default 128 on the CPU, on a GPU 1024, and for
        /// loss passes the number that a short trial finds fastest.
        micro_batch: Option<u32> = None,
        /// Files that a `download` stage downloads at the same time.
        download_jobs: u32 [1..=MAX_DOWNLOAD_JOBS] = DOWNLOAD_JOBS,
    }
}

impl Validate for RunTable {
    const RENAMED: &'static [(&'static str, &'static str)] = &[("downloads", "download_jobs")];

    fn validate(&self) -> Vec<(&'static str, String)> {
        let numbers = [("jobs", self.jobs), ("threads", self.threads), ("micro_batch", self.micro_batch)];
        let fault = |(key, number): (&'static str, Option<u32>)| match number? {
            0 => Some((key, format!("`{key}` is 0, expected at least 1; without the key it is chosen"))),
            number if number > MAX_WORKERS && key != "micro_batch" => {
                Some((key, format!("`{key}` is {number}, expected at most {MAX_WORKERS}")))
            }
            _ => None,
        };
        numbers.into_iter().filter_map(fault).collect()
    }
}

/// One stage of a pipeline.
pub struct StageNode {
    /// The name, with the item's label for a repeated stage: `generate[apple]`.
    pub id: String,
    /// The name of the table: `generate`.
    pub base: String,
    /// The item's label.
    pub label: Option<String>,
    /// Its kind and parameters, defaults filled in.
    pub stage: Box<dyn Stage>,
    /// The parameters as written, with locations; without defaults.
    pub written: Node,
    /// The sources of its input ports.
    pub inputs: SortedMap<Source>,
    /// Its output ports.
    pub outputs: Vec<Port>,
    /// Location of its table's name.
    pub origin: Origin,
}

impl StageNode {
    /// Its kind.
    pub fn kind(&self) -> &'static KindInfo {
        self.stage.kind()
    }

    /// The stage's folder below the results folder: `generate/apple`.
    pub fn folder(&self) -> PathBuf {
        Path::new(&self.base).join(self.label.as_deref().unwrap_or_default())
    }
}

/// A stage that its `when` disables.
pub struct DisabledStage {
    /// As [`StageNode::id`].
    pub id: String,
    /// As [`StageNode::base`].
    pub base: String,
    /// Location of the deciding value: `configs/mscoco.toml:12:11`.
    pub place: String,
}

/// The source of an input port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// An output of another stage, or a path below it.
    Port {
        /// Index of the stage in [`Pipeline::stages`].
        stage: usize,
        /// Its output port.
        port: String,
        /// The path below, if the output is a folder.
        sub: Option<String>,
        /// Location of the reference.
        origin: Origin,
    },
    /// A file or folder outside the store.
    File(PathBuf),
}

impl Source {
    /// Whether it is the same, wherever it is written.
    pub(crate) fn is_same(&self, other: &Source) -> bool {
        match (self, other) {
            (Source::File(one), Source::File(other)) => one == other,
            (Source::Port { stage, port, sub, .. }, Source::Port { stage: s, port: p, sub: b, .. }) => {
                (stage, port, sub) == (s, p, b)
            }
            _ => false,
        }
    }
}

/// Reads a pipeline file, its config and the `--set` arguments.
///
/// # Errors
/// All faults found, and the texts to show them in.
pub fn load(
    file: &Path,
    sets: &[String],
    registry: &Registry,
) -> Result<(Pipeline, Sources), (Problems, Sources)> {
    let mut sources = Sources::default();
    let mut problems = Problems::default();
    let pipeline = read(file, sets, registry, &mut sources, &mut problems);
    problems.tidy();
    match pipeline {
        Some(pipeline) if problems.is_empty() => Ok((pipeline, sources)),
        _ => Err((problems, sources)),
    }
}

fn read(
    file: &Path,
    sets: &[String],
    registry: &Registry,
    sources: &mut Sources,
    problems: &mut Problems,
) -> Option<Pipeline> {
    let parts = files::read(file, sources, problems)?;
    let text = parts.text;
    let mut defaults = defaults::open(parts.defaults.clone(), registry);
    let (config, new_keys) = config(&parts, &mut defaults, sets, sources, problems)?;
    if parts.stages.is_empty() {
        problems
            .at(&Origin { text, span: 0..0 }, "the pipeline has no stages")
            .help("expected `[stages.NAME]`");
        return None;
    }
    let defaults = defaults::read(&defaults, registry, problems);
    let expanded = expand::expand(&parts, &defaults, &config, registry, problems);
    let mut reader = Reader { sources, problems };
    let nodes = resolve::resolve(&expanded, &parts.env, &mut reader);
    let empty = Node { value: Value::Table(Table::default()), origin: Origin { text, span: 0..0 } };
    let run = config.as_table().and_then(|table| table.get(RUN)).unwrap_or(&empty);
    let run = RunTable::read(run, &mut reader);
    let cluster = config.as_table().and_then(|table| table.get(CLUSTER)).unwrap_or(&empty);
    let cluster = ClusterTable::read(cluster, &mut reader);
    let off = expanded.drafts.iter().filter_map(|draft| {
        let place = sources.position(draft.off.as_ref()?);
        Some(DisabledStage { id: draft.id(), base: draft.base.to_owned(), place })
    });
    let off: Vec<DisabledStage> = off.collect();
    if problems.is_empty() && nodes.is_empty() && !off.is_empty() {
        problems.at(expanded.drafts[0].origin, "every stage is disabled by its `when`");
    }
    if !problems.is_empty() {
        return None;
    }
    let of_run = |path: &str| path.split('.').next().is_some_and(|table| [RUN, CLUSTER].contains(&table));
    for key in new_keys.iter().filter(|key| !of_run(&key.path) && !expanded.reads(&key.path)) {
        let (list, rest) = key.path.split_once('.').unwrap_or((&key.path, ""));
        let problem = problems.at(&key.origin, format!("no stage reads `{}`", key.path));
        if rest.is_empty() || expanded.reads(list) {
            problem.suggest(&key.name, key.beside.iter().map(String::as_str));
        } else {
            // The path below a table that stages read.
            let tables = config.as_table().into_iter().flat_map(|table| table.entries.keys());
            let mut paths = tables.map(|table| format!("{table}.{list}.{rest}"));
            let help = match paths.find(|path| expanded.reads_exactly(path)) {
                Some(path) => format!("this pipeline reads nothing of `{list}`; did you mean `{path}`?"),
                None => format!("this pipeline reads nothing of `{list}`"),
            };
            problem.help(help);
        }
    }
    let mut unused_sets = Vec::new();
    if problems.is_empty() {
        let paths = sets.iter().filter_map(|set| Some(set.split_once('=')?.0.trim()));
        for path in paths.filter(|path| !of_run(path) && !path.starts_with(DEFAULTS) && !expanded.reads(path))
        {
            tracing::warn!("no stage of this pipeline uses `{path}`, so that --set {path} changes nothing");
            unused_sets.push(path.to_owned());
        }
    }
    let root = root(file)?;
    let (env, mut variables) = parts.env.into_read();
    nodes.iter().for_each(|node| variables.extend(node.stage.variables()));
    Some(Pipeline {
        name: file.file_stem()?.to_string_lossy().into_owned(),
        within: within(file),
        root,
        stages: nodes,
        off,
        unused_sets,
        run: run?,
        cluster: cluster?,
        env,
        variables,
        config,
    })
}

/// A pipeline file below its [`root`].
fn within(file: &Path) -> Option<PathBuf> {
    let file = std::path::absolute(file).ok()?;
    file.strip_prefix(root(&file)?).ok().map(Path::to_path_buf)
}

/// The folder of `cache/` and `results/` for a pipeline file.
pub fn root(file: &Path) -> Option<PathBuf> {
    let folder = std::path::absolute(file).ok()?.parent()?.to_path_buf();
    match folder.file_name() {
        Some(name) if name == "pipelines" => folder.parent().map(Path::to_path_buf),
        _ => Some(folder),
    }
}

/// The pipeline's config with the `--set` arguments applied, and the keys that they added.
///
/// `--set defaults.KIND.KEY=…` sets the pipeline's defaults, unless the config has such a table.
fn config(
    parts: &Parts,
    defaults: &mut Node,
    sets: &[String],
    sources: &mut Sources,
    problems: &mut Problems,
) -> Option<(Node, Vec<tree::NewKey>)> {
    let text = match &parts.config {
        Some((path, origin)) => files::read_text(path, Some(origin), sources, problems)?,
        None => sources.add("config".into(), PathBuf::new(), String::new()),
    };
    let mut config = tree::parse(sources, text, problems);
    // After a syntax error, do not report every key that is missing because of it.
    if !problems.is_empty() {
        return None;
    }
    // Every config has these tables, written or not.
    if let Value::Table(table) = &mut config.value {
        for name in [RUN, CLUSTER] {
            let node = Node { value: Value::Table(Table::default()), origin: config.origin.clone() };
            table.entries.get_or_insert_with(name.to_owned(), || Entry { key: node.origin.clone(), node });
        }
    }
    let own = config.as_table().is_some_and(|table| table.get(DEFAULTS).is_some());
    let mut new_keys = Vec::new();
    for argument in sets {
        match argument.trim_start().strip_prefix(DEFAULTS).is_some_and(|rest| rest.starts_with('.')) && !own {
            // Unknown keys of defaults are reported when all defaults are read.
            true => drop(tree::set(defaults, argument, sources, problems)),
            false => new_keys.extend(tree::set(&mut config, argument, sources, problems)),
        }
    }
    let known = problems.list.len();
    parts.env.fill(&mut config, problems);
    (problems.list.len() == known).then_some((config, new_keys))
}

/// Reports unknown keys of a table of the pipeline file.
fn only_keys(table: &Table, known: &[&str], problems: &mut Problems) {
    for (key, entry) in &table.entries {
        if !known.contains(&key.as_str()) {
            unknown_key(key, &entry.key, known, &[], problems);
        }
    }
}
