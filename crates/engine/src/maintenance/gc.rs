//! Garbage collection: a plan that names everything to be removed, and its execution.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::Serialize;

use super::inventory::{Inventory, Item};
use super::orphans;
use super::policy::{Policy, Removal, Target};
use super::retention::{RetainReason, Retained};
use crate::identity::digest::Digest;
use crate::provenance::task_times;
use crate::store::{ExclusiveLock, Store, StoreError};

/// What is removed and what is kept.
#[derive(Debug, Serialize)]
pub struct Plan {
    /// What is removed, in this order.
    pub steps: Vec<Removal>,
    /// Bytes of the disk that the cache takes now.
    pub before: u64,
    /// Bytes that the steps free.
    pub frees: u64,
    /// Results and units that are kept: how many, and their bytes.
    pub kept: BTreeMap<RetainReason, (usize, u64)>,
    /// Bytes above the budget after all steps.
    pub over: Option<u64>,
}

/// What was removed so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GcSummary {
    /// Entries of the index.
    pub entries: usize,
    /// Objects.
    pub objects: usize,
}

/// Counts the entries that have an object as an output.
struct References(BTreeMap<Digest, usize>);

impl References {
    fn of(inventory: &Inventory, kept: &Retained) -> Self {
        let mut counts: BTreeMap<Digest, usize> = kept.objects.iter().map(|digest| (*digest, 1)).collect();
        for item in inventory.items.values() {
            digests(item).into_iter().for_each(|digest| *counts.entry(digest).or_default() += 1);
        }
        Self(counts)
    }

    /// Removes an entry, and returns the objects that no other entry has.
    fn drop(&mut self, item: &Item) -> Vec<Digest> {
        let mut free = digests(item);
        free.retain(|digest| {
            let count = self.0.entry(*digest).or_default();
            *count = count.saturating_sub(1);
            *count == 0
        });
        free.into_iter().collect()
    }
}

fn digests(item: &Item) -> BTreeSet<Digest> {
    item.entry.outputs.values().map(|artifact| artifact.digest).collect()
}

impl Plan {
    /// What would be removed.
    ///
    /// # Errors
    /// A manifest that cannot be read: what it needs is not known, so nothing may be removed.
    pub fn of(
        store: &Store,
        inventory: &Inventory,
        policy: &Policy,
        now: Timestamp,
    ) -> Result<Self, StoreError> {
        orphans::readable(store, inventory)?;
        let kept = Retained::of(inventory, policy, now);
        let mut references = References::of(inventory, &kept);
        let mut steps = orphans::steps(store, inventory, policy, now)?;
        for (digest, space) in &inventory.disk.objects {
            if references.0.get(digest).is_none_or(|count| *count == 0) {
                let name = format!("{}, which no entry names", digest.short());
                steps.push(Removal::orphan(Target::Stray { digest: *digest }, name, space.disk));
            }
        }
        let (units, mut results) = candidates(inventory, &kept);
        // Cheapest to recompute for their size first; then those not used for longest.
        let worth = |fingerprint: &Digest| {
            let item = &inventory.items[fingerprint];
            let disk = inventory.space(item, &mut BTreeSet::new()).disk.max(1);
            (item.entry.seconds / disk as f64, item.used)
        };
        results.sort_by(|a, b| {
            let (a, b) = (worth(a), worth(b));
            a.0.total_cmp(&b.0).then(a.1.cmp(&b.1))
        });
        let before = inventory.disk.total().disk;
        let mut frees: u64 = steps.iter().map(|step| step.frees).sum();
        let groups = units.into_values().chain(results.into_iter().map(|fingerprint| vec![fingerprint]));
        for group in groups {
            if policy.budget.is_some_and(|budget| before.saturating_sub(frees) <= budget) {
                break;
            }
            // Links to a user's files take no space, and the files would have to be adopted again.
            let adopted = group.iter().any(|found| inventory.items[found].entry.adopted.is_some());
            if policy.budget.is_some() && adopted {
                continue;
            }
            let step = Removal::results(group, inventory, &mut references);
            frees += step.frees;
            steps.push(step);
        }
        let over = policy.budget.and_then(|budget| before.saturating_sub(frees).checked_sub(budget));
        let kept = totals(inventory, &kept);
        Ok(Self { steps, before, frees, kept, over: over.filter(|over| *over > 0) })
    }

