//! Forms of input: what is read, what is refused before anything is computed, and what is warned of.

use std::collections::BTreeSet;
use std::path::Path;

use safetensors::SafeTensors;
use serde_json::{Value as Json, json};

use crate::project::{DEMO, Project, Ran, copy, files};

fn plan(project: &Project) -> Ran {
    project.attrflow(["plan", "pipelines/demo.toml", "--device", "cpu"])
}

/// A copy of a finished project with a model of its own: those of other projects are links to one.
fn with_own_model() -> Project {
    let project = Project::finished();
    let model = project.path("data/demo/model");
    fs_err::remove_file(&model).unwrap();
    copy(&Path::new(DEMO).join("model"), &model);
    project
}

/// Edits a JSON file of the demo's model.
fn edit(project: &Project, file: &str, edit: impl FnOnce(&mut Json)) {
    let path = format!("data/demo/model/{file}");
    let mut json: Json = serde_json::from_slice(&fs_err::read(project.path(&path)).unwrap()).unwrap();
    edit(&mut json);
    project.write(&path, serde_json::to_vec(&json).unwrap());
}

#[test]
fn a_tokenizer_in_one_file_is_read_as_in_two() {
    let project = with_own_model();
    let before = fs_err::read(project.result("latents/text_embeddings.npy")).unwrap();
    let folder = project.path("data/demo/model/tokenizer");
    let vocab: Json = serde_json::from_slice(&fs_err::read(folder.join("vocab.json")).unwrap()).unwrap();
    let merges = fs_err::read_to_string(folder.join("merges.txt")).unwrap();
    let merges: Vec<Json> = merges
        .lines()
        .filter(|line| !line.starts_with("#version"))
        .enumerate()
        // Both forms that the library writes.
        .map(|(place, line)| match place % 2 {
            0 => json!(line),
            _ => json!(line.split(' ').collect::<Vec<_>>()),
        })
        .collect();
    let whole =
        json!({ "model": { "type": "BPE", "end_of_word_suffix": "</w>", "vocab": vocab, "merges": merges } });
    fs_err::write(folder.join("tokenizer.json"), serde_json::to_vec(&whole).unwrap()).unwrap();
    fs_err::remove_file(folder.join("vocab.json")).unwrap();
    fs_err::remove_file(folder.join("merges.txt")).unwrap();
    assert!(project.run(&["--target", "latents"]).computed().contains(&"latents".to_owned()));
    assert_eq!(fs_err::read(project.result("latents/text_embeddings.npy")).unwrap(), before);
    edit(&project, "tokenizer/tokenizer.json", |json| json["model"]["type"] = "WordPiece".into());
    project.run(&["--target", "data"]);
    let ran = project.attrflow(["run", "pipelines/demo.toml", "--target", "latents"]);
    assert!(ran.code == 1 && ran.err.contains("`model.type` is WordPiece, supported: BPE"), "{ran:?}");
    fs_err::remove_file(folder.join("tokenizer.json")).unwrap();
    project.run(&["--target", "data"]);
    let ran = project.attrflow(["run", "pipelines/demo.toml", "--target", "latents"]);
    assert!(ran.code == 1 && ran.err.contains("vocab.json is missing, and there is no"), "{ran:?}");
}

/// Plans with one value of a model's file changed.
fn refused_by_the_plan(project: &Project, file: &str, key: &str, value: Json, parts: &[&str]) {
    let mut before = Json::Null;
    edit(project, file, |json| before = std::mem::replace(&mut json[key], value));
    project.run(&["--target", "data"]);
    let ran = plan(project);
    for part in parts.iter().chain(&["invalid input"]) {
        assert!(ran.out.contains(part), "{key}: {ran:?}");
    }
    assert!(!ran.out.contains("cache/objects"), "{key}: {ran:?}");
    edit(project, file, |json| match before {
        Json::Null => drop(json.as_object_mut().unwrap().remove(key)),
        before => json[key] = before,
    });
}

