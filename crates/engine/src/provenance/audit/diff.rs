//! Compares two manifests, key by key.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::{Value as Json, json};

use crate::identity::recipe::Recipe;
use crate::provenance::manifest::{Manifest, Outcome, StageRecord};

/// One key that differs between two manifests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// The dotted name.
    pub key: String,
    /// The value in the first, `None` if absent.
    pub a: Option<String>,
    /// The value in the second, `None` if absent.
    pub b: Option<String>,
}

/// The differences between two manifests; times are not compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diff {
    /// Program, pipeline, numerics and conditions.
    pub run: Vec<Difference>,
    /// By stage, in the first's order: recipe and sources.
    pub recipes: Vec<(String, Vec<Difference>)>,
    /// By stage: outputs, and stages that only one has or that only one completed.
    pub results: Vec<(String, Vec<Difference>)>,
}

impl Diff {
    /// Compares two manifests.
    pub fn of(a: &Manifest, b: &Manifest) -> Self {
        let mut names: Vec<&String> = a.stages.iter().map(|record| &record.stage).collect();
        let known: BTreeSet<&String> = names.iter().copied().collect();
        names.extend(b.stages.iter().map(|record| &record.stage).filter(|name| !known.contains(name)));
        let record = |manifest: &'_ Manifest, name: &str| {
            manifest.stages.iter().find(|record| record.stage == name).cloned()
        };
        let (mut recipes, mut results) = (Vec::new(), Vec::new());
        for name in names {
            let (a, b) = (record(a, name), record(b, name));
            for (list, part) in [(&mut recipes, origin as Part), (&mut results, result)] {
                let part = |record: &Option<StageRecord>| record.as_ref().map(part).unwrap_or_default();
                let differences = compare(&part(&a), &part(&b));
                if !differences.is_empty() {
                    list.push((name.clone(), differences));
                }
            }
        }
        Self { run: compare(&run(a), &run(b)), recipes, results }
    }

    /// Whether both have the same stages with the same outputs.
    pub fn same_results(&self) -> bool {
        self.results.is_empty()
    }
}

/// Names and values.
type Fields = Vec<(String, String)>;
type Part = fn(&StageRecord) -> Fields;

/// The properties of the run.
fn run(manifest: &Manifest) -> Fields {
    let Manifest { format, attrflow, pipeline, file, sets, numerics, conditions, .. } = manifest;
    let whole = json!({
        "format": format, "attrflow": attrflow, "pipeline": pipeline, "file": file, "sets": sets,
        "numerics": numerics, "conditions": conditions,
    });
    let mut fields = Vec::new();
    flatten("", &whole, &mut fields);
    fields
}

fn flatten(name: &str, value: &Json, fields: &mut Fields) {
    match value {
        Json::Object(map) => {
            for (key, value) in map {
                let name = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
                flatten(&name, value, fields);
            }
        }
        value => fields.push((name.to_owned(), value.to_string())),
    }
}

/// The origin of a stage's result: its recipe, the paths of its sources, and adopted files.
fn origin(record: &StageRecord) -> Fields {
    let mut fields = record.recipe.as_ref().map(Recipe::fields).unwrap_or_default();
    fields.extend(record.sources.iter().map(|(port, path)| (format!("sources.{port}"), shown(path))));
    let adopted = record.adopted.iter().flat_map(|adopted| &adopted.paths);
    fields.extend(adopted.map(|(port, path)| (format!("adopted.{port}"), shown(path))));
    fields
}

fn shown(path: &std::path::Path) -> String {
    path.display().to_string()
}

/// How a stage ended; cached or computed is the same.
fn result(record: &StageRecord) -> Fields {
    let ended = match record.outcome {
        Outcome::Ran | Outcome::Cached => "done",
        Outcome::Failed => "failed",
        Outcome::Blocked => "blocked",
        Outcome::Interrupted => "interrupted",
    };
    let outputs = record.outputs.iter().map(|(port, output)| (format!("outputs.{port}"), output.digest));
    let mut fields: Fields = vec![("ended".into(), ended.into())];
    fields.extend(outputs.map(|(name, digest)| (name, digest.to_string())));
    fields
}

/// The fields that differ, in the order of the first.
fn compare(a: &Fields, b: &Fields) -> Vec<Difference> {
    let map = |fields: &Fields| fields.iter().cloned().collect::<BTreeMap<_, _>>();
    let (known_a, known_b) = (map(a), map(b));
    let names = a.iter().chain(b.iter().filter(|(name, _)| !known_a.contains_key(name)));
    names
        .map(|(name, _)| Difference {
            key: name.clone(),
            a: known_a.get(name).cloned(),
            b: known_b.get(name).cloned(),
        })
        .filter(|difference| difference.a != difference.b)
        .collect()
}
