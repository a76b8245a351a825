//! Edits, each with the exact list of stages and tasks that run after it.

use std::time::{Duration, SystemTime};

use attrflow_engine::provenance::manifest::Outcome;
use attrflow_engine::store::Store;

use crate::project::{CONFIG, PIPELINE, Project, files, project};

const FILE: &str = "pipelines/toy.toml";
const VALUES: &str = "configs/toy.toml";

const ALL: &[&str] = &["first", "last[one]", "last[two]", "lines", "second"];
const FROM_SECOND: &[&str] = &["last[one]", "last[two]", "lines", "second"];
const FROM_LINES: &[&str] = &["last[one]", "last[two]", "lines"];
const UNITS: &[&str] = &["number 0", "number 1", "number 2", "number 3"];

/// The tasks of `say` stages and of the merge, and these units.
fn tasks(says: usize, merges: usize, units: &[&str]) -> Vec<String> {
    let mut names = vec!["count merge"; merges];
    names.extend(units);
    names.extend(vec!["say"; says]);
    names.into_iter().map(str::to_owned).collect()
}

/// Edits a project that has run, and checks the next run against `stages` and `tasks`.
/// Its results must be those of a run without a cache, and a third run must have nothing to do.
fn check(what: &str, edit: impl FnOnce(&mut Project), sets: &[&str], stages: &[&str], tasks: Vec<String>) {
    let mut project = project();
    assert_eq!(project.run(&[]).ran(), ALL);
    edit(&mut project);
    let ran = project.run(sets);
    assert_eq!(ran.ran(), stages, "{what}");
    assert_eq!(ran.tasks, tasks, "{what}");
    assert_eq!(ran.starts == 0, tasks.is_empty(), "{what}: {} workers were started", ran.starts);

    let results = project.results();
    project.force.clear();
    let again = project.run(sets);
    assert_eq!((again.ran(), again.starts), (vec![], 0), "{what}: something was left to do");
    project.cache = project.path("other-cache");
    fs_err::remove_dir_all(project.path("results")).unwrap();
    let fresh = project.run(sets);
    for (path, text) in project.results() {
        assert_eq!(results.get(&path), Some(&text), "{what}: {path} differs from a fresh run");
    }
    assert_eq!(ran.manifest.stages.len(), fresh.manifest.stages.len(), "{what}: a stage is missing");
    for (stage, new) in again.manifest.stages.iter().zip(&fresh.manifest.stages) {
        assert_eq!(stage.fingerprint, new.fingerprint, "{what}: {} knows where its cache is", stage.stage);
    }
}

/// An edit after which nothing runs.
fn check_idle(what: &str, edit: impl FnOnce(&mut Project), sets: &[&str]) {
    check(what, edit, sets, &[], vec![]);
}

fn touch(project: &Project, time: SystemTime) {
    let file = fs_err::OpenOptions::new().write(true).open(project.path("source.txt")).unwrap();
    file.file().set_modified(time).unwrap();
}

/// A source is only remembered by its times once it has not changed for a moment.
fn settle() {
    std::thread::sleep(Duration::from_millis(120));
}

#[test]
fn nothing() {
    check_idle("nothing", |_| {}, &[]);
}

#[test]
fn a_parameter_of_the_middle_stage() {
    let edit = |p: &mut Project| p.replace(VALUES, "text = \"b\"", "text = \"c\"");
    check("changed bytes", edit, &[], FROM_SECOND, tasks(3, 1, UNITS));
    let edit = |p: &mut Project| p.replace(VALUES, "text = \"b\"", "text = \"bat\"");
    check("unchanged bytes", edit, &[], &["second"], tasks(1, 0, &[]));
}

#[test]
fn two_edits_with_an_unchanged_stage_between() {
    let sets = &["second.text=bat", "items.two.text='9'"];
    check("behind `lines`, which is cached", |_| {}, sets, &["last[two]", "second"], tasks(2, 0, &[]));
}

