//! Recomputing a manifest with `audit --replay` and `run --from`, and its exports: signatures, statements,
//! crates.

use std::path::{Path, PathBuf};

use attrflow::io::npy::writer;
use attrflow_engine::provenance::manifest;
use serde_json::Value as Json;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use crate::project::{Project, Ran, command, files};

/// A download, a copy of it, and an array that the second stage takes from where no recipe sees it.
const PIPELINE: &str = r#"
[stages.data]
kind = "download"
params = { files = [{ from = "../data.txt" }] }

[stages.copy]
kind = "command"
inputs = { text = "data.files/data.txt" }
params = { argv = ["cp", "{input.text}", "{output.text}"], outputs = { text = "text.txt" } }

[stages.array]
kind = "command"
inputs = { text = "copy.text" }
params = { argv = ["cp", "HIDDEN", "{output.array}"], outputs = { array = "array.npy" } }

[stages.behind]
kind = "command"
inputs = { array = "array.array" }
params = { argv = ["cp", "{input.array}", "{output.array}"], outputs = { array = "array.npy" } }
"#;

/// A project of that pipeline in a folder of its own.
struct Bench {
    _folder: TempDir,
    root: PathBuf,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = fs_err::canonicalize(folder.path()).unwrap().join("project");
        fs_err::create_dir_all(root.join("pipelines")).unwrap();
        let hidden = root.join("hidden.npy").display().to_string();
        fs_err::write(root.join("pipelines/p.toml"), PIPELINE.replace("HIDDEN", &hidden)).unwrap();
        fs_err::write(root.join("data.txt"), "text\n").unwrap();
        let bench = Self { _folder: folder, root };
        bench.hide(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        let ran = bench.attrflow(&["run", "pipelines/p.toml", "--device", "cpu"]);
        assert_eq!(ran.code, 0, "{ran:?}");
        bench
    }

    fn hide(&self, values: &[f32]) {
        writer::write_f32(self.root.join("hidden.npy"), &[2, 3], values).unwrap();
    }

    fn attrflow(&self, arguments: &[&str]) -> Ran {
        at(&self.root, arguments)
    }

    fn manifest(&self) -> PathBuf {
        manifest::list(&self.root.join("cache/runs/p")).remove(0)
    }
}

