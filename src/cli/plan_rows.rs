//! The rows of a plan: many items of one repeated stage with the same action are one row.

use crate::progress::{Table, duration};
use attrflow_engine::explain::Prediction;
use attrflow_engine::pipeline::StageNode;
use attrflow_engine::store::format_bytes;

/// So many items of a stage with the same action, one after the other, are one row.
const MANY: usize = 24;
pub(super) const HEADINGS: [&str; 6] = ["stage", "action", "time", "memory", "disk", "reason"];

/// What is shown of a stage.
pub(super) struct Row {
    base: String,
    id: String,
    action: &'static str,
    predicted: Option<Prediction>,
    reason: String,
}

impl Row {
    pub fn of(node: &StageNode, action: &'static str, predicted: Option<Prediction>, reason: String) -> Self {
        Self { base: node.base.clone(), id: node.id.clone(), action, predicted, reason }
    }
}

/// The rows as a table.
pub(super) fn table(rows: &[Row]) -> Table {
    let mut table = Table::new(&HEADINGS);
    for items in rows.chunk_by(|one, next| one.base == next.base && one.action == next.action) {
        if items.len() < MANY {
            items.iter().for_each(|row| table.row(cells(row.id.clone(), row, row.predicted.as_ref())));
        } else {
            let (first, last) = (&items[0], &items[items.len() - 1]);
            let name = format!("{} to {}, {} in all", first.id, last.id, items.len());
            let sum = sum(items.iter().map(|row| row.predicted.as_ref()));
            let mut cells = cells(name, first, sum.as_ref());
            cells[5] += ", …";
            table.row(cells);
        }
    }
    table
}

fn cells(name: String, row: &Row, predicted: Option<&Prediction>) -> [String; 6] {
    let disk = |predicted: &Prediction| predicted.disk.or(predicted.bytes).map(format_bytes);
    [
        name,
        row.action.to_owned(),
        predicted.map(format_time).unwrap_or_default(),
        predicted.map(memory).unwrap_or_default(),
        predicted.and_then(disk).unwrap_or_default(),
        row.reason.clone(),
    ]
}

/// The predictions of several stages together: what one of them does not know is not known of all.
fn sum<'p>(predictions: impl Iterator<Item = Option<&'p Prediction>>) -> Option<Prediction> {
    let all: Vec<&Prediction> = predictions.collect::<Option<_>>()?;
    let bytes = |of: fn(&Prediction) -> Option<u64>| all.iter().map(|one| of(one)).sum();
    let most = |of: fn(&Prediction) -> Option<u64>| all.iter().filter_map(|one| of(one)).max();
    Some(Prediction {
        seconds: all.iter().map(|one| one.seconds).sum(),
        steps: bytes(|one| one.steps),
        bytes: bytes(|one| one.bytes),
        disk: bytes(|one| one.disk.or(one.bytes)),
        host_memory: most(|one| one.host_memory),
        device_memory: most(|one| one.device_memory),
        ..Prediction::default()
    })
}

/// `310 MB + 4.10 GB on the device`, for each worker.
fn memory(predicted: &Prediction) -> String {
    let host = predicted.host_memory.map(format_bytes);
    let device = predicted
        .device_memory
        .filter(|bytes| *bytes > 0)
        .map(|bytes| format!("{} on the device", format_bytes(bytes)));
    host.into_iter().chain(device).collect::<Vec<_>>().join(" + ")
}

/// `3.2 s, 4 of 10 units`, or `unknown, 500 steps`.
pub(super) fn format_time(predicted: &Prediction) -> String {
    let mut parts = vec![predicted.seconds.map_or_else(|| "unknown".to_owned(), duration)];
    if let (None, Some(steps)) = (predicted.seconds, predicted.steps) {
        parts.push(format!("{steps} step{}", if steps == 1 { "" } else { "s" }));
    }
    if let Some(units) = predicted.units.filter(|units| units.cached > 0) {
        parts.push(format!("{} of {} units", units.total - units.cached, units.total));
    }
    parts.join(", ")
}
