//! A LoRA through the program: trained, drawn with, and attributed by its own maps and by the merged weights.

use std::path::Path;

use attrflow::io::lora::{Lora, Network};
use attrflow::io::npy::Npy;
use attrflow::io::tensor_file::TensorFile;
use serde_json::Value as Json;

use crate::project::Project;

const STAGES: &str = r#"
config = "../configs/demo.toml"
include = ["parts/emoji.toml"]

[stages.tune]
kind = "train"
params = { init = "checkpoint", steps = 4, checkpoint_every = 2, batch_size = 4, lr = 1e-2, lr_warmup_steps = 1, lora = { rank = 2, alpha = 4.0, targets = "cross-attn" } }
[stages.tune.inputs]
unet = "data.files/model/unet"
scheduler = "data.files/model/scheduler"
moments = "latents.moments"
text_embeddings = "latents.text_embeddings"
captions = "data.files/captions.json"
text_encoder = "data.files/model/text_encoder"
tokenizer = "data.files/model/tokenizer"

[defaults.fisher]
epochs = 1
batch_size = 4

[stages.draw]
kind = "generate"
params = { caption = "an emoji of grinning face", steps = 3 }
[stages.draw.inputs]
unet = "data.files/model/unet"
lora = "tune.lora"
scheduler = "data.files/model/scheduler"
vae = "data.files/model/vae"
text_encoder = "data.files/model/text_encoder"
tokenizer = "data.files/model/tokenizer"

[stages.loss]
kind = "pretrain-loss"
params = { loss = "${loss}", per_timestep = true }
[stages.loss.inputs]
unet = "data.files/model/unet"
lora = "tune.lora"
scheduler = "data.files/model/scheduler"
latents = "latents.latents"
text_embeddings = "latents.text_embeddings"

[stages.importance]
kind = "fisher"
each = { select = ["lora", "lora-kv", "cross-attn-kv"] }
params = { epochs = 1, batch_size = 4, select = "${select}" }
[stages.importance.inputs]
unet = "data.files/model/unet"
lora = "tune.lora"
scheduler = "data.files/model/scheduler"
latents = "latents.latents"
text_embeddings = "latents.text_embeddings"

[stages.forget]
kind = "unlearn"
each = { select = ["lora", "lora-kv", "cross-attn-kv"] }
params = { grad_accum_steps = 2, batch_size = 4, rise = 0.02, damping = 1e-6, select = "${select}" }
[stages.forget.inputs]
unet = "data.files/model/unet"
lora = "tune.lora"
scheduler = "data.files/model/scheduler"
fisher = "importance.fisher"
latents = "draw.latents"
text_embeddings = "draw.text_embeddings"

[stages.score]
kind = "influence"
each = { select = ["lora", "lora-kv", "cross-attn-kv"] }
params = { per_timestep = true }
[stages.score.inputs]
unet = "data.files/model/unet"
lora = "tune.lora"
scheduler = "data.files/model/scheduler"
latents = "latents.latents"
text_embeddings = "latents.text_embeddings"
weights = "forget.weights"
pretrain_loss = "loss.losses"
pretrain_loss_per_timestep = "loss.per_timestep"
"#;

const RUN: [&str; 4] = ["run", "pipelines/lora.toml", "--target", "score"];

fn project() -> Project {
    let project = Project::new(6);
    project.write("pipelines/lora.toml", STAGES);
    project.edit("configs/demo.toml", "[latents]\n", "[latents]\nmoments = true\n");
    project
}

