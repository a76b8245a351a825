//! The manifest in a page, and out of it again.

use super::options::ReportError;

const BEGIN: &str = "<script type=\"application/json\" id=\"manifest\">";
const END: &str = "</script>";

/// The characters of JSON, each with whether it is inside a text: a quote that begins one is not, one that ends it is.
fn marked(json: &str) -> impl Iterator<Item = (char, bool)> {
    let (mut in_text, mut escaped) = (false, false);
    json.chars().map(move |c| {
        let inside = in_text;
        match c {
            _ if escaped => escaped = false,
            '\\' if in_text => escaped = true,
            '"' => in_text = !in_text,
            _ => {}
        }
        (c, inside)
    })
}

/// A text of JSON without the spaces between its parts.
fn compact(json: &str) -> String {
    marked(json).filter(|(c, in_text)| *in_text || !c.is_ascii_whitespace()).map(|(c, _)| c).collect()
}

/// The text with the spaces that attrflow writes.
fn spaced(compact: &str) -> String {
    let (mut out, mut depth) = (String::new(), 0_usize);
    let newline = |out: &mut String, depth: usize| {
        out.push('\n');
        out.extend(std::iter::repeat_n("  ", depth));
    };
    // Whether a list or an object has just begun: what is first in it, but its end, is on a new line.
    let mut begun = false;
    for (c, in_text) in marked(compact) {
        let (begins, ends) = (!in_text && matches!(c, '{' | '['), !in_text && matches!(c, '}' | ']'));
        if ends {
            depth = depth.saturating_sub(1);
        }
        if begun != ends {
            newline(&mut out, depth);
        }
        out.push(c);
        match c {
            ',' if !in_text => newline(&mut out, depth),
            ':' if !in_text => out.push(' '),
            _ => {}
        }
        depth += usize::from(begins);
        begun = begins;
    }
    out + "\n"
}

/// The manifest in a page, as its file was.
///
/// # Errors
/// The text is no report.
pub fn extract(html: &str) -> Result<String, ReportError> {
    let (_, rest) = html.split_once(BEGIN).ok_or(ReportError::NoManifest)?;
    let (json, _) = rest.split_once(END).ok_or(ReportError::NoManifest)?;
    let json = json.replace("\\u003c", "<");
    // A text with line ends is as its file was.
    let json = if json.contains('\n') { json } else { spaced(&json) };
    match serde_json::from_str::<serde_json::Value>(&json) {
        Ok(value) if value.is_object() => Ok(json),
        _ => Err(ReportError::NoManifest),
    }
}

/// The whole element. No text in the manifest can end it. It has no spaces if they can be put back as they were.
pub(super) fn element(json: &str) -> String {
    let compact = compact(json);
    let json = if spaced(&compact) == json { &compact } else { json };
    format!("{BEGIN}{}{END}", json.replace('<', "\\u003c"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_comes_out_as_it_went_in() {
        let json = "{\n  \"caption\": \"</script><!-- <b>\"\n}\n";
        let page = format!("<p>&lt;script&gt;</p>{}<p>", element(json));
        assert_eq!(page.matches("</script>").count(), 1);
        assert_eq!(extract(&page).unwrap(), json);
        for json in [
            "{\"a\":1}\n",
            "{\n  \"a\": [],\n  \"b: [\\\"\": [\n    {},\n    [\n      [\n        1.5\n      ]\n    ],\n    null\n  ]\n}\n",
        ] {
            let page = element(json);
            assert_eq!((extract(&page).unwrap().as_str(), page.contains("  ")), (json, false));
        }
        assert!(extract("<html>").is_err() && extract(BEGIN).is_err());
        assert!(extract(&format!("{BEGIN}[]{END}")).is_err());
    }
}
