//! The first-order screen of all queries in one pass, on the demo's network, and `top_k` that begins with it.

use attrflow::io::npy::Npy;
use attrflow_statistics::correlation::spearman;
use serde_json::Value as Json;

use crate::project::{Project, Ran};

const IMAGES: usize = 12;
/// Fewer rows than the demo's; a step small enough for its first order.
const SETTINGS: [&str; 6] =
    ["--set", "loss.captions=1", "--set", "ranking.error_bars=true", "--set", "unlearn.lr=0.0000001"];
const NETWORK: &str = r#"
unet = "data.files/model/unet"
scheduler = "data.files/model/scheduler"
latents = "latents.latents"
text_embeddings = "latents.text_embeddings"
"#;

/// The screen of both queries, and rankings by it.
fn stages() -> String {
    let below = "screen.queries/${query.name}";
    format!(
        r#"
[stages.screen]
kind = "screen"
params = {{ loss = "${{loss}}", per_timestep = true }}
[stages.screen.inputs]{NETWORK}
weights = "unlearn[*].weights"

[stages.first_order]
kind = "ranking"
each = {{ query = "${{queries}}" }}
params = {{ rows = 5, images_shown = 3 }}
[stages.first_order.inputs]
influence = "{below}/influence.npy"
rank = "{below}/rank.npy"
per_timestep = "{below}/influence_per_timestep.npy"
"#
    )
}

/// A project with more stages.
fn project(stages: &str) -> Project {
    let project = Project::new(IMAGES);
    let text = fs_err::read_to_string(project.path("pipelines/demo.toml")).unwrap();
    project.write("pipelines/demo.toml", text + stages);
    project
}

fn floats(path: impl AsRef<std::path::Path>) -> Vec<f32> {
    let npy = Npy::open(path).unwrap();
    let mut values = Vec::new();
    npy.read_f32(0..npy.rows(), &mut values).unwrap();
    values
}

fn ranks(path: impl AsRef<std::path::Path>) -> Vec<usize> {
    let npy = Npy::open(path).unwrap();
    let mut values = Vec::new();
    npy.read_i64(0..npy.rows(), &mut values).unwrap();
    values.into_iter().map(|index| index as usize).collect()
}

fn doubles(values: &[f32]) -> Vec<f64> {
    values.iter().copied().map(f64::from).collect()
}