#[test]
fn a_lora_is_trained_and_attributed_by_every_selection() {
    let project = project();
    let ran = project.attrflow(RUN);
    assert_eq!(ran.code, 0, "{ran:?}");
    let file = project.path("results/lora/tune/pytorch_lora_weights.safetensors");
    let lora = TensorFile::open(&file).unwrap();
    assert!(!project.path("results/lora/tune/unet").exists(), "the base is not copied");
    assert!(lora.headers().iter().all(|header| {
        let name = header.name.as_str();
        name.starts_with("unet.") && name.contains(".attn2.to_") && name.contains(".lora_")
    }));
    assert!(lora.metadata("lora_adapter_metadata").unwrap().contains("\"unet.lora_alpha\":4.0"));
    let mut scores = Vec::new();
    for (select, maps) in [("lora", true), ("lora-kv", true), ("cross-attn-kv", false)] {
        let weights = project.path(format!("results/lora/forget/{select}/unlearned.safetensors"));
        let names = TensorFile::open(weights).unwrap();
        assert!(names.headers().iter().all(|header| header.name.contains(".lora_") == maps), "{select}");
        let score = Npy::open(project.path(format!("results/lora/score/{select}/influence.npy"))).unwrap();
        let mut values = Vec::new();
        score.read_f32(0..score.rows(), &mut values).unwrap();
        assert!(values.len() == 6 && values.iter().all(|value| value.is_finite()), "{select}");
        scores.push(values);
    }
    assert!(scores[0] != scores[1] && scores[1] != scores[2]);
    let exported = project.attrflow(["export", "pipelines/lora.toml", "--unet", "out"]);
    assert!(
        exported.code == 1 && exported.err.contains("has a LoRA, which `--unet` cannot write"),
        "{exported:?}"
    );
    // The same bytes in one unit as in two, and again.
    let bytes = fs_err::read(&file).unwrap();
    fs_err::remove_dir_all(project.path("cache")).unwrap();
    project.edit("pipelines/lora.toml", "checkpoint_every = 2", "checkpoint_every = 4");
    let ran = project.attrflow(["run", "pipelines/lora.toml", "--target", "tune"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(fs_err::read(&file).unwrap() == bytes);
}

#[test]
fn a_selection_of_a_lora_needs_one_and_a_trained_lora_is_no_unet() {
    let project = project();
    project.edit("pipelines/lora.toml", "each = { select = [\"lora\", \"lora-kv\", \"cross-attn-kv\"] }\nparams = { epochs = 1, batch_size = 4, select = \"${select}\" }\n[stages.importance.inputs]\nunet = \"data.files/model/unet\"\nlora = \"tune.lora\"", "each = { select = [\"lora\", \"lora-kv\", \"cross-attn-kv\"] }\nparams = { epochs = 1, batch_size = 4, select = \"${select}\" }\n[stages.importance.inputs]\nunet = \"data.files/model/unet\"");
    let ran = project.attrflow(["plan", "pipelines/lora.toml"]);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(
        ran.err
            .replace('\n', " ")
            .contains("`select` chooses \"lora\", maps of a LoRA, and none is connected to the input `lora`"),
        "{ran:?}"
    );
    project.edit(
        "pipelines/lora.toml",
        "lora = \"tune.lora\"\nscheduler = \"data.files/model/scheduler\"\nvae",
        "checkpoint = \"tune.unet\"\nscheduler = \"data.files/model/scheduler\"\nvae",
    );
    let ran = project.attrflow(["plan", "pipelines/lora.toml"]);
    assert!(ran.code != 0 && ran.err.contains("the stage `tune` has no output `unet`"), "{ran:?}");
}

#[test]
fn a_lora_of_another_network_is_refused_before_anything_is_computed() {
    let project = project();
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/lora");
    for (file, expected) in
        [("kohya", "is the LoRA for another model?"), ("wrong/reg", "it was trained with class images")]
    {
        project.write(
            "pipelines/other.toml",
            STAGES.replace("\"tune.lora\"", &format!("\"{golden}/{file}.safetensors\"")),
        );
        let ran = project.attrflow(["run", "pipelines/other.toml", "--target", "draw"]);
        assert!(ran.code == 1 && ran.err.replace('\n', " ").contains(expected), "{ran:?}");
    }
}

/// What pipelines/lora.toml found of the LoRA in data/demo/lora, as docs/results.md states it.
#[test]
fn the_twelve_images_of_the_demos_lora_lead() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/data/demo/lora/summary.json");
    let summary: Json = serde_json::from_str(&fs_err::read_to_string(file).unwrap()).unwrap();
    let found = &summary["tests"]["exemplars"];
    let among = |query: &str| {
        let ranks: Vec<u64> = serde_json::from_value(found["ranks"][query].clone()).unwrap();
        assert_eq!(ranks.len(), 12);
        ranks.into_iter().filter(|rank| *rank <= 12).count()
    };
    assert_eq!([among("worried"), among("crying")], [9, 5]);
    let recall = found["estimate"]["mean"].as_f64().unwrap();
    assert!((recall - 14.0 / 24.0).abs() < 1e-12, "{recall}");
    let lora = concat!(env!("CARGO_MANIFEST_DIR"), "/data/demo/lora/blim.safetensors");
    let unet =
        concat!(env!("CARGO_MANIFEST_DIR"), "/data/demo/model/unet/diffusion_pytorch_model.safetensors");
    let lora = Lora::open(Path::new(lora), Network::Unet, TensorFile::open(unet).unwrap().headers()).unwrap();
    assert!(lora.adapters.iter().all(|adapter| adapter.scale == 1.0 && adapter.shapes[0][0] == 8));
}
