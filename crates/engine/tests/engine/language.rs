//! Products of lists, included files, defaults by kind, references to the environment.

use attrflow_engine::pipeline::{self, Pipeline, Source};

use crate::project::{Project, faults};
use crate::toys::registry;

const PIPELINE: &str = r#"
config = "../configs/toy.toml"
include = ["common.toml"]
env = ["CARGO_PKG_NAME"]

[defaults.say]
times = "${times}"

[stages.pair]
kind = "say"
each = { item = "${items}", seed = "${seeds}" }
params = { text = "${item.text}-${seed}" }
inputs = { a = "single.text", b = "common.text" }

[stages.turned]
kind = "say"
each = { seed = "${seeds}", item = "${items}" }
params = { text = "${env:CARGO_PKG_NAME}", times = 3 }
inputs = { a = "pair.text" }

[stages.literal]
kind = "say"
each = { rate = [0.5, 2, true] }

[stages.single]
kind = "say"
each = { item = "${items}" }
"#;

const COMMON: &str = r#"
[stages.common]
kind = "say"
inputs = { a = "../source.txt" }
"#;

const CONFIG: &str = r#"
seeds = [7, 8]
times = 2

[[items]]
name = "one"
text = "1"

[[items]]
name = 2
text = "2"
"#;

fn project(pipeline: &str, config: &str) -> Project {
    let project = Project::new(pipeline, config);
    project.write("source.txt", "source\n");
    project.write("pipelines/common.toml", COMMON);
    project
}

fn load(project: &Project, sets: &[&str]) -> Pipeline {
    let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
    let loaded = pipeline::load(&project.path("pipelines/toy.toml"), &sets, &registry());
    loaded.unwrap_or_else(|(problems, sources)| panic!("{}", problems.render(&sources, false))).0
}

fn params(pipeline: &Pipeline, id: &str) -> serde_json::Value {
    pipeline.stages.iter().find(|stage| stage.id == id).unwrap().stage.to_json()
}

fn fed<'p>(pipeline: &'p Pipeline, id: &str, port: &str) -> &'p str {
    match &pipeline.stages.iter().find(|stage| stage.id == id).unwrap().inputs[port] {
        Source::Port { stage, .. } => &pipeline.stages[*stage].id,
        Source::File(path) => path.to_str().unwrap(),
    }
}

#[test]
fn a_stage_repeats_over_each_combination() {
    let loaded = load(&project(PIPELINE, CONFIG), &[]);
    let ids: Vec<&str> = loaded.stages.iter().map(|stage| stage.id.as_str()).collect();
    let expected = [
        "common",
        "pair[one,7]",
        "pair[one,8]",
        "pair[2,7]",
        "pair[2,8]",
        "turned[7,one]",
        "turned[7,2]",
        "turned[8,one]",
        "turned[8,2]",
        "literal[0.5]",
        "literal[2]",
        "literal[true]",
        "single[one]",
        "single[2]",
    ];
    assert_eq!(ids, expected);
    assert_eq!(params(&loaded, "pair[2,8]")["text"], "2-8");
    // A stage reads the item with the same items, in any order; also from a stage over fewer lists.
    assert_eq!(fed(&loaded, "turned[8,one]", "a"), "pair[one,8]");
    assert_eq!(fed(&loaded, "pair[2,7]", "a"), "single[2]");
}

#[test]
fn defaults_apply_to_missing_parameters() {
    let project = project(PIPELINE, CONFIG);
    let loaded = load(&project, &[]);
    assert_eq!(params(&loaded, "common")["times"], 2);
    assert_eq!(params(&loaded, "turned[7,2]")["times"], 3);
    let set = load(&project, &["times=4"]);
    assert_eq!(params(&set, "common")["times"], 4);
    assert_eq!(params(&set, "turned[7,2]")["times"], 3);
    let set = load(&project, &["defaults.say.times=5", "defaults.count.to=1"]);
    assert_eq!(params(&set, "common")["times"], 5);
    let set = load(&project, &["items.2.text=\"x\""]);
    assert_eq!(params(&set, "pair[2,8]")["text"], "x-8");
}

#[test]
fn declared_variables_are_hashed_and_recorded() {
    let loaded = load(&project(PIPELINE, CONFIG), &[]);
    assert_eq!(params(&loaded, "turned[7,2]")["text"], "attrflow-engine");
    assert_eq!(
        loaded.env.iter().collect::<Vec<_>>(),
        [(&"CARGO_PKG_NAME".to_owned(), &"attrflow-engine".to_owned())]
    );
    let undeclared = project(&PIPELINE.replace("env = [\"CARGO_PKG_NAME\"]", ""), CONFIG).problems(&[]);
    insta::assert_snapshot!(undeclared);
}

#[test]
fn faults_of_the_rest_of_the_language() {
    let of = |from: &str, to: &str| {
        assert!(PIPELINE.contains(from), "{from}");
        project(&PIPELINE.replace(from, to), CONFIG).problems(&[])
    };
    let mut messages = String::new();
    let single = "each = { item = \"${items}\" }\n";
    for (from, to) in [
        ("[defaults.say]\ntimes", "[defaults.say]\ntime"),
        ("[defaults.say]", "[defaults.sya]"),
        ("[stages.single]", "[stages.common]"),
        ("[\"common.toml\"]", "[\"toy.toml\"]"),
        ("[\"common.toml\"]", "[\"nowhere.toml\"]"),
        ("[\"common.toml\"]", "\"common.toml\""),
        ("${env:CARGO_PKG_NAME}", "${env:ATTRFLOW_NOT_SET}"),
        ("${env:CARGO_PKG_NAME}", "${env:A B}"),
        (single, "each = { }\n"),
        (single, "each = { item = [\"${x}\"] }\n"),
        ("\"pair.text\"", "\"literal.text\""),
    ] {
        messages += &of(from, to);
        messages += "\n\n";
    }
    let named = CONFIG.replace("name = 2", "name = 1.5");
    messages += &project(PIPELINE, &named).problems(&[]);
    insta::assert_snapshot!(messages);
}

#[test]
fn a_cycle_of_includes_is_named() {
    let project = project(PIPELINE, CONFIG);
    project
        .write("pipelines/common.toml", "include = [\"more/deep.toml\"]\n[stages.common]\nkind = \"say\"\n");
    project.write("pipelines/more/deep.toml", "include = [\"../common.toml\"]\n");
    insta::assert_snapshot!(project.problems(&[]));
}

#[test]
fn two_combinations_with_one_name_are_a_fault() {
    let pipeline = "config = \"../configs/toy.toml\"\n[stages.x]\nkind = \"say\"\neach = { a = \"${a}\", b = \"${b}\" }\n";
    let messages = faults(pipeline, "a = [\"p\", \"p,q\"]\nb = [\"q,r\", \"r\"]\n", &[]);
    assert!(messages.contains("two combinations have the name `p,q,r`"), "{messages}");
}

#[test]
fn ten_thousand_stages_are_read() {
    use std::fmt::Write;
    let mut pipeline = String::from("[stages.s0]\nkind = \"say\"\n");
    for n in 1..10_000 {
        writeln!(
            pipeline,
            "[stages.s{n}]\nkind = \"say\"\ninputs = {{ a = \"s{}.text\", b = \"s0.text\" }}",
            n - 1
        )
        .unwrap();
    }
    let project = Project::new(&pipeline, "");
    let loaded = load(&project, &[]);
    assert_eq!(loaded.stages.len(), 10_000);
    assert_eq!(
        attrflow_engine::plan::graph::Graph::new(&loaded).map_err(|_| ()).unwrap().order().len(),
        10_000
    );
}
