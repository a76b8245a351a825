//! `${env:NAME}`: environment variables, which are hashed only if the pipeline declares them.
//!
//! A variable listed in `env = ["NAME"]` is hashed like any value of the pipeline. Any other may be used only in values
//! that are not hashed: the path of an input, the source of a download, the name of a file, `[run]`. This is checked by
//! trial: with another value, the stage must have the same identity.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value as Json;

use crate::config::text::{Origin, Problems};
use crate::config::tree::{self, Node, Value};
use crate::kind::Stage;

/// The prefix of a reference to the environment, inside its `${…}`.
const MARK: &str = "env:";

/// An undeclared variable and its text.
pub(super) type UndeclaredVar = (String, String);

/// The environment of a pipeline.
#[derive(Default)]
pub(super) struct Env {
    declared: BTreeSet<String>,
    /// Declared variables that were read, with their values.
    read: RefCell<BTreeMap<String, String>>,
    /// All variables that were read, with their values.
    all: RefCell<BTreeMap<String, Option<String>>>,
    /// Values that contain the text of an undeclared variable: by text, first byte, and the value itself.
    undeclared: RefCell<BTreeMap<(usize, usize, String), Vec<UndeclaredVar>>>,
}

impl Env {
    /// Reads the names of an `env = […]`.
    pub fn declare(&mut self, node: &Node, problems: &mut Problems) {
        let form = "expected `env = [\"NAME\"]`, names of environment variables";
        let Value::List(items) = &node.value else {
            problems.at(&node.origin, format!("expected an array, found {}", node.type_name())).help(form);
            return;
        };
        for item in items {
            match item.as_text() {
                Some(name) if is_name(name) => {
                    self.declared.insert(name.to_owned());
                }
                Some(name) => {
                    problems.at(&item.origin, format!("`{name}` is not a valid variable name")).help(form)
                }
                None => problems
                    .at(&item.origin, format!("expected a string, found {}", item.type_name()))
                    .help(form),
            }
        }
    }

    /// Whether a reference, without its `${` and `}`, names an environment variable.
    pub fn is_reference(reference: &str) -> bool {
        reference.starts_with(MARK)
    }

    /// The text of `env:NAME` or `env:NAME:-default`, and the variable if it is undeclared.
    ///
    /// The default replaces a variable that is unset or empty, as in a shell.
    pub fn text(
        &self,
        reference: &str,
        origin: &Origin,
        problems: &mut Problems,
    ) -> Option<(String, Option<UndeclaredVar>)> {
        let reference = reference.strip_prefix(MARK)?;
        let (name, default) =
            reference.split_once(":-").map_or((reference, None), |(name, default)| (name, Some(default)));
        if !is_name(name) {
            let problem = problems.at(origin, format!("`{name}` is not a valid variable name"));
            problem.help("expected `${env:NAME}` or `${env:NAME:-default}`");
            return None;
        }
        self.all.borrow_mut().insert(name.to_owned(), std::env::var(name).ok());
        let value = match (std::env::var(name), default) {
            (Ok(value), None) => value,
            (Ok(value), Some(_)) if !value.is_empty() => value,
            (Ok(_) | Err(std::env::VarError::NotPresent), Some(default)) => default.to_owned(),
            (Err(std::env::VarError::NotPresent), None) => {
                let problem = problems.at(origin, format!("the environment variable `{name}` is not set"));
                problem.help(format!("write `${{env:{name}:-…}}` for a default"));
                return None;
            }
            (Err(std::env::VarError::NotUnicode(_)), _) => {
                problems.at(origin, format!("the environment variable `{name}` is not valid UTF-8"));
                return None;
            }
        };
        if self.declared.contains(name) {
            self.read.borrow_mut().insert(name.to_owned(), value.clone());
            return Some((value, None));
        }
        let undeclared = (name.to_owned(), value.clone());
        Some((value, Some(undeclared)))
    }

    /// The value of a reference that is the whole text: a number or a boolean if the text is one.
    pub fn node(&self, reference: &str, origin: &Origin, problems: &mut Problems) -> Option<Node> {
        let (text, undeclared) = self.text(reference, origin, problems)?;
        let node = Node { value: plain(&text), origin: origin.clone() };
        self.mark(&node, undeclared.into_iter().collect());
        Some(node)
    }

    /// Records that a value contains the texts of undeclared variables.
    pub fn mark(&self, node: &Node, undeclared: Vec<UndeclaredVar>) {
        if !undeclared.is_empty()
            && let Some(key) = key(node)
        {
            self.undeclared.borrow_mut().entry(key).or_default().extend(undeclared);
        }
    }

    /// The undeclared variables whose text a value contains.
    pub fn undeclared(&self, node: &Node) -> Vec<UndeclaredVar> {
        let all = self.undeclared.borrow();
        if all.is_empty() {
            return Vec::new();
        }
        key(node).and_then(|key| all.get(&key).cloned()).unwrap_or_default()
    }

