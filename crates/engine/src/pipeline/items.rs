//! `each`: the items that a stage repeats over, one list or the product of several.

use std::collections::BTreeSet;

use super::reference::whole_reference;
use super::scope::{ANY, Item, Scope, find};
use crate::config::text::{Origin, Problems};
use crate::config::tree::{Node, Table, Value};

/// Maximum stages of one repeated stage.
const MOST: usize = 100_000;
/// Maximum bytes of a label or a stage's name: each names a folder, and file systems allow 255.
pub(super) const LONGEST: usize = 200;

/// The items of one repetition and their joint label; both are empty for a stage that is not repeated.
pub(super) struct Repetition<'c> {
    pub label: Option<String>,
    pub items: Vec<Item<'c>>,
}

/// The repetitions of a stage: each combination of one item per list, the last list varying fastest.
pub(super) fn repetitions<'c>(
    table: &'c Table,
    scope: &Scope<'c, '_>,
    problems: &mut Problems,
) -> Vec<Repetition<'c>> {
    let Some(each) = table.get("each") else {
        return vec![Repetition { label: None, items: Vec::new() }];
    };
    let form = "expected `each = { item = \"${a.list}\" }`";
    let Some(lists) = each.as_table().filter(|lists| !lists.entries.is_empty()) else {
        problems.at(&each.origin, form);
        return Vec::new();
    };
    let mut entries: Vec<_> = lists.entries.iter().collect();
    entries.sort_by_key(|(_, entry)| entry.key.span.start);
    let mut axes = Vec::new();
    for (variable, entry) in entries {
        if variable.contains(['.', ':', '}']) || variable.is_empty() {
            problems.at(
                &entry.key,
                format!("`{variable}` is not a valid name: expected a name without `.`, `:`, `}}`"),
            );
            continue;
        }
        let (path, items): (&str, &[Node]) = match &entry.node.value {
            Value::List(items) => {
                if let Some(item) = items.iter().find(|item| has_reference(item)) {
                    problems.at(&item.origin, "a list written here must contain values only, no `${…}`");
                    continue;
                }
                ("", items.as_slice())
            }
            _ => {
                let Some(path) = entry.node.as_text().and_then(whole_reference) else {
                    problems.at(&entry.node.origin, form);
                    continue;
                };
                // The items' names are marked as read, and then whatever the stage refers to.
                scope.used.borrow_mut().insert(format!("{path}.{ANY}.name"));
                let Some(found) = find(path, &entry.node.origin, scope, problems) else { continue };
                let Value::List(list) = &found.value else {
                    let message = format!("`{path}` is {}, expected an array", found.type_name());
                    problems.at(&entry.node.origin, message);
                    continue;
                };
                (path, list.as_slice())
            }
        };
        axes.push(axis(variable, path, items, problems));
    }
    if axes.len() < lists.entries.len() {
        return Vec::new();
    }
    product(&axes, &each.origin, problems)
}

/// The items of one list with their labels; faulty ones are reported and left out.
fn axis<'c>(variable: &'c str, list: &'c str, nodes: &'c [Node], problems: &mut Problems) -> Vec<Item<'c>> {
    let mut seen = BTreeSet::new();
    let mut items = Vec::new();
    for (index, node) in nodes.iter().enumerate() {
        let name = node.as_table().and_then(|table| table.get("name"));
        let origin = name.map_or(&node.origin, |name| &name.origin);
        let Some(label) = label(node, index) else {
            let found = name.map_or("nothing", Node::type_name);
            problems.at(origin, format!("expected a name, a string or an integer, found {found}"));
            continue;
        };
        if let Some(fault) = fault(&label) {
            problems.at(origin, format!("the name `{label}` {fault}"));
        } else if !seen.insert(label.clone()) {
            let of = if list.is_empty() { variable } else { list };
            problems.at(origin, format!("two items of `{of}` have the name `{label}`"));
        } else {
            items.push(Item { variable, node, list, label });
        }
    }
    items
}

/// Every combination of one item per list.
fn product<'c>(axes: &[Vec<Item<'c>>], origin: &Origin, problems: &mut Problems) -> Vec<Repetition<'c>> {
    let count = axes.iter().try_fold(1usize, |count, axis| count.checked_mul(axis.len()));
    let Some(count) = count.filter(|count| *count <= MOST) else {
        let sizes: Vec<String> = axes.iter().map(|axis| axis.len().to_string()).collect();
        problems.at(origin, format!("{} stages, expected at most {MOST}", sizes.join(" x ")));
        return Vec::new();
    };
    let mut seen = BTreeSet::new();
    let mut all = Vec::with_capacity(count);
    for number in 0..count {
        let mut rest = number;
        let mut items: Vec<Item<'c>> = Vec::with_capacity(axes.len());
        for axis in axes.iter().rev() {
            items.push(axis[rest % axis.len()].clone());
            rest /= axis.len();
        }
        items.reverse();
        let label = join(items.iter().map(|item| item.label.as_str()));
        if label.len() > LONGEST {
            problems.at(origin, format!("the name `{label}` is longer than {LONGEST} bytes"));
        } else if !seen.insert(label.clone()) {
            problems.at(origin, format!("two combinations have the name `{label}`"));
        } else {
            all.push(Repetition { label: Some(label), items });
        }
    }
    all
}

/// The label of a combination of items.
pub(super) fn join<'l>(labels: impl Iterator<Item = &'l str>) -> String {
    labels.collect::<Vec<_>>().join(",")
}

/// The item's `name`, else the item itself if it is a string or an integer, else its index; `None` for a name of
/// another type.
fn label(item: &Node, index: usize) -> Option<String> {
    let plain = |node: &Node| match &node.value {
        Value::Text(text) => Some(text.clone()),
        Value::Int(value) => Some(value.to_string()),
        _ => None,
    };
    match &item.value {
        Value::Table(table) => table.get("name").map_or(Some(index.to_string()), plain),
        Value::Float(value) => Some(value.to_string()),
        Value::Bool(value) => Some(value.to_string()),
        Value::List(_) => Some(index.to_string()),
        _ => plain(item),
    }
}

/// Why a label cannot be part of a stage's name and the name of a folder.
fn fault(label: &str) -> Option<String> {
    if label.is_empty() || label.contains(['[', ']', '/']) || label.starts_with('.') {
        return Some("is empty, starts with `.`, or contains one of `[ ] /`".to_owned());
    }
    if label.chars().any(char::is_control) {
        return Some("contains a control character".to_owned());
    }
    (label.len() > LONGEST).then(|| format!("is longer than {LONGEST} bytes"))
}

fn has_reference(node: &Node) -> bool {
    match &node.value {
        Value::Text(text) => text.contains("${"),
        Value::List(items) => items.iter().any(has_reference),
        Value::Table(table) => table.entries.values().any(|entry| has_reference(&entry.node)),
        _ => false,
    }
}
