//! Two runs.

use super::made::{Plan, made};
use super::parsed::{checked, select, texts};
use crate::report::{Comparison, Options, ReportError};

#[test]
fn two_runs_are_compared() {
    let a = made(&Plan { images: 120, ..Plan::default() });
    let mut b =
        made(&Plan { images: 120, seed: 1, queries: vec!["joy".into(), "new".into()], ..Plan::default() });
    b.manifest.sets = vec!["seed=1".into()];
    let compare =
        |b: &super::made::Made| Comparison::read((&a.manifest, &a), (&b.manifest, b), &Options::default());
    let page = compare(&b).unwrap();
    let html = checked(page.html());
    assert_eq!(texts(&html, ".query h2"), ["joy"]);
    assert_eq!(select(&html, ".query .row").len(), 40);
    assert_eq!(select(&html, ".query .points").len(), 1);
    let said = texts(&html, "main").concat();
    assert!(
        said.contains("Only in A: apple.") && said.contains("Only in B: new.") && said.contains("seed=1")
    );
    assert!(said.contains("Spearman") && said.contains("Kendall"));
    assert_eq!(page.html(), compare(&b).unwrap().html());

    let same = Comparison::read((&a.manifest, &a), (&a.manifest, &a), &Options::default()).unwrap();
    let html = checked(same.html());
    assert!(texts(&html, "main").concat().contains("the same results, byte for byte"));
    assert!(texts(&html, ".query .row .hint").iter().all(|text| text == "same rank"));

    b.manifest.stages.clear();
    assert!(matches!(compare(&b), Err(ReportError::NoCommonQuery(_))));
}
