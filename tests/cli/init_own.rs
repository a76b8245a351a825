//! `init` for one's own data: what it finds and says, the files that it writes, and that they run as they are.

use std::path::Path;

use serde_json::Value as Json;

use crate::project::{DEMO, INDEX, Project, Ran, command, copy, files};
use crate::server::{Server, sha256};

const LORA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/lora/kohya.safetensors");

/// A folder with four images in `own/`, the demo's model in `model/`, and a picture with a text beside it.
fn project() -> Project {
    let project = Project::own(&Path::new(DEMO).join("model"));
    project.write("out/fox.txt", "a blim emoji of fox\n");
    fs_err::copy(project.path("own/05-fox.png"), project.path("out/fox.png")).unwrap();
    project
}

const QUICK: [&str; 4] =
    ["fisher.epochs=1", "unlearn.grad_accum_steps=1", "unlearn.batch_size=4", "loss.time_samples=2"];
const INIT: [&str; 6] = ["init", "own", "--images", "./own", "--model", "model"];

fn init(project: &Project, more: &[&str]) -> Ran {
    project.attrflow(INIT.iter().chain(more))
}

#[test]
fn two_commands_lead_from_a_folder_to_a_ranking() {
    let project = project();
    let ran = init(&project, &["--query", "out/*.png"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    for line in [
        "images   ./own   4 images, 4 with captions (sidecar)",
        "model    model   like Stable Diffusion (texts of 64 numbers), float32, predicts noise, 32 px",
        "query    out/fox.png   \"a blim emoji of fox\" (from the text file beside it), 64 x 64",
        "note     with 4 images the Fisher information is noisy",
        "wrote    pipelines/own.toml, configs/own.toml",
        "next     attrflow run pipelines/own.toml",
    ] {
        assert!(ran.out.contains(line), "{line}: {}", ran.out);
    }
    let sets = QUICK.iter().flat_map(|set| ["--set", set]);
    let ran = project.attrflow(["run", "pipelines/own.toml"].into_iter().chain(sets));
    assert_eq!(ran.code, 0, "{ran:?}");
    let table = fs_err::read_to_string(project.path("results/own/ranking/fox/top.csv")).unwrap();
    assert_eq!(table.lines().count(), 5, "{table}");
    // What exists is not changed.
    let ran = init(&project, &["--caption", "a"]);
    assert!(
        ran.code == 1 && ran.err.contains("pipelines/own.toml and configs/own.toml already exist"),
        "{ran:?}"
    );
}

#[test]
fn without_a_picture_one_is_drawn_and_a_dry_run_writes_nothing() {
    let project = project();
    let ran = init(&project, &["--caption", "a blim emoji of \"cat\"", "--dry-run", "--json"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let found: Json = serde_json::from_str(&ran.out).unwrap();
    assert_eq!((&found["images"]["images"], &found["pixels"]), (&4.into(), &32.into()));
    assert_eq!(found["queries"][0]["caption"], "a blim emoji of \"cat\"");
    assert!(!project.path("pipelines/own.toml").exists() && !project.path("configs/own.toml").exists());
    let ran = init(&project, &["--caption", "a blim emoji of \"cat\""]);
    assert!(ran.code == 0 && ran.out.contains("generate[drawn]"), "{ran:?}");
}

#[test]
fn every_picture_has_a_name_of_its_own() {
    let project = project();
    let picture = fs_err::read(project.path("out/fox.png")).unwrap();
    for name in ["a.png", "a-2.png", "a.webp", "猫.png", "img10.png", "img1.png"] {
        project.write(&format!("out/{name}"), &picture);
    }
    let ran = init(&project, &["--query", "out/*", "--caption", "a", "--dry-run", "--json"]);
    // The text file is no picture.
    assert!(ran.code == 1 && ran.err.contains("out/fox.txt"), "{ran:?}");
    let ran =
        init(&project, &["--query", "out/*.png", "out/a.webp", "--caption", "a", "--dry-run", "--json"]);
    let found: Json = serde_json::from_str(&ran.out).unwrap();
    let names: Vec<&str> =
        found["queries"].as_array().unwrap().iter().map(|query| query["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["a-2", "a", "fox", "img1", "img10", "picture", "a-3"]);
}

#[test]
fn images_of_the_hub_are_downloaded_under_a_name_that_tells_their_form() {
    let project = project();
    let hub = "hf://datasets/somebody/art@main/data/train.parquet";
    let ran = project.attrflow(["init", "own", "--images", hub, "--model", "somebody/sd", "--caption", "a"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let pipeline = fs_err::read_to_string(project.path("pipelines/own.toml")).unwrap();
    assert!(
        pipeline.contains(&format!("{{ from = \"{hub}\", to = \"images/train.parquet\" }}")),
        "{pipeline}"
    );
    assert!(
        pipeline.contains(
            "{ from = \"hf://somebody/sd@main/unet/config.json\", to = \"model/unet/config.json\" }"
        )
    );
}

#[test]
fn a_model_of_the_hub_is_downloaded_and_used() {
    let project = project();
    let model = project.path("model");
    let files: Vec<(String, Vec<u8>)> = files(&model)
        .into_iter()
        .map(|(name, path)| (name, fs_err::read(path).unwrap()))
        .chain([("model_index.json".to_owned(), INDEX.as_bytes().to_vec())])
        .collect();
    let listed: Vec<(&str, &[u8])> =
        files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    let hub = Server::new().hub_model("somebody/sd", &"c".repeat(40), &listed);
    fs_err::rename(&model, project.path("moved")).unwrap();
    let init =
        ["init", "own", "--images", "own", "--model", "somebody/sd", "--pixels", "32", "--caption", "a fox"];
    let ran = project.attrflow(init);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.out.contains("hf://somebody/sd@main   from the Hub, when it runs"), "{}", ran.out);
    let mut run = command(Path::new(env!("CARGO_BIN_EXE_attrflow")), &project.root);
    run.args(["run", "pipelines/own.toml", "--set", "generate.steps=2"]);
    run.args(QUICK.iter().flat_map(|set| ["--set", set]));
    run.env("HF_ENDPOINT", hub.url("")).env("HF_HOME", &project.root).env_remove("HF_TOKEN");
    let ran: Ran = run.output().unwrap().into();
    assert_eq!(ran.code, 0, "{ran:?}");
    let table = fs_err::read_to_string(project.path("results/own/ranking/drawn/top.csv")).unwrap();
    assert_eq!(table.lines().count(), 5, "{table}");
}

#[test]
fn a_picture_of_another_checkpoint_is_said() {
    let project = project();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/single_file");
    copy(&golden.join("diffusers"), &project.path("tiny"));
    for part in ["tokenizer", "scheduler"] {
        copy(&project.path("model").join(part), &project.path("tiny").join(part));
    }
    let checkpoint = golden.join("sd1.safetensors").display().to_string();
    let own = &sha256(&fs_err::read(&checkpoint).unwrap())[..10];
    let found = |hash: &str| {
        let text = format!(
            "a fox\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x64, Model hash: {hash}"
        );
        let file = fs_err::File::create(project.path("out/drawn.png")).unwrap();
        let mut encoder = png::Encoder::new(file, 2, 2);
        encoder.set_color(png::ColorType::Rgb);
        encoder.add_text_chunk("parameters".to_owned(), text).unwrap();
        encoder.write_header().unwrap().write_image_data(&[9; 12]).unwrap();
        let init =
            ["init", "own", "--images", "own", "--model", &checkpoint, "--config", "tiny", "--dry-run"];
        let ran = project.attrflow(init.iter().chain(&["--query", "out/drawn.png"]));
        assert_eq!(ran.code, 0, "{ran:?}");
        ran.out
    };
    assert!(!found(own).contains("it says that the model"));
    assert!(!found("1234abcd").contains("it says that the model"), "older hashes cannot be compared");
    let said = found("0123456789");
    assert!(
        said.contains(&format!("it says that the model 0123456789 drew it, and this one is {own}")),
        "{said}"
    );
}

#[test]
fn a_form_can_be_chosen_and_a_name_says_what_a_model_of_the_hub_is() {
    let project = project();
    project.write("own/metadata.csv", "file_name,text\n01-grin.png,a grin\n");
    let ran = init(&project, &["--caption", "a", "--dry-run"]);
    assert!(ran.code == 1 && ran.err.contains("more than one form fits"), "{ran:?}");
    let ran = init(&project, &["--caption", "a", "--form", "imagefolder"]);
    assert!(ran.code == 0 && ran.out.contains("1 images, 1 with captions (imagefolder)"), "{ran:?}");
    let config = fs_err::read_to_string(project.path("configs/own.toml")).unwrap();
    assert!(config.contains("form = \"imagefolder\"\n"), "{config}");
    fs_err::remove_file(project.path("own/metadata.csv")).unwrap();
    let taken = |model: &str, more: &[&str]| {
        let init = ["init", "hub", "--images", "own", "--caption", "a", "--dry-run", "--model", model];
        let ran = project.attrflow(init.iter().chain(more));
        assert_eq!(ran.code, 0, "{ran:?}");
        ran.out
    };
    let xl = "stabilityai/stable-diffusion-xl-base-1.0";
    assert!(taken(xl, &[]).contains("taken for Stable Diffusion XL, by its name"));
    assert!(taken("somebody/sd15", &[]).contains("taken for Stable Diffusion 1 or 2"));
    assert!(!taken("somebody/sd15", &["--sdxl"]).contains("taken for"));
    assert!(!taken(xl, &["--sdxl", "false"]).contains("taken for"));
}

#[test]
fn what_cannot_be_used_is_said_before_anything_is_written() {
    let project = project();
    let refused = |args: &[&str], expected: &str| {
        let ran = project.attrflow(args);
        assert!(ran.code != 0 && ran.err.replace('\n', " ").contains(expected), "{expected}: {ran:?}");
        assert!(!project.path("configs/own.toml").exists());
    };
    let with = |more: &[&'static str]| INIT.iter().chain(more).copied().collect::<Vec<_>>();
    refused(&with(&[]), "nothing to attribute: give pictures by --query, or a --caption");
    refused(&with(&["--query", "out/*.jpg"]), "--query: out/*.jpg: no file fits the pattern");
    refused(&with(&["--caption", "a", "--pixels", "40"]), "the model draws pictures of 32: leave it out");
    refused(&with(&["--caption", "a", "--pixels", "33"]), "expected a multiple of 2");
    refused(&with(&["--caption", "a", "--pixels", "0"]), "0 is not in 8..=4096");
    refused(&with(&["--caption", " "]), "`--caption` is empty");
    refused(
        &with(&["--caption", "a", "--sdxl"]),
        "the model has one text encoder, and `--sdxl` says otherwise",
    );
    refused(&with(&["--caption", "a", "--form", "folder"]), "expected one of sidecar, imagefolder");
    refused(&with(&["--query", "own/../out/fox.txt"]), "fox.txt: ");
    refused(&with(&["--caption", "a", "--lora", LORA]), "is the LoRA for another model?");
    refused(&["init", "own", "--images", "own"], "`--images` needs `--model`");
    refused(&["init", "own", "--images", "nowhere", "--model", "model", "--caption", "a"], "nowhere");
    refused(
        &["init", "a/b", "--images", "own", "--model", "model", "--caption", "a"],
        "expected letters, digits",
    );
    refused(
        &["init", "own", "--images", "own", "--model", "./OWNER/NAME", "--caption", "a"],
        "of a model on the Hub, give OWNER/NAME",
    );
    fs_err::remove_file(project.path("out/fox.txt")).unwrap();
    refused(&with(&["--query", "out/fox.png"]), "no caption in its metadata, and no out/fox.txt beside it");
    // A model of the Hub is looked at when it is there; its address is written, and what it was taken for is said.
    let hub = ["init", "own", "--images", "own", "--model", "OWNER/NAME", "--caption", "a", "--dry-run"];
    let ran = project.attrflow(hub);
    assert!(
        ran.code == 0
            && ran.out.contains(
                "hf://OWNER/NAME@main   from the Hub, when it runs; there is no folder OWNER/NAME here"
            ),
        "{ran:?}"
    );
}

#[test]
fn images_without_captions_are_left_out_with_a_word() {
    let project = project();
    fs_err::remove_file(project.path("own/05-fox.txt")).unwrap();
    let ran = init(&project, &["--caption", "a blim emoji of cat"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.out.contains("4 images, 3 with captions"), "{ran:?}");
    assert!(
        ran.out
            .contains("note     1 of 4 images have no caption, for instance 05-fox.png: they are left out"),
        "{ran:?}"
    );
    let config = fs_err::read_to_string(project.path("configs/own.toml")).unwrap();
    assert!(config.contains("missing = \"skip\""), "{config}");
}