#[test]
fn the_old_value_again() {
    let project = project();
    project.run(&[]);
    let before = project.results();
    assert_eq!(project.run(&["second.text=c"]).ran(), FROM_SECOND);
    assert_ne!(project.results(), before);
    let back = project.run(&[]);
    assert_eq!((back.ran(), back.starts), (vec![], 0));
    assert_eq!(project.results(), before, "the results folder shows the other value's files");
}

#[test]
fn what_is_not_hashed() {
    check_idle("a key that no stage reads", |p| p.replace(VALUES, "key = 1", "key = 2"), &[]);
    let order = |p: &mut Project| {
        p.replace(VALUES, "[first]\ntext = \"a\"\ntimes = 2", "# new\n[first]\ntimes = 2\ntext = \"a\"");
        p.replace(FILE, "[stages.first]", "# new\n[stages.first]");
    };
    check_idle("comments and order", order, &[]);
    let default = |p: &mut Project| p.replace(VALUES, "text = \"x\"", "text = \"x\"\ntimes = 1");
    check_idle("a default written out", default, &[]);
    let conditions = |p: &mut Project| {
        p.conditions.jobs = 9;
        p.conditions.threads = 9;
        p.conditions.devices = vec!["cuda:3".into()];
        p.backend.slots = 4;
    };
    check_idle("workers, threads and devices", conditions, &[]);
    let table = "\n[run]\nthreads = 3\nmicro_batch = 7\njobs = 5\ndevice = \"cpu\"\n";
    check_idle("the [run] table", |p| p.write(VALUES, &format!("{CONFIG}{table}")), &[]);
}

#[test]
fn the_source() {
    check_idle("its time", |p| touch(p, SystemTime::now() + Duration::from_secs(60)), &[]);
    let same = |p: &mut Project| {
        fs_err::remove_file(p.path("source.txt")).unwrap();
        p.write("source.txt", "source\n");
    };
    check_idle("the same bytes in a new file", same, &[]);
    check("its bytes", |p| p.write("source.txt", "another\n"), &[], ALL, tasks(4, 1, UNITS));
}

#[test]
fn the_source_behind_the_file_state() {
    let project = project();
    settle();
    project.run(&[]);
    assert!(project.remembers("source.txt"), "the source was not remembered");
    let time = fs_err::metadata(project.path("source.txt")).unwrap().modified().unwrap();
    project.write("source.txt", "sauces\n");
    touch(&project, time);
    assert_eq!(project.run(&[]).ran(), ALL, "as many bytes as before, with the old time");
}

#[test]
fn a_missing_results_file() {
    let project = project();
    project.run(&[]);
    let before = project.results();
    for path in ["results/toy/second/text.txt", "results/toy/last/one/text.txt"] {
        fs_err::remove_file(project.path(path)).unwrap();
    }
    fs_err::remove_dir_all(project.path("results/toy/lines/folder")).unwrap();
    let ran = project.run(&[]);
    assert_eq!((ran.ran(), ran.starts), (vec![], 0));
    assert_eq!(project.results(), before);
}

#[test]
fn a_missing_object() {
    let project = project();
    let first = project.run(&[]);
    let before = project.results();
    let store = Store::open(&project.cache).unwrap();
    for (stage, port, expected) in [
        ("second", "text", tasks(1, 0, &[])),
        ("lines", "lines", tasks(0, 1, &[])),
        ("last[two]", "text", tasks(1, 0, &[])),
    ] {
        let object = store.path(&first.stage(stage).outputs[port].digest);
        if object.is_dir() { fs_err::remove_dir_all(object) } else { fs_err::remove_file(object) }.unwrap();
        let ran = project.run(&[]);
        assert_eq!(ran.ran(), [stage]);
        assert_eq!(ran.tasks, expected, "{stage}");
        assert_eq!(ran.with(Outcome::Cached).len(), ALL.len() - 1);
    }
    assert_eq!(project.results(), before);
}

