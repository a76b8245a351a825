//! JSON files as Python writes and reads them.
//!
//! Python's `json` writes NaN and infinities, which no standard allows, and starts a file with a byte order mark if asked
//! to. Both are read here. A value that is not finite is no value of any type: where one is needed, it is an error.

use std::borrow::Cow;
use std::io;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::mistaken::mistaken;

/// Why a JSON file could not be read.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    /// The operating system refused; fs-err puts the path into the message.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Not JSON, or not of the expected form.
    #[error("{}: {source}", path.display())]
    Form {
        /// The file.
        path: PathBuf,
        /// The error of the parser, with line and column.
        source: serde_json::Error,
    },
    /// Another file.
    #[error("{}: it is {found}, expected JSON", path.display())]
    Instead {
        /// The file.
        path: PathBuf,
        /// What it is.
        found: String,
    },
    /// A number that is not finite where a value is needed.
    #[error("{}: found {token} at line {line}, expected a finite value", path.display())]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The value as written.
        token: &'static str,
        /// The line, from 1.
        line: usize,
    },
}

/// Reads a file whose outermost value is an object.
///
/// # Errors
/// The file cannot be read, is not JSON, or not of the expected form.
pub fn read<T: DeserializeOwned>(path: impl AsRef<Path>) -> Result<T, JsonError> {
    let path = path.as_ref();
    parse(&fs_err::read(path)?, path)
}

/// Reads a text of a file, whose path is for messages.
///
/// # Errors
/// See [`read`].
pub fn parse<T: DeserializeOwned>(bytes: &[u8], path: &Path) -> Result<T, JsonError> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let (text, not_finite) = standard(bytes);
    serde_json::from_slice::<Object<T>>(&text).map(|object| object.0).map_err(|source| {
        let place = (source.line(), source.column());
        // The parser names the end of what it did not expect.
        let found = not_finite.iter().find(|found| found.line == place.0 && found.columns.contains(&place.1));
        match found {
            Some(found) => JsonError::NotFinite { path: path.into(), token: found.token, line: found.line },
            None => match mistaken(bytes) {
                Some(found) => JsonError::Instead { path: path.into(), found },
                None => JsonError::Form { path: path.into(), source },
            },
        }
    })
}

/// A value that is not finite, and where it is written.
struct NotFinite {
    token: &'static str,
    line: usize,
    columns: std::ops::RangeInclusive<usize>,
}

/// The text with a value that no type takes for each one that is not finite, and where these are in it. Behind one, the columns
/// of its line are shifted.
fn standard(bytes: &[u8]) -> (Cow<'_, [u8]>, Vec<NotFinite>) {
    let (mut text, mut kept, mut found) = (Vec::new(), 0, Vec::new());
    let (mut in_string, mut line, mut line_start, mut at) = (false, 1, 0, 0);
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'\n' => (line, line_start) = (line + 1, text.len() + at + 1 - kept),
            b'\\' if in_string => at += 1,
            b'"' => in_string = !in_string,
            b'N' | b'I' | b'-' if !in_string => {
                let mut tokens = NOT_FINITE.into_iter();
                if let Some(token) = tokens.find(|token| bytes[at..].starts_with(token.as_bytes())) {
                    text.extend_from_slice(&bytes[kept..at]);
                    let column = text.len() - line_start;
                    text.extend_from_slice(marker(token).as_bytes());
                    found.push(NotFinite { token, line, columns: column..=text.len() - line_start + 1 });
                    at += token.len() - 1;
                    kept = at + 1;
                }
            }
            _ => {}
        }
        at += 1;
    }
    if found.is_empty() {
        return (Cow::Borrowed(bytes), found);
    }
    text.extend_from_slice(&bytes[kept..]);
    (Cow::Owned(text), found)
}

/// What Python writes for them.
const NOT_FINITE: [&str; 3] = ["NaN", "Infinity", "-Infinity"];

