//! References between stages resolved, parameters read by their kinds.

use std::collections::BTreeMap;
use std::path::Path;

use super::expand::{Draft, Expanded};
use super::{Source, StageNode};
use crate::param::{Key, Reader};
use crate::stage::Input;
use crate::text::{Origin, Problem};
use crate::tree::{Entry, Node, Value};

/// Turns drafts into stages; the result is complete only when no problem was added.
pub(super) fn resolve(expanded: &Expanded<'_>, reader: &mut Reader<'_>) -> Vec<StageNode> {
    let drafts = &expanded.drafts;
    let known = reader.problems.list.len();
    let inputs: Vec<_> = drafts.iter().map(|draft| read_inputs(draft, expanded, reader)).collect();
    let mut stages = Vec::new();
    for (index, draft) in drafts.iter().enumerate() {
        let params = with_inherited(index, drafts, &inputs, reader);
        let params = params.and_then(|params| draft.kind.read(&params, reader));
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
    // A value that a `${…}` could not give is not of a wrong type as well.
    let new = reader.problems.list.split_off(known);
    let reported = |problem: &Problem| reader.problems.list.iter().any(|old| old.origin == problem.origin);
    let new: Vec<Problem> = new.into_iter().filter(|problem| !reported(problem)).collect();
    reader.problems.list.extend(new);
    stages
}

fn read_inputs(
    draft: &Draft<'_>,
    expanded: &Expanded<'_>,
    reader: &mut Reader<'_>,
) -> BTreeMap<String, Source> {
    let mut misspelt = false;
    let ports = draft.kind.inputs();
    let mut inputs = BTreeMap::new();
    for (port, entry) in &draft.inputs.entries {
        if !ports.iter().any(|known| known.name == port) {
            // What is misspelt is not missing as well.
            misspelt = true;
            let message = format!("the kind `{}` has no input `{port}`", draft.kind.name());
            reader.problems.at(&entry.key, message).suggest(port, ports.iter().map(|known| known.name));
            continue;
        }
        if let Some(source) = read_source(entry, draft, expanded, reader) {
            inputs.insert(port.clone(), source);
        }
    }
    let missing = |port: &&Input| port.required && !misspelt && draft.inputs.get(port.name).is_none();
    for port in ports.iter().filter(missing) {
        let message = format!("the stage `{}` has nothing on its input `{}`", draft.base, port.name);
        reader.problems.at(draft.origin, message).help(format!("`{}` takes {}", port.name, port.doc));
    }
    inputs
}

/// Reads `./a/path` or `stage.port/below`.
fn read_source(
    entry: &Entry,
    draft: &Draft<'_>,
    expanded: &Expanded<'_>,
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
        match expanded.drafts.iter().find(|draft| draft.base == text || draft.id() == *text) {
            Some(named) => problem.help(format!("did you mean `{text}.{}`?", named.kind.outputs()[0].name)),
            None => problem.help("a path starts with `./`, `../` or `/`"),
        }
        return None;
    };
    let (name, rest) = (&text[..dot], &text[dot + 1..]);
    let (port, sub) = rest.split_once('/').map_or((rest, None), |(port, sub)| (port, Some(sub)));
    let stage = find_stage(name, origin, draft, expanded, reader)?;
    let outputs = expanded.drafts[stage].kind.outputs();
    if !outputs.iter().any(|known| known.name == port) {
        let message = format!("the stage `{name}` has no output `{port}`");
        reader.problems.at(origin, message).suggest(port, outputs.iter().map(|known| known.name));
        return None;
    }
    let sub = sub.map(|sub| sub.trim_matches('/').to_owned()).filter(|sub| !sub.is_empty());
    Some(Source::Port { stage, port: port.to_owned(), sub, origin: origin.clone() })
}

/// A stage by its full name, or the repeated stage's item of the same label as the one that asks.
fn find_stage(
    name: &str,
    origin: &Origin,
    from: &Draft<'_>,
    expanded: &Expanded<'_>,
    reader: &mut Reader<'_>,
) -> Option<usize> {
    let drafts = &expanded.drafts;
    let by_id = drafts.iter().position(|draft| draft.id() == name);
    let by_label =
        || drafts.iter().position(|d| d.base == name && d.label.is_some() && d.label == from.label);
    if let Some(found) = by_id.or_else(by_label) {
        return Some(found);
    }
    if expanded.faulty.contains(name.split('[').next().unwrap_or_default()) {
        return None;
    }
    if let Some(repeated) = drafts.iter().find(|draft| draft.base == name) {
        let message =
            format!("the stage `{name}` is repeated, and `{}` is not over the same items", from.base);
        reader
            .problems
            .at(origin, message)
            .help(format!("name one of its items, such as `{}`", repeated.id()));
    } else {
        let id = |draft: &Draft<'_>| if name.contains('[') { draft.id() } else { draft.base.to_owned() };
        let names: Vec<String> = drafts.iter().map(id).collect();
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
        let Some(giver) = giver(*stage, inherit.param, drafts, inputs, 0) else { continue };
        let Value::Table(table) = &mut params.value else { return Some(params) };
        if let Some(own) = table.entries.get(inherit.param) {
            let message = format!("`{}` comes from the stage on `{}`", inherit.param, inherit.port);
            reader.problems.at(&own.key, message).help("remove the key: the two must not differ");
            return None;
        }
        let Some(entry) = giver.params.as_table().and_then(|table| table.entries.get(inherit.param)) else {
            // Where the giver must have the key, it is told that it is missing there.
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

/// The stage whose own parameter it is: the one upstream, or the one that it inherits from in turn.
fn giver<'d, 'p>(
    stage: usize,
    param: &str,
    drafts: &'d [Draft<'p>],
    inputs: &[BTreeMap<String, Source>],
    depth: usize,
) -> Option<&'d Draft<'p>> {
    let draft = &drafts[stage];
    match draft.kind.inherits().iter().find(|inherit| inherit.param == param) {
        None => draft.kind.keys().iter().any(|key| key.name == param).then_some(draft),
        Some(inherit) => match inputs[stage].get(inherit.port) {
            // A cycle is reported by the graph; here it only must end.
            Some(Source::Port { stage, .. }) if depth < drafts.len() => {
                giver(*stage, param, drafts, inputs, depth + 1)
            }
            Some(Source::Port { .. }) => None,
            _ => Some(draft),
        },
    }
}
