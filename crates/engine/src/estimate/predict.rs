//! Predicts the cost of a run from measurements on this machine and from earlier runs.

use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use serde::Serialize;

use crate::estimate::{Forecast, StageEstimate};
use crate::identity::recipe::Recipe;
use crate::kind::{self, Inputs};
use crate::pipeline::StageNode;
use crate::plan::cached_results::{self, CachedResult};
use crate::plan::{Action, Planner, Reason, ResolvedInputs};
use crate::provenance::manifest::{Outcome, StageRecord};
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
    /// Seconds for all of it.
    seconds: f64,
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

/// Predicts from manifests, and for stages without a record from all results of their kind.
pub struct Predictor<'p> {
    planner: &'p Planner<'p>,
    kinds: RefCell<HashMap<&'static str, Rc<Vec<CachedResult>>>>,
    /// Records of earlier runs by stage, and by the base name of a repeated one; newest first.
    records: OnceCell<HashMap<&'p str, Vec<&'p StageRecord>>>,
    forecast: Option<&'p Forecast>,
}

impl<'p> Predictor<'p> {
    /// A predictor for a planner.
    pub fn new(planner: &'p Planner<'p>) -> Self {
        Self { planner, kinds: RefCell::default(), records: OnceCell::new(), forecast: None }
    }

    /// The same; measurements and shapes take precedence over earlier runs.
    pub fn with(planner: &'p Planner<'p>, forecast: &'p Forecast) -> Self {
        Self { forecast: Some(forecast), ..Self::new(planner) }
    }

