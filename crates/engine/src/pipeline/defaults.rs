//! `[defaults.KIND]`: parameters for every stage of a kind that does not give its own.

use super::DEFAULTS;
use crate::config::param::Key;
use crate::config::text::{Origin, Problems};
use crate::config::tree::{Entry, Node, Table, Value};
use crate::kind::Registry;

/// The written defaults as a `--set defaults.KIND.KEY=…` finds them: with a table for each kind.
pub(super) fn open(mut written: Table, registry: &Registry) -> Node {
    let origin = Origin { text: 0, span: 0..0 };
    let table = |table| Node { value: Value::Table(table), origin: origin.clone() };
    for kind in registry {
        let entry = || Entry { key: origin.clone(), node: table(Table::default()) };
        written.entries.entry(kind.name.to_owned()).or_insert_with(entry);
    }
    let entry = Entry { key: origin.clone(), node: table(written) };
    table(Table { entries: [(DEFAULTS.to_owned(), entry)].into() })
}

/// The defaults by kind, without those that have a fault: an unknown kind, or a key that the kind does not have.
///
/// A kind that no stage is of may have defaults: an included file gives them for all that include it.
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
        let keys = kind.keys();
        let mut params = params.clone();
        params.entries.retain(|key, entry| {
            let known = keys.iter().any(|known: &Key| known.name == key);
            if !known {
                let problem = problems.at(&entry.key, format!("unknown key `{key}`"));
                problem.suggest(key, keys.iter().map(|key| key.name));
            }
            known
        });
        let node = Node { value: Value::Table(params), origin: entry.node.origin.clone() };
        kept.entries.insert(name.clone(), Entry { key: entry.key.clone(), node });
    }
    kept
}
