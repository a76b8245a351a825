//! Predicts the cost of a run from measurements on this machine and from earlier runs.

use std::cell::OnceCell;
use std::collections::HashMap;

use serde::Serialize;

use crate::estimate::{Forecast, PoolProfile, StageEstimate};
use crate::identity::recipe::Recipe;
use crate::kind::{self, ArtifactShape, Inputs, WorkSize};
use crate::pipeline::StageNode;
use crate::plan::{Action, Planner, Reason, ResolvedInputs};
use crate::provenance::manifest::{Manifest, Outcome, StageRecord};
use crate::store::StoreError;

/// The predicted cost of a stage.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Prediction {
    /// Computing time in seconds, summed over units; `None` if unknown.
    pub seconds: Option<f64>,
    /// The part of it that the merge takes, which runs alone at the end.
    pub joining: f64,
    /// Bytes of its outputs; `None` if unknown.
    pub bytes: Option<u64>,
    /// Bytes that the cache keeps: the outputs and the parts of the units to compute; `None` if unknown.
    pub disk: Option<u64>,
    /// Maximum memory in bytes of each of its workers; `None` without a measurement.
    pub host_memory: Option<u64>,
    /// Maximum device memory in bytes of each of its workers; `None` without a measurement.
    pub device_memory: Option<u64>,
    /// Steps to compute, in the sense of [`kind::Unit::steps`]; `None` if unknown.
    pub steps: Option<u64>,
    /// Tasks that could run in parallel; `None` if unknown.
    pub tasks: Option<u64>,
    /// The units to compute, and all units; `None` for a stage without units, or if they depend on pending stages.
    pub units: Option<Units>,
    /// The basis of the prediction, for people.
    pub basis: String,
}

/// Units of a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Units {
    /// Those in the cache.
    pub cached: usize,
    /// All.
    pub total: usize,
}

/// A stage in an earlier run.
struct Known {
    /// Seconds for all of it; `None` if its work cannot be compared with that of now.
    seconds: Option<f64>,
    bytes: u64,
    /// Its units, if known.
    units: Option<usize>,
    basis: String,
}

/// The units of a stage that are still to be computed.
struct Remaining {
    tasks: u64,
    steps: u64,
    /// Whether they run one after the other.
    chain: bool,
}

/// A record, and the run that it is of.
type InRun<'p> = (&'p StageRecord, &'p Manifest);

/// Predicts from the manifests of earlier runs: the time of a stage scales with its known work.
pub struct Predictor<'p> {
    pub(crate) planner: &'p Planner<'p>,
    /// Records of earlier runs by stage, and by the base name of a repeated one; newest first.
    records: OnceCell<HashMap<&'p str, Vec<InRun<'p>>>>,
    forecast: &'p Forecast,
}

impl<'p> Predictor<'p> {
    /// A predictor for a planner, and for what is known of the stages that would run: its measurements and shapes take
    /// precedence over earlier runs.
    pub fn new(planner: &'p Planner<'p>, forecast: &'p Forecast) -> Self {
        Self { planner, records: OnceCell::new(), forecast }
    }

    /// The predicted cost of a stage with this action; `None` if it does not run.
    ///
    /// # Errors
    /// A damaged index.
    pub fn predict(&self, stage: &StageNode, verdict: &Action) -> Result<Option<Prediction>, StoreError> {
        let changed = match verdict {
            Action::Run(_, _, reason) | Action::Pending { certain: Some(reason), .. } => {
                matches!(reason, Reason::First | Reason::Changed { .. } | Reason::OtherDevice { .. })
            }
            _ => false,
        };
        let (mut prediction, left) = match verdict {
            Action::Run(_, inputs, reason) => {
                self.run(stage, inputs, matches!(reason, Reason::Forced), changed)?
            }
            Action::Pending { .. } => (self.whole(stage, None, changed), None),
            Action::Cached(_) | Action::InvalidInput(_) => return Ok(None),
        };
        if let Some(outline) = self.forecast.of(&stage.id) {
            apply_measurement(&mut prediction, outline, left.as_ref(), self.forecast.pool(stage.kind().name));
        }
        // The units of a chain run one after the other.
        if left.is_some_and(|left| left.chain) {
            prediction.tasks = prediction.tasks.map(|tasks| tasks.min(1));
        }
        Ok(Some(prediction))
    }

