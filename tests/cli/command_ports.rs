//! Stages that name their own ports: what is hashed of them, and the errors of invalid ones.

use std::path::PathBuf;

use attrflow::kinds;
use attrflow_engine::pipeline::{self, Pipeline};
use serde_json::{Value as Json, json};

use tempfile::TempDir;

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

/// A folder with this pipeline, and the pipeline's file.
fn project(pipeline: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in [("pipelines/toy.toml", pipeline), ("configs/toy.toml", "name = \"n\"\n")] {
        let path = folder.path().join(name);
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        fs_err::write(path, text).unwrap();
    }
    let file = folder.path().join("pipelines/toy.toml");
    (folder, file)
}

/// The text with something replaced, which must be in it.
fn changed(text: &str, old: &str, new: &str) -> String {
    assert!(text.contains(old), "{old:?} is not in {text}");
    text.replace(old, new)
}

fn load(pipeline: &str) -> Pipeline {
    let (_folder, file) = project(pipeline);
    let loaded = pipeline::load(&file, &[], &kinds::kinds());
    loaded.unwrap_or_else(|(problems, sources)| panic!("{}", problems.render(&sources, false))).0
}

fn faults(old: &str, new: &str) -> String {
    let (folder, file) = project(&changed(PIPELINE, old, new));
    let Err((problems, sources)) = pipeline::load(&file, &[], &kinds::kinds()) else {
        panic!("the pipeline has no fault")
    };
    problems.render(&sources, false).replace(folder.path().to_str().unwrap(), "PROJECT")
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
    assert!(!stage.kind().libtorch);
    stage.stage.identity()
}

