//! Pipeline files: text to typed stages, with every fault reported at its place.
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
//! A stage can be switched off, and an input can name several sources, of which the first counts whose stage
//! is in the pipeline:
//!
//! ```toml
//! [stages.latents]
//! when = "${compute.latents}"       # or "not ${…}", or an array of both, of which one must hold
//!
//! [stages.fisher.inputs]
//! latents = ["latents.latents", "published.files/train_latents.npy"]
//!
//! [stages.influence.inputs]
//! images = ["coco.files/train2017", ""] # the last one leaves an optional input open
//! ```
//!
//! What is switched off is not part of the pipeline: it is not listed, not run, and its results are not shown.
//! Its names are checked all the same, and its references to the config count as read. An input whose sources
//! are all switched off is a fault, even where it may be left open: that takes the `""`.
//!
//! A stage repeats over each combination of several lists, a file includes the stages of others, `[defaults.KIND]` fills in
//! parameters, and `${env:NAME}` is what the environment says: see `pipelines/README.md`.
//!
//! A relative path starts from the folder of the file that it, or its beginning `${…}`, is written in; in a
//! `--set`, from the working folder.

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

use crate::config::param::{Param, Reader, Validate};
use crate::config::text::{Origin, Problems, Sources};
use crate::config::tree::{self, Entry, Node, Table, Value};
use crate::kind::{KindInfo, Port, Registry, Stage};
use crate::params;
use files::Parts;

/// A pipeline that was read and checked: every name resolves and every parameter has its type.
pub struct Pipeline {
    /// The file's stem.
    pub name: String,
    /// The folder that `cache/` and `results/` stand in.
    pub root: PathBuf,
    /// The stages, repeated ones written out, in file order.
    pub stages: Vec<StageNode>,
    /// The stages that are switched off.
    pub off: Vec<DisabledStage>,
    /// The config's `[run]` table: how to compute, never what.
    pub run: RunTable,
    /// The environment variables that the pipeline declares and refers to, with their values: they count.
    pub env: BTreeMap<String, String>,
    /// All environment variables that were asked for, with what they are, whether or not they count.
    pub variables: BTreeMap<String, Option<String>>,
    /// The config, with the `--set` arguments applied: where each value is written.
    pub config: Node,
}

/// The config's table of how to compute.
const RUN: &str = "run";
/// The table of default parameters.
const DEFAULTS: &str = "defaults";
/// The most files that may be downloaded at once.
pub const MOST_DOWNLOADS: u32 = 64;
/// As many as are downloaded at once where nothing is said of it.
pub const DOWNLOADS: u32 = 4;

params! {
    /// How to compute; nothing here counts for identity, and the command line wins.
    pub struct RunTable {
        /// `auto`, `cpu`, `cuda`, or a list such as `cuda:0,cuda:1`; `auto` takes a GPU where there is one.
        device: String = "auto".to_owned(),
        /// Workers at once on the CPU; 0 chooses from the number of cores.
        jobs: u32 = 0,
        /// Threads of each worker; 0 divides the cores among the workers.
        threads: u32 = 0,
        /// Most rows to send through a network at once; 0 chooses 32 on the CPU, whose caches they fit, and 1024
        /// on a GPU.
        micro_batch: u32 = 0,
        /// Most files that a `download` stage brings at once.
        downloads: u32 [1..=MOST_DOWNLOADS] = DOWNLOADS,
    }
}

impl Validate for RunTable {}

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
    /// The parameters as they are written, each value with its place; without those that a default gives.
    pub written: Node,
    /// What stands on its input ports.
    pub inputs: BTreeMap<String, Source>,
    /// Its output ports.
    pub outputs: Vec<Port>,
    /// Where its table's name is written.
    pub origin: Origin,
}

impl StageNode {
    /// Its kind.
    pub fn kind(&self) -> &'static KindInfo {
        self.stage.kind()
    }

    /// Where the stage's outputs show in the results folder: `generate/apple`.
    pub fn folder(&self) -> PathBuf {
        Path::new(&self.base).join(self.label.as_deref().unwrap_or_default())
    }
}

