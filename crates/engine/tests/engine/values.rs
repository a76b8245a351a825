//! The messages for an unusable config, `${…}` or `--set`: each names the location, the fault, and a way out.

use crate::project::{CONFIG, PIPELINE, changed, faults};

#[test]
fn references_to_the_config() {
    insta::assert_snapshot!(faults(&changed(PIPELINE, "${second.text}", "${second.txt}"), CONFIG, &[]), @r#"
    error: `${second.txt}` does not exist: unknown key `txt`
      --> PROJECT/pipelines/toy.toml:11:19
       |
    11 | params = { text = "${second.txt}" }
       |                   ^^^^^^^^^^^^^^^
       |
       = help: the config has `text`: one of the two is misspelt
    "#);
    insta::assert_snapshot!(faults(&changed(PIPELINE, "${second.text}", "${secnd.text}"), CONFIG, &[]), @r#"
    error: `${secnd.text}` does not exist: unknown key `secnd`
      --> PROJECT/pipelines/toy.toml:11:19
       |
    11 | params = { text = "${secnd.text}" }
       |                   ^^^^^^^^^^^^^^^
       |
       = help: the config has `second`: one of the two is misspelt
    "#);
    insta::assert_snapshot!(faults(&changed(PIPELINE, "${second.text}", "${second.text.more}"), CONFIG, &[]), @r#"
    error: `${second.text.more}` does not exist: the value before `more` is not a table
      --> PROJECT/pipelines/toy.toml:11:19
       |
    11 | params = { text = "${second.text.more}" }
       |                   ^^^^^^^^^^^^^^^^^^^^^
    "#);
    insta::assert_snapshot!(faults(&changed(PIPELINE, "${count.to}", "${count.too}"), CONFIG, &[]), @r#"
    error: `${count.too}` does not exist: unknown key `too`
      --> PROJECT/pipelines/toy.toml:16:33
       |
    16 | params = { say = "${say}", to = "${count.too}", title = "${count.title}" }
       |                                 ^^^^^^^^^^^^^^
       |
       = help: the config has `to`: one of the two is misspelt
    "#);
    insta::assert_snapshot!(faults(&changed(PIPELINE, "${second.text}", "x ${say} y"), CONFIG, &[]), @r#"
    error: `say` is a table, expected a string or an integer within a longer text
      --> PROJECT/pipelines/toy.toml:11:19
       |
    11 | params = { text = "x ${say} y" }
       |                   ^^^^^^^^^^^^
    "#);
    insta::assert_snapshot!(faults(&changed(PIPELINE, "${second.text}", "x ${say y"), CONFIG, &[]), @r#"
    error: `${` without `}`
      --> PROJECT/pipelines/toy.toml:11:19
       |
    11 | params = { text = "x ${say y" }
       |                   ^^^^^^^^^^^
    "#);
}

#[test]
fn settings_on_the_command_line() {
    insta::assert_snapshot!(faults(PIPELINE, CONFIG, &["fisrt.times=3"]), @r#"
    error: the config has no table `fisrt`
     --> --set:1:1
      |
    1 | fisrt.times=3
      | ^^^^^
      |
      = help: did you mean `first`?
    "#);
    insta::assert_snapshot!(faults(PIPELINE, CONFIG, &["first.tims=3"]), @r#"
    error: no stage reads `first.tims`
     --> --set:1:7
      |
    1 | first.tims=3
      |       ^^^^
      |
      = help: did you mean `times`?
    "#);
    insta::assert_snapshot!(faults(PIPELINE, CONFIG, &["say.tims=3"]), @r#"
    error: unknown key `tims`
     --> --set:1:5
      |
    1 | say.tims=3
      |     ^^^^
      |
      = help: did you mean `times`?
    "#);
    insta::assert_snapshot!(faults(PIPELINE, CONFIG, &["new=3"]), @r#"
    error: no stage reads `new`
     --> --set:1:1
      |
    1 | new=3
      | ^^^
      |
      = help: valid names: cluster, count, first, items, run, say, second, unused
    "#);
    insta::assert_snapshot!(faults(PIPELINE, CONFIG, &["first.times"]), @r#"
    error: expected `--set key.path=value`, found no `=`
     --> --set:1:1
      |
    1 | first.times
      | ^^^^^^^^^^^
    "#);
    insta::assert_snapshot!(faults(PIPELINE, CONFIG, &["items.three.text=3"]), @r#"
    error: `items` has no item `three`: expected a name or an index below 2
     --> --set:1:7
      |
    1 | items.three.text=3
      |       ^^^^^
    "#);
    insta::assert_snapshot!(faults(PIPELINE, CONFIG, &["first.times.x=1"]), @r#"
    error: `first.times` is not a table
     --> --set:1:13
      |
    1 | first.times.x=1
      |             ^
    "#);
    insta::assert_snapshot!(faults(PIPELINE, CONFIG, &["first.text=9"]), @r#"
    error: expected a string, found an integer
     --> --set:1:12
      |
    1 | first.text=9
      |            ^
    "#);
    insta::assert_snapshot!(faults(PIPELINE, CONFIG, &["first.times=10"]), @r#"
    error: `times` is 10, expected a value from 1 to 9
     --> --set:1:13
      |
    1 | first.times=10
      |             ^^
    "#);
    insta::assert_snapshot!(faults(PIPELINE, CONFIG, &["first.times=99999999999999999999"]), @r#"
    error: the integer `99999999999999999999` does not fit in 64 bits
     --> --set:1:13
      |
    1 | first.times=99999999999999999999
      |             ^^^^^^^^^^^^^^^^^^^^
    "#);
    insta::assert_snapshot!(faults(PIPELINE, CONFIG, &["first.times=[1, 2020-01-01]"]), @r#"
    error: dates are not supported: expected a string, number, boolean, array or table
     --> --set:1:13
      |
    1 | first.times=[1, 2020-01-01]
      |             ^^^^^^^^^^^^^^^
    "#);
}

#[test]
fn items() {
    insta::assert_snapshot!(faults(PIPELINE, &changed(CONFIG, r#"name = "two""#, r#"name = "one""#), &[]), @r#"
    error: two items of `items` have the name `one`
      --> PROJECT/configs/toy.toml:24:8
       |
    24 | name = "one"
       |        ^^^^^
    "#);
    insta::assert_snapshot!(faults(PIPELINE, &changed(CONFIG, r#"name = "two""#, r#"name = "a/b""#), &[]), @r#"
    error: the name `a/b` is empty, starts with `.`, or contains one of `[ ] /`
      --> PROJECT/configs/toy.toml:24:8
       |
    24 | name = "a/b"
       |        ^^^^^
    "#);
    insta::assert_snapshot!(faults(&changed(PIPELINE, "${items}", "${itens}"), CONFIG, &[]), @r#"
    error: `${itens}` does not exist: unknown key `itens`
      --> PROJECT/pipelines/toy.toml:21:17
       |
    21 | each = { item = "${itens}" }
       |                 ^^^^^^^^^^
       |
       = help: the config has `items`: one of the two is misspelt
    "#);
    insta::assert_snapshot!(faults(&changed(PIPELINE, "${items}", "${count}"), CONFIG, &[]), @r#"
    error: `count` is a table, expected an array
      --> PROJECT/pipelines/toy.toml:21:17
       |
    21 | each = { item = "${count}" }
       |                 ^^^^^^^^^^
    "#);
    insta::assert_snapshot!(faults(&changed(PIPELINE, r#"each = { item = "${items}" }"#, r#"each = "${items}""#), CONFIG, &[]), @r#"
    error: expected `each = { item = "${a.list}" }`
      --> PROJECT/pipelines/toy.toml:21:8
       |
    21 | each = "${items}"
       |        ^^^^^^^^^^
    "#);
}

#[test]
fn a_fault_of_a_repeated_stage_is_reported_once() {
    insta::assert_snapshot!(faults(&changed(PIPELINE, "${item.text}", "${item.txt}"), CONFIG, &[]), @r#"
    error: `${item.txt}` does not exist: unknown key `txt`
      --> PROJECT/pipelines/toy.toml:22:19
       |
    22 | params = { text = "${item.txt}" }
       |                   ^^^^^^^^^^^^^
       |
       = help: the config has `text`: one of the two is misspelt
    "#);
    insta::assert_snapshot!(faults(&changed(PIPELINE, r#"params = { text = "${item.text}" }"#, "params = { text = 3, tims = 1 }"), CONFIG, &[]), @r#"
    error: expected a string, found an integer
      --> PROJECT/pipelines/toy.toml:22:19
       |
    22 | params = { text = 3, tims = 1 }
       |                   ^

    error: unknown key `tims`
      --> PROJECT/pipelines/toy.toml:22:22
       |
    22 | params = { text = 3, tims = 1 }
       |                      ^^^^
       |
       = help: did you mean `times`?
    "#);
    insta::assert_snapshot!(faults(&format!("{PIPELINE}{}", "\n[stages.x]\nkind = \"count\"\neach = { i = \"${items}\" }\nparams = { say = {} }\n"), CONFIG, &[]), @r#"
    error: the input `from` of the stage `x` is not connected
      --> PROJECT/pipelines/toy.toml:25:9
       |
    25 | [stages.x]
       |         ^
       |
       = help: `from` takes text
    "#);
}

#[test]
fn all_faults_at_once() {
    insta::assert_snapshot!(faults(&changed(&changed(PIPELINE, "\"second.text", "\"secnd.text"), "${item.text}", "${item.txt}"), &changed(&changed(CONFIG, "to = 4", "to = -4"), "times = 2", "time = 2\ntimes = 0"), &[]), @r#"
    error: unknown stage `secnd`
      --> PROJECT/pipelines/toy.toml:17:19
       |
    17 | inputs = { from = "secnd.text", name = "first.text" }
       |                   ^^^^^^^^^^^^
       |
       = help: did you mean `second`?

    error: `${item.txt}` does not exist: unknown key `txt`
      --> PROJECT/pipelines/toy.toml:22:19
       |
    22 | params = { text = "${item.txt}" }
       |                   ^^^^^^^^^^^^^
       |
       = help: the config has `text`: one of the two is misspelt

    error: `times` is 0, expected a value from 1 to 9
     --> PROJECT/configs/toy.toml:5:9
      |
    5 | times = 0
      |         ^

    error: expected an integer from 0 to 4294967295, found -4
      --> PROJECT/configs/toy.toml:14:6
       |
    14 | to = -4
       |      ^^
    "#);
}

#[test]
fn syntax() {
    insta::assert_snapshot!(faults(&changed(PIPELINE, r#"kind = "count""#, "kind = count"), CONFIG, &[]), @r#"
    error: string values must be quoted, expected literal string
      --> PROJECT/pipelines/toy.toml:15:8
       |
    15 | kind = count
       |        ^^^^^
    "#);
    insta::assert_snapshot!(faults(PIPELINE, &changed(CONFIG, "to = 4", "to = "), &[]), @r#"
    error: string values must be quoted, expected literal string
      --> PROJECT/configs/toy.toml:13:6
       |
    13 | to = 
       |      ^
    "#);
    insta::assert_snapshot!(faults(PIPELINE, &changed(CONFIG, "to = 4", "to = 4\nto = 5"), &[]), @r#"
    error: duplicate key
      --> PROJECT/configs/toy.toml:14:1
       |
    14 | to = 5
       | ^^
    "#);
    insta::assert_snapshot!(faults(PIPELINE, &changed(CONFIG, "to = 4", "to = 2020-01-01"), &[]), @r#"
    error: dates are not supported: expected a string, number, boolean, array or table
      --> PROJECT/configs/toy.toml:13:6
       |
    13 | to = 2020-01-01
       |      ^^^^^^^^^^
    "#);
}
