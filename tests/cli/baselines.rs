//! `gradients` and `baseline` through the program, on the demo's network.

use std::path::Path;

use attrflow::io::npy::Npy;
use attrflow::io::npy::writer::write_f32;
use serde_json::Value as Json;

use crate::project::{Project, Ran, copy};

const IMAGES: usize = 6;

const PIPELINE: &str = r#"
config = "../configs/demo.toml"
include = ["parts/emoji.toml"]

[stages.generate]
kind = "generate"
params = { caption = "an emoji of grinning face", steps = 4, guidance_scale = 3.0 }

[stages.generate.inputs]
unet = "data.files/model/unet"
scheduler = "data.files/model/scheduler"
vae = "data.files/model/vae"
text_encoder = "data.files/model/text_encoder"
tokenizer = "data.files/model/tokenizer"

[stages.gradients]
kind = "gradients"
params = { loss = "${loss}", of = "loss", projection_dim = 256 }

[stages.gradients.inputs]
unet = "data.files/model/unet"
scheduler = "data.files/model/scheduler"
latents = "latents.latents"
text_embeddings = "latents.text_embeddings"

[stages.query_gradients]
kind = "gradients"

[stages.query_gradients.params]
loss = { time_samples = 2, captions = 1, noise = "per_image", seed = 1 }
of = "loss"
projection_dim = 256

[stages.query_gradients.inputs]
unet = "data.files/model/unet"
scheduler = "data.files/model/scheduler"
latents = "generate.latents"
text_embeddings = "generate.text_embeddings"

[stages.scores]
kind = "baseline"
params = { method = "dot" }

[stages.scores.inputs]
gradients = "gradients.gradients"
query_gradients = "query_gradients.gradients"
latents = "latents.latents"
query_latents = "generate.latents"
text_embeddings = "latents.text_embeddings"
query_text_embeddings = "generate.text_embeddings"
images = "data.files/images"
captions = "data.files/captions.json"
query_image = "generate.images/0.png"

[stages.ranking]
kind = "ranking"

[stages.ranking.inputs]
influence = "scores.influence"
rank = "scores.rank"
captions = "data.files/captions.json"
images = "data.files/images"
"#;

fn project() -> Project {
    let project = Project::new(IMAGES);
    project.write("pipelines/demo.toml", PIPELINE);
    project
}

fn run(project: &Project) -> Ran {
    project.run(&["--target", "ranking"])
}

fn refused(project: &Project, verb: &str, expected: &str) {
    let ran = project.attrflow([verb, "pipelines/demo.toml", "--target", "ranking"]);
    assert!(ran.code != 0 && ran.err.contains(expected), "{expected}: {ran:?}");
}

fn matrix(project: &Project, file: &str) -> Vec<Vec<f64>> {
    let npy = Npy::open(project.result(file)).unwrap();
    let mut values = Vec::new();
    npy.read_f32(0..npy.rows(), &mut values).unwrap();
    values.chunks(npy.row_len()).map(|row| row.iter().copied().map(f64::from).collect()).collect()
}

fn scores(project: &Project) -> Vec<f32> {
    Npy::vector(project.result("scores/influence.npy")).unwrap()
}

fn summary(project: &Project) -> Json {
    let text = fs_err::read(project.result("ranking/top.json")).unwrap();
    serde_json::from_slice::<Json>(&text).unwrap()["summary"].clone()
}

