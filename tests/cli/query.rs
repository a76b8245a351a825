//! `query`: a picture that exists already is attributed, and its caption is never taken from it by itself.

use std::io::Cursor;
use std::path::Path;

use image::{ExtendedColorType, ImageEncoder as _};
use serde_json::Value as Json;

use crate::project::Project;

const CAPTION: &str = "a photo of a zorp, <lora:x:0.8> (red:1.2)";

/// A PNG with a text chunk `parameters`, as AUTOMATIC1111's program writes it.
fn png(text: &str) -> Vec<u8> {
    let pixels: Vec<u8> = (0..3 * 32 * 32).map(|place: u32| (place * 7 % 251) as u8).collect();
    let mut plain = Vec::new();
    image::codecs::png::PngEncoder::new(Cursor::new(&mut plain))
        .write_image(&pixels, 32, 32, ExtendedColorType::Rgb8)
        .unwrap();
    let mut chunk = b"tEXtparameters\0".to_vec();
    chunk.extend(format!("{text}\nNegative prompt: blurry\nSteps: 20, Seed: 7, Size: 32x32").as_bytes());
    let header = 8 + 25;
    let mut bytes = plain[..header].to_vec();
    bytes.extend((chunk.len() as u32 - 4).to_be_bytes());
    bytes.extend(&chunk);
    bytes.extend(crc32fast::hash(&chunk).to_be_bytes());
    bytes.extend(&plain[header..]);
    bytes
}

fn pipeline(project: &Project, params: &str) {
    project.write(
        "pipelines/query.toml",
        format!(
            "[stages.q]\nkind = \"query\"\nparams = {{ {params} }}\ninputs = {{ image = \"../out.png\" }}\n"
        ),
    );
}

fn report(project: &Project) -> Json {
    serde_json::from_str(&fs_err::read_to_string(project.path("results/query/q/report.json")).unwrap())
        .unwrap()
}

#[test]
fn a_caption_in_the_picture_is_shown_and_not_taken() {
    let project = Project::new(1);
    project.write("out.png", png(CAPTION));
    pipeline(&project, "");
    for verb in ["plan", "run"] {
        let ran = project.attrflow([verb, "pipelines/query.toml"]);
        assert_eq!(ran.code, 1, "{ran:?}");
        let expected = "`caption` is missing; its metadata say \"a photo of a zorp, <lora:x:0.8> (red:1.2)\": if that is right, \
                        set it as the `caption`";
        assert!(ran.err.replace("\n", " ").contains(expected) || ran.out.contains(expected), "{ran:?}");
    }
    pipeline(&project, &format!("caption = \"{CAPTION}\""));
    let ran = project.attrflow(["run", "pipelines/query.toml"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.err.contains("1 LoRA tag"), "{ran:?}");
    let found = report(&project);
    assert_eq!(
        (found["caption"].as_str(), found["metadata"]["negative"].as_str()),
        (Some(CAPTION), Some("blurry"))
    );
    assert_eq!(found["metadata"]["settings"]["Seed"], "7");
    pipeline(&project, &format!("caption = \"{CAPTION}\", prompt_syntax = \"a1111\""));
    assert_eq!(project.attrflow(["run", "pipelines/query.toml"]).code, 0);
    let found = report(&project);
    assert_eq!(
        (found["caption"].as_str(), &found["notes"]),
        (Some("a photo of a zorp, red"), &Json::Array(vec![]))
    );
    pipeline(&project, "caption = \"another text\"");
    let ran = project.attrflow(["run", "pipelines/query.toml"]);
    assert!(ran.err.contains("the picture's metadata have another text"), "{ran:?}");
}

#[test]
fn a_file_that_is_no_picture_is_refused() {
    let project = Project::new(1);
    project.write("out.png", "no picture");
    pipeline(&project, "caption = \"a\"");
    let ran = project.attrflow(["run", "pipelines/query.toml"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.err.contains("out.png: "), "{ran:?}");
    pipeline(&project, "");
    let ran = project.attrflow(["run", "pipelines/query.toml"]);
    assert!(ran.err.contains("the picture's metadata say nothing of a text"), "{ran:?}");
}

/// A training image as a picture of one's own is the query: the picture is encoded as the training images are.
#[test]
fn a_picture_is_unlearned_like_any_other_query() {
    let project = Project::finished();
    let images = project.path("results/demo/data/files/images");
    let name = fs_err::read_dir(&images).unwrap().next().unwrap().unwrap().file_name();
    fs_err::copy(images.join(Path::new(&name)), project.path("own.png")).unwrap();
    project.write(
        "pipelines/own.toml",
        r#"
config = "../configs/demo.toml"
include = ["parts/emoji.toml"]

[stages.query]
kind = "query"
params = { caption = "an emoji of grinning face" }
inputs = { image = "../own.png" }

[stages.query_latents]
kind = "latents"
params = { pixels = "${latents.pixels}", captions = 1 }

[stages.query_latents.inputs]
images = "query.images"
captions = "query.captions"
vae = "data.files/model/vae"
text_encoder = "data.files/model/text_encoder"
tokenizer = "data.files/model/tokenizer"

[stages.unlearn]
kind = "unlearn"
params = { grad_accum_steps = 2, batch_size = 4, rise = 0.2, select = "cross-attn-kv" }

[stages.unlearn.inputs]
unet = "data.files/model/unet"
scheduler = "data.files/model/scheduler"
fisher = "fisher.fisher"
latents = "query_latents.latents"
text_embeddings = "query_latents.text_embeddings"

[stages.influence]
kind = "influence"

[stages.influence.inputs]
unet = "data.files/model/unet"
scheduler = "data.files/model/scheduler"
latents = "latents.latents"
text_embeddings = "latents.text_embeddings"
weights = "unlearn.weights"
pretrain_loss = "pretrain_loss.losses"
"#,
    );
    let ran = project.attrflow(["run", "pipelines/own.toml", "-v"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.err.contains("a rise of 20 % was predicted and one of "), "{ran:?}");
    assert!(project.path("results/own/influence/rank.npy").is_file());
}
