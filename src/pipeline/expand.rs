//! Repeated stages written out, and `${…}` references replaced.

use std::collections::BTreeMap;

use super::only_keys;
use crate::stage::{Kind, Registry};
use crate::text::{Origin, Problems};
use crate::tree::{Entry, Node, Table, Value};

/// A stage whose references to the config are replaced and whose kind is known.
pub(super) struct Draft<'p> {
    pub base: &'p str,
    pub label: Option<String>,
    pub origin: &'p Origin,
    pub kind: &'static dyn Kind,
    /// `inputs`, by port.
    pub inputs: Table,
    /// `params`, before the kind has read them.
    pub params: Node,
}

impl Draft<'_> {
    pub fn id(&self) -> String {
        match &self.label {
            Some(label) => format!("{}[{label}]", self.base),
            None => self.base.to_owned(),
        }
    }
}

/// All stages written out.
pub(super) struct Drafts<'p> {
    pub list: Vec<Draft<'p>>,
    /// Stages with a fault: where one was left out for it, what refers to it has no fault of its own.
    pub lost: Vec<&'p str>,
}

impl<'p> std::ops::Deref for Drafts<'p> {
    type Target = [Draft<'p>];
    fn deref(&self) -> &Self::Target {
        &self.list
    }
}

/// The values that a `${…}` may name: the item of a repeated stage first, then the config.
struct Scope<'c> {
    config: &'c Node,
    item: Option<(&'c str, &'c Node)>,
}

/// Writes out all stages; a stage with a fault is reported and left out.
pub(super) fn expand<'p>(
    stages: &'p Table,
    config: &'p Node,
    registry: &Registry,
    problems: &mut Problems,
) -> Drafts<'p> {
    let mut drafts = Drafts { list: Vec::new(), lost: Vec::new() };
    for (base, entry) in &stages.entries {
        let known = problems.list.len();
        write_out(base, entry, config, registry, &mut drafts.list, problems);
        if problems.list.len() > known {
            drafts.lost.push(base);
        }
    }
    // File order reads best in every listing; tables are kept sorted by name.
    drafts.list.sort_by_key(|draft| draft.origin.span.start);
    drafts
}

fn write_out<'p>(
    base: &'p str,
    entry: &'p Entry,
    config: &'p Node,
    registry: &Registry,
    drafts: &mut Vec<Draft<'p>>,
    problems: &mut Problems,
) {
    let Some(table) = entry.node.as_table() else {
        problems.at(&entry.node.origin, format!("expected a stage, found {}", entry.node.type_name()));
        return;
    };
    only_keys(table, &["kind", "each", "inputs", "params"], problems);
    if base.contains(['[', ']', '.', '/']) {
        problems.at(&entry.key, format!("the stage name `{base}` holds one of `[ ] . /`"));
    }
    let Some(kind) = kind(table, entry, registry, problems) else { return };
    for (label, item) in items(table, config, problems) {
        let scope = Scope { config, item };
        let inputs = table.get("inputs").map(|node| replace(node, &scope, problems));
        let params = table.get("params").map(|node| replace(node, &scope, problems));
        let empty = Node { value: Value::Table(Table::default()), origin: entry.key.clone() };
        let inputs = match inputs.map(|node| (node.origin.clone(), node.value)) {
            Some((_, Value::Table(inputs))) => inputs,
            Some((origin, _)) => {
                problems.at(&origin, "expected a table of inputs, `port = \"stage.port\"`");
                continue;
            }
            None => Table::default(),
        };
        let params = params.unwrap_or(empty);
        drafts.push(Draft { base, label, origin: &entry.key, kind, inputs, params });
    }
}

fn kind(
    table: &Table,
    entry: &Entry,
    registry: &Registry,
    problems: &mut Problems,
) -> Option<&'static dyn Kind> {
    let names = || registry.iter().map(|kind| kind.name());
    let Some(node) = table.get("kind") else {
        let problem = problems.at(&entry.key, "the stage has no `kind`");
        problem.help(format!("kinds: {}", names().collect::<Vec<_>>().join(", ")));
        return None;
    };
    let found = node.as_text().unwrap_or_default();
    let kind = registry.iter().find(|kind| kind.name() == found);
    if kind.is_none() {
        problems.at(&node.origin, format!("unknown stage kind `{found}`")).suggest(found, names());
    }
    kind.copied()
}

type Item<'p> = (Option<String>, Option<(&'p str, &'p Node)>);

