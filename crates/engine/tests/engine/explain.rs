//! Explanations, near results and predictions on toy kinds.

use std::collections::BTreeMap;

use attrflow_engine::estimate::{Forecast, MachineProfile};
use attrflow_engine::explain::{
    Edit, Explanation, Location, NearestHit, Prediction, Predictor, cached_entries, explain, nearest,
};
use attrflow_engine::pipeline;
use attrflow_engine::plan::Planner;
use attrflow_engine::plan::graph::Graph;
use attrflow_engine::store::Store;

use crate::project::{Project, project};
use crate::toys::registry;

/// The explanation of one stage.
pub struct Explained {
    pub explanation: Explanation,
    near: Option<NearestHit>,
    pub predicted: BTreeMap<String, Prediction>,
}

pub fn describe(project: &Project, sets: &[&str], stage: &str) -> Explained {
    let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
    let (pipeline, sources) =
        pipeline::load(&project.path("pipelines/toy.toml"), &sets, &registry()).ok().unwrap();
    let graph = Graph::new(&pipeline).ok().unwrap();
    let store = Store::open(&project.cache).unwrap();
    let planner = Planner::new(&pipeline, &store, &project.numerics, &[]);
    let index = pipeline.stages.iter().position(|node| node.id == stage).unwrap();
    let profile = MachineProfile {
        jobs: 2,
        threads: 1,
        micro_batch: 8,
        hardware: "a machine".into(),
        pools: BTreeMap::new(),
    };
    let explanation = explain(&planner, &graph, &[index], &sources, &profile).unwrap().remove(0);
    let actions = planner.all(&graph).unwrap();
    let forecast = Forecast::new(&planner, &actions, &profile);
    let near = nearest(&planner, index, &cached_entries(&actions), &sources).unwrap();
    let predictor = Predictor::new(&planner, &forecast);
    let predicted = actions.iter().filter_map(|(index, verdict)| {
        let node = &pipeline.stages[*index];
        Some((node.id.clone(), predictor.predict(node, verdict).unwrap()?))
    });
    let predicted = predicted.collect();
    Explained { explanation, near, predicted }
}

fn place_of(explained: &Explained, field: &str) -> Option<Location> {
    let found = explained.explanation.fields.iter().find(|found| found.field == field);
    found.unwrap_or_else(|| panic!("no {field}")).place.clone()
}

#[test]
fn values_have_source_locations() {
    let project = project();
    project.run(&[]);
    let of = describe(&project, &["say.text=y"], "lines");
    assert_eq!(place_of(&of, "params.say.text"), Some(Location::Set { key: "say.text".into() }));
    assert_eq!(place_of(&of, "params.say.times"), Some(Location::Default));
    let file = project.path("configs/toy.toml");
    assert_eq!(place_of(&of, "params.to"), Some(Location::File { file, line: 13 }));
    assert_eq!(place_of(&of, "kind"), None);
    assert_eq!(of.explanation.action, "run");
    let changes = of.explanation.fields.iter().filter(|field| field.change.is_some());
    assert_eq!(changes.map(|field| field.field.as_str()).collect::<Vec<_>>(), ["params.say.text"]);
}

#[test]
fn a_changed_folder_is_explained_file_by_file() {
    let project = Project::new(
        "[stages.lines]\nkind = \"count\"\nparams = { say = { text = \"x\" }, title = \"T\" }\n\
         inputs = { from = \"../source.txt\" }\n\
         [stages.echo]\nkind = \"echo\"\ninputs = { lines = \"lines.lines\" }\n",
        "",
    );
    project.write("source.txt", "source\n");
    project.run(&[]);
    project.replace("pipelines/toy.toml", "\"T\"", "\"U\"");
    project.run_targets(&["lines"]);
    let of = describe(&project, &[], "echo");
    let field = of.explanation.fields.iter().find(|field| field.field == "inputs.lines").unwrap();
    let files = field.input.as_ref().unwrap().files.as_ref().unwrap();
    assert_eq!(files.changed, ["lines.txt", "sub/title.txt"]);
    assert!(files.new.is_empty() && files.gone.is_empty(), "{files:?}");
}

#[test]
fn the_nearest_result_is_the_one_with_the_fewest_edits_at_their_source() {
    let project = project();
    project.run(&[]);
    project.run(&["second.text=c", "count.to=3"]);
    let of = describe(&project, &["second.text=d", "count.to=3"], "lines");
    let edits = of.near.unwrap().edits;
    let [Edit::Param { stage, key, change, .. }] = edits.as_slice() else { panic!("{edits:?}") };
    assert_eq!((stage.as_str(), key.as_deref()), ("second", Some("second.text")));
    assert_eq!((change.old.as_deref(), change.new.as_deref()), (Some("\"d\""), Some("\"c\"")));

    project.write("source.txt", "other\n");
    let edits = describe(&project, &[], "first").near.unwrap().edits;
    let [Edit::Input { port, run, .. }] = edits.as_slice() else { panic!("{edits:?}") };
    assert_eq!(port, "a");
    assert!(run.is_some(), "the last run read it so");
}

#[test]
fn predictions_count_the_missing_units() {
    let project = project();
    let of = describe(&project, &[], "first");
    assert!(of.predicted["first"].seconds.is_none(), "nothing has run");
    assert!(of.near.is_none());
    project.run(&[]);
    let of = describe(&project, &["count.to=6"], "lines");
    let predicted = &of.predicted["lines"];
    let units = predicted.units.unwrap();
    assert_eq!((units.cached, units.total), (4, 6));
    assert_eq!(predicted.basis, "its 4 cached units");
    assert_eq!(predicted.bytes, Some(600), "as its kind says, 100 a unit");
    let of = describe(&project, &["second.text=c"], "second");
    // What another text costs is not known: the kind does not say its work.
    assert_eq!(of.predicted["second"].basis, "the last run of second, whose work was of another kind");
    assert_eq!(of.predicted["second"].seconds, None);
    assert_eq!(of.predicted.keys().collect::<Vec<_>>(), ["last[one]", "last[two]", "lines", "second"]);
}

#[test]
fn unknown_inputs_are_not_changes() {
    let project = project();
    project.run(&[]);
    // All inputs of `second` are recomputed.
    let of = describe(&project, &["first.times=3"], "second");
    let names: Vec<&str> = of.explanation.fields.iter().map(|field| field.field.as_str()).collect();
    assert!(names.contains(&"inputs.a") && !names.contains(&"inputs"), "{names:?}");
    assert!(of.explanation.fields.iter().all(|field| field.change.is_none()), "{:?}", of.explanation);
    let edits = of.near.unwrap().edits;
    let [Edit::Param { key, .. }] = edits.as_slice() else { panic!("{edits:?}") };
    assert_eq!(key.as_deref(), Some("first.times"));
}
