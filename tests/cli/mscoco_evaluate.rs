//! The published evaluation in miniature: the pipeline and the config as they are, on small published files.

use std::path::Path;

use serde_json::Value as Json;

use crate::mscoco::{arguments, local};
use crate::project::copy;

/// What makes the evaluation small as well: two queries, one number of images, two steps.
const SMALL: [&str; 11] = [
    // Drawings are compared with those of the computed samples: the published ones are of another model.
    "compute.samples=true",
    "generate.batch_size=2",
    "sources.stable_diffusion=./model",
    "sources.clip=./clip",
    "evaluate.clip=true",
    "evaluate.queries=[0, 1]",
    "evaluate.k=[1, 2]",
    "evaluate.random_sets=[0, 1]",
    "evaluate.train.steps=2",
    "evaluate.train.batch_size=6",
    "evaluate.train.lr_warmup_steps=1",
];

#[test]
#[ignore = "trains in miniature for a minute"]
fn models_without_top_images_are_judged_against_those_without_random_ones() {
    let (project, _) = local();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let file = "pipelines/mscoco_evaluate.toml";
    project.write(file, fs_err::read(root.join(file)).unwrap());
    copy(&root.join("tests/golden/clip_image"), &project.path("clip"));
    let sets = arguments(&SMALL);
    let ran = project.attrflow(["run", file, "--device", "cpu"].into_iter().chain(sets));
    assert_eq!(ran.code, 0, "{ran:?}");
    let read = |name: &str| {
        fs_err::read_to_string(project.path("results/mscoco_evaluate/evaluate").join(name)).unwrap()
    };
    let summary: Json = serde_json::from_str(&read("summary.json")).unwrap();
    for k in [1, 2] {
        let found = &summary["tests"][format!("leave-k-out {k}")];
        assert_eq!((&found["queries"], &found["random_sets"]), (&2.into(), &2.into()), "{summary:#}");
        let [effect, floor] = ["effect", "floor"].map(|key| found[key].as_f64().unwrap());
        let net = found["estimate"]["mean"].as_f64().unwrap();
        assert!((effect - floor - net).abs() < 1e-12 && net != 0.0, "{summary:#}");
        for column in ["pixel_mse", "latent_cosine", "clip_cosine"] {
            for arm in ["removed", "random", "control"] {
                assert!(found["drawings"][column][arm].is_f64(), "{column} {arm}: {summary:#}");
            }
        }
    }
    let effects = read("effects.csv");
    let arms = |method: &str| effects.lines().filter(|line| line.starts_with(method)).count();
    // Two queries at two K; two sets at two K, each on both queries.
    assert_eq!((arms("unlearning,"), arms("random,")), (4, 8), "{effects}");
    // Of each query its own first images are left out, and of each K as many.
    let ids = |query: usize, k: usize| {
        let file = project.path(format!("results/mscoco_evaluate/top/{query},{k}/ids.json"));
        let text: Json = serde_json::from_slice(&fs_err::read(file).unwrap()).unwrap();
        text["ids"].as_array().unwrap().len()
    };
    assert_eq!([ids(0, 1), ids(0, 2), ids(1, 2)], [1, 2, 2]);
}
