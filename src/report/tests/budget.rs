//! The size of a page of many queries.

use super::made::{Plan, made};
use super::parsed::{checked, select, texts};
use crate::report::Options;

/// A hundred queries on a thousand photographs.
pub(super) fn many() -> Plan {
    let queries = (0..100).map(|number| format!("query {number}")).collect();
    Plan { queries, images: 1000, pixels: 100, ..Plan::default() }
}

#[test]
fn with_less_room_pictures_are_smaller() {
    let queries = (0..10).map(|number| format!("query {number}")).collect();
    let run = made(&Plan { queries, images: 100, pixels: 100, ..Plan::default() });
    let page = run.page(&Options::default());
    assert_eq!(select(&checked(&page), ".row").len(), 200);
    // It is said.
    let most = page.len() * 2 / 3;
    let small = run.page(&Options { max_size: most, ..Options::default() });
    assert!(small.len() <= most, "{} bytes of {}", small.len(), page.len());
    let notes = texts(&checked(&small), "header .note").concat();
    assert!(notes.contains("Pictures are at most"), "{notes}");
}

#[test]
fn what_cannot_fit_is_said() {
    let run = made(&Plan::default());
    let html = checked(&run.page(&Options { max_size: 1000, ..Options::default() }));
    assert_eq!(texts(&html, "header .note"), ["The page is larger than the 1.00 kB that it may have."]);
    assert_eq!(select(&html, "#q1 .row").len(), 5);
}

#[test]
fn nothing_grows_with_the_number_of_images() {
    let size = |images| {
        let run = made(&Plan { images, pixels: 0, queries: vec!["a".into()], ..Plan::default() });
        run.page(&Options::default()).len()
    };
    assert!(size(20_000).abs_diff(size(200)) < 2_000);
}
