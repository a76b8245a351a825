//! The source location of a recipe's value.

use std::path::PathBuf;

use serde::Serialize;

use super::blame::{Blame, blame};
use crate::config::text::{Origin, Sources};
use crate::config::tree::{Node, Value};
use crate::identity::recipe::key_name;
use crate::pipeline::{Pipeline, StageNode};

/// The source of a parameter's value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "from", rename_all = "snake_case")]
pub enum Location {
    /// A line of the pipeline or of its config.
    File {
        /// The file, as it was given.
        file: PathBuf,
        /// Counted from 1.
        line: usize,
    },
    /// An argument `--set KEY=VALUE`; the value is not repeated.
    Set {
        /// The key.
        key: String,
    },
    /// The kind's default.
    Default,
}

impl std::fmt::Display for Location {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File { file, line } => write!(f, "{}:{line}", file.display()),
            Self::Set { key } => write!(f, "--set {key}"),
            Self::Default => f.write_str("default"),
        }
    }
}

impl Location {
    /// The last commit that changed the line, if git knows it.
    pub fn blame(&self) -> Option<Blame> {
        match self {
            Self::File { file, line } => blame(file, *line),
            Self::Set { .. } | Self::Default => None,
        }
    }

    fn of(origin: &Origin, sources: &Sources) -> Self {
        let source = sources.get(origin.text);
        match source.name.as_str() {
            "--set" => {
                let key = source.text.split('=').next().unwrap_or_default();
                Self::Set { key: key.trim().to_owned() }
            }
            name => Self::File { file: name.into(), line: sources.line(origin) },
        }
    }
}

/// The result of following a field's name through the written values.
enum Way<'n> {
    /// The value.
    Here(&'n Node),
    /// A list without such an item, or a value that the kind splits itself.
    Around(&'n Node),
    /// To a table without the key.
    Nowhere,
}

/// Follows `loss.seed` through tables and lists; keys are compared in the form of a recipe.
fn follow<'n>(node: &'n Node, rest: &str) -> Way<'n> {
    if rest.is_empty() {
        return Way::Here(node);
    }
    let after = |key: &str| {
        let rest = rest.strip_prefix(key)?;
        if rest.is_empty() { Some(rest) } else { rest.strip_prefix('.') }
    };
    match &node.value {
        Value::Table(table) => {
            let mut found =
                table.entries.iter().filter_map(|(key, entry)| Some((after(&key_name(key))?, entry)));
            found.next().map_or(Way::Nowhere, |(rest, entry)| follow(&entry.node, rest))
        }
        Value::List(items) => {
            let mut found =
                items.iter().enumerate().filter_map(|(n, item)| Some((after(&n.to_string())?, item)));
            found.next().map_or(Way::Around(node), |(rest, item)| follow(item, rest))
        }
        _ => Way::Around(node),
    }
}

/// The location of a field of the stage's recipe, such as `params.loss.seed`; `None` if it is not a parameter.
pub fn place(stage: &StageNode, field: &str, sources: &Sources) -> Option<Location> {
    Some(match origin(stage, field)? {
        Some(origin) => Location::of(origin, sources),
        None => Location::Default,
    })
}

/// The same as an [`Origin`]; the inner `None` is a default.
fn origin<'s>(stage: &'s StageNode, field: &str) -> Option<Option<&'s Origin>> {
    match follow(&stage.written, field.strip_prefix("params.")?) {
        Way::Here(node) | Way::Around(node) => Some(Some(&node.origin)),
        Way::Nowhere => Some(None),
    }
}

/// The key of the config that sets a field of the stage's recipe, in the form of `--set`.
pub fn config_key(pipeline: &Pipeline, stage: &StageNode, field: &str) -> Option<String> {
    find(&pipeline.config, origin(stage, field)??)
}

/// The dotted path of the value written at `origin`.
fn find(node: &Node, origin: &Origin) -> Option<String> {
    let below = |key: &str, node: &Node| {
        // A `--set` of a whole table gives all of it one location: the table is then the value.
        if node.origin == *origin {
            return Some(key.to_owned());
        }
        find(node, origin).map(|rest| format!("{key}.{rest}"))
    };
    match &node.value {
        Value::Table(table) => table.entries.iter().find_map(|(key, entry)| below(key, &entry.node)),
        Value::List(items) => items.iter().enumerate().find_map(|(index, item)| {
            let name = item.as_table().and_then(|table| table.get("name")?.as_text());
            below(&name.map_or_else(|| index.to_string(), str::to_owned), item)
        }),
        _ => None,
    }
}
