//! Rebuilds a pipeline from a manifest.

use std::collections::{BTreeMap, HashMap};
use std::path::{Component, Path, PathBuf};

use serde_json::Value as Json;

use crate::config::param::plain_name;
use crate::config::sorted_map::SortedMap;
use crate::config::text::{Origin, Sources, suggestion};
use crate::config::tree::{Entry, Node, Table, Value};
use crate::identity::digest::Digest;
use crate::identity::recipe::Recipe;
use crate::kind::{KindInfo, Port, Registry, Stage, split_port};
use crate::pipeline::cluster_table::ClusterTable;
use crate::pipeline::{DOWNLOAD_JOBS, Pipeline, RunTable, Source, StageNode};
use crate::provenance::manifest::{Conditions, Manifest, Reads, StageRecord};
use crate::store::{Artifact, Store, StoreError};

/// Why a stage cannot be recomputed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// The run ended before the stage's recipe was known.
    #[error("the run ended before it, so the manifest has no recipe for it")]
    NoRecipe,
    /// A name that is not the name of a single folder.
    #[error("`{name}` is not a valid name of a stage or a pipeline")]
    Name {
        /// As recorded.
        name: String,
    },
    /// A manifest of an early format.
    #[error("the manifest has no parameters for it: its format is older than 3")]
    NoParams,
    /// A kind that this version does not have.
    #[error("unknown kind `{kind}`{}", hint.as_ref().map(|hint| format!(": {hint}")).unwrap_or_default())]
    Kind {
        /// As recorded.
        kind: String,
        /// The nearest known kind.
        hint: Option<String>,
    },
    /// Parameters that the kind does not accept.
    #[error("its parameters are invalid for the current kind `{kind}`: {why}")]
    Params {
        /// The kind.
        kind: String,
        /// What is wrong with them.
        why: String,
    },
    /// Two records with the same name.
    #[error("the manifest has more than one record of it")]
    Twice,
    /// An input port that the kind does not have, or lacks.
    #[error("its input `{port}` is {}", if *missing { "missing" } else { "unknown to its kind" })]
    Port {
        /// The input port.
        port: String,
        /// Whether the kind requires it and the record lacks it.
        missing: bool,
    },
    /// An input of unknown origin.
    #[error("the manifest records no origin for its input `{port}`")]
    Unexplained {
        /// The input port.
        port: String,
    },
    /// A recorded input that the cache no longer holds.
    #[error("its input `{port}`, {giver}, is no longer in the cache")]
    Gone {
        /// The input port.
        port: String,
        /// `stage.port`, with the path below.
        giver: String,
    },
    /// An input from a stage that cannot be computed.
    #[error("it reads {giver}, which cannot be computed")]
    Upstream {
        /// `stage.port`, with the path below.
        giver: String,
    },
    /// A source whose recorded bytes cannot be found.
    #[error(
        "its source {} ({}) {}",
        path.display(),
        digest.short(),
        if *changed { "was modified" } else { "does not exist" }
    )]
    Source {
        /// Its recorded path.
        path: PathBuf,
        /// Its recorded digest.
        digest: Digest,
        /// Whether a file or folder with other bytes exists there.
        changed: bool,
    },
}

/// A pipeline rebuilt from a manifest.
pub struct RebuiltPipeline {
    /// The stages that can be computed.
    pub pipeline: Pipeline,
    /// Those that cannot, and why.
    pub obstacles: Vec<(String, ReplayError)>,
    /// The texts that locations in the pipeline refer to; empty, as there is no file.
    pub sources: Sources,
}

/// Each of the named stages on its own, with the inputs of the recorded run that `store` holds.
///
/// If an input is no longer cached and its stage is named too, that stage is computed first.
///
/// # Errors
/// A store that cannot be read.
pub fn replay(
    manifest: &Manifest,
    names: &[String],
    registry: &Registry,
    store: &Store,
    root: &Path,
) -> Result<RebuiltPipeline, StoreError> {
    let feed = |builder: &Builder<'_>, port: &str, reads: &Reads| {
        let given = manifest.stages.iter().find(|giver| giver.stage == reads.stage);
        let artifact = given.and_then(|giver| giver.outputs.get(&reads.port));
        let cached = |artifact: &Artifact| -> Result<Option<PathBuf>, StoreError> {
            let path = store.path(&artifact.digest);
            let below = match &reads.below {
                None => return Ok(path.exists().then_some(path)),
                Some(below) => below,
            };
            let path = path.join(below);
            Ok((store.sub(&artifact.digest, below)?.is_some() && path.exists()).then_some(path))
        };
        match artifact.map(cached).transpose()?.flatten() {
            Some(path) => Ok(Source::File(path)),
            None => {
                let gone = || ReplayError::Gone { port: port.to_owned(), giver: reads.to_string() };
                builder.link(reads).ok_or_else(|| gone().into())
            }
        }
    };
    let of = |record: &&StageRecord| names.contains(&record.stage);
    Builder::new(manifest, registry, root).build(of, &|path, digest| at_its_place(path, digest), &feed)
}

