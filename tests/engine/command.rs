//! Stages that name their own ports: what counts of them, and what the user is told about one that cannot be.

use attrflow::pipeline::{self, Pipeline};
use attrflow::stages;
use serde_json::{Value as Json, json};

use crate::project::{Project, changed};

const PIPELINE: &str = r#"
config = "../configs/toy.toml"

[stages.first]
kind = "command"

[stages.first.params]
argv = ["tool", "--out", "{output.table}", "{param.name}"]
outputs = { table = "table.csv", plots = "plots" }
values = { name = "${name}", sizes = [1, 2] }
env = ["CUDA_VISIBLE_DEVICES"]

[stages.second]
kind = "command"
inputs = { "data.csv" = "first.table", plot = "first.plots/a.png" }
params = { argv = ["tool", "{input.data.csv}"], outputs = { o = "o" } }
"#;

fn project(pipeline: &str) -> Project {
    Project::new(pipeline, "name = \"n\"\n")
}

fn load(pipeline: &str) -> Pipeline {
    let file = project(pipeline);
    let loaded = pipeline::load(&file.path("pipelines/toy.toml"), &[], &stages::kinds());
    loaded.unwrap_or_else(|(problems, sources)| panic!("{}", problems.render(&sources, false))).0
}

fn faults(old: &str, new: &str) -> String {
    let file = project(&changed(PIPELINE, old, new));
    let Err((problems, sources)) = pipeline::load(&file.path("pipelines/toy.toml"), &[], &stages::kinds())
    else {
        panic!("the pipeline has no fault")
    };
    problems.render(&sources, false).replace(file.root.to_str().unwrap(), "PROJECT")
}

#[test]
fn its_ports_are_what_it_declares() {
    let pipeline = load(PIPELINE);
    let first: Vec<_> =
        pipeline.stages[0].outputs.iter().map(|port| (port.name.as_str(), port.file.as_str())).collect();
    assert_eq!(first, [("plots", "plots"), ("table", "table.csv")]);
    assert_eq!(pipeline.stages[1].inputs.keys().collect::<Vec<_>>(), ["data.csv", "plot"]);
}

/// What counts of the first stage.
fn identity(old: &str, new: &str) -> Json {
    let pipeline = load(&changed(PIPELINE, old, new));
    let stage = pipeline.stages.iter().find(|stage| stage.outputs.len() == 2).unwrap();
    assert!(!stage.kind.numeric() && stage.kind.light());
    stage.kind.identity(&stage.params)
}

#[test]
fn what_counts_of_it() {
    let before = identity("tool", "tool");
    assert_eq!(
        before,
        json!({
            "argv": ["tool", "--out", "{output.table}", "{param.name}"],
            "outputs": { "plots": "plots", "table": "table.csv" },
            "values": { "name": "n", "sizes": [1, 2] },
            "env_counted": null,
        })
    );
    for (old, new) in [
        ("env = [\"CUDA_VISIBLE_DEVICES\"]", ""),
        ("env = [\"CUDA_VISIBLE_DEVICES\"]", "env = [\"OTHER\"]"),
        ("env = [\"CUDA_VISIBLE_DEVICES\"]", "env_counted = []"),
        ("[stages.first]", "[stages.first] # renamed below"),
    ] {
        assert_eq!(identity(old, new), before, "{new}");
    }
    for (old, new) in [
        ("\"--out\"", "\"--out\", \"-v\""),
        ("table.csv", "table.tsv"),
        ("[1, 2]", "[1, 2.0]"),
        ("\"${name}\"", "\"m\""),
        ("env = [", "env_counted = [\"ATTRFLOW_TEST_UNSET\"]\nenv = ["),
    ] {
        assert_ne!(identity(old, new), before, "{new}");
    }
}

#[test]
fn placeholders_that_stand_for_nothing() {
    insta::assert_snapshot!(faults("{output.table}", "{output.tabel}"), @"");
    insta::assert_snapshot!(faults("{input.data.csv}", "{input.data}"), @"");
    insta::assert_snapshot!(faults("{param.name}", "{param.nmae}"), @"");
    insta::assert_snapshot!(faults("{param.name}", "{name}"), @"");
    insta::assert_snapshot!(faults("{param.name}", "awk '{print}"), @"");
    insta::assert_snapshot!(faults("{param.name}", "x}"), @"");
}

#[test]
fn ports_that_cannot_be() {
    insta::assert_snapshot!(faults("first.table", "first.tabel"), @"");
    insta::assert_snapshot!(faults("plot = \"first", "\"../plot\" = \"first"), @"");
    insta::assert_snapshot!(faults("plots = \"plots\"", "plots = \"a/plots\""), @"");
    insta::assert_snapshot!(faults("plots = \"plots\"", "plots = \"table.csv\""), @"");
    insta::assert_snapshot!(faults("o = \"o\"", "o = \"tmp\""), @"");
    insta::assert_snapshot!(faults("outputs = { o = \"o\" }", "outputs = {}"), @"");
    insta::assert_snapshot!(faults("outputs = { table = \"table.csv\", plots = \"plots\" }", ""), @"");
    insta::assert_snapshot!(faults("plots = \"plots\"", "plots = 3"), @"");
}

#[test]
fn variables_and_programs_that_cannot_be() {
    insta::assert_snapshot!(faults("CUDA_VISIBLE_DEVICES", "CUDA-DEVICES"), @"");
    insta::assert_snapshot!(faults("CUDA_VISIBLE_DEVICES", "TMPDIR"), @"");
    insta::assert_snapshot!(faults("[\"tool\", \"{input.data.csv}\"]", "[]"), @"");
    insta::assert_snapshot!(faults("[\"tool\", \"{input.data.csv}\"]", "\"tool\""), @"");
}