#[test]
fn a_ranking_takes_the_scores_of_every_baseline() {
    let project = project();
    let ran = run(&project);
    let first = ["data", "generate", "gradients", "latents", "query_gradients", "ranking", "scores"];
    assert_eq!(ran.computed(), first);
    let (training, query) =
        (matrix(&project, "gradients/gradients.npy"), matrix(&project, "query_gradients/gradients.npy"));
    assert_eq!((training.len(), query.len()), (2 * IMAGES, 1));
    assert!(training[0].len() <= 256 && training[0].len() == query[0].len());
    let product = |row: &[f64]| row.iter().zip(&query[0]).map(|(a, b)| a * b).sum::<f64>();
    for (image, found) in scores(&project).into_iter().enumerate() {
        let expected = product(&training[image]).max(product(&training[image + IMAGES]));
        assert!((f64::from(found) - expected).abs() <= 1e-5 * expected.abs(), "{found} {expected}");
    }
    let why = summary(&project)["no_error_bars"].as_str().unwrap().to_owned();
    assert!(why.contains("a baseline gives one number for each image"), "{why}");

    // Other methods and other damping compute no gradient again.
    let mut seen = vec![scores(&project)];
    let mut method = "dot".to_owned();
    for (next, more) in [
        ("cosine", ""),
        ("trak", ""),
        ("trak", ", damping = 5.0"),
        ("vae", ""),
        ("text", ""),
        ("pixel", ", pixels = 16"),
        ("vae", ", flips = \"mean\""),
    ] {
        let new = format!("{next}\"{more}");
        let old = if method.contains('"') { method.clone() } else { format!("{method}\"") };
        project.edit("pipelines/demo.toml", &format!("method = \"{old} }}"), &format!("method = \"{new} }}"));
        method = new;
        assert_eq!(run(&project).computed(), ["ranking", "scores"], "{method}");
        let found = scores(&project);
        assert!(found.iter().all(|score| score.is_finite()) && !seen.contains(&found), "{method}: {found:?}");
        if next != "trak" {
            assert!(found.iter().all(|score| (-1.0..=1.0 + 1e-6).contains(score)), "{method}: {found:?}");
        }
        seen.push(found);
    }

    project.edit("pipelines/demo.toml", &method, "d-trak\"");
    refused(
        &project,
        "plan",
        "`method = \"d-trak\"` needs gradients with `of = \"output\"`, and those on `gradients` have `of = \"loss\"`",
    );
    let text = fs_err::read_to_string(project.path("pipelines/demo.toml")).unwrap();
    project.write(
        "pipelines/demo.toml",
        text.replace("of = \"loss\"", "of = \"output\", shared_noise = true")
            .replace("seed = 1", "seed = 0")
            .replace(
                "\"output\", shared_noise = true\nprojection",
                "\"output\"\nshared_noise = true\nprojection",
            ),
    );
    assert_eq!(run(&project).computed(), ["gradients", "query_gradients", "ranking", "scores"]);
    assert!(!seen.contains(&scores(&project)));
}

#[test]
fn what_they_take_is_known_before_they_run() {
    let project = project();
    let predicted = |method: &str, arguments: &[&str]| {
        project.write("pipelines/demo.toml", PIPELINE.replace("\"dot\"", method));
        let plan = ["plan", "pipelines/demo.toml", "--json", "--target", "ranking"];
        let ran = project.attrflow([&plan, arguments].concat());
        assert_eq!(ran.code, 0, "{ran:?}");
        let lines = ran.json();
        ["gradients", "scores"]
            .map(|stage| lines.iter().find(|line| line["stage"] == stage).unwrap()["predicted"].clone())
    };
    for method in ["\"trak\"", "\"text\""] {
        for found in predicted(method, &["--measure"]) {
            assert!((0.0..600.0).contains(&found["seconds"].as_f64().unwrap()), "{method}: {found}");
        }
    }
    // The headers of the parts, too, take room.
    let [gradients, _] = predicted("\"trak\"", &[]);
    run(&project);
    let bytes = fs_err::metadata(project.result("gradients/gradients.npy")).unwrap().len();
    assert!(gradients["disk"].as_u64().unwrap() >= bytes, "{gradients} {bytes}");
    assert!(gradients["disk"].as_u64().unwrap() <= 3 * bytes, "{gradients} {bytes}");
}

#[test]
fn a_training_image_as_the_query_is_the_first_by_similarity() {
    let project = project();
    project.edit("pipelines/demo.toml", "\"dot\"", "\"vae\", index = 4");
    project.edit(
        "pipelines/demo.toml",
        "query_latents = \"generate.latents\"",
        "query_latents = \"latents.latents\"",
    );
    run(&project);
    let found = scores(&project);
    assert!(
        (found[4] - 1.0).abs() < 1e-6 && found.iter().filter(|score| **score > 0.999).count() == 1,
        "{found:?}"
    );
    assert_eq!(Npy::open(project.result("scores/rank.npy")).unwrap().shape(), [IMAGES]);
    project.edit("pipelines/demo.toml", "index = 4", "index = 12");
    refused(&project, "run", "`index` is 12, expected less than 12, the rows of ");
    project.edit("pipelines/demo.toml", "\"vae\", index = 12", "\"text\", index = 4");
    project.edit(
        "pipelines/demo.toml",
        "\"generate.text_embeddings\"\nimages",
        "\"latents.text_embeddings\"\nimages",
    );
    run(&project);
    assert!((scores(&project)[4] - 1.0).abs() < 1e-6);
}

