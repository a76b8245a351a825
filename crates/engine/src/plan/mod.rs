//! The actions of a run, stage by stage, with their reasons.

pub mod cached_results;
pub mod graph;
mod history;
mod reason;

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::identity::digest::Digest;
use crate::identity::recipe::{Numerics, Recipe};
use crate::kind::{self, ByteRanges, Inputs, PREVIOUS, Unit, Units, split_port};
use crate::pipeline::{Pipeline, Source, StageNode};
use crate::plan::graph::Graph;
use crate::provenance::manifest::Outcome;
use crate::store::{Entry, FilePart, Lookup, PART, Store, StoreError};

pub use history::{History, Last};
pub use reason::{Reason, first_of};

/// The action of a run for a stage.
#[derive(Debug, Clone)]
pub enum Action {
    /// Use the cached result.
    Cached(Box<Entry>),
    /// Compute it from these inputs.
    Run(Box<Recipe>, ResolvedInputs, Reason),
    /// Some of its inputs are not known yet.
    Pending {
        /// The stages that it is pending on.
        upstream: Vec<String>,
        /// Why it computes regardless of their results; `None` if that depends on them.
        certain: Option<Reason>,
    },
    /// It cannot run, for this reason.
    InvalidInput(String),
}

/// An input of a stage is unavailable.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// The store could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file or folder outside the store could not be read.
    #[error("the input `{port}` cannot be read: {error}")]
    Source {
        /// The input port.
        port: String,
        /// The error of the file system, with the path.
        error: String,
    },
    /// A reference below an output does not exist.
    #[error("the input `{port}` reads `{sub}` below the output `{output}`, which has {has}")]
    NoSub {
        /// The input port.
        port: String,
        /// The path below.
        sub: String,
        /// `stage.port`.
        output: String,
        /// What is there.
        has: String,
    },
}

/// The inputs of a stage: digests for the recipe, and paths to read.
#[derive(Debug, Clone, Default)]
pub struct ResolvedInputs {
    /// Digests by port.
    pub digests: BTreeMap<String, Digest>,
    /// Paths by port.
    pub paths: BTreeMap<String, PathBuf>,
}

/// Maximum units whose file ranges are hashed together.
const MANY: usize = 4096;

/// The results of stages so far.
pub trait Results {
    /// The result of a stage, by its index.
    fn entry(&self, stage: usize) -> Option<&Entry>;
}

impl Results for BTreeMap<usize, Entry> {
    fn entry(&self, stage: usize) -> Option<&Entry> {
        self.get(&stage)
    }
}

/// Finds the result of a unit.
pub type UnitLookup<'l> = dyn FnMut(&Unit, &Recipe) -> Result<Option<Entry>, StoreError> + 'l;

/// The recipes of a stage's units, and the results of those that are done.
pub type UnitEntries = (Vec<Recipe>, Vec<Option<Entry>>);

/// Puts the result of the unit before, in a chain, into a unit's recipe.
pub fn follow(recipe: &mut Recipe, previous: &Entry) {
    let digest = previous.outputs.get(PART).map(|part| (PREVIOUS.to_owned(), part.digest));
    recipe.inputs.extend(digest);
}

/// Decides on each stage, from the store and the last runs.
pub struct Planner<'a> {
    /// The pipeline.
    pub pipeline: &'a Pipeline,
    /// The cache.
    pub store: &'a Store,
    /// How numbers will be computed.
    pub numerics: &'a Numerics,
    /// Stages to compute even if cached.
    pub forced: &'a [usize],
    history: OnceCell<History>,
}

impl<'a> Planner<'a> {
    /// A planner for one invocation.
    pub fn new(
        pipeline: &'a Pipeline,
        store: &'a Store,
        numerics: &'a Numerics,
        forced: &'a [usize],
    ) -> Self {
        Self { pipeline, store, numerics, forced, history: OnceCell::new() }
    }

