//! What a page has.

use std::collections::BTreeSet;

use attrflow_engine::provenance::task_times::TaskTime;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};

use super::made::{Plan, made, score};
use super::parsed::{checked, select, texts};
use crate::io::npy::Npy;
use crate::report::{Options, extract};

#[test]
fn a_page_has_the_numbers_of_the_arrays() {
    let run = made(&Plan::default());
    let page = run.page(&Options { top: 12, bottom: 3, ..Options::default() });
    let html = checked(&page);
    for (number, name) in ["apple", "joy"].into_iter().enumerate() {
        let scores = Npy::vector(run.path(&format!("influence[{name}]"), "influence")).unwrap();
        let rows = select(&html, &format!("#q{} .row", number + 1));
        assert_eq!(rows.len(), 15);
        let mut shown = Vec::new();
        for row in &rows {
            let index: usize = row.attr("data-index").unwrap().parse().unwrap();
            let value = row.select(&scraper::Selector::parse("data").unwrap()).next().unwrap();
            let value: f32 = value.attr("value").unwrap().parse().unwrap();
            assert_eq!(value.to_bits(), scores[index].to_bits());
            shown.push(value);
        }
        let mut sorted = scores.clone();
        sorted.sort_by(|a, b| b.total_cmp(a));
        assert_eq!(shown[..12], sorted[..12]);
        let least: Vec<f32> = sorted[27..].iter().rev().copied().collect();
        assert_eq!(shown[12..], least);
        assert_eq!(scores[3], score(number, 3, 0));
    }
    assert_eq!(texts(&html, ".cards .name"), ["apple", "joy"]);
    assert_eq!(texts(&html, "#q1 .quantiles td").len(), 9);
    // Each picture once, however many queries show it, and none that is not shown.
    let used: BTreeSet<&str> = select(&html, "use").iter().filter_map(|shown| shown.attr("href")).collect();
    assert_eq!(select(&html, "symbol").len(), used.len());
    assert!(used.len() < 30 && select(&html, ".gone").is_empty());
    assert!(select(&html, "#q1 .row .strip .span").len() == 15 && !select(&html, ".tied").is_empty());
    assert!(!select(&html, "#q1 .spark .own").is_empty() && page.contains("The image alone"));
    assert!(page.contains("attrflow audit manifest.json") && page.contains("Error bars: one standard error"));
}

#[test]
fn equal_files_give_equal_bytes() {
    let run = made(&Plan::default());
    let pages = [0, 1].map(|_| run.page(&Options::default()));
    assert!(pages[0] == pages[1]);
    // Text for people has no path of this machine.
    let html = checked(&pages[0]);
    let shown: String = texts(&html, "header, main, footer").concat();
    assert!(!shown.contains("/home") && !shown.contains(&run.folder.path().display().to_string()));
}

#[test]
fn the_policy_has_the_hashes_of_style_and_script() {
    let html = checked(&made(&Plan::default()).page(&Options::default()));
    let policy = select(&html, "meta[http-equiv]")[0].attr("content").unwrap().to_owned();
    for element in ["style", "script:not([type])"] {
        let text = texts(&html, element).concat();
        assert!(policy.contains(&format!("'sha256-{}'", STANDARD.encode(Sha256::digest(text.as_bytes())))));
    }
    assert!(policy.starts_with("default-src 'none';") && !policy.contains("unsafe"));
}

#[test]
fn the_manifest_comes_out_again() {
    let run = made(&Plan::default());
    let expected = serde_json::to_string_pretty(&run.manifest).unwrap() + "\n";
    let page = run.page(&Options::default());
    assert_eq!(extract(&page).unwrap(), expected);
    assert!(page.contains(&blake3::hash(expected.as_bytes()).to_hex().to_string()));
    let redacted = run.page(&Options { redact: true, ..Options::default() });
    checked(&redacted);
    assert!(extract(&redacted).unwrap().contains("\"pipeline\": \"made\""));
    assert!(!redacted.contains("/home/ann") && !redacted.contains("29.png"));
}

#[test]
fn estimates_and_missing_error_bars_are_said() {
    let run = made(&Plan { error_bars: false, ..Plan::default() });
    let html = checked(&run.page(&Options::default()));
    assert!(select(&html, ".strip .span").is_empty() && select(&html, ".err").is_empty());
    assert!(texts(&html, "#q1 .hint").iter().any(|text| text.contains("No error bars: one point.")));
}

#[test]
fn a_timeline_is_drawn_where_times_are_known() {
    let mut run = made(&Plan::default());
    let task = |number: usize| TaskTime {
        stage: if number < 500 { "latents".into() } else { "influence[apple]".into() },
        worker: format!("cpu {}", number % 2),
        begin: (number / 2) as f64,
        end: (number / 2 + 1) as f64,
        peak_memory: 0,
    };
    run.tasks = (0..1000).map(task).collect();
    let page = run.page(&Options::default());
    let html = checked(&page);
    assert_eq!(select(&html, "#run .chart rect").len(), 4, "a bar of each stage on each worker");
    run.tasks.truncate(2);
    let few = run.page(&Options::default());
    assert!(few.len().abs_diff(page.len()) < 3_000, "nothing grows with the number of tasks");
}

#[test]
fn the_graph_and_the_stages_are_there_without_items() {
    let html = checked(&made(&Plan::default()).page(&Options::default()));
    assert_eq!(select(&html, "#graph .box").len(), 7);
    assert_eq!(select(&html, ".stages tbody tr").len(), 7);
    assert!(texts(&html, "#graph desc").concat().contains("influence reads latents, pretrain_loss, unlearn"));
}

#[test]
fn the_page_is_as_it_was() {
    let run = made(&Plan { queries: vec!["apple".into()], images: 4, pixels: 0, ..Plan::default() });
    let page = run.page(&Options { top: 2, ..Options::default() });
    let (_, body) = page.split_once("<body>").unwrap();
    let (body, _) = body.split_once("<script type=").unwrap();
    insta::assert_snapshot!(body);
}
