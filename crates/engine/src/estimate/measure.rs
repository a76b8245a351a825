//! Has workers measure what stages would take.

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::{CostCache, Forecast, StageEstimate};
use crate::kind::ExpectedInputs;
use crate::plan::Planner;
use crate::store::StoreError;
use crate::worker::measure::CostModel;

/// What a worker is asked to measure.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MeasureRequest {
    /// The stage kind.
    pub kind: String,
    /// Its parameters.
    pub params: Json,
    /// What stands on its inputs, or will.
    pub inputs: ExpectedInputs,
}

/// Measures with as many workers at once as a run would have: they share the machine's memory and its bandwidth.
pub trait MeasureBackend {
    /// What each of the workers found.
    ///
    /// # Errors
    /// Why one of them found nothing.
    fn measure(&self, ask: &MeasureRequest) -> Result<Vec<CostModel>, String>;
}

/// What is told while stages are measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MeasureEvent {
    /// A stage is being measured.
    Measuring(String),
    /// It could not be, and why.
    Not(String, String),
}

/// Measures every stage that is outlined, those that are alike once, and keeps what was found.
///
/// # Errors
/// A cache that cannot be written.
pub fn measure(
    forecast: &mut Forecast,
    planner: &Planner<'_>,
    bench: &dyn MeasureBackend,
    said: &mut dyn FnMut(MeasureEvent),
) -> Result<(), StoreError> {
    let mut kept = CostCache::of(planner.store);
    let mut fresh = Vec::new();
    for outline in forecast.outlines.values_mut() {
        let node = &planner.pipeline.stages[outline.stage];
        let key = match &outline.foreseen {
            Err(why) => {
                said(MeasureEvent::Not(node.id.clone(), why.clone()));
                continue;
            }
            Ok(_) => match &outline.key {
                Some(key) => key.clone(),
                // A kind that is not measured.
                None => continue,
            },
        };
        if let Some((_, found)) = fresh.iter().find(|(other, _)| *other == key) {
            outline.measured = *found;
            continue;
        }
        said(MeasureEvent::Measuring(node.id.clone()));
        let ask = MeasureRequest {
            kind: key.kind.clone(),
            params: node.stage.to_json(),
            inputs: outline.inputs.clone(),
        };
        outline.measured = match bench.measure(&ask).map(|found| together(&found)) {
            Ok(Some(measured)) => {
                kept.keep(&key, measured)?;
                Some(measured)
            }
            Ok(None) => None,
            Err(why) => {
                said(MeasureEvent::Not(node.id.clone(), why));
                None
            }
        };
        let StageEstimate { measured, .. } = outline;
        fresh.push((key, *measured));
    }
    Ok(())
}

/// The mean of times, and the most memory.
fn together(found: &[CostModel]) -> Option<CostModel> {
    let mean = |of: fn(&CostModel) -> f64| found.iter().map(of).sum::<f64>() / found.len() as f64;
    let most = |of: fn(&CostModel) -> u64| found.iter().map(of).max();
    Some(CostModel {
        start: mean(|one| one.start),
        task: mean(|one| one.task),
        step: mean(|one| one.step),
        merge: mean(|one| one.merge),
        host: most(|one| one.host)?,
        device: most(|one| one.device)?,
    })
}
