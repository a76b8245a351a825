//! `--set` arguments that no stage reads: a misspelt key would otherwise change nothing, and say nothing.

use crate::text::{Origin, Problems, Sources};
use crate::tree::{Node, Table, Value};

/// Stands for any item of a list that a stage is repeated over.
const ITEM: &str = "*";

/// Reports each set path that neither is, nor holds, nor lies below anything that a stage refers to.
pub(super) fn report(stages: &Table, sets: &[Origin], sources: &Sources, problems: &mut Problems) {
    // How to compute is no stage's business.
    let mut read = vec!["run".to_owned()];
    for entry in stages.entries.values() {
        let Some(stage) = entry.node.as_table() else { continue };
        let mut found = Vec::new();
        for key in ["inputs", "params"] {
            stage.get(key).into_iter().for_each(|node| references(node, &mut found));
        }
        let each = stage.get("each").and_then(Node::as_table).into_iter().flat_map(|each| &each.entries);
        for (variable, list) in each {
            let mut lists = Vec::new();
            references(&list.node, &mut lists);
            for list in lists {
                read.push(format!("{list}.{ITEM}.name"));
                for path in &mut found {
                    let rest = path.strip_prefix(variable.as_str());
                    if let Some(rest) = rest.filter(|rest| rest.is_empty() || rest.starts_with('.')) {
                        *path = format!("{list}.{ITEM}{rest}");
                    }
                }
            }
        }
        read.append(&mut found);
    }
    for origin in sets {
        let path = sources.get(origin.text).text[origin.span.clone()].trim();
        if !read.iter().any(|read| meet(path, read)) {
            let names = read.iter().map(String::as_str).filter(|name| !name.contains(ITEM));
            problems.at(origin, format!("no stage of this pipeline reads `{path}`")).suggest(path, names);
        }
    }
}

/// Whether one of the dotted paths begins with the other.
fn meet(path: &str, read: &str) -> bool {
    path.split('.').zip(read.split('.')).all(|(a, b)| a == b || b == ITEM)
}

/// The paths of all `${…}` in the texts of a node.
fn references(node: &Node, found: &mut Vec<String>) {
    match &node.value {
        Value::Text(text) => {
            let starts = text.split("${").skip(1);
            found.extend(starts.filter_map(|rest| rest.split_once('}')).map(|(path, _)| path.to_owned()));
        }
        Value::List(items) => items.iter().for_each(|item| references(item, found)),
        Value::Table(table) => table.entries.values().for_each(|entry| references(&entry.node, found)),
        _ => {}
    }
}
