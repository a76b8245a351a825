//! JSON Schema of pipeline files and configs, for editors and other programs.
//!
//! A schema cannot resolve references, so it accepts `${…}` in place of any value; the loader checks the value behind
//! it.

use serde_json::{Map, Value as Json, json};

use super::RunTable;
use super::cluster_table::ClusterTable;
use crate::config::param::{self, PLAIN_NAME, Param};
use crate::kind::{Input, KindInfo, Registry};

const DRAFT: &str = "https://json-schema.org/draft/2020-12/schema";

/// The keys of a pipeline file: name, meaning, schema.
fn file_keys(registry: &Registry) -> Vec<(&'static str, &'static str, Json)> {
    let defaults = registry.iter().map(|kind| {
        let mut params = param::table(&kind.keys(), &[]);
        // The stage can give a key that the defaults omit.
        params.as_object_mut().and_then(|params| params.remove("required"));
        (kind.name.to_owned(), params)
    });
    vec![
        (
            "config",
            "the config that `${…}` refers to, a path relative to this file",
            json!({ "type": "string" }),
        ),
        (
            "include",
            "files whose stages, defaults and declared variables are part of this pipeline, paths relative to this file",
            json!({ "type": "array", "items": { "type": "string" } }),
        ),
        (
            "env",
            "declared environment variables: their values are hashed where `${env:NAME}` is used",
            json!({ "type": "array", "items": { "type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]*$" } }),
        ),
        (
            "defaults",
            "parameters by kind, for every stage of the kind that does not give its own",
            json!({ "type": "object", "properties": defaults.collect::<Map<_, _>>(), "additionalProperties": false }),
        ),
        (
            "stages",
            "the stages by name",
            json!({
                "type": "object",
                "propertyNames": { "pattern": "^[^\\[\\]./]+$" },
                "additionalProperties": { "$ref": "#/$defs/stage" },
            }),
        ),
    ]
}

/// The keys of a stage that are common to all kinds.
fn stage_keys() -> Vec<(&'static str, &'static str, Json)> {
    let condition = json!({ "anyOf": [
        { "type": "boolean" },
        { "type": "string", "pattern": "^(not )?\\s*\\$\\{[^{}$]+\\}\\s*$" },
    ] });
    let conditions = json!({ "anyOf": [condition, { "type": "array", "minItems": 1, "items": condition }] });
    let list = json!({ "anyOf": [{ "$ref": "#/$defs/reference" }, { "type": "array" }] });
    let each = json!({ "type": "object", "minProperties": 1, "additionalProperties": list });
    vec![
        (
            "when",
            "whether the stage is part of the pipeline: true, false, `${…}`, `not ${…}`, or an array of alternatives",
            conditions,
        ),
        (
            "each",
            "repeats the stage over a list, or over each combination of several: `{ item = \"${a.list}\" }`",
            each,
        ),
    ]
}

/// The schema of pipeline files with these kinds.
pub fn pipeline(registry: &Registry) -> Json {
    let source = json!({ "type": "string" });
    let mut definitions = properties(stage_keys());
    definitions.insert(
        "reference".into(),
        json!({
            "description": "a value of the config: `${a.key}`",
            "type": "string",
            "pattern": "^\\$\\{[^{}$]+\\}$",
        }),
    );
    definitions.insert(
        "source".into(),
        json!({
            "description": "an output, `stage.port` or a path below it; a file or folder, `./…`, `../…` or `/…`; \
                            or an array of them, of which the first enabled one is used; where an input takes many, all are, and an \
                            array in the array has alternatives",
            "anyOf": [
                source,
                { "type": "array", "minItems": 1, "items": { "anyOf": [source, { "type": "array", "minItems": 1, "items": source }] } },
            ],
        }),
    );
    let stages: Vec<Json> = registry.iter().map(|kind| stage(kind)).collect();
    definitions.insert("stage".into(), json!({ "oneOf": stages }));
    json!({
        "$schema": DRAFT,
        "title": "a pipeline of attrflow",
        "type": "object",
        "properties": properties(file_keys(registry)),
        "additionalProperties": false,
        "$defs": definitions,
    })
}

/// Takes references to the config out of a schema: the loader does not replace those in the tables of settings.
fn without_references(schema: &mut Json) {
    if let Some(keys) = schema.as_object_mut() {
        if let Some(Json::Array(forms)) = keys.remove("anyOf")
            && let Some(Json::Object(form)) = forms.into_iter().next()
        {
            keys.extend(form);
        }
        keys.values_mut().for_each(without_references);
    }
}

/// The schema of configs: the tables of run settings and of clusters, and any other keys.
pub fn config() -> Json {
    let mut run = param::table(&RunTable::keys(), &[]);
    run["description"] = json!("run settings: they are not hashed, and the command line takes precedence");
    let mut cluster = param::table(&ClusterTable::keys(), &[]);
    cluster["description"] = json!("workers on a cluster: nothing here is hashed");
    [&mut run, &mut cluster].into_iter().for_each(without_references);
    json!({
        "$schema": DRAFT,
        "title": "a config of attrflow's pipelines",
        "type": "object",
        "properties": { "run": run, "cluster": cluster },
    })
}

/// A stage of one kind.
fn stage(kind: &KindInfo) -> Json {
    let defined =
        |(key, ..): (&str, &str, Json)| (key.to_owned(), json!({ "$ref": format!("#/$defs/{key}") }));
    let mut keys: Map<String, Json> = stage_keys().into_iter().map(defined).collect();
    let given: Vec<&str> = kind.inherits.iter().map(|inherit| inherit.param).collect();
    let params = param::table(&kind.keys(), &given);
    let inputs = inputs(kind);
    let mut required = vec!["kind"];
    required.extend(params.get("required").map(|_| "params"));
    required.extend(inputs.get("required").map(|_| "inputs"));
    keys.insert("kind".into(), json!({ "const": kind.name, "description": kind.summary }));
    keys.insert("params".into(), param::or_reference(params));
    keys.insert("inputs".into(), inputs);
    json!({
        "title": kind.name,
        "description": kind.summary,
        "type": "object",
        "properties": keys,
        "required": required,
        "additionalProperties": false,
    })
}

fn inputs(kind: &KindInfo) -> Json {
    if kind.dynamic_inputs {
        return json!({
            "description": format!("files and folders under names of your choice: {PLAIN_NAME}"),
            "type": "object",
            "propertyNames": { "pattern": "^[A-Za-z0-9_][A-Za-z0-9_.-]*$" },
            "additionalProperties": { "$ref": "#/$defs/source" },
        });
    }
    let port =
        |port: &Input| (port.name.to_owned(), json!({ "description": port.doc, "$ref": "#/$defs/source" }));
    let required: Vec<&str> = kind.inputs.iter().filter(|port| port.required).map(|port| port.name).collect();
    let properties: Map<String, Json> = kind.inputs.iter().map(port).collect();
    let mut inputs = json!({ "type": "object", "properties": properties, "additionalProperties": false });
    if !required.is_empty() {
        inputs["required"] = json!(required);
    }
    inputs
}

fn properties(keys: Vec<(&str, &str, Json)>) -> Map<String, Json> {
    let described = keys.into_iter().map(|(key, doc, mut schema)| {
        schema["description"] = json!(doc);
        (key.to_owned(), schema)
    });
    described.collect()
}
