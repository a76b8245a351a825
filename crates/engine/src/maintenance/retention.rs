//! What garbage collection keeps: results of the last runs, pinned results, and the work of unfinished runs.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::Serialize;

use super::inventory::{Inventory, RunUse};
use super::policy::Policy;
use crate::identity::digest::Digest;
use crate::provenance::manifest::Outcome;

/// Why something is kept; the first reason that applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RetainReason {
    /// One of the last runs of a pipeline uses it.
    Run,
    /// It is pinned.
    Pin,
    /// A unit of a stage that failed in one of the last runs: the next run resumes from it.
    Partial,
    /// It is young, and no run has recorded it yet: it may be of a run that was killed, or that is still active
    /// elsewhere.
    Recent,
    /// A unit of a kept result: no run needs it, but a run after an edit may.
    Units,
}

/// What is kept, and why.
#[derive(Debug, Default)]
pub struct Retained {
    /// By fingerprint.
    pub items: BTreeMap<Digest, RetainReason>,
    /// Pinned objects.
    pub objects: BTreeSet<Digest>,
}

impl Retained {
    /// Applies a policy to the content of a store.
    pub fn of(inventory: &Inventory, policy: &Policy, now: Timestamp) -> Self {
        let mut kept = Self::default();
        for (_, _, past) in inventory.pipelines().filter(|(_, root, _)| !policy.forgets(*root)) {
            for newest in 0..past.len().min(policy.keep_runs) {
                kept.run(inventory, &past[newest..]);
            }
        }
        for digest in inventory.newer.iter().flat_map(|(_, digests)| digests) {
            if inventory.items.contains_key(digest) {
                kept.add(*digest, RetainReason::Run);
            }
            kept.objects.insert(*digest);
        }
        for pin in &inventory.pins {
            pin.results.iter().for_each(|found| kept.add(*found, RetainReason::Pin));
            kept.objects.extend(&pin.objects);
        }
        let young = |used: Timestamp| now.duration_since(used).as_secs() < policy.grace.as_secs() as i64;
        for (fingerprint, item) in &inventory.items {
            let joined = item.stages.iter().any(|stage| inventory.exists(stage));
            let of_kept = item.stages.iter().any(|stage| kept.items.contains_key(stage));
            if item.is_unit() && joined && of_kept {
                if !policy.units {
                    kept.add(*fingerprint, RetainReason::Units);
                }
            } else if !item.recorded && !joined && young(item.used) {
                kept.add(*fingerprint, RetainReason::Recent);
            }
        }
        kept
    }

    /// Keeps what the first of these runs needs. For stages that it did not select or reach, the last result before it
    /// remains in use.
    fn run(&mut self, inventory: &Inventory, past: &[&RunUse]) {
        let Some((run, before)) = past.split_first() else { return };
        let manifest = &run.manifest;
        let mut without: BTreeSet<&str> = manifest.left_out.iter().map(String::as_str).collect();
        for record in &manifest.stages {
            if matches!(record.outcome, Outcome::Ran | Outcome::Cached) {
                record.fingerprint.iter().for_each(|found| self.add(*found, RetainReason::Run));
                continue;
            }
            without.insert(&record.stage);
            let cut = record.fingerprint.and_then(|found| inventory.cuts.get(&found));
            cut.iter().flat_map(|cut| &cut.units).for_each(|unit| self.add(*unit, RetainReason::Partial));
        }
        for run in before {
            for record in &run.manifest.stages {
                if matches!(record.outcome, Outcome::Ran | Outcome::Cached)
                    && without.remove(record.stage.as_str())
                {
                    record.fingerprint.iter().for_each(|found| self.add(*found, RetainReason::Run));
                }
            }
        }
    }

    fn add(&mut self, fingerprint: Digest, why: RetainReason) {
        let known = self.items.entry(fingerprint).or_insert(why);
        *known = why.min(*known);
    }
}
