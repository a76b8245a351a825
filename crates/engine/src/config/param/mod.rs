//! Stage parameters: typed once, with every fault reported at its place.
//!
//! [`params!`](crate::params) declares a parameter struct; the reader, the defaults, the valid names in a
//! message and the documentation all come from that one declaration.

mod location;
mod schema;
mod types;

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use crate::config::text::{Origin, Problems, Sources};
use crate::config::tree::{Node, Table};

pub use location::Location;
pub use schema::{bounded, or_reference, table};

/// The input and output of a parameter reader.
pub struct Reader<'a> {
    /// The texts, for the folder that a relative path starts from.
    pub sources: &'a Sources,
    /// Collects the faults.
    pub problems: &'a mut Problems,
}

impl Reader<'_> {
    /// The absolute form of a path written at `origin`; `None` after the missing file was reported.
    pub fn existing(&mut self, path: &Path, origin: &Origin) -> Option<PathBuf> {
        let written = path;
        let path = normal(&self.sources.folder(origin).join(path));
        match path.try_exists() {
            Ok(true) => return Some(path),
            Ok(false) => {
                let message = format!("no such file or folder: `{}`", path.display());
                let problem = self.problems.at(origin, message);
                location::probably_meant(written, &path).into_iter().for_each(|hint| problem.help(hint));
            }
            Err(error) => _ = self.problems.at(origin, format!("`{}`: {error}", path.display())),
        }
        None
    }
}

/// A type that a parameter can have.
pub trait Param: Sized {
    /// The type for users, such as `an integer of at least 0`.
    fn expected() -> String;
    /// Reads a node; `None` after a fault was reported.
    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self>;
    /// The type as JSON Schema.
    fn schema() -> Json;
    /// The faults of a value that was not read by [`Param::read`]: ranges, and relations between fields.
    fn faults(&self) -> Vec<String> {
        Vec::new()
    }
    /// The keys of a nested table, empty for a plain value.
    fn keys() -> Vec<Key> {
        Vec::new()
    }
}

/// One documented key of a parameter struct.
#[derive(Debug, Clone)]
pub struct Key {
    /// The key.
    pub name: &'static str,
    /// Its meaning.
    pub doc: String,
    /// The type for users.
    pub expected: String,
    /// The type and range as JSON Schema.
    pub schema: Json,
    /// The default as TOML, `None` where the key is required.
    pub default: Option<String>,
    /// The keys of a nested table.
    pub keys: Vec<Key>,
}

/// Properties of a parameter struct beyond its fields.
pub trait Validate {
    /// Keys, and ports of a stage, of earlier versions, each with its name now.
    const RENAMED: &'static [(&'static str, &'static str)] = &[];
    /// Faults between several parameters: the key to point at, and the message.
    fn validate(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }
}

/// A number that can have a range.
pub trait Bounded: PartialOrd + std::fmt::Display + Copy {}
impl Bounded for u32 {}
impl Bounded for u64 {}
impl Bounded for usize {}
impl Bounded for f64 {}

/// Reads the fields of one table, and records which keys were read.
pub struct Fields<'n> {
    table: &'n Table,
    origin: &'n Origin,
    known: Vec<&'static str>,
    missing: bool,
}

impl<'n> Fields<'n> {
    /// Opens a table node; any other type is reported.
    pub fn open(node: &'n Node, reader: &mut Reader<'_>) -> Option<Self> {
        let Some(table) = node.as_table() else {
            wrong_type(node, "a table", reader);
            return None;
        };
        Some(Self { table, origin: &node.origin, known: Vec::new(), missing: false })
    }

    /// Reads one field, or uses its default.
    pub fn field<P: Param>(
        &mut self,
        name: &'static str,
        default: Option<P>,
        reader: &mut Reader<'_>,
    ) -> Option<P> {
        self.known.push(name);
        match (self.table.get(name), default) {
            (Some(node), _) => P::read(node, reader),
            (None, Some(default)) => Some(default),
            (None, None) => {
                let problem = reader.problems.at(self.origin, format!("the key `{name}` is missing"));
                problem.help(format!("add `{name}`, {}", P::expected()));
                self.missing = true;
                None
            }
        }
    }