    /// The prediction, and the remaining work of a stage with units.
    fn run(
        &self,
        stage: &StageNode,
        inputs: &ResolvedInputs,
        forced: bool,
        changed: bool,
    ) -> Result<(Prediction, Option<Remaining>), StoreError> {
        // If the inputs cannot be split into units, the run fails; there is nothing to predict.
        let units = stage.stage.units(&Inputs(inputs.paths.clone()));
        let units = units.unwrap_or(kind::Units::Whole);
        if units == kind::Units::Whole {
            return Ok((self.whole(stage, None, changed), None));
        }
        let mut lookup = |_: &_, recipe: &Recipe| match forced {
            true => Ok(None),
            false => self.planner.store.lookup(&recipe.fingerprint()),
        };
        let (_, entries) = self.planner.unit_entries(stage, inputs, &units, &mut lookup)?;
        let chain = matches!(units, kind::Units::Chain(_));
        let units = units.list();
        let (mut cached, mut seconds, mut done, mut steps) = (0, 0.0, 0, 0);
        for (unit, entry) in units.iter().zip(entries) {
            match entry {
                Some(entry) => {
                    cached += 1;
                    seconds += entry.seconds;
                    done += unit.steps;
                }
                None => steps += unit.steps,
            }
        }
        let units = Units { cached, total: units.len() };
        let mut prediction = self.whole(stage, Some(units), changed);
        if cached > 0 && done > 0 {
            prediction.seconds = Some(seconds / done as f64 * steps as f64);
            prediction.basis = format!("its {cached} cached units");
        }
        let tasks = (units.total - units.cached) as u64;
        prediction.tasks = Some(tasks);
        Ok((prediction, Some(Remaining { tasks, steps, chain })))
    }

    /// A prediction from earlier runs of the stage, of another item of the same stage, or of its kind.
    fn whole(&self, stage: &StageNode, units: Option<Units>, changed: bool) -> Prediction {
        let Some(known) = self.known(stage, changed) else {
            return Prediction {
                units,
                basis: "no earlier run of the stage".into(),
                ..Prediction::default()
            };
        };
        let Some(seconds) = known.seconds else {
            let basis = format!("{}, whose work was of another kind", known.basis);
            return Prediction { units, basis, ..Prediction::default() };
        };
        // The time scales with the number of units, where nothing better is known.
        let scaled = units
            .zip(known.units)
            .map(|(now, then)| seconds / then.max(1) as f64 * (now.total - now.cached) as f64);
        let part = units.map_or(1.0, |units| (units.total - units.cached) as f64 / units.total.max(1) as f64);
        let seconds = Some(scaled.unwrap_or(seconds * part));
        let (bytes, basis) = (Some(known.bytes), known.basis);
        Prediction { seconds, bytes, units, basis, ..Prediction::default() }
    }

    fn known(&self, stage: &StageNode, changed: bool) -> Option<Known> {
        let records = self.records.get_or_init(|| {
            let mut records: HashMap<&str, Vec<InRun<'_>>> = HashMap::new();
            for (record, run) in self.planner.history().records() {
                let id = record.stage.as_str();
                records.entry(id).or_default().push((record, run));
                if let Some((base, _)) = id.split_once('[') {
                    records.entry(base).or_default().push((record, run));
                }
            }
            records
        });
        let of = |name: &str| {
            let pool = self.forecast.pool(stage.kind().name).map(|pool| pool.name.as_str());
            let (record, run, mut known) = known(records.get(name)?.iter().copied(), pool)?;
            match self.scale(stage, record, run, changed) {
                Scale::Same => {}
                Scale::Other => known.seconds = None,
                Scale::By(factor) => {
                    known.seconds = known.seconds.map(|seconds| seconds * factor);
                    // The factor counts the units already.
                    known.units = None;
                }
            }
            Some(known)
        };
        of(&stage.id).or_else(|| of(&stage.base))
    }

    /// The work of a stage now, compared with that of an earlier run.
    ///
    /// Where the kind does not know its work, it is that of the earlier run only if nothing `changed`, or as its outputs grow.
    fn scale(&self, stage: &StageNode, record: &StageRecord, run: &Manifest, changed: bool) -> Scale {
        let unknown =
            if changed || record.params != stage.stage.recorded() { Scale::Other } else { Scale::Same };
        let Some(outline) = self.forecast.of(&stage.id) else { return unknown };
        let Ok(now) = &outline.estimate else { return unknown };
        // The work of the earlier parameters on the inputs of now.
        let before = stage
            .kind()
            .from_json(&record.params)
            .ok()
            .and_then(|before| before.estimate(&outline.inputs).ok());
        let Some(before) = before else { return unknown };
        let Some(now) = &now.work else {
            let grown = now.bytes().zip(before.bytes()).filter(|(_, before)| *before > 0);
            return grown.map_or(unknown, |(now, before)| Scale::By(now as f64 / before as f64));
        };
        let Some(before) = before.work else { return Scale::Other };
        let same_device = !stage.kind().libtorch || run.numerics.device == self.planner.numerics.device;
        let same_cost = before.cost_key == now.cost_key && !now.cost_key.is_null();
        let same = same_device && same_cost && self.same_sizes(stage, outline, record, run);
        let steps = |work: &WorkSize| (work.steps + work.extra) as f64;
        match same && before.steps > 0 {
            true => Scale::By(steps(now) / steps(&before)),
            false => Scale::Other,
        }
    }

