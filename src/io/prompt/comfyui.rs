//! The graph that ComfyUI writes: the text is followed from the samplers to the nodes that hold it.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::path::Path;

use serde_json::{Map, Value};

use super::chunks::{Text, damaged};
use super::error::{Candidate, PromptError};
use super::{Found, Source};

/// The most links from a sampler to a text.
const LINKS: usize = 16;

/// The inputs in which nodes that encode texts have them: of one encoder, of SDXL's two, of SD3's and Flux's.
const TEXTS: [&str; 6] = ["text", "text_g", "text_l", "clip_l", "clip_g", "t5xxl"];

/// Reads a graph, `None` if the text is none, or one that makes no picture of a text.
pub(super) fn read(text: &Text, path: &Path) -> Result<Option<Found>, PromptError> {
    if !text.value.trim_start().starts_with('{') {
        return Ok(None);
    }
    let json: Value = serde_json::from_str(&finite(&text.value))
        .map_err(|error| damaged(path, &*text.part, text.at, format!("its graph is not JSON: {error}")))?;
    let Some(nodes) = json.as_object().filter(|nodes| nodes.values().any(|node| class(node).is_some()))
    else {
        return Ok(None);
    };
    let graph = Graph { nodes };
    let samplers = graph.samplers();
    if samplers.is_empty() {
        let candidates = distinct(graph.all_texts());
        return match candidates.is_empty() {
            true => Ok(None),
            false => Err(PromptError::Several { path: path.into(), candidates }),
        };
    }
    let positive = graph.follow(&samplers, Side::Positive);
    if let Some(end) = positive.ends.into_iter().next() {
        return Err(end.error(path));
    }
    let mut candidates = distinct(positive.texts);
    if candidates.len() > 1 {
        return Err(PromptError::Several { path: path.into(), candidates });
    }
    let Some(prompt) = candidates.pop() else {
        let reason = "its links go in a circle".to_owned();
        return Err(PromptError::NoText { path: path.into(), reason });
    };
    let negative = graph.follow(&samplers, Side::Negative);
    let mut negatives = distinct(negative.texts);
    let known = negative.ends.is_empty() && negatives.len() == 1;
    let negative = negatives.pop().filter(|text| known && !text.text.trim().is_empty());
    Ok(Some(Found {
        source: Source::ComfyUi,
        prompt: prompt.text.trim().to_owned(),
        negative: negative.map(|candidate| candidate.text.trim().to_owned()),
        settings: graph.settings(&samplers),
        warnings: Vec::new(),
    }))
}

/// JSON without `NaN` and `Infinity`, which Python writes: ComfyUI's `is_changed` may be one.
fn finite(json: &str) -> Cow<'_, str> {
    const WORDS: [&str; 3] = ["-Infinity", "Infinity", "NaN"];
    if !WORDS.iter().any(|word| json.contains(word)) {
        return Cow::Borrowed(json);
    }
    let (mut out, mut rest, mut quoted) = (String::with_capacity(json.len()), json, false);
    while let Some(first) = rest.chars().next() {
        let word = WORDS.iter().find(|word| !quoted && rest.starts_with(**word));
        let length = match (word, first) {
            (Some(word), _) => {
                out.push_str("null");
                rest = &rest[word.len()..];
                continue;
            }
            (None, '\\') => 1 + rest[1..].chars().next().map_or(0, char::len_utf8),
            (None, _) => first.len_utf8(),
        };
        quoted ^= first == '"';
        out.push_str(&rest[..length]);
        rest = &rest[length..];
    }
    Cow::Owned(out)
}

fn class(node: &Value) -> Option<&str> {
    node.get("class_type")?.as_str()
}

/// Whether the name of a node's class has this in it, in either case.
fn is_called(node: &Value, part: &str) -> bool {
    class(node).is_some_and(|class| class.to_lowercase().contains(part))
}

/// The value of an input.
fn input<'a>(node: &'a Value, name: &str) -> Option<&'a Value> {
    node.get("inputs")?.get(name)
}

fn inputs(node: &Value) -> impl Iterator<Item = (&String, &Value)> {
    node.get("inputs").and_then(Value::as_object).into_iter().flatten()
}

