//! A run as an in-toto statement: its output files and how they were made.
//!
//! Form: in-toto Attestation Framework, Statement v1, with the predicate of SLSA Provenance v1.

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json, json};

use super::outputs::{Output, sources};
use crate::identity::digest::Digest;
use crate::identity::shared_fs;
use crate::provenance::manifest::{FORMAT, Manifest, StageRecord};

/// The statement that the run of `manifest` produced `outputs`. `sha256` is that of the manifest's file.
pub fn statement(manifest: &Manifest, outputs: &[Output], sha256: &str) -> Json {
    let Manifest { attrflow, pipeline, file, sets, started, numerics, conditions, stages, .. } = manifest;
    let subject: Vec<Json> = outputs.iter().map(subject).collect();
    let params: Map<String, Json> =
        stages.iter().map(|record| (record.stage.clone(), described(record))).collect();
    let name = format!("{started}.json");
    json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": subject,
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": format!("urn:attrflow:manifest:{FORMAT}"),
                "externalParameters": {
                    "pipeline": pipeline, "file": file, "sets": sets, "stages": params,
                },
                "internalParameters": { "numerics": numerics, "conditions": conditions },
                "resolvedDependencies": dependencies(manifest),
            },
            "runDetails": {
                "builder": {
                    "id": format!("urn:attrflow:{}", attrflow.version),
                    "version": { "attrflow": attrflow.version, "commit": attrflow.commit },
                },
                "metadata": {
                    "invocationId": format!("urn:attrflow:run:{pipeline}:{started}"),
                    "startedOn": started,
                    "finishedOn": finished(manifest),
                },
                "byproducts": [{ "name": name, "digest": { "sha256": sha256 } }],
            },
        },
    })
}

/// When a run ended, UTC, RFC 3339; its start if the end is unknown.
pub(super) fn finished(manifest: &Manifest) -> String {
    let Manifest { started, seconds, .. } = manifest;
    let taken = jiff::SignedDuration::try_from_secs_f64(*seconds).unwrap_or_default();
    let ended = started.parse::<jiff::Timestamp>().ok().and_then(|begun| begun.checked_add(taken).ok());
    ended.map_or_else(|| started.clone(), |ended| ended.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string())
}

fn subject(output: &Output) -> Json {
    let mut digest = BTreeMap::from([("blake3", output.digest.to_string())]);
    if let Some(bytes) = &output.bytes {
        digest.insert("sha256", bytes.sha256.clone());
    }
    json!({ "name": output.name, "digest": digest })
}

/// A stage's recipe and inputs.
fn described(record: &StageRecord) -> Json {
    let reads: BTreeMap<&String, String> =
        record.reads.iter().map(|(port, reads)| (port, reads.to_string())).collect();
    json!({
        "kind": record.recipe.as_ref().map(|recipe| &recipe.kind),
        "version": record.recipe.as_ref().map(|recipe| recipe.version),
        "fingerprint": record.fingerprint,
        "outcome": record.outcome,
        "params": record.params,
        "reads": reads,
    })
}

/// The external sources of the run, each once.
fn dependencies(manifest: &Manifest) -> Vec<Json> {
    let dependency = |(path, digest): (String, Digest)| {
        // A folder's digest is that of its listing, not a hash of bytes.
        let algorithm = match shared_fs::metadata(&path) {
            Ok(found) if found.is_file() => "blake3",
            Ok(_) => "attrflow-folder-v1",
            // The path is gone: file or folder is unknown.
            Err(_) => "attrflow-v1",
        };
        json!({ "name": path, "digest": { algorithm: digest } })
    };
    sources(manifest).into_iter().map(dependency).collect()
}
