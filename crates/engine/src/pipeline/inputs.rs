//! The inputs of a stage: references between stages, paths, alternatives.

use std::path::Path;

use super::Source;
use super::expand::{Draft, Expanded};
use crate::config::param::{PLAIN_NAME, Reader, plain_name};
use crate::config::sorted_map::SortedMap;
use crate::config::text::Origin;
use crate::config::tree::{Entry, Node, Value};
use crate::kind::{Input, Output, split_port};

/// The connected ports of a stage.
pub(super) struct Connected {
    /// The source of each; stages are numbered as drafts.
    pub sources: SortedMap<Source>,
    /// Whether every entry of `inputs` could be read.
    pub whole: bool,
}

/// What stands for every item of a repeated stage.
const EVERY: &str = "[*]";

/// An input port.
struct Port<'p> {
    name: &'p str,
    required: bool,
    many: bool,
}

/// The meaning of an input's text.
enum Named<'t> {
    /// `""`: the port may stay open.
    Nothing,
    /// `./a/path`, not checked yet.
    Path(&'t str),
    /// `stage.port/below`.
    Port { stage: usize, port: &'t str, sub: Option<&'t str> },
    /// `stage[*].port/below`: the same of several items, each with its name.
    Many { items: Vec<(String, usize)>, port: &'t str, sub: Option<&'t str> },
    /// An output that the stage has only if one of its parameters enables it.
    NotEnabled { stage: usize, output: &'static Output },
}

/// Reads the inputs of a stage. For a disabled stage, only the names are checked.
pub(super) fn read(draft: &Draft<'_>, expanded: &Expanded<'_>, reader: &mut Reader<'_>) -> Connected {
    let mut misspelt = false;
    let ports = draft.kind.inputs;
    let mut connected = Connected { sources: SortedMap::default(), whole: true };
    for (name, entry) in &draft.inputs.entries {
        let known = ports.iter().find(|known| known.name == name).map(|known| Port {
            name,
            required: known.required,
            many: known.many,
        });
        // An input with a name of the stage's own choice is always required.
        let free = draft.kind.dynamic_inputs.then_some(Port { name, required: true, many: false });
        if free.is_some() && !plain_name(name) {
            connected.whole = false;
            let message = format!("`{name}` is not a valid input name: expected {PLAIN_NAME}");
            reader.problems.at(&entry.key, message);
            continue;
        }
        let Some(port) = known.or(free) else {
            // A misspelt input is not also reported as missing.
            misspelt = true;
            connected.whole = false;
            let message = format!("the kind `{}` has no input `{name}`", draft.kind.name);
            let problem = reader.problems.at(&entry.key, message);
            match draft.kind.new_name(name) {
                Some(new) => problem.help(format!("it is named `{new}` now")),
                None => problem.suggest(name, ports.iter().map(|known| known.name)),
            }
            continue;
        };
        match read_sources(&port, entry, draft, expanded, reader) {
            Some(sources) => connected.sources.extend(sources),
            None => connected.whole = false,
        }
    }
    let missing = |port: &&Input| port.required && !misspelt && draft.inputs.get(port.name).is_none();
    for port in ports.iter().filter(missing) {
        connected.whole = false;
        let message = format!("the input `{}` of the stage `{}` is not connected", port.name, draft.base);
        reader.problems.at(draft.origin, message).help(format!("`{}` takes {}", port.name, port.doc));
    }
    connected
}

/// Reads one input: the first of its alternatives whose stage is enabled and has the output, or all of them if the port takes
/// many. `None` after a fault was reported, nothing for a port left open.
fn read_sources(
    port: &Port<'_>,
    entry: &Entry,
    draft: &Draft<'_>,
    expanded: &Expanded<'_>,
    reader: &mut Reader<'_>,
) -> Option<Vec<(String, Source)>> {
    // An input of one source has one list of alternatives, one of many sources a list for each.
    let groups: Vec<&[Node]> = match &entry.node.value {
        Value::List(items) if port.many => items.iter().map(alternatives).collect(),
        _ => vec![alternatives(&entry.node)],
    };
    let nodes: Vec<&Node> = groups.iter().copied().flatten().collect();
    if nodes.is_empty() {
        let message = "the array is empty, expected at least one `stage.port` or path";
        reader.problems.at(&entry.node.origin, message);
        return None;
    }
    // All alternatives are read, so that a misspelt name is always reported.
    let read: Vec<_> = nodes.iter().map(|node| read_name(node, draft, expanded, reader)).collect();
    let read = read.into_iter().collect::<Option<Vec<_>>>()?;
    if let Some(open) = read.iter().position(|named| matches!(named, Named::Nothing)) {
        let fault = match (port.required, open + 1 == read.len()) {
            (true, _) => Some(format!("the input `{}` must be connected", port.name)),
            (false, false) => Some("`\"\"` leaves the input open, and must come last".to_owned()),
            (false, true) => None,
        };
        if let Some(fault) = fault {
            reader.problems.at(&nodes[open].origin, fault).help("expected `stage.port` or a path");
            return None;
        }
    }
    if draft.off.is_some() {
        return Some(Vec::new());
    }
    let mut sources: Vec<(String, Source)> = Vec::new();
    let mut rest = read.iter().zip(&nodes);
    for group in &groups {
        let mut found = Vec::new();
        for (named, node) in rest.by_ref().take(group.len()) {
            // The first that has any.
            if found.is_empty() {
                found = of_name(named, port, node, expanded, reader)?;
                if let Some((name, _)) =
                    found.iter().find(|(name, _)| sources.iter().any(|(known, _)| known == name))
                {
                    let item = split_port(name).1.unwrap_or_default();
                    let message = format!("two sources of the input `{}` have the name `{item}`", port.name);
                    reader.problems.at(&node.origin, message);
                    return None;
                }
            }
        }
        sources.extend(found);
    }
    if !sources.is_empty() || read.iter().any(|named| matches!(named, Named::Nothing)) {
        return Some(sources);
    }
    if let Some(Named::NotEnabled { stage, output }) =
        read.iter().find(|named| matches!(named, Named::NotEnabled { .. }))
    {
        let (id, param) = (expanded.drafts[*stage].id(), output.enabled_by.unwrap_or_default());
        let message =
            format!("the stage `{id}` has the output `{}` only with its parameter `{param}`", output.name);
        let problem = reader.problems.at(&entry.node.origin, message);
        let open = format!("add `\"\"` as the last alternative to leave `{}` open", port.name);
        let set = format!("set `{param}` of the stage `{id}`");
        problem.help(if port.required { set } else { format!("{set}, or {open}") });
        return None;
    }
    all_off(port, entry, &read, expanded, reader);
    None
}

/// The alternatives of an input: the entries of an array, or the value alone.
fn alternatives(node: &Node) -> &[Node] {
    match &node.value {
        Value::List(items) => items,
        _ => std::slice::from_ref(node),
    }
}

/// The sources that a name stands for, each with the name of its input; none if their stages are disabled.
fn of_name(
    named: &Named<'_>,
    port: &Port<'_>,
    node: &Node,
    expanded: &Expanded<'_>,
    reader: &mut Reader<'_>,
) -> Option<Vec<(String, Source)>> {
    let input = |item: &str| match port.many {
        true => format!("{}[{item}]", port.name),
        false => port.name.to_owned(),
    };
    let label = |stage: usize| expanded.drafts[stage].label.clone().unwrap_or_default();
    let of_stage = |item: &str, stage: usize, output: &str, sub: Option<&str>| {
        let (port, sub) = (output.to_owned(), sub.map(str::to_owned));
        let source = Source::Port { stage, port, sub, origin: node.origin.clone() };
        expanded.drafts[stage].off.is_none().then(|| (input(item), source))
    };
    match named {
        Named::Nothing | Named::NotEnabled { .. } => Some(Vec::new()),
        Named::Path(path) => {
            let name = Path::new(path).file_stem().unwrap_or_default().to_string_lossy();
            let path = reader.existing(Path::new(path), &node.origin)?;
            Some(vec![(input(&name), Source::File(path))])
        }
        Named::Port { stage, port, sub } => {
            Some(of_stage(&label(*stage), *stage, port, *sub).into_iter().collect())
        }
        Named::Many { items, port: output, sub } if port.many => {
            Some(items.iter().filter_map(|(item, stage)| of_stage(item, *stage, output, *sub)).collect())
        }
        Named::Many { .. } => {
            let message = format!("the input `{}` takes one source, found all items of a stage", port.name);
            reader.problems.at(&node.origin, message).help("name one item in place of `[*]`");
            None
        }
    }
}

/// Reports an input whose stages are all disabled, and where.
fn all_off(
    port: &Port<'_>,
    entry: &Entry,
    read: &[Named<'_>],
    expanded: &Expanded<'_>,
    reader: &mut Reader<'_>,
) {
    let places = read.iter().filter_map(|named| {
        let stage = match named {
            Named::Port { stage, .. } => *stage,
            Named::Many { items, .. } => items.first()?.1,
            _ => return None,
        };
        let draft = &expanded.drafts[stage];
        Some((draft.id(), reader.sources.position(draft.off.as_ref()?)))
    });
    let places: Vec<(String, String)> = places.collect();
    let message = match places.as_slice() {
        [] => "the stages of this input repeat over empty lists: they have no items".to_owned(),
        [(id, place)] => format!("the stage `{id}` is disabled at {place}"),
        several => {
            let names: Vec<String> = several.iter().map(|(id, place)| format!("`{id}` at {place}")).collect();
            format!("all of these stages are disabled: {}", names.join(", "))
        }
    };
    let problem = reader.problems.at(&entry.node.origin, message);
    if !port.required {
        problem.help(format!("add `\"\"` as the last alternative to leave `{}` open", port.name));
    }
}

/// Reads `./a/path`, `stage.port/below`, or the empty text.
fn read_name<'t>(
    node: &'t Node,
    draft: &Draft<'_>,
    expanded: &Expanded<'_>,
    reader: &mut Reader<'_>,
) -> Option<Named<'t>> {
    let origin = &node.origin;
    let Some(text) = node.as_text() else {
        let message = format!("expected `stage.port` or a path, found {}", node.type_name());
        reader.problems.at(origin, message);
        return None;
    };
    if text.is_empty() {
        return Some(Named::Nothing);
    }
    if ["./", "../", "/"].iter().any(|start| text.starts_with(start)) {
        return Some(Named::Path(text));
    }
    let after_label = text.find(']').map_or(0, |end| end + 1);
    let Some(dot) = text[after_label..].find('.').map(|dot| dot + after_label) else {
        let problem = reader.problems.at(origin, format!("`{text}` is not `stage.port` or a path"));
        match expanded.first(text).or_else(|| expanded.by_id(text).map(|index| &expanded.drafts[index])) {
            Some(Draft { outputs, .. }) if !outputs.is_empty() => {
                problem.help(format!("did you mean `{text}.{}`?", outputs[0].name))
            }
            _ if text.matches('/').count() == 1 => problem.help(format!(
                "a path starts with `./`, `../` or `/`; a repository of the Hugging Face Hub is read by a `download` stage, as \
                 `hf://{text}`"
            )),
            _ => problem.help("a path starts with `./`, `../` or `/`"),
        }
        return None;
    };
    let (name, rest) = (&text[..dot], &text[dot + 1..]);
    let (port, sub) = rest.split_once('/').map_or((rest, None), |(port, sub)| (port, Some(sub)));
    let base = name.strip_suffix(EVERY);
    if base.is_some_and(|base| expanded.is_empty(base)) {
        return Some(Named::Many { items: Vec::new(), port, sub });
    }
    let many = base.map(|base| expanded.all_items(base, draft)).filter(|items| !items.is_empty());
    let stage = match &many {
        Some(items) => items[0].1,
        None => find_stage(base.unwrap_or(name), origin, draft, expanded, reader)?,
    };
    let outputs = &expanded.drafts[stage].outputs;
    let output_named = expanded.drafts[stage].kind.outputs.iter().find(|output| output.name == port);
    if !outputs.iter().any(|known| known.name == port) {
        if let Some(output) = output_named.filter(|output| output.enabled_by.is_some()) {
            return Some(Named::NotEnabled { stage, output });
        }
        let message = format!("the stage `{name}` has no output `{port}`");
        let problem = reader.problems.at(origin, message);
        match expanded.drafts[stage].kind.new_name(port) {
            Some(new) => problem.help(format!("it is named `{new}` now")),
            None => problem.suggest(port, outputs.iter().map(|known| known.name.as_str())),
        }
        return None;
    }
    let sub = sub.map(|sub| sub.trim_matches('/')).filter(|sub| !sub.is_empty());
    Some(match many {
        Some(items) => Named::Many { items, port, sub },
        None => Named::Port { stage, port, sub },
    })
}

/// A stage by its full name, or the same item of another repeated stage.
fn find_stage(
    name: &str,
    origin: &Origin,
    from: &Draft<'_>,
    expanded: &Expanded<'_>,
    reader: &mut Reader<'_>,
) -> Option<usize> {
    if let Some(found) = expanded.by_id(name).or_else(|| expanded.same_item(name, from)) {
        return Some(found);
    }
    if expanded.faulty.contains(name.split('[').next().unwrap_or_default()) {
        return None;
    }
    if expanded.is_empty(name) {
        reader.problems.at(origin, format!("the stage `{name}` repeats over an empty list: it has no items"));
    } else if let Some(repeated) = expanded.first(name) {
        let message =
            format!("the stage `{name}` is repeated, and `{}` is not over the same items", from.base);
        reader
            .problems
            .at(origin, message)
            .help(format!("name one of its items, such as `{}`", repeated.id()));
    } else {
        let id = |draft: &Draft<'_>| if name.contains('[') { draft.id() } else { draft.base.to_owned() };
        let names: Vec<String> = expanded.drafts.iter().map(id).collect();
        let problem = reader.problems.at(origin, format!("unknown stage `{name}`"));
        problem.suggest(name, names.iter().map(String::as_str));
    }
    None
}
