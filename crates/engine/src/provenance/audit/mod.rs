//! Checks a manifest: every recipe, input, source and stored byte is compared with it.
//!
//! No cached state is used: all bytes are hashed again, whatever their sizes and times are.

mod artifact;
mod diff;
mod fault;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::identity::digest::{Digest, Listing};
use crate::provenance::manifest::{Manifest, Outcome, Reads, StageRecord};
use crate::store::{self, Store, StoreError};

pub use diff::{Diff, Difference};
pub use fault::{Finding, Mismatch};

/// The first manifest format that records which stage produced an input.
const NAMES_GIVERS: u32 = 3;

/// An audit of one manifest against a cache.
pub struct Audit<'a> {
    /// The record of a run.
    pub manifest: &'a Manifest,
    /// The cache that holds its results.
    pub store: &'a Store,
    /// Whether to continue after the first difference.
    pub all: bool,
}

/// The counts and findings of an audit.
#[derive(Debug, Default, Serialize)]
pub struct AuditReport {
    /// In the order of the manifest.
    pub findings: Vec<Finding>,
    /// Stages checked.
    pub stages: usize,
    /// Recipes whose fingerprint was recomputed.
    pub recipes: usize,
    /// Inputs that were traced to their output or source.
    pub inputs: usize,
    /// Sources that were hashed.
    pub sources: usize,
    /// Sources that no longer exist.
    pub sources_gone: Vec<PathBuf>,
    /// Artifacts that were hashed.
    pub artifacts: usize,
    /// Files in them.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
}

impl AuditReport {
    /// The first finding that is a difference.
    pub fn difference(&self) -> Option<&Finding> {
        self.findings.iter().find(|finding| finding.fault.differs())
    }
}

/// Why an audit ends early.
enum Stop {
    /// A difference was found, and the audit stops at the first.
    Found,
    /// The cache cannot be read.
    Store(StoreError),
}

impl<E: Into<StoreError>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Store(error.into())
    }
}

impl Audit<'_> {
    /// Checks stage by stage, up to the first difference, or all stages.
    ///
    /// # Errors
    /// A cache that cannot be read; damage in it is a finding.
    pub fn execute(&self) -> Result<AuditReport, StoreError> {
        let (report, seen, sources) = (AuditReport::default(), BTreeSet::new(), BTreeMap::new());
        let mut pass = Pass { audit: self, stage: "", report, seen, sources };
        for (index, record) in self.manifest.stages.iter().enumerate() {
            pass.stage = &record.stage;
            match pass.record(record, &self.manifest.stages[..index]) {
                Ok(()) => {}
                Err(Stop::Found) => break,
                Err(Stop::Store(error)) => return Err(error),
            }
        }
        Ok(pass.report)
    }
}

/// One pass over a manifest.
struct Pass<'a> {
    audit: &'a Audit<'a>,
    /// The stage that is being checked.
    stage: &'a str,
    report: AuditReport,
    /// Artifacts already checked: several stages may produce the same.
    seen: BTreeSet<Digest>,
    /// Digests of the sources that were hashed.
    sources: BTreeMap<&'a Path, Digest>,
}

impl<'a> Pass<'a> {
    fn record(&mut self, record: &'a StageRecord, before: &[StageRecord]) -> Result<(), Stop> {
        self.report.stages += 1;
        let done = matches!(record.outcome, Outcome::Ran | Outcome::Cached);
        let (Some(recipe), Some(fingerprint)) = (&record.recipe, record.fingerprint) else {
            return match done || !record.outputs.is_empty() {
                true => self.found(Mismatch::Incomplete { what: "recipe or fingerprint".into() }),
                false => Ok(()),
            };
        };
        let derived = recipe.fingerprint();
        if derived != fingerprint {
            self.found(Mismatch::Fingerprint { recorded: fingerprint, derived })?;
        }
        self.report.recipes += 1;
        for (port, digest) in &recipe.inputs {
            self.input(record, port, *digest, before)?;
            self.report.inputs += 1;
        }
        if !done {
            return Ok(());
        }
        self.index(record, fingerprint)?;
        for (port, artifact) in &record.outputs {
            if self.seen.insert(artifact.digest) {
                self.artifact(port, artifact)?;
                self.report.artifacts += 1;
            }
        }
        Ok(())
    }

    /// Records a finding; an error if the audit stops at the first.
    fn found(&mut self, fault: Mismatch) -> Result<(), Stop> {
        let enough = fault.differs() && !self.audit.all;
        self.report.findings.push(Finding { stage: self.stage.to_owned(), fault });
        if enough { Err(Stop::Found) } else { Ok(()) }
    }

