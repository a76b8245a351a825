//! `show`, and what is said of a score: the top of rankings in the terminal.

use std::path::Path;

use attrflow::results::SCORE_MEANING;

use crate::project::Project;

/// The words of each line.
fn words(text: &str) -> Vec<Vec<&str>> {
    text.lines().map(|line| line.split_whitespace().collect()).collect()
}

#[test]
fn the_top_of_a_ranking_is_what_its_table_says() {
    let project = Project::finished();
    let show = |arguments: &[&str]| {
        let ran = project.attrflow([&["show"], arguments].concat());
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
        ran.out
    };
    let one = show(&["grin", "-n", "2"]);
    let lines = words(&one);
    assert_eq!(lines[0][0], "grin");
    assert_eq!(lines[1], ["rank", "score", "\u{b1}", "tie", "index", "file", "caption"]);
    let mut table = csv::Reader::from_path(project.result("ranking/grin/top.csv")).unwrap();
    let columns = table.headers().unwrap().clone();
    for (number, row) in table.records().take(2).enumerate() {
        let row = row.unwrap();
        let cell = |name: &str| &row[columns.iter().position(|column| column == name).unwrap()];
        let shown = &lines[2 + number];
        assert_eq!(shown[0], cell("rank"));
        let (score, expected): (f64, f64) = (shown[1].parse().unwrap(), cell("influence").parse().unwrap());
        assert!((score - expected).abs() <= 1e-3 * expected.abs(), "{shown:?}");
        assert!(shown.contains(&cell("index")) && shown.contains(&cell("file_name")), "{shown:?}");
        assert!(project.result(cell("path")).is_file(), "{row:?}");
        assert_eq!(cell("percentile"), if number == 0 { "100" } else { "80" });
    }
    assert_eq!(lines[4], ["of", "6", "training", "images"]);
    // By its stages, of a run that is named.
    for name in ["influence[grin]", "ranking[grin]"] {
        assert_eq!(show(&[name, "-n", "2", "--run", "demo:last"]), one);
    }
    let all = show(&[]);
    assert!(words(&all).contains(&vec!["pizza"]) || all.contains("\npizza "), "{all}");
    assert_eq!(all, show(&["ranking"]));
    // Six pictures and the query, as half blocks, in rows of 80 columns.
    let blocks = show(&["grin", "--pictures", "blocks"]);
    assert_eq!(words(&blocks)[1], ["query", "1", "2", "3"]);
    assert!(blocks.lines().filter(|line| line.contains('\u{2580}')).count() >= 18);
    assert!(show(&["grin", "--pictures", "kitty"]).contains("\u{1b}_Ga=T,f=100"));
    assert!(show(&["grin", "--pictures", "sixel"]).contains("\u{1b}P0;1q"));

    let ran = project.attrflow(["show", "gring"]);
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("has no query `gring`: did you mean `grin`?"), "{ran:?}");
    // What is gone is said.
    fs_err::remove_dir_all(project.path("cache/objects")).unwrap();
    let ran = project.attrflow(["show", "grin"]);
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("grin: Its scores are no longer in the cache"), "{ran:?}");
}

#[test]
fn one_paragraph_says_what_a_score_means() {
    let ran = Project::finished().attrflow(["show", "--help"]);
    let meaning: Vec<&str> = SCORE_MEANING.split_whitespace().collect();
    let has = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ").contains(&meaning.join(" "));
    assert!(has(&ran.out), "{}", ran.out);
    for file in ["README.md", "docs/files.md"] {
        let text = fs_err::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
        assert!(has(&text), "{file}");
    }
}
