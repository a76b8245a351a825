//! Models with two text encoders, as Stable Diffusion XL, from `init` to a ranking, on a tiny network.

use std::path::Path;

use attrflow::io::npy::{Npy, writer};

use crate::project::{DEMO, Project, Ran, copy};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/sdxl/model");
const LORA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/sdxl/lora.safetensors");

/// Five images in `own/`, one of them not square, and the tiny model in `model/`.
fn project() -> Project {
    let project = Project::own(Path::new(MODEL));
    let wide = image::RgbImage::from_fn(90, 50, |x, y| image::Rgb([x as u8, y as u8, 7]));
    wide.save(project.path("own/13-wide.png")).unwrap();
    project.write("own/13-wide.txt", "a wide picture");
    project
}

const INIT: [&str; 6] = ["init", "own", "--images", "own", "--model", "model"];
const QUICK: [&str; 6] = [
    "fisher.epochs=10",
    "unlearn.grad_accum_steps=10",
    "unlearn.batch_size=4",
    "unlearn.rise=0.01",
    "loss.time_samples=2",
    "generate.steps=2",
];

fn run(project: &Project) -> Ran {
    let config = fs_err::read_to_string(project.path("configs/own.toml")).unwrap();
    let draws = config.contains("[generate]");
    let sets =
        QUICK.iter().filter(|set| draws || !set.starts_with("generate")).flat_map(|set| ["--set", set]);
    project.attrflow(["run", "pipelines/own.toml"].into_iter().chain(sets))
}

/// The numbers of one text, [L + 1, D].
fn text(file: &Path, index: usize) -> (Vec<f32>, usize) {
    let npy = Npy::open(file).unwrap();
    let (mut values, width) = (Vec::new(), npy.shape()[3]);
    npy.read_f32(index..index + 1, &mut values).unwrap();
    (values, width)
}

/// The six sizes in the last row of a text, after the ten numbers of the pooled text.
fn sizes(file: &Path, index: usize) -> Vec<f32> {
    let (values, width) = text(file, index);
    let last = &values[values.len() - width..];
    assert!(last[..10].iter().any(|number| *number != 0.0) && last[16..].iter().all(|number| *number == 0.0));
    last[10..16].to_vec()
}

#[test]
fn two_commands_lead_from_two_text_encoders_to_a_ranking() {
    let project = project();
    let ran = project.attrflow(INIT.iter().chain(&["--caption", "a wide picture"]));
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(
        ran.out.contains("like Stable Diffusion XL (two text encoders, texts of 20 numbers), float32"),
        "{}",
        ran.out
    );
    let ran = run(&project);
    assert_eq!(ran.code, 0, "{ran:?}");
    let table = fs_err::read_to_string(project.path("results/own/ranking/drawn/top.csv")).unwrap();
    assert_eq!(table.lines().count(), 6, "{table}");
    let texts = project.path("results/own/latents/text_embeddings.npy");
    assert_eq!(sizes(&texts, 0), [64.0, 64.0, 0.0, 0.0, 32.0, 32.0]);
    // 90 x 50 become 57 x 32, of which the middle is taken.
    assert_eq!(sizes(&texts, 4), [50.0, 90.0, 0.0, 12.0, 32.0, 32.0]);
    let drawn = project.path("results/own/generate/drawn/text_embeddings.npy");
    assert_eq!(sizes(&drawn, 0), [32.0, 32.0, 0.0, 0.0, 32.0, 32.0]);
    // The same caption, apart from the sizes.
    let [(own, width), (other, _)] = [text(&drawn, 0), text(&texts, 4)];
    let words = own.len() - width;
    assert!(own[..words].iter().zip(&other[..words]).all(|(a, b)| (a - b).abs() < 1e-5));
}