/// All stages from the sources alone, found at their recorded paths or below `root`.
///
/// # Errors
/// As [`replay`].
pub fn recreation(
    manifest: &Manifest,
    registry: &Registry,
    root: &Path,
) -> Result<RebuiltPipeline, StoreError> {
    let feed = |builder: &Builder<'_>, _: &str, reads: &Reads| {
        builder.link(reads).ok_or_else(|| ReplayError::Upstream { giver: reads.to_string() }.into())
    };
    let find = |path: &Path, digest: &Digest| elsewhere(path, digest, root);
    Builder::new(manifest, registry, root).build(|_| true, &find, &feed)
}

/// The stages selected by `which`: `all`, a name (of a repeated stage, all its items), or a number of stages, drawn by
/// `draw`, which returns an index below its argument.
///
/// # Errors
/// An unknown stage, with the nearest name.
pub fn selected(
    manifest: &Manifest,
    which: &str,
    mut draw: impl FnMut(usize) -> usize,
) -> Result<Vec<String>, String> {
    // A stage without outputs has nothing to compare.
    let done = manifest.stages.iter().filter(|record| !record.outputs.is_empty());
    let all: Vec<&String> = done.map(|record| &record.stage).collect();
    let means = |name: &&&String| **name == which || parts(name).0 == which;
    let named: Vec<String> = all.iter().filter(means).map(|name| (*name).clone()).collect();
    match (named.is_empty(), which, which.parse::<usize>()) {
        (false, ..) => Ok(named),
        (true, "all", _) => Ok(all.into_iter().cloned().collect()),
        (true, _, Ok(count)) if count > 0 => {
            let mut left: Vec<usize> = (0..all.len()).collect();
            let drawn = (0..count.min(all.len())).map(|_| left.swap_remove(draw(left.len())));
            let mut drawn: Vec<usize> = drawn.collect();
            drawn.sort_unstable();
            Ok(drawn.into_iter().map(|index| all[index].clone()).collect())
        }
        _ => {
            let known = all.iter().map(|name| name.as_str()).chain(["all"]);
            let hint = suggestion(which, known).map(|hint| format!(": {hint}")).unwrap_or_default();
            Err(format!(
                "the manifest has no stage `{which}`{hint}; expected a stage, all, or a number of stages"
            ))
        }
    }
}

/// Splits a stage's name into that of its table and its item's label: `generate[apple]` into `generate` and `apple`.
pub fn parts(stage: &str) -> (&str, Option<&str>) {
    match stage.strip_suffix(']').and_then(|name| name.split_once('[')) {
        Some((base, label)) => (base, Some(label)),
        None => (stage, None),
    }
}

/// The output ports of a recorded stage; empty if they are unknown.
pub fn ports(record: &StageRecord, registry: &Registry) -> Vec<Port> {
    let kind =
        record.recipe.as_ref().and_then(|recipe| registry.iter().find(|kind| kind.name == recipe.kind));
    let written = written(&record.params, &Origin { text: 0, span: 0..0 });
    kind.map(|kind| kind.ports(&written)).unwrap_or_default()
}

/// Why a stage could not be built.
enum Halt {
    ReplayError(ReplayError),
    Store(StoreError),
}

impl From<ReplayError> for Halt {
    fn from(obstacle: ReplayError) -> Self {
        Self::ReplayError(obstacle)
    }
}