    /// Digests and paths of a stage's inputs, given the results so far; otherwise the stages still missing.
    ///
    /// # Errors
    /// A source that cannot be read, or a path that does not exist below an output.
    pub fn inputs(
        &self,
        stage: &StageNode,
        done: &dyn Results,
    ) -> Result<Result<ResolvedInputs, (ResolvedInputs, Vec<String>)>, InputError> {
        let mut resolved = ResolvedInputs::default();
        let mut missing = Vec::new();
        for (port, source) in &stage.inputs {
            let (digest, path) = match source {
                Source::File(path) => match self.store.source(path) {
                    Ok(digest) => (digest, path.clone()),
                    Err(StoreError::Io(error)) => {
                        return Err(InputError::Source { port: port.clone(), error: error.to_string() });
                    }
                    Err(error) => return Err(error.into()),
                },
                Source::Port { stage: upstream, port: output, sub, .. } => {
                    let Some(entry) = done.entry(*upstream) else {
                        missing.push(self.pipeline.stages[*upstream].id.clone());
                        continue;
                    };
                    let artifact = &entry.outputs[output];
                    let path = self.store.path(&artifact.digest);
                    match sub {
                        None => (artifact.digest, path),
                        Some(sub) => match self.store.sub(&artifact.digest, sub)? {
                            Some(digest) => (digest, path.join(sub)),
                            None => {
                                let output = format!("{}.{output}", self.pipeline.stages[*upstream].id);
                                let has = self.store.near(&artifact.digest, sub)?;
                                let (port, sub) = (port.clone(), sub.clone());
                                return Err(InputError::NoSub { port, sub, output, has });
                            }
                        },
                    }
                }
            };
            resolved.digests.insert(port.clone(), digest);
            resolved.paths.insert(port.clone(), path);
        }
        missing.sort();
        missing.dedup();
        Ok(if missing.is_empty() { Ok(resolved) } else { Err((resolved, missing)) })
    }

    /// The recipe of the whole stage.
    pub fn recipe(&self, stage: &StageNode, inputs: &ResolvedInputs) -> Recipe {
        Recipe {
            kind: stage.kind().name.to_owned(),
            version: stage.kind().version,
            params: stage.stage.identity(),
            inputs: inputs.digests.clone(),
            numerics: stage.kind().libtorch.then(|| self.numerics.clone()),
            unit: None,
        }
    }

    /// The recipes of units and, as far as `lookup` finds them, their results.
    ///
    /// In a chain the recipe of a unit is complete once the unit before is done: none is looked up after one that is not.
    ///
    /// # Errors
    /// As `lookup`.
    pub fn unit_entries(
        &self,
        stage: &StageNode,
        inputs: &ResolvedInputs,
        units: &Units,
        lookup: &mut UnitLookup<'_>,
    ) -> Result<UnitEntries, StoreError> {
        let mut recipes = self.unit_recipes(stage, inputs, units.list());
        let mut entries: Vec<Option<Entry>> = Vec::with_capacity(recipes.len());
        for (unit, recipe) in units.list().iter().zip(&mut recipes) {
            if let (Units::Chain(_), Some(previous)) = (units, entries.last()) {
                match previous {
                    Some(previous) => follow(recipe, previous),
                    None => {
                        entries.push(None);
                        continue;
                    }
                }
            }
            entries.push(lookup(unit, recipe)?);
        }
        Ok((recipes, entries))
    }

    /// The recipes of units, in order, with only the parameters and inputs that a unit reads; the file ranges that they read
    /// are hashed together.
    ///
    /// If no range of a file can be read, the whole file is hashed; computing the unit will report the error.
    fn unit_recipes(&self, stage: &StageNode, inputs: &ResolvedInputs, units: &[Unit]) -> Vec<Recipe> {
        let merge_only = |port: &str| stage.stage.is_merge_only(split_port(port).0);
        let digests = inputs.digests.iter().filter(|(port, _)| !merge_only(port));
        let common = Recipe {
            params: stage.stage.unit_identity(),
            inputs: digests.map(|(port, digest)| (port.clone(), *digest)).collect(),
            ..self.recipe(stage, &ResolvedInputs::default())
        };
        let of = |unit: &Unit| Recipe { unit: Some(unit.range.clone()), ..common.clone() };
        let mut recipes: Vec<Recipe> = units.iter().map(of).collect();
        // A unit may read many ranges.
        for (units, recipes) in units.chunks(MANY).zip(recipes.chunks_mut(MANY)) {
            if let Err(error) = self.narrow(stage, inputs, units, recipes) {
                tracing::debug!("{}: whole inputs are hashed: {error:#}", stage.id);
            }
        }
        recipes
    }

