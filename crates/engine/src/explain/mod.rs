//! Why a stage would run: what is hashed, what changed, where it is written, and which edit would reuse a result.

mod blame;
mod file_changes;
mod nearest_hit;
pub mod source_location;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::Serialize;

pub use crate::estimate::predict::{Prediction, Predictor, Units};
use crate::estimate::{Forecast, MachineProfile};
pub use blame::Blame;
pub use file_changes::{FileChanges, Listed};
pub use nearest_hit::{Edit, NearestHit, nearest};
pub use source_location::{Location, config_key, place};

use crate::config::text::Sources;
use crate::identity::digest::Digest;
use crate::identity::recipe::{self, Change, Recipe};
use crate::kind::{self, Inputs};
use crate::pipeline::Source as Feed;
use crate::plan::graph::Graph;
use crate::plan::{Action, InputError, Last, Planner, ResolvedInputs};
use crate::store::{Entry, StoreError};

/// One field of a recipe.
#[derive(Debug, Clone, Serialize)]
pub struct Field {
    /// The dotted name: `params.loss.seed`.
    pub field: String,
    /// The current value; `None` for an input that is unknown until another stage has run.
    pub value: Option<String>,
    /// The change, if there is one.
    pub change: Option<Change>,
    /// The location of a parameter.
    pub place: Option<Location>,
    /// The last commit of that line; only for changed fields.
    pub blame: Option<Blame>,
    /// The source of an input.
    pub input: Option<Input>,
}

/// An input of a stage.
#[derive(Debug, Clone, Serialize)]
pub struct Input {
    /// `stage.port/below`, or a path.
    pub reads: String,
    /// Its size in bytes, if it exists.
    pub bytes: Option<u64>,
    /// When a source was last written, UTC.
    pub written: Option<String>,
    /// The files below that changed since the last run, if the input changed and is a folder.
    pub files: Option<FileChanges>,
}

/// The explanation of a stage.
#[derive(Debug, Clone, Serialize)]
pub struct Explanation {
    /// The stage.
    pub stage: String,
    /// Its kind.
    pub kind: String,
    /// `cached`, `run`, `pending` or `invalid input`.
    pub action: &'static str,
    /// The reason, for people.
    pub why: String,
    /// The hashed fields, in hash order.
    pub fields: Vec<Field>,
    /// Parameters that are not hashed, with their values.
    pub unhashed: Vec<(String, String)>,
    /// The start of the run that `changes` compare with, and its manifest.
    pub since: Option<(String, PathBuf)>,
    /// Its units; `None` for a stage without units or a pending one.
    pub units: Option<Units>,
    /// The predicted cost of computing it; `None` if it does not run.
    pub predicted: Option<Prediction>,
}

/// The cached results of the stages.
pub fn cached_entries(actions: &[(usize, Action)]) -> BTreeMap<usize, Entry> {
    let standing = actions.iter().filter_map(|(index, verdict)| match verdict {
        Action::Cached(entry) => Some((*index, (**entry).clone())),
        _ => None,
    });
    standing.collect()
}

/// Explains the stages of these indices, all of which `graph` must select.
///
/// # Errors
/// A damaged index.
pub fn explain(
    planner: &Planner<'_>,
    graph: &Graph,
    stages: &[usize],
    sources: &Sources,
    circumstances: &MachineProfile,
) -> Result<Vec<Explanation>, StoreError> {
    let actions = planner.all(graph)?;
    let forecast = Forecast::new(planner, &actions, circumstances);
    let predictor = Predictor::new(planner, &forecast);
    let done = cached_entries(&actions);
    let wanted = actions.iter().filter(|(index, _)| stages.contains(index));
    wanted.map(|(index, verdict)| one(&predictor, *index, verdict, &done, sources)).collect()
}

