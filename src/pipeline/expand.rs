//! Repeated stages written out, and `${…}` references replaced.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use super::only_keys;
use super::switch::{self, Switch};
use crate::stage::{Kind, Port, Registry};
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
    pub outputs: Vec<Port>,
    /// Where the switch stands that keeps the stage out of the pipeline; `None` for one that is in it.
    pub off: Option<Origin>,
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
pub(super) struct Expanded<'p> {
    pub drafts: Vec<Draft<'p>>,
    /// Names of stages with a fault that was reported: a reference to one is not a second fault.
    pub faulty: BTreeSet<&'p str>,
    /// Paths in the config that were read.
    used: BTreeSet<String>,
}

/// Stands for any item of a list in a path that was read.
const ANY: &str = "*";

impl Expanded<'_> {
    /// Whether the value at a path of the config, something below or something around it was read.
    pub fn reads(&self, path: &str) -> bool {
        let meets = |used: &String| path.split('.').zip(used.split('.')).all(|(a, b)| a == b || b == ANY);
        self.used.iter().any(meets)
    }
}

/// The values that a `${…}` may name: the item of a repeated stage first, then the config.
pub(super) struct Scope<'c> {
    config: &'c Node,
    item: Option<Item<'c>>,
    /// Paths in the config that were read.
    used: &'c RefCell<BTreeSet<String>>,
}

/// One item of a list that a stage is repeated over.
#[derive(Clone, Copy)]
struct Item<'c> {
    /// What the stage calls it.
    variable: &'c str,
    node: &'c Node,
    /// The list's path in the config.
    list: &'c str,
}

/// Writes out all stages; a stage with a fault is reported and left out.
pub(super) fn expand<'p>(
    stages: &'p Table,
    config: &'p Node,
    registry: &Registry,
    problems: &mut Problems,
) -> Expanded<'p> {
    let used = RefCell::default();
    let mut drafts = Vec::new();
    let mut faulty = BTreeSet::new();
    for (base, entry) in &stages.entries {
        let known = problems.list.len();
        drafts.extend(stage(base, entry, Scope { config, item: None, used: &used }, registry, problems));
        if problems.list.len() > known {
            faulty.insert(base.as_str());
        }
    }
    // File order reads best in every listing; tables are kept sorted by name.
    drafts.sort_by_key(|draft| draft.origin.span.start);
    Expanded { drafts, faulty, used: used.into_inner() }
}

/// Writes out one stage.
fn stage<'p>(
    base: &'p str,
    entry: &'p Entry,
    scope: Scope<'_>,
    registry: &Registry,
    problems: &mut Problems,
) -> Vec<Draft<'p>> {
    let mut drafts = Vec::new();
    let Some(table) = entry.node.as_table() else {
        problems.at(&entry.node.origin, format!("expected a stage, found {}", entry.node.type_name()));
        return drafts;
    };
    only_keys(table, &["kind", "when", "each", "inputs", "params"], problems);
    if base.contains(['[', ']', '.', '/']) {
        problems.at(&entry.key, format!("the stage name `{base}` holds one of `[ ] . /`"));
    }
    let Some(kind) = kind(table, entry, registry, problems) else { return drafts };
    for (label, item) in items(table, &scope, problems) {
        let scope = Scope { item, ..scope };
        let switch = table.get("when").map_or(Some(Switch::On), |node| switch::read(node, &scope, problems));
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
        let off = match switch {
            Some(Switch::On) => None,
            Some(Switch::Off(origin)) => Some(origin),
            None => continue,
        };
        let params = params.unwrap_or(empty);
        let outputs = kind.ports(&params);
        drafts.push(Draft { base, label, origin: &entry.key, kind, inputs, params, outputs, off });
    }
    drafts
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
    let Some(found) = node.as_text() else {
        let problem = problems.at(&node.origin, format!("expected a stage kind, found {}", node.type_name()));
        problem.help(format!("kinds: {}", names().collect::<Vec<_>>().join(", ")));
        return None;
    };
    let kind = registry.iter().find(|kind| kind.name() == found);
    if kind.is_none() {
        problems.at(&node.origin, format!("unknown stage kind `{found}`")).suggest(found, names());
    }
    kind.copied()
}

