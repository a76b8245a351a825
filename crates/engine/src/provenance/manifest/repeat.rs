//! The short manifest of a run that found everything as an earlier run left it: it names the manifest of that run.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{self as manifest, Conditions, FORMAT, Manifest, Outcome, Program, StageRecord};
use crate::identity::digest::Digest;

/// The most bytes of such a manifest.
const LONGEST: usize = 1000;

/// The manifest that is repeated: the name of its file, in the same folder, and its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Base {
    /// The name of the file.
    pub name: String,
    /// The digest of the file.
    pub digest: Digest,
}

/// What a short manifest records itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Repeat {
    format: u32,
    repeats: Base,
    attrflow: Program,
    pipeline: String,
    file: PathBuf,
    sets: Vec<String>,
    started: String,
    seconds: f64,
    conditions: Conditions,
}

impl Repeat {
    /// The short manifest in a text; `None` for any other text.
    pub fn parse(text: &[u8]) -> Option<Self> {
        if text.len() > 2 * LONGEST {
            return None;
        }
        serde_json::from_slice(text).ok()
    }

    /// The manifest of which a file repeats the stages, if it is a short one.
    pub fn base_of(path: &Path) -> Option<Base> {
        let small = fs_err::metadata(path).is_ok_and(|found| found.len() <= 2 * LONGEST as u64);
        let text = small.then(|| fs_err::read(path).ok()).flatten()?;
        Self::parse(&text).map(|repeat| repeat.repeats)
    }

    /// The text of the manifest of a run that repeats another; `None` if it would be long.
    pub fn text(manifest: &Manifest, base: &Base) -> Option<Vec<u8>> {
        let Manifest { attrflow, pipeline, file, sets, started, seconds, conditions, .. } = manifest.clone();
        let repeats = base.clone();
        let repeat =
            Self { format: FORMAT, repeats, attrflow, pipeline, file, sets, started, seconds, conditions };
        serde_json::to_vec_pretty(&repeat).ok().filter(|text| text.len() < LONGEST)
    }

    /// The whole manifest of a run that repeats another.
    ///
    /// # Errors
    /// As [`Repeat::resolve`].
    pub fn whole(folder: &Path, manifest: &Manifest, base: &Base) -> std::io::Result<Manifest> {
        let Manifest { attrflow, pipeline, file, sets, started, seconds, conditions, .. } = manifest.clone();
        let repeats = base.clone();
        let repeat =
            Self { format: FORMAT, repeats, attrflow, pipeline, file, sets, started, seconds, conditions };
        repeat.resolve(&folder.join(&base.name))
    }

    /// The whole manifest, from the one that is repeated.
    ///
    /// # Errors
    /// That one cannot be read, or was changed.
    pub fn resolve(self, path: &Path) -> std::io::Result<Manifest> {
        let Self { repeats, attrflow, pipeline, file, sets, started, seconds, conditions, format: _ } = self;
        let fault = |what: String| std::io::Error::other(format!("{}: {what}", path.display()));
        if Path::new(&repeats.name).file_name().is_none_or(|name| name != repeats.name.as_str()) {
            return Err(fault(format!(
                "it repeats {:?}, expected the name of a file beside it",
                repeats.name
            )));
        }
        let base = path.with_file_name(&repeats.name);
        let text =
            fs_err::read(&base).map_err(|error| fault(format!("it repeats another manifest: {error}")))?;
        if Digest::from(blake3::hash(&text)) != repeats.digest {
            return Err(fault(format!("it repeats {}, which was changed", repeats.name)));
        }
        let base: Manifest =
            serde_json::from_slice(&text).map_err(|error| fault(format!("not a manifest: {error}")))?;
        let stages = base.stages.into_iter().map(as_cached).collect();
        Ok(Manifest {
            format: FORMAT,
            attrflow,
            pipeline,
            file,
            sets,
            started,
            seconds,
            conditions,
            stages,
            ..base
        })
    }
}

/// The record of the stage in a run that finds its result.
fn as_cached(record: StageRecord) -> StageRecord {
    StageRecord { outcome: Outcome::Cached, units_run: 0, units_cached: 0, ..record }
}

/// The manifest in a folder that a new one repeats, if every stage is cached and as it was in the newest run.
pub fn repeated(folder: &Path, manifest: &Manifest) -> Option<Base> {
    if manifest.stages.is_empty() || manifest.stages.iter().any(|record| record.outcome != Outcome::Cached) {
        return None;
    }
    let newest = manifest::list(folder).into_iter().next()?;
    let base = Repeat::base_of(&newest);
    let name =
        base.map_or_else(|| newest.file_name()?.to_str().map(str::to_owned), |base| Some(base.name))?;
    let text = fs_err::read(folder.join(&name)).ok()?;
    let old: Manifest = serde_json::from_slice(&text).ok()?;
    let stages: Vec<StageRecord> = old.stages.into_iter().map(as_cached).collect();
    let same = old.numerics == manifest.numerics
        && old.root == manifest.root
        && old.left_out == manifest.left_out
        && serde_json::to_vec(&stages).ok()? == serde_json::to_vec(&manifest.stages).ok()?;
    same.then(|| Base { name, digest: blake3::hash(&text).into() })
}
