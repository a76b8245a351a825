//! Parameters read by their kinds, including inherited ones; references resolved to stage indices.

use super::env_vars::Env;
use super::expand::{Draft, Expanded};
use super::inputs::{self, Connected};
use super::{Source, StageNode};
use crate::config::param::{Key, Reader};
use crate::config::text::Problem;
use crate::config::tree::{Entry, Node, Value};
use crate::kind::{ShownAt, Stage, split_port};

/// Turns drafts into stages, without the disabled ones; the result is complete only if no problem was added.
pub(super) fn resolve(expanded: &Expanded<'_>, env: &Env, reader: &mut Reader<'_>) -> Vec<StageNode> {
    let drafts = &expanded.drafts;
    let known = reader.problems.list.len();
    let connected: Vec<_> = drafts.iter().map(|draft| inputs::read(draft, expanded, reader)).collect();
    // The index of a draft among the stages.
    let places: Vec<usize> = drafts
        .iter()
        .scan(0, |next, draft| {
            let place = *next;
            *next += usize::from(draft.off.is_none());
            Some(place)
        })
        .collect();
    let mut stages = Vec::new();
    for (index, draft) in drafts.iter().enumerate().filter(|(_, draft)| draft.off.is_none()) {
        let Some(mut written) = with_inherited(index, drafts, &connected, reader) else { continue };
        add_shown_at(&mut written, index, drafts, &connected);
        let Some(stage) = draft.kind.read(&written, reader) else { continue };
        env.check(&*stage, &written, reader.problems);
        check(draft, &*stage, &connected[index], reader);
        check_shared(index, drafts, &connected, reader);
        let mut inputs = connected[index].sources.clone();
        for source in inputs.values_mut() {
            if let Source::Port { stage, .. } = source {
                *stage = places[*stage];
            }
        }
        for (port, path) in stage.sources() {
            inputs.insert(port, Source::File(path));
        }
        stages.push(StageNode {
            id: draft.id(),
            base: draft.base.to_owned(),
            label: draft.label.clone(),
            stage,
            written,
            inputs,
            outputs: draft.outputs.clone(),
            origin: draft.origin.clone(),
        });
    }
    if stages.len() == drafts.iter().filter(|draft| draft.off.is_none()).count() {
        check_sources(&stages, reader);
    }
    // A value of an unresolved `${…}` is not also reported as of a wrong type.
    let new = reader.problems.list.split_off(known);
    let reported = |problem: &Problem| reader.problems.list.iter().any(|old| old.origin == problem.origin);
    let new: Vec<Problem> = new.into_iter().filter(|problem| !reported(problem)).collect();
    reader.problems.list.extend(new);
    stages
}

/// Reports the kind's faults between parameters and connected inputs, at the one that it names.
fn check(draft: &Draft<'_>, stage: &dyn Stage, connected: &Connected, reader: &mut Reader<'_>) {
    // An input that could not be read is not also reported as missing.
    if !connected.whole {
        return;
    }
    for (name, message) in
        stage.check(&|port| connected.sources.keys().any(|input| split_port(input).0 == port))
    {
        let (key, item) = name.split_once('.').map_or((name.as_str(), None), |(key, item)| (key, Some(item)));
        let param = draft.params.as_table().and_then(|table| table.entries.get(key));
        let item = match (param.map(|entry| &entry.node.value), item) {
            (Some(Value::List(items)), Some(item)) => {
                item.parse().ok().and_then(|item: usize| items.get(item))
            }
            _ => None,
        };
        let key = param.or_else(|| draft.inputs.entries.get(&name)).map(|entry| &entry.key);
        reader.problems.at(item.map(|item| &item.origin).or(key).unwrap_or(draft.origin), message);
    }
}

/// Reports parameters that do not fit those of a stage on an input.
fn check_sources(stages: &[StageNode], reader: &mut Reader<'_>) {
    for node in stages {
        let source = |port: &str| match node.inputs.get(port)? {
            Source::Port { stage, .. } => Some(&*stages[*stage].stage as &dyn Stage),
            _ => None,
        };
        for (name, message) in node.stage.check_sources(&source) {
            let param = node.written.as_table().and_then(|table| table.entries.get(&name));
            reader.problems.at(param.map_or(&node.origin, |entry| &entry.key), message);
        }
    }
}

