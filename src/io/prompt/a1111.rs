//! The text that AUTOMATIC1111's program writes: the prompt, the negative prompt, and a line of settings.

use std::collections::BTreeMap;

use serde_json::{Deserializer, Value};

use super::error::CUT;
use super::{Found, Source};
use crate::io::words::cut;

const NEGATIVE: &str = "Negative prompt:";

/// The longest line of settings, in bytes.
const LONGEST: usize = 1 << 17;

/// The fewest settings that make a line of settings.
const FEWEST: usize = 3;

/// Settings of which a line has at least one.
const USUAL: [&str; 6] = ["Steps", "Sampler", "CFG scale", "Seed", "Size", "Model hash"];

/// Reads such a text. `named` says that its place is meant for it: others need a line of settings.
pub(super) fn parse(text: &str, named: bool) -> Option<Found> {
    let text = text.trim_matches(|letter: char| letter.is_whitespace() || letter == '\0');
    // Other programs write JSON into the same places.
    if text.starts_with('{') && serde_json::from_str::<Value>(text).is_ok() {
        return None;
    }
    let lines: Vec<&str> = text.lines().collect();
    let (body, settings, after) = split(&lines);
    let mut warnings = Vec::new();
    let settings = match settings {
        Some(settings) => settings,
        None if named && !text.is_empty() => {
            warnings.push("no line of settings (Steps: …) was found, so no setting is known".to_owned());
            BTreeMap::new()
        }
        None => return None,
    };
    if !after.is_empty() {
        let what = if after.len() == 1 { "1 line" } else { &format!("{} lines", after.len()) };
        warnings.push(format!("{what} after the settings left out: {:?}", cut(&after.join("\n"), CUT)));
    }
    let is_negative = |line: &&str| line.trim_start().starts_with(NEGATIVE);
    let end = body.iter().position(is_negative).unwrap_or(body.len());
    let (prompt, negative) = body.split_at(end);
    let negative = negative.join("\n");
    let negative = negative.trim_start().trim_start_matches(NEGATIVE).trim().to_owned();
    Some(Found {
        source: Source::A1111,
        prompt: prompt.join("\n").trim().to_owned(),
        negative: Some(negative).filter(|negative| !negative.is_empty()),
        settings,
        warnings,
    })
}

type Settings = BTreeMap<String, String>;

/// The lines before the settings, the settings, and the lines after them.
///
/// The settings are the last line. Some extensions add lines after them: then the last line counts that
/// begins with the number of steps.
fn split<'a, 'b>(lines: &'b [&'a str]) -> (&'b [&'a str], Option<Settings>, &'b [&'a str]) {
    let steps = |line: &str| {
        let number = line.trim_start().strip_prefix("Steps:").map(str::trim_start);
        number.is_some_and(|number| number.starts_with(|first: char| first.is_ascii_digit()))
    };
    for (index, line) in lines.iter().enumerate().rev() {
        if (index + 1 == lines.len() || steps(line))
            && let Some(found) = settings(line)
        {
            return (&lines[..index], Some(found), &lines[index + 1..]);
        }
    }
    (lines, None, &[])
}

