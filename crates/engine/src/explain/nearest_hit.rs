//! The smallest edit that leads to a cached result.

use std::collections::BTreeMap;

use serde::Serialize;

use super::source_location::{Location, config_key, place};
use super::{reads, time_of};
use crate::config::text::Sources;
use crate::identity::digest::Digest;
use crate::identity::recipe::{self, Change};
use crate::pipeline::Source as Feed;
use crate::plan::cached_results::{self, CachedResult};
use crate::plan::{Last, Planner, ResolvedInputs};
use crate::store::{Entry, StoreError};

/// Maximum results whose inputs are traced upstream.
const FOLLOWED: usize = 16;
/// Maximum stages to trace upstream.
const DEPTH: usize = 32;

/// One required change.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "edit", rename_all = "snake_case")]
pub enum Edit {
    /// A parameter.
    Param {
        /// The stage of the parameter.
        stage: String,
        /// The current and the required value.
        change: Change,
        /// The key for `--set`, if the config sets it.
        key: Option<String>,
        /// Its location.
        place: Option<Location>,
    },
    /// An input whose bytes must change.
    Input {
        /// The stage that reads it.
        stage: String,
        /// Its port.
        port: String,
        /// `stage.port/below`, or a path.
        reads: String,
        /// The required digest.
        digest: Digest,
        /// The run that read it so, if it is one of this pipeline's last runs.
        run: Option<String>,
    },
    /// A value outside of all files: the kind's version, the device, libtorch.
    Other {
        /// The stage.
        stage: String,
        /// The current and the required value.
        change: Change,
    },
}

impl std::fmt::Display for Edit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let value = |value: &Option<String>| value.clone().unwrap_or_else(|| "nothing".into());
        match self {
            Self::Param { stage, change, key, place } => {
                let name = key.clone().unwrap_or_else(|| format!("{} of {stage}", change.field));
                write!(f, "set {name} back to {}, now {}", value(&change.new), value(&change.old))?;
                place.iter().try_for_each(|place| write!(f, " ({place})"))
            }
            Self::Input { stage, port, reads, digest, run } => {
                let run = run.as_ref().map(|run| format!(" in the run of {run}")).unwrap_or_default();
                write!(
                    f,
                    "the input `{port}` of {stage} ({reads}) must have its earlier bytes{run}: {}",
                    digest.short()
                )
            }
            Self::Other { stage, change } => {
                write!(
                    f,
                    "{} of {stage} must be {}, now {}",
                    change.field,
                    value(&change.new),
                    value(&change.old)
                )
            }
        }
    }
}

/// A cached result and the edits that lead to it.
#[derive(Debug, Clone, Serialize)]
pub struct NearestHit {
    /// Its fingerprint.
    pub fingerprint: Digest,
    /// The required changes; empty if a run would already use the result.
    pub edits: Vec<Edit>,
    /// When it was computed, UTC.
    pub computed: String,
    /// Its computing time in seconds.
    pub seconds: f64,
}

/// The cached result of the stage's kind with the fewest edits; `None` if the kind has none.
///
/// # Errors
/// A damaged index.
pub fn nearest(
    planner: &Planner<'_>,
    index: usize,
    done: &BTreeMap<usize, Entry>,
    sources: &Sources,
) -> Result<Option<NearestHit>, StoreError> {
    let mut search = Search { planner, done, sources, kinds: BTreeMap::new() };
    let found = search.best(index, &|_| true, 0)?;
    Ok(found.map(|(kept, edits)| NearestHit {
        fingerprint: kept.entry.recipe.fingerprint(),
        edits,
        computed: time_of(kept.written),
        seconds: kept.entry.seconds,
    }))
}

struct Search<'s> {
    planner: &'s Planner<'s>,
    done: &'s BTreeMap<usize, Entry>,
    sources: &'s Sources,
    /// The indexed results, by kind.
    kinds: BTreeMap<&'static str, Vec<CachedResult>>,
}