/// Neither a list of numbers, texts or objects with keys that are read, nor an object.
fn marker(token: &str) -> String {
    format!("[{{\"{token}\":0}}]")
}

/// Writes a value as lines for people, with a line end.
///
/// # Errors
/// The file cannot be written.
pub fn write_pretty(file: &Path, value: &impl Serialize) -> io::Result<()> {
    let mut text = serde_json::to_vec_pretty(value)?;
    text.push(b'\n');
    fs_err::write(file, text)
}

/// A value as it was written, also one that is not finite.
pub fn written(value: &Value) -> String {
    let text = value.to_string();
    NOT_FINITE.into_iter().find(|token| marker(token) == text).map_or(text, str::to_owned)
}

/// A value that is an object in JSON: a derived reader would take an array too, by the order of its values.
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Map<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Map<T> {
            type Value = Object<T>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        deserializer.deserialize_map(Map(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    struct Probe {
        name: String,
        #[serde(default)]
        size: f64,
    }

    fn of(text: &str) -> Result<Probe, String> {
        parse(text.as_bytes(), Path::new("a.json")).map_err(|error| error.to_string())
    }

    #[test]
    fn what_python_writes_is_read() {
        let expected = Ok(Probe { name: "NaN, \"-Infinity".into(), size: 0.5 });
        let text =
            r#"{"a": NaN, "b": [-Infinity, {"c": Infinity}], "name": "NaN, \"-Infinity", "size": 0.5}"#;
        assert_eq!(of(text), expected);
        assert_eq!(of(&format!("\u{feff}{text}")), expected);
    }

    #[test]
    fn a_value_that_is_needed_is_finite() {
        for (text, found) in [
            ("{\"name\": \"a\",\n \"size\": NaN}", "a.json: found NaN at line 2, expected a finite value"),
            (
                "{\"size\": -Infinity, \"name\": \"a\"}",
                "a.json: found -Infinity at line 1, expected a finite value",
            ),
        ] {
            assert_eq!(of(text).unwrap_err(), found);
        }
    }

    #[test]
    fn a_value_that_is_not_finite_is_of_no_type() {
        #[derive(Debug, Deserialize)]
        #[serde(default)]
        #[allow(dead_code)]
        struct Lists {
            numbers: Vec<i64>,
            texts: Vec<String>,
            objects: Vec<Probe>,
            either: Either,
            maybe: Option<Vec<f64>>,
            after: u8,
        }
        #[derive(Debug, Deserialize)]
        #[serde(untagged)]
        #[allow(dead_code)]
        enum Either {
            One(i64),
            Each(Vec<i64>),
        }
        impl Default for Lists {
            fn default() -> Self {
                let either = Either::One(1);
                Self { numbers: vec![], texts: vec![], objects: vec![], either, maybe: None, after: 0 }
            }
        }
        for key in ["numbers", "texts", "objects", "either", "maybe"] {
            let text = format!("{{\"unread\": NaN, \n\"{key}\": NaN}}");
            let error = parse::<Lists>(text.as_bytes(), Path::new("a.json")).unwrap_err().to_string();
            assert_eq!(error, "a.json: found NaN at line 2, expected a finite value", "{key}");
        }
        let read: Value = parse(b"{\"a\": -Infinity, \"b\": [1]}", Path::new("a.json")).unwrap();
        assert_eq!((written(&read["a"]), written(&read["b"])), ("-Infinity".into(), "[1]".into()));
    }

    #[test]
    fn an_array_is_not_an_object() {
        assert!(of(r#"["a", 1.0]"#).unwrap_err().contains("invalid type: sequence, expected an object"));
        for text in ["", "{", "{\"name\": Nan}", "{\"name\": 3}", "{} {}", "[1, 2", "{\"name\": \"a\"} x"] {
            assert!(of(text).unwrap_err().starts_with("a.json: "), "{text}");
        }
    }
}
