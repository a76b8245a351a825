//! Captions and names that are written to break a page.

use super::made::{Plan, made};
use super::parsed::{checked, elements, select, texts};
use crate::report::{Options, extract};

pub(super) const HOSTILE: [&str; 9] = [
    "</script><img src=x onerror=alert(1)>",
    "</style><style>*{display:none}</style>",
    "\"' onmouseover=\"alert(1)",
    "--> <!-- <svg><script>alert(1)</script>",
    "{{ 7 * 7 }} {% include \"/etc/passwd\" %} &amp; &#60;",
    "\u{202e}gnp.elppa\u{2066}",
    "\u{645}\u{631}\u{62d}\u{628}\u{627} \u{1f34e} \u{65e5}\u{672c}",
    "]]> javascript:alert(1) http://example.org //example.org",
    "",
];

#[test]
fn hostile_captions_are_text() {
    let long = "x".repeat(10_000);
    let captions: Vec<String> = HOSTILE.iter().map(|text| (*text).to_owned()).chain([long]).collect();
    let run =
        made(&Plan { captions: captions.clone(), queries: vec!["a".into()], images: 3, ..Plan::default() });
    let page = run.page(&Options::default());
    let html = checked(&page);
    let plain = made(&Plan {
        captions: vec!["b".into(); 10],
        queries: vec!["a".into()],
        images: 3,
        ..Plan::default()
    });
    let plain = checked(&plain.page(&Options::default()));
    assert_eq!(elements(&html), elements(&plain), "no caption is markup");
    let found = texts(&html, "#q1-r1 .said");
    assert_eq!(found, captions);
    assert!(select(&html, "#q1-r1 .said").iter().all(|element| element.attr("dir") == Some("auto")));
    assert!(extract(&page).unwrap().contains("</script><img src=x"));
}

#[test]
fn hostile_names_are_text() {
    let names: Vec<String> = HOSTILE[..5].iter().map(|text| text.replace('/', "|")).collect();
    let run = made(&Plan { queries: names.clone(), images: 3, ..Plan::default() });
    let html = checked(&run.page(&Options::default()));
    assert_eq!(texts(&html, ".cards .name"), names);
}

#[test]
fn a_file_name_does_not_lead_out_of_the_folder() {
    let run = made(&Plan { queries: vec!["a".into()], images: 2, ..Plan::default() });
    let top = run.path("ranking[a]", "json");
    let text = fs_err::read_to_string(&top).unwrap().replace("\"1.png\"", "\"../images/1.png\"");
    fs_err::write(&top, text.replace("\"0.png\"", "\"/etc/passwd\"")).unwrap();
    let html = checked(&run.page(&Options::default()));
    assert!(select(&html, "#q1 .row use").is_empty());
    assert_eq!(select(&html, "#q1 .row .gone").len(), 2);
}
