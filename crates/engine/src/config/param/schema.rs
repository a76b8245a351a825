//! Parameters as JSON Schema, for editors and for other programs that check pipelines.

use std::ops::RangeInclusive;

use serde::Serialize;
use serde_json::{Map, Value as Json, json};

use super::{Bounded, Key};

/// A value, or a reference `${…}` to a value of the config.
///
/// [`pipeline::schema`](crate::pipeline::schema) defines `reference`.
pub fn or_reference(schema: Json) -> Json {
    // A string type accepts a reference already.
    if schema["type"] == "string" && schema.get("pattern").is_none() {
        return schema;
    }
    json!({ "anyOf": [schema, { "$ref": "#/$defs/reference" }] })
}

/// The same type with a range.
pub fn bounded<B: Bounded + Serialize>(mut schema: Json, range: &RangeInclusive<B>) -> Json {
    schema["minimum"] = json!(range.start());
    schema["maximum"] = json!(range.end());
    schema
}

/// A table with these keys only; the `given` ones come from elsewhere and are optional.
pub fn table(keys: &[Key], given: &[&str]) -> Json {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for key in keys {
        let mut schema = or_reference(key.schema.clone());
        schema["description"] = json!(key.doc);
        match &key.default {
            None if !given.contains(&key.name) => required.push(key.name),
            None => {}
            Some(default) => match serde_json::from_str(default) {
                Ok(Json::Null) | Err(_) => {}
                Ok(default) => schema["default"] = default,
            },
        }
        properties.insert(key.name.to_owned(), schema);
    }
    let mut schema = json!({ "type": "object", "properties": properties, "additionalProperties": false });
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    schema
}