    /// Removes what the plan names; `tell` is called after each removal.
    ///
    /// Entries are removed first and durably, then objects: whenever this ends, the index never names a removed object.
    ///
    /// # Errors
    /// A removal that failed.
    pub fn execute(
        &self,
        store: &Store,
        inventory: &Inventory,
        _alone: &ExclusiveLock,
        tell: &mut dyn FnMut(GcSummary),
    ) -> Result<GcSummary, StoreError> {
        let mut done = GcSummary::default();
        let gone: BTreeSet<Digest> = self.steps.iter().flat_map(|step| step.what.entries()).collect();
        for fingerprint in &gone {
            store.remove_entry(fingerprint)?;
            done.entries += 1;
            tell(done);
        }
        store.sync_index()?;
        for (stage, cut) in &inventory.cuts {
            let left = |unit: &Digest| inventory.items.contains_key(unit) && !gone.contains(unit);
            if !cut.units.iter().any(left) {
                store.remove_unit_index(stage)?;
            }
        }
        let rest = inventory.items.iter().filter(|(fingerprint, _)| !gone.contains(*fingerprint));
        let mut named: BTreeSet<Digest> = rest.flat_map(|(_, item)| digests(item)).collect();
        named.extend(inventory.pins.iter().flat_map(|pin| &pin.objects));
        let of_gone = gone.iter().filter_map(|found| inventory.items.get(found)).flat_map(digests);
        let strays = self.steps.iter().filter_map(|step| match step.what {
            Target::Stray { digest } => Some(digest),
            _ => None,
        });
        let objects: BTreeSet<Digest> =
            of_gone.chain(strays).filter(|digest| !named.contains(digest)).collect();
        // This also sweeps the working folders of killed runs.
        let scratch = store.scratch()?;
        for digest in &objects {
            store.remove_object(digest, &scratch)?;
            done.objects += 1;
            tell(done);
        }
        for step in &self.steps {
            match &step.what {
                Target::Files { paths } => paths.iter().try_for_each(|path| orphans::remove(path))?,
                Target::Manifest { path } => {
                    orphans::remove(&task_times::path(path))?;
                    orphans::remove(path)?;
                }
                Target::Obsolete { path } => orphans::remove(path)?,
                _ => {}
            }
        }
        Ok(done)
    }
}

/// Units of finished stages, by stage, and all other results that no rule keeps.
fn candidates(inventory: &Inventory, kept: &Retained) -> (BTreeMap<Digest, Vec<Digest>>, Vec<Digest>) {
    let mut units: BTreeMap<Digest, Vec<Digest>> = BTreeMap::new();
    let mut results = Vec::new();
    for (fingerprint, item) in &inventory.items {
        if kept.items.contains_key(fingerprint) || digests(item).iter().any(|d| kept.objects.contains(d)) {
            continue;
        }
        match item.stages.iter().find(|stage| inventory.exists(stage)) {
            Some(stage) if item.is_unit() => units.entry(*stage).or_default().push(*fingerprint),
            _ => results.push(*fingerprint),
        }
    }
    (units, results)
}

fn totals(inventory: &Inventory, kept: &Retained) -> BTreeMap<RetainReason, (usize, u64)> {
    let mut counted = BTreeSet::new();
    let mut totals: BTreeMap<RetainReason, (usize, u64)> = BTreeMap::new();
    let mut order: Vec<(&RetainReason, &Digest)> =
        kept.items.iter().map(|(found, why)| (why, found)).collect();
    order.sort();
    for (why, fingerprint) in order {
        let Some(item) = inventory.items.get(fingerprint) else { continue };
        let total = totals.entry(*why).or_default();
        total.0 += 1;
        total.1 += inventory.space(item, &mut counted).disk;
    }
    totals
}

impl Target {
    fn entries(&self) -> Vec<Digest> {
        match self {
            Self::Result { fingerprint } => vec![*fingerprint],
            Self::Units { units } => units.clone(),
            _ => Vec::new(),
        }
    }
}

impl Removal {
    pub(super) fn orphan(what: Target, name: String, frees: u64) -> Self {
        Self { what, name, kind: String::new(), frees, used: None, seconds: None }
    }

    /// One result, or the units of one stage.
    fn results(group: Vec<Digest>, inventory: &Inventory, references: &mut References) -> Self {
        let items: Vec<&Item> = group.iter().map(|fingerprint| &inventory.items[fingerprint]).collect();
        let free: BTreeSet<Digest> = items.iter().flat_map(|item| references.drop(item)).collect();
        let sizes = free.iter().filter_map(|digest| inventory.disk.objects.get(digest));
        let first = items[0];
        let name = first.name.as_ref().map_or("of no recorded run".into(), ToString::to_string);
        let unit = first.is_unit() && first.stages.iter().any(|stage| inventory.exists(stage));
        Self {
            name,
            kind: first.entry.recipe.kind.clone(),
            frees: sizes.map(|space| space.disk).sum(),
            used: items.iter().map(|item| item.used).max(),
            seconds: Some(items.iter().map(|item| item.entry.seconds).sum()),
            what: match unit {
                true => Target::Units { units: group },
                false => Target::Result { fingerprint: group[0] },
            },
        }
    }
}
