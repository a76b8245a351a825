//! Disabled stages, and inputs with alternatives.

use attrflow_engine::pipeline::{self, Pipeline, Source};
use attrflow_engine::plan::graph::named;

use crate::project::{Project, changed};
use crate::toys::registry;

/// `counted` can be replaced by the file, `made` by nothing.
const PIPELINE: &str = r#"
config = "../configs/toy.toml"

[stages.counted]
kind = "count"
when = "${use.counted}"
params = { say = "${say}", to = 2 }
inputs = { from = "../source.txt" }

[stages.stored]
kind = "count"
when = "not ${use.counted}"
params = { say = { text = "stored" }, to = 3 }
inputs = { from = "../source.txt" }

[stages.both]
kind = "say"
when = ["not ${use.counted}", "${use.extra}"]

[stages.last]
kind = "echo"
inputs = { lines = ["counted.lines", "stored.lines"] }

[stages.item]
kind = "say"
each = { item = "${items}" }
when = "${item.on}"
params = { text = "${item.name}" }

[stages.reader]
kind = "say"
each = { item = "${items}" }
params = { text = "r" }
inputs = { a = ["item.text", "both.text", ""], b = ["counted.lines/lines.txt", "../source.txt"] }
"#;

const CONFIG: &str = r#"
[use]
counted = true
extra = true

[say]
text = "x"

[[items]]
name = "one"
on = true

[[items]]
name = "two"
on = false
"#;

fn project() -> Project {
    let project = Project::new(PIPELINE, CONFIG);
    project.write("source.txt", "source\n");
    project
}

fn load(project: &Project, sets: &[&str]) -> Pipeline {
    let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
    let loaded = pipeline::load(&project.path("pipelines/toy.toml"), &sets, &registry());
    loaded.unwrap_or_else(|(problems, sources)| panic!("{}", problems.render(&sources, false))).0
}

fn ids(pipeline: &Pipeline) -> Vec<&str> {
    pipeline.stages.iter().map(|stage| stage.id.as_str()).collect()
}

/// The source of a stage's input: the stage's name, the file's, or nothing.
fn fed(pipeline: &Pipeline, id: &str, port: &str) -> String {
    let stage = pipeline.stages.iter().find(|stage| stage.id == id).unwrap();
    match stage.inputs.get(port) {
        Some(Source::Port { stage, .. }) => pipeline.stages[*stage].id.clone(),
        Some(Source::File(path)) => path.file_name().unwrap().to_str().unwrap().to_owned(),
        None => String::new(),
    }
}

/// The faults after edits of the pipeline.
fn faults(edits: &[(&str, &str)], sets: &[&str]) -> String {
    let text = edits.iter().fold(PIPELINE.to_owned(), |text, (old, new)| changed(&text, old, new));
    let project = Project::new(&text, CONFIG);
    project.write("source.txt", "source\n");
    project.problems(sets)
}

