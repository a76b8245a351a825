//! What a run would take, from what is known before it: forms of inputs and outputs, and measurements on this machine.
//!
//! A stage's forms follow from those of the stages before it, so all that is needed is that the networks' files are there. A
//! measurement belongs to all that its numbers depend on, the machine among it, and is kept in the cache for later plans.

pub mod makespan;
mod measure;
mod measurements;
pub mod predict;

use std::collections::{BTreeMap, HashMap};

use crate::kind::{ArtifactShape, Estimate, ExpectedInputs, describe};
use crate::pipeline::{Source, StageNode};
use crate::plan::{Action, Planner};
use crate::store::Entry;
use crate::worker::measure::CostModel;

pub use makespan::{Job, wall};
pub use measure::{MeasureBackend, MeasureEvent, MeasureRequest, measure};
pub use measurements::{CostCache, Key};

/// Under what a run would compute: none of it changes a result, all of it the time.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct MachineProfile {
    /// Workers at once.
    pub jobs: usize,
    /// Threads of each.
    pub threads: usize,
    /// Most rows that go through a network at once.
    pub micro_batch: usize,
    /// What computes: the names of processor and devices.
    pub hardware: String,
}

/// What is known of a stage that would run.
#[derive(Debug)]
pub struct StageEstimate {
    /// The stage.
    pub stage: usize,
    /// What stands on its inputs, or will.
    pub inputs: ExpectedInputs,
    /// What it gives and takes; or why that is not known.
    pub foreseen: Result<Estimate, String>,
    /// What a measurement of it is kept under; `None` where there is nothing to measure.
    pub key: Option<Key>,
    /// What was measured.
    pub measured: Option<CostModel>,
}

impl StageEstimate {
    /// Seconds of computing for so many tasks and steps of all, summed over the tasks; `None` where nothing was measured.
    pub fn seconds(&self, tasks: u64, steps: u64) -> Option<f64> {
        let (CostModel { task, step, merge, .. }, Ok(foreseen)) = (self.measured?, &self.foreseen) else {
            return None;
        };
        Some(tasks as f64 * task + steps as f64 * step + foreseen.parts as f64 * merge)
    }
}

/// The stages that would run, or may.
pub struct Forecast {
    outlines: BTreeMap<usize, StageEstimate>,
    places: HashMap<String, usize>,
}

impl Forecast {
    /// Outlines every stage that does not just reuse a result; the verdicts are in the order of the graph.
    pub fn new(planner: &Planner<'_>, verdicts: &[(usize, Action)], circumstances: &MachineProfile) -> Self {
        let kept = CostCache::of(planner.store);
        let mut reused: BTreeMap<usize, &Entry> = BTreeMap::new();
        let mut outlines: BTreeMap<usize, StageEstimate> = BTreeMap::new();
        for (index, verdict) in verdicts {
            let node = &planner.pipeline.stages[*index];
            let inputs = match verdict {
                Action::Cached(entry) => {
                    reused.insert(*index, entry);
                    continue;
                }
                Action::InvalidInput(_) => continue,
                Action::Run(_, inputs, _) => ExpectedInputs {
                    shapes: inputs
                        .paths
                        .iter()
                        .map(|(port, path)| (port.clone(), ArtifactShape::Path(path.clone())))
                        .collect(),
                    unknown: BTreeMap::new(),
                },
                Action::Pending { .. } => outlook(planner, node, &reused, &outlines),
            };
            let foreseen = node.stage.estimate(&inputs).map_err(|error| describe(&error));
            let key = foreseen.as_ref().ok().and_then(|foreseen| foreseen.work.as_ref()).map(|work| Key {
                kind: node.kind().name.to_owned(),
                version: node.kind().version,
                like: work.cost_key.clone(),
                numerics: planner.numerics.clone(),
                circumstances: circumstances.clone(),
            });
            let measured = key.as_ref().and_then(|key| kept.find(key));
            outlines.insert(*index, StageEstimate { stage: *index, inputs, foreseen, key, measured });
        }
        let name = |index: &usize| (planner.pipeline.stages[*index].id.clone(), *index);
        let places = outlines.keys().map(name).collect();
        Self { outlines, places }
    }

    /// What is known of a stage; `None` for one that does not run.
    pub fn of(&self, stage: &str) -> Option<&StageEstimate> {
        self.outlines.get(self.places.get(stage)?)
    }

    /// All that is known, in the pipeline's order.
    pub fn outlines(&self) -> impl Iterator<Item = &StageEstimate> {
        self.outlines.values()
    }
}

/// What is known of the inputs of a stage that waits for others.
fn outlook(
    planner: &Planner<'_>,
    node: &StageNode,
    reused: &BTreeMap<usize, &Entry>,
    outlines: &BTreeMap<usize, StageEstimate>,
) -> ExpectedInputs {
    let mut found = ExpectedInputs::default();
    for (port, source) in &node.inputs {
        let (form, stage) = match source {
            Source::File(path) => (Some(ArtifactShape::Path(path.clone())), None),
            Source::Port { stage, port: output, sub, .. } => {
                let upstream = &planner.pipeline.stages[*stage];
                let form = match (reused.get(stage), outlines.get(stage)) {
                    (Some(entry), _) => entry.outputs.get(output).map(|artifact| {
                        let path = planner.store.path(&artifact.digest);
                        ArtifactShape::Path(sub.as_ref().map_or(path.clone(), |sub| path.join(sub)))
                    }),
                    (None, Some(StageEstimate { foreseen: Ok(foreseen), .. })) if sub.is_none() => {
                        foreseen.outputs.get(output).cloned()
                    }
                    _ => None,
                };
                let already = || upstream.stage.source_path(output, sub.as_deref()).map(ArtifactShape::Path);
                (form.or_else(already), Some(upstream.id.clone()))
            }
        };
        match (form, stage) {
            (Some(form), _) => _ = found.shapes.insert(port.clone(), form),
            (None, Some(stage)) => _ = found.unknown.insert(port.clone(), stage),
            (None, None) => {}
        }
    }
    found
}
