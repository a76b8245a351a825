//! Which parameters a method works on.

use attrflow_engine::config::param::{Param, Reader, wrong_choice};
use attrflow_engine::config::tree::{Node, Value};
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use super::error::MathError;
use crate::models::lora::Adapters;

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
    /// The maps of low rank of a LoRA.
    Lora,
    /// Those of the keys and values of the cross attention.
    LoraKv,
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
            Selection::Lora => name.contains(ADAPTER),
            Selection::LoraKv => name.contains(ADAPTER) && Selection::CrossAttnKv.matches(name),
            Selection::CrossAttn => name.contains("attn2"),
            Selection::Attn => name.contains("attn"),
            Selection::All => true,
            Selection::Patterns(patterns) => patterns.iter().any(|pattern| name.contains(pattern.as_str())),
        }
    }

    /// How a network with a LoRA must hold it to have the chosen parameters.
    pub fn adapters(&self) -> Adapters {
        let layers = match self {
            Selection::Lora | Selection::LoraKv => true,
            Selection::Patterns(patterns) => patterns.iter().any(|pattern| is_adapters(pattern)),
            Selection::CrossAttnKv | Selection::CrossAttn | Selection::Attn | Selection::All => false,
        };
        if layers { Adapters::Layers } else { Adapters::Merged }
    }

    /// A fault where maps of a LoRA are chosen and there is none: for `Stage::check`.
    pub fn check(&self, key: &str, has_lora: bool) -> Vec<(String, String)> {
        if has_lora || self.adapters() == Adapters::Merged {
            return Vec::new();
        }
        vec![(
            key.to_owned(),
            format!("`{key}` chooses {self}, maps of a LoRA, and none is connected to the input `lora`"),
        )]
    }

    /// Whether some of what `other` chooses is not chosen here, whatever the network; texts may match anything.
    pub fn is_short_of(&self, other: &Selection) -> bool {
        let width = |selection: &Selection| match selection {
            Selection::CrossAttnKv | Selection::LoraKv => Some(0),
            Selection::CrossAttn | Selection::Lora => Some(1),
            Selection::Attn => Some(2),
            Selection::All => Some(3),
            Selection::Patterns(_) => None,
        };
        let narrower = width(self).zip(width(other)).is_some_and(|(own, other)| own < other);
        narrower || self.adapters() != other.adapters()
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

/// What the names of a LoRA's parameters have in common: `lora_A`, `lora_B`.
const ADAPTER: &str = ".lora_";

const NAMED: [(&str, Selection); 6] = [
    ("cross-attn-kv", Selection::CrossAttnKv),
    ("cross-attn", Selection::CrossAttn),
    ("attn", Selection::Attn),
    ("all", Selection::All),
    ("lora", Selection::Lora),
    ("lora-kv", Selection::LoraKv),
];

/// Whether a pattern is meant for the maps of a LoRA.
fn is_adapters(pattern: &str) -> bool {
    pattern.contains(&ADAPTER[1..])
}

impl Param for Selection {
    fn expected() -> String {
        let names = NAMED.map(|(name, _)| format!("`{name}`")).join(", ");
        format!("one of {names}, or an array of texts to match in weight names")
    }

    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        if matches!(node.value, Value::List(_)) {
            let patterns = Vec::<String>::read(node, reader)?;
            let maps = patterns.iter().filter(|pattern| is_adapters(pattern)).count();
            if maps > 0 && maps < patterns.len() {
                let message = "texts for maps of a LoRA (`lora_…`) and texts for weights of the network cannot be mixed";
                reader.problems.at(&node.origin, message);
                return None;
            }
            return Some(Selection::Patterns(patterns));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selection_is_short_of_wider_ones_and_of_other_networks() {
        let texts = Selection::Patterns(vec!["to_k".to_owned()]);
        for (one, other, short) in [
            (&Selection::CrossAttnKv, &Selection::CrossAttnKv, false),
            (&Selection::All, &Selection::CrossAttnKv, false),
            (&Selection::CrossAttnKv, &Selection::CrossAttn, true),
            (&Selection::Attn, &Selection::All, true),
            (&Selection::LoraKv, &Selection::Lora, true),
            (&Selection::All, &Selection::Lora, true),
            (&Selection::Lora, &Selection::CrossAttnKv, true),
            (&texts, &Selection::All, false),
            (&Selection::CrossAttnKv, &texts, false),
        ] {
            assert_eq!(one.is_short_of(other), short, "{one} and {other}");
        }
    }
}