/// Reports an input that the stage on another input has from elsewhere, where both must have the same.
fn check_shared(index: usize, drafts: &[Draft<'_>], connected: &[Connected], reader: &mut Reader<'_>) {
    let (draft, own) = (&drafts[index], &connected[index]);
    let mut reported: Vec<&str> = Vec::new();
    let all = draft.kind.shared.iter().flat_map(|shared| {
        let on_port = own.sources.iter().filter(move |(port, _)| split_port(port).0 == shared.port);
        on_port.map(move |(_, source)| (shared, source))
    });
    for (shared, source) in all {
        let Source::Port { stage, .. } = source else { continue };
        let (giver, theirs) = (&drafts[*stage], &connected[*stage]);
        if giver.kind.name != shared.kind || !own.whole || !theirs.whole {
            continue;
        }
        for input in shared.inputs {
            let sources = [own, theirs].map(|connected| connected.sources.get(input));
            let same = match sources {
                [Some(one), Some(other)] => one.is_same(other),
                [one, other] => one.is_none() && other.is_none(),
            };
            if same || reported.contains(input) {
                continue;
            }
            reported.push(input);
            let place = [*input, shared.port].iter().find_map(|port| draft.inputs.entries.get(port));
            let [here, there] = sources.map(|source| described(source, drafts));
            let message = format!(
                "`{input}` is {here}, and of the stage `{}` on the input `{}` it is {there}: both stages must have the same",
                giver.id(),
                shared.port
            );
            reader.problems.at(place.map_or(draft.origin, |entry| &entry.key), message);
        }
    }
}

/// An input's source as it can be written.
fn described(source: Option<&Source>, drafts: &[Draft<'_>]) -> String {
    match source {
        None => "not connected".to_owned(),
        Some(Source::File(path)) => format!("`{}`", path.display()),
        Some(Source::Port { stage, port, sub, .. }) => {
            let below = sub.as_ref().map_or(String::new(), |sub| format!("/{sub}"));
            format!("`{}.{port}{below}`", drafts[*stage].id())
        }
    }
}

/// The stage's parameters, with those inherited from upstream.
fn with_inherited(
    index: usize,
    drafts: &[Draft<'_>],
    connected: &[Connected],
    reader: &mut Reader<'_>,
) -> Option<Node> {
    let draft = &drafts[index];
    let mut params = draft.params.clone();
    for inherit in draft.kind.inherits {
        let written = draft.inputs.get(inherit.port).is_some();
        if written && !connected[index].whole && !connected[index].sources.contains_key(inherit.port) {
            // Not missing: the upstream stage could not be read.
            return None;
        }
        let Some(Source::Port { stage, .. }) = connected[index].sources.get(inherit.port) else { continue };
        let Some(giver) = giver(*stage, inherit.param, drafts, connected, 0) else { continue };
        let Value::Table(table) = &mut params.value else { return Some(params) };
        if let Some(own) = table.entries.get(inherit.param) {
            let message =
                format!("`{}` is inherited from the stage on the input `{}`", inherit.param, inherit.port);
            reader.problems.at(&own.key, message).help("remove the key: both stages must use the same value");
            return None;
        }
        let Some(entry) = giver.params.as_table().and_then(|table| table.entries.get(inherit.param)) else {
            // If the key is required, it is reported as missing upstream.
            let required = |key: &Key| key.name == inherit.param && key.default.is_none();
            if giver.kind.keys().iter().any(required) {
                return None;
            }
            continue;
        };
        table.entries.insert(inherit.param.to_owned(), entry.clone());
    }
    Some(params)
}

/// Adds the parameters that say where the results folder shows an input.
fn add_shown_at(params: &mut Node, index: usize, drafts: &[Draft<'_>], connected: &[Connected]) {
    for ShownAt { param, port } in drafts[index].kind.shown_at {
        let Some(Source::Port { stage, port, sub, origin }) = connected[index].sources.get(port) else {
            continue;
        };
        let (giver, Value::Table(table)) = (&drafts[*stage], &mut params.value) else { continue };
        let Some(output) = giver.outputs.iter().find(|output| output.name == *port) else { continue };
        let below = [giver.label.as_deref(), Some(output.file.as_str()), sub.as_deref()];
        let path = below.into_iter().flatten().fold(giver.base.to_owned(), |path, part| path + "/" + part);
        let node = Node { value: Value::Text(path), origin: origin.clone() };
        table.entries.get_or_insert_with((*param).to_owned(), || Entry { key: origin.clone(), node });
    }
}

/// The stage that defines the parameter: the upstream one, or the one that it inherits from in turn.
fn giver<'d, 'p>(
    stage: usize,
    param: &str,
    drafts: &'d [Draft<'p>],
    connected: &[Connected],
    depth: usize,
) -> Option<&'d Draft<'p>> {
    let draft = &drafts[stage];
    match draft.kind.inherits.iter().find(|inherit| inherit.param == param) {
        None => draft.kind.keys().iter().any(|key| key.name == param).then_some(draft),
        Some(inherit) => match connected[stage].sources.get(inherit.port) {
            // The graph reports cycles; this loop only has to end.
            Some(Source::Port { stage, .. }) if depth < drafts.len() => {
                giver(*stage, param, drafts, connected, depth + 1)
            }
            Some(Source::Port { .. }) => None,
            _ => Some(draft),
        },
    }
}
