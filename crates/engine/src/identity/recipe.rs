//! Recipes: all that is hashed into a fingerprint, and nothing else.
//!
//! | hashed | source |
//! |---|---|
//! | kind and its version | the stage kind |
//! | params with defaults filled in | pipeline, config, `--set` |
//! | input digests: bytes, not upstream recipes; of a unit, of what it reads of them | store |
//! | numerics: libtorch version, device class, determinism | command line |
//! | the unit's span | the stage kind |
//!
//! Not hashed, as [`Recipe`] does not contain them: paths, file times, host, user, GPU index, thread and worker counts,
//! micro batch, log level, cache folder and stage names.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::identity::digest::Digest;

/// Version of the walk below; a change of it makes every fingerprint new.
pub const FORMAT: u32 = 2;
const CONTEXT: &str = "attrflow recipe fingerprint v1";

/// Everything that can change the bytes of a stage or a unit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The stage kind.
    pub kind: String,
    /// The kind's version.
    pub version: u32,
    /// The parameters that are hashed.
    pub params: Json,
    /// Digests of the inputs, by port.
    pub inputs: BTreeMap<String, Digest>,
    /// How numbers are computed; `None` for a kind without numerics.
    pub numerics: Option<Numerics>,
    /// The unit's range; `None` for the whole stage.
    pub unit: Option<Json>,
}

/// What of the machine and its libraries may change a number.
///
/// Manifests of earlier versions have a `precision` too, which was always `fp32` and is ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Numerics {
    /// Version of libtorch, such as `2.11.0+cu130`.
    pub libtorch: String,
    /// `cpu` or `cuda`.
    pub device: String,
    /// Whether only algorithms that repeat bit for bit are allowed.
    pub deterministic: bool,
}

