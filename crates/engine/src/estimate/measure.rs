//! Measures stages with workers.

use super::{CostCache, Forecast, StageEstimate};
use crate::plan::Planner;
use crate::store::StoreError;
use crate::worker::measure::{CostModel, MeasureBackend, MeasureRequest};

/// Progress while stages are measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MeasureEvent {
    /// A stage is being measured.
    Measuring(String),
    /// It could not be measured, and why.
    Not(String, String),
}

/// Measures every outlined stage, those with equal keys once, and stores the results.
///
/// # Errors
/// A cache that cannot be written.
pub fn measure(
    forecast: &mut Forecast,
    planner: &Planner<'_>,
    backend: &dyn MeasureBackend,
    on_event: &mut dyn FnMut(MeasureEvent),
) -> Result<(), StoreError> {
    let mut kept = CostCache::of(planner.store);
    let mut fresh = Vec::new();
    for outline in forecast.outlines.values_mut() {
        let node = &planner.pipeline.stages[outline.stage];
        let key = match &outline.estimate {
            Err(why) => {
                on_event(MeasureEvent::Not(node.id.clone(), why.clone()));
                continue;
            }
            Ok(estimate) => match &outline.key {
                Some(key) => key.clone(),
                None => {
                    // Without work, it is a kind without measurements.
                    if let (Some(port), Some(_)) = (outline.inputs.unknown.keys().next(), &estimate.work) {
                        let why = outline.inputs.shape(port).err().map(|why| why.to_string());
                        on_event(MeasureEvent::Not(node.id.clone(), why.unwrap_or_default()));
                    }
                    continue;
                }
            },
        };
        if let Some((_, found)) = fresh.iter().find(|(other, _)| *other == key) {
            outline.measured = *found;
            continue;
        }
        on_event(MeasureEvent::Measuring(node.id.clone()));
        let ask = MeasureRequest {
            kind: key.kind.clone(),
            params: node.stage.to_json(),
            inputs: outline.inputs.clone(),
        };
        outline.measured = match backend.measure(&ask).map(|found| combine(&found)) {
            Ok(Some(measured)) => {
                kept.keep(&key, measured)?;
                Some(measured)
            }
            Ok(None) => None,
            Err(why) => {
                on_event(MeasureEvent::Not(node.id.clone(), why));
                None
            }
        };
        let StageEstimate { measured, .. } = outline;
        fresh.push((key, *measured));
    }
    Ok(())
}

/// The mean of the times, and the maximum of the memory.
fn combine(found: &[CostModel]) -> Option<CostModel> {
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
