//! Runs that did not go well, and results that are gone.

use serde_json::json;

use attrflow_engine::provenance::manifest::Outcome;
use attrflow_engine::provenance::task_times::TaskTime;

use super::made::{Made, Plan, made, manifest, record};
use super::parsed::{checked, select, texts};
use crate::report::{Options, extract};

#[test]
fn a_run_without_stages_has_a_page() {
    let mut run = made(&Plan { queries: Vec::new(), ..Plan::default() });
    run.manifest = manifest(Vec::new());
    let page = run.page(&Options::default());
    let html = checked(&page);
    assert!(texts(&html, "#queries .note")[0].starts_with("This run has no stage of the kind ranking"));
    extract(&page).unwrap();
}

/// A run in which a query failed.
pub(super) fn failed() -> Made {
    let mut run = made(&Plan::default());
    for record in &mut run.manifest.stages {
        let ended = match record.stage.as_str() {
            "influence[joy]" => {
                (Outcome::Failed, Some("cannot read /home/ann/x.npy: <b>disk</b>".to_owned()))
            }
            "ranking[joy]" => (Outcome::Blocked, None),
            _ => continue,
        };
        (record.outcome, record.error) = ended;
        record.outputs.clear();
        record.recipe = None;
    }
    run
}

#[test]
fn a_failed_run_says_what_failed() {
    let run = failed();
    let html = checked(&run.page(&Options::default()));
    assert_eq!(texts(&html, "#q2 > .warn"), ["No ranking: the stage influence[joy] failed."]);
    assert_eq!(texts(&html, ".stages .error pre"), ["cannot read x.npy: <b>disk</b>"]);
    assert!(texts(&html, "header .warn")[0].starts_with("This run failed."));
    assert_eq!(select(&html, "#q1 .row").len(), 20, "the other query is whole");
    assert_eq!(texts(&html, ".stages .mark.failed"), ["1 failed, 1 ran"]);
}

#[test]
fn what_is_gone_is_a_box_with_its_name() {
    let run = made(&Plan::default());
    fs_err::remove_dir_all(run.path("data", "files")).unwrap();
    fs_err::remove_file(run.path("generate[apple]", "images").join("0.png")).unwrap();
    let html = checked(&run.page(&Options::default()));
    assert_eq!(select(&html, "#q1 .row .gone").len(), 20);
    assert_eq!(texts(&html, "#q1 .lead .gone"), ["0.png"]);
    assert!(texts(&html, "#q1 .row .gone")[0].ends_with(".png"));

    let run = made(&Plan::default());
    fs_err::remove_file(run.path("ranking[apple]", "json")).unwrap();
    fs_err::write(run.path("influence[joy]", "influence"), "damaged").unwrap();
    let html = checked(&run.page(&Options::default()));
    assert_eq!(select(&html, "#q1 .row").len(), 20, "the arrays give the rows");
    assert_eq!(texts(&html, "#q2 > .warn"), ["Its scores are no longer in the cache, or cannot be read."]);
}

#[test]
fn verdicts_are_shown_with_their_intervals() {
    let mut run = made(&Plan { queries: vec!["a".into()], ..Plan::default() });
    let more = ["evaluate", "evaluate_gone"]
        .map(|name| record(name, "evaluate", json!({}), json!({}), &[("summary", false)], 0));
    run.manifest.stages.extend(more.map(|stage| serde_json::from_value(stage).unwrap()));
    let summary = json!({ "level": 0.95, "tests": {
        "lds": {
            "verdict": "holds", "rule": "above 0 </td>", "chance": 0.0, "queries": 4,
            "estimate": { "mean": 0.31, "low": 0.12, "high": 0.5 },
        },
        "planted": { "verdict": "undecided", "rule": "all copies", "measure": "share of queries", "found": 0.5 },
    }});
    let path = run.path("evaluate", "summary");
    fs_err::create_dir_all(path.parent().unwrap()).unwrap();
    fs_err::write(path, summary.to_string()).unwrap();
    let html = checked(&run.page(&Options::default()));
    assert_eq!(texts(&html, "#evaluation .mark"), ["holds", "undecided"]);
    let cells = texts(&html, "#evaluation tbody td");
    assert_eq!(cells[1..4], ["0.310", "0.120 to 0.500", "0"]);
    assert_eq!((cells[5].as_str(), cells[7].as_str(), cells[8].as_str()), ("above 0 </td>", "0.500", "none"));
    assert_eq!(texts(&html, "#evaluation .warn"), ["It has no result that can be read here."]);
    assert_eq!(select(&html, "nav a").len(), 5);
}