    /// Whether the inputs from other stages have about the sizes that they had.
    fn same_sizes(
        &self,
        stage: &StageNode,
        outline: &StageEstimate,
        record: &StageRecord,
        run: &Manifest,
    ) -> bool {
        record.reads.iter().filter(|(_, reads)| reads.below.is_none()).all(|(port, reads)| {
            let upstream = run.stages.iter().find(|upstream| upstream.stage == reads.stage);
            let before =
                upstream.and_then(|upstream| upstream.outputs.get(&reads.port)).map(|found| found.size);
            let now = match outline.inputs.shapes.get(port) {
                Some(ArtifactShape::Path(path)) if path.is_file() => {
                    fs_err::metadata(path).ok().map(|found| found.len())
                }
                Some(ArtifactShape::Path(_)) => return true,
                Some(shape) => shape.bytes(),
                None => return !stage.inputs.contains_key(port),
            };
            before.zip(now).is_none_or(|(before, now)| before.abs_diff(now) <= before / 10 + 1024)
        })
    }
}

/// How the work of a stage compares with an earlier run.
enum Scale {
    /// It is the same work, as far as is known.
    Same,
    /// It is work of another kind: another network, device, precision or data set.
    Other,
    /// So many times the work.
    By(f64),
}

/// Replaces the figures of earlier runs by measurements and shapes; `left` are the tasks and steps that are not cached.
fn apply_measurement(
    prediction: &mut Prediction,
    outline: &StageEstimate,
    left: Option<&Remaining>,
    pool: Option<&PoolProfile>,
) {
    let Ok(estimate) = &outline.estimate else { return };
    if let Some(bytes) = estimate.bytes() {
        prediction.bytes = Some(bytes);
        let units = prediction.units;
        let part = units.map_or(1.0, |units| (units.total - units.cached) as f64 / units.total.max(1) as f64);
        prediction.disk = Some(bytes + (estimate.parts as f64 * part) as u64);
    }
    let Some(work) = &estimate.work else { return };
    let (tasks, steps) = left.map_or((work.tasks, work.steps), |left| (left.tasks, left.steps));
    (prediction.tasks, prediction.steps) = (Some(tasks), Some(steps));
    // Units that are computed together cost one task.
    if let (Some(seconds), Some(measured)) = (outline.seconds(tasks.min(work.tasks), steps), outline.measured)
    {
        prediction.seconds = Some(seconds);
        prediction.joining = measured.merge * estimate.parts as f64;
        prediction.host_memory = Some(measured.host);
        prediction.device_memory = Some(measured.device);
        prediction.basis = match pool {
            Some(pool) => format!("a measurement on a node of pool {}", pool.name),
            None => "a measurement on this machine".into(),
        };
    }
}

/// The newest record with a computing time, of the same pool of a cluster, or of this machine.
fn known<'r>(
    records: impl Iterator<Item = InRun<'r>>,
    pool: Option<&str>,
) -> Option<(&'r StageRecord, &'r Manifest, Known)> {
    let done = |(record, _): &InRun<'_>| {
        let same_place = match (pool, &record.workers) {
            (Some(pool), Some(workers)) => workers.pools.contains(pool),
            (None, None) => true,
            // Of a cached stage it is not known.
            (Some(_), None) | (None, Some(_)) => false,
        };
        same_place && matches!(record.outcome, Outcome::Ran | Outcome::Cached) && record.adopted.is_none()
    };
    let mut fallback = None;
    for (record, run) in records.filter(done) {
        let bytes = record.outputs.values().map(|artifact| artifact.size).sum();
        let basis = format!("the last run of {}", record.stage);
        match record.outcome {
            // It records over how many units its seconds are summed.
            Outcome::Ran if record.units_run > 0 => {
                let units = record.units_run + record.units_cached;
                let seconds = record.seconds / record.units_run as f64 * units as f64;
                return Some((
                    record,
                    run,
                    Known { seconds: Some(seconds), bytes, units: Some(units), basis },
                ));
            }
            Outcome::Cached if fallback.is_none() => {
                fallback =
                    Some((record, run, Known { seconds: Some(record.seconds), bytes, units: None, basis }));
            }
            _ => {}
        }
    }
    fallback
}
