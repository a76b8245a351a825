//! The values that a reference may name, and their lookup.

use std::cell::RefCell;
use std::collections::BTreeSet;

use super::env_vars::Env;
use crate::config::text::{Origin, Problems, nearest};
use crate::config::tree::{Node, Table};

/// Matches any item of a list in a path that was read.
pub(super) const ANY: &str = "*";

/// One item of a list that a stage repeats over.
#[derive(Clone)]
pub(super) struct Item<'c> {
    /// The name of the stage's variable.
    pub variable: &'c str,
    /// Its value.
    pub node: &'c Node,
    /// The list's path in the config; empty for a list written in the stage itself.
    pub list: &'c str,
    /// Its label in the stage's name.
    pub label: String,
}

/// The values that a `${…}` may name: the items of a repeated stage first, then the config.
pub(super) struct Scope<'c, 's> {
    pub config: &'c Node,
    pub items: &'s [Item<'c>],
    /// Paths in the config that were read.
    pub used: &'s RefCell<BTreeSet<String>>,
    pub env: &'s Env,
}

/// The value that a reference names; it is marked as read.
pub(super) fn lookup<'c>(
    path: &str,
    origin: &Origin,
    scope: &Scope<'c, '_>,
    problems: &mut Problems,
) -> Option<&'c Node> {
    let (first, rest) = path.split_once('.').map_or((path, ""), |(first, rest)| (first, rest));
    match scope.items.iter().find(|item| item.variable == first) {
        None => {
            scope.used.borrow_mut().insert(path.to_owned());
        }
        Some(Item { list: "", .. }) => {}
        Some(Item { list, .. }) => {
            let read = format!("{list}.{ANY}.{rest}");
            scope.used.borrow_mut().insert(read.trim_end_matches('.').to_owned());
        }
    }
    find(path, origin, scope, problems)
}

/// The value that a reference names, or the missing key and the table without it.
pub(super) fn follow<'c, 'p>(
    path: &'p str,
    scope: &Scope<'c, '_>,
) -> Result<&'c Node, (&'p str, Option<&'c Table>)> {
    let (first, rest) = path.split_once('.').map_or((path, None), |(first, rest)| (first, Some(rest)));
    match (scope.items.iter().find(|item| item.variable == first), rest) {
        (None, _) => scope.config.follow(path),
        (Some(item), None) => Ok(item.node),
        (Some(item), Some(rest)) => item.node.follow(rest),
    }
}

/// The value that a reference names; a missing one is reported.
pub(super) fn find<'c>(
    path: &str,
    origin: &Origin,
    scope: &Scope<'c, '_>,
    problems: &mut Problems,
) -> Option<&'c Node> {
    let first = path.split('.').next().unwrap_or_default();
    match follow(path, scope) {
        Ok(node) => Some(node),
        Err((key, table)) => {
            let Some(table) = table else {
                let message =
                    format!("`${{{path}}}` does not exist: the value before `{key}` is not a table");
                problems.at(origin, message);
                return None;
            };
            let problem = problems.at(origin, format!("`${{{path}}}` does not exist: unknown key `{key}`"));
            let mut names: Vec<&str> = table.keys().collect();
            if key == first {
                names.extend(scope.items.iter().map(|item| item.variable));
            }
            match nearest(key, names.iter().copied()).filter(|near| table.get(near).is_some()) {
                // Either may be the misspelt one.
                Some(near) => problem.help(format!("the config has `{near}`: one of the two is misspelt")),
                None => problem.suggest(key, names),
            }
            None
        }
    }
}
