//! What must hold of every page, read by a real parser of HTML.

use std::collections::BTreeSet;

use scraper::{Html, Selector};

pub(super) fn select<'a>(html: &'a Html, selector: &str) -> Vec<scraper::ElementRef<'a>> {
    html.select(&Selector::parse(selector).unwrap()).collect()
}

pub(super) fn texts(html: &Html, selector: &str) -> Vec<String> {
    select(html, selector).iter().map(|element| element.text().collect()).collect()
}

/// Parses a page and checks what holds of all.
pub(super) fn checked(page: &str) -> Html {
    let html = Html::parse_document(page);
    assert_eq!(html.errors.len(), 0, "{:?}", html.errors);
    assert_eq!(select(&html, "h1").len(), 1);
    assert_eq!(select(&html, "html[lang]").len(), 1);
    assert_eq!(
        [select(&html, "header").len(), select(&html, "main").len(), select(&html, "footer").len()],
        [1; 3]
    );

    let ids: Vec<&str> = select(&html, "[id]").iter().filter_map(|element| element.value().id()).collect();
    let known: BTreeSet<&str> = ids.iter().copied().collect();
    assert_eq!(known.len(), ids.len(), "an id occurs twice");
    for element in select(&html, "*") {
        let value = element.value();
        for (name, text) in value.attrs() {
            let targets: Vec<&str> = match name {
                "href" if text.starts_with('#') => vec![&text[1..]],
                "for" | "aria-labelledby" | "aria-describedby" | "data-sort" | "data-query" => {
                    text.split(' ').collect()
                }
                _ => Vec::new(),
            };
            targets
                .into_iter()
                .for_each(|target| assert!(known.contains(target), "no target {target} of {name}"));
            let fetched = ["href", "src", "srcset", "action", "formaction", "data", "poster"].contains(&name);
            let inside = text.starts_with('#') || text.starts_with("data:");
            assert!(!fetched || inside, "{}: {name} is {text:.80}", value.name());
            assert!(!name.starts_with("on") && name != "style", "{}: {name}", value.name());
        }
        let named = value
            .attr("aria-label")
            .or(value.attr("aria-labelledby"))
            .is_some_and(|name| !name.trim().is_empty());
        let hidden = element.ancestors().any(|above| {
            above.value().as_element().is_some_and(|above| above.attr("aria-hidden") == Some("true"))
        }) || value.attr("aria-hidden") == Some("true");
        let picture = matches!(value.name(), "svg" | "img") || value.attr("role") == Some("img");
        assert!(!picture || named || hidden, "{} without a name", value.name());
        let control = matches!(value.name(), "input" | "select");
        assert!(
            !control || select(&html, "label[for]").iter().any(|label| label.attr("for") == value.id()),
            "no label"
        );
    }
    for style in texts(&html, "style") {
        assert!(!style.contains("url(") && !style.contains("@import"));
    }
    for script in texts(&html, "script:not([type])") {
        assert!(!script.contains("fetch(") && !script.contains("innerHTML") && script.len() <= 10_000);
    }
    html
}

/// The elements of a page.
pub(super) fn elements(html: &Html) -> usize {
    select(html, "*").len()
}