#[test]
fn what_a_baseline_cannot_compare_is_refused() {
    let project = project();
    let edited = |from: &str, to: &str| {
        assert!(PIPELINE.contains(from), "{from}");
        project.write("pipelines/demo.toml", PIPELINE.replacen(from, to, 1));
    };
    edited("gradients = \"gradients.gradients\"\n", "");
    refused(&project, "plan", "`method = \"dot\"` needs the input `gradients`");
    edited("\"dot\"", "\"clip\"");
    refused(&project, "plan", "`method = \"clip\"` needs the input `clip`");
    edited(
        "loss = \"${loss}\"",
        "loss = { time_samples = 2, captions = 1, noise = \"per_batch\", batch_size = 4 }",
    );
    refused(&project, "plan", "`loss` has `noise = \"per_batch\"`, expected `\"per_image\"`");
    edited(
        "loss = \"${loss}\"",
        "loss = { time_samples = 2, captions = 1, noise = \"per_image\", precision = \"bf16\" }",
    );
    refused(&project, "plan", "`loss` has another `precision` than \"fp32\"");
    project.write("pipelines/demo.toml", PIPELINE.replace("projection_dim = 256", "projection_dim = 2"));
    refused(&project, "run", "`projection_dim` is 2: expected at least ");
    edited("\"dot\"", "\"trak\", of = \"loss\"");
    refused(&project, "plan", "`of` is inherited from the stage on the input `gradients`");

    let large = "projection_dim = 1048576, projection = \"dense\", select = \"attn\"";
    let all = PIPELINE.replace("projection_dim = 256 }", &format!("{large} }}"));
    project.write("pipelines/demo.toml", all.replace("projection_dim = 256", &large.replace(", ", "\n")));
    let ran = project.attrflow(["run", "pipelines/demo.toml", "--target", "gradients"]);
    let expected = "`projection_dim` is 1048576, for which dense random matrices of these weights take ";
    assert!(ran.code != 0 && ran.err.contains(expected), "{ran:?}");

    // Gradients of one's own.
    edited("query_gradients = \"query_gradients.gradients\"", "query_gradients = \"../own.npy\"");
    write_f32(project.path("own.npy"), &[1, 3], &[1.0, 2.0, 3.0]).unwrap();
    refused(&project, "run", "own.npy: rows of the shape [3], expected [");
    let width = Npy::open(project.result("gradients/gradients.npy")).unwrap().row_len();
    let mut own = vec![1.0; width];
    own[2] = f32::NAN;
    write_f32(project.path("own.npy"), &[1, width], &own).unwrap();
    refused(&project, "run", "own.npy: the value at [0, 2] is NaN, expected finite values");
    own[2] = 1.0;
    write_f32(project.path("own.npy"), &[1, width], &own).unwrap();
    run(&project);
    project.edit("pipelines/demo.toml", "gradients = \"gradients.gradients\"", "gradients = \"../own.npy\"");
    refused(&project, "run", "own.npy: 1 rows, expected 6 or 12 (with mirror images)");
}

#[test]
fn a_training_picture_as_the_query_is_found_by_its_pixels_and_by_encoders() {
    let project = project();
    for (folder, name) in [("clip_image", "clip"), ("dino/dinov2", "dino")] {
        copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(folder), &project.path(name));
    }
    project.edit(
        "pipelines/demo.toml",
        "query_image = \"generate.images/0.png\"",
        "query_image = \"data.files/images/000005.png\"\nclip = \"../clip\"\ndino = \"../dino\"",
    );
    let mut before = "\"dot\"".to_owned();
    for method in ["\"pixel\", pixels = 24", "\"clip\"", "\"dino\""] {
        project.edit("pipelines/demo.toml", &before, method);
        before = method.to_owned();
        run(&project);
        let found = scores(&project);
        let others = found.iter().enumerate().filter(|(image, _)| *image != 4).map(|(_, score)| *score);
        assert!((found[4] - 1.0).abs() < 1e-6 && others.fold(0.0, f32::max) < 1.0 - 1e-5, "{found:?}");
    }
    project.edit("pipelines/demo.toml", "dino = \"../dino\"", "dino = \"data.files/model/unet\"");
    refused(&project, "run", "config.json");
}

const ON_THE_WAY: &str = r#"
[stages.on_the_way]
kind = "generate"
params = { caption = "an emoji of grinning face", steps = 4, guidance_scale = 3.0, denoised_at = 400 }

[stages.on_the_way.inputs]
unet = "data.files/model/unet"
scheduler = "data.files/model/scheduler"
vae = "data.files/model/vae"
text_encoder = "data.files/model/text_encoder"
tokenizer = "data.files/model/tokenizer"
"#;

