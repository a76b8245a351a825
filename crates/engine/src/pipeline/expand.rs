//! Expands repeated stages and replaces `${…}` references.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};

use super::condition::{self, Condition};
use super::env_vars::{Env, UndeclaredVar};
use super::files::Parts;
use super::items;
use super::only_keys;
use super::reference::whole_reference;
use super::scope::{ANY, Item, Scope, follow, lookup};
use crate::config::text::{Origin, Problems};
use crate::config::tree::{Entry, Node, Table, Value};
use crate::kind::{KindInfo, Port, Registry};

/// A stage with its config references replaced and its kind known.
pub(super) struct Draft<'p> {
    pub base: &'p str,
    pub label: Option<String>,
    /// Its items.
    pub items: Vec<Item<'p>>,
    pub origin: &'p Origin,
    pub kind: &'static KindInfo,
    /// `inputs`, by port.
    pub inputs: Table,
    /// `params` and the defaults of the kind, before the kind reads them.
    pub params: Node,
    pub outputs: Vec<Port>,
    /// Location of the value that disables the stage; `None` for an enabled stage.
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

/// All stages, expanded.
pub(super) struct Expanded<'p> {
    pub drafts: Vec<Draft<'p>>,
    /// Names of stages whose faults were reported: a reference to one is not a second fault.
    pub faulty: BTreeSet<&'p str>,
    /// Names of stages that repeat over an empty list.
    empty: BTreeSet<&'p str>,
    /// Drafts by name.
    ids: HashMap<String, usize>,
    /// The first draft of each table.
    firsts: HashMap<&'p str, usize>,
    /// Paths in the config that were read.
    used: BTreeSet<String>,
}

impl<'p> Expanded<'p> {
    /// Whether the value at a path of the config, or one below or above it, was read.
    pub fn reads(&self, path: &str) -> bool {
        let meets = |used: &String| path.split('.').zip(used.split('.')).all(|(a, b)| a == b || b == ANY);
        self.used.iter().any(meets)
    }

    /// Whether the value at a path, or one below it, was read.
    pub fn reads_exactly(&self, path: &str) -> bool {
        let meets = |used: &String| {
            let (wanted, used) = (path.split('.').count(), used.split('.').count());
            used >= wanted
        };
        self.used
            .iter()
            .filter(|used| meets(used))
            .any(|used| path.split('.').zip(used.split('.')).all(|(a, b)| a == b || b == ANY))
    }

    /// The draft of a full name.
    pub fn by_id(&self, id: &str) -> Option<usize> {
        self.ids.get(id).copied()
    }

    /// Whether the stage repeats over an empty list.
    pub fn is_empty(&self, base: &str) -> bool {
        self.empty.contains(base)
    }

    /// The first draft of a table of this name.
    pub fn first(&self, base: &str) -> Option<&Draft<'p>> {
        self.firsts.get(base).map(|index| &self.drafts[*index])
    }

    /// All drafts of a repeated stage that another stage gathers: those of its own items, where both repeat over one list.
    /// Each with its name: the items that the other does not have, joined by commas.
    pub fn all_items(&self, base: &str, from: &Draft<'_>) -> Vec<(String, usize)> {
        let own = |item: &Item<'_>| {
            let same = |other: &&Item<'_>| other.list == item.list && other.variable == item.variable;
            from.items.iter().find(same).map(|own| own.label == item.label)
        };
        let of = |(index, draft): (usize, &Draft<'_>)| {
            let wanted = draft.base == base && draft.items.iter().all(|item| own(item) != Some(false));
            let others = draft.items.iter().filter(|item| own(item).is_none());
            wanted.then(|| (items::join(others.map(|item| item.label.as_str())), index))
        };
        self.drafts.iter().enumerate().filter_map(of).collect()
    }

    /// The item of a repeated stage that another stage refers to: the one over the same items of the same lists, or
    /// over items of the same names if both repeat over one list.
    pub fn same_item(&self, base: &str, from: &Draft<'_>) -> Option<usize> {
        let first = self.first(base)?;
        let same = |item: &Item<'_>| {
            let mut of_list = from.items.iter().filter(|other| other.list == item.list);
            let named = of_list.clone().find(|other| other.variable == item.variable);
            named.or_else(|| of_list.next().filter(|_| !item.list.is_empty()))
        };
        let labels: Option<Vec<&str>> =
            first.items.iter().map(|item| same(item).map(|found| found.label.as_str())).collect();
        let label = match (labels, first.items.as_slice(), from.items.as_slice()) {
            (_, [], _) => return None,
            (Some(labels), ..) => items::join(labels.into_iter()),
            (None, [_], [one]) => one.label.clone(),
            _ => return None,
        };
        self.by_id(&format!("{base}[{label}]"))
    }
}

/// Expands all stages; a faulty stage is reported and left out.
pub(super) fn expand<'p>(
    parts: &'p Parts,
    defaults: &'p Table,
    config: &'p Node,
    registry: &Registry,
    problems: &mut Problems,
) -> Expanded<'p> {
    let used = RefCell::default();
    let mut drafts = Vec::new();
    let (mut faulty, mut empty) = (BTreeSet::new(), BTreeSet::new());
    for (base, entry) in &parts.stages {
        let known = problems.list.len();
        let scope = Scope { config, items: &[], used: &used, env: &parts.env };
        let own = stage(base, entry, defaults, &scope, registry, problems);
        if problems.list.len() > known {
            faulty.insert(base.as_str());
        } else if own.is_empty() {
            empty.insert(base.as_str());
        }
        drafts.extend(own);
    }
    let mut ids = HashMap::with_capacity(drafts.len());
    let mut firsts = HashMap::new();
    for (index, draft) in drafts.iter().enumerate() {
        ids.insert(draft.id(), index);
        firsts.entry(draft.base).or_insert(index);
    }
    Expanded { drafts, faulty, empty, ids, firsts, used: used.into_inner() }
}

