//! `train` and `subset` through the program: leaving images out, kills, and bytes that no setting of the machine changes.

use std::time::{Duration, Instant};

use attrflow::io::npy::Npy;
use attrflow::io::npy::writer::write_f32;
use serde_json::Value as Json;

use crate::project::{Project, command};

const STAGES: &str = r#"
config = "../configs/demo.toml"

include = ["parts/emoji.toml"]

[stages.left_out]
kind = "subset"
params = { count = 2, seed = 3 }
inputs = { captions = "data.files/captions.json" }

[stages.model]
kind = "train"
params = { steps = 6, checkpoint_every = 2, batch_size = 20, lr = 1e-3, lr_warmup_steps = 2, ema_decay = 0.99 }
[stages.model.inputs]
unet = "data.files/model/unet"
scheduler = "data.files/model/scheduler"
moments = "latents.moments"
text_embeddings = "latents.text_embeddings"
captions = "data.files/captions.json"
text_encoder = "data.files/model/text_encoder"
tokenizer = "data.files/model/tokenizer"
left_out = "left_out.ids"

[stages.loss]
kind = "pretrain-loss"
params = { loss = "${loss}" }
[stages.loss.inputs]
unet = "model.unet"
scheduler = "data.files/model/scheduler"
latents = "latents.latents"
text_embeddings = "latents.text_embeddings"
"#;

const RUN: [&str; 2] = ["run", "pipelines/training.toml"];

fn project() -> Project {
    let project = Project::new(8);
    project.write("pipelines/training.toml", STAGES);
    project.edit("configs/demo.toml", "[latents]\n", "[latents]\nmoments = true\n");
    project
}

fn model(project: &Project) -> Vec<u8> {
    let folder = project.path("results/training/model");
    let weights = fs_err::read(folder.join("unet/diffusion_pytorch_model.safetensors")).unwrap();
    [weights, fs_err::read(folder.join("curve.csv")).unwrap()].concat()
}

fn ids(project: &Project, file: &str) -> Vec<i64> {
    let text = fs_err::read_to_string(project.path("results/training/left_out").join(file)).unwrap();
    let found: Json = serde_json::from_str(&text).unwrap();
    assert_eq!(found["images"], 8);
    found["ids"].as_array().unwrap().iter().map(|id| id.as_i64().unwrap()).collect()
}

#[test]
fn a_trained_network_is_read_like_a_downloaded_one_whatever_the_machine_is_asked_for() {
    let project = project();
    let ran = project.attrflow(RUN);
    assert_eq!(ran.code, 0, "{ran:?}");
    let (chosen, rest) = (ids(&project, "ids.json"), ids(&project, "rest.json"));
    assert!(chosen.len() == 2 && rest.len() == 6 && chosen.iter().all(|id| !rest.contains(id)));
    let curve = fs_err::read_to_string(project.path("results/training/model/curve.csv")).unwrap();
    let rows: Vec<&str> = curve.lines().collect();
    assert_eq!((rows.len(), rows[0]), (7, "step,rows,loss,grad_norm,lr"));
    // Two of eight images are left out: of 20 visits, 5 on average.
    let kept: usize =
        rows[1..].iter().map(|row| row.split(',').nth(1).unwrap().parse::<usize>().unwrap()).sum();
    assert_eq!(kept, 120 - 30);
    // Another machine: other threads, jobs and rows at once.
    let other = self::project();
    let ran = other.attrflow([&RUN[..], &["--threads", "2", "--jobs", "1", "--micro-batch", "3"]].concat());
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(model(&project) == model(&other));
}

#[test]
fn what_training_takes_is_known_before_anything_ran() {
    let project = project();
    let plan = |more: &[&str]| {
        let ran = project.attrflow([&["plan", "pipelines/training.toml"], more].concat());
        assert_eq!(ran.code, 0, "{ran:?}");
        ran
    };
    let text = plan(&["--threads", "2"]).out;
    assert!(text.contains("note: `train` computes on one thread"), "{text}");
    assert!(!plan(&["--threads", "1"]).out.contains("note:"));
    let row = |text: &str, stage: &str| {
        text.lines()
            .find(|line| line.starts_with(stage))
            .unwrap_or_else(|| panic!("{stage}: {text}"))
            .to_owned()
    };
    assert!(row(&text, "model ").contains("unknown, 6 steps"), "{text}");
    // The loss is that of the trained network, which is not there yet.
    let ran = plan(&["--measure"]);
    let stages = ["latents", "pretrain_loss", "fisher", "model"];
    assert_eq!(ran.err, stages.map(|stage| format!("measuring {stage}\n")).concat());
    let lines = plan(&["--json"]).json();
    for stage in ["model", "loss"] {
        let predicted = &lines.iter().find(|line| line["stage"] == stage).unwrap()["predicted"];
        assert!((0.0..600.0).contains(&predicted["seconds"].as_f64().unwrap()), "{predicted}");
    }
    let predicted = &lines.iter().find(|line| line["stage"] == "model").unwrap()["predicted"];
    let said = predicted["bytes"].as_u64().unwrap() as f64;
    let ran = project.attrflow(RUN);
    assert_eq!(ran.code, 0, "{ran:?}");
    let found = model(&project).len() as f64;
    assert!((said / found - 1.0).abs() < 0.05, "{said} of {found}");
}

