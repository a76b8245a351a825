//! References between stages resolved, parameters read by their kinds.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::expand::Draft;
use super::{Source, StageNode};
use crate::param::Reader;
use crate::text::Origin;
use crate::tree::{Entry, Node, Value};

/// Turns drafts into stages; the result is complete only when no problem was added.
pub(super) fn resolve(drafts: &[Draft<'_>], reader: &mut Reader<'_>) -> Vec<StageNode> {
    let mut reported = BTreeSet::new();
    let mut inputs = Vec::new();
    for draft in drafts {
        let known = reader.problems.list.len();
        inputs.push(read_inputs(draft, drafts, reader));
        drop_repeats(known, &mut reported, reader);
    }
    let mut stages = Vec::new();
    for (index, draft) in drafts.iter().enumerate() {
        let known = reader.problems.list.len();
        let params = with_inherited(index, drafts, &inputs, reader);
        let params = params.and_then(|params| draft.kind.read(&params, reader));
        drop_repeats(known, &mut reported, reader);
        let Some(params) = params else { continue };
        let mut inputs = inputs[index].clone();
        for (port, path) in draft.kind.sources(&params) {
            inputs.insert(port, Source::File(path));
        }
        stages.push(StageNode {
            id: draft.id(),
            base: draft.base.to_owned(),
            label: draft.label.clone(),
            kind: draft.kind,
            params,
            inputs,
            origin: draft.origin.clone(),
        });
    }
    stages
}

/// A fault in a repeated stage's shared text is one fault, not one per item.
fn drop_repeats(from: usize, seen: &mut BTreeSet<(usize, usize, String)>, reader: &mut Reader<'_>) {
    let new = reader.problems.list.split_off(from);
    reader.problems.list.extend(new.into_iter().filter(|problem| match &problem.origin {
        Some(origin) => seen.insert((origin.text, origin.span.start, problem.message.clone())),
        None => true,
    }));
}

fn read_inputs(draft: &Draft<'_>, drafts: &[Draft<'_>], reader: &mut Reader<'_>) -> BTreeMap<String, Source> {
    let ports = draft.kind.inputs();
    let mut inputs = BTreeMap::new();
    for (port, entry) in &draft.inputs.entries {
        if !ports.iter().any(|known| known.name == port) {
            let message = format!("the kind `{}` has no input `{port}`", draft.kind.name());
            reader.problems.at(&entry.key, message).suggest(port, ports.iter().map(|known| known.name));
            continue;
        }
        if let Some(source) = read_source(entry, draft, drafts, reader) {
            inputs.insert(port.clone(), source);
        }
    }
    for port in ports.iter().filter(|port| port.required && draft.inputs.get(port.name).is_none()) {
        let message = format!("the stage `{}` has nothing on its input `{}`", draft.id(), port.name);
        reader.problems.at(draft.origin, message).help(format!("`{}` takes {}", port.name, port.doc));
    }
    inputs
}

/// Reads `./a/path` or `stage.port/below`.
fn read_source(
    entry: &Entry,
    draft: &Draft<'_>,
    drafts: &[Draft<'_>],
    reader: &mut Reader<'_>,
) -> Option<Source> {
    let origin = &entry.node.origin;
    let Some(text) = entry.node.as_text() else {
        let message = format!("expected `stage.port` or a path, found {}", entry.node.type_name());
        reader.problems.at(origin, message);
        return None;
    };
    if ["./", "../", "/"].iter().any(|start| text.starts_with(start)) {
        return reader.existing(Path::new(text), origin).map(Source::File);
    }
    let after_label = text.find(']').map_or(0, |end| end + 1);
    let Some(dot) = text[after_label..].find('.').map(|dot| dot + after_label) else {
        let problem = reader.problems.at(origin, format!("`{text}` is neither `stage.port` nor a path"));
        problem.help("a path starts with `./`, `../` or `/`");
        return None;
    };
    let (name, rest) = (&text[..dot], &text[dot + 1..]);
    let (port, sub) = rest.split_once('/').map_or((rest, None), |(port, sub)| (port, Some(sub)));
    let stage = find_stage(name, origin, draft, drafts, reader)?;
    let outputs = drafts[stage].kind.outputs();
    if !outputs.iter().any(|known| known.name == port) {
        let message = format!("the stage `{name}` has no output `{port}`");
        reader.problems.at(origin, message).suggest(port, outputs.iter().map(|known| known.name));
        return None;
    }
    let sub = sub.map(|sub| sub.trim_matches('/').to_owned());
    Some(Source::Port { stage, port: port.to_owned(), sub, origin: origin.clone() })
}

/// A stage by its full name, or the repeated stage's item of the same label as the one that asks.
fn find_stage(
    name: &str,
    origin: &Origin,
    from: &Draft<'_>,
    drafts: &[Draft<'_>],
    reader: &mut Reader<'_>,
) -> Option<usize> {
    let by_id = drafts.iter().position(|draft| draft.id() == name);
    let by_label =
        || drafts.iter().position(|d| d.base == name && d.label.is_some() && d.label == from.label);
    if let Some(found) = by_id.or_else(by_label) {
        return Some(found);
    }
    if let Some(repeated) = drafts.iter().find(|draft| draft.base == name) {
        let message =
            format!("the stage `{name}` is repeated, and `{}` is not over the same items", from.id());
        reader
            .problems
            .at(origin, message)
            .help(format!("name one of its items, such as `{}`", repeated.id()));
    } else {
        let names: Vec<String> = drafts.iter().map(|draft| draft.base.to_owned()).collect();
        let problem = reader.problems.at(origin, format!("there is no stage `{name}`"));
        problem.suggest(name, names.iter().map(String::as_str));
    }
    None
}

/// The stage's parameters with those that its kind takes from upstream.
fn with_inherited(
    index: usize,
    drafts: &[Draft<'_>],
    inputs: &[BTreeMap<String, Source>],
    reader: &mut Reader<'_>,
) -> Option<Node> {
    let draft = &drafts[index];
    let mut params = draft.params.clone();
    for inherit in draft.kind.inherits() {
        let Some(Source::Port { stage, .. }) = inputs[index].get(inherit.port) else { continue };
        let Some(entry) = inherited(*stage, inherit.param, drafts, inputs, 0) else { continue };
        let Value::Table(table) = &mut params.value else { return Some(params) };
        if let Some(own) = table.entries.get(inherit.param) {
            let message = format!("`{}` comes from the stage on `{}`", inherit.param, inherit.port);
            reader.problems.at(&own.key, message).help("remove the key: the two must not differ");
            return None;
        }
        table.entries.insert(inherit.param.to_owned(), entry);
    }
    Some(params)
}

/// The upstream stage's own parameter, or the one that it inherits in turn.
fn inherited(
    stage: usize,
    param: &str,
    drafts: &[Draft<'_>],
    inputs: &[BTreeMap<String, Source>],
    depth: usize,
) -> Option<Entry> {
    let draft = &drafts[stage];
    if let Some(entry) = draft.params.as_table().and_then(|table| table.entries.get(param)) {
        return Some(entry.clone());
    }
    let inherit = draft.kind.inherits().iter().find(|inherit| inherit.param == param)?;
    match inputs[stage].get(inherit.port)? {
        // A cycle is reported by the graph; here it only must end.
        Source::Port { stage, .. } if depth < drafts.len() => {
            inherited(*stage, param, drafts, inputs, depth + 1)
        }
        _ => None,
    }
}