#[test]
fn networks_of_another_family_are_refused_by_the_plan() {
    let project = with_own_model();
    for (file, key, value, expected) in [
        (
            "scheduler/scheduler_config.json",
            "_class_name",
            "FlowMatchHeunDiscreteScheduler",
            "`_class_name` is",
        ),
        ("scheduler/scheduler_config.json", "prediction_type", "sample", "`prediction_type` is"),
        ("unet/config.json", "_class_name", "SD3Transformer2DModel", "`_class_name` is"),
        ("vae/config.json", "_class_name", "AsymmetricAutoencoderKL", "`_class_name` is"),
        ("text_encoder/config.json", "model_type", "t5", "`model_type` is"),
    ] {
        refused_by_the_plan(&project, file, key, value.into(), &[expected, value]);
    }
    // By the keys that only another family has, whatever the class.
    for (file, key, value) in [
        ("scheduler/scheduler_config.json", "sigma_max", json!(80.0)),
        ("scheduler/scheduler_config.json", "base_shift", json!(0.5)),
        ("scheduler/scheduler_config.json", "timestep_type", json!("continuous")),
        ("scheduler/scheduler_config.json", "beta_end", json!(1.5)),
        ("unet/config.json", "patch_size", json!(2)),
        ("unet/config.json", "joint_attention_dim", json!(4096)),
        ("text_encoder/config.json", "architectures", json!(["T5EncoderModel"])),
        ("tokenizer/tokenizer_config.json", "tokenizer_class", json!("T5TokenizerFast")),
        // Numbers that no network has.
        ("vae/config.json", "scaling_factor", json!(0.0)),
        ("vae/config.json", "norm_num_groups", json!(5)),
        ("text_encoder/config.json", "num_attention_heads", json!(7)),
        ("text_encoder/config.json", "num_attention_heads", json!(0)),
        ("unet/config.json", "layers_per_block", json!(1_000_000_000_000_u64)),
        ("scheduler/scheduler_config.json", "num_train_timesteps", json!(1_000_000_000)),
        ("tokenizer/tokenizer_config.json", "model_max_length", json!(77)),
    ] {
        refused_by_the_plan(&project, file, key, value, &[&format!("`{key}` is")]);
    }
    // Other steps over the same noise.
    edit(&project, "scheduler/scheduler_config.json", |json| json["_class_name"] = "PNDMScheduler".into());
    project.run(&["--target", "pretrain_loss"]);
}

#[test]
fn parameters_that_do_not_fit_the_inputs_are_refused_by_the_plan() {
    let project = Project::finished();
    for (set, expected) in [
        ("loss.time_samples=3", "must divide the model's 1000 timesteps: set 2 or 4"),
        ("loss.captions=7", "captions per image, expected at least 7"),
        ("unlearn.batch_size=2000", "expected at most 1000: a batch has distinct timesteps"),
        ("generate.steps=2000", "`steps` is 2000, expected at most 1000"),
    ] {
        let ran = project.attrflow(["plan", "pipelines/demo.toml", "--set", set, "--device", "cpu"]);
        assert!(ran.out.contains("invalid input") && ran.out.contains(expected), "{set}: {ran:?}");
    }
}

/// A project whose `influence` reads the weights of `grin` with another text, of the same length, in their metadata.
fn with_edited_weights(from: &str, to: &str) -> Project {
    assert_eq!(from.len(), to.len());
    let project = Project::finished();
    let mut weights = fs_err::read(project.result("unlearn/grin/unlearned.safetensors")).unwrap();
    let at = weights.windows(from.len()).position(|found| found == from.as_bytes());
    let at = at.expect("the text is in the metadata");
    weights[at..at + from.len()].copy_from_slice(to.as_bytes());
    project.write("mine.safetensors", weights);
    let (own, mine) =
        ("weights = \"unlearn.weights\"\npretrain_loss", "weights = \"../mine.safetensors\"\npretrain_loss");
    project.edit("pipelines/demo.toml", own, mine);
    project
}

/// What a run says that refuses the weights, then one that accepts them by a parameter of `influence`.
fn refused_then_accepted(project: &Project, parameter: &str) -> (String, String) {
    let run = || project.attrflow(["run", "pipelines/demo.toml", "--target", "influence[grin]"]);
    let refused = run();
    assert!(refused.code == 1 && refused.err.contains("mine.safetensors: "), "{refused:?}");
    assert!(refused.err.contains(&format!("set `{parameter} = true`")), "{refused:?}");
    project.edit(
        "pipelines/demo.toml",
        "params = { per_timestep",
        &format!("params = {{ {parameter} = true, per_timestep"),
    );
    let accepted = run();
    assert_eq!(accepted.code, 0, "{accepted:?}");
    (refused.err, accepted.err)
}

