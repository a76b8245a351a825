//! The JSON Schema of pipelines and configs, checked with another validator on our own files.

use std::path::{Path, PathBuf};

use jsonschema::Validator;
use serde_json::{Value as Json, json};

use crate::project::{Ran, command};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn schema(arguments: &[&str]) -> String {
    let program = Path::new(env!("CARGO_BIN_EXE_attrflow"));
    let ran = Ran::from(command(program, root()).arg("schema").args(arguments).output().unwrap());
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    ran.out
}

fn reader(arguments: &[&str]) -> Validator {
    let schema: Json = serde_json::from_str(&schema(arguments)).unwrap();
    assert!(jsonschema::meta::is_valid(&schema));
    jsonschema::validator_for(&schema).unwrap()
}

/// The TOML files of a folder and those below it.
fn toml_files(folder: &str) -> Vec<PathBuf> {
    let files = crate::project::files(&root().join(folder)).into_values();
    files.filter(|path| path.extension().is_some_and(|extension| extension == "toml")).collect()
}

fn read(path: &Path) -> Json {
    toml::from_str(&fs_err::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn the_files_beside_the_pipelines_are_up_to_date() {
    let write = "write it again with `attrflow schema --output`";
    let committed = |file: &str| fs_err::read_to_string(root().join(file)).unwrap_or_default();
    assert!(committed("pipelines/schema.json") == schema(&[]), "pipelines/schema.json: {write}");
    assert!(committed("configs/schema.json") == schema(&["--config"]), "configs/schema.json: {write}");
}

#[test]
fn our_own_files_are_valid() {
    for (folder, arguments) in [("pipelines", &[][..]), ("configs", &["--config"])] {
        let reader = reader(arguments);
        let files = toml_files(folder);
        assert!(files.len() >= 2, "{files:?}");
        for file in files {
            let faults: Vec<String> = reader
                .iter_errors(&read(&file))
                .map(|error| format!("{}: {}: {error}", file.display(), error.instance_path()))
                .collect();
            assert_eq!(faults, [""; 0]);
        }
    }
}

/// Changes one value of the demo's pipeline, by its path; a path that is not there is made.
fn with(path: &str, value: Json) -> Json {
    let mut pipeline = read(&root().join("pipelines/demo.toml"));
    let mut part = read(&root().join("pipelines/parts/emoji.toml"));
    let stages = pipeline["stages"].as_object_mut().unwrap();
    stages.append(part["stages"].as_object_mut().unwrap());
    let mut node = &mut pipeline;
    for key in path.split('.') {
        node = &mut node[key];
    }
    *node = value;
    pipeline
}

#[test]
fn invalid_pipelines_fail_the_schema() {
    let reader = reader(&[]);
    let own = json!({ "kind": "command", "params": { "argv": ["true"], "outputs": { "o": "o" } } });
    let good = [
        ("stages.fisher.params", json!({ "epochs": 3, "seed": "${a.b}" })),
        ("stages.fisher.when", json!(["${a.b}", "not ${a.c}"])),
        ("stages.fisher.inputs.latents", json!(["latents.latents", "./a.npy"])),
        ("stages.fisher.params", json!({ "select": ["to_k"] })),
        ("stages.data.params.files", json!("${files}")),
        ("stages.own", own.clone()),
        ("stages.fisher.each", json!({ "a": "${b}", "c": ["d", 3] })),
        ("env", json!(["SEED"])),
        ("defaults", json!({ "fisher": { "epochs": 3 }, "download": {} })),
    ];
    for (path, value) in good {
        assert!(reader.is_valid(&with(path, value.clone())), "{path} = {value}");
    }
    let bad = [
        ("more", json!(1)),
        ("config", json!(1)),
        ("stages", json!([])),
        ("stages.fisher.kind", json!("fishr")),
        ("stages.fisher.more", json!(1)),
        ("stages.fisher.when", json!("maybe")),
        ("stages.fisher.when", json!([])),
        ("stages.fisher.each", json!({})),
        ("stages.fisher.each", json!({ "a": "b" })),
        ("include", json!("parts/emoji.toml")),
        ("env", json!(["A B"])),
        ("defaults", json!({ "fishr": {} })),
        ("defaults", json!({ "fisher": { "epoch": 3 } })),
        ("stages.fisher.inputs.latents", json!(3)),
        ("stages.fisher.inputs.latent", json!("latents.latents")),
        ("stages.fisher.inputs", json!({ "latents": "latents.latents" })),
        ("stages.fisher.params", json!({ "epoch": 3 })),
        ("stages.fisher.params", json!({ "epochs": "3" })),
        ("stages.fisher.params", json!({ "epochs": 0 })),
        ("stages.fisher.params", json!({ "epochs": 1.5 })),
        ("stages.fisher.params", json!({ "select": "cross-atn" })),
        ("stages.fisher.params", json!("loss")),
        ("stages.pretrain_loss.params.loss", json!({ "noise": "images" })),
        ("stages.data.params.files", json!([{ "from": "a", "unpack": 1 }])),
        ("stages.data.params.files", json!([{ "form": "a" }])),
        ("stages.data.params", json!({})),
        ("stages.own", json!({ "kind": "command", "params": { "argv": ["true"] } })),
        ("stages.own", json!({ "kind": "command", "params": { "argv": "true", "outputs": { "o": "o" } } })),
        ("stages.own", json!({ "kind": "command" })),
        ("stages.a/b", own),
    ];
    for (path, value) in bad {
        let pipeline = with(path, value.clone());
        assert!(!reader.is_valid(&pipeline), "{path} = {value}");
    }
    let reader = self::reader(&["--config"]);
    for (run, valid) in [
        (json!({ "jobs": 2, "device": "cuda:0,cuda:1" }), true),
        (json!({ "jobs": -1 }), false),
        (json!({ "download_jobs": 65 }), false),
        (json!({ "job": 1 }), false),
        (json!({ "jobs": "${a.b}" }), false),
    ] {
        assert_eq!(reader.is_valid(&json!({ "run": run, "loss": { "time_samples": 3 } })), valid, "{run}");
    }
}

/// An editor shows what a key means and what it is by default.
#[test]
fn keys_are_documented() {
    let schema: Json = serde_json::from_str(&schema(&[])).unwrap();
    let kinds = schema["$defs"]["stage"]["oneOf"].as_array().unwrap();
    let fisher = kinds.iter().find(|kind| kind["title"] == "fisher").unwrap();
    let epochs = &fisher["properties"]["params"]["anyOf"][0]["properties"]["epochs"];
    assert_eq!(epochs["anyOf"][0]["type"], "integer");
    assert!(epochs["description"].as_str().unwrap().len() > 10 && epochs["default"].is_u64(), "{epochs}");
    let latents = &fisher["properties"]["inputs"]["properties"]["latents"];
    assert!(latents["description"].is_string(), "{latents}");
    // What comes from the stage upstream need not be written.
    let influence = kinds.iter().find(|kind| kind["title"] == "influence").unwrap();
    assert!(influence["properties"]["params"]["anyOf"][0].get("required").is_none());
}