/// Expands one stage.
fn stage<'p>(
    base: &'p str,
    entry: &'p Entry,
    defaults: &'p Table,
    scope: &Scope<'p, '_>,
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
        problems.at(&entry.key, format!("the stage name `{base}` contains one of `[ ] . /`"));
    } else if base.len() > items::LONGEST {
        let (found, most) = (base.len(), items::LONGEST);
        problems.at(
            &entry.key,
            format!("the stage name has {found} bytes, expected at most {most}: it names a folder"),
        );
    } else if base.is_empty() || base.chars().any(char::is_control) {
        problems.at(&entry.key, "the stage name is empty or contains a control character");
    }
    let Some(kind) = kind(table, entry, registry, problems) else { return drafts };
    let defaults = defaults.get(kind.name).and_then(Node::as_table);
    for repetition in items::repetitions(table, scope, problems) {
        let scope = Scope { items: &repetition.items, ..*scope };
        let switch =
            table.get("when").map_or(Some(Condition::On), |node| condition::read(node, &scope, problems));
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
            Some(Condition::On) => None,
            Some(Condition::DisabledStage(origin)) => Some(origin),
            None => continue,
        };
        let mut params = params.unwrap_or(empty);
        if let (Some(defaults), Value::Table(params)) = (defaults, &mut params.value) {
            // The stage's own parameters take precedence.
            for (name, default) in &defaults.entries {
                if !params.entries.contains_key(name) {
                    let node = replace(&default.node, &scope, problems);
                    params.entries.insert(name.clone(), Entry { key: default.key.clone(), node });
                }
            }
        }
        let outputs = kind.ports(&params);
        let (label, items) = (repetition.label, repetition.items);
        drafts.push(Draft { base, label, items, origin: &entry.key, kind, inputs, params, outputs, off });
    }
    drafts
}

fn kind(
    table: &Table,
    entry: &Entry,
    registry: &Registry,
    problems: &mut Problems,
) -> Option<&'static KindInfo> {
    let names = || registry.iter().map(|kind| kind.name);
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
    let kind = registry.iter().find(|kind| kind.name == found);
    if kind.is_none() {
        problems.at(&node.origin, format!("unknown stage kind `{found}`")).suggest(found, names());
    }
    kind.copied()
}

/// Replaces every reference below `node`; a referenced value is used unchanged.
fn replace(node: &Node, scope: &Scope<'_, '_>, problems: &mut Problems) -> Node {
    let origin = node.origin.clone();
    let value = match &node.value {
        Value::Text(text) => match whole_reference(text) {
            Some(reference) if Env::is_reference(reference) => {
                return scope.env.node(reference, &origin, problems).unwrap_or_else(|| node.clone());
            }
            Some(path) => {
                return lookup(path, &origin, scope, problems).cloned().unwrap_or_else(|| node.clone());
            }
            None => {
                let (replaced, undeclared) = interpolate(text, &origin, scope, problems);
                // A path that begins with a config value is relative to the config's folder, not to the pipeline's.
                let origin = beginning(text, scope).unwrap_or(&origin).clone();
                let node = Node { value: Value::Text(replaced), origin };
                scope.env.mark(&node, undeclared);
                return node;
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

/// Replaces references inside a longer text by strings and integers; also returns the undeclared variables in it.
fn interpolate(
    text: &str,
    origin: &Origin,
    scope: &Scope<'_, '_>,
    problems: &mut Problems,
) -> (String, Vec<UndeclaredVar>) {
    let mut out = String::new();
    let mut undeclared = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        let Some(length) = rest[start..].find('}') else {
            problems.at(origin, "`${` without `}`");
            return (text.to_owned(), undeclared);
        };
        out.push_str(&rest[..start]);
        let path = &rest[start + 2..start + length];
        rest = &rest[start + length + 1..];
        if Env::is_reference(path) {
            if let Some((value, by)) = scope.env.text(path, origin, problems) {
                out.push_str(&value);
                undeclared.extend(by);
            }
            continue;
        }
        let Some(node) = lookup(path, origin, scope, problems) else { continue };
        undeclared.extend(scope.env.undeclared(node));
        match &node.value {
            Value::Text(value) => out.push_str(value),
            Value::Int(value) => out.push_str(&value.to_string()),
            _ => {
                let found = node.type_name();
                let message =
                    format!("`{path}` is {found}, expected a string or an integer within a longer text");
                problems.at(origin, message);
            }
        }
    }
    (out + rest, undeclared)
}

/// The location of the value that a longer text begins with: `${a.b}/c`.
fn beginning<'c>(text: &str, scope: &Scope<'c, '_>) -> Option<&'c Origin> {
    let (path, _) = text.strip_prefix("${")?.split_once('}')?;
    let node = follow(path, scope).ok()?;
    node.as_text().map(|_| &node.origin)
}