/// The items that a stage is repeated over, with their labels; one item without a label otherwise.
fn items<'p>(table: &'p Table, config: &'p Node, problems: &mut Problems) -> Vec<Item<'p>> {
    let Some(each) = table.get("each") else { return vec![(None, None)] };
    let form = "expected `each = { item = \"${a.list}\" }`";
    let Some((variable, entry)) =
        each.as_table().filter(|t| t.entries.len() == 1).and_then(|t| t.entries.iter().next())
    else {
        problems.at(&each.origin, form);
        return Vec::new();
    };
    let scope = Scope { config, item: None };
    let Some(path) = entry.node.as_text().and_then(whole_reference) else {
        problems.at(&entry.node.origin, form);
        return Vec::new();
    };
    let Some(list) = lookup(path, &entry.node.origin, &scope, problems) else { return Vec::new() };
    let Value::List(list) = &list.value else {
        problems.at(&entry.node.origin, format!("`{path}` is {}, expected an array", list.type_name()));
        return Vec::new();
    };
    let mut seen: BTreeMap<String, ()> = BTreeMap::new();
    let mut items = Vec::new();
    for (index, item) in list.iter().enumerate() {
        let label = label(item, index);
        if label.is_empty() || label.contains(['[', ']', '/']) || label.starts_with('.') {
            problems.at(
                &item.origin,
                format!("the name `{label}` is empty, starts with `.`, or holds one of `[ ] /`"),
            );
        } else if seen.insert(label.clone(), ()).is_some() {
            problems.at(&item.origin, format!("two items of `{path}` have the name `{label}`"));
        } else {
            items.push((Some(label), Some((variable.as_str(), item))));
        }
    }
    items
}

/// The item's `name`, else the item itself where it is short, else its index.
fn label(item: &Node, index: usize) -> String {
    match &item.value {
        Value::Table(table) => table.get("name").and_then(Node::as_text).map(str::to_owned),
        Value::Text(text) => Some(text.clone()),
        Value::Int(value) => Some(value.to_string()),
        _ => None,
    }
    .unwrap_or_else(|| index.to_string())
}

/// `a.b` for `${a.b}` and nothing around it.
fn whole_reference(text: &str) -> Option<&str> {
    text.strip_prefix("${")?.strip_suffix('}').filter(|path| !path.contains(['$', '{', '}']))
}

/// Replaces every reference below `node`; what is already a value of the config is taken as it is.
fn replace(node: &Node, scope: &Scope<'_>, problems: &mut Problems) -> Node {
    let origin = node.origin.clone();
    let value = match &node.value {
        Value::Text(text) => match whole_reference(text) {
            Some(path) => {
                return lookup(path, &origin, scope, problems).cloned().unwrap_or_else(|| node.clone());
            }
            None => Value::Text(interpolate(text, &origin, scope, problems)),
        },
        Value::List(items) => Value::List(items.iter().map(|item| replace(item, scope, problems)).collect()),
        Value::Table(table) => {
            let entries = table.entries.iter().map(|(key, entry)| {
                let node = replace(&entry.node, scope, problems);
                (key.clone(), Entry { key: entry.key.clone(), node })
            });
            Value::Table(Table { entries: entries.collect() })
        }
        value => value.clone(),
    };
    Node { value, origin }
}

/// Replaces references inside a longer text by strings and integers.
fn interpolate(text: &str, origin: &Origin, scope: &Scope<'_>, problems: &mut Problems) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        let Some(length) = rest[start..].find('}') else {
            problems.at(origin, "`${` without its `}`");
            return text.to_owned();
        };
        out.push_str(&rest[..start]);
        let path = &rest[start + 2..start + length];
        match lookup(path, origin, scope, problems).map(|node| (&node.value, node.type_name())) {
            Some((Value::Text(value), _)) => out.push_str(value),
            Some((Value::Int(value), _)) => out.push_str(&value.to_string()),
            Some((_, found)) => {
                problems.at(
                    origin,
                    format!("`{path}` is {found}, expected a string or an integer inside a text"),
                );
            }
            None => {}
        }
        rest = &rest[start + length + 1..];
    }
    out + rest
}

fn lookup<'c>(path: &str, origin: &Origin, scope: &Scope<'c>, problems: &mut Problems) -> Option<&'c Node> {
    let (first, rest) = path.split_once('.').map_or((path, None), |(first, rest)| (first, Some(rest)));
    let found = match (scope.item, rest) {
        (Some((name, item)), None) if name == first => Ok(item),
        (Some((name, item)), Some(rest)) if name == first => item.follow(rest),
        _ => scope.config.follow(path),
    };
    match found {
        Ok(node) => Some(node),
        Err((key, table)) => {
            let problem = problems.at(origin, format!("`${{{path}}}` leads nowhere: there is no `{key}`"));
            let mut names: Vec<&str> = table.map(|table| table.keys().collect()).unwrap_or_default();
            names.extend(scope.item.filter(|_| key == first).map(|(name, _)| name));
            problem.suggest(key, names);
            None
        }
    }
}
