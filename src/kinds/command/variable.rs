//! Environment variables.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use attrflow_engine::config::param::{Param, Reader};
use attrflow_engine::config::tree::{Node, Value};

/// Set for every command.
pub const PARAMS: &str = "ATTRFLOW_PARAMS";
pub const TMPDIR: &str = "TMPDIR";

/// The name of an environment variable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Variable(pub String);

impl Param for Variable {
    fn expected() -> String {
        "the name of an environment variable".into()
    }
    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        let name = String::read(node, reader)?;
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let fault = if [PARAMS, TMPDIR].contains(&name.as_str()) {
            format!("`{name}` is set for every command and cannot be passed on")
        } else if name.is_empty()
            || name.starts_with(|c: char| c.is_ascii_digit())
            || !name.chars().all(plain)
        {
            format!(
                "invalid variable name `{name}`: expected letters, digits and `_`, not starting with a digit"
            )
        } else {
            return Some(Self(name));
        };
        reader.problems.at(&node.origin, fault);
        None
    }
    fn schema() -> Json {
        json!({ "type": "string", "pattern": "^([A-Za-z_][A-Za-z0-9_]*|\\$\\{[^{}]+\\})$" })
    }
}

/// Environment variables with their values when the pipeline was read; `None` for an unset one.
///
/// They are read once, so that the command gets the hashed values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RecordedEnv(pub BTreeMap<String, Option<String>>);

impl Param for RecordedEnv {
    fn expected() -> String {
        "an array of names of environment variables".into()
    }
    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        let names = Vec::<Variable>::read(node, reader)?;
        let origins = match &node.value {
            Value::List(items) => items.iter().map(|item| &item.origin).collect(),
            _ => Vec::new(),
        };
        let mut values = BTreeMap::new();
        for (Variable(name), origin) in names.into_iter().zip(origins) {
            let value = std::env::var_os(&name).map(std::ffi::OsString::into_string);
            match value.transpose() {
                Ok(value) => values.insert(name, value),
                Err(_) => {
                    reader.problems.at(origin, format!("the value of `{name}` is not UTF-8"));
                    return None;
                }
            };
        }
        Some(Self(values))
    }
    fn schema() -> Json {
        Vec::<Variable>::schema()
    }
}