impl From<StoreError> for Halt {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// Whether a name is the name of a single folder.
fn names_a_folder(name: &str) -> bool {
    let one = matches!(Path::new(name).components().collect::<Vec<_>>().as_slice(), [Component::Normal(_)]);
    one && !name.contains('/') && !name.starts_with('.') && !name.chars().any(char::is_control)
}

/// Finds a source from its recorded path and digest.
type Find<'f> = &'f dyn Fn(&Path, &Digest) -> Result<PathBuf, ReplayError>;
/// Finds the artifact for a port that reads another stage.
type Feed<'f> = &'f dyn Fn(&Builder<'_>, &str, &Reads) -> Result<Source, Halt>;

struct Builder<'a> {
    manifest: &'a Manifest,
    registry: &'a Registry,
    root: &'a Path,
    /// The location for values that are in no file.
    origin: Origin,
    sources: Sources,
    /// The number of records of each stage.
    records: HashMap<&'a str, usize>,
    nodes: Vec<StageNode>,
    /// The node indices by stage.
    numbers: HashMap<&'a str, usize>,
}

impl<'a> Builder<'a> {
    fn new(manifest: &'a Manifest, registry: &'a Registry, root: &'a Path) -> Self {
        let mut sources = Sources::default();
        let text = sources.add("manifest".into(), PathBuf::new(), String::new());
        let origin = Origin { text, span: 0..0 };
        let mut records = HashMap::new();
        for record in &manifest.stages {
            *records.entry(record.stage.as_str()).or_default() += 1;
        }
        let (nodes, numbers) = (Vec::new(), HashMap::new());
        Self { manifest, registry, root, origin, sources, records, nodes, numbers }
    }

    fn build(
        mut self,
        wanted: impl Fn(&&StageRecord) -> bool,
        find: Find<'_>,
        feed: Feed<'_>,
    ) -> Result<RebuiltPipeline, StoreError> {
        let mut obstacles = Vec::new();
        let manifest = self.manifest;
        if !names_a_folder(&manifest.pipeline) {
            let obstacle = ReplayError::Name { name: manifest.pipeline.clone() };
            obstacles.push(("the pipeline".to_owned(), obstacle));
        }
        for record in manifest.stages.iter().filter(wanted) {
            match self.node(record, find, feed) {
                Ok(node) => {
                    self.numbers.insert(&record.stage, self.nodes.len());
                    self.nodes.push(node);
                }
                Err(Halt::Store(error)) => return Err(error),
                Err(Halt::ReplayError(obstacle)) => obstacles.push((record.stage.clone(), obstacle)),
            }
        }
        let Manifest { pipeline, numerics, conditions, .. } = manifest;
        // Threads and the micro batch may change rounding, so they are those of the recorded run.
        let Conditions { threads, micro_batch, .. } = conditions;
        let given = |number: usize| u32::try_from(number).ok().filter(|number| *number > 0);
        let run = RunTable {
            device: numerics.device.clone(),
            jobs: None,
            threads: given(*threads),
            micro_batch: given(*micro_batch),
            download_jobs: DOWNLOAD_JOBS,
        };
        let config = Node { value: Value::Table(Table::default()), origin: self.origin };
        let pipeline = Pipeline {
            name: pipeline.clone(),
            root: self.root.to_path_buf(),
            within: manifest.within.clone(),
            stages: self.nodes,
            off: Vec::new(),
            run,
            cluster: ClusterTable::default(),
            env: BTreeMap::new(),
            unused_sets: Vec::new(),
            variables: BTreeMap::new(),
            config,
        };
        Ok(RebuiltPipeline { pipeline, obstacles, sources: self.sources })
    }

    fn node(&self, record: &StageRecord, find: Find<'_>, feed: Feed<'_>) -> Result<StageNode, Halt> {
        let (base, label) = parts(&record.stage);
        let names = [Some(base), label];
        if let Some(name) = names.into_iter().flatten().find(|name| !names_a_folder(name)) {
            return Err(ReplayError::Name { name: name.to_owned() }.into());
        }
        if self.records[record.stage.as_str()] > 1 {
            return Err(ReplayError::Twice.into());
        }
        let recipe = record.recipe.as_ref().ok_or(ReplayError::NoRecipe)?;
        if record.params.is_null() {
            return Err(ReplayError::NoParams.into());
        }
        let kind = self.kind(recipe)?;
        let refused = |why| ReplayError::Params { kind: recipe.kind.clone(), why };
        let mut stage = kind.from_json(&record.params).map_err(refused)?;
        if let Some(fault) = stage.faults().into_iter().next() {
            return Err(refused(fault).into());
        }
        ports_fit(&*stage, recipe)?;
        let connected = |port: &str| recipe.inputs.contains_key(port);
        if let Some((_, fault)) = stage.check(&connected).into_iter().next() {
            return Err(refused(fault).into());
        }
        let mut inputs = SortedMap::default();
        let mut moved = BTreeMap::new();
        for (port, digest) in &recipe.inputs {
            let source = match (record.sources.get(port), record.reads.get(port)) {
                (Some(path), _) => {
                    let found = find(path, digest)?;
                    if found != *path {
                        moved.insert(path.clone(), found.clone());
                    }
                    Source::File(found)
                }
                (None, Some(reads)) => feed(self, port, reads)?,
                (None, None) => return Err(ReplayError::Unexplained { port: port.clone() }.into()),
            };
            inputs.insert(port.clone(), source);
        }
        stage.relocate(&moved);
        let written = written(&stage.to_json(), &self.origin);
        let outputs = kind.ports(&written);
        let (base, label) = (base.to_owned(), label.map(str::to_owned));
        let (id, origin) = (record.stage.clone(), self.origin.clone());
        Ok(StageNode { id, base, label, stage, written, inputs, outputs, origin })
    }