#[test]
fn names_and_places() {
    let rename = |p: &mut Project| {
        p.replace(FILE, "[stages.second]", "[stages.middle]");
        p.replace(FILE, "\"second.text\"", "\"middle.text\"");
    };
    check_idle("a stage's name", rename, &[]);
    check_idle("the project's folder", Project::move_away, &[]);
    check_idle("an item's name", |p| p.replace(VALUES, "name = \"two\"", "name = \"deux\""), &[]);
}

#[test]
fn items() {
    let more = format!("{CONFIG}\n[[items]]\nname = \"three\"\ntext = \"3\"\n");
    check("one more item", |p| p.write(VALUES, &more), &[], &["last[three]"], tasks(1, 0, &[]));
    let first = CONFIG.replacen("[[items]]", "[[items]]\nname = \"zero\"\ntext = \"0\"\n\n[[items]]", 1);
    check("one more in front", |p| p.write(VALUES, &first), &[], &["last[zero]"], tasks(1, 0, &[]));
    let text = |p: &mut Project| p.replace(VALUES, "text = \"2\"", "text = \"9\"");
    check("an item's text", text, &[], &["last[two]"], tasks(1, 0, &[]));
}

#[test]
fn units_and_their_merge() {
    let title = |p: &mut Project| p.replace(VALUES, "title = \"T\"", "title = \"U\"");
    check("a parameter of the merge alone", title, &[], FROM_LINES, tasks(2, 1, &[]));
    let name = |p: &mut Project| p.replace(FILE, "name = \"first.text\"", "name = \"second.text\"");
    check("an input of the merge alone", name, &[], FROM_LINES, tasks(2, 1, &[]));
    let say = |p: &mut Project| p.replace(VALUES, "text = \"x\"", "text = \"y\"");
    check("a parameter of the units", say, &[], FROM_LINES, tasks(2, 1, UNITS));
    let from = |p: &mut Project| p.replace(FILE, "from = \"second.text\"", "from = \"first.text\"");
    check("an input of the units", from, &[], FROM_LINES, tasks(2, 1, UNITS));
    let more = |p: &mut Project| p.replace(VALUES, "to = 4", "to = 6");
    check("more units", more, &[], FROM_LINES, tasks(2, 1, &["number 4", "number 5"]));
    check("fewer units", |p| p.replace(VALUES, "to = 4", "to = 2"), &[], FROM_LINES, tasks(2, 1, &[]));
    check("no units", |p| p.replace(VALUES, "to = 4", "to = 0"), &[], FROM_LINES, tasks(2, 1, &[]));
}

#[test]
fn forced() {
    check("a stage with units", |p| p.force = vec!["lines"], &[], &["lines"], tasks(0, 1, UNITS));
    check("all items", |p| p.force = vec!["last"], &[], &["last[one]", "last[two]"], tasks(2, 0, &[]));
    check("one item", |p| p.force = vec!["last[two]"], &[], &["last[two]"], tasks(1, 0, &[]));
}

#[test]
fn settings_on_the_command_line() {
    check("a nested key", |_| {}, &["first.times=3"], ALL, tasks(4, 1, UNITS));
    check_idle("the value that the file has", |_| {}, &["first.times=2"]);
    check("a bare text", |_| {}, &["second.text=bat"], &["second"], tasks(1, 0, &[]));
    check("an item by name", |_| {}, &["items.two.text='9'"], &["last[two]"], tasks(1, 0, &[]));
    check("an item by index", |_| {}, &["items.0.text='9'"], &["last[one]"], tasks(1, 0, &[]));
    check("a new key of a table", |_| {}, &["say.times=2"], &["lines"], tasks(0, 1, UNITS));
    check("a whole table", |_| {}, &["say={ text = 'z' }"], FROM_LINES, tasks(2, 1, UNITS));
    check("the last of two wins", |_| {}, &["first.times=3", "first.times=2"], &[], vec![]);
}

