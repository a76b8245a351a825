//! Units that read a part of a file, and batches of units.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use attrflow_engine::config::param::Validate;
use attrflow_engine::exec::event::Event;
use attrflow_engine::kind::{
    ByteRanges, Compute, Context, Input, Inputs, Kind, KindInfo, Output, Stage, Task, Unit, UnitInputs, Units,
};
use attrflow_engine::params;
use attrflow_engine::provenance::manifest::Outcome;
use attrflow_engine::store::Store;
use serde_json::{Value as Json, json};

use crate::in_process::Fault;
use crate::project::{Project, Ran};

params! {
    /// Writes the rows of a table, once for each letter, by blocks of two rows.
    pub struct Rows {
        letters: String = "ab".to_owned(),
    }
}
impl Validate for Rows {}

/// Bytes of a row.
const ROW: usize = 4;
const BLOCK: usize = 2;

fn span(unit: &Unit) -> (usize, usize, String) {
    serde_json::from_value(unit.range["rows"].clone()).unwrap()
}

impl Kind for Rows {
    const INFO: KindInfo = KindInfo {
        inputs: &[Input::new("table", "rows of 4 bytes"), Input::new("word", "text").optional()],
        outputs: &[Output::new("text", "text.txt", "text")],
        ..KindInfo::new::<Self>("rows", 1, "writes rows")
    };
}

impl Stage for Rows {
    fn unit_identity(&self) -> Json {
        json!({})
    }

    fn units(&self, inputs: &Inputs) -> anyhow::Result<Units> {
        let rows = fs_err::metadata(inputs.path("table"))?.len() as usize / ROW;
        let blocks = (0..rows).step_by(BLOCK).map(|start| (start, rows.min(start + BLOCK)));
        let units = blocks.flat_map(|(start, end)| {
            self.letters.chars().map(move |letter| Unit {
                name: format!("{start}..{end} {letter}"),
                range: json!({ "rows": [start, end, letter] }),
                steps: (end - start) as u64,
            })
        });
        Ok(Units::Independent(units.collect()))
    }

    fn unit_inputs(&self, _: &Inputs, units: &[Unit]) -> anyhow::Result<Vec<UnitInputs>> {
        let read = |unit: &Unit| {
            let (start, end, _) = span(unit);
            let bytes = std::iter::once((start * ROW) as u64..(end * ROW) as u64).collect();
            BTreeMap::from([("table".to_owned(), ByteRanges { bytes, layout: "rows".to_owned() })])
        };
        Ok(units.iter().map(read).collect())
    }

    fn batch_key(&self, inputs: &Inputs, unit: &Unit) -> Option<String> {
        let (start, end, _) = span(unit);
        Some(format!("{start}..{end} of {}", inputs.path("table").display()))
    }
}

impl Compute for Rows {
    fn run(&self, task: &Task, cx: &Context<'_>) -> anyhow::Result<()> {
        let Task { inputs, out, .. } = task;
        let (start, end, letter) = span(task.unit().unwrap());
        let table = fs_err::read_to_string(inputs.path("table"))?;
        let word = inputs.get("word").map(fs_err::read_to_string).transpose()?.unwrap_or_default();
        let rows = &table[start * ROW..end * ROW];
        anyhow::ensure!(!rows.contains('!') || letter != "b", "row with a mark at {letter}");
        cx.progress(1, (end - start) as u64);
        Ok(fs_err::write(out.join("line"), format!("{rows} {letter}{word}\n"))?)
    }

    fn merge(&self, task: &Task, parts: &[PathBuf], _: &Context<'_>) -> anyhow::Result<()> {
        let Task { out, .. } = task;
        let lines = parts.iter().map(|part| fs_err::read_to_string(part.join("line")));
        Ok(fs_err::write(out.join("text.txt"), lines.collect::<Result<String, _>>()?)?)
    }
}

const PIPELINE: &str = r#"
config = "../configs/toy.toml"
[stages.rows]
kind = "rows"
params = { letters = "${letters}" }
inputs = { table = "../table" }
"#;

/// Seven rows in four blocks.
const TABLE: &str = "aaaabbbbccccddddeeeeffffgggg";