    /// Records a damaged file of the cache as a finding.
    fn intact<T>(&mut self, result: Result<T, StoreError>) -> Result<Option<T>, Stop> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(StoreError::Damaged { path, reason }) => {
                self.found(Mismatch::Damaged { path, reason })?;
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Traces an input to its producer.
    fn input(
        &mut self,
        record: &'a StageRecord,
        port: &str,
        digest: Digest,
        before: &[StageRecord],
    ) -> Result<(), Stop> {
        if let Some(path) = record.sources.get(port) {
            return self.source(path, digest);
        }
        if let Some(reads) = record.reads.get(port) {
            return self.chain(port, digest, reads, before);
        }
        if self.audit.manifest.format < NAMES_GIVERS {
            let outputs = before.iter().flat_map(|record| record.outputs.values());
            for artifact in outputs {
                if artifact.digest == digest {
                    return Ok(());
                }
                let listing = self.intact(self.audit.store.listing(&artifact.digest))?.flatten();
                if listing.is_some_and(|listing| holds(&listing, digest)) {
                    return Ok(());
                }
            }
        }
        self.found(Mismatch::Unexplained { port: port.to_owned(), recorded: digest })
    }

    /// Compares an input with the output that it names.
    fn chain(
        &mut self,
        port: &str,
        digest: Digest,
        reads: &Reads,
        before: &[StageRecord],
    ) -> Result<(), Stop> {
        let giver = before.iter().find(|record| record.stage == reads.stage);
        let given = giver.and_then(|record| record.outputs.get(&reads.port)).map(|output| output.digest);
        let found = match (given, &reads.below) {
            (Some(folder), Some(below)) => {
                let Some(listing) = self.intact(self.audit.store.listing(&folder))? else { return Ok(()) };
                let Some(listing) = listing else {
                    let what = format!("the listing of {}.{}", reads.stage, reads.port);
                    return self.found(Mismatch::Gone { what });
                };
                listing.sub(below)
            }
            (given, _) => given,
        };
        if found == Some(digest) {
            return Ok(());
        }
        self.found(Mismatch::Chain {
            port: port.to_owned(),
            recorded: digest,
            giver: reads.to_string(),
            found,
        })
    }

    /// Hashes a source that still exists.
    fn source(&mut self, path: &'a Path, recorded: Digest) -> Result<(), Stop> {
        let found = match self.sources.get(path) {
            Some(found) => *found,
            None => match store::digest_of(path) {
                Ok(found) => found,
                Err(StoreError::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => {
                    if !self.report.sources_gone.iter().any(|gone| gone == path) {
                        self.report.sources_gone.push(path.to_path_buf());
                    }
                    return Ok(());
                }
                Err(error) => {
                    let error = error.to_string();
                    return self.found(Mismatch::Unreadable { path: path.to_path_buf(), error });
                }
            },
        };
        if self.sources.insert(path, found).is_none() {
            self.report.sources += 1;
        }
        match found == recorded {
            true => Ok(()),
            false => self.found(Mismatch::Source { path: path.to_path_buf(), recorded, found }),
        }
    }

    /// Compares the outputs with those that the cache has for the recipe.
    fn index(&mut self, record: &StageRecord, fingerprint: Digest) -> Result<(), Stop> {
        let Some(entry) = self.intact(self.audit.store.entry(&fingerprint))? else { return Ok(()) };
        let Some(entry) = entry else {
            return self.found(Mismatch::Gone { what: format!("its recipe {}", fingerprint.short()) });
        };
        let ports: BTreeSet<&String> = record.outputs.keys().chain(entry.outputs.keys()).collect();
        for port in ports {
            let of = |artifacts: &BTreeMap<String, store::Artifact>| artifacts.get(port).map(|a| a.digest);
            let (recorded, found) = (of(&record.outputs), of(&entry.outputs));
            if recorded != found {
                self.found(Mismatch::Index { port: port.clone(), recorded, found })?;
            }
        }
        Ok(())
    }
}

/// Whether a file or folder of this digest exists anywhere below a folder.
fn holds(listing: &Listing, digest: Digest) -> bool {
    let folders = listing.0.iter().flat_map(|file| Path::new(&file.path).ancestors().skip(1));
    let folders: BTreeSet<&Path> = folders.filter(|folder| !folder.as_os_str().is_empty()).collect();
    listing.0.iter().any(|file| file.digest == digest)
        || folders.iter().any(|folder| listing.sub(&folder.to_string_lossy()) == Some(digest))
}