    fn kind(&self, recipe: &Recipe) -> Result<&'static KindInfo, ReplayError> {
        let found = self.registry.iter().find(|kind| kind.name == recipe.kind);
        found.copied().ok_or_else(|| {
            let hint = suggestion(&recipe.kind, self.registry.iter().map(|kind| kind.name));
            ReplayError::Kind { kind: recipe.kind.clone(), hint }
        })
    }

    /// The output of another stage of the same pipeline.
    fn link(&self, reads: &Reads) -> Option<Source> {
        let stage = *self.numbers.get(reads.stage.as_str())?;
        let gives = self.nodes[stage].outputs.iter().any(|output| output.name == reads.port);
        let (port, sub) = (reads.port.clone(), reads.below.clone());
        gives.then(|| Source::Port { stage, port, sub, origin: self.origin.clone() })
    }
}

/// Checks the recorded inputs against the ports of the kind.
fn ports_fit(stage: &dyn Stage, recipe: &Recipe) -> Result<(), ReplayError> {
    let kind = stage.kind();
    let sources: Vec<String> = stage.sources().into_iter().map(|(port, _)| port).collect();
    let known = |port: &String| match kind.dynamic_inputs {
        true => plain_name(port),
        false => sources.contains(port) || kind.inputs.iter().any(|input| input.name == split_port(port).0),
    };
    let needed = kind.inputs.iter().filter(|input| input.required).map(|input| input.name.to_owned());
    let fault = |port: &String, missing| ReplayError::Port { port: port.clone(), missing };
    if let Some(port) = recipe.inputs.keys().find(|port| !known(port)) {
        return Err(fault(port, false));
    }
    let there =
        |port: &String| recipe.inputs.keys().any(|input| input == port || split_port(input).0 == port);
    match needed.chain(sources.iter().cloned()).find(|port| !there(port)) {
        Some(port) => Err(fault(&port, true)),
        None => Ok(()),
    }
}

/// Parameters as a pipeline would contain them. TOML has no null: such a key is omitted.
fn written(params: &Json, origin: &Origin) -> Node {
    let value = match params {
        Json::Null => Value::Table(Table::default()),
        Json::Bool(value) => Value::Bool(*value),
        Json::Number(number) => match number.as_i64() {
            Some(value) => Value::Int(value),
            None => Value::Float(number.as_f64().unwrap_or_default()),
        },
        Json::String(text) => Value::Text(text.clone()),
        Json::Array(items) => Value::List(items.iter().map(|item| written(item, origin)).collect()),
        Json::Object(entries) => {
            let entries = entries.iter().filter(|(_, value)| !value.is_null());
            let entry = |value| Entry { key: origin.clone(), node: written(value, origin) };
            Value::Table(Table { entries: entries.map(|(key, value)| (key.clone(), entry(value))).collect() })
        }
    };
    Node { value, origin: origin.clone() }
}

/// A source at its recorded path, whatever its bytes are now: a change shows in the recipe.
fn at_its_place(path: &Path, digest: &Digest) -> Result<PathBuf, ReplayError> {
    match path.exists() {
        true => Ok(path.to_path_buf()),
        false => Err(ReplayError::Source { path: path.to_path_buf(), digest: *digest, changed: false }),
    }
}

/// A source with the recorded bytes: at its path, or at ever shorter suffixes of it below `root`.
fn elsewhere(path: &Path, digest: &Digest, root: &Path) -> Result<PathBuf, ReplayError> {
    let parts: Vec<_> = path.components().collect();
    let ends = (1..parts.len()).map(|start| root.join(parts[start..].iter().collect::<PathBuf>()));
    let mut changed = false;
    for place in std::iter::once(path.to_path_buf()).chain(ends).filter(|place| place.exists()) {
        if crate::store::digest_of(&place).is_ok_and(|found| found == *digest) {
            return Ok(place);
        }
        changed = true;
    }
    Err(ReplayError::Source { path: path.to_path_buf(), digest: *digest, changed })
}