    /// Replaces the digests of whole files by those of the ranges that the units read.
    fn narrow(
        &self,
        stage: &StageNode,
        inputs: &ResolvedInputs,
        units: &[Unit],
        recipes: &mut [Recipe],
    ) -> anyhow::Result<()> {
        let reads = stage.stage.unit_inputs(&Inputs(inputs.paths.clone()), units)?;
        for (port, digest) in &inputs.digests {
            let narrowed = recipes.iter_mut().zip(&reads).filter_map(|(recipe, reads)| {
                // A port that only the merge reads is not in a unit's recipe.
                let counted = recipe.inputs.get_mut(port)?;
                let ByteRanges { bytes, layout } = reads.get(port)?;
                Some((counted, (layout.as_str(), bytes.as_slice())))
            });
            let (counted, parts): (Vec<&mut Digest>, Vec<FilePart<'_>>) = narrowed.unzip();
            let found = self.store.slices(digest, &inputs.paths[port], &parts)?;
            counted.into_iter().zip(found).for_each(|(counted, slice)| *counted = slice);
        }
        Ok(())
    }

    /// The action for one stage, given the results so far.
    ///
    /// # Errors
    /// As [`Planner::inputs`], and a damaged index.
    pub fn decide(&self, index: usize, done: &dyn Results) -> Result<Action, InputError> {
        let stage = &self.pipeline.stages[index];
        let inputs = match self.inputs(stage, done)? {
            Ok(inputs) => inputs,
            Err((known, upstream)) => {
                let certain = match self.forced.contains(&index) {
                    true => Some(Reason::Forced),
                    false => self.certain(stage, &known),
                };
                return Ok(Action::Pending { upstream, certain });
            }
        };
        let recipe = self.recipe(stage, &inputs);
        if self.forced.contains(&index) {
            return Ok(Action::Run(Box::new(recipe), inputs, Reason::Forced));
        }
        let reason = match self.store.find(&recipe.fingerprint())? {
            Lookup::Hit(entry) => {
                self.store.require(&entry, stage.outputs.iter().map(|output| output.name.as_str()))?;
                return Ok(Action::Cached(entry));
            }
            Lookup::Invalid(what) => Reason::Modified { what },
            Lookup::Miss => match (self.elsewhere(&recipe)?, self.history().last(&stage.id)) {
                (Some(other), None) => other,
                // Whoever adopted it expects it to be used.
                (Some(other @ Reason::OtherDevice { adopted: true, .. }), _) => other,
                (None, None) => Reason::First,
                (_, Some(last)) => match (last.changes(stage, &recipe, self.pipeline), &last.record.error) {
                    (changes, _) if !changes.is_empty() => Reason::Changed { changes },
                    (_, Some(error)) if last.record.outcome == Outcome::Failed => {
                        Reason::Failed { error: error.clone() }
                    }
                    _ => Reason::Missing,
                },
            },
        };
        Ok(Action::Run(Box::new(recipe), inputs, reason))
    }

    /// Whether the result is there for another class of device: an adopted one is in no run.
    fn elsewhere(&self, recipe: &Recipe) -> Result<Option<Reason>, StoreError> {
        let Some(numerics) = &recipe.numerics else { return Ok(None) };
        let device = if numerics.device == "cpu" { "cuda" } else { "cpu" };
        let numerics = Numerics { device: device.into(), deterministic: device == "cpu", ..numerics.clone() };
        let other = Recipe { numerics: Some(numerics), ..recipe.clone() };
        Ok(match self.store.find(&other.fingerprint())? {
            Lookup::Hit(entry) => {
                Some(Reason::OtherDevice { device: device.to_owned(), adopted: entry.adopted.is_some() })
            }
            _ => None,
        })
    }

    /// Why a stage computes although some of its inputs are unknown, if that is certain.
    fn certain(&self, stage: &StageNode, known: &ResolvedInputs) -> Option<Reason> {
        let Some(last) = self.history().last(&stage.id) else {
            return Some(Reason::First);
        };
        let mut recipe = self.recipe(stage, known);
        for (port, source) in &stage.inputs {
            if let (Source::Port { .. }, false, Some(digest)) =
                (source, recipe.inputs.contains_key(port), last.recipe.inputs.get(port))
            {
                recipe.inputs.insert(port.clone(), *digest);
            }
        }
        let changes = last.changes(stage, &recipe, self.pipeline);
        (!changes.is_empty()).then_some(Reason::Changed { changes })
    }

    /// The records of the last runs.
    pub fn history(&self) -> &History {
        self.history.get_or_init(|| History::read(&self.store.runs(&self.pipeline.name), self.pipeline))
    }

    /// Refuses inputs that the stage cannot use; an error names an output by its stage and port.
    fn validate(
        &self,
        index: usize,
        inputs: &ResolvedInputs,
        done: &BTreeMap<usize, Entry>,
    ) -> Result<(), String> {
        let stage = &self.pipeline.stages[index];
        stage.stage.validate_inputs(&Inputs(inputs.paths.clone())).map_err(|error| {
            let named = |upstream: &StageNode, port: &str| format!("{}.{port}", upstream.id);
            self.name_outputs(stage, &kind::describe(&error), &|upstream| done.get(&upstream), &named)
        })
    }

    /// Rewrites the paths of objects in an error about a stage's inputs: a file that its stage only copied to that of the
    /// user, others by `named`.
    pub fn name_outputs<'e>(
        &self,
        stage: &StageNode,
        error: &str,
        entry: &dyn Fn(usize) -> Option<&'e Entry>,
        named: &dyn Fn(&StageNode, &str) -> String,
    ) -> String {
        let mut error = error.to_owned();
        for source in stage.inputs.values() {
            let Source::Port { stage: upstream, port, .. } = source else { continue };
            let Some(artifact) = entry(*upstream).and_then(|entry| entry.outputs.get(port)) else { continue };
            let (object, node) =
                (self.store.path(&artifact.digest).display().to_string(), &self.pipeline.stages[*upstream]);
            let mut rest = std::mem::take(&mut error);
            while let Some(at) = rest.find(&object) {
                error.push_str(&rest[..at]);
                rest.drain(..at + object.len());
                // A path below the folder, up to what cannot be part of a name in a message.
                let end = rest.find([':', '`', '"', ' ', ',', ';', '\n']).unwrap_or(rest.len());
                let below =
                    rest[..end].strip_prefix('/').filter(|below| !below.is_empty()).map(str::to_owned);
                match node.stage.source_path(port, below.as_deref()) {
                    Some(path) => {
                        error.push_str(&path.display().to_string());
                        rest.drain(..end);
                    }
                    None => error.push_str(&named(node, port)),
                }
            }
            error.push_str(&rest);
        }
        error
    }

    /// Decides on every selected stage without running any.
    ///
    /// # Errors
    /// A damaged index.
    pub fn all(&self, graph: &Graph) -> Result<Vec<(usize, Action)>, StoreError> {
        let mut done = BTreeMap::new();
        let mut actions = Vec::new();
        for &index in graph.order() {
            let action = match self.decide(index, &done) {
                Err(InputError::Store(error)) => return Err(error),
                Err(error) => Action::InvalidInput(error.to_string()),
                Ok(Action::Run(recipe, inputs, reason)) => match self.validate(index, &inputs, &done) {
                    Ok(()) => Action::Run(recipe, inputs, reason),
                    Err(error) => Action::InvalidInput(error),
                },
                Ok(action) => action,
            };
            if let Action::Cached(entry) = &action {
                done.insert(index, (**entry).clone());
            }
            actions.push((index, action));
        }
        Ok(actions)
    }
}
