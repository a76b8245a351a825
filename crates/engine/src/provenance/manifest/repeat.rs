//! The short manifest of a run that found everything as an earlier run left it: it names the manifest of that run.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{self as manifest, Conditions, FORMAT, Manifest, Outcome, Program, StageRecord};
use crate::identity::digest::Digest;
use crate::identity::regular_file;
use crate::identity::shared_fs;

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
        let small = shared_fs::metadata(path).is_ok_and(|found| found.len() <= 2 * LONGEST as u64);
        let text = small.then(|| regular_file::read(path).ok()).flatten()?;
        Self::parse(&text).map(|repeat| repeat.repeats)
    }

    fn new(manifest: &Manifest, base: &Base) -> Self {
        let Manifest { attrflow, pipeline, file, sets, started, seconds, conditions, .. } = manifest.clone();
        let (repeats, sets) = (base.clone(), short(sets));
        Self { format: FORMAT, repeats, attrflow, pipeline, file, sets, started, seconds, conditions }
    }

    /// The text of the manifest of a run that repeats another; `None` if it would be long.
    pub fn text(manifest: &Manifest, base: &Base) -> Option<Vec<u8>> {
        let text = serde_json::to_vec_pretty(&Self::new(manifest, base));
        text.ok().filter(|text| text.len() < LONGEST)
    }

    /// The whole manifest of a run that repeats another.
    ///
    /// # Errors
    /// As [`Repeat::resolve`].
    pub fn whole(folder: &Path, manifest: &Manifest, base: &Base) -> std::io::Result<Manifest> {
        Self::new(manifest, base).resolve(&folder.join(&base.name))
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
        let text = regular_file::read(&base)
            .map_err(|error| fault(format!("it repeats another manifest: {error}")))?;
        if Digest::from(blake3::hash(&text)) != repeats.digest {
            return Err(fault(format!("it repeats {}, which was changed", repeats.name)));
        }
        manifest::known_format(&base, &text)?;
        let base = manifest::whole(&base, &text)?;
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
    StageRecord { outcome: Outcome::Cached, units_run: 0, units_cached: 0, workers: None, ..record }
}

/// Settings, or their number and digest where they are long.
fn short(sets: Vec<String>) -> Vec<String> {
    const LONG: usize = 300;
    if sets.iter().map(String::len).sum::<usize>() <= LONG {
        return sets;
    }
    let digest = Digest::from(blake3::hash(sets.join("\n").as_bytes()));
    vec![format!("{} settings with the digest {digest}", sets.len())]
}

/// The manifest in a folder that a new one repeats, if every stage is cached and as it was in one of the newest of the project:
/// runs with two targets or settings may take turns.
pub fn repeated(folder: &Path, manifest: &Manifest) -> Option<Base> {
    /// Other projects may have pipelines of the name.
    const READ: usize = 20;
    const COMPARED: usize = 4;
    if manifest.stages.is_empty() || manifest.stages.iter().any(|record| record.outcome != Outcome::Cached) {
        return None;
    }
    // The seconds of units are added as they end, so that their sum differs in its last digits from that of a cached stage.
    let compared_part = |record: StageRecord| StageRecord { seconds: 0.0, ..as_cached(record) };
    let own: Vec<StageRecord> = manifest.stages.iter().cloned().map(compared_part).collect();
    let (mut read, mut compared) = (BTreeSet::new(), 0);
    for newest in manifest::list(folder) {
        let base = Repeat::base_of(&newest);
        let name =
            base.map_or_else(|| newest.file_name()?.to_str().map(str::to_owned), |base| Some(base.name))?;
        if !read.insert(name.clone()) {
            continue;
        }
        if read.len() > READ {
            break;
        }
        let Ok(text) = regular_file::read(folder.join(&name)) else { continue };
        let Ok(old) = serde_json::from_slice::<Manifest>(&text) else { continue };
        if old.identity() != manifest.identity() {
            continue;
        }
        let stages: Vec<StageRecord> = old.stages.into_iter().map(compared_part).collect();
        let same = old.numerics == manifest.numerics
            && old.left_out == manifest.left_out
            && serde_json::to_vec(&stages).ok()? == serde_json::to_vec(&own).ok()?;
        if same {
            return Some(Base { name, digest: blake3::hash(&text).into() });
        }
        compared += 1;
        if compared == COMPARED {
            break;
        }
    }
    None
}