#[test]
fn a_step_divided_by_another_number_of_images_is_refused_unless_wanted() {
    let project = with_edited_weights("\"images\":\"6\"", "\"images\":\"9\"");
    let (refused, accepted) = refused_then_accepted(&project, "other_images");
    assert!(refused.contains("its step was divided by 9 images, expected 6"), "{refused}");
    assert!(refused.contains("1.500 times as large"), "{refused}");
    assert!(accepted.contains("the step was divided by 9 images, this data set has 6"), "{accepted}");
}

#[test]
fn a_query_of_another_size_is_refused_unless_wanted() {
    let project =
        with_edited_weights("\"query_latent_size\":\"16 x 16\"", "\"query_latent_size\":\"24 x 40\"");
    let (refused, accepted) = refused_then_accepted(&project, "other_size");
    assert!(refused.contains("the latent of its query is 24 x 40, expected 16 x 16"), "{refused}");
    assert!(
        accepted.contains("the latent of the query is 24 x 40, those of this data set are 16 x 16"),
        "{accepted}"
    );
}

#[test]
fn a_step_that_raises_no_loss_gives_no_ranking() {
    let project = Project::finished();
    let run = |set: String| {
        project.attrflow(["run", "pipelines/demo.toml", "--target", "unlearn[grin]", "--set", &set])
    };
    for lr in ["0", "-0.001", "-1e9"] {
        let ran = run(format!("unlearn.lr={lr}"));
        assert!(ran.code == 2 && ran.err.contains("expected a number above 0"), "{ran:?}");
    }
    // Too small for float32.
    let ran = run("unlearn.lr=1e-30".into());
    assert!(
        ran.code == 1 && ran.err.contains("the step changed the loss of the query by 0.000e0"),
        "{ran:?}"
    );
    assert!(ran.err.contains("(`lr` is 1e-30): it was too small; set a larger `lr`"), "{ran:?}");
}

