//! What a run would take, from what earlier ones took.

use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use serde::Serialize;

use super::index::{self, Kept};
use crate::manifest::{Outcome, StageRecord};
use crate::pipeline::StageNode;
use crate::plan::{Planner, Reason, Resolved, Verdict};
use crate::stage::{Inputs, Unit};
use crate::store::StoreError;

/// What computing a stage would take.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Prediction {
    /// Seconds of computing, summed over units; `None` where nothing is known.
    pub seconds: Option<f64>,
    /// Bytes of its outputs; `None` where nothing is known.
    pub bytes: Option<u64>,
    /// The units that would compute and all there are; `None` for a stage of one piece, or where they depend on
    /// what runs before.
    pub units: Option<Units>,
    /// What it rests on, for people.
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

/// What is known of a stage from an earlier time.
struct Known {
    /// Seconds for all of it.
    seconds: f64,
    bytes: u64,
    /// Its units, where that is known.
    units: Option<usize>,
    basis: String,
}

/// Predicts from manifests and, where they know nothing of a stage, from all results of its kind.
pub struct Predictor<'p> {
    planner: &'p Planner<'p>,
    kinds: RefCell<HashMap<&'static str, Rc<Vec<Kept>>>>,
    /// Records of earlier runs by stage, and by the name of a repeated one; newest first.
    records: OnceCell<HashMap<&'p str, Vec<&'p StageRecord>>>,
}

impl<'p> Predictor<'p> {
    /// A predictor beside a planner.
    pub fn new(planner: &'p Planner<'p>) -> Self {
        Self { planner, kinds: RefCell::default(), records: OnceCell::new() }
    }

    /// What a stage with this verdict would take; `None` for one that does not run.
    ///
    /// # Errors
    /// A damaged index.
    pub fn predict(&self, stage: &StageNode, verdict: &Verdict) -> Result<Option<Prediction>, StoreError> {
        match verdict {
            Verdict::Run(_, inputs, reason) => {
                self.run(stage, inputs, matches!(reason, Reason::Forced)).map(Some)
            }
            Verdict::Wait { .. } => Ok(Some(self.whole(stage, None))),
            Verdict::Reuse(_) | Verdict::Fail(_) => Ok(None),
        }
    }

    fn run(&self, stage: &StageNode, inputs: &Resolved, forced: bool) -> Result<Prediction, StoreError> {
        // Inputs that cannot be cut into units make the run fail; a prediction has nothing to say to that.
        let units = stage.kind.units(&stage.params, &Inputs(inputs.paths.clone())).ok().flatten();
        let Some(units) = units else { return Ok(self.whole(stage, None)) };
        let (mut cached, mut seconds, mut done, mut left) = (0, 0.0, 0, 0);
        for unit in &units {
            let found = if forced { None } else { self.unit(stage, inputs, unit)? };
            match found {
                Some(spent) => {
                    cached += 1;
                    seconds += spent;
                    done += unit.steps;
                }
                None => left += unit.steps,
            }
        }
        let units = Units { cached, total: units.len() };
        let mut prediction = self.whole(stage, Some(units));
        if cached > 0 && done > 0 {
            prediction.seconds = Some(seconds / done as f64 * left as f64);
            prediction.basis = format!("its {cached} cached units");
        }
        Ok(prediction)
    }

    /// Seconds that a cached unit took.
    fn unit(&self, stage: &StageNode, inputs: &Resolved, unit: &Unit) -> Result<Option<f64>, StoreError> {
        let recipe = self.planner.unit_recipe(stage, inputs, unit);
        Ok(self.planner.store.lookup(&recipe.fingerprint())?.map(|entry| entry.seconds))
    }

    /// A prediction from earlier runs of the stage, of one of the same name for another item, or of its kind.
    fn whole(&self, stage: &StageNode, units: Option<Units>) -> Prediction {
        let Some(known) = self.known(stage) else {
            return Prediction {
                units,
                basis: "nothing of its kind has run".into(),
                ..Prediction::default()
            };
        };
        // A unit is what scales; how long one takes with other parameters is not known better than this.
        let scaled = units
            .zip(known.units)
            .map(|(now, then)| known.seconds / then.max(1) as f64 * (now.total - now.cached) as f64);
        let part = units.map_or(1.0, |units| (units.total - units.cached) as f64 / units.total.max(1) as f64);
        let seconds = Some(scaled.unwrap_or(known.seconds * part));
        Prediction { seconds, bytes: Some(known.bytes), units, basis: known.basis }
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
        of(&stage.id).or_else(|| of(&stage.base)).or_else(|| self.of_kind(stage.kind.name()))
    }

    /// The middle one of the kind's results.
    fn of_kind(&self, kind: &'static str) -> Option<Known> {
        let mut kinds = self.kinds.borrow_mut();
        let kept = kinds.entry(kind).or_insert_with(|| Rc::new(index::of_kind(self.planner.store, kind)));
        let computed = kept.iter().filter(|kept| kept.entry.adopted.is_none());
        let mut seconds: Vec<f64> = computed.clone().map(|kept| kept.entry.seconds).collect();
        let mut bytes: Vec<u64> =
            computed.map(|kept| kept.entry.outputs.values().map(|artifact| artifact.size).sum()).collect();
        seconds.sort_by(f64::total_cmp);
        bytes.sort_unstable();
        let middle = seconds.len() / 2;
        let basis = match seconds.len() {
            1 => format!("the one result of the kind {kind}"),
            count => format!("the median of {count} results of the kind {kind}"),
        };
        Some(Known { seconds: *seconds.get(middle)?, bytes: bytes[middle], units: None, basis })
    }
}

/// The newest of the records that tells how long the stage took.
fn known<'r>(records: impl Iterator<Item = &'r StageRecord>) -> Option<Known> {
    let done = |record: &&StageRecord| {
        matches!(record.outcome, Outcome::Ran | Outcome::Reused) && record.adopted.is_none()
    };
    let mut fallback = None;
    for record in records.filter(done) {
        let bytes = record.outputs.values().map(|artifact| artifact.size).sum();
        let basis = format!("the last run of {}", record.stage);
        match record.outcome {
            // Which says how many units its seconds were spent on.
            Outcome::Ran if record.units_run > 0 => {
                let units = record.units_run + record.units_reused;
                let seconds = record.seconds / record.units_run as f64 * units as f64;
                return Some(Known { seconds, bytes, units: Some(units), basis });
            }
            Outcome::Reused if fallback.is_none() => {
                fallback = Some(Known { seconds: record.seconds, bytes, units: None, basis });
            }
            _ => {}
        }
    }
    fallback
}