/// Receives a recipe's fields in their fixed order.
trait Sink {
    fn open(&mut self, key: &str, tag: u8, len: usize);
    fn leaf(&mut self, key: &str, leaf: Leaf<'_>);
    fn close(&mut self);
}

enum Leaf<'a> {
    Null,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(&'a str),
    Digest(&'a Digest),
}

impl Recipe {
    /// The hash under which this recipe's result is cached.
    pub fn fingerprint(&self) -> Digest {
        let mut sink = HashSink(blake3::Hasher::new_derive_key(CONTEXT));
        self.walk(&mut sink);
        sink.0.finalize().into()
    }

    /// The fields as dotted names and values, in hash order.
    pub fn fields(&self) -> Vec<(String, String)> {
        let mut sink = ExplainSink::default();
        self.walk(&mut sink);
        sink.fields
    }

    /// Walks all fields. The destructuring makes a new field a compile error until it is placed here.
    fn walk(&self, sink: &mut dyn Sink) {
        let Self { kind, version, params, inputs, numerics, unit } = self;
        sink.leaf("format", Leaf::Int(FORMAT.into()));
        sink.leaf("kind", Leaf::Text(kind));
        sink.leaf("version", Leaf::Int((*version).into()));
        walk_json("params", params, sink);
        sink.open("inputs", b'{', inputs.len());
        for (port, digest) in inputs {
            sink.leaf(port, Leaf::Digest(digest));
        }
        sink.close();
        match numerics {
            None => sink.leaf("numerics", Leaf::Null),
            Some(Numerics { libtorch, device, deterministic }) => {
                sink.open("numerics", b'{', 3);
                sink.leaf("libtorch", Leaf::Text(libtorch));
                sink.leaf("device", Leaf::Text(device));
                sink.leaf("deterministic", Leaf::Bool(*deterministic));
                sink.close();
            }
        }
        match unit {
            None => sink.leaf("unit", Leaf::Null),
            Some(unit) => walk_json("unit", unit, sink),
        }
    }
}

/// `serde_json` maps are sorted by key, so the order is unique.
fn walk_json(key: &str, value: &Json, sink: &mut dyn Sink) {
    match value {
        Json::Null => sink.leaf(key, Leaf::Null),
        Json::Bool(value) => sink.leaf(key, Leaf::Bool(*value)),
        Json::Number(value) => match value.as_i64().map(i128::from).or(value.as_u64().map(i128::from)) {
            Some(value) => sink.leaf(key, Leaf::Int(value)),
            None => sink.leaf(key, Leaf::Float(value.as_f64().unwrap_or(f64::NAN))),
        },
        Json::String(value) => sink.leaf(key, Leaf::Text(value)),
        Json::Array(items) => {
            sink.open(key, b'[', items.len());
            for (index, item) in items.iter().enumerate() {
                walk_json(&index.to_string(), item, sink);
            }
            sink.close();
        }
        Json::Object(map) => {
            sink.open(key, b'{', map.len());
            for (key, item) in map {
                walk_json(key, item, sink);
            }
            sink.close();
        }
    }
}

/// Hashes every field with a tag and a length, so that no two recipes share an encoding.
struct HashSink(blake3::Hasher);

impl HashSink {
    fn put(&mut self, tag: u8, bytes: &[u8]) {
        self.0.update(&[tag]);
        self.0.update(&(bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }
}

impl Sink for HashSink {
    fn open(&mut self, key: &str, tag: u8, len: usize) {
        self.put(b'k', key.as_bytes());
        self.put(tag, &(len as u64).to_le_bytes());
    }
    fn leaf(&mut self, key: &str, leaf: Leaf<'_>) {
        self.put(b'k', key.as_bytes());
        match leaf {
            Leaf::Null => self.put(b'n', &[]),
            Leaf::Bool(value) => self.put(b'b', &[value.into()]),
            Leaf::Int(value) => self.put(b'i', &value.to_le_bytes()),
            Leaf::Float(value) => self.put(b'f', &value.to_bits().to_le_bytes()),
            Leaf::Text(value) => self.put(b't', value.as_bytes()),
            Leaf::Digest(value) => self.put(b'd', &value.0),
        }
    }
    fn close(&mut self) {
        self.0.update(b"}");
    }
}

/// A key of a table as written in a field's dotted name.
pub fn key_name(key: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let plain = key.chars().all(bare) && !key.chars().all(|c| c.is_ascii_digit());
    if plain { key.to_owned() } else { format!("{key:?}") }
}

/// The fields of parameters as a recipe names them: `params.loss.seed`.
pub fn param_fields(params: &Json) -> Vec<(String, String)> {
    let mut sink = ExplainSink::default();
    walk_json("params", params, &mut sink);
    sink.fields
}

/// Writes every field as a dotted name and a value for people; values with different hashes get different texts.
#[derive(Default)]
struct ExplainSink {
    path: Vec<String>,
    /// Whether the innermost level, and those around it, are lists.
    lists: Vec<bool>,
    fields: Vec<(String, String)>,
}

impl ExplainSink {
    /// An index as it is, a key as in TOML; a key of digits alone is quoted, to differ from an index.
    fn name(&self, key: &str) -> String {
        let in_list = self.lists.last().is_some_and(|list| *list);
        if in_list { key.to_owned() } else { key_name(key) }
    }

    fn push(&mut self, key: &str, value: String) {
        let mut name = self.path.join(".");
        if !name.is_empty() {
            name.push('.');
        }
        name += &self.name(key);
        self.fields.push((name, value));
    }
}

impl Sink for ExplainSink {
    fn open(&mut self, key: &str, tag: u8, len: usize) {
        if len == 0 {
            self.push(key, if tag == b'[' { "[]".into() } else { "{}".into() });
        }
        self.path.push(self.name(key));
        self.lists.push(tag == b'[');
    }
    fn leaf(&mut self, key: &str, leaf: Leaf<'_>) {
        let value = match leaf {
            Leaf::Null => "none".into(),
            Leaf::Bool(value) => value.to_string(),
            Leaf::Int(value) => value.to_string(),
            // `1.0` and not `1`, which is an integer.
            Leaf::Float(value) => format!("{value:?}"),
            Leaf::Text(value) => format!("{value:?}"),
            Leaf::Digest(value) => value.short(),
        };
        self.push(key, value);
    }
    fn close(&mut self) {
        self.path.pop();
        self.lists.pop();
    }
}

/// One field that differs between two recipes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The dotted name: `params.loss.time_samples`.
    pub field: String,
    /// The value before, `None` where the field is new.
    pub old: Option<String>,
    /// The value now, `None` where the field is gone.
    pub new: Option<String>,
    /// What an input reads, where its bytes changed: `unlearn[apple].weights`, or a path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reads: Option<String>,
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(reads) = &self.reads {
            return write!(f, "{reads} changed");
        }
        let show = |value: &Option<String>| value.clone().unwrap_or_else(|| "absent".into());
        write!(f, "{}: {} -> {}", self.field, show(&self.old), show(&self.new))
    }
}

/// The fields that differ between two recipes, in the order of the walk.
pub fn changes(old: &Recipe, new: &Recipe) -> Vec<Change> {
    let (old, new) = (old.fields(), new.fields());
    let table = |fields: &[(String, String)]| fields.iter().cloned().collect::<HashMap<_, _>>();
    let (before, now) = (table(&old), table(&new));
    let gone = old.iter().map(|(name, _)| name).filter(|name| !now.contains_key(*name));
    let names = new.iter().map(|(name, _)| name).chain(gone);
    // Inputs that were added or removed already show whether there were none.
    names
        .filter(|name| *name != "inputs" && before.get(*name) != now.get(*name))
        .map(|name| Change {
            field: name.clone(),
            old: before.get(name).cloned(),
            new: now.get(name).cloned(),
            reads: None,
        })
        .collect()
}