/// An output of a node: a link is written as `["6", 0]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Output {
    node: String,
    index: u64,
}

fn link(value: &Value) -> Option<Output> {
    let [node, index] = value.as_array()?.as_slice() else { return None };
    let node = match node {
        Value::String(node) => node.clone(),
        Value::Number(node) => node.to_string(),
        _ => return None,
    };
    Some(Output { node, index: index.as_u64()? })
}

/// Orders nodes by number, as ids are numbers, or several with colons.
fn by_number(id: &str) -> (Vec<u64>, &str) {
    (id.split(':').map(|part| part.parse().unwrap_or(u64::MAX)).collect(), id)
}

/// The candidates with different texts, the first of each.
fn distinct(mut candidates: Vec<Candidate>) -> Vec<Candidate> {
    let mut seen = HashSet::new();
    candidates.retain(|candidate| seen.insert(candidate.text.clone()));
    candidates
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Side {
    Positive,
    Negative,
}

/// What a link is expected to give.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Conditioning,
    Text,
}

/// Where a search ended without a text.
enum End {
    Computed { node: String, class: String },
    Far { node: String },
    Missing { node: String },
}

impl End {
    fn error(self, path: &Path) -> PromptError {
        let path = path.into();
        let reason = match self {
            Self::Computed { node, class } => return PromptError::Computed { path, node, class },
            Self::Far { node } => format!("node {node} is more than {LINKS} links from the sampler"),
            Self::Missing { node } => format!("node {node} is linked to, and is not there"),
        };
        PromptError::NoText { path, reason }
    }
}

/// What a search found.
#[derive(Default)]
struct Traced {
    texts: Vec<Candidate>,
    ends: Vec<End>,
}

struct Graph<'a> {
    nodes: &'a Map<String, Value>,
}

impl Graph<'_> {
    fn sorted(&self) -> Vec<(&String, &Value)> {
        let mut nodes: Vec<_> = self.nodes.iter().collect();
        nodes.sort_by_cached_key(|(id, _)| by_number(id));
        nodes
    }

    /// The nodes that sample: they take a model and a conditioning.
    fn samplers(&self) -> Vec<&Value> {
        let linked = |node: &Value, name: &str| input(node, name).and_then(link).is_some();
        let samples = |node: &&Value| {
            linked(node, "model")
                && (linked(node, "positive") || is_called(node, "guider") && linked(node, "conditioning"))
        };
        self.sorted().into_iter().map(|(_, node)| node).filter(samples).collect()
    }

    /// The texts of all nodes that encode texts.
    fn all_texts(&self) -> Vec<Candidate> {
        let encodes = |(_, node): &(&String, &Value)| is_called(node, "encode");
        let encoders = self.sorted().into_iter().filter(encodes);
        let text = |(id, node), name| Some(candidate(id, node, input(node, name)?.as_str()?));
        encoders
            .flat_map(|(id, node)| TEXTS.into_iter().filter_map(move |name| text((id, node), name)))
            .collect()
    }

    /// Follows the links of all samplers to texts, nearest first.
    fn follow(&self, samplers: &[&Value], side: Side) -> Traced {
        let names: &[&str] = match side {
            Side::Positive => &["positive", "conditioning"],
            Side::Negative => &["negative"],
        };
        let first = |node: &&Value| names.iter().find_map(|name| link(input(node, name)?));
        let mut traced = Traced::default();
        let mut next: VecDeque<(Output, Kind, usize)> =
            samplers.iter().filter_map(first).map(|output| (output, Kind::Conditioning, 1)).collect();
        let mut seen = HashSet::new();
        while let Some((output, kind, links)) = next.pop_front() {
            if !seen.insert((output.clone(), kind)) {
                continue;
            }
            let id = output.node.clone();
            let Some(node) = self.nodes.get(&id) else {
                traced.ends.push(End::Missing { node: id });
                continue;
            };
            if links > LINKS {
                traced.ends.push(End::Far { node: id });
                continue;
            }
            let (before, mut onward) = (traced.texts.len(), Vec::new());
            match kind {
                Kind::Conditioning => conditioning(node, &output, side, &mut traced.texts, &mut onward),
                Kind::Text => text(node, &output, &mut traced.texts, &mut onward),
            }
            if traced.texts.len() == before && onward.is_empty() {
                let class = class(node).unwrap_or("no class").to_owned();
                traced.ends.push(End::Computed { node: id, class });
            }
            next.extend(onward.into_iter().map(|(output, kind)| (output, kind, links + 1)));
        }
        traced
    }

    /// What the samplers, loaders and empty latents say, where all say the same.
    fn settings(&self, samplers: &[&Value]) -> BTreeMap<String, String> {
        let written = |value: &Value| match value {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        };
        let mut settings = BTreeMap::new();
        let mut put = |key: &str, mut values: BTreeSet<String>| {
            let value = values.pop_first().filter(|_| values.is_empty());
            settings.extend(value.map(|value| (key.to_owned(), value)));
        };
        for (key, names) in [
            ("Steps", &["steps"][..]),
            ("Sampler", &["sampler_name"]),
            ("Schedule type", &["scheduler"]),
            ("CFG scale", &["cfg"]),
            ("Seed", &["seed", "noise_seed"]),
        ] {
            let values = samplers.iter().flat_map(|node| names.iter().filter_map(|name| input(node, name)));
            put(key, values.filter_map(written).collect());
        }
        let loaded = self.nodes.values().filter_map(|node| input(node, "ckpt_name"));
        put("Model", loaded.filter_map(written).collect());
        let sizes = self.nodes.values().filter(|node| is_called(node, "empty") && is_called(node, "latent"));
        let size =
            |node| Some(format!("{}x{}", input(node, "width")?.as_u64()?, input(node, "height")?.as_u64()?));
        put("Size", sizes.filter_map(size).collect());
        settings
    }
}

