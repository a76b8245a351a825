//! Estimates of a run's cost: from the shapes of inputs and outputs, and from measurements on this machine.
//!
//! The shapes of a stage follow from those of the stages before it, so only the networks' files must exist. A
//! measurement depends on its key, which includes the machine, and is cached for later plans.

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

pub use crate::worker::measure::{MeasureBackend, MeasureRequest};
pub use makespan::{Job, wall};
pub use measure::{MeasureEvent, measure};
pub use measurements::{CostCache, Key};

/// The conditions of a run that change its time but no result.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct MachineProfile {
    /// Parallel workers.
    pub jobs: usize,
    /// Threads of each.
    pub threads: usize,
    /// Maximum rows per forward pass.
    pub micro_batch: usize,
    /// The names of processor and devices.
    pub hardware: String,
    /// The pools of a cluster, by the stage kinds that they compute in place of this machine.
    #[serde(skip)]
    pub pools: BTreeMap<String, PoolProfile>,
}

/// The workers of a pool, as far as they change a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolProfile {
    /// The pool.
    pub name: String,
    /// Its workers.
    pub jobs: usize,
    /// Threads of each.
    pub threads: usize,
    /// What the scheduler is asked for: partition, GPUs and the like.
    pub request: String,
}

impl MachineProfile {
    /// The conditions of a kind.
    fn of_kind(&self, kind: &str) -> Self {
        let mut own = Self { pools: BTreeMap::new(), ..self.clone() };
        if let Some(PoolProfile { name: _, jobs, threads, request }) = self.pools.get(kind) {
            (own.jobs, own.threads, own.hardware) = (*jobs, *threads, request.clone());
        }
        own
    }
}

/// The estimate of a stage that would run.
#[derive(Debug)]
pub struct StageEstimate {
    /// The stage.
    pub stage: usize,
    /// The shapes of its inputs.
    pub inputs: ExpectedInputs,
    /// Its outputs and cost; or why they are unknown.
    pub estimate: Result<Estimate, String>,
    /// The key of its measurement; `None` if it cannot be measured.
    pub key: Option<Key>,
    /// Its measurement.
    pub measured: Option<CostModel>,
}

impl StageEstimate {
    /// Computing time in seconds for this many tasks and steps in total, summed over the tasks; `None` without a
    /// measurement.
    pub fn seconds(&self, tasks: u64, steps: u64) -> Option<f64> {
        let (CostModel { task, step, merge, .. }, Ok(estimate)) = (self.measured?, &self.estimate) else {
            return None;
        };
        Some(tasks as f64 * task + steps as f64 * step + estimate.parts as f64 * merge)
    }
}

/// The stages that would run, or might.
pub struct Forecast {
    outlines: BTreeMap<usize, StageEstimate>,
    /// As in [`MachineProfile`].
    pools: BTreeMap<String, PoolProfile>,
    places: HashMap<String, usize>,
}

impl Forecast {
    /// Outlines every stage that is not cached; the actions are in topological order.
    pub fn new(planner: &Planner<'_>, actions: &[(usize, Action)], circumstances: &MachineProfile) -> Self {
        let kept = CostCache::of(planner.store);
        let mut cached: BTreeMap<usize, &Entry> = BTreeMap::new();
        let mut outlines: BTreeMap<usize, StageEstimate> = BTreeMap::new();
        for (index, action) in actions {
            let node = &planner.pipeline.stages[*index];
            let inputs = match action {
                Action::Cached(entry) => {
                    cached.insert(*index, entry);
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
                Action::Pending { .. } => expected_inputs(planner, node, &cached, &outlines),
            };
            let estimate = node.stage.estimate(&inputs).map_err(|error| describe(&error));
            let work = estimate.as_ref().ok().and_then(|estimate| estimate.work.as_ref());
            let key = work.filter(|work| !work.cost_key.is_null()).map(|work| Key {
                kind: node.kind().name.to_owned(),
                version: node.kind().version,
                like: work.cost_key.clone(),
                numerics: planner.numerics.clone(),
                circumstances: circumstances.of_kind(node.kind().name),
            });
            let measured = key.as_ref().and_then(|key| kept.find(key));
            outlines.insert(*index, StageEstimate { stage: *index, inputs, estimate, key, measured });
        }
        let name = |index: &usize| (planner.pipeline.stages[*index].id.clone(), *index);
        let places = outlines.keys().map(name).collect();
        Self { outlines, pools: circumstances.pools.clone(), places }
    }

    /// The pool of a cluster that computes a kind; `None` where this machine does.
    pub fn pool(&self, kind: &str) -> Option<&PoolProfile> {
        self.pools.get(kind)
    }

    /// The estimate of a stage; `None` if it does not run.
    pub fn of(&self, stage: &str) -> Option<&StageEstimate> {
        self.outlines.get(self.places.get(stage)?)
    }

    /// All estimates, in the pipeline's order.
    pub fn outlines(&self) -> impl Iterator<Item = &StageEstimate> {
        self.outlines.values()
    }
}

/// The known shapes of the inputs of a pending stage.
fn expected_inputs(
    planner: &Planner<'_>,
    node: &StageNode,
    cached: &BTreeMap<usize, &Entry>,
    outlines: &BTreeMap<usize, StageEstimate>,
) -> ExpectedInputs {
    let mut found = ExpectedInputs::default();
    for (port, source) in &node.inputs {
        let (form, stage) = match source {
            Source::File(path) => (Some(ArtifactShape::Path(path.clone())), None),
            Source::Port { stage, port: output, sub, .. } => {
                let upstream = &planner.pipeline.stages[*stage];
                let form = match (cached.get(stage), outlines.get(stage)) {
                    (Some(entry), _) => entry.outputs.get(output).map(|artifact| {
                        let path = planner.store.path(&artifact.digest);
                        ArtifactShape::Path(sub.as_ref().map_or(path.clone(), |sub| path.join(sub)))
                    }),
                    (None, Some(StageEstimate { estimate: Ok(estimate), .. })) if sub.is_none() => {
                        estimate.outputs.get(output).cloned()
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
