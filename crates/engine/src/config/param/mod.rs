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

/// What a parameter reader sees and writes to.
pub struct Reader<'a> {
    /// The texts, for the folder that a relative path starts from.
    pub sources: &'a Sources,
    /// Where faults go.
    pub problems: &'a mut Problems,
}

impl Reader<'_> {
    /// The absolute form of a path written at `origin`; `None` after it was reported that nothing stands there.
    pub fn existing(&mut self, path: &Path, origin: &Origin) -> Option<PathBuf> {
        let path = normal(&self.sources.folder(origin).join(path));
        let message = match path.try_exists() {
            Ok(true) => return Some(path),
            Ok(false) => format!("there is no file or folder `{}`", path.display()),
            Err(error) => format!("`{}`: {error}", path.display()),
        };
        self.problems.at(origin, message);
        None
    }
}

/// A type that a parameter can have.
pub trait Param: Sized {
    /// The type in a user's words, such as `an integer of at least 0`.
    fn expected() -> String;
    /// Reads a node; `None` after a fault was reported.
    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self>;
    /// The type as JSON Schema.
    fn schema() -> Json;
    /// What is wrong with a value that was not read here but comes from elsewhere: ranges, and what is between fields.
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
    /// What it means.
    pub doc: String,
    /// The type in a user's words.
    pub expected: String,
    /// The type and range as JSON Schema.
    pub schema: Json,
    /// The default as TOML, `None` where the key is required.
    pub default: Option<String>,
    /// The keys below, for a table.
    pub keys: Vec<Key>,
}

/// Faults between several parameters; the key names the one to point at.
pub trait Validate {
    /// Lists them: the key, and what is wrong with it.
    fn validate(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }
}

/// A number that a range can hold.
pub trait Bounded: PartialOrd + std::fmt::Display + Copy {}
impl Bounded for u32 {}
impl Bounded for u64 {}
impl Bounded for usize {}
impl Bounded for f64 {}

/// Reads the fields of one table, and knows which keys nobody asked for.
pub struct Fields<'n> {
    table: &'n Table,
    origin: &'n Origin,
    known: Vec<&'static str>,
    missing: bool,
}

impl<'n> Fields<'n> {
    /// Opens a table node, or reports that it is something else.
    pub fn open(node: &'n Node, reader: &mut Reader<'_>) -> Option<Self> {
        let Some(table) = node.as_table() else {
            wrong_type(node, "a table", reader);
            return None;
        };
        Some(Self { table, origin: &node.origin, known: Vec::new(), missing: false })
    }

    /// Reads one field, or takes its default.
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

    /// Holds a number to its range.
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

    /// Reports keys that no field has.
    pub fn finish(&self, reader: &mut Reader<'_>) {
        for (key, entry) in &self.table.entries {
            if !self.known.contains(&key.as_str()) {
                let problem = reader.problems.at(&entry.key, format!("unknown key `{key}`"));
                problem.suggest(key, self.known.iter().copied());
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

/// What [`plain_name`] wants, for messages.
pub const PLAIN_NAME: &str = "letters, digits, `_`, and `-` or `.` behind the first";

/// Whether a text can name a port or a file on its own: nothing in it leads elsewhere.
pub fn plain_name(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    !text.is_empty() && !text.starts_with(['-', '.']) && text.bytes().all(plain)
}

/// Reports a name that is none of the choices of an enumeration.
pub fn wrong_choice(node: &Node, names: &[&str], reader: &mut Reader<'_>) {
    match node.as_text() {
        Some(text) => {
            let message = format!("`{text}` is none of {}", names.join(", "));
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

/// Declares a parameter struct: `name: Type [range] = default`, range and default optional.
#[macro_export]
macro_rules! params {
    ($(#[$meta:meta])* pub struct $name:ident {
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
                fields.finish(reader);
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
                        // The range says more than the type's own lower bound.
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