fn candidate(id: &str, node: &Value, text: &str) -> Candidate {
    let place = format!("node {id} ({})", class(node).unwrap_or("no class"));
    Candidate { place, text: text.to_owned() }
}

type Onward = Vec<(Output, Kind)>;

/// The texts of a node that gives a conditioning, or links to follow. If neither, the node computes the text.
fn conditioning(node: &Value, output: &Output, side: Side, texts: &mut Vec<Candidate>, onward: &mut Onward) {
    let links = |name: &str| input(node, name).and_then(link);
    // What is set to zero says nothing of a text.
    if is_called(node, "zeroout") {
        return;
    }
    let written = TEXTS.into_iter().filter_map(|name| input(node, name));
    for text in written {
        // Other nodes may add their text to a conditioning, or do anything with it.
        if !is_called(node, "encode") {
            return;
        }
        texts.extend(text.as_str().map(|text| candidate(&output.node, node, text)));
        onward.extend(link(text).map(|next| (next, Kind::Text)));
    }
    // Control nets and the like take both sides, and give the positive one first.
    let both = match (side, output.index) {
        (Side::Positive, 0) => links("positive"),
        (Side::Negative, 1) => links("negative"),
        _ => None,
    };
    if links("positive").is_some() || links("negative").is_some() {
        onward.extend(both.map(|next| (next, Kind::Conditioning)));
        return;
    }
    let named = inputs(node).filter(|(name, _)| name.starts_with("conditioning"));
    onward.extend(named.filter_map(|(_, value)| Some((link(value)?, Kind::Conditioning))));
    reroute(node, Kind::Conditioning, onward);
}

/// The text that a node holds, or the link to it. If neither, the node computes the text.
fn text(node: &Value, output: &Output, texts: &mut Vec<Candidate>, onward: &mut Onward) {
    if matches!(class(node), Some("PrimitiveString" | "PrimitiveStringMultiline"))
        && let Some(value) = input(node, "value")
    {
        texts.extend(value.as_str().map(|text| candidate(&output.node, node, text)));
        onward.extend(link(value).map(|next| (next, Kind::Text)));
    }
    reroute(node, Kind::Text, onward);
}

/// Follows the only link of a node that just passes it on.
fn reroute(node: &Value, kind: Kind, onward: &mut Onward) {
    if is_called(node, "reroute") {
        let mut all = inputs(node).filter_map(|(_, value)| link(value));
        onward.extend(all.next().filter(|_| all.next().is_none()).map(|next| (next, kind)));
    }
}

#[cfg(test)]
#[path = "comfyui_tests.rs"]
mod tests;