    /// Checks that a number is in its range.
    pub fn bounded<B: Bounded>(
        &self,
        name: &str,
        value: Option<B>,
        range: &RangeInclusive<B>,
        reader: &mut Reader<'_>,
    ) -> Option<B> {
        let value = value?;
        if range.contains(&value) {
            return Some(value);
        }
        let origin = self.table.get(name).map_or(self.origin, |node| &node.origin);
        let message =
            format!("`{name}` is {value}, expected a value from {} to {}", range.start(), range.end());
        reader.problems.at(origin, message);
        None
    }

    /// Reports keys that no field has; `renamed` lists those of earlier versions.
    pub fn finish(&self, renamed: &[(&str, &str)], reader: &mut Reader<'_>) {
        for (key, entry) in &self.table.entries {
            if !self.known.contains(&key.as_str()) {
                unknown_key(key, &entry.key, &self.known, renamed, reader.problems);
            }
        }
    }

    /// Reports the faults between fields, at the field or the table.
    pub fn validate(&self, faults: Vec<(&'static str, String)>, reader: &mut Reader<'_>) -> Option<()> {
        for (name, message) in &faults {
            let origin = self.table.get(name).map_or(self.origin, |node| &node.origin);
            reader.problems.at(origin, message.as_str());
        }
        faults.is_empty().then_some(())
    }
}

/// Reports a key that is not known, with its new name if it was renamed, else with the nearest known key.
pub fn unknown_key(
    key: &str,
    origin: &Origin,
    known: &[&str],
    renamed: &[(&str, &str)],
    problems: &mut Problems,
) {
    match renamed.iter().find(|(old, _)| *old == key) {
        Some((_, new)) => _ = problems.at(origin, format!("unknown key `{key}`; it is named `{new}` now")),
        None => {
            problems.at(origin, format!("unknown key `{key}`")).suggest(key, known.iter().copied());
        }
    }
}

fn wrong_type(node: &Node, expected: &str, reader: &mut Reader<'_>) {
    reader.problems.at(&node.origin, format!("expected {expected}, found {}", node.type_name()));
}

/// The path without `.` and `..`, so that one file has one name in messages.
fn normal(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::CurDir => {}
            std::path::Component::ParentDir if out.file_name().is_some() => {
                out.pop();
            }
            part => out.push(part),
        }
    }
    out
}

/// The form that [`plain_name`] accepts, for messages.
pub const PLAIN_NAME: &str = "at most 200 letters, digits, `_`; after the first character also `-` and `.`";

/// Whether a text can name a port or a file: it contains no path.
pub fn plain_name(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    (1..=200).contains(&text.len()) && !text.starts_with(['-', '.']) && text.bytes().all(plain)
}

/// Reports a name that is not one of the choices of an enumeration.
pub fn wrong_choice(node: &Node, names: &[&str], reader: &mut Reader<'_>) {
    match node.as_text() {
        Some(text) => {
            let message = format!("found `{text}`, expected one of {}", names.join(", "));
            reader.problems.at(&node.origin, message).suggest(text, names.iter().copied());
        }
        None => wrong_type(node, &format!("one of {}", names.join(", ")), reader),
    }
}

/// Declares an enumeration whose values are written as strings.
#[macro_export]
macro_rules! choice {
    ($(#[$meta:meta])* pub enum $name:ident { $( $(#[doc = $doc:literal])* $variant:ident = $text:literal ),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        pub enum $name { $( $(#[doc = $doc])* #[serde(rename = $text)] $variant ),* }

        impl $name {
            /// The value as it is written.
            pub const fn name(self) -> &'static str {
                match self { $( Self::$variant => $text ),* }
            }
        }

        impl $crate::config::param::Param for $name {
            fn expected() -> String {
                format!("one of {}", [$( concat!("`", $text, "`") ),*].join(", "))
            }
            fn read(node: &$crate::config::tree::Node, reader: &mut $crate::config::param::Reader<'_>) -> Option<Self> {
                match node.as_text() {
                    $( Some($text) => return Some(Self::$variant), )*
                    _ => $crate::config::param::wrong_choice(node, &[$( $text ),*], reader),
                }
                None
            }
            fn schema() -> serde_json::Value {
                serde_json::json!({ "enum": [$( $text ),*] })
            }
        }
    };
}

