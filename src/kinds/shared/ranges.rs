//! Splits ranges into units of work.

use std::ops::Range;

use anyhow::Context as _;
use serde_json::json;

use attrflow_engine::kind::Unit;

/// Few enough that a unit is worth its start, many enough that an interrupted run loses little.
const UNITS: usize = 32;

/// Splits `0..count` of `what` into at most 32 even units whose bounds are multiples of `grain`.
pub(crate) fn units(what: &str, count: usize, grain: usize) -> Vec<Unit> {
    let grains = count.div_ceil(grain);
    let size = grains.div_ceil(UNITS).max(1) * grain;
    let starts = (0..count).step_by(size);
    starts
        .map(|start| {
            let end = count.min(start + size);
            Unit {
                name: format!("{what} {start}..{end}"),
                range: json!({ what: [start, end] }),
                steps: (end - start) as u64,
            }
        })
        .collect()
}

/// The range of a unit.
pub(crate) fn range(unit: &Unit, what: &str) -> anyhow::Result<Range<usize>> {
    let span = &unit.range[what];
    let [start, end]: [usize; 2] = serde_json::from_value(span.clone()).context("invalid unit range")?;
    Ok(start..end)
}
