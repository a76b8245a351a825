//! Pages for the tests in a browser, tests/browser.

use std::path::PathBuf;

use super::budget::many;
use super::hostile::HOSTILE;
use super::made::{Plan, made};
use super::parsed::{checked, elements, select};
use super::runs::failed;
use crate::report::{Comparison, Options};

#[test]
#[ignore = "writes pages for `make test-browser`"]
fn pages_for_a_browser() {
    let folder = std::env::var_os("ATTRFLOW_WRITE_TO").expect("ATTRFLOW_WRITE_TO names a folder");
    let folder = PathBuf::from(folder);
    fs_err::create_dir_all(&folder).unwrap();
    let write = |name: &str, html: &str| fs_err::write(folder.join(name), html).unwrap();
    let options = Options { bottom: 5, ..Options::default() };
    let many = made(&many()).page(&Options::default());
    assert!(many.len() <= 10_000_000, "{} bytes", many.len());
    let html = checked(&many);
    assert_eq!(select(&html, ".row").len(), 2000);
    assert!(elements(&html) <= 60_000, "{} elements", elements(&html));
    write("many.html", &many);
    write("failed.html", &failed().page(&options));
    let captions = HOSTILE.iter().map(|text| (*text).to_owned()).chain(["x".repeat(10_000)]).collect();
    write("hostile.html", &made(&Plan { captions, images: 4, ..Plan::default() }).page(&options));
    let [a, b] = [0, 1].map(|seed| made(&Plan { seed, ..Plan::default() }));
    let both = Comparison::read((&a.manifest, &a), (&b.manifest, &b), &options).unwrap();
    write("compared.html", both.html());
}
