//! `when`: whether a stage is part of the pipeline.

use super::env_vars::Env;
use super::reference::whole_reference;
use super::scope::{Scope, lookup};
use crate::config::text::{Origin, Problems};
use crate::config::tree::{Node, Value};

/// The result of a stage's `when`.
pub(super) enum Condition {
    /// The stage is part of the pipeline.
    On,
    /// The stage is disabled; the location of the deciding value.
    DisabledStage(Origin),
}

/// Reads a `when`: a condition, or an array of which at least one must hold; `None` after a fault was reported.
pub(super) fn read(node: &Node, scope: &Scope<'_, '_>, problems: &mut Problems) -> Option<Condition> {
    let conditions = match &node.value {
        Value::List(items) => items.as_slice(),
        _ => std::slice::from_ref(node),
    };
    if conditions.is_empty() {
        problems.at(&node.origin, "`when` is empty, expected at least one condition");
        return None;
    }
    let read: Vec<_> = conditions.iter().map(|item| condition(item, scope, problems)).collect();
    let read = read.into_iter().collect::<Option<Vec<_>>>()?;
    if read.iter().any(|(holds, _)| *holds) {
        return Some(Condition::On);
    }
    // A single value is what a user has to change; if several are false, only the array names them all.
    Some(Condition::DisabledStage(match read.as_slice() {
        [(_, origin)] => origin.clone(),
        _ => node.origin.clone(),
    }))
}

/// Whether `true`, `${…}` or `not ${…}` holds, and the location of its value.
fn condition(node: &Node, scope: &Scope<'_, '_>, problems: &mut Problems) -> Option<(bool, Origin)> {
    let text = node.as_text();
    let negated = text.and_then(|text| text.strip_prefix("not "));
    let of_env;
    let found = match negated.or(text).map(str::trim).and_then(whole_reference) {
        Some(reference) if Env::is_reference(reference) => {
            of_env = scope.env.node(reference, &node.origin, problems)?;
            &of_env
        }
        Some(path) => lookup(path, &node.origin, scope, problems)?,
        None => node,
    };
    if let Value::Bool(value) = found.value {
        return Some((value != negated.is_some(), found.origin.clone()));
    }
    let message = format!("expected true or false, found {}", found.type_name());
    let form = "expected `\"${a.switch}\"`, `\"not ${a.switch}\"`, or an array of alternatives";
    problems.at(&found.origin, message).help(form);
    None
}