fn project(stages: &str) -> Project {
    let mut project = Project::new(&format!("{PIPELINE}{stages}"), "letters = \"ab\"\n");
    project.backend.slots = 1;
    project.write("table", TABLE);
    // A file that changed a moment ago is hashed again, not remembered.
    std::thread::sleep(Duration::from_millis(60));
    project
}

/// Units that were computed, sorted.
fn computed(ran: &Ran) -> Vec<&str> {
    fn unit(event: &Event) -> Option<&str> {
        match event {
            Event::UnitFinished { unit, .. } => Some(unit),
            _ => None,
        }
    }
    let mut names: Vec<&str> = ran.events.iter().filter_map(unit).collect();
    names.sort_unstable();
    names
}

/// The same results from nothing.
fn from_nothing(project: &mut Project, sets: &[&str]) -> BTreeMap<String, String> {
    let another = project.path("another-cache");
    let cache = std::mem::replace(&mut project.cache, another);
    let results = {
        fs_err::remove_dir_all(project.path("results")).unwrap();
        project.run(sets);
        project.results()
    };
    fs_err::remove_dir_all(&project.cache).unwrap();
    project.cache = cache;
    fs_err::remove_dir_all(project.path("results")).unwrap();
    project.run(sets);
    results
}

#[test]
fn an_edit_computes_the_units_that_read_it() {
    let mut project = project("");
    let all = project.run(&[]);
    assert_eq!(computed(&all).len(), 8);
    let steps: Vec<(&str, &[&str], &[&str])> = vec![
        // One more letter, in the config; then the old value.
        (TABLE, &["letters=\"abc\""], &["0..2 c", "2..4 c", "4..6 c", "6..7 c"]),
        (TABLE, &[], &[]),
        // Rows at the end: the block that was not full, and new blocks.
        ("aaaabbbbccccddddeeeeffffgggghhhhiiii", &[], &["6..8 a", "6..8 b", "8..9 a", "8..9 b"]),
        // A row in the middle.
        ("aaaabbbbccccddddeeeeXfffgggghhhhiiii", &[], &["4..6 a", "4..6 b"]),
        // A row at the front: all rows move.
        ("aaaa", &[], &["0..1 a", "0..1 b"]),
        ("aaaabbbbccccddddeeeeXfff", &[], &[]),
        (TABLE, &[], &[]),
    ];
    for (table, sets, expected) in steps {
        project.write("table", table);
        let ran = project.run(sets);
        assert_eq!(computed(&ran), expected, "{table} {sets:?}");
        let results = project.results();
        assert_eq!(results, from_nothing(&mut project, sets), "{table} {sets:?}");
    }
}

#[test]
fn ranges_are_cached_and_a_damaged_cache_only_costs_a_read() {
    let project = project("");
    project.run(&[]);
    let memory = project.path("cache/file-state-v1");
    let kept = fs_err::read(&memory).unwrap();
    // After a hash and a number, key and look of each fact; the look of a part is the file's digest.
    let whole = attrflow_engine::identity::digest::Digest::of_file(&project.path("table")).unwrap();
    let parts = || {
        let bytes = fs_err::read(&memory).unwrap();
        let facts = u32::from_le_bytes(bytes[32..36].try_into().unwrap()) as usize;
        (0..facts).filter(|fact| bytes[36 + 72 * fact..][32..64] == whole.0).count()
    };
    assert_eq!(parts(), 4);
    for wrong in [kept[..40].to_vec(), vec![0; kept.len()], [&kept[..kept.len() - 1], b"x"].concat()] {
        fs_err::write(&memory, &wrong).unwrap();
        let ran = project.run(&["letters=\"ba\""]);
        assert_eq!(computed(&ran), [""; 0]);
        assert_eq!(ran.ran(), ["rows"]);
        fs_err::remove_dir_all(project.path("cache/recipes-v2")).unwrap();
        project.run(&[]);
        assert_eq!(parts(), 4);
    }
}

