//! Compares a stage with its record.

use std::path::PathBuf;

use serde::Serialize;

use crate::identity::digest::{Digest, Listing};
use crate::identity::recipe::{self, Change};
use crate::provenance::manifest::{Manifest, Outcome, StageRecord};
use crate::store::{Artifact, Store, StoreError};

/// The outcome of recomputing a stage.
#[derive(Debug, Clone, Serialize)]
pub struct ReplayOutcome {
    /// The stage.
    pub stage: String,
    /// How it ended; a cached stage computed nothing.
    pub outcome: Outcome,
    /// Its error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Changes of the recipe, such as another libtorch version: they may explain different bytes.
    pub changes: Vec<Change>,
    /// Whether the recorded run has outputs to compare with.
    pub recorded: bool,
    /// The outputs that differ.
    pub differing: Vec<ArrayDiff>,
    /// Computing time in seconds, in the recorded run and now.
    pub seconds: (f64, f64),
}

/// An output that differs from the record.
#[derive(Debug, Clone, Serialize)]
pub struct ArrayDiff {
    /// The output port.
    pub port: String,
    /// As recorded; `None` if there was no such output.
    pub recorded: Option<Digest>,
    /// As computed.
    pub found: Option<Digest>,
    /// The first file of a folder that differs, by its path below the folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub below: Option<String>,
    /// The two files, if both can be read.
    #[serde(skip)]
    pub files: Option<(PathBuf, PathBuf)>,
}

impl ReplayOutcome {
    /// Whether the stage reproduced the recorded bytes.
    pub fn same(&self) -> bool {
        self.done() && self.recorded && self.differing.is_empty()
    }

    /// Whether it completed.
    pub fn done(&self) -> bool {
        matches!(self.outcome, Outcome::Ran | Outcome::Cached)
    }
}

/// Compares each stage of `now` with its record, in the order of the recorded run.
///
/// `then` may still hold the recorded bytes, and `here` holds the new ones.
///
/// # Errors
/// A store that cannot be read.
pub fn outcomes(
    recorded: &Manifest,
    then: Option<&Store>,
    now: &Manifest,
    here: &Store,
) -> Result<Vec<ReplayOutcome>, StoreError> {
    let pairs = recorded
        .stages
        .iter()
        .filter_map(|before| Some((before, now.stages.iter().find(|record| record.stage == before.stage)?)));
    pairs.map(|(before, record)| outcome(before, then, record, here)).collect()
}

fn outcome(
    before: &StageRecord,
    then: Option<&Store>,
    now: &StageRecord,
    here: &Store,
) -> Result<ReplayOutcome, StoreError> {
    let changes = match (&before.recipe, &now.recipe) {
        (Some(before), Some(now)) => recipe::changes(before, now),
        _ => Vec::new(),
    };
    let mut differing = Vec::new();
    // A stage that failed then, or does now, has no outputs to hold against each other.
    if !before.outputs.is_empty() && matches!(now.outcome, Outcome::Ran | Outcome::Cached) {
        let mut ports: Vec<&String> = before.outputs.keys().chain(now.outputs.keys()).collect();
        ports.sort();
        ports.dedup();
        for port in ports {
            let (recorded, found) = (before.outputs.get(port), now.outputs.get(port));
            if recorded.map(|output| output.digest) != found.map(|output| output.digest) {
                differing.push(difference(port, recorded, then, found, here)?);
            }
        }
    }
    Ok(ReplayOutcome {
        stage: before.stage.clone(),
        outcome: now.outcome,
        error: now.error.clone(),
        changes,
        recorded: !before.outputs.is_empty(),
        differing,
        seconds: (before.seconds, now.seconds),
    })
}

fn difference(
    port: &str,
    recorded: Option<&Artifact>,
    then: Option<&Store>,
    found: Option<&Artifact>,
    here: &Store,
) -> Result<ArrayDiff, StoreError> {
    let mut differing = ArrayDiff {
        port: port.to_owned(),
        recorded: recorded.map(|output| output.digest),
        found: found.map(|output| output.digest),
        below: None,
        files: None,
    };
    let (Some(then), Some(recorded), Some(found)) = (then, recorded, found) else { return Ok(differing) };
    let (mut old, mut new) = (then.path(&recorded.digest), here.path(&found.digest));
    if recorded.folder && found.folder {
        let (Some(a), Some(b)) = (then.listing(&recorded.digest)?, here.listing(&found.digest)?) else {
            return Ok(differing);
        };
        let Some(below) = first(&a, &b) else { return Ok(differing) };
        (old, new) = (old.join(&below), new.join(&below));
        differing.below = Some(below);
    }
    differing.files = (old.is_file() && new.is_file()).then_some((old, new));
    Ok(differing)
}

/// The first path at which two folders differ.
fn first(a: &Listing, b: &Listing) -> Option<String> {
    let of = |listing: &Listing, path: &str| {
        listing.0.iter().find(|file| file.path == path).map(|file| file.digest)
    };
    let mut paths: Vec<&String> = a.0.iter().chain(&b.0).map(|file| &file.path).collect();
    paths.sort();
    paths.into_iter().find(|path| of(a, path) != of(b, path)).cloned()
}