#[test]
fn the_first_enabled_alternative_is_used() {
    let project = project();
    let on = load(&project, &[]);
    let open = changed(PIPELINE, r#"b = ["counted.lines/lines.txt", "../source.txt"]"#, r#"b = """#);
    let open = Project::new(&open, CONFIG);
    open.write("source.txt", "source\n");
    assert_eq!(ids(&load(&open, &[])), ids(&on), "an optional input may be left open");
    assert_eq!(ids(&on), ["counted", "both", "last", "item[one]", "reader[one]", "reader[two]"]);
    assert_eq!(fed(&on, "last", "lines"), "counted");
    assert_eq!(fed(&on, "reader[one]", "a"), "item[one]");
    assert_eq!(fed(&on, "reader[two]", "a"), "both");
    assert_eq!(fed(&on, "reader[two]", "b"), "counted");

    let off = load(&project, &["use.counted=false", "use.extra=false"]);
    assert_eq!(ids(&off), ["stored", "both", "last", "item[one]", "reader[one]", "reader[two]"]);
    assert_eq!(fed(&off, "last", "lines"), "stored");
    assert_eq!(fed(&off, "reader[two]", "b"), "source.txt");

    let none = load(&project, &["use.extra=false"]);
    assert_eq!(ids(&none), ["counted", "last", "item[one]", "reader[one]", "reader[two]"]);
    assert_eq!(fed(&none, "reader[two]", "a"), "");
}

#[test]
fn inherited_parameters_follow_the_alternative() {
    let project = project();
    let text = |pipeline: &Pipeline| {
        let last = pipeline.stages.iter().find(|stage| stage.id == "last").unwrap();
        last.stage.to_json()["say"]["text"].as_str().unwrap().to_owned()
    };
    assert_eq!(text(&load(&project, &[])), "x");
    assert_eq!(text(&load(&project, &["use.counted=false"])), "stored");
}

#[test]
fn disabled_stages_are_not_run_and_their_results_are_removed() {
    let project = project();
    let ran = project.run(&[]);
    assert_eq!(ran.ran(), ["both", "counted", "item[one]", "last", "reader[one]", "reader[two]"]);
    assert!(project.path("results/toy/counted").exists());
    let ran = project.run(&["use.counted=false", "items.one.on=false", "items.two.on=true"]);
    assert_eq!(ran.ran(), ["item[two]", "last", "reader[one]", "reader[two]", "stored"]);
    let results = project.results();
    let stages = ["both", "item/two", "last", "reader/one", "reader/two", "stored"];
    for name in results.keys().filter(|name| !name.starts_with('.')) {
        assert!(stages.iter().any(|stage| name.starts_with(stage)), "{name}");
    }
    for gone in ["counted", "item/one"] {
        assert!(!project.path("results/toy").join(gone).exists(), "{gone}");
    }
    // And back: nothing is computed.
    assert!(project.run(&[]).ran().is_empty());
}

#[test]
fn a_disabled_target_names_the_location() {
    let project = project();
    let pipeline = load(&project, &["use.counted=false"]);
    let error = named(&["counted".to_owned()], &pipeline).unwrap_err();
    assert_eq!(error, "the stage `counted` is disabled at --set:1:13");
    let pipeline = load(&project, &["use.extra=false"]);
    let place = |name: &str| named(&[name.to_owned()], &pipeline).unwrap_err();
    let place = |name: &str| place(name).replace(project.root.to_str().unwrap(), "PROJECT");
    assert_eq!(place("both"), "the stage `both` is disabled at PROJECT/pipelines/toy.toml:18:8");
    assert_eq!(place("item[two]"), "the stage `item[two]` is disabled at PROJECT/configs/toy.toml:15:6");
    assert_eq!(named(&["item".to_owned()], &pipeline).unwrap().len(), 1);
}

#[test]
fn an_input_whose_sources_are_all_disabled() {
    let last = r#"lines = ["counted.lines", "stored.lines"]"#;
    insta::assert_snapshot!(faults(&[(last, r#"lines = "counted.lines""#)], &["use.counted=false"]), @r#"
    error: the stage `counted` is disabled at --set:1:13
      --> PROJECT/pipelines/toy.toml:22:20
       |
    22 | inputs = { lines = "counted.lines" }
       |                    ^^^^^^^^^^^^^^^
    "#);
    insta::assert_snapshot!(faults(&[(r#""both.text", """#, r#""both.text""#)], &["use.extra=false"]), @r#"
    error: all of these stages are disabled: `item[two]` at PROJECT/configs/toy.toml:15:6, `both` at PROJECT/pipelines/toy.toml:18:8
      --> PROJECT/pipelines/toy.toml:34:16
       |
    34 | inputs = { a = ["item.text", "both.text"], b = ["counted.lines/lines.txt", "../source.txt"] }
       |                ^^^^^^^^^^^^^^^^^^^^^^^^^^
       |
       = help: add `""` as the last alternative to leave `a` open
    "#);
    insta::assert_snapshot!(faults(&[(r#"a = ["item.text", "both.text", ""]"#, r#"a = "both.text""#)], &["use.extra=false"]), @r#"
    error: the stage `both` is disabled at PROJECT/pipelines/toy.toml:18:8
      --> PROJECT/pipelines/toy.toml:34:16
       |
    34 | inputs = { a = "both.text", b = ["counted.lines/lines.txt", "../source.txt"] }
       |                ^^^^^^^^^^^
       |
       = help: add `""` as the last alternative to leave `a` open
    "#);
}

#[test]
fn names_are_checked_in_disabled_stages_too() {
    insta::assert_snapshot!(faults(&[(r#""counted.lines", "stored.lines""#, r#""counted.lines", "sotred.lines""#)], &[]), @r#"
    error: unknown stage `sotred`
      --> PROJECT/pipelines/toy.toml:22:38
       |
    22 | inputs = { lines = ["counted.lines", "sotred.lines"] }
       |                                      ^^^^^^^^^^^^^^
       |
       = help: did you mean `stored`?
    "#);
    insta::assert_snapshot!(faults(&[(r#""counted.lines", "stored.lines""#, r#""counted.lines", "stored.line""#)], &[]), @r#"
    error: the stage `stored` has no output `line`
      --> PROJECT/pipelines/toy.toml:22:38
       |
    22 | inputs = { lines = ["counted.lines", "stored.line"] }
       |                                      ^^^^^^^^^^^^^
       |
       = help: did you mean `lines`?
    "#);
    // In a disabled stage: its kind, its ports, its references and the config keys that it reads.
    insta::assert_snapshot!(faults(&[(
        "params = { say = { text = \"stored\" }, to = 3 }\ninputs = { from = \"../source.txt\" }",
        "params = { say = \"${sya}\" }\ninputs = { from = \"cuonted.lines\", nmae = \"first.text\", name = \"../nowhere\" }",
    )], &[]), @r#"
    error: `${sya}` does not exist: unknown key `sya`
      --> PROJECT/pipelines/toy.toml:13:18
       |
    13 | params = { say = "${sya}" }
       |                  ^^^^^^^^
       |
       = help: the config has `say`: one of the two is misspelt

    error: unknown stage `cuonted`
      --> PROJECT/pipelines/toy.toml:14:19
       |
    14 | inputs = { from = "cuonted.lines", nmae = "first.text", name = "../nowhere" }
       |                   ^^^^^^^^^^^^^^^
       |
       = help: did you mean `counted`?

    error: the kind `count` has no input `nmae`
      --> PROJECT/pipelines/toy.toml:14:36
       |
    14 | inputs = { from = "cuonted.lines", nmae = "first.text", name = "../nowhere" }
       |                                    ^^^^
       |
       = help: did you mean `name`?
    "#);
}

#[test]
fn faults_of_a_when() {
    let of = |when: &str, sets: &[&str]| {
        faults(&[(r#"when = ["not ${use.counted}", "${use.extra}"]"#, &format!("when = {when}"))], sets)
    };
    insta::assert_snapshot!(of(r#""${use.counetd}""#, &[]), @r#"
    error: `${use.counetd}` does not exist: unknown key `counetd`
      --> PROJECT/pipelines/toy.toml:18:8
       |
    18 | when = "${use.counetd}"
       |        ^^^^^^^^^^^^^^^^
       |
       = help: the config has `counted`: one of the two is misspelt
    "#);
    insta::assert_snapshot!(of(r#""${say.text}""#, &[]), @r#"
    error: expected true or false, found a string
     --> PROJECT/configs/toy.toml:7:8
      |
    7 | text = "x"
      |        ^^^
      |
      = help: expected `"${a.switch}"`, `"not ${a.switch}"`, or an array of alternatives
    "#);
    insta::assert_snapshot!(of(r#"["${use.extra}", "use.extra"]"#, &[]), @r#"
    error: expected true or false, found a string
      --> PROJECT/pipelines/toy.toml:18:25
       |
    18 | when = ["${use.extra}", "use.extra"]
       |                         ^^^^^^^^^^^
       |
       = help: expected `"${a.switch}"`, `"not ${a.switch}"`, or an array of alternatives
    "#);
    insta::assert_snapshot!(of("[]", &[]), @r#"
    error: `when` is empty, expected at least one condition
      --> PROJECT/pipelines/toy.toml:18:8
       |
    18 | when = []
       |        ^^
    "#);
}

#[test]
fn faults_of_alternatives() {
    let of = |b: &str| {
        faults(&[(r#"b = ["counted.lines/lines.txt", "../source.txt"]"#, &format!("b = {b}"))], &[])
    };
    insta::assert_snapshot!(of("[]"), @r#"
    error: the array is empty, expected at least one `stage.port` or path
      --> PROJECT/pipelines/toy.toml:34:52
       |
    34 | inputs = { a = ["item.text", "both.text", ""], b = [] }
       |                                                    ^^
    "#);
    insta::assert_snapshot!(of(r#"["", "../source.txt"]"#), @r#"
    error: `""` leaves the input open, and must come last
      --> PROJECT/pipelines/toy.toml:34:53
       |
    34 | inputs = { a = ["item.text", "both.text", ""], b = ["", "../source.txt"] }
       |                                                     ^^
       |
       = help: expected `stage.port` or a path
    "#);
    insta::assert_snapshot!(of(r#"["counted.lines", 3]"#), @r#"
    error: expected `stage.port` or a path, found an integer
      --> PROJECT/pipelines/toy.toml:34:70
       |
    34 | inputs = { a = ["item.text", "both.text", ""], b = ["counted.lines", 3] }
       |                                                                      ^
    "#);
    insta::assert_snapshot!(faults(&[(r#""stored.lines"]"#, r#""stored.lines", ""]"#)], &[]), @r#"
    error: the input `lines` must be connected
      --> PROJECT/pipelines/toy.toml:22:54
       |
    22 | inputs = { lines = ["counted.lines", "stored.lines", ""] }
       |                                                      ^^
       |
       = help: expected `stage.port` or a path
    "#);
    // Only the path that is used must exist.
    let absent =
        of(r#"["counted.lines", "../absent.txt"]"#.replace("counted.lines", "stored.lines").as_str());
    insta::assert_snapshot!(absent, @r#"
    error: no such file or folder: `PROJECT/absent.txt`
      --> PROJECT/pipelines/toy.toml:34:69
       |
    34 | inputs = { a = ["item.text", "both.text", ""], b = ["stored.lines", "../absent.txt"] }
       |                                                                     ^^^^^^^^^^^^^^^
    "#);
}

#[test]
fn a_pipeline_with_all_stages_disabled() {
    let project = Project::new("[stages.a]\nkind = \"say\"\nwhen = false\n", "");
    insta::assert_snapshot!(project.problems(&[]), @r#"
    error: every stage is disabled by its `when`
     --> PROJECT/pipelines/toy.toml:1:9
      |
    1 | [stages.a]
      |         ^
    "#);
}

#[test]
fn a_path_that_begins_in_the_config_is_relative_to_it() {
    let pipeline = "config = \"../configs/toy.toml\"\n[stages.a]\nkind = \"say\"\ninputs = { a = \"${folder}/source.txt\" }\n";
    let project = Project::new(pipeline, "folder = \"./data\"\n");
    project.write("configs/data/source.txt", "source\n");
    assert_eq!(fed(&load(&project, &[]), "a", "a"), "source.txt");
}
