//! The parameter that selects weights.

use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use crate::method::selection::Selection;
use attrflow_engine::config::param::{Param, Reader, wrong_choice};
use attrflow_engine::config::tree::{Node, Value};

/// A named group of weights, or a list of texts to match in their names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Select(pub Selection);

const NAMED: [(&str, Selection); 4] = [
    ("cross-attn-kv", Selection::CrossAttnKv),
    ("cross-attn", Selection::CrossAttn),
    ("attn", Selection::Attn),
    ("all", Selection::All),
];

impl Param for Select {
    fn expected() -> String {
        "one of `cross-attn-kv`, `cross-attn`, `attn`, `all`, or an array of texts to match in weight names"
            .into()
    }

    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        if matches!(node.value, Value::List(_)) {
            return Vec::read(node, reader).map(|patterns| Self(Selection::Patterns(patterns)));
        }
        let found = NAMED.iter().find(|(name, _)| node.as_text() == Some(name));
        if found.is_none() {
            wrong_choice(node, &NAMED.map(|(name, _)| name), reader);
        }
        found.map(|(_, selection)| Self(selection.clone()))
    }

    fn schema() -> Json {
        let names = NAMED.map(|(name, _)| name);
        json!({ "anyOf": [{ "enum": names }, Vec::<String>::schema()] })
    }
}