    /// The predicted cost of a stage with this action; `None` if it does not run.
    ///
    /// # Errors
    /// A damaged index.
    pub fn predict(&self, stage: &StageNode, verdict: &Action) -> Result<Option<Prediction>, StoreError> {
        let (mut prediction, left) = match verdict {
            Action::Run(_, inputs, reason) => self.run(stage, inputs, matches!(reason, Reason::Forced))?,
            Action::Pending { .. } => (self.whole(stage, None), None),
            Action::Cached(_) | Action::InvalidInput(_) => return Ok(None),
        };
        if let Some(outline) = self.forecast.and_then(|forecast| forecast.of(&stage.id)) {
            apply_measurement(&mut prediction, outline, left.as_ref());
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
    ) -> Result<(Prediction, Option<Remaining>), StoreError> {
        // If the inputs cannot be split into units, the run fails; there is nothing to predict.
        let units = stage.stage.units(&Inputs(inputs.paths.clone()));
        let units = units.unwrap_or(kind::Units::Whole);
        if units == kind::Units::Whole {
            return Ok((self.whole(stage, None), None));
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
        let mut prediction = self.whole(stage, Some(units));
        if cached > 0 && done > 0 {
            prediction.seconds = Some(seconds / done as f64 * steps as f64);
            prediction.basis = format!("its {cached} cached units");
        }
        let tasks = (units.total - units.cached) as u64;
        prediction.tasks = Some(tasks);
        Ok((prediction, Some(Remaining { tasks, steps, chain })))
    }

    /// A prediction from earlier runs of the stage, of another item of the same stage, or of its kind.
    fn whole(&self, stage: &StageNode, units: Option<Units>) -> Prediction {
        let Some(known) = self.known(stage) else {
            return Prediction { units, basis: "no run of its kind".into(), ..Prediction::default() };
        };
        // The time scales with the number of units; the effect of other parameters on a unit is unknown.
        let scaled = units
            .zip(known.units)
            .map(|(now, then)| known.seconds / then.max(1) as f64 * (now.total - now.cached) as f64);
        let part = units.map_or(1.0, |units| (units.total - units.cached) as f64 / units.total.max(1) as f64);
        let seconds = Some(scaled.unwrap_or(known.seconds * part));
        let (bytes, basis) = (Some(known.bytes), known.basis);
        Prediction { seconds, bytes, units, basis, ..Prediction::default() }
    }

    fn known(&self, stage: &StageNode) -> Option<Known> {
        let records = self.records.get_or_init(|| {
            let mut records: HashMap<&str, Vec<&StageRecord>> = HashMap::new();
            for record in self.planner.history().records() {
                let id = record.stage.as_str();
                records.entry(id).or_default().push(record);
                if let Some((base, _)) = id.split_once('[') {
                    records.entry(base).or_default().push(record);
                }
            }
            records
        });
        let of = |name: &str| known(records.get(name)?.iter().copied());
        of(&stage.id).or_else(|| of(&stage.base)).or_else(|| self.of_kind(stage.kind().name))
    }

    /// The median of the kind's results.
    fn of_kind(&self, kind: &'static str) -> Option<Known> {
        let mut kinds = self.kinds.borrow_mut();
        let kept =
            kinds.entry(kind).or_insert_with(|| Rc::new(cached_results::of_kind(self.planner.store, kind)));
        let computed = kept.iter().filter(|kept| kept.entry.adopted.is_none());
        let mut seconds: Vec<f64> = computed.clone().map(|kept| kept.entry.seconds).collect();
        let mut bytes: Vec<u64> =
            computed.map(|kept| kept.entry.outputs.values().map(|artifact| artifact.size).sum()).collect();
        seconds.sort_by(f64::total_cmp);
        bytes.sort_unstable();
        let middle = seconds.len() / 2;
        let basis = match seconds.len() {
            1 => format!("the only result of the kind {kind}"),
            count => format!("the median of {count} results of the kind {kind}"),
        };
        Some(Known { seconds: *seconds.get(middle)?, bytes: bytes[middle], units: None, basis })
    }
}

/// Replaces the figures of earlier runs by measurements and shapes; `left` are the tasks and steps that are not cached.
fn apply_measurement(prediction: &mut Prediction, outline: &StageEstimate, left: Option<&Remaining>) {
    let Ok(estimate) = &outline.estimate else { return };
    if let Some(bytes) = estimate.bytes() {
        prediction.bytes = Some(bytes);
        let units = prediction.units;
        let part = units.map_or(1.0, |units| (units.total - units.cached) as f64 / units.total.max(1) as f64);
        prediction.disk = Some(bytes + (estimate.parts as f64 * part) as u64);
    }
    let Some(work) = &estimate.work else { return };
    let (tasks, steps) = left.map_or((work.tasks, work.steps), |left| (left.tasks, left.steps));
    prediction.tasks = Some(tasks);
    if let (Some(seconds), Some(measured)) = (outline.seconds(tasks, steps), outline.measured) {
        prediction.seconds = Some(seconds);
        prediction.joining = measured.merge * estimate.parts as f64;
        prediction.host_memory = Some(measured.host);
        prediction.device_memory = Some(measured.device);
        prediction.basis = "a measurement on this machine".into();
    }
}

/// The newest record with a computing time.
fn known<'r>(records: impl Iterator<Item = &'r StageRecord>) -> Option<Known> {
    let done = |record: &&StageRecord| {
        matches!(record.outcome, Outcome::Ran | Outcome::Cached) && record.adopted.is_none()
    };
    let mut fallback = None;
    for record in records.filter(done) {
        let bytes = record.outputs.values().map(|artifact| artifact.size).sum();
        let basis = format!("the last run of {}", record.stage);
        match record.outcome {
            // It records over how many units its seconds are summed.
            Outcome::Ran if record.units_run > 0 => {
                let units = record.units_run + record.units_cached;
                let seconds = record.seconds / record.units_run as f64 * units as f64;
                return Some(Known { seconds, bytes, units: Some(units), basis });
            }
            Outcome::Cached if fallback.is_none() => {
                fallback = Some(Known { seconds: record.seconds, bytes, units: None, basis });
            }
            _ => {}
        }
    }
    fallback
}