fn one(
    predictor: &Predictor<'_>,
    index: usize,
    verdict: &Action,
    done: &BTreeMap<usize, Entry>,
    sources: &Sources,
) -> Result<Explanation, StoreError> {
    let planner = predictor.planner;
    let stage = &planner.pipeline.stages[index];
    let inputs = match planner.inputs(stage, done) {
        Ok(Ok(inputs) | Err((inputs, _))) => inputs,
        Err(InputError::Store(error)) => return Err(error),
        Err(_) => ResolvedInputs::default(),
    };
    let recipe = planner.recipe(stage, &inputs);
    let last = planner.history().last(&stage.id);
    let changes = last.map(|last| recipe::changes(last.recipe, &recipe)).unwrap_or_default();
    let unknown: BTreeSet<String> = stage
        .inputs
        .keys()
        .filter(|port| !inputs.digests.contains_key(*port))
        .map(|port| format!("inputs.{}", recipe::key_name(port)))
        .collect();
    let field = |name: String, value: Option<String>| {
        let change = changes.iter().find(|change| change.field == name && !unknown.contains(&name)).cloned();
        let place = place(stage, &name, sources);
        let port = stage.inputs.keys().find(|port| name == format!("inputs.{}", recipe::key_name(port)));
        let input =
            port.map(|port| input(planner, index, port, &inputs, done, last.filter(|_| change.is_some())));
        let blame = change.as_ref().and(place.as_ref()).and_then(Location::blame);
        Ok(Field { field: name, value, change, place, blame, input: input.transpose()? })
    };
    let mut names: Vec<(String, Option<String>)> =
        recipe.fields().into_iter().map(|(name, value)| (name, Some(value))).collect();
    // Unknown inputs are not missing inputs.
    names.retain(|(name, _)| name != "inputs" || unknown.is_empty());
    names.extend(unknown.iter().map(|name| (name.clone(), None)));
    // Fields that only the last run had.
    let gone = changes.iter().filter(|change| change.new.is_none() && !unknown.contains(&change.field));
    names.extend(gone.map(|change| (change.field.clone(), Some("absent".to_owned()))));
    let hashed: BTreeSet<&String> = names.iter().map(|(name, _)| name).collect();
    // In the form of a manifest: without secrets.
    let unhashed = recipe::param_fields(&stage.stage.recorded());
    let unhashed = unhashed.into_iter().filter(|(name, _)| !hashed.contains(name)).collect();
    let fields =
        names.into_iter().map(|(name, value)| field(name, value)).collect::<Result<_, StoreError>>()?;
    let (word, why) = match verdict {
        Action::Cached(entry) if entry.adopted.is_some() => ("cached", "adopted".to_owned()),
        Action::Cached(_) => ("cached", "a result of this recipe is cached".to_owned()),
        Action::Run(_, _, reason) => ("run", reason.to_string()),
        Action::Pending { upstream, certain: Some(reason) } => {
            ("run", format!("{reason}; after {}", upstream.join(", ")))
        }
        Action::Pending { upstream, certain: None } => {
            ("pending", format!("runs only if {} changes", upstream.join(" or ")))
        }
        Action::InvalidInput(error) => ("invalid input", error.clone()),
    };
    let predicted = predictor.predict(stage, verdict)?;
    let units = match verdict {
        Action::Cached(_) => units(planner, index, &inputs)?,
        _ => predicted.as_ref().and_then(|predicted| predicted.units),
    };
    Ok(Explanation {
        stage: stage.id.clone(),
        kind: stage.kind().name.to_owned(),
        action: word,
        why,
        fields,
        unhashed,
        since: last.map(|last| (last.run.started.clone(), last.path.to_path_buf())),
        units,
        predicted,
    })
}

/// The numbers of cached and of all units of a stage.
fn units(planner: &Planner<'_>, index: usize, inputs: &ResolvedInputs) -> Result<Option<Units>, StoreError> {
    let stage = &planner.pipeline.stages[index];
    let units = stage.stage.units(&Inputs(inputs.paths.clone()));
    let units = units.unwrap_or(kind::Units::Whole);
    if units == kind::Units::Whole {
        return Ok(None);
    }
    let mut lookup = |_: &_, recipe: &Recipe| planner.store.lookup(&recipe.fingerprint());
    let (_, entries) = planner.unit_entries(stage, inputs, &units, &mut lookup)?;
    Ok(Some(Units { cached: entries.iter().flatten().count(), total: entries.len() }))
}

/// The artifact on a port, and its files that changed since an earlier run.
fn input(
    planner: &Planner<'_>,
    index: usize,
    port: &str,
    inputs: &ResolvedInputs,
    done: &BTreeMap<usize, Entry>,
    last: Option<Last<'_>>,
) -> Result<Input, StoreError> {
    let feed = &planner.pipeline.stages[index].inputs[port];
    let mut input = Input { reads: reads(planner, feed), bytes: None, written: None, files: None };
    match feed {
        Feed::File(path) => {
            let metadata = fs_err::metadata(path).ok();
            let time = metadata.as_ref().and_then(|metadata| metadata.modified().ok());
            input.written = time.map(time_of);
            input.bytes = metadata.filter(std::fs::Metadata::is_file).map(|metadata| metadata.len());
            if let Some(last) = last {
                input.files = file_changes::newer(path, &last.run.started);
            }
        }
        Feed::Port { stage: upstream, port: output, sub, .. } => {
            let Some(now) = done.get(upstream).and_then(|entry| entry.outputs.get(output)) else {
                return Ok(input);
            };
            let path = inputs.paths.get(port).and_then(|path| fs_err::metadata(path).ok());
            input.bytes = path.filter(std::fs::Metadata::is_file).map(|metadata| metadata.len());
            let id = &planner.pipeline.stages[*upstream].id;
            let before: Option<Digest> = last.and_then(|last| {
                let record = last.run.stages.iter().find(|record| record.stage == *id)?;
                Some(record.outputs.get(output)?.digest)
            });
            if let (Some(before), true) = (before, now.folder) {
                input.files = file_changes::changed(planner.store, &before, &now.digest, sub.as_deref())?;
            }
        }
    }
    Ok(input)
}

/// `stage.port/below`, or a path.
fn reads(planner: &Planner<'_>, feed: &Feed) -> String {
    match feed {
        Feed::File(path) => path.display().to_string(),
        Feed::Port { stage, port, sub, .. } => {
            let below = sub.as_ref().map(|sub| format!("/{sub}")).unwrap_or_default();
            format!("{}.{port}{below}", planner.pipeline.stages[*stage].id)
        }
    }
}

/// A time for people, UTC.
fn time_of(time: std::time::SystemTime) -> String {
    let time = jiff::Timestamp::try_from(time);
    time.map(|time| time.strftime("%Y-%m-%d %H:%M:%S").to_string()).unwrap_or_default()
}