#[test]
fn a_drawing_is_attributed_on_its_way() {
    let project = project();
    let of_query = "latents = \"generate.latents\"\ntext_embeddings = \"generate";
    let journey = PIPELINE
        .replace(
            "time_samples = 2, captions = 1, noise = \"per_image\", seed = 1 }",
            "time_samples = 1, captions = 1, draws = 3, noise = \"per_image\", seed = 1 }\ntimestep = 400",
        )
        .replace(of_query, &of_query.replace("generate", "on_the_way"))
        .replace("\"dot\"", "\"journey-trak\"");
    project.write("pipelines/demo.toml", format!("{journey}{ON_THE_WAY}"));
    let first =
        ["data", "gradients", "generate", "latents", "on_the_way", "query_gradients", "ranking", "scores"];
    let mut ran = run(&project).computed();
    ran.sort();
    let mut first = first.to_vec();
    first.sort_unstable();
    assert_eq!(ran, first);
    assert!(scores(&project).iter().all(|score| score.is_finite()));
    // It is another picture than the one at the end.
    let latents = |stage: &str| fs_err::read(project.result(format!("{stage}/latents.npy"))).unwrap();
    assert_ne!(latents("on_the_way"), latents("generate"));

    project.edit("pipelines/demo.toml", "\"journey-trak\"", "\"trak\"");
    refused(&project, "plan", "has `timestep`, which only `journey-trak` compares: remove it");
    project.edit("pipelines/demo.toml", "\"trak\"", "\"journey-trak\"");
    project.edit("pipelines/demo.toml", "timestep = 400\n", "timestep = 1000\n");
    refused(&project, "run", "`timestep` is 1000, expected less than 1000, the model's timesteps");
    project.edit("pipelines/demo.toml", "timestep = 1000\n", "");
    refused(&project, "plan", "`journey-trak` needs the query's gradients at one timestep: set `timestep`");
    project.edit("pipelines/demo.toml", "denoised_at = 400", "denoised_at = 1000");
    project.edit("pipelines/demo.toml", "\"journey-trak\"", "\"trak\"");
    refused(&project, "run", "`denoised_at` is 1000, expected less than 1000, the model's timesteps");
}

#[test]
fn gradients_that_are_not_made_alike_are_refused() {
    let project = project();
    for (from, to, expected) in [
        (
            "seed = 1 }",
            "seed = 0 }",
            "have one `loss.seed`, 0, so that the first query and the first training image share their noise",
        ),
        (
            "of = \"loss\"\nprojection_dim = 256",
            "of = \"output\"\nprojection_dim = 256",
            "has `of = \"output\"`, and that on `gradients` \"loss\"",
        ),
        (
            "of = \"loss\"\nprojection_dim = 256",
            "of = \"loss\"\nprojection_dim = 256\nseed = 5",
            "has `seed = 5`, and that on `gradients` 0",
        ),
        (
            "of = \"loss\"\nprojection_dim = 256",
            "of = \"loss\"\nprojection_dim = 128",
            "has `projection_dim = 128`, and that on `gradients` 256",
        ),
        (
            "of = \"loss\"\n",
            "of = \"loss\"\nselect = \"attn\"\n",
            "has `select = \"attn\"`, and that on `gradients` \"cross-attn-kv\"",
        ),
    ] {
        assert!(PIPELINE.contains(from), "{from}");
        project.write("pipelines/demo.toml", PIPELINE.replacen(from, to, 1));
        refused(&project, "plan", expected);
    }
}

#[test]
fn gradients_and_scores_of_an_earlier_run_are_adopted() {
    let project = project();
    run(&project);
    let mine = project.path("mine");
    copy(&project.path("results/demo"), &mine);
    for folder in ["cache", "results"] {
        fs_err::remove_dir_all(project.path(folder)).unwrap();
    }
    project.run(&["--target", "latents", "--target", "query_gradients"]);
    let adopt = |stage: &str, outputs: &[&str]| {
        project.attrflow([&["adopt", stage], outputs, &["--pipeline", "pipelines/demo.toml"]].concat())
    };
    write_f32(mine.join("narrow.npy"), &[2 * IMAGES, 3], &[0.5; 6 * IMAGES]).unwrap();
    let ran = adopt("gradients", &["mine/narrow.npy"]);
    assert!(ran.code == 1 && ran.err.contains("narrow.npy: shape [12, 3], expected [12, "), "{ran:?}");
    let ran = adopt("gradients", &["mine/gradients/gradients.npy"]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    let ran = adopt("scores", &["influence=mine/scores/influence.npy", "rank=mine/scores/rank.npy"]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    assert_eq!(run(&project).computed(), ["ranking"]);
}