#[test]
fn numerics() {
    let echo = "\n[stages.echo]\nkind = \"echo\"\ninputs = { lines = \"lines.lines\" }\n";
    let mut project = Project::new(&format!("{PIPELINE}{echo}"), CONFIG);
    project.write("source.txt", "source\n");
    assert_eq!(project.run(&[]).ran().len(), ALL.len() + 1);
    let old = project.numerics.clone();
    for change in 0..3 {
        project.numerics = old.clone();
        match change {
            0 => project.numerics.libtorch = "2".into(),
            1 => project.numerics.device = "cuda".into(),
            _ => project.numerics.deterministic = false,
        }
        let ran = project.run(&[]);
        assert_eq!(ran.ran(), ALL, "`echo` computes no numbers; change {change}");
        assert_eq!(ran.tasks, tasks(4, 1, UNITS));
    }
    project.numerics = old;
    assert_eq!(project.run(&[]).ran(), [""; 0]);
}

#[test]
fn below_an_output() {
    let readers = r#"
[stages.title]
kind = "say"
inputs = { a = "lines.lines/sub/title.txt" }

[stages.folder]
kind = "echo"
inputs = { lines = "lines.lines/sub" }
"#;
    let project = Project::new(&format!("{PIPELINE}{readers}"), CONFIG);
    project.write("source.txt", "source\n");
    project.run(&[]);
    assert_eq!(project.read("results/toy/title/text.txt"), "Th");
    assert_eq!(project.run(&["count.to=5"]).ran(), FROM_LINES, "their inputs did not change");
    let changed = project.run(&["count.title=U"]);
    assert_eq!(changed.ran(), ["folder", "last[one]", "last[two]", "lines", "title"]);
    assert_eq!(project.read("results/toy/title/text.txt"), "Uh");
}

#[test]
fn inherited_parameters() {
    let chain = r#"
[stages.echo]
kind = "echo"
inputs = { lines = "lines.lines" }

[stages.again]
kind = "echo"
inputs = { lines = "echo.text" }
"#;
    let project = Project::new(&format!("{PIPELINE}{chain}"), CONFIG);
    project.write("source.txt", "source\n");
    project.run(&["count.to=0"]);
    assert_eq!(project.read("results/toy/echo/text.txt"), "x");
    // The folder is the same without units: only the parameter makes stages run.
    let ran = project.run(&["count.to=0", "say.text=why"]);
    assert_eq!(ran.ran(), ["again", "echo", "lines"]);
    assert_eq!(project.read("results/toy/echo/text.txt"), "why");
    assert_eq!(project.read("results/toy/again/text.txt"), "why");
}

#[test]
fn a_parameter_says_where_the_results_show_an_input() {
    let reads = |name: &str, more: &str, source: &str| {
        format!("[stages.{name}]\nkind = \"where\"\n{more}inputs = {{ read = \"{source}\" }}\n")
    };
    let stages = [
        reads("below", "", "lines.lines/sub/title.txt"),
        reads("item", "", "last[one].text"),
        reads("outside", "", "../source.txt"),
        reads("written", "params = { at = \"elsewhere\" }\n", "lines.lines"),
    ];
    let project = Project::new(&format!("{PIPELINE}\n{}", stages.join("\n")), CONFIG);
    project.write("source.txt", "source\n");
    project.run(&[]);
    let said = |stage: &str| project.read(&format!("results/toy/{stage}/text.txt"));
    for stage in ["below", "item"] {
        assert!(project.path("results/toy").join(said(stage)).is_file(), "{stage}: {}", said(stage));
    }
    assert!(said("below").ends_with("/sub/title.txt") && said("item").starts_with("last/one/"));
    assert_eq!((said("outside").as_str(), said("written").as_str()), ("", "elsewhere"));
}

#[test]
fn targets() {
    let project = project();
    let ran = project.run_targets(&["second"]);
    assert_eq!(ran.ran(), ["first", "second"]);
    assert_eq!(ran.manifest.stages.len(), 2, "unselected stages are not in the manifest");
    assert_eq!(project.run_targets(&["last[two]"]).ran(), ["last[two]", "lines"]);
    assert_eq!(project.run(&[]).ran(), ["last[one]"]);
    assert!(files(&project.path("results/toy")).len() > 5);
}