/// A stage that its `when` keeps out of the pipeline.
pub struct DisabledStage {
    /// As [`StageNode::id`].
    pub id: String,
    /// As [`StageNode::base`].
    pub base: String,
    /// Where the switch stands: `configs/mscoco.toml:12:11`.
    pub place: String,
}

/// What feeds an input port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// An output of another stage, or a path below it.
    Port {
        /// Index of the stage in [`Pipeline::stages`].
        stage: usize,
        /// Its output port.
        port: String,
        /// The path below, where the output is a folder.
        sub: Option<String>,
        /// Where the reference is written.
        origin: Origin,
    },
    /// A file or folder outside the store.
    File(PathBuf),
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
    let off = expanded.drafts.iter().filter_map(|draft| {
        let place = sources.position(draft.off.as_ref()?);
        Some(DisabledStage { id: draft.id(), base: draft.base.to_owned(), place })
    });
    let off: Vec<DisabledStage> = off.collect();
    if problems.is_empty() && nodes.is_empty() && !off.is_empty() {
        problems.at(expanded.drafts[0].origin, "every stage is switched off by its `when`");
    }
    if !problems.is_empty() {
        return None;
    }
    let of_run = |path: &str| path.split('.').next() == Some(RUN);
    for key in new_keys.iter().filter(|key| !of_run(&key.path) && !expanded.reads(&key.path)) {
        let problem = problems.at(&key.origin, format!("no stage reads `{}`", key.path));
        problem.suggest(&key.name, key.beside.iter().map(String::as_str));
    }
    let root = root(file)?;
    let (env, mut variables) = parts.env.into_read();
    nodes.iter().for_each(|node| variables.extend(node.stage.variables()));
    Some(Pipeline {
        name: file.file_stem()?.to_string_lossy().into_owned(),
        root,
        stages: nodes,
        off,
        run: run?,
        env,
        variables,
        config,
    })
}

/// The folder that `cache/` and `results/` of a pipeline file stand in.
pub fn root(file: &Path) -> Option<PathBuf> {
    let folder = std::path::absolute(file).ok()?.parent()?.to_path_buf();
    match folder.file_name() {
        Some(name) if name == "pipelines" => folder.parent().map(Path::to_path_buf),
        _ => Some(folder),
    }
}

/// The config that the pipeline names, with the `--set` arguments applied, and the keys that they added.
///
/// A `--set defaults.KIND.KEY=…` goes to the pipeline's defaults, where the config has no such table.
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
    // What does not parse is not there: everything that needs it would be a fault too.
    if !problems.is_empty() {
        return None;
    }
    // Every config has this table, written or not.
    if let Value::Table(table) = &mut config.value {
        let node = Node { value: Value::Table(Table::default()), origin: config.origin.clone() };
        table.entries.entry(RUN.to_owned()).or_insert_with(|| Entry { key: node.origin.clone(), node });
    }
    let own = config.as_table().is_some_and(|table| table.get(DEFAULTS).is_some());
    let mut new_keys = Vec::new();
    for argument in sets {
        match argument.trim_start().strip_prefix(DEFAULTS).is_some_and(|rest| rest.starts_with('.')) && !own {
            // Keys that no kind has are found where all defaults are read.
            true => drop(tree::set(defaults, argument, sources, problems)),
            false => new_keys.extend(tree::set(&mut config, argument, sources, problems)),
        }
    }
    let known = problems.list.len();
    parts.env.fill(&mut config, problems);
    (problems.list.len() == known).then_some((config, new_keys))
}

/// Reports keys that a table of the pipeline file cannot have.
fn only_keys(table: &Table, known: &[&str], problems: &mut Problems) {
    for (key, entry) in &table.entries {
        if !known.contains(&key.as_str()) {
            problems.at(&entry.key, format!("unknown key `{key}`")).suggest(key, known.iter().copied());
        }
    }
}
