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
//! A relative path starts from the folder of the file that it, or its beginning `${…}`, is written in; in a
//! `--set`, from the working folder.

mod expand;
mod inputs;
mod resolve;
pub mod schema;
mod switch;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use crate::param::{Param, Reader, Validate};
use crate::params;
use crate::stage::{Kind, Port, Registry};
use crate::text::{Origin, Problems, Sources};
use crate::tree::{self, Entry, Node, Table, Value};

/// A pipeline that was read and checked: every name resolves and every parameter has its type.
pub struct Pipeline {
    /// The file's stem.
    pub name: String,
    /// The folder that `cache/` and `results/` stand in.
    pub root: PathBuf,
    /// The stages, repeated ones written out, in file order.
    pub stages: Vec<StageNode>,
    /// The stages that are switched off.
    pub off: Vec<Off>,
    /// The config's `[run]` table: how to compute, never what.
    pub run: RunTable,
}

/// The config's table of how to compute.
const RUN: &str = "run";
/// The most files that may be downloaded at once.
pub const MOST_DOWNLOADS: u32 = 64;

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
        downloads: u32 [1..=MOST_DOWNLOADS] = 4,
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
    /// Its kind.
    pub kind: &'static dyn Kind,
    /// Its parameters, defaults filled in.
    pub params: Json,
    /// What stands on its input ports.
    pub inputs: BTreeMap<String, Source>,
    /// Its output ports.
    pub outputs: Vec<Port>,
    /// Where its table's name is written.
    pub origin: Origin,
}

impl StageNode {
    /// Where the stage's outputs show in the results folder: `generate/apple`.
    pub fn folder(&self) -> PathBuf {
        Path::new(&self.base).join(self.label.as_deref().unwrap_or_default())
    }
}

/// A stage that its `when` keeps out of the pipeline.
pub struct Off {
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
    let text = read_text(file, None, sources, problems)?;
    let root = tree::parse(sources, text, problems);
    let table = root.as_table()?;
    let (config, new_keys) = config(table, sets, sources, problems)?;
    only_keys(table, &["config", "stages"], problems);
    let Some(stages) = table.get("stages") else {
        problems
            .at(&Origin { text, span: 0..0 }, "the pipeline has no stages")
            .help("expected `[stages.NAME]`");
        return None;
    };
    let place = &stages.origin;
    let Some(stages) = stages.as_table() else {
        problems.at(place, format!("expected a table of stages, found {}", stages.type_name()));
        return None;
    };
    let expanded = expand::expand(stages, &config, registry, problems);
    let mut reader = Reader { sources, problems };
    let nodes = resolve::resolve(&expanded, &mut reader);
    let empty = Node { value: Value::Table(Table::default()), origin: Origin { text, span: 0..0 } };
    let run = config.as_table().and_then(|table| table.get(RUN)).unwrap_or(&empty);
    let run = RunTable::read(run, &mut reader);
    let off = expanded.drafts.iter().filter_map(|draft| {
        let place = sources.position(draft.off.as_ref()?);
        Some(Off { id: draft.id(), base: draft.base.to_owned(), place })
    });
    let off: Vec<Off> = off.collect();
    if problems.is_empty() && nodes.is_empty() && !off.is_empty() {
        problems.at(place, "every stage is switched off by its `when`");
    }
    if !problems.is_empty() {
        return None;
    }
    let of_run = |path: &str| path.split('.').next() == Some(RUN);
    for key in new_keys.iter().filter(|key| !of_run(&key.path) && !expanded.reads(&key.path)) {
        let problem = problems.at(&key.origin, format!("no stage reads `{}`", key.path));
        problem.suggest(&key.name, key.beside.iter().map(String::as_str));
    }
    let folder = std::path::absolute(file).ok()?.parent()?.to_path_buf();
    let root = match folder.file_name() {
        Some(name) if name == "pipelines" => folder.parent()?.to_path_buf(),
        _ => folder,
    };
    Some(Pipeline {
        name: file.file_stem()?.to_string_lossy().into_owned(),
        root,
        stages: nodes,
        off,
        run: run?,
    })
}

/// Reads a file into `sources`; a file that cannot be read is a problem at `origin`.
fn read_text(
    file: &Path,
    origin: Option<&Origin>,
    sources: &mut Sources,
    problems: &mut Problems,
) -> Option<usize> {
    let folder = file.parent().map(Path::to_path_buf).unwrap_or_default();
    let folder =
        std::path::absolute(if folder.as_os_str().is_empty() { Path::new(".") } else { &folder }).ok()?;
    match fs_err::read_to_string(file) {
        Ok(text) => Some(sources.add(file.display().to_string(), folder, text)),
        Err(error) => {
            match origin {
                Some(origin) => problems.at(origin, error.to_string()),
                None => problems.general(error.to_string()),
            };
            None
        }
    }
}

/// The config that the pipeline names, with the `--set` arguments applied, and the keys that they added.
fn config(
    table: &Table,
    sets: &[String],
    sources: &mut Sources,
    problems: &mut Problems,
) -> Option<(Node, Vec<tree::NewKey>)> {
    let mut config = match table.get("config") {
        Some(node) => {
            let Some(path) = node.as_text() else {
                problems.at(&node.origin, format!("expected a path, found {}", node.type_name()));
                return None;
            };
            let path = short_path(&sources.get(node.origin.text).name, path);
            let text = read_text(&path, Some(&node.origin), sources, problems)?;
            tree::parse(sources, text, problems)
        }
        None => {
            let text = sources.add("config".into(), PathBuf::new(), String::new());
            tree::parse(sources, text, problems)
        }
    };
    // What does not parse is not there: everything that needs it would be a fault too.
    if !problems.is_empty() {
        return None;
    }
    // Every config has this table, written or not.
    if let Value::Table(table) = &mut config.value {
        let node = Node { value: Value::Table(Table::default()), origin: config.origin.clone() };
        table.entries.entry(RUN.to_owned()).or_insert_with(|| Entry { key: node.origin.clone(), node });
    }
    let set = |argument: &String| tree::set(&mut config, argument, sources, problems);
    let new_keys = sets.iter().filter_map(set).collect();
    Some((config, new_keys))
}

/// `configs/demo.toml` for `../configs/demo.toml` named in `pipelines/demo.toml`: relative as the user gave it.
fn short_path(from: &str, path: &str) -> PathBuf {
    let mut out = Path::new(from).parent().map(Path::to_path_buf).unwrap_or_default();
    for part in Path::new(path).components() {
        match part {
            std::path::Component::ParentDir if out.file_name().is_some() => {
                out.pop();
            }
            part => out.push(part),
        }
    }
    out
}

/// Reports keys that a table of the pipeline file cannot have.
fn only_keys(table: &Table, known: &[&str], problems: &mut Problems) {
    for (key, entry) in &table.entries {
        if !known.contains(&key.as_str()) {
            problems.at(&entry.key, format!("unknown key `{key}`")).suggest(key, known.iter().copied());
        }
    }
}