#[test]
fn the_empty_text_of_the_guidance_is_zeros_unless_it_is_to_be_encoded() {
    let project = project();
    let ran = project.attrflow(INIT.iter().chain(&["--caption", "a fox"]));
    assert_eq!(ran.code, 0, "{ran:?}");
    let drawn = || {
        let run = ["run", "pipelines/own.toml", "--target", "generate", "--set", "generate.steps=2"];
        let ran = project.attrflow(run);
        assert_eq!(ran.code, 0, "{ran:?}");
        fs_err::read(project.path("results/own/generate/drawn/latents.npy")).unwrap()
    };
    let zeros = drawn();
    project.edit(
        "pipelines/own.toml",
        "[stages.generate.params]",
        "[stages.generate.params]\nforce_zeros_for_empty_prompt = false",
    );
    let encoded = drawn();
    assert_ne!(zeros, encoded);
    // What the index of a model says is written down.
    fs_err::remove_file(project.path("pipelines/own.toml")).unwrap();
    fs_err::remove_file(project.path("configs/own.toml")).unwrap();
    let said = "\"force_zeros_for_empty_prompt\": ";
    project.edit("model/model_index.json", &format!("{said}true"), &format!("{said}false"));
    let ran = project.attrflow(INIT.iter().chain(&["--caption", "a fox"]));
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(drawn(), encoded);
}

#[test]
fn a_lora_of_all_three_networks_is_attributed() {
    let project = project();
    fs_err::copy(project.path("own/05-fox.png"), project.path("fox.png")).unwrap();
    let texts = project.path("results/own/latents/text_embeddings.npy");
    let alone = |more: &[&str]| {
        let ran =
            project.attrflow(INIT.iter().chain(&["--query", "fox.png", "--caption", "a fox"]).chain(more));
        assert_eq!(ran.code, 0, "{ran:?}");
        let ran = project.attrflow(["run", "pipelines/own.toml", "--target", "latents"]);
        assert_eq!(ran.code, 0, "{ran:?}");
        for file in ["pipelines/own.toml", "configs/own.toml"] {
            fs_err::remove_file(project.path(file)).unwrap();
        }
        text(&texts, 0)
    };
    // Of the first row, numbers of the first encoder and of the second; of the last, the pooled text.
    let [(without, width), (with, _)] = [alone(&[]), alone(&["--lora", LORA])];
    let last = without.len() - width;
    for part in [0..8, 8..20, last..last + 10] {
        assert_ne!(without[part.clone()], with[part.clone()], "{part:?}");
    }
    assert_eq!(without[last + 10..], with[last + 10..]);
    let ran =
        project.attrflow(INIT.iter().chain(&["--lora", LORA, "--query", "fox.png", "--caption", "a fox"]));
    assert_eq!(ran.code, 0, "{ran:?}");
    let ran = run(&project);
    assert_eq!(ran.code, 0, "{ran:?}");
    let table = fs_err::read_to_string(project.path("results/own/ranking/fox/top.csv")).unwrap();
    assert_eq!(table.lines().count(), 6, "{table}");
}