#[test]
fn what_is_hashed_of_a_command() {
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
fn placeholders_without_a_port() {
    insta::assert_snapshot!(faults("{output.table}", "{output.tabel}"), @r#"
    error: `{output.tabel}`: the stage has no output `tabel`; did you mean `table`?
     --> PROJECT/pipelines/toy.toml:8:26
      |
    8 | argv = ["tool", "--out", "{output.tabel}", "{param.name}"]
      |                          ^^^^^^^^^^^^^^^^
    "#);
    insta::assert_snapshot!(faults("{input.data.csv}", "{input.data}"), @r#"
    error: `{input.data}`: the stage has no input `data`
      --> PROJECT/pipelines/toy.toml:16:28
       |
    16 | params = { argv = ["tool", "{input.data}"], outputs = { o = "o" } }
       |                            ^^^^^^^^^^^^^^
    "#);
    insta::assert_snapshot!(faults("{param.name}", "{param.nmae}"), @r#"
    error: `{param.nmae}`: there is no `nmae` in `values`; did you mean `name`?
     --> PROJECT/pipelines/toy.toml:8:44
      |
    8 | argv = ["tool", "--out", "{output.table}", "{param.nmae}"]
      |                                            ^^^^^^^^^^^^^^
    "#);
    insta::assert_snapshot!(faults("{param.name}", "{name}"), @r#"
    error: unknown placeholder `{name}`: expected `{input.NAME}`, `{output.NAME}` or `{param.KEY}`; a literal brace is doubled
     --> PROJECT/pipelines/toy.toml:8:44
      |
    8 | argv = ["tool", "--out", "{output.table}", "{name}"]
      |                                            ^^^^^^^^
    "#);
    insta::assert_snapshot!(faults("{param.name}", "awk '{print}"), @r#"
    error: unknown placeholder `{print}`: expected `{input.NAME}`, `{output.NAME}` or `{param.KEY}`; a literal brace is doubled
     --> PROJECT/pipelines/toy.toml:8:44
      |
    8 | argv = ["tool", "--out", "{output.table}", "awk '{print}"]
      |                                            ^^^^^^^^^^^^^^
    "#);
    insta::assert_snapshot!(faults("{param.name}", "x}"), @r#"
    error: a `}` without its `{`: expected `{input.NAME}`, `{output.NAME}` or `{param.KEY}`; a literal brace is doubled
     --> PROJECT/pipelines/toy.toml:8:44
      |
    8 | argv = ["tool", "--out", "{output.table}", "x}"]
      |                                            ^^^^
    "#);
}

#[test]
fn invalid_ports() {
    insta::assert_snapshot!(faults("first.table", "first.tabel"), @r#"
    error: the stage `first` has no output `tabel`
      --> PROJECT/pipelines/toy.toml:15:25
       |
    15 | inputs = { "data.csv" = "first.tabel", plot = "first.plots/a.png" }
       |                         ^^^^^^^^^^^^^
       |
       = help: did you mean `table`?
    "#);
    insta::assert_snapshot!(faults("plot = \"first", "\"../plot\" = \"first"), @r#"
    error: `../plot` is not a valid input name: expected at most 200 letters, digits, `_`; after the first character also `-` and `.`
      --> PROJECT/pipelines/toy.toml:15:40
       |
    15 | inputs = { "data.csv" = "first.table", "../plot" = "first.plots/a.png" }
       |                                        ^^^^^^^^^
    "#);
    insta::assert_snapshot!(faults("plots = \"plots\"", "plots = \"a/plots\""), @r#"
    error: the output `plots` is `a/plots`, expected a file name: at most 200 letters, digits, `_`; after the first character also `-` and `.`
     --> PROJECT/pipelines/toy.toml:9:11
      |
    9 | outputs = { table = "table.csv", plots = "a/plots" }
      |           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
    "#);
    insta::assert_snapshot!(faults("plots = \"plots\"", "plots = \"table.csv\""), @r#"
    error: the outputs `plots` and `table` are both `table.csv`
     --> PROJECT/pipelines/toy.toml:9:11
      |
    9 | outputs = { table = "table.csv", plots = "table.csv" }
      |           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
    "#);
    insta::assert_snapshot!(faults("o = \"o\"", "o = \"tmp\""), @r#"
    error: the output `o` cannot be `tmp`, which is reserved
      --> PROJECT/pipelines/toy.toml:16:59
       |
    16 | params = { argv = ["tool", "{input.data.csv}"], outputs = { o = "tmp" } }
       |                                                           ^^^^^^^^^^^^^
    "#);
    insta::assert_snapshot!(faults("outputs = { o = \"o\" }", "outputs = {}"), @r#"
    error: `outputs` is empty, expected at least one `name = "file"`
      --> PROJECT/pipelines/toy.toml:16:59
       |
    16 | params = { argv = ["tool", "{input.data.csv}"], outputs = {} }
       |                                                           ^^
    "#);
    insta::assert_snapshot!(faults("outputs = { table = \"table.csv\", plots = \"plots\" }", ""), @r#"
    error: the key `outputs` is missing
     --> PROJECT/pipelines/toy.toml:7:1
      |
    7 | [stages.first.params]
      | ^^^^^^^^^^^^^^^^^^^^^
      |
      = help: add `outputs`, a table, each value a string

    error: the stage `first` has no output `table`
      --> PROJECT/pipelines/toy.toml:15:25
       |
    15 | inputs = { "data.csv" = "first.table", plot = "first.plots/a.png" }
       |                         ^^^^^^^^^^^^^

    error: the stage `first` has no output `plots`
      --> PROJECT/pipelines/toy.toml:15:47
       |
    15 | inputs = { "data.csv" = "first.table", plot = "first.plots/a.png" }
       |                                               ^^^^^^^^^^^^^^^^^^^
    "#);
    insta::assert_snapshot!(faults("plots = \"plots\"", "plots = 3"), @r#"
    error: expected a string, found an integer
     --> PROJECT/pipelines/toy.toml:9:42
      |
    9 | outputs = { table = "table.csv", plots = 3 }
      |                                          ^
    "#);
}

#[test]
fn invalid_variables_and_programs() {
    insta::assert_snapshot!(faults("CUDA_VISIBLE_DEVICES", "CUDA-DEVICES"), @r#"
    error: invalid variable name `CUDA-DEVICES`: expected letters, digits and `_`, not starting with a digit
      --> PROJECT/pipelines/toy.toml:11:8
       |
    11 | env = ["CUDA-DEVICES"]
       |        ^^^^^^^^^^^^^^
    "#);
    insta::assert_snapshot!(faults("CUDA_VISIBLE_DEVICES", "TMPDIR"), @r#"
    error: `TMPDIR` is set for every command and cannot be passed on
      --> PROJECT/pipelines/toy.toml:11:8
       |
    11 | env = ["TMPDIR"]
       |        ^^^^^^^^
    "#);
    insta::assert_snapshot!(faults("[\"tool\", \"{input.data.csv}\"]", "[]"), @r#"
    error: `argv` is empty, expected a program and its arguments
      --> PROJECT/pipelines/toy.toml:16:19
       |
    16 | params = { argv = [], outputs = { o = "o" } }
       |                   ^^
    "#);
    insta::assert_snapshot!(faults("[\"tool\", \"{input.data.csv}\"]", "\"tool\""), @r#"
    error: expected an array, found a string
      --> PROJECT/pipelines/toy.toml:16:19
       |
    16 | params = { argv = "tool", outputs = { o = "o" } }
       |                   ^^^^^^
    "#);
}