#[test]
fn many_items_are_one_row_of_a_plan() {
    let project = project();
    let seeds: Vec<String> = (0..40).map(|seed| seed.to_string()).collect();
    let each = format!("kind = \"subset\"\neach = {{ seed = [{}] }}", seeds.join(", "));
    let pipeline = STAGES.replace("kind = \"subset\"", &each).replace("seed = 3", "seed = \"${seed}\"");
    project.write("pipelines/training.toml", pipeline.replace("left_out.ids", "left_out[7].ids"));
    let text = project.attrflow(["plan", "pipelines/training.toml"]).out;
    assert!(text.contains("left_out[0] to left_out[39], 40 in all  run"), "{text}");
    assert!(text.lines().count() < 20 && text.contains("46 to run"), "{text}");
}

/// Runs the pipeline again and again, each time killed after `wait`, until a run ends by itself or so many were killed.
fn kill(project: &Project, most: u64, wait: impl Fn(u64) -> Duration) -> u64 {
    for kills in 0..most {
        let mut run = command(std::path::Path::new(env!("CARGO_BIN_EXE_attrflow")), &project.root);
        let quiet = || std::process::Stdio::null();
        let mut child = run.args(RUN).stdout(quiet()).stderr(quiet()).spawn().unwrap();
        let deadline = Instant::now() + wait(kills);
        while Instant::now() < deadline {
            if let Some(status) = child.try_wait().unwrap() {
                assert!(status.success());
                return kills;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    most
}

#[test]
fn a_training_that_is_killed_again_and_again_gives_the_same_bytes() {
    let whole = project();
    assert_eq!(whole.attrflow(RUN).code, 0);
    let project = project();
    // Ever later, so that it gets on.
    let kills = kill(&project, 40, |kills| Duration::from_millis(400 * (kills + 1)));
    assert!((3..40).contains(&kills), "{kills}");
    assert!(model(&project) == model(&whole));
}

/// About four minutes: `cargo nextest run --test cli fifty --run-ignored only`.
#[test]
#[ignore = "kills for four minutes"]
fn fifty_kills_at_any_time_give_the_same_bytes() {
    let pipeline = STAGES.replace("steps = 6,", "steps = 200,");
    let project = || {
        let project = project();
        project.write("pipelines/training.toml", &pipeline);
        project
    };
    let whole = project();
    assert_eq!(whole.attrflow(RUN).code, 0);
    let project = project();
    // From half a second to four and a half, in no order.
    let kills = kill(&project, 50, |kills| Duration::from_millis(500 + (kills * 2_654_435_761) % 4000));
    assert_eq!(kills, 50, "it ended by itself: more steps are needed");
    let ran = project.attrflow(RUN);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(model(&project) == model(&whole));
}

#[test]
fn more_steps_of_a_constant_rate_go_on_from_those_that_are_there() {
    let project = project();
    let steps = |steps: usize| {
        let text = STAGES.replace("steps = 6,", &format!("steps = {steps},"));
        project.write("pipelines/training.toml", text);
        let ran = project.attrflow([&RUN[..], &["--json"]].concat());
        assert_eq!(ran.code, 0, "{ran:?}");
        model(&project)
    };
    let (four, eight) = (steps(4), steps(8));
    assert!(four != eight && steps(4) == four);
    let whole = self::project();
    whole.write("pipelines/training.toml", STAGES.replace("steps = 6,", "steps = 8,"));
    assert_eq!(whole.attrflow(RUN).code, 0);
    assert!(model(&whole) == eight);
}

#[test]
fn what_cannot_be_left_out_is_refused() {
    let project = project();
    let refused = |file: &str, parts: &[&str]| {
        project.write("out.json", file);
        let ran = project.attrflow(RUN);
        assert_eq!(ran.code, 1, "{ran:?}");
        assert!(parts.iter().all(|part| ran.err.contains(part)), "{parts:?}: {ran:?}");
    };
    project.edit("pipelines/training.toml", "\"left_out.ids\"", "\"../out.json\"");
    refused(
        "[77777, 88888]",
        &["out.json: 2 of its ids are not in the captions file of 8 images, for instance 77777"],
    );
    refused("{}", &["out.json: missing field `ids`"]);
    refused("[1.5]", &["out.json: entry 0 is 1.5, expected an image id: an integer or a text"]);
    let captions: Json =
        serde_json::from_str(&fs_err::read_to_string(project.path("data/demo/captions.json")).unwrap())
            .unwrap();
    let all: Vec<&Json> = captions["images"].as_array().unwrap().iter().map(|image| &image["id"]).collect();
    refused(
        &serde_json::to_string(&all).unwrap(),
        &["all 8 images are left out: nothing is left to train on"],
    );
    refused(&format!("[{0}, {0}]", all[0]), &["the id", "occurs twice"]);
}

#[test]
fn a_subset_that_makes_no_sense_is_refused_by_the_plan() {
    let project = project();
    let plan = |params: &str, expected: &str| {
        project.write("pipelines/training.toml", STAGES.replace("{ count = 2, seed = 3 }", params));
        let ran = project.attrflow(["plan", "pipelines/training.toml"]);
        assert!(ran.code != 0 && ran.err.contains(expected), "{expected}: {ran:?}");
    };
    plan("{ seed = 3 }", "expected either `count` or `share`");
    plan("{ count = 0 }", "`count` is 0, expected 1 or more");
    plan("{ share = 1.5 }", "`share` is not a number between 0 and 1");
    plan("{ choose = \"top\", count = 2 }", "needs the input `rank`");
    plan("{ choose = \"ids\" }", "`ids` is empty, expected the ids of images");
}

#[test]
fn a_subset_that_the_data_set_does_not_have_is_refused() {
    let project = project();
    let refused = |params: &str, expected: &str| {
        project.write("pipelines/training.toml", STAGES.replace("{ count = 2, seed = 3 }", params));
        let ran = project.attrflow(RUN);
        assert!(ran.code == 1 && ran.err.contains(expected), "{expected}: {ran:?}");
    };
    refused("{ count = 9 }", "`count` is 9, expected at most 8, the images of the captions file");
    refused("{ share = 0.01 }", "no image is chosen of 8, expected at least one: `share` may be too small");
    refused(
        "{ choose = \"ids\", ids = [\"x\"] }",
        "`ids` names `x`, which no image of the captions file has",
    );
}

#[test]
fn a_diverged_training_names_the_step_and_keeps_the_checkpoint_before() {
    let project = project();
    let ran = project.attrflow(["run", "pipelines/training.toml", "--target", "latents"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let found = Npy::open(project.path("results/training/latents/moments.npy")).unwrap();
    let (shape, row) = (found.shape().to_vec(), found.row_len());
    let mut moments = Vec::new();
    found.read_f32(0..found.rows(), &mut moments).unwrap();
    project.write(
        "pipelines/training.toml",
        STAGES
            .replace("moments = \"latents.moments\"", "moments = \"./moments.npy\"")
            .replace("left_out = \"left_out.ids\"\n", "")
            .replace("batch_size = 20", "batch_size = 2"),
    );
    // Two of eight images are seen in a step: an image that is first seen in step 2 or later breaks the second unit.
    let later = (0..8).find_map(|image| {
        let mut broken = moments.clone();
        for flip in [image, image + 8] {
            broken[flip * row..(flip + 1) * row].fill(1e30);
        }
        write_f32(project.path("pipelines/moments.npy"), &shape, &broken).unwrap();
        let ran = project.attrflow(RUN);
        assert!(ran.code == 1 && ran.err.contains("the training diverged: "), "{ran:?}");
        ran.err.contains("stage `model`, steps 2..4: step ").then_some(ran.err)
    });
    let said = later.expect("an image that is first seen in the second unit");
    assert!(said.contains("step 2: ") || said.contains("step 3: "), "{said}");
    assert!(!project.path("results/training/model").exists());
    // The checkpoint before is there, and is where another run begins.
    let ran = project.attrflow([&RUN[..], &["--json"]].concat());
    let begun =
        ran.json().into_iter().find(|line| line["event"] == "stage_started" && line["stage"] == "model");
    assert_eq!(begun.map(|line| line["units_cached"].clone()), Some(1.into()), "{ran:?}");
}

#[test]
fn a_text_encoder_or_a_data_set_of_another_shape_is_refused() {
    let project = project();
    let refused = |old: &str, new: &str, expected: &str| {
        project.write("pipelines/training.toml", STAGES.replace(old, new));
        let ran = project.attrflow(RUN);
        assert!(ran.code == 1 && ran.err.contains(expected), "{expected}: {ran:?}");
    };
    let clip = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/clip");
    let (encoder, other) = (
        "text_encoder = \"data.files/model/text_encoder\"",
        format!("text_encoder = \"{}\"", clip.display()),
    );
    refused(
        encoder,
        &other,
        "`model_max_length` is 16, expected at most 12, the positions of the text encoder",
    );
    write_f32(project.path("pipelines/other.npy"), &[16, 2, 3, 16, 16], &[0.5; 16 * 2 * 3 * 256]).unwrap();
    refused(
        "moments = \"latents.moments\"",
        "moments = \"./other.npy\"",
        "the moments do not fit the network",
    );
    write_f32(project.path("pipelines/other.npy"), &[14, 2, 4, 16, 16], &[0.5; 14 * 2 * 4 * 256]).unwrap();
    refused("moments = \"latents.moments\"", "moments = \"./other.npy\"", "14 rows, expected 16, since ");
    write_f32(project.path("pipelines/other.npy"), &[8, 1, 5, 64], &[0.5; 8 * 5 * 64]).unwrap();
    refused(
        "text_embeddings = \"latents.text_embeddings\"\ncaptions",
        "text_embeddings = \"./other.npy\"\ncaptions",
        "the text encoder gives texts of [16, 64] numbers, expected [5, 64] as on `text_embeddings`",
    );
}