#[test]
fn a_range_is_hashed_by_bytes_and_layout_not_by_position() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("cache")).unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs_err::write(&path, text).unwrap();
        (store.source(&path).unwrap(), path)
    };
    let part = |(whole, path): &(_, PathBuf), layout: &str, ranges: &[(u64, u64)]| {
        let ranges: Vec<_> = ranges.iter().map(|(start, end)| *start..*end).collect();
        store.slices(whole, path, &[(layout, &ranges)]).map(|digests| digests[0])
    };
    let (a, b) = (write("a", "0123456789"), write("b", "xx3456xx"));
    let digest = part(&a, "u8", &[(3, 7)]).unwrap();
    assert_eq!(part(&b, "u8", &[(2, 6)]).unwrap(), digest);
    // One range or two: the bytes are contiguous.
    assert_eq!(part(&a, "u8", &[(3, 4), (4, 7)]).unwrap(), digest);
    let others = [part(&a, "i8", &[(3, 7)]), part(&a, "u8", &[(3, 6)]), part(&a, "u8", &[(4, 7), (3, 4)])];
    assert!(others.into_iter().all(|other| other.unwrap() != digest));
    assert_ne!(part(&a, "u8", &[(0, 10)]).unwrap(), a.0, "a range is not a file");
    let error = part(&a, "u8", &[(8, 11)]).unwrap_err().to_string();
    assert!(error.contains("/a"), "{error}");
}

/// A source that changes between its hash and the unit's end must not get the result.
#[test]
fn a_source_that_changes_under_a_unit_fails_it() {
    let mut project = project("");
    let other = TABLE.replace("gggg", "hhhh");
    project.backend.fault = Some(("0..2 a".to_owned(), Fault::Rewrites(project.path("table"), other)));
    let ran = project.run(&[]);
    assert_eq!(ran.with(Outcome::Failed), ["rows"]);
    assert!(ran.stage("rows").error.as_ref().unwrap().contains("changed while it was read"));
    project.backend.fault = None;
    let results = {
        project.run(&[]);
        project.results()
    };
    assert!(results["rows/text.txt"].contains("hhhh a"));
    assert_eq!(results, from_nothing(&mut project, &[]));
}

#[test]
fn a_table_in_the_store_is_hashed_by_ranges_too() {
    let pipeline = r#"
[stages.make]
kind = "say"
params = { text = "x", times = 4 }
inputs = { a = "../table" }
[stages.rows]
kind = "rows"
inputs = { table = "make.text" }
"#;
    let project = Project::new(pipeline, "");
    project.write("table", TABLE);
    assert_eq!(computed(&project.run(&[])).len(), 8);
    project.write("table", &TABLE.replace("eeee", "EEEE"));
    assert_eq!(computed(&project.run(&[])), ["4..6 a", "4..6 b"]);
}

const MORE: &str = r#"
[stages.one]
kind = "rows"
inputs = { table = "../table", word = "../one.txt" }
[stages.two]
kind = "rows"
inputs = { table = "../table", word = "../two.txt" }
"#;

fn of_three() -> Project {
    let project = project(MORE);
    project.write("one.txt", "1");
    project.write("two.txt", "2");
    project
}

/// The tasks of units, each as the names of its units.
fn tasks(ran: &Ran) -> Vec<&str> {
    ran.tasks.iter().map(String::as_str).filter(|task| !task.ends_with(" merge")).collect()
}

#[test]
fn units_with_one_batch_key_are_one_task_across_stages() {
    let mut project = of_three();
    let ran = project.run(&[]);
    let block = |rows: &str| ["rows", "one", "two"].map(|_| format!("{rows} a + {rows} b")).join(" + ");
    assert_eq!(tasks(&ran), ["0..2", "2..4", "4..6", "6..7"].map(block));
    assert_eq!(computed(&ran).len(), 24);
    // Progress adds up for each stage.
    for stage in ["rows", "one", "two"] {
        let progress = |event: &Event| match event {
            Event::Progress { stage: of, done, total, .. } if of == stage => Some((*done, *total)),
            _ => None,
        };
        let progress: Vec<(u64, u64)> = ran.events.iter().filter_map(progress).collect();
        assert_eq!(progress.last(), Some(&(14, 14)), "{stage}");
        assert!(progress.iter().all(|(done, total)| done <= total) && progress.is_sorted(), "{progress:?}");
    }
    let results = project.results();
    assert_eq!(results, from_nothing(&mut project, &[]));
    // Only the missing units are computed, as a batch.
    project.write("two.txt", "3");
    assert_eq!(
        tasks(&project.run(&[])),
        ["0..2 a + 0..2 b", "2..4 a + 2..4 b", "4..6 a + 4..6 b", "6..7 a + 6..7 b"]
    );
}

