//! Which parameters a method works on.

use attrflow_engine::config::param::{Param, Reader, wrong_choice};
use attrflow_engine::config::tree::{Node, Value};
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use super::error::MathError;

/// A choice of parameters by their names in the checkpoint.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Selection {
    /// Keys and values of the cross attention: `attn2` with `to_k` or `to_v`.
    CrossAttnKv,
    /// All of the cross attention: `attn2`.
    CrossAttn,
    /// Self and cross attention: `attn`.
    Attn,
    /// Every parameter.
    All,
    /// Names that contain one of these texts.
    #[serde(untagged)]
    Patterns(Vec<String>),
}

impl std::fmt::Display for Selection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&serde_json::to_string(self).unwrap_or_default())
    }
}

impl Selection {
    /// Whether the parameter of this full name is chosen.
    pub fn matches(&self, name: &str) -> bool {
        match self {
            Selection::CrossAttnKv => {
                name.contains("attn2") && (name.contains("to_k") || name.contains("to_v"))
            }
            Selection::CrossAttn => name.contains("attn2"),
            Selection::Attn => name.contains("attn"),
            Selection::All => true,
            Selection::Patterns(patterns) => patterns.iter().any(|pattern| name.contains(pattern.as_str())),
        }
    }

    /// The chosen ones of `names`.
    ///
    /// # Errors
    /// None is chosen.
    pub fn of<'a>(&self, names: impl IntoIterator<Item = &'a String>) -> Result<Vec<String>, MathError> {
        let chosen: Vec<String> = names.into_iter().filter(|name| self.matches(name)).cloned().collect();
        if chosen.is_empty() {
            return Err(MathError::NothingSelected { selection: self.to_string() });
        }
        Ok(chosen)
    }
}

const NAMED: [(&str, Selection); 4] = [
    ("cross-attn-kv", Selection::CrossAttnKv),
    ("cross-attn", Selection::CrossAttn),
    ("attn", Selection::Attn),
    ("all", Selection::All),
];

impl Param for Selection {
    fn expected() -> String {
        "one of `cross-attn-kv`, `cross-attn`, `attn`, `all`, or an array of texts to match in weight names"
            .into()
    }

    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        if matches!(node.value, Value::List(_)) {
            return Vec::read(node, reader).map(Selection::Patterns);
        }
        let found = NAMED.iter().find(|(name, _)| node.as_text() == Some(name));
        if found.is_none() {
            wrong_choice(node, &NAMED.map(|(name, _)| name), reader);
        }
        found.map(|(_, selection)| selection.clone())
    }

    fn schema() -> Json {
        let names = NAMED.map(|(name, _)| name);
        json!({ "anyOf": [{ "enum": names }, Vec::<String>::schema()] })
    }
}
