//! `[defaults.KIND]`: default parameters for all stages of a kind.

use super::DEFAULTS;
use crate::config::param::unknown_key;
use crate::config::text::{Origin, Problems};
use crate::config::tree::{Entry, Node, Table, Value};
use crate::kind::Registry;

/// The written defaults with a table for each kind, so that `--set defaults.KIND.KEY=…` can set any key.
pub(super) fn open(mut written: Table, registry: &Registry) -> Node {
    let origin = Origin { text: 0, span: 0..0 };
    let table = |table| Node { value: Value::Table(table), origin: origin.clone() };
    for kind in registry {
        let entry = || Entry { key: origin.clone(), node: table(Table::default()) };
        written.entries.get_or_insert_with(kind.name.to_owned(), entry);
    }
    let entry = Entry { key: origin.clone(), node: table(written) };
    table(Table { entries: [(DEFAULTS.to_owned(), entry)].into_iter().collect() })
}

/// The defaults by kind, without the faulty ones: an unknown kind, or an unknown key.
///
/// Defaults of a kind without stages are allowed: an included file may serve several pipelines.
pub(super) fn read(opened: &Node, registry: &Registry, problems: &mut Problems) -> Table {
    let mut kept = Table::default();
    let kinds = opened.as_table().and_then(|table| table.get(DEFAULTS)).and_then(Node::as_table);
    for (name, entry) in kinds.into_iter().flat_map(|kinds| &kinds.entries) {
        let Some(kind) = registry.iter().find(|kind| kind.name == name) else {
            let names = registry.iter().map(|kind| kind.name);
            problems.at(&entry.key, format!("unknown stage kind `{name}`")).suggest(name, names);
            continue;
        };
        let Some(params) = entry.node.as_table() else {
            let message = format!("expected a table of parameters, found {}", entry.node.type_name());
            problems.at(&entry.node.origin, message);
            continue;
        };
        if params.entries.is_empty() {
            continue;
        }
        let keys: Vec<&str> = kind.keys().iter().map(|key| key.name).collect();
        let mut params = params.clone();
        params.entries.retain(|key, entry| {
            let known = keys.contains(&key.as_str());
            if !known {
                unknown_key(key, &entry.key, &keys, kind.renamed, problems);
            }
            known
        });
        let node = Node { value: Value::Table(params), origin: entry.node.origin.clone() };
        kept.entries.insert(name.clone(), Entry { key: entry.key.clone(), node });
    }
    kept
}
