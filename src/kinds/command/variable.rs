//! Variables of the environment, by name.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use attrflow_engine::config::param::{Param, Reader};
use attrflow_engine::config::tree::{Node, Value};

/// Set by this program for every command, whatever the environment says.
pub const PARAMS: &str = "ATTRFLOW_PARAMS";
pub const TMPDIR: &str = "TMPDIR";

/// The name of a variable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Variable(pub String);

impl Param for Variable {
    fn expected() -> String {
        "a variable's name".into()
    }
    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        let name = String::read(node, reader)?;
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let fault = if [PARAMS, TMPDIR].contains(&name.as_str()) {
            format!("`{name}` is set for every command, and cannot be passed on")
        } else if name.is_empty()
            || name.starts_with(|c: char| c.is_ascii_digit())
            || !name.chars().all(plain)
        {
            format!("`{name}` is no variable's name: expected letters, digits and `_`, no digit first")
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

/// Variables with the values that they had when the pipeline was read; none for one that was not set.
///
/// They are taken once, so that what is hashed is what the command gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Counted(pub BTreeMap<String, Option<String>>);

impl Param for Counted {
    fn expected() -> String {
        "an array of variables' names".into()
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