#[test]
fn one_pass_screens_all_queries_and_top_k_begins_with_it() {
    let project = project(&stages());
    project.run(&SETTINGS);
    let exact = |query: &str, name: &str| project.result(format!("influence/{query}/{name}"));
    let screened = |query: &str, name: &str| project.result(format!("screen/queries/{query}/{name}"));
    for query in ["grin", "pizza"] {
        let (first_order, full) =
            (floats(screened(query, "influence.npy")), floats(exact(query, "influence.npy")));
        let found = spearman(&doubles(&first_order), &doubles(&full)).unwrap();
        println!("{query}: {found}");
        assert!(found > 0.9, "{query}: {found}");
        let ranked = ranks(screened(query, "rank.npy"));
        assert!(ranked.windows(2).all(|pair| first_order[pair[0]] >= first_order[pair[1]]));
        // The larger of the means over timesteps of an image and its mirror image.
        let each = Npy::open(screened(query, "influence_per_timestep.npy")).unwrap();
        assert_eq!(each.shape(), [2 * IMAGES, 2]);
        let each = floats(screened(query, "influence_per_timestep.npy"));
        for (image, influence) in first_order.iter().enumerate() {
            let mean = |latent: usize| f32::midpoint(each[2 * latent], each[2 * latent + 1]);
            assert!((mean(image).max(mean(image + IMAGES)) - influence).abs() <= 1e-6 * influence.abs());
        }
        // The results are used as those of `influence` are.
        let table = project.result(format!("first_order/{query}/top.csv"));
        let table: Vec<csv::StringRecord> =
            csv::Reader::from_path(table).unwrap().records().map(Result::unwrap).collect();
        assert_eq!(table.len(), 5);
        assert_eq!(
            (&table[0][1], table[0][3].parse().ok()),
            (&*ranked[0].to_string(), Some(first_order[ranked[0]]))
        );
        assert!(project.result(format!("first_order/{query}/standard_error.npy")).exists());
    }
    assert_ne!(floats(screened("grin", "influence.npy")), floats(screened("pizza", "influence.npy")));

    let (full, first_order) =
        (floats(exact("grin", "influence.npy")), floats(screened("grin", "influence.npy")));
    let order = ranks(screened("grin", "rank.npy"));
    let losses = floats(exact("grin", "unlearned_loss.npy"));
    project.edit(
        "pipelines/demo.toml",
        r#"params = { per_timestep = "${ranking.error_bars}" }"#,
        "params = { top_k = { k = 2, screened = 4, certify_samples = 3 } }",
    );
    project.edit(
        "pipelines/demo.toml",
        "weights = \"unlearn.weights\"\npretrain_loss",
        "weights = \"unlearn.weights\"\nscreen = \"screen.queries/${query.name}/influence.npy\"\npretrain_loss",
    );
    let ran = project.run(&[&SETTINGS[..], &["--target", "ranking[grin]"]].concat());
    assert_eq!(ran.computed(), ["influence[grin]", "ranking[grin]"]);
    let report: Json = serde_json::from_slice(&fs_err::read(exact("grin", "top_k.json")).unwrap()).unwrap();
    let known: Vec<usize> = serde_json::from_value(report["exact"].clone()).unwrap();
    assert!(order[..4].iter().all(|image| known.contains(image)), "{report:#}");
    assert_eq!((known.len(), &report["screen"]["candidates"]), (7, &4.into()), "{report:#}");
    assert_eq!(report["rows"]["computed"], 7 * 2 * 2, "{report:#}");
    assert_eq!(
        (&report["certificate"]["discarded"], &report["certificate"]["sample"]),
        (&8.into(), &3.into())
    );
    let sample: Vec<usize> = known.iter().copied().filter(|image| !order[..4].contains(image)).collect();
    let of = |values: &[f32]| sample.iter().map(|&image| f64::from(values[image])).collect::<Vec<_>>();
    let correlation = report["screen"]["spearman"].as_f64().unwrap();
    assert!((correlation - spearman(&of(&first_order), &of(&full)).unwrap()).abs() < 1e-9, "{report:#}");
    // Exact values where they were computed, and those to first order elsewhere, but for rounding.
    let found = floats(exact("grin", "influence.npy"));
    for image in 0..IMAGES {
        let expected = if known.contains(&image) { full[image] } else { first_order[image] };
        assert!((found[image] - expected).abs() <= 4e-6 * losses[image], "image {image}: {report:#}");
    }
    let ranked = ranks(exact("grin", "rank.npy"));
    assert!(ranked[..7].iter().all(|image| known.contains(image)), "{ranked:?}");

    // From how many queries on the screen pays, by the times of the runs.
    let forced = ["--force", "screen", "--force", "influence[grin]", "--json"];
    let ran = project.attrflow([&["plan", "pipelines/demo.toml"], &SETTINGS[..], &forced].concat());
    let lines = ran.json();
    let pays = lines.iter().find(|line| line["screen"] == "screen").unwrap_or_else(|| panic!("{ran:?}"));
    let of = |key: &str| pays[key].as_f64().unwrap();
    assert_eq!((&pays["unit"], &pays["queries"]), (&"seconds".into(), &2.into()), "{pays}");
    // Seven of twelve images after the screen.
    assert!((of("query_after_screen") / of("exact_query") - 7.0 / 12.0).abs() < 1e-9, "{pays}");
    let expected = of("all_queries") / (of("exact_query") - of("query_after_screen"));
    assert_eq!(of("pays_from"), expected.floor() + 1.0, "{pays}");
}

