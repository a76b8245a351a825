//! The messages for pipelines that cannot run: each names the location, the fault, and a way out.

use crate::project::{CONFIG, PIPELINE, changed, faults};

const ECHO: &str = "\n[stages.echo]\nkind = \"echo\"\ninputs = { lines = \"lines.lines\" }\n";

#[test]
fn unknown_keys() {
    insta::assert_snapshot!(faults(&changed(PIPELINE, "[stages.second]", "[stages.second]\nparam = {}"), CONFIG, &[]), @r#"
    error: unknown key `param`
      --> PROJECT/pipelines/toy.toml:10:1
       |
    10 | param = {}
       | ^^^^^
       |
       = help: did you mean `params`?
    "#);
    insta::assert_snapshot!(faults(&changed(PIPELINE, r#"times = "${first.times}""#, r#"time = "${first.times}""#), CONFIG, &[]), @r#"
    error: unknown key `time`
     --> PROJECT/pipelines/toy.toml:6:36
      |
    6 | params = { text = "${first.text}", time = "${first.times}" }
      |                                    ^^^^
      |
      = help: did you mean `times`?
    "#);
    insta::assert_snapshot!(faults(PIPELINE, &changed(CONFIG, "[say]", "[say]\nwords = 1"), &[]), @r#"
    error: unknown key `words`
      --> PROJECT/configs/toy.toml:10:1
       |
    10 | words = 1
       | ^^^^^
       |
       = help: valid names: text, times
    "#);
    let defaults = format!("{PIPELINE}\n[defaults.say]\nphrase = \"a\"\n");
    let config = changed(CONFIG, "[say]", "[say]\nphrase = 1");
    for faults in [faults(&defaults, CONFIG, &[]), faults(PIPELINE, &config, &[])] {
        assert!(faults.contains("error: unknown key `phrase`; it is named `text` now\n"), "{faults}");
    }
    insta::assert_snapshot!(faults(&format!("stage = 1\n{PIPELINE}"), CONFIG, &[]), @r#"
    error: unknown key `stage`
     --> PROJECT/pipelines/toy.toml:1:1
      |
    1 | stage = 1
      | ^^^^^
      |
      = help: did you mean `stages`?
    "#);
    insta::assert_snapshot!(faults(PIPELINE, &format!("{CONFIG}\n[run]\nthread = 3\n"), &[]), @r#"
    error: unknown key `thread`
      --> PROJECT/configs/toy.toml:28:1
       |
    28 | thread = 3
       | ^^^^^^
       |
       = help: did you mean `threads`?
    "#);
}

#[test]
fn wrong_types() {
    insta::assert_snapshot!(faults(&changed(PIPELINE, r#""${second.text}""#, "7"), CONFIG, &[]), @r#"
    error: expected a string, found an integer
      --> PROJECT/pipelines/toy.toml:11:19
       |
    11 | params = { text = 7 }
       |                   ^
    "#);
    insta::assert_snapshot!(faults(PIPELINE, &changed(CONFIG, "times = 2", r#"times = "2""#), &[]), @r#"
    error: expected an integer of at least 0, found a string
     --> PROJECT/configs/toy.toml:4:9
      |
    4 | times = "2"
      |         ^^^
    "#);
    insta::assert_snapshot!(faults(&changed(PIPELINE, r#"params = { text = "${second.text}" }"#, r#"params = "x""#), CONFIG, &[]), @r#"
    error: expected a table, found a string
      --> PROJECT/pipelines/toy.toml:11:10
       |
    11 | params = "x"
       |          ^^^
    "#);
    insta::assert_snapshot!(faults(&changed(PIPELINE, r#""../source.txt""#, "3"), CONFIG, &[]), @r#"
    error: expected `stage.port` or a path, found an integer
     --> PROJECT/pipelines/toy.toml:7:16
      |
    7 | inputs = { a = 3 }
      |                ^
    "#);
    insta::assert_snapshot!(faults(&changed(PIPELINE, r#"inputs = { a = "first.text" }"#, r#"inputs = "first.text""#), CONFIG, &[]), @r#"
    error: expected a table of inputs, `port = "stage.port"`
      --> PROJECT/pipelines/toy.toml:12:10
       |
    12 | inputs = "first.text"
       |          ^^^^^^^^^^^^
    "#);
    insta::assert_snapshot!(faults("stages = 3", "", &[]), @r#"
    error: expected a table of stages, found an integer
     --> PROJECT/pipelines/toy.toml:1:10
      |
    1 | stages = 3
      |          ^
    "#);
    insta::assert_snapshot!(faults("[stages]\na = 3", "", &[]), @r#"
    error: expected a stage, found an integer
     --> PROJECT/pipelines/toy.toml:2:5
      |
    2 | a = 3
      |     ^
    "#);
    insta::assert_snapshot!(faults("config = 3", "", &[]), @r#"
    error: expected a path, found an integer
     --> PROJECT/pipelines/toy.toml:1:10
      |
    1 | config = 3
      |          ^
    "#);
}

#[test]
fn values_out_of_range() {
    insta::assert_snapshot!(faults(PIPELINE, &changed(CONFIG, "times = 2", "times = 10"), &[]), @r#"
    error: `times` is 10, expected a value from 1 to 9
     --> PROJECT/configs/toy.toml:4:9
      |
    4 | times = 10
      |         ^^
    "#);
    insta::assert_snapshot!(faults(PIPELINE, &changed(CONFIG, "times = 2", "times = -1"), &[]), @r#"
    error: expected an integer from 0 to 4294967295, found -1
     --> PROJECT/configs/toy.toml:4:9
      |
    4 | times = -1
      |         ^^
    "#);
}

#[test]
fn missing_keys() {
    insta::assert_snapshot!(faults(&changed(PIPELINE, r#"say = "${say}", "#, ""), CONFIG, &[]), @r#"
    error: the key `say` is missing
      --> PROJECT/pipelines/toy.toml:16:10
       |
    16 | params = { to = "${count.to}", title = "${count.title}" }
       |          ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
       |
       = help: add `say`, a table
    "#);
    insta::assert_snapshot!(faults("[stages.a]\nkind = \"count\"\ninputs = { from = \"../source.txt\" }\n", "", &[]), @r#"
    error: the key `say` is missing
     --> PROJECT/pipelines/toy.toml:1:9
      |
    1 | [stages.a]
      |         ^
      |
      = help: add `say`, a table
    "#);
    insta::assert_snapshot!(faults("config = \"../configs/toy.toml\"", "", &[]), @r#"
    error: the pipeline has no stages
     --> PROJECT/pipelines/toy.toml:1:1
      |
    1 | config = "../configs/toy.toml"
      | ^
      |
      = help: expected `[stages.NAME]`
    "#);
}

#[test]
fn kinds() {
    insta::assert_snapshot!(faults(&changed(PIPELINE, r#"kind = "count""#, r#"kind = "coumt""#), CONFIG, &[]), @r#"
    error: unknown stage kind `coumt`
      --> PROJECT/pipelines/toy.toml:15:8
       |
    15 | kind = "coumt"
       |        ^^^^^^^
       |
       = help: did you mean `count`?
    "#);
    insta::assert_snapshot!(faults(&changed(PIPELINE, r#"kind = "count""#, "kind = 3"), CONFIG, &[]), @r#"
    error: expected a stage kind, found an integer
      --> PROJECT/pipelines/toy.toml:15:8
       |
    15 | kind = 3
       |        ^
       |
       = help: kinds: say, count, steps, echo, where, rows, join
    "#);
    insta::assert_snapshot!(faults(&changed(PIPELINE, "kind = \"count\"\n", ""), CONFIG, &[]), @r#"
    error: the stage has no `kind`
      --> PROJECT/pipelines/toy.toml:14:9
       |
    14 | [stages.lines]
       |         ^^^^^
       |
       = help: kinds: say, count, steps, echo, where, rows, join
    "#);
}

#[test]
fn references_to_stages() {
    insta::assert_snapshot!(faults(&changed(PIPELINE, r#"from = "second.text""#, r#"from = "secnd.text""#), CONFIG, &[]), @r#"
    error: unknown stage `secnd`
      --> PROJECT/pipelines/toy.toml:17:19
       |
    17 | inputs = { from = "secnd.text", name = "first.text" }
       |                   ^^^^^^^^^^^^
       |
       = help: did you mean `second`?
    "#);
    insta::assert_snapshot!(faults(&changed(PIPELINE, r#"from = "second.text""#, r#"from = "second.texts""#), CONFIG, &[]), @r#"
    error: the stage `second` has no output `texts`
      --> PROJECT/pipelines/toy.toml:17:19
       |
    17 | inputs = { from = "second.texts", name = "first.text" }
       |                   ^^^^^^^^^^^^^^
       |
       = help: did you mean `text`?
    "#);
    insta::assert_snapshot!(faults(&changed(PIPELINE, r#"from = "second.text""#, r#"from = "second""#), CONFIG, &[]), @r#"
    error: `second` is not `stage.port` or a path
      --> PROJECT/pipelines/toy.toml:17:19
       |
    17 | inputs = { from = "second", name = "first.text" }
       |                   ^^^^^^^^
       |
       = help: did you mean `second.text`?
    "#);
    insta::assert_snapshot!(faults(&changed(PIPELINE, r#"from = "second.text""#, r#"from = "source""#), CONFIG, &[]), @r#"
    error: `source` is not `stage.port` or a path
      --> PROJECT/pipelines/toy.toml:17:19
       |
    17 | inputs = { from = "source", name = "first.text" }
       |                   ^^^^^^^^
       |
       = help: a path starts with `./`, `../` or `/`
    "#);
    insta::assert_snapshot!(faults(&format!("{PIPELINE}{}", "\n[stages.x]\nkind = \"say\"\ninputs = { a = \"last.text\", b = \"last[ome].text\" }\n"), CONFIG, &[]), @r#"
    error: the stage `last` is repeated, and `x` is not over the same items
      --> PROJECT/pipelines/toy.toml:27:16
       |
    27 | inputs = { a = "last.text", b = "last[ome].text" }
       |                ^^^^^^^^^^^
       |
       = help: name one of its items, such as `last[one]`

    error: unknown stage `last[ome]`
      --> PROJECT/pipelines/toy.toml:27:33
       |
    27 | inputs = { a = "last.text", b = "last[ome].text" }
       |                                 ^^^^^^^^^^^^^^^^
       |
       = help: did you mean `last[one]`?
    "#);
}

#[test]
fn inputs() {
    insta::assert_snapshot!(faults(&changed(PIPELINE, r#"from = "second.text", "#, ""), CONFIG, &[]), @r#"
    error: the input `from` of the stage `lines` is not connected
      --> PROJECT/pipelines/toy.toml:14:9
       |
    14 | [stages.lines]
       |         ^^^^^
       |
       = help: `from` takes text
    "#);
    insta::assert_snapshot!(faults(&changed(PIPELINE, r#"from = "second.text""#, r#"form = "second.text""#), CONFIG, &[]), @r#"
    error: the kind `count` has no input `form`
      --> PROJECT/pipelines/toy.toml:17:12
       |
    17 | inputs = { form = "second.text", name = "first.text" }
       |            ^^^^
       |
       = help: did you mean `from`?
    "#);
}

#[test]
fn cycles() {
    insta::assert_snapshot!(faults(&changed(PIPELINE, r#"inputs = { a = "first.text" }"#, r#"inputs = { a = "lines.lines/lines.txt" }"#), CONFIG, &[]), @r#"
    error: a cycle: `second` reads `lines`, which reads `second`
      --> PROJECT/pipelines/toy.toml:12:16
       |
    12 | inputs = { a = "lines.lines/lines.txt" }
       |                ^^^^^^^^^^^^^^^^^^^^^^^
    "#);
    insta::assert_snapshot!(faults(&changed(PIPELINE, r#"inputs = { a = "first.text" }"#, r#"inputs = { a = "second.text" }"#), CONFIG, &[]), @r#"
    error: the stage `second` reads its own output
      --> PROJECT/pipelines/toy.toml:12:16
       |
    12 | inputs = { a = "second.text" }
       |                ^^^^^^^^^^^^^
    "#);
    insta::assert_snapshot!(faults(&changed(PIPELINE, r#""../source.txt""#, r#""last[two].text""#), CONFIG, &[]), @r#"
    error: a cycle: `first` reads `last[two]`, which reads `lines`, which reads `first`
     --> PROJECT/pipelines/toy.toml:7:16
      |
    7 | inputs = { a = "last[two].text" }
      |                ^^^^^^^^^^^^^^^^
    "#);
}

#[test]
fn sources() {
    insta::assert_snapshot!(faults(&changed(PIPELINE, "../source.txt", "../sauce.txt"), CONFIG, &[]), @r#"
    error: no such file or folder: `PROJECT/sauce.txt`
     --> PROJECT/pipelines/toy.toml:7:16
      |
    7 | inputs = { a = "../sauce.txt" }
      |                ^^^^^^^^^^^^^^
      |
      = help: did you mean `source.txt`?
    "#);
    insta::assert_snapshot!(faults(&changed(PIPELINE, "../configs/toy.toml", "../configs/toys.toml"), CONFIG, &[]), @r#"
    error: failed to open file `PROJECT/configs/toys.toml`: No such file or directory (os error 2)
     --> PROJECT/pipelines/toy.toml:2:10
      |
    2 | config = "../configs/toys.toml"
      |          ^^^^^^^^^^^^^^^^^^^^^^
    "#);
}

#[test]
fn inherited_keys() {
    insta::assert_snapshot!(faults(&format!("{PIPELINE}{ECHO}{}", r#"params = { say = { text = "q" } }"#), CONFIG, &[]), @r#"
    error: `say` is inherited from the stage on the input `lines`
      --> PROJECT/pipelines/toy.toml:28:12
       |
    28 | params = { say = { text = "q" } }
       |            ^^^
       |
       = help: remove the key: both stages must use the same value
    "#);
    insta::assert_snapshot!(faults(&changed(&format!("{PIPELINE}{ECHO}"), r#"say = "${say}", "#, ""), CONFIG, &[]), @r#"
    error: the key `say` is missing
      --> PROJECT/pipelines/toy.toml:16:10
       |
    16 | params = { to = "${count.to}", title = "${count.title}" }
       |          ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
       |
       = help: add `say`, a table
    "#);
    insta::assert_snapshot!(faults(&changed(&format!("{PIPELINE}{ECHO}"), "lines.lines\" }\n", "second.text\" }\n"), CONFIG, &[]), @r#"
    error: the key `say` is missing
      --> PROJECT/pipelines/toy.toml:25:9
       |
    25 | [stages.echo]
       |         ^^^^
       |
       = help: add `say`, a table
    "#);
}
