//! How values of the plain types, and arrays and tables of them, are read.

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json, json};

use super::{Key, Param, Reader, or_reference, wrong_type};
use crate::config::tree::{Node, Value};

macro_rules! whole_number {
    ($($ty:ty),*) => {$(
        impl Param for $ty {
            fn expected() -> String {
                "an integer of at least 0".into()
            }
            fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
                match node.value {
                    Value::Int(value) => match Self::try_from(value) {
                        Ok(value) => return Some(value),
                        Err(_) => {
                            let message = format!("expected an integer from 0 to {}, found {value}", Self::MAX);
                            reader.problems.at(&node.origin, message);
                        }
                    },
                    _ => wrong_type(node, &Self::expected(), reader),
                }
                None
            }
            fn schema() -> Json {
                json!({ "type": "integer", "minimum": 0, "maximum": Self::MAX })
            }
        }
    )*};
}
whole_number!(u32, u64, usize);

impl Param for f64 {
    fn expected() -> String {
        "a number".into()
    }
    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        match node.value {
            Value::Float(value) if value.is_finite() => Some(value),
            Value::Int(value) => Some(value as f64),
            Value::Float(value) => {
                reader.problems.at(&node.origin, format!("expected a finite number, found {value}"));
                None
            }
            _ => {
                wrong_type(node, "a finite number", reader);
                None
            }
        }
    }
    fn schema() -> Json {
        json!({ "type": "number" })
    }
}

impl Param for bool {
    fn expected() -> String {
        "true or false".into()
    }
    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        match node.value {
            Value::Bool(value) => Some(value),
            _ => {
                wrong_type(node, &Self::expected(), reader);
                None
            }
        }
    }
    fn schema() -> Json {
        json!({ "type": "boolean" })
    }
}

impl Param for String {
    fn expected() -> String {
        "a string".into()
    }
    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        match &node.value {
            Value::Text(text) => Some(text.clone()),
            _ => {
                wrong_type(node, &Self::expected(), reader);
                None
            }
        }
    }
    fn schema() -> Json {
        json!({ "type": "string" })
    }
}

impl<P: Param> Param for Option<P> {
    fn expected() -> String {
        P::expected()
    }
    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        P::read(node, reader).map(Some)
    }
    fn faults(&self) -> Vec<String> {
        self.iter().flat_map(P::faults).collect()
    }
    fn schema() -> Json {
        P::schema()
    }
    fn keys() -> Vec<Key> {
        P::keys()
    }
}

impl<P: Param> Param for Vec<P> {
    fn expected() -> String {
        format!("an array, each item {}", P::expected())
    }
    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        let Value::List(items) = &node.value else {
            wrong_type(node, "an array", reader);
            return None;
        };
        let read: Vec<Option<P>> = items.iter().map(|item| P::read(item, reader)).collect();
        read.into_iter().collect()
    }
    fn faults(&self) -> Vec<String> {
        self.iter().flat_map(P::faults).collect()
    }
    fn schema() -> Json {
        json!({ "type": "array", "items": or_reference(P::schema()) })
    }
    fn keys() -> Vec<Key> {
        P::keys()
    }
}

impl<P: Param> Param for BTreeMap<String, P> {
    fn expected() -> String {
        format!("a table, each value {}", P::expected())
    }
    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        let Value::Table(table) = &node.value else {
            wrong_type(node, "a table", reader);
            return None;
        };
        let read = table.entries.iter().map(|(key, entry)| (key.clone(), P::read(&entry.node, reader)));
        let read: Vec<_> = read.collect();
        read.into_iter().map(|(key, value)| Some((key, value?))).collect()
    }
    fn faults(&self) -> Vec<String> {
        self.values().flat_map(P::faults).collect()
    }
    fn schema() -> Json {
        json!({ "type": "object", "additionalProperties": or_reference(P::schema()) })
    }
}

/// Values of any type, by key: only a user's own program interprets them.
impl Param for Map<String, Json> {
    fn expected() -> String {
        "a table of any values".into()
    }
    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        match any(node, reader)? {
            Json::Object(map) => Some(map),
            _ => {
                wrong_type(node, "a table", reader);
                None
            }
        }
    }
    fn schema() -> Json {
        json!({ "type": "object" })
    }
}

/// A value as JSON, which has no infinite numbers.
fn any(node: &Node, reader: &mut Reader<'_>) -> Option<Json> {
    Some(match &node.value {
        Value::Bool(value) => json!(value),
        Value::Int(value) => json!(value),
        Value::Float(_) => json!(f64::read(node, reader)?),
        Value::Text(text) => json!(text),
        Value::List(items) => {
            let items: Vec<_> = items.iter().map(|item| any(item, reader)).collect();
            Json::Array(items.into_iter().collect::<Option<_>>()?)
        }
        Value::Table(table) => {
            let entries = table.entries.iter().map(|(key, entry)| (key.clone(), any(&entry.node, reader)));
            let entries: Vec<_> = entries.collect();
            Json::Object(entries.into_iter().map(|(key, value)| Some((key, value?))).collect::<Option<_>>()?)
        }
    })
}