#[test]
fn what_changes_the_data_set_is_counted_and_warned_of() {
    let project = Project::new(6);
    let zip = project.path("data/demo/images.zip");
    let mut archive = zip::ZipArchive::new(fs_err::File::open(&zip).unwrap()).unwrap();
    let names: Vec<String> =
        archive.file_names().filter(|name| name.ends_with(".png")).map(str::to_owned).collect();
    let mut read = |name: &str| {
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut archive.by_name(name).unwrap(), &mut bytes).unwrap();
        bytes
    };
    let first = image::load_from_memory(&read(&names[0])).unwrap();
    let mut clear = first.to_rgba8();
    clear.pixels_mut().for_each(|pixel| pixel.0[3] = 10);
    let folder = project.path("mine");
    fs_err::create_dir(&folder).unwrap();
    for name in &names {
        fs_err::write(folder.join(Path::new(name).file_name().unwrap()), read(name)).unwrap();
    }
    let base = |name: &str| Path::new(name).file_name().unwrap().to_str().unwrap().to_owned();
    clear.save(folder.join(base(&names[0]))).unwrap();
    // EXIF: little-endian, one entry, the orientation, which is 6.
    let exif = b"eXIfII*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
    let (length, sum) = ((exif.len() - 4) as u32, crc32fast::hash(exif));
    let (header, rest) = (&read(&names[2])[..33], &read(&names[2])[33..]);
    let turned = [header, &length.to_be_bytes(), exif, &sum.to_be_bytes(), rest].concat();
    fs_err::write(folder.join(base(&names[2])), turned).unwrap();
    fs_err::write(folder.join("unlisted.png"), read(&names[1])).unwrap();
    project.edit(
        "data/demo/captions.json",
        "\"caption\": \"",
        &format!("\"caption\": \"{}", "word ".repeat(90)),
    );
    project.edit(
        "pipelines/parts/emoji.toml",
        "images = \"data.files/images\"\ncaptions",
        "images = \"../../mine\"\ncaptions",
    );
    let ran = project.attrflow(["run", "pipelines/demo.toml", "--target", "latents"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let clear_name = base(&names[0]);
    for expected in [
        format!(
            "warn: images with transparent pixels: 1, the first \"{clear_name}\"; alpha is dropped (`transparency`)"
        ),
        format!("warn: images with an EXIF orientation: 1, the first \"{}\"; it is ignored", base(&names[2])),
        "warn: images that the captions file does not name: 1, the first \"unlisted.png\"; they are left out"
            .into(),
        "captions longer than the text encoder reads: 1, the first \"word word".into(),
    ] {
        assert!(ran.err.contains(&expected), "{expected}: {ran:?}");
    }
    let before = fs_err::read(project.result("latents/latents.npy")).unwrap();
    let ran = project.attrflow([
        "run",
        "pipelines/demo.toml",
        "--target",
        "latents",
        "--set",
        "latents.transparency=white",
    ]);
    assert!(ran.code == 0 && ran.err.contains("blended with white"), "{ran:?}");
    assert_ne!(fs_err::read(project.result("latents/latents.npy")).unwrap(), before);
}

#[test]
fn a_text_embedding_that_float16_cannot_hold_is_refused() {
    let project = with_own_model();
    let file = project.path("data/demo/model/text_encoder/model.safetensors");
    let mut bytes = fs_err::read(&file).unwrap();
    let (header, tensors) = SafeTensors::read_metadata(&bytes).unwrap();
    let bias = tensors.info("final_layer_norm.bias").unwrap().data_offsets.0;
    bytes[8 + header + bias..][..4].copy_from_slice(&1e5f32.to_le_bytes());
    fs_err::write(&file, bytes).unwrap();
    let run = |dtype: &str| {
        let set = format!("latents.text_dtype={dtype}");
        project.attrflow(["run", "pipelines/demo.toml", "--target", "latents", "--set", &set])
    };
    let refused = run("float16");
    let expected = "the text embedding of \"";
    assert!(refused.code == 1 && refused.err.contains(expected), "{refused:?}");
    assert!(refused.err.contains(", expected finite values as float16\n"), "{refused:?}");
    assert_eq!(run("float32").code, 0);
}

#[test]
fn a_missing_gpu_is_named() {
    let project = Project::finished();
    let ran = project.attrflow(["run", "pipelines/demo.toml", "--device", "cuda:77", "--target", "latents"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    // Without a GPU, with another one, or without the CUDA part of libtorch.
    let errors: Vec<&str> = ran.err.lines().filter(|line| line.starts_with("error: ")).collect();
    assert!(errors.len() == 1 && errors[0].starts_with("error: stage `latents`"), "{ran:?}");
    assert!(errors[0].contains("cuda"), "{ran:?}");
}

/// Every row of the last table of docs/inputs.md names tests that exist.
#[test]
fn each_documented_form_of_input_has_a_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sources =
        ["src", "tests", "crates/engine/src", "crates/engine/tests"].map(|folder| files(&root.join(folder)));
    let mut tests = BTreeSet::new();
    for path in sources
        .iter()
        .flat_map(|files| files.values())
        .filter(|path| path.extension().is_some_and(|e| e == "rs"))
    {
        let text = fs_err::read_to_string(path).unwrap();
        for (at, _) in text.match_indices("#[test]\n") {
            let name = text[at..].split("fn ").nth(1).unwrap().split('(').next().unwrap();
            tests.insert(name.to_owned());
        }
    }
    let text = fs_err::read_to_string(root.join("docs/inputs.md")).unwrap();
    let table = text.split("\n## What is tested\n").nth(1).expect("the section");
    let rows: Vec<Vec<&str>> = table
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| input "))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    assert!(rows.len() > 40, "{}", rows.len());
    for row in rows {
        let [input, outcome, named] = row.as_slice() else { panic!("{row:?}") };
        assert!(!input.is_empty() && ["taken", "refused", "warned of"].contains(outcome), "{row:?}");
        let names: Vec<&str> = named.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty() && names.iter().all(|name| tests.contains(*name)), "{row:?}");
    }
}