    /// Replaces the environment references in every text below `node`; other `${…}` are left.
    pub fn fill(&self, node: &mut Node, problems: &mut Problems) {
        match &mut node.value {
            Value::Text(text) => {
                if let Some(reference) =
                    super::reference::whole_reference(text).filter(|r| Self::is_reference(r))
                {
                    if let Some(new) = self.node(reference, &node.origin, problems) {
                        *node = new;
                    }
                } else if text.contains("${env:") {
                    let (text, undeclared) = self.inside(text, &node.origin, problems);
                    node.value = Value::Text(text);
                    self.mark(node, undeclared);
                }
            }
            Value::List(items) => items.iter_mut().for_each(|item| self.fill(item, problems)),
            Value::Table(table) => {
                table.entries.values_mut().for_each(|entry| self.fill(&mut entry.node, problems));
            }
            _ => {}
        }
    }

    fn inside(&self, text: &str, origin: &Origin, problems: &mut Problems) -> (String, Vec<UndeclaredVar>) {
        let (mut out, mut undeclared, mut rest) = (String::new(), Vec::new(), text);
        while let Some(start) = rest.find("${env:") {
            let Some(length) = rest[start..].find('}') else {
                problems.at(origin, "`${` without `}`");
                break;
            };
            out.push_str(&rest[..start]);
            if let Some((value, by)) = self.text(&rest[start + 2..start + length], origin, problems) {
                out.push_str(&value);
                undeclared.extend(by);
            }
            rest = &rest[start + length + 1..];
        }
        (out + rest, undeclared)
    }

    /// Reports parameters that are hashed and contain undeclared variables.
    pub fn check(&self, stage: &dyn Stage, node: &Node, problems: &mut Problems) {
        if !self.undeclared.borrow().is_empty() {
            self.check_below(stage, node, &mut Vec::new(), problems);
        }
    }

    fn check_below(&self, stage: &dyn Stage, node: &Node, path: &mut Vec<String>, problems: &mut Problems) {
        match &node.value {
            Value::Table(table) => {
                for (key, entry) in &table.entries {
                    path.push(key.clone());
                    self.check_below(stage, &entry.node, path, problems);
                    path.pop();
                }
            }
            Value::List(items) => {
                for (index, item) in items.iter().enumerate() {
                    path.push(index.to_string());
                    self.check_below(stage, item, path, problems);
                    path.pop();
                }
            }
            _ => {
                for (name, value) in self.undeclared(node) {
                    if !is_hashed(stage, path, &value) {
                        continue;
                    }
                    let message = format!("`${{env:{name}}}` is not declared, and this value is hashed");
                    let help = format!(
                        "declare it with `env = [\"{name}\"]` at the top of the pipeline: its value is then hashed and recorded"
                    );
                    problems.at(&node.origin, message).help(help);
                }
            }
        }
    }

    /// The declared variables that were read, and all variables that were read, with their values.
    pub fn into_read(self) -> (BTreeMap<String, String>, BTreeMap<String, Option<String>>) {
        (self.read.into_inner(), self.all.into_inner())
    }
}

/// Whether the stage's identity changes when `value` at `path` of its parameters is another text.
fn is_hashed(stage: &dyn Stage, path: &[String], value: &str) -> bool {
    let mut other = stage.to_json();
    let mut place = Some(&mut other);
    for key in path {
        place = match place {
            Some(Json::Object(table)) => table.get_mut(key),
            Some(Json::Array(items)) => key.parse().ok().and_then(|index: usize| items.get_mut(index)),
            _ => None,
        };
    }
    let new = match place.as_deref() {
        // The path of an existing file was made absolute, so it may contain the text in another form.
        Some(Json::String(text)) if !value.is_empty() && text.contains(value) => {
            Json::from(text.replace(value, &format!("{value}-other")))
        }
        Some(Json::String(text)) => Json::from(format!("{text}-other")),
        Some(Json::Bool(old)) => Json::from(!old),
        Some(Json::Number(number)) => match number.as_u64() {
            Some(number) => Json::from(number.wrapping_add(1)),
            None => Json::from(number.as_f64().unwrap_or_default() + 1.0),
        },
        _ => return true,
    };
    if let Some(place) = place {
        *place = new;
    }
    !stage.kind().from_json(&other).is_ok_and(|other| stage.is_equivalent(&*other))
}

/// A number or a boolean if the text is one in TOML, else the text.
fn plain(text: &str) -> Value {
    match tree::plain(text) {
        Some(value) => value,
        None => Value::Text(text.to_owned()),
    }
}

fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// Identifies a value; `None` for tables and arrays, which are identified by their content.
fn key(node: &Node) -> Option<(usize, usize, String)> {
    let value = match &node.value {
        Value::Bool(value) => value.to_string(),
        Value::Int(value) => value.to_string(),
        Value::Float(value) => value.to_string(),
        Value::Text(value) => value.clone(),
        Value::List(_) | Value::Table(_) => return None,
    };
    Some((node.origin.text, node.origin.span.start, value))
}