/// The settings in a line of settings.
fn settings(line: &str) -> Option<Settings> {
    let mut rest = line.trim();
    if rest.len() > LONGEST {
        return None;
    }
    let mut pairs: Vec<(&str, String)> = Vec::new();
    while !rest.is_empty() {
        match (key(rest), pairs.last_mut()) {
            (Some((key, after)), _) => {
                let (value, after) = value(after);
                pairs.push((key, value));
                rest = after;
            }
            // A comma in a value that is not in quotes.
            (None, Some((_, value))) => {
                let (more, after) = rest.split_once(',').unwrap_or((rest, ""));
                if !more.trim().is_empty() {
                    value.push_str(", ");
                    value.push_str(more.trim());
                }
                rest = after;
            }
            (None, None) => return None,
        }
        rest = rest.trim_start();
    }
    let usual = pairs.iter().any(|(key, _)| USUAL.contains(key));
    (usual && pairs.len() >= FEWEST)
        .then(|| pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
}

/// A key and what comes after its colon.
fn key(rest: &str) -> Option<(&str, &str)> {
    const LONGEST_KEY: usize = 100;
    let end =
        rest.bytes().take(LONGEST_KEY).position(|byte| matches!(byte, b':' | b',' | b'"' | b'[' | b'{'))?;
    let (key, after) = rest.split_at_checked(end)?;
    let key = key.trim();
    let begins = key.starts_with(char::is_alphanumeric);
    after.strip_prefix(':').filter(|_| begins).map(|after| (key, after.trim_start()))
}

/// A value, without quotes, and what comes after its comma. Values with commas are JSON.
fn value(rest: &str) -> (String, &str) {
    let next = |after: &'_ str| -> Option<usize> {
        let trimmed = after.trim_start();
        match trimmed.strip_prefix(',') {
            Some(next) => Some(next.len()),
            None => trimmed.is_empty().then_some(0),
        }
    };
    if rest.starts_with(['"', '[', '{']) {
        let mut values = Deserializer::from_str(rest).into_iter::<Value>();
        if let Some(Ok(value)) = values.next()
            && let Some(left) = next(&rest[values.byte_offset()..])
        {
            let written = rest[..values.byte_offset()].trim_end().to_owned();
            let value = if let Value::String(text) = value { text } else { written };
            return (value, &rest[rest.len() - left..]);
        }
    }
    // Quotes around what is no JSON, for instance a path of Windows.
    if let Some(inner) = rest.strip_prefix('"') {
        const TRIED: usize = 64;
        let mut quotes = inner.match_indices('"').take(TRIED);
        let ends = quotes.find_map(|(end, _)| next(&inner[end + 1..]).map(|left| (end, left)));
        if let Some((end, left)) = ends {
            return (inner[..end].to_owned(), &rest[rest.len() - left..]);
        }
    }
    let (value, after) = rest.split_once(',').unwrap_or((rest, ""));
    (value.trim().to_owned(), after)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAST: &str =
        "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 965400086, Size: 512x512, Model hash: 6ce0161689";

    fn parsed(text: &str) -> Found {
        parse(text, true).unwrap()
    }

    #[test]
    fn prompts_negative_prompts_and_settings_are_told_apart() {
        let table: [(&str, &str, Option<&str>); 9] = [
            ("a cat\nNegative prompt: ugly\n", "a cat", Some("ugly")),
            ("a cat,\n  on a sofa\n\nred\n", "a cat,\n  on a sofa\n\nred", None),
            (
                "a cat\r\nNegative prompt: ugly,\r\nblurry\r\n\r\nbad\r\n",
                "a cat",
                Some("ugly,\nblurry\n\nbad"),
            ),
            ("Negative prompt: ugly\n", "", Some("ugly")),
            ("Negative prompt:\n", "", None),
            ("", "", None),
            ("Steps: 3, 2, 1, up\nNegative prompt: Steps: 5\n", "Steps: 3, 2, 1, up", Some("Steps: 5")),
            (
                "a sign with Steps: 20, Sampler: x, Seed: 3\n",
                "a sign with Steps: 20, Sampler: x, Seed: 3",
                None,
            ),
            ("Steps: 1, Sampler: x, Seed: 3\nb\n", "Steps: 1, Sampler: x, Seed: 3\nb", None),
        ];
        for (body, prompt, negative) in table {
            let found = parsed(&format!("{body}{LAST}\0"));
            assert_eq!((found.prompt.as_str(), found.negative.as_deref()), (prompt, negative), "{body:?}");
            assert_eq!(found.settings.len(), 6, "{body:?}");
            assert_eq!(found.settings["Seed"], "965400086");
            assert_eq!(found.settings["Sampler"], "Euler a");
            assert_eq!(found.warnings, Vec::<String>::new());
        }
    }

    #[test]
    fn values_end_at_a_comma_outside_quotes() {
        for (written, key, value) in [
            ("Lora hashes: \"a: b, c: d\"", "Lora hashes", "a: b, c: d"),
            (r#"Wildcard prompt: "say \"a, b\": \\ 猫\nc""#, "Wildcard prompt", "say \"a, b\": \\ 猫\nc"),
            (r#"Path: "C:\new, D:\x""#, "Path", r"C:\new, D:\x"),
            (r#"Open: "a"#, "Open", "\"a"),
            (r#"Quoted: "a" b"#, "Quoted", "\"a\" b"),
            ("X Values: 1, 2,3", "X Values", "1, 2, 3"),
            (
                r#"Civitai resources: [{"type":"lora","weight":1}, 2]"#,
                "Civitai resources",
                r#"[{"type":"lora","weight":1}, 2]"#,
            ),
            (r#"Hashes: {"model": "abc", "vae": "d"}"#, "Hashes", r#"{"model": "abc", "vae": "d"}"#),
            ("Range: [a, b]", "Range", "[a, b]"),
            ("Created: 2024-10-25T10:37:03Z", "Created", "2024-10-25T10:37:03Z"),
            ("Script: X/Y/Z plot", "Script", "X/Y/Z plot"),
            ("Empty:", "Empty", ""),
        ] {
            for line in [format!("{LAST}, {written}, Version: v1.9.4"), format!("{LAST}, {written}")] {
                let found = parsed(&line).settings;
                assert_eq!(found[key], value, "{line}");
                assert_eq!(found["Model hash"], "6ce0161689");
                assert_eq!(found.contains_key("Version"), line.ends_with("v1.9.4"), "{line}");
            }
        }
    }

    #[test]
    fn lines_after_the_settings_are_left_out_and_said() {
        let found = parsed(&format!("a cat\nNegative prompt: b\n{LAST}\nTemplate: a {{cat|dog}}"));
        assert_eq!((found.prompt.as_str(), found.negative.as_deref()), ("a cat", Some("b")));
        assert_eq!(found.warnings, ["1 line after the settings left out: \"Template: a {cat|dog}\""]);
    }

    #[test]
    fn only_a_place_meant_for_it_needs_no_settings() {
        let found = parsed("a cat\nNegative prompt: b");
        assert_eq!((found.prompt.as_str(), found.negative.as_deref()), ("a cat", Some("b")));
        assert_eq!(found.warnings, ["no line of settings (Steps: …) was found, so no setting is known"]);
        for text in ["", "Screenshot", "a: b, c: d, e: f", "a, Steps: 1, Seed: 2, Size: 3", "{\"Steps\": 1}"]
        {
            assert_eq!(parse(text, false), None, "{text}");
        }
        assert!(parse(&format!("a cat\n{LAST}"), false).is_some());
        for text in ["", " \n", r#"{"sui_image_params": {"prompt": "a cat"}}"#] {
            assert_eq!(parse(text, true), None, "{text}");
        }
    }

    #[test]
    fn a_hostile_line_takes_no_long_time() {
        for part in ["a:\"x,", "a:[1,", "a:{\"b\":", "Steps: 1\n", "a:,", "\"", ":"] {
            let text = format!("Steps: 1, {}", part.repeat((LONGEST - 20) / part.len()));
            parse(&text, true);
        }
    }
}
