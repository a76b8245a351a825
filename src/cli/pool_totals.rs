//! The work that a plan has for each pool of a cluster.

use std::collections::BTreeMap;

use serde_json::json;

use attrflow_engine::estimate::PoolProfile;

/// The work of each pool.
#[derive(Default)]
pub(super) struct PoolTotals(BTreeMap<String, Total>);

struct Total {
    pool: PoolProfile,
    seconds: f64,
    known: usize,
    unknown: usize,
}

impl PoolTotals {
    /// Adds a stage that runs, or may.
    pub fn add(&mut self, pool: &PoolProfile, seconds: Option<f64>) {
        let new = || Total { pool: pool.clone(), seconds: 0.0, known: 0, unknown: 0 };
        let total = self.0.entry(pool.name.clone()).or_insert_with(new);
        total.seconds += seconds.unwrap_or_default();
        total.known += usize::from(seconds.is_some());
        total.unknown += usize::from(seconds.is_none());
    }

    /// A line for each pool.
    pub fn describe(&self) -> String {
        let lines = self.0.values().map(|Total { pool, seconds, known, unknown }| {
            let hours = seconds / 3600.0;
            let stages = if *unknown == 1 { "1 stage".to_owned() } else { format!("{unknown} stages") };
            let hours = match (known, unknown) {
                (0, _) => "node-hours unknown (--measure)".to_owned(),
                (_, 0) => format!("{hours:.2} node-hours"),
                _ => format!("{hours:.2} node-hours, without {stages} of unknown time (--measure)"),
            };
            let PoolProfile { name, jobs, request, .. } = pool;
            format!("\n  pool {name} ({request}; at most {jobs} workers): {hours}")
        });
        lines.collect()
    }

    /// The same as lines of JSON.
    pub fn lines(&self) -> String {
        let lines = self.0.values().map(|Total { pool, seconds, unknown, .. }| {
            let line = json!({
                "pool": pool.name, "workers": pool.jobs, "request": pool.request,
                "node_hours": seconds / 3600.0, "unknown_time": unknown,
            });
            format!("{line}\n")
        });
        lines.collect()
    }
}