impl Search<'_> {
    /// The result with the fewest edits among those that satisfy `fits`.
    fn best(
        &mut self,
        index: usize,
        fits: &dyn Fn(&Entry) -> bool,
        depth: usize,
    ) -> Result<Option<(CachedResult, Vec<Edit>)>, StoreError> {
        let planner = self.planner;
        let stage = &planner.pipeline.stages[index];
        let known = match planner.inputs(stage, self.done) {
            Ok(Ok(inputs) | Err((inputs, _))) => inputs,
            Err(_) => ResolvedInputs::default(),
        };
        let recipe = planner.recipe(stage, &known);
        let name = stage.kind().name;
        let kept = self.kinds.entry(name).or_insert_with(|| cached_results::of_kind(planner.store, name));
        let mut near: Vec<(usize, usize, CachedResult)> = Vec::new();
        for (age, kept) in kept.iter().enumerate().filter(|(_, kept)| fits(&kept.entry)) {
            near.push((recipe::changes(&recipe, &kept.entry.recipe).len(), age, kept.clone()));
        }
        near.sort_by_key(|(distance, age, _)| (*distance, *age));
        let mut best: Option<(CachedResult, Vec<Edit>)> = None;
        let mut followed = 0;
        for (_, _, kept) in near {
            if followed == FOLLOWED {
                break;
            }
            // A result without its bytes is not a hit.
            if planner.store.lookup(&kept.entry.recipe.fingerprint())?.is_none() {
                continue;
            }
            followed += 1;
            let edits =
                self.edits(index, &recipe::changes(&recipe, &kept.entry.recipe), &kept.entry, depth)?;
            if best.as_ref().is_none_or(|(_, fewest)| edits.len() < fewest.len()) {
                best = Some((kept, edits));
            }
        }
        Ok(best)
    }

    fn edits(
        &mut self,
        index: usize,
        changes: &[Change],
        entry: &Entry,
        depth: usize,
    ) -> Result<Vec<Edit>, StoreError> {
        let planner = self.planner;
        let stage = &planner.pipeline.stages[index];
        let mut edits: Vec<Edit> = Vec::new();
        for change in changes {
            let ports = entry.recipe.inputs.iter();
            let mut ports =
                ports.filter(|(port, _)| change.field == format!("inputs.{}", recipe::key_name(port)));
            let new = match ports.next() {
                Some((port, digest)) => self.input(index, port, digest, depth)?,
                None if change.field.starts_with("params.") => vec![Edit::Param {
                    stage: stage.id.clone(),
                    key: config_key(planner.pipeline, stage, &change.field),
                    place: place(stage, &change.field, self.sources),
                    change: change.clone(),
                }],
                None => vec![Edit::Other { stage: stage.id.clone(), change: change.clone() }],
            };
            for edit in new {
                if !edits.iter().any(|known| same(known, &edit)) {
                    edits.push(edit);
                }
            }
        }
        Ok(edits)
    }

    /// The edits that restore an input: those upstream that give these bytes, if they are cached.
    fn input(
        &mut self,
        index: usize,
        port: &str,
        digest: &Digest,
        depth: usize,
    ) -> Result<Vec<Edit>, StoreError> {
        let planner = self.planner;
        let stage = &planner.pipeline.stages[index];
        let Some(feed) = stage.inputs.get(port) else {
            let change =
                Change { field: format!("inputs.{port}"), old: None, new: Some(digest.short()), reads: None };
            return Ok(vec![Edit::Other { stage: stage.id.clone(), change }]);
        };
        if let (Feed::Port { stage: upstream, port: output, sub, .. }, true) = (feed, depth < DEPTH) {
            let gives = |entry: &Entry| {
                let found = entry.outputs.get(output).map(|artifact| match sub {
                    None => Some(artifact.digest),
                    Some(sub) => planner.store.sub(&artifact.digest, sub).ok().flatten(),
                });
                found.flatten().as_ref() == Some(digest)
            };
            if let Some((_, edits)) = self.best(*upstream, &gives, depth + 1)? {
                return Ok(edits);
            }
        }
        let last = planner.history().last(&stage.id);
        let last = last.filter(|last: &Last<'_>| last.recipe.inputs.get(port) == Some(digest));
        Ok(vec![Edit::Input {
            stage: stage.id.clone(),
            port: port.to_owned(),
            reads: reads(planner, feed),
            digest: *digest,
            run: last.map(|last| last.run.started.clone()),
        }])
    }
}

/// Whether two edits are the same: several stages can read one key of the config.
fn same(a: &Edit, b: &Edit) -> bool {
    match (a, b) {
        (Edit::Param { key: Some(a), change: from, .. }, Edit::Param { key: Some(b), change: to, .. }) => {
            a == b && from.new == to.new
        }
        _ => a == b,
    }
}