#[test]
fn methods_stand_side_by_side_with_what_they_cost() {
    let mut run = made(&Plan { queries: vec!["a".into()], ..Plan::default() });
    let stage = |name: &str, kind: &str, reads| record(name, kind, json!({}), reads, &[("out", false)], 0);
    let names = json!({ "names": { "self_rank": ["query", "method"] } });
    let mut reads = serde_json::Map::new();
    let mut more = vec![
        stage("shared", "latents", json!({})),
        stage("gradients", "gradients", json!({ "latents": ["shared", "out"] })),
    ];
    for query in ["x", "y"] {
        let (own, trak) = (format!("influence[{query}]"), format!("baseline[{query},trak]"));
        more.push(stage(&own, "influence", json!({ "latents": ["shared", "out"] })));
        more.push(stage(&trak, "baseline", json!({ "gradients": ["gradients", "out"] })));
        reads.insert(format!("self_rank[{query}]"), json!([own, "out"]));
        reads.insert(format!("self_rank[{query},trak]"), json!([trak, "out"]));
    }
    more.push(record("evaluate", "evaluate", names, reads.into(), &[("summary", false)], 0));
    run.manifest.stages.extend(more.into_iter().map(|stage| serde_json::from_value(stage).unwrap()));
    run.tasks = vec![TaskTime {
        stage: "gradients".into(),
        worker: "cpu 0".into(),
        begin: 0.0,
        end: 1.0,
        peak_memory: 4_000_000,
    }];
    let finding = |test: &str, method: &str, verdict: &str| {
        let estimate = json!({ "mean": 0.5, "low": 0.25, "high": 0.75 });
        json!({ "test": test, "method": method, "verdict": verdict, "rule": "", "estimate": estimate })
    };
    let summary = json!({ "level": 0.95, "tests": {
        "lds": finding("lds", "trak", "undecided"),
        "self-influence trak": finding("self-influence", "trak", "holds"),
        "self-influence unlearning": finding("self-influence", "unlearning", "does not hold"),
    }});
    let path = run.path("evaluate", "summary");
    fs_err::create_dir_all(path.parent().unwrap()).unwrap();
    fs_err::write(path, summary.to_string()).unwrap();
    let html = checked(&run.page(&Options::default()));
    let cells = |row: usize| texts(&html, &format!(".methods tbody tr:nth-child({row}) > *"));
    // 12.5 s each: of TRAK the gradients once, and its own stage for each query.
    assert_eq!(
        cells(1),
        ["trak", "0.500 0.250 to 0.750", "0.500 0.250 to 0.750", "12.5 s", "12.5 s", "4.00 MB"]
    );
    assert_eq!(cells(2), ["unlearning", "\u{2013}", "0.500 0.250 to 0.750", "0 ms", "12.5 s", ""]);
    assert_eq!(texts(&html, ".methods .bad"), ["0.500"]);
}

#[test]
fn estimates_are_marked_and_the_recall_is_said() {
    let mut run = made(&Plan { error_bars: false, queries: vec!["a".into()], ..Plan::default() });
    let influence = run.manifest.stages.iter_mut().find(|record| record.stage == "influence[a]").unwrap();
    let artifact = influence.outputs["rank"].clone();
    influence.outputs.insert("top_k".into(), artifact);
    let report =
        json!({ "images": 30, "exact": [1, 2, 3], "certificate": { "recall": 0.93, "confidence": 0.95 } });
    fs_err::write(run.path("influence[a]", "top_k"), report.to_string()).unwrap();
    let top = run.path("ranking[a]", "json");
    let text =
        fs_err::read_to_string(&top).unwrap().replacen("\"captions\"", "\"exact\":true,\"captions\"", 1);
    fs_err::write(&top, text.replace("}],\"summary\"", ",\"exact\":false}],\"summary\"")).unwrap();
    let html = checked(&run.page(&Options { top: 30, ..Options::default() }));
    assert_eq!(texts(&html, "#q1 .mark"), ["exact", "estimate"]);
    let facts = texts(&html, "#q1 .facts dd").join(" | ");
    assert!(
        facts.contains("3 of 30 images; all others are estimates | at least 0.930, with confidence 95 %"),
        "{facts}"
    );
}