#[test]
fn several_slots_share_the_queue() {
    let mut project = of_three();
    let alone = {
        project.run(&[]);
        project.results()
    };
    project.cache = project.path("another-cache");
    project.backend.slots = 3;
    project.backend.pause = Duration::from_millis(30);
    let ran = project.run(&[]);
    assert_eq!(computed(&ran).len(), 24);
    // The first takes at most a third of all; none is idle while another has many.
    assert!(tasks(&ran).iter().all(|task| task.matches('+').count() < 8), "{:?}", tasks(&ran));
    assert_eq!(ran.starts, 3);
    assert_eq!(project.results(), alone);
}

#[test]
fn a_failed_batch_is_computed_unit_by_unit_to_find_the_fault() {
    let project = of_three();
    project.write("table", &TABLE.replace("dddd", "ddd!"));
    let ran = project.run(&[]);
    for stage in ["rows", "one", "two"] {
        assert_eq!(ran.stage(stage).error.as_deref(), Some("row with a mark at b"), "{stage}");
    }
    let blamed = ran.events.iter().filter_map(|event| match event {
        Event::StageFailed { unit, .. } => unit.as_deref(),
        _ => None,
    });
    assert_eq!(blamed.collect::<Vec<_>>(), ["2..4 b"; 3]);
    // Units finished before are kept, of any stage, also those of the failed batch.
    project.write("table", TABLE);
    let again = project.run(&[]);
    assert!(!computed(&again).contains(&"0..2 a"));
    assert_eq!(again.ran(), ["one", "rows", "two"]);
}

#[test]
fn a_worker_that_dies_in_a_batch_costs_only_the_faulty_unit() {
    let mut project = of_three();
    project.backend.fault = Some(("4..6 a".to_owned(), Fault::Dies));
    let ran = project.run(&[]);
    assert_eq!(ran.with(Outcome::Failed), ["one", "rows", "two"]);
    project.backend.fault = None;
    let ran = project.run(&[]);
    assert!(
        computed(&ran).iter().all(|unit| unit.starts_with("4..6") || unit.starts_with("6..7")),
        "{:?}",
        computed(&ran)
    );
    let results = project.results();
    assert_eq!(results, from_nothing(&mut project, &[]));
}

/// Units of another run are left to it, and used when it is done.
#[test]
fn a_run_waits_for_a_unit_of_another_run_without_other_locks() {
    let project = of_three();
    project.run(&[]);
    let other = of_three();
    let store = Store::open(&other.cache).unwrap();
    let fingerprints = every_second_unit(&project);
    let locks: Vec<_> = fingerprints.iter().map(|one| store.try_lock(one).unwrap().unwrap()).collect();
    let results = std::thread::scope(|scope| {
        let run = scope.spawn(|| {
            let ran = other.run(&[]);
            (computed(&ran).len(), other.results())
        });
        std::thread::sleep(Duration::from_millis(200));
        drop(locks);
        run.join().unwrap()
    });
    assert_eq!(results, (24, project.results()));
}

/// Locks every second unit, as another run would; the others are computed meanwhile in smaller batches.
fn every_second_unit(project: &Project) -> Vec<attrflow_engine::identity::digest::Digest> {
    let store = Store::open(&project.cache).unwrap();
    let entries = store.entries().unwrap();
    let all = entries.into_iter().filter_map(|indexed| indexed.content.ok());
    all.filter(|(_, entry)| entry.recipe.unit.is_some())
        .map(|(fingerprint, _)| fingerprint)
        .step_by(2)
        .collect()
}