fn at(folder: &Path, arguments: &[&str]) -> Ran {
    let mut program = command(Path::new(env!("CARGO_BIN_EXE_attrflow")), folder);
    program.env_remove("ATTRFLOW_SIGN_PASSWORD").args(arguments).output().unwrap().into()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_finished_run_gives_the_same_bytes_again_here_and_elsewhere() {
    let project = Project::finished();
    let before = files(&project.path("cache/objects")).len();
    let ran = project.attrflow(["audit", "last", "--replay", "all"]);
    // The little model's step is too large, of which a warning tells.
    assert!(ran.code == 0 && !ran.err.contains("error"), "{ran:?}");
    assert!(ran.out.contains("\nno difference\nreplayed data: byte-identical; "), "{ran:?}");
    assert!(ran.out.ends_with("\nreplayed 12 of 12 stages: 12 byte-identical\n"), "{ran:?}");
    // Nothing of it stays.
    assert_eq!(files(&project.path("cache/objects")).len(), before);
    assert_eq!(files(&project.path("cache/tmp")).into_keys().collect::<Vec<_>>(), ["gate"]);

    let elsewhere = tempfile::tempdir().unwrap();
    let manifest = manifest::list(&project.path("cache/runs/demo")).remove(0);
    let ran = at(elsewhere.path(), &["run", "--from", text(&manifest)]);
    assert!(ran.code == 0 && !ran.err.contains("error"), "{ran:?}");
    assert!(ran.out.ends_with(": 12 of 12 stages have the recorded outputs\n"), "{ran:?}");
    let results = |root: &Path| {
        let files = files(&root.join("results/demo")).into_iter().filter(|(name, _)| !name.starts_with('.'));
        files.map(|(name, path)| (name, fs_err::read(path).unwrap())).collect::<Vec<_>>()
    };
    assert_eq!(results(elsewhere.path()), results(&project.root));
    assert!(!elsewhere.path().join("pipelines").exists());
    let ran = at(elsewhere.path(), &["run", "--from", text(&manifest), "--target", "generate"]);
    assert!(ran.code == 0 && ran.out.contains(", 3 of them cached here\n"), "{ran:?}");
}

#[test]
fn a_stage_with_an_undeclared_input_is_detected() {
    let bench = Bench::new();
    bench.hide(&[0.0, 1.0, 2.0, 3.0, 5.0, 5.5]);
    let ran = bench.attrflow(&["audit", "last", "--replay", "all"]);
    assert_eq!((ran.code, ran.err.as_str()), (3, ""), "{ran:?}");
    let message = "replayed array: different; ";
    assert!(ran.out.contains("replayed copy: byte-identical; ") && ran.out.contains(message), "{ran:?}");
    assert!(
        ran.out.contains(
            "      at [1, 1] differs first: 4 and 5; 2 of 6 values differ, by 1.000e0 at most, 2.000e-1 relative, 2097152 ulp\n"
        ),
        "{ran:?}"
    );
    // Each from its recorded inputs: what reads the array is not to blame.
    assert!(ran.out.contains("replayed behind: byte-identical; "), "{ran:?}");
    assert!(ran.out.ends_with("replayed 4 of 4 stages: 3 byte-identical\n"), "{ran:?}");
    let ran = bench.attrflow(&["audit", "last", "--replay", "array", "--json"]);
    let line = ran.json().into_iter().find(|line| line["replay"] == "array").unwrap();
    let compared = &line["differing"][0]["compared"];
    assert_eq!((ran.code, &line["same"], &compared["form"]), (3, &false.into(), &"values".into()), "{line}");
    assert_eq!(
        (&compared["index"], &compared["absolute"]),
        (&serde_json::json!([1, 1]), &1.0.into()),
        "{line}"
    );
    let ran = bench.attrflow(&["audit", "last", "--replay", "copy"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let ran = bench.attrflow(&["audit", "last", "--replay", "2"]);
    assert!(ran.out.contains("replayed 2 of 2 stages: "), "{ran:?}");

    // Elsewhere, what lies behind it differs too, and is named as that.
    let elsewhere = tempfile::tempdir().unwrap();
    let ran = at(elsewhere.path(), &["run", "--from", text(&bench.manifest()), "--device", "cpu"]);
    assert!(ran.code == 3 && !ran.err.contains("error"), "{ran:?}");
    assert!(
        ran.out.contains(": 2 of 4 stages have the recorded outputs\nfirst difference: array: "),
        "{ran:?}"
    );
    assert!(
        ran.out.contains(" differs first: 4 and 5; ") && ran.out.ends_with("\nalso different: behind\n"),
        "{ran:?}"
    );
}

#[test]
fn sources_are_found_by_their_bytes_and_what_is_missing_is_named() {
    let bench = Bench::new();
    let moved = tempfile::tempdir().unwrap();
    let manifest = moved.path().join("manifest.json");
    fs_err::copy(bench.manifest(), &manifest).unwrap();
    let from = |more: &[&str]| at(moved.path(), &[&["run", "--from", "manifest.json"], more].concat());
    fs_err::rename(bench.root.join("data.txt"), bench.root.join("other.txt")).unwrap();
    let ran = from(&[]);
    assert_eq!((ran.code, ran.out.as_str()), (1, ""), "{ran:?}");
    assert!(ran.err.starts_with("error: cannot recreate the results here:\n  data: its source "), "{ran:?}");
    assert!(
        ran.err.contains("data.txt (") && ran.err.contains(") does not exist\n  copy: it reads "),
        "{ran:?}"
    );
    assert!(!moved.path().join("cache/objects").exists() && !moved.path().join("results").exists());
    fs_err::write(moved.path().join("data.txt"), "another\n").unwrap();
    assert!(from(&[]).err.contains(") was modified\n"));
    fs_err::write(moved.path().join("data.txt"), "text\n").unwrap();
    let ran = from(&[]);
    assert!(ran.code == 0 && ran.out.ends_with(": 4 of 4 stages have the recorded outputs\n"), "{ran:?}");

    // In its own cache, the source is needed as well.
    let ran = bench.attrflow(&["audit", "last", "--replay", "all"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.out.contains("not replayed: data: its source "), "{ran:?}");
    assert!(ran.out.ends_with("replayed 3 of 4 stages: 3 byte-identical\n"), "{ran:?}");
    assert_eq!(ran.err, "error: no difference, but 1 stages could not be replayed\n");
}

#[test]
fn manifests_that_say_too_little_or_too_much_are_refused() {
    let bench = Bench::new();
    let whole = fs_err::read_to_string(bench.manifest()).unwrap();
    let file = bench.root.join("edited.json");
    let edited = |edit: &dyn Fn(&mut Json)| {
        let mut manifest: Json = serde_json::from_str(&whole).unwrap();
        edit(&mut manifest);
        fs_err::write(&file, manifest.to_string()).unwrap();
        at(&bench.root, &["run", "--from", "edited.json", "--cache", "another"])
    };
    let ran = edited(&|manifest| manifest["stages"][1]["params"] = Json::Null);
    assert!(ran.code == 1 && ran.err.contains("copy: the manifest has no parameters for it"), "{ran:?}");
    let ran = edited(&|manifest| manifest["stages"][1]["params"]["argv"] = 7.into());
    assert!(ran.err.contains("copy: its parameters are invalid for the current kind `command`: "), "{ran:?}");
    let ran = edited(&|manifest| manifest["stages"][1]["params"]["outputs"]["text"] = "../out".into());
    assert!(ran.code == 1 && ran.err.contains("the output `text` is `../out`"), "{ran:?}");
    let ran = edited(&|manifest| manifest["stages"][1]["recipe"]["kind"] = "comand".into());
    assert!(ran.err.contains("copy: unknown kind `comand`: did you mean `command`?"), "{ran:?}");
    let ran = edited(&|manifest| manifest["stages"][1]["reads"] = serde_json::json!({}));
    assert!(ran.err.contains("copy: the manifest records no origin for its input `text`"), "{ran:?}");
    let ran = edited(&|manifest| manifest["stages"][1]["reads"]["text"]["stage"] = "behind".into());
    assert!(ran.err.contains("copy: it reads behind.files/data.txt, which cannot be computed"), "{ran:?}");
    let ran = edited(&|manifest| manifest["stages"][1]["reads"]["text"]["port"] = "none".into());
    assert!(ran.err.contains("copy: it reads data.none/data.txt, which cannot be computed"), "{ran:?}");
    let ran = edited(&|manifest| manifest["stages"][1]["stage"] = "../../escape".into());
    assert!(ran.err.contains("`../../escape` is not a valid name of a stage or a pipeline"), "{ran:?}");
    let evil = bench.root.join("evil");
    let ran = edited(&|manifest| {
        manifest["pipeline"] = text(&evil).into();
        manifest["stages"] = serde_json::json!([]);
    });
    assert!(ran.code == 1 && ran.err.contains("is not a valid name of a stage or a pipeline"), "{ran:?}");
    let ran = edited(&|manifest| manifest["stages"] = serde_json::json!([]));
    assert!(ran.code == 1 && ran.err.contains("records no stage that can be recreated"), "{ran:?}");
    let ran = edited(&|manifest| manifest["stages"][0]["params"]["files"][0]["to"] = text(&evil).into());
    assert!(
        ran.code == 1 && ran.err.contains("data: its parameters are invalid for the current kind `download`"),
        "{ran:?}"
    );
    let ran = edited(&|manifest| manifest["stages"][2]["stage"] = "copy".into());
    assert!(ran.err.contains("copy: the manifest has more than one record of it"), "{ran:?}");
    let port = text(&evil).to_owned();
    let ran = edited(&|manifest| {
        let record = manifest["stages"][1].as_object_mut().unwrap();
        let digest = record["recipe"]["inputs"]["text"].clone();
        record["recipe"]["inputs"][&port] = digest;
        record["reads"][&port] = record["reads"]["text"].clone();
    });
    assert!(ran.err.contains("is unknown to its kind"), "{ran:?}");
    let ran = edited(&|manifest| manifest["stages"][0]["recipe"]["inputs"] = serde_json::json!({}));
    assert!(ran.err.contains("data: its input `files.0` is missing"), "{ran:?}");
    assert!(!evil.exists());
    // Nor is anything written elsewhere by a crate of it.
    edited(&|manifest| manifest["stages"][1]["stage"] = text(&evil).into());
    for more in [["--ro-crate", "crate"], ["--in-toto", "statement"]] {
        let ran = bench.attrflow(&[&["attest", "edited.json", "--cache", "cache"][..], &more].concat());
        assert!(ran.code != 0 && ran.err.contains("which is outside of its folder"), "{ran:?}");
    }
    assert!(!evil.exists() && !bench.root.join("crate").exists() && !bench.root.join("statement").exists());
    let ran = edited(&|manifest| manifest["pipeline"] = "..".into());
    assert!(ran.err.contains("`..` is not a valid name of a stage or a pipeline"), "{ran:?}");
    assert!(!bench.root.join("another/objects").exists());
    for (arguments, message) in [
        (
            &["audit", "last", "--replay", "copi"][..],
            "the manifest has no stage `copi`: did you mean `copy`?",
        ),
        (&["audit", "last", "--replay", "0"], "the manifest has no stage `0`"),
        (&["run", "--from", "none.json"], "none.json"),
        (&["run", "pipelines/p.toml", "--from", "last"], "cannot be used with"),
        (&["run", "--from", "last", "--set", "a=1"], "cannot be used with"),
        (&["run"], "<PIPELINE>"),
        (&["attest", "last"], "give --in-toto FILE"),
    ] {
        let ran = bench.attrflow(arguments);
        assert!(ran.code == 2 && ran.err.contains(message) && ran.out.is_empty(), "{arguments:?}: {ran:?}");
    }
}

#[test]
fn a_stage_that_failed_then_is_not_reproduced() {
    let bench = Bench::new();
    fs_err::rename(bench.root.join("hidden.npy"), bench.root.join("away.npy")).unwrap();
    let ran = bench.attrflow(&["run", "pipelines/p.toml", "--device", "cpu", "--force", "array"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    fs_err::rename(bench.root.join("away.npy"), bench.root.join("hidden.npy")).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let ran = at(elsewhere.path(), &["run", "--from", text(&bench.manifest()), "--json"]);
    let line = ran.json().into_iter().find(|line| line["replay"] == "array").unwrap();
    assert_eq!((&line["same"], &line["recorded"]), (&false.into(), &false.into()), "{line}");
}

#[test]
fn manifests_are_signed_and_signatures_are_verified() {
    let bench = Bench::new();
    let write = |name: &str, text: String| fs_err::write(bench.root.join(name), text).unwrap();
    let pair = minisign::KeyPair::generate_unencrypted_keypair().unwrap();
    write("key", pair.sk.to_box(None).unwrap().into_string());
    write("key.pub", pair.pk.to_box().unwrap().into_string());
    let ran = bench.attrflow(&["audit", "last", "--verify", "key.pub"]);
    assert!(ran.code == 1 && ran.err.contains(" is not signed: "), "{ran:?}");
    let ran = bench.attrflow(&["audit", "last", "--sign", "key"]);
    assert!(ran.code == 0 && ran.out.contains("\nsigned: cache/runs/p/"), "{ran:?}");
    let key = pair.pk.to_base64();
    for key in ["key.pub", key.as_str()] {
        let ran = bench.attrflow(&["audit", "last", "--verify", key]);
        assert!(ran.code == 0 && ran.out.starts_with("signed by "), "{ran:?}");
        assert!(ran.out.contains(": attrflow manifest of p, 20"), "{ran:?}");
    }
    // Another library agrees.
    let manifest = bench.manifest();
    let signature = PathBuf::from(format!("{}.minisig", manifest.display()));
    let read = minisign_verify::Signature::from_file(&signature).unwrap();
    let public = minisign_verify::PublicKey::from_base64(&key).unwrap();
    public.verify(&fs_err::read(&manifest).unwrap(), &read, false).unwrap();

    // What no hash covers is covered by the signature.
    let text = fs_err::read_to_string(&manifest).unwrap();
    fs_err::write(&manifest, text.replace("pipelines/p.toml", "pipelines/q.toml")).unwrap();
    assert_eq!(bench.attrflow(&["audit", "last"]).code, 0);
    let ran = bench.attrflow(&["audit", "last", "--verify", "key.pub"]);
    assert!(
        ran.code == 3 && ran.err.contains(".minisig is not a valid signature: ") && ran.out.is_empty(),
        "{ran:?}"
    );
    fs_err::write(&manifest, text).unwrap();

    // Another's signature is not replaced.
    let other = minisign::KeyPair::generate_unencrypted_keypair().unwrap();
    write("other", other.sk.to_box(None).unwrap().into_string());
    let ran = bench.attrflow(&["audit", "last", "--sign", "other"]);
    assert!(ran.code == 1 && ran.err.contains(" is already signed by "), "{ran:?}");
    assert_eq!(bench.attrflow(&["audit", "last", "--verify", "key.pub"]).code, 0);

    // A run signs what it wrote; a key that does not open is found out before.
    let ran = bench.attrflow(&["run", "pipelines/p.toml", "--device", "cpu", "--sign", "key"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(bench.attrflow(&["audit", "last", "--verify", "key.pub"]).code, 0);
    let runs = files(&bench.root.join("cache/runs")).len();
    let ran = bench.attrflow(&["run", "pipelines/p.toml", "--device", "cpu", "--sign", "key.pub"]);
    assert!(ran.code == 2 && ran.err.contains("key.pub: not a minisign secret key: "), "{ran:?}");
    assert_eq!(files(&bench.root.join("cache/runs")).len(), runs);
    // Nothing is signed that does not hold.
    fs_err::write(bench.root.join("data.txt"), "another\n").unwrap();
    fs_err::remove_file(format!("{}.minisig", bench.manifest().display())).unwrap();
    let ran = bench.attrflow(&["audit", "last", "--sign", "key"]);
    assert!(ran.code == 3 && !ran.out.contains("signed"), "{ran:?}");
}

#[test]
fn a_run_is_exported_as_a_statement_and_a_crate() {
    let project = Project::finished();
    let ran =
        project.attrflow(["attest", "last", "--in-toto", "out/statement.json", "--ro-crate", "out/crate"]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    assert!(ran.out.starts_with("wrote out/statement.json: "), "{ran:?}");
    let json = |path: &str| -> Json {
        serde_json::from_str(&fs_err::read_to_string(project.path(path)).unwrap()).unwrap()
    };
    let statement = json("out/statement.json");
    assert_eq!(statement["_type"], "https://in-toto.io/Statement/v1");
    assert_eq!(statement["predicateType"], "https://slsa.dev/provenance/v1");
    let sha256 = |path: &Path| {
        let hash = Sha256::digest(fs_err::read(path).unwrap());
        hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    // Every file of results/ is a subject, under its name there.
    let results = files(&project.path("results/demo"));
    let results: Vec<_> = results.iter().filter(|(name, _)| !name.starts_with('.')).collect();
    let subjects = statement["subject"].as_array().unwrap();
    assert_eq!(subjects.len(), results.len());
    for (name, path) in &results {
        let subject = subjects.iter().find(|subject| subject["name"] == **name).unwrap();
        assert_eq!(subject["digest"]["sha256"], sha256(path), "{name}");
    }
    let provenance = &statement["predicate"];
    assert_eq!(provenance["buildDefinition"]["externalParameters"]["stages"]["fisher"]["kind"], "fisher");
    let manifest = manifest::list(&project.path("cache/runs/demo")).remove(0);
    assert_eq!(provenance["runDetails"]["byproducts"][0]["digest"]["sha256"], sha256(&manifest));

    let metadata = json("out/crate/ro-crate-metadata.json");
    let graph = metadata["@graph"].as_array().unwrap();
    let entity = |id: &str| graph.iter().find(|entity| entity["@id"] == id).unwrap();
    let held = files(&project.path("out/crate/results"));
    assert!(held.contains_key("ranking/grin/top.png") && !held.contains_key("fisher/fisher.safetensors"));
    for (name, path) in &held {
        assert_eq!(entity(&format!("results/{name}"))["sha256"], sha256(path), "{name}");
    }
    assert_eq!(sha256(&project.path("out/crate/manifest.json")), sha256(&manifest));
    // What is referred to is there.
    fn references(value: &Json, found: &mut Vec<String>) {
        match value {
            Json::Object(map) if map.len() == 1 && map.contains_key("@id") => {
                found.push(map["@id"].as_str().unwrap().to_owned());
            }
            Json::Object(map) => map.values().for_each(|value| references(value, found)),
            Json::Array(items) => items.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    graph.iter().for_each(|entity| references(entity, &mut found));
    let ids: Vec<&str> = graph.iter().map(|entity| entity["@id"].as_str().unwrap()).collect();
    let dangling: Vec<_> =
        found.iter().filter(|id| !id.starts_with("https://") && !ids.contains(&id.as_str())).collect();
    assert!(found.len() > 50 && dangling.is_empty(), "{dangling:?}");
    let mut unique = ids.clone();
    unique.sort_unstable();
    unique.dedup();
    assert_eq!(unique.len(), ids.len(), "an identifier of two entities");

    // Nothing that is there is replaced unasked, and a crate is whole or not there.
    let ran = project.attrflow(["attest", "last", "--in-toto", "out/statement.json"]);
    assert!(ran.code == 1 && ran.err.contains("; --force replaces it"), "{ran:?}");
    let ran = project.attrflow(["attest", "last", "--ro-crate", "out/crate"]);
    assert!(
        ran.code == 1 && ran.err.contains("out/crate already exists: a crate needs a new folder"),
        "{ran:?}"
    );
    assert_eq!(fs_err::read_dir(project.path("out")).unwrap().count(), 2);
    // From the crate, the run is made again.
    let ran = at(&project.path("out/crate"), &["run", "--from", "manifest.json", "--target", "generate"]);
    assert!(ran.code == 0 && ran.out.contains(": 3 of 3 stages have the recorded outputs"), "{ran:?}");
}