#[test]
fn it_trains_and_what_it_trained_is_read_again() {
    let project = project();
    project.write(
        "pipelines/train.toml",
        r#"
        [stages.model]
        kind = "model"
        params = { sdxl = true }
        inputs = { source = "../model" }
        [stages.data]
        kind = "dataset"
        inputs = { source = "../own" }
        [stages.latents]
        kind = "latents"
        params = { pixels = 32, captions = 1, moments = true }
        [stages.latents.inputs]
        images = "data.images"
        captions = "data.captions"
        vae = "model.vae"
        text_encoder = "model.text_encoder"
        tokenizer = "model.tokenizer"
        text_encoder_2 = "model.text_encoder_2"
        tokenizer_2 = "model.tokenizer_2"
        [stages.train]
        kind = "train"
        params = { init = "checkpoint", steps = 2, batch_size = 4, lr_warmup_steps = 0, caption_dropout = 0.5, lora = { rank = 2 } }
        [stages.train.inputs]
        unet = "model.unet"
        scheduler = "model.scheduler"
        moments = "latents.moments"
        text_embeddings = "latents.text_embeddings"
        captions = "data.captions"
        text_encoder = "model.text_encoder"
        tokenizer = "model.tokenizer"
        text_encoder_2 = "model.text_encoder_2"
        tokenizer_2 = "model.tokenizer_2"
        [stages.loss]
        kind = "pretrain-loss"
        params = { loss = { time_samples = 2, captions = 1, noise = "per_image" } }
        [stages.loss.inputs]
        unet = "model.unet"
        lora = "train.lora"
        scheduler = "model.scheduler"
        latents = "latents.latents"
        text_embeddings = "latents.text_embeddings"
        "#,
    );
    let ran = project.attrflow(["run", "pipelines/train.toml"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let losses = Npy::open(project.path("results/train/loss/pretrain_loss.npy")).unwrap();
    assert_eq!(losses.shape(), [10]);
}

#[test]
fn what_does_not_fit_two_text_encoders_is_said() {
    let project = project();
    let ran = project.attrflow(INIT.iter().chain(&["--caption", "a"]));
    assert_eq!(ran.code, 0, "{ran:?}");
    let written = fs_err::read_to_string(project.path("pipelines/own.toml")).unwrap();
    let refused = |edit: &dyn Fn(&str) -> String, expected: &str| {
        project.write("pipelines/own.toml", edit(&written));
        let ran = run(&project);
        let said = ran.err.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(ran.code != 0 && said.contains(expected), "{expected}: {ran:?}");
    };
    let without = |line: &'static str| {
        move |text: &str| text.lines().filter(|other| *other != line).collect::<Vec<_>>().join("\n")
    };
    let (encoder, tokenizer) =
        ("text_encoder_2 = \"model.text_encoder_2\"", "tokenizer_2 = \"model.tokenizer_2\"");
    refused(&without(encoder), "`tokenizer_2` needs `text_encoder_2`: connect both or none");
    let neither = |text: &str| without(tokenizer)(&without(encoder)(text));
    refused(&neither, "the network takes a pooled text");
    // The step and the losses that it is compared with are of one network.
    let stage = |name: &str| format!("[stages.{name}.inputs]\n");
    let with_lora = |name: &'static str| {
        move |text: &str| text.replace(&stage(name), &format!("{}lora = {LORA:?}\n", stage(name)))
    };
    for name in ["unlearn", "pretrain_loss"] {
        refused(&with_lora(name), "`lora` is not connected, and of the stage `");
    }
    let sdxl = "params = { sdxl = true } # it has two text encoders";
    assert!(written.contains(sdxl));
    refused(&|text| neither(&text.replace(sdxl, "")), "set `sdxl = true` of this stage, and connect");
    // Texts of another kind of network, and a text encoder of another width.
    let shape = [5, 1, 17, 20];
    let numbers = vec![0.5; shape.iter().product()];
    writer::write_f32(project.path("texts.npy"), &shape, &numbers).unwrap();
    let fisher = "[stages.fisher.inputs]\n";
    let other = |text: &str| {
        let (before, after) = text.split_once(fisher).unwrap();
        let (own, rest) = after.split_once("# From here on").unwrap();
        let own = own.replace("\"latents.text_embeddings\"", "\"../texts.npy\"");
        format!("{before}{fisher}{own}# From here on{rest}")
    };
    refused(
        &other,
        "texts.npy: its last row holds [0.5, 0.5, 0.5, 0.5, 0.5, 0.5] in place of six sizes in pixels",
    );
    let encoder = project.path("model/text_encoder");
    fs_err::rename(&encoder, project.path("kept")).unwrap();
    copy(&Path::new(DEMO).join("model/text_encoder"), &encoder);
    refused(&str::to_owned, "the text encoders give 76 numbers a token, expected 20");
    fs_err::remove_dir_all(project.path("model")).unwrap();
    copy(&Path::new(DEMO).join("model"), &project.path("model"));
    refused(
        &str::to_owned,
        "expected a model with two text encoders, as SDXL; of another one, remove `sdxl`",
    );
}