/// The items that a stage is repeated over, with their labels; one item without a label otherwise.
fn items<'p>(
    table: &'p Table,
    scope: &Scope<'p>,
    problems: &mut Problems,
) -> Vec<(Option<String>, Option<Item<'p>>)> {
    let Some(each) = table.get("each") else { return vec![(None, None)] };
    let form = "expected `each = { item = \"${a.list}\" }`";
    let Some((variable, entry)) =
        each.as_table().filter(|t| t.entries.len() == 1).and_then(|t| t.entries.iter().next())
    else {
        problems.at(&each.origin, form);
        return Vec::new();
    };
    let Some(path) = entry.node.as_text().and_then(whole_reference) else {
        problems.at(&entry.node.origin, form);
        return Vec::new();
    };
    // Of the items, their names count as read, and then what the stage refers to.
    scope.used.borrow_mut().insert(format!("{path}.{ANY}.name"));
    let Some(found) = find(path, &entry.node.origin, scope, problems) else { return Vec::new() };
    let Value::List(list) = &found.value else {
        problems.at(&entry.node.origin, format!("`{path}` is {}, expected an array", found.type_name()));
        return Vec::new();
    };
    let mut seen: BTreeMap<String, ()> = BTreeMap::new();
    let mut items = Vec::new();
    for (index, item) in list.iter().enumerate() {
        let label = label(item, index);
        let origin =
            item.as_table().and_then(|table| table.get("name")).map_or(&item.origin, |name| &name.origin);
        if label.is_empty() || label.contains(['[', ']', '/']) || label.starts_with('.') {
            problems
                .at(origin, format!("the name `{label}` is empty, starts with `.`, or holds one of `[ ] /`"));
        } else if seen.insert(label.clone(), ()).is_some() {
            problems.at(origin, format!("two items of `{path}` have the name `{label}`"));
        } else {
            items.push((Some(label), Some(Item { variable, node: item, list: path })));
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
pub(super) fn whole_reference(text: &str) -> Option<&str> {
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
            None => {
                let replaced = interpolate(text, &origin, scope, problems);
                // A path that begins in the config is relative to the config's folder, not to the pipeline's.
                let origin = beginning(text, scope).unwrap_or(&origin).clone();
                return Node { value: Value::Text(replaced), origin };
            }
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

/// Where the text is written that a longer one takes its beginning from: `${a.b}/c`.
fn beginning<'c>(text: &str, scope: &Scope<'c>) -> Option<&'c Origin> {
    let (path, _) = text.strip_prefix("${")?.split_once('}')?;
    let node = follow(path, scope).ok()?;
    node.as_text().map(|_| &node.origin)
}

/// The value that a reference names; it counts as read.
pub(super) fn lookup<'c>(
    path: &str,
    origin: &Origin,
    scope: &Scope<'c>,
    problems: &mut Problems,
) -> Option<&'c Node> {
    let (first, rest) = path.split_once('.').map_or((path, ""), |(first, rest)| (first, rest));
    let read = match scope.item.filter(|item| item.variable == first) {
        None => path.to_owned(),
        Some(item) => format!("{}.{ANY}.{rest}", item.list).trim_end_matches('.').to_owned(),
    };
    scope.used.borrow_mut().insert(read);
    find(path, origin, scope, problems)
}

/// The value that a reference names, or the key that leads nowhere and the table without it.
fn follow<'c, 'p>(path: &'p str, scope: &Scope<'c>) -> Result<&'c Node, (&'p str, Option<&'c Table>)> {
    let (first, rest) = path.split_once('.').map_or((path, None), |(first, rest)| (first, Some(rest)));
    match (scope.item.filter(|item| item.variable == first), rest) {
        (None, _) => scope.config.follow(path),
        (Some(item), None) => Ok(item.node),
        (Some(item), Some(rest)) => item.node.follow(rest),
    }
}

fn find<'c>(path: &str, origin: &Origin, scope: &Scope<'c>, problems: &mut Problems) -> Option<&'c Node> {
    let first = path.split('.').next().unwrap_or_default();
    match follow(path, scope) {
        Ok(node) => Some(node),
        Err((key, table)) => {
            let Some(table) = table else {
                let message =
                    format!("`${{{path}}}` leads nowhere: what stands before `{key}` is not a table");
                problems.at(origin, message);
                return None;
            };
            let problem = problems.at(origin, format!("`${{{path}}}` leads nowhere: there is no `{key}`"));
            let mut names: Vec<&str> = table.keys().collect();
            names.extend(scope.item.filter(|_| key == first).map(|item| item.variable));
            problem.suggest(key, names);
            None
        }
    }
}