/// Declares a parameter struct: `name: Type [range] = default`, range and default optional. Where all keys have defaults, so has the
/// struct.
#[macro_export]
macro_rules! params {
    // All keys have defaults.
    ($(#[$meta:meta])* pub struct $name:ident {
        $( $(#[doc = $doc:literal])* $field:ident : $ty:ty $([$range:expr])? = $default:expr ),* $(,)?
    }) => {
        $crate::params! { @table $(#[$meta])* pub struct $name {
            $( $(#[doc = $doc])* $field : $ty $([$range])? = $default ),*
        } }
        impl Default for $name {
            fn default() -> Self {
                Self { $( $field: $default ),* }
            }
        }
    };
    ($(#[$meta:meta])* pub struct $name:ident { $($fields:tt)* }) => {
        $crate::params! { @table $(#[$meta])* pub struct $name { $($fields)* } }
    };
    (@table $(#[$meta:meta])* pub struct $name:ident {
        $( $(#[doc = $doc:literal])* $field:ident : $ty:ty $([$range:expr])? $(= $default:expr)? ),* $(,)?
    }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $name { $( $(#[doc = $doc])* pub $field: $ty ),* }

        impl $crate::config::param::Param for $name {
            fn expected() -> String {
                "a table".into()
            }
            fn read(node: &$crate::config::tree::Node, reader: &mut $crate::config::param::Reader<'_>) -> Option<Self> {
                let mut fields = $crate::config::param::Fields::open(node, reader)?;
                $(
                    #[allow(unused_mut, unused_assignments)]
                    let mut default: Option<$ty> = None;
                    $( default = Some($default); )?
                    let $field = fields.field::<$ty>(stringify!($field), default, reader);
                    $( let $field = fields.bounded(stringify!($field), $field, &$range, reader); )?
                )*
                fields.finish(<Self as $crate::config::param::Validate>::RENAMED, reader);
                let read = Self { $( $field: $field? ),* };
                fields.validate($crate::config::param::Validate::validate(&read), reader)?;
                Some(read)
            }
            fn faults(&self) -> Vec<String> {
                let mut faults = Vec::new();
                $(
                    faults.extend($crate::config::param::Param::faults(&self.$field));
                    $( if !$range.contains(&self.$field) {
                        let (field, found, range) = (stringify!($field), &self.$field, $range);
                        faults.push(format!("`{field}` is {found}, expected from {} to {}", range.start(), range.end()));
                    } )?
                )*
                faults.extend($crate::config::param::Validate::validate(self).into_iter().map(|(_, fault)| fault));
                faults
            }
            fn schema() -> serde_json::Value {
                $crate::config::param::table(&<Self as $crate::config::param::Param>::keys(), &[])
            }
            fn keys() -> Vec<$crate::config::param::Key> {
                vec![$( $crate::config::param::Key {
                    name: stringify!($field),
                    doc: {
                        let lines: &[&str] = &[$( $doc.trim() ),*];
                        lines.join(" ")
                    },
                    expected: {
                        let expected = <$ty as $crate::config::param::Param>::expected();
                        // The range is more precise than the type's own lower bound.
                        $( let expected = format!(
                            "{} from {} to {}",
                            expected.trim_end_matches(" of at least 0"),
                            $range.start(),
                            $range.end()
                        ); )?
                        expected
                    },
                    schema: {
                        let schema = <$ty as $crate::config::param::Param>::schema();
                        $( let schema = $crate::config::param::bounded::<$ty>(schema, &$range); )?
                        schema
                    },
                    default: {
                        #[allow(unused_mut, unused_assignments)]
                        let mut default: Option<String> = None;
                        $(
                            let value: $ty = $default;
                            default = Some(serde_json::to_string(&value).unwrap_or_default());
                        )?
                        default
                    },
                    keys: <$ty as $crate::config::param::Param>::keys(),
                } ),*]
            }
        }
    };
}