#[test]
fn weights_that_cannot_be_screened_are_refused_by_file() {
    let stage = format!(
        "\n[stages.screen]\nkind = \"screen\"\nparams = {{ loss = \"${{loss}}\" }}\n[stages.screen.inputs]{NETWORK}weights = [\"../own/a.st\", \"../own/b.st\"]\n"
    );
    let project = project("");
    project.run(&["--target", "unlearn[grin]"]);
    let weights = fs_err::read(project.result("unlearn/grin/unlearned.safetensors")).unwrap();
    let model = project.path("data/demo/model/unet/diffusion_pytorch_model.safetensors");
    let model = fs_err::read(model).unwrap();
    project.write("own/a.st", &weights);
    project.write("own/b.st", &weights);
    let text = fs_err::read_to_string(project.path("pipelines/demo.toml")).unwrap();
    project.write("pipelines/demo.toml", text + &stage);
    let run = |more: &[&str]| -> Ran {
        project.attrflow([&["run", "pipelines/demo.toml", "--target", "screen"], more].concat())
    };
    let refused = |expected: &str| {
        let ran = run(&[]);
        let said = ran.out.clone() + &ran.err;
        assert!(ran.code != 0 && said.contains(expected), "{expected}: {ran:?}");
    };
    let mut wrong = weights.clone();
    let end = wrong.len();
    wrong[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    project.write("own/b.st", &wrong);
    refused("own/b.st: `");
    refused("holds values that are not finite");
    // Other weights, and those of the network itself.
    project.write("own/b.st", &model);
    refused("expected the same weights as in ");
    project.write("own/a.st", &model);
    refused("own/a.st: its weights are the network's own: nothing was unlearned");
    // A step that was divided by another number of images.
    let at = weights.windows(13).position(|bytes| bytes == br#""images":"12""#).unwrap();
    let mut other = weights.clone();
    other[at..at + 13].copy_from_slice(br#""images":"13""#);
    project.write("own/a.st", &weights);
    project.write("own/b.st", &other);
    refused("own/b.st: its step was divided by 13 images, expected 12");
    let ran = run(&["--set", "loss.noise=per_batch", "--set", "loss.batch_size=8"]);
    assert!(ran.code != 0 && ran.err.contains("`screen` needs `noise = \"per_image\"`"), "{ran:?}");
    // The same weights under two names give the same influences.
    project.write("own/b.st", &weights);
    assert_eq!(run(&[]).code, 0);
    let of = |name: &str| floats(project.result(format!("screen/queries/{name}/influence.npy")));
    let [a, b] = [of("a"), of("b")];
    assert_eq!(a.len(), IMAGES);
    assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= 1e-5 * a.abs()), "{a:?} {b:?}");
}

#[test]
fn a_screen_chooses_images_for_top_k_alone() {
    let project = project(&stages());
    let plan = || {
        let ran = project.attrflow(["plan", "pipelines/demo.toml", "--set", "ranking.error_bars=true"]);
        assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{ran:?}");
        ran.err
    };
    let params = r#"params = { per_timestep = "${ranking.error_bars}" }"#;
    let pays = |parts: [&str; 2]| {
        let ran = project.attrflow(["plan", "pipelines/demo.toml", "--set", "ranking.error_bars=true"]);
        assert_eq!(ran.code, 0, "{ran:?}");
        let text = ran.out.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(parts.iter().all(|part| text.contains(part)), "{parts:?}: {text}");
    };
    // No stage reads it: it stands for exact influences.
    pays(["screen pays from 4 queries on, and has 2: ", " rows for all, in place of "]);
    project.edit("pipelines/demo.toml", params, "params = { top_k = { k = 3, screened = 2 } }");
    assert!(plan().contains("`screened` is 2, expected at least 3, the `k` images to find"));
    project.edit("pipelines/demo.toml", "screened = 2", "screened = 5");
    assert!(plan().contains("`screened` needs the input `screen`"));
    project.edit("pipelines/demo.toml", "params = { top_k = { k = 3, screened = 5 } }", params);
    project.edit(
        "pipelines/demo.toml",
        "weights = \"unlearn.weights\"\npretrain_loss",
        "weights = \"unlearn.weights\"\nscreen = \"screen.queries/${query.name}/influence.npy\"\npretrain_loss",
    );
    assert!(plan().contains("`screen` chooses images for `top_k`"));
    // Six of twelve images for each query.
    project.edit(
        "pipelines/demo.toml",
        params,
        "params = { top_k = { k = 3, screened = 5, certify_samples = 1 } }",
    );
    pays([
        "screen pays from 7 queries on, and has 2: ",
        "for the exact influence of a query; a row forward and backward counted",
    ]);
    project.edit(
        "pipelines/demo.toml",
        "params = { top_k = { k = 3, screened = 5, certify_samples = 1 } }",
        params,
    );
    // The network is that of the steps.
    let stage = stages();
    let text = fs_err::read_to_string(project.path("pipelines/demo.toml")).unwrap();
    let other = stage.replacen("\"data.files/model/unet\"", "\"../data/demo/model/unet\"", 1);
    project.write("pipelines/demo.toml", text.replace(&stage, &other));
    let error = plan();
    let expected = "and of the stage `unlearn[grin]` on the input `weights` it is `data.files/model/unet`";
    assert!(error.contains(expected) && !error.contains("unlearn[pizza]"), "{error}");
}
