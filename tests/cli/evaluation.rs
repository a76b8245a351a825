//! `evaluate` and `universe` through the program, on made-up losses and rankings.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use attrflow::io::npy::writer::{write_f32, write_i64};
use serde_json::Value as Json;

use crate::project::{Project, copy};

const QUERIES: [&str; 4] = ["ape", "bee", "cat", "dog"];
const IMAGES: usize = 40;

const REMOVAL: &str = r#"
[stages.judge]
kind = "evaluate"
params = { removal = "drift", k = 10, names = { control = [] } }

[stages.judge.inputs]
control = "../made/control.csv"
removed = ["../made/ape.csv", "../made/bee.csv", "../made/cat.csv", "../made/dog.csv"]
random = ["../made/0.csv", "../made/1.csv"]
"#;

fn project(pipeline: &str) -> Project {
    let project = Project::new(8);
    project.write("pipelines/judge.toml", pipeline);
    fs_err::create_dir_all(project.path("made")).unwrap();
    project
}

fn losses(project: &Project, name: &str, losses: &[(&str, f64)]) {
    let rows: String = losses.iter().map(|(query, loss)| format!("{query},{loss},,\n")).collect();
    project.write(&format!("made/{name}.csv"), format!("query,loss,pixel_mse,latent_cosine\n{rows}"));
}

fn judge(project: &Project) -> Json {
    let ran = project.attrflow(["run", "pipelines/judge.toml"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let text = fs_err::read_to_string(project.path("results/judge/judge/summary.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn refused(project: &Project, expected: &str) {
    let ran = project.attrflow(["run", "pipelines/judge.toml"]);
    assert!(ran.code != 0 && ran.err.contains(expected), "{expected}: {ran:?}");
}

/// The control, two random sets that cost 0.001 and 0.003, and models without top images.
fn removal(project: &Project, effects: [f64; 4]) {
    // A query without a removed model counts nowhere.
    let all = |loss: f64, of_another: f64| {
        let own = QUERIES.map(|query| (query, loss));
        [&own[..], &[("eel", of_another)]].concat()
    };
    losses(project, "control", &all(0.05, 0.05));
    losses(project, "0", &all(0.051, 0.9));
    losses(project, "1", &all(0.053, 0.1));
    for (query, effect) in QUERIES.into_iter().zip(effects) {
        losses(project, query, &[(query, 0.05 + effect)]);
    }
}

#[test]
fn left_out_images_are_judged_against_random_ones() {
    let project = project(REMOVAL);
    removal(&project, [0.010, 0.012, 0.011, 0.015]);
    let summary = judge(&project);
    let found = &summary["tests"]["drift"];
    assert_eq!((&found["verdict"], &found["queries"]), (&"holds".into(), &4.into()), "{summary:#}");
    // Effects 10, 12, 11, 15 less a floor of 2: mean 10; the sets' means are 1 and 3. By scipy, with Welch's 3.229 degrees of freedom.
    let near = |value: &Json, expected: f64| (value.as_f64().unwrap() - expected).abs() < 5e-6;
    let estimate = &found["estimate"];
    assert!(near(&estimate["mean"], 0.010) && near(&estimate["low"], 0.010 - 0.004_502), "{summary:#}");
    assert!(near(&found["floor"], 0.002) && near(&found["effect"], 0.012), "{summary:#}");
    let table = fs_err::read_to_string(project.path("results/judge/judge/effects.csv")).unwrap();
    assert_eq!(table.lines().count(), 1 + 2 * 5 + 4, "{table}");
    assert!(table.contains("\nunlearning,ape,10,,,0.06"), "{table}");
    let svg = fs_err::read_to_string(project.path("results/judge/judge/evaluation.svg")).unwrap();
    assert!(svg.contains(">K = 10<") && svg.contains(">holds<"), "{svg}");

    removal(&project, [-0.010, -0.012, -0.011, -0.015]);
    assert_eq!(judge(&project)["tests"]["drift"]["verdict"], "does not hold");
    removal(&project, [0.010, -0.012, 0.011, -0.015]);
    assert_eq!(judge(&project)["tests"]["drift"]["verdict"], "undecided");
}

#[test]
fn losses_that_do_not_fit_are_refused() {
    let project = project(REMOVAL);
    removal(&project, [0.01; 4]);
    losses(&project, "control", &[("ape", 0.05)]);
    refused(&project, "no loss of the query `bee`, expected one of ape");
    removal(&project, [0.01; 4]);
    losses(&project, "ape", &[("ape", -1.0)]);
    refused(&project, "ape.csv: the loss of `ape` is -1, expected 0 or more");
    losses(&project, "ape", &[("ape", 0.1), ("ape", 0.2)]);
    refused(&project, "ape.csv: the query `ape` occurs twice");
    project.write("made/ape.csv", "query,lost\nape,1\n");
    refused(&project, "ape.csv: ");
    let plan = |from: &str, to: &str, expected: &str| {
        project.write("pipelines/judge.toml", REMOVAL.replace(from, to));
        let ran = project.attrflow(["plan", "pipelines/judge.toml"]);
        assert!(ran.code != 0 && ran.err.contains(expected), "{expected}: {ran:?}");
    };
    plan("control = \"../made/control.csv\"\n", "", "`removed` needs the input `control`");
    plan("k = 10", "k = 0", "`k` is 0, expected 1 or more");
    removal(&project, [0.01; 4]);
    project.write("pipelines/judge.toml", REMOVAL.replace(" k = 10,", ""));
    refused(&project, "`k` is missing: the names on `removed` do not say how many images are left out");
    // Two controls of which nothing says which is whose.
    let two = REMOVAL.replace(
        "control = \"../made/control.csv\"",
        "control = [\"../made/control.csv\", \"../made/0.csv\"]",
    );
    project.write("pipelines/judge.toml", two);
    refused(&project, "`control` has two models that its names do not tell apart");
}

const LDS: &str = r#"
[stages.judge]
kind = "evaluate"
params = { names = { scores = ["method", "query"] }, top = [5], resamples = 300 }

[stages.judge.inputs]
recorded = "../made"
scores = [SCORES]
"#;

/// A random number between 0 and 1 that depends on the arguments alone.
fn chance(numbers: &[usize]) -> f64 {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    // The last zeros mix the bits of what comes before.
    for number in numbers.iter().chain(&[0, 0, 0]) {
        state = (state ^ *number as u64).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        state ^= state >> 29;
    }
    (state >> 11) as f64 / (1_u64 << 53) as f64
}

/// Twenty halves with two seeds each, whose losses are minus the sum of each query's true scores, and noise.
#[test]
fn scores_that_predict_losses_on_halves_are_told_from_those_that_do_not() {
    let score = |query: usize, image: usize| chance(&[1, query, image]);
    let methods = ["true", "negated", "random"];
    let files: Vec<String> = methods
        .iter()
        .flat_map(|method| QUERIES.map(|query| format!("\"../made/{method},{query}.npy\"")))
        .collect();
    let project = project(&LDS.replace("SCORES", &files.join(", ")));
    let mut subsets: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    let mut table = "subset,seed,query,loss\n".to_owned();
    for subset in 0..20 {
        let mut kept: Vec<usize> = (0..IMAGES).collect();
        kept.sort_by(|a, b| chance(&[2, subset, *a]).total_cmp(&chance(&[2, subset, *b])));
        kept.truncate(IMAGES / 2);
        for (place, query) in QUERIES.into_iter().enumerate() {
            let sum: f64 = kept.iter().map(|image| score(place, *image)).sum();
            for seed in [1, 2] {
                let noise = chance(&[3, subset, place, seed]) - 0.5;
                table += &format!("{subset},{seed},{query},{}\n", 50.0 - sum + noise);
            }
        }
        subsets.insert(subset.to_string(), kept);
    }
    project.write("made/losses.csv", &table);
    let subsets = serde_json::json!({ "images": IMAGES, "subsets": subsets });
    project.write("made/subsets.json", subsets.to_string());
    for (place, query) in QUERIES.into_iter().enumerate() {
        let scores =
            |of: &dyn Fn(usize) -> f64| (0..IMAGES).map(|image| of(image) as f32).collect::<Vec<f32>>();
        for (method, values) in [
            ("true", scores(&|image| score(place, image))),
            ("negated", scores(&|image| -score(place, image))),
            ("random", scores(&|image| chance(&[4, place, image]))),
        ] {
            write_f32(project.path(format!("made/{method},{query}.npy")), &[IMAGES], &values).unwrap();
        }
    }
    let summary = judge(&project);
    let of = |method: &str| summary["tests"][format!("lds {method}")].clone();
    let mean = |method: &str| of(method)["estimate"]["mean"].as_f64().unwrap();
    assert_eq!(of("true")["verdict"], "holds", "{summary:#}");
    assert_eq!(of("negated")["verdict"], "does not hold", "{summary:#}");
    assert_eq!(of("random")["verdict"], "undecided", "{summary:#}");
    assert_eq!(mean("true"), -mean("negated"));
    let ceiling = of("true")["ceiling"].as_f64().unwrap();
    assert!(ceiling > 0.9 && (mean("true") - ceiling).abs() < 0.05, "{summary:#}");
    // Removing the five highest-scored images raises the loss by more than five random ones do.
    assert!(of("true")["removal_by_regression"][0]["effect"]["low"].as_f64().unwrap() > 0.0, "{summary:#}");
    // What was read is written for the next evaluation.
    let again = fs_err::read_to_string(project.path("results/judge/judge/losses.csv")).unwrap();
    assert_eq!(again.lines().count(), table.lines().count());

    project.write("made/losses.csv", table.replace("\n7,1,", "\n77,1,"));
    refused(&project, "losses.csv: the subset `77` is not in subsets.json");
    project.write("made/losses.csv", table.lines().take(3).collect::<Vec<_>>().join("\n"));
    refused(&project, "subsets have losses, expected 3 or more");
}

const KNOWN: &str = r#"
[stages.judge]
kind = "evaluate"

[stages.judge.inputs]
self_rank = ["../made/ape.npy", "../made/bee.npy"]
self_relevant = ["../made/first/ape.npy", "../made/first/bee.npy"]
exemplar_rank = ["../made/x,0.npy", "../made/x,1.npy", "../made/y,0.npy"]
exemplar_relevant = ["../made/first/x.npy", "../made/first/y.npy"]
planted_rank = "../made/four.npy"
planted_relevant = "../made/first/four.npy"
"#;

/// A ranking of ten images that begins with these.
fn ranking(project: &Project, name: &str, first: &[i64]) {
    let rest = (0..10).filter(|image| !first.contains(image));
    let order: Vec<i64> = first.iter().copied().chain(rest).collect();
    write_i64(project.path(format!("made/{name}.npy")), &[10], &order).unwrap();
}

#[test]
fn known_influences_are_judged_by_their_ranks() {
    let project = project(KNOWN);
    fs_err::create_dir_all(project.path("made/first")).unwrap();
    let relevant = |name: &str, images: &[i64]| {
        write_i64(project.path(format!("made/first/{name}.npy")), &[images.len()], images).unwrap();
    };
    for (name, images) in
        [("ape", &[7][..]), ("bee", &[8]), ("x", &[9]), ("y", &[4]), ("four", &[2, 3, 5, 6])]
    {
        relevant(name, images);
    }
    ranking(&project, "ape", &[7]);
    ranking(&project, "bee", &[1, 8]);
    ranking(&project, "x,0", &[9]);
    ranking(&project, "x,1", &[0, 9]);
    ranking(&project, "y,0", &[0, 1, 2, 4]);
    ranking(&project, "four", &[5, 2, 9, 3, 6]);
    let summary = judge(&project);
    let tests = &summary["tests"];
    let near = |value: &Json, expected: f64| (value.as_f64().unwrap() - expected).abs() < 1e-9;
    let own = &tests["self-influence"];
    assert!(near(&own["estimate"]["mean"], 0.75) && near(&own["first"], 0.5), "{summary:#}");
    // H_10 / 10.
    assert!(near(&own["chance"], 0.292_896_825_396_825_4), "{summary:#}");
    assert_eq!(own["verdict"], "undecided", "two queries are too few: {summary:#}");
    let exemplars = &tests["exemplars"];
    assert_eq!((&exemplars["exemplars"], &exemplars["drawings"]), (&2.into(), &3.into()));
    assert!(near(&exemplars["recall@1"], 0.25) && near(&exemplars["estimate"]["mean"], 1.0), "{summary:#}");
    assert!(near(&exemplars["mean_average_precision"], (1.0 + 0.5 + 0.25) / 3.0), "{summary:#}");
    assert_eq!(tests["planted copies"]["verdict"], "holds", "{summary:#}");
    ranking(&project, "four", &[5, 2, 9, 1, 3, 6]);
    assert_eq!(judge(&project)["tests"]["planted copies"]["verdict"], "does not hold");

    relevant("ape", &[10]);
    refused(&project, "ape.npy: value 0 is 10, expected an image from 0 to 10");
    relevant("ape", &[]);
    refused(&project, "`ape`: no image should be found, expected at least one");
    relevant("ape", &[7]);
    write_i64(project.path("made/ape.npy"), &[3], &[1, 1, 2]).unwrap();
    relevant("ape", &[0]);
    refused(&project, "ape.npy: an image occurs twice, and another not at all");
}

const RECORDED: &str = r#"
[stages.half]
kind = "subset"
each = { half = HALVES }
params = { choose = "random", share = 0.5, seed = "${half}" }
inputs = { captions = "CAPTIONS" }

[stages.judge]
kind = "evaluate"

[stages.judge.inputs]
subsets = "half[*].indices"
scores = [SCORES]
recorded = "../lds"
"#;

/// The losses that are kept beside the demo: their halves are those that `subset` draws, and their seeds agree as docs say.
#[test]
fn the_recorded_losses_of_the_demo_can_be_judged() {
    let recorded = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/demo/lds");
    let losses = fs_err::read_to_string(recorded.join("losses.csv")).unwrap();
    let rows: Vec<Vec<&str>> = losses.lines().skip(1).map(|line| line.split(',').collect()).collect();
    let column = |place: usize| rows.iter().map(|row| row[place]).collect::<BTreeSet<_>>();
    let (halves, queries) = (column(0), column(2));
    assert_eq!((queries.len(), column(1).into_iter().collect::<Vec<_>>()), (12, vec!["1", "2"]));
    // Each half has all queries under seed 1; eight have them under seed 2 as well.
    assert_eq!(rows.len(), (halves.len() + 8) * queries.len());
    let models = fs_err::read_to_string(recorded.join("models.csv")).unwrap();
    assert_eq!(models.lines().count(), 1 + 1 + halves.len() + 8, "a line for each model, and for the first");

    let files: Vec<String> = queries.iter().map(|query| format!("\"../lds/scores/{query}.npy\"")).collect();
    let listed = format!("[{}]", halves.iter().copied().collect::<Vec<_>>().join(", "));
    let captions = recorded.parent().unwrap().join("captions.json").display().to_string();
    let pipeline = RECORDED.replace("HALVES", &listed).replace("CAPTIONS", &captions);
    let project = project(&pipeline.replace("SCORES", &files.join(", ")));
    copy(&recorded, &project.path("lds"));
    let summary = judge(&project);
    let found = &summary["tests"]["lds"];
    assert_eq!(
        (&found["subsets"], &found["ceiling_subsets"]),
        (&halves.len().into(), &8.into()),
        "{summary:#}"
    );
    // The mean correlation of two seeds is 0.379; the ceiling is the root of the reliability of the mean over those that count.
    let (ceiling, seeds) = (found["ceiling"].as_f64().unwrap(), found["seeds"].as_f64().unwrap());
    let reliability = ceiling * ceiling;
    let of_one = reliability / (seeds - (seeds - 1.0) * reliability);
    assert!((of_one - 0.379).abs() < 0.001, "{summary:#}");
    // What docs/results.md says of the method's own scores.
    assert!((found["estimate"]["mean"].as_f64().unwrap() - 0.1337).abs() < 0.001, "{summary:#}");
    // A half of other images, under a name that is known.
    project.write("pipelines/judge.toml", {
        let text = fs_err::read_to_string(project.path("pipelines/judge.toml")).unwrap();
        text.replace("share = 0.5", "share = 0.25")
    });
    refused(&project, "has other images in the folder on `recorded`");
}

const METHODS: &str = r#"
[stages.judge]
kind = "evaluate"
params = { names = { self_rank = ["query", "method"] } }

[stages.judge.inputs]
self_rank = ["../made/ape.npy", "../made/bee.npy", "../made/ape,trak.npy", "../made/bee,trak.npy"]
self_relevant = ["../made/self/ape.npy", "../made/self/bee.npy"]
"#;

#[test]
fn methods_of_one_test_are_told_apart_by_their_names() {
    let project = project(METHODS);
    fs_err::create_dir_all(project.path("made/self")).unwrap();
    for (query, image) in [("ape", 7), ("bee", 3)] {
        write_i64(project.path(format!("made/self/{query}.npy")), &[1], &[image]).unwrap();
    }
    ranking(&project, "ape", &[7]);
    ranking(&project, "bee", &[0, 3]);
    ranking(&project, "ape,trak", &[0, 1, 2, 7]);
    ranking(&project, "bee,trak", &[3]);
    let summary = judge(&project);
    let mean = |test: &str| summary["tests"][test]["estimate"]["mean"].as_f64().unwrap();
    assert_eq!([mean("self-influence unlearning"), mean("self-influence trak")], [0.75, 0.625]);
    let table = fs_err::read_to_string(project.path("results/judge/judge/methods.csv")).unwrap();
    assert!(table.contains("\nself-influence,trak,0.625,"), "{table}");
    let svg = fs_err::read_to_string(project.path("results/judge/judge/evaluation.svg")).unwrap();
    assert!(svg.matches(">self-influence<").count() == 1 && svg.contains(">trak: 0.625"), "{svg}");

    project.write("pipelines/judge.toml", METHODS.replace(", \"../made/bee,trak.npy\"", ""));
    refused(
        &project,
        "`self_rank`: `unlearning` ranks for the queries {\"ape\", \"bee\"}, expected {\"ape\"}, as `trak` does",
    );
}

const AGREEMENT: &str = r#"
[stages.judge]
kind = "evaluate"
params = { reference_first = 2 }

[stages.judge.inputs]
compared_rank = ["../made/ape.npy", "../made/bee.npy"]
reference_rank = ["../made/exact/ape.npy", "../made/exact/bee.npy"]
"#;

#[test]
fn a_ranking_is_compared_with_the_first_of_another() {
    let project = project(AGREEMENT);
    fs_err::create_dir_all(project.path("made/exact")).unwrap();
    ranking(&project, "exact/ape", &[7, 2]);
    ranking(&project, "exact/bee", &[3, 4]);
    ranking(&project, "ape", &[2, 7]);
    // Its relevant images are at 2 and 5.
    ranking(&project, "bee", &[0, 4, 1, 2, 3]);
    let summary = judge(&project);
    let found = &summary["tests"]["agreement"];
    let near = |value: &Json, expected: f64| (value.as_f64().unwrap() - expected).abs() < 1e-9;
    let second = (1.0 / 2.0 + 2.0 / 5.0) / 2.0;
    assert!(near(&found["average_precision"]["ape"], 1.0), "{summary:#}");
    assert!(near(&found["average_precision"]["bee"], second), "{summary:#}");
    assert!(near(&found["estimate"]["mean"], (1.0 + second) / 2.0), "{summary:#}");
    // The mean over all 45 pairs of ranks.
    assert!(near(&found["chance"], 0.371_463_844_797_178), "{summary:#}");
    project.write("pipelines/judge.toml", AGREEMENT.replace("= 2 }", "= 10 }"));
    refused(&project, "`reference_first` is 10, expected less than 10, the number of images");
    project.write("pipelines/judge.toml", AGREEMENT);
    write_i64(project.path("made/exact/bee.npy"), &[3], &[0, 1, 2]).unwrap();
    refused(&project, "bee.npy: 3 images, expected 10, as the ranking that is compared with it");
}

const UNIVERSE: &str = r#"
[stages.all]
kind = "universe"
params = { planted = [{ id = "2", copies = 3 }] }
inputs = { captions = "../data/demo/captions.json", images = "../images", more_captions = "../more/captions.json", more_images = "../more" }

[stages.copies]
kind = "subset"
params = { choose = "indices" }
inputs = { captions = "all.captions", indices = "all.places/2.npy" }
"#;

#[test]
fn a_universe_has_copies_and_other_images_after_those_that_are_there() {
    let project = project(UNIVERSE);
    let captions: Json =
        serde_json::from_str(&fs_err::read_to_string(project.path("data/demo/captions.json")).unwrap())
            .unwrap();
    let images = captions["images"].as_array().unwrap();
    for image in images {
        project.write(&format!("images/{}", image["file_name"].as_str().unwrap()), image["id"].to_string());
    }
    project.write("more/blob.png", "blob");
    let more = r#"{"images": [{"id": 1, "file_name": "blob.png"}], "annotations": [{"image_id": 1, "caption": "a blob"}]}"#;
    project.write("more/captions.json", more);
    let ran = project.attrflow(["run", "pipelines/judge.toml"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let folder = project.path("results/judge/all");
    let found: Json =
        serde_json::from_str(&fs_err::read_to_string(folder.join("captions.json")).unwrap()).unwrap();
    let listed: Vec<(i64, &str)> = found["images"]
        .as_array()
        .unwrap()
        .iter()
        .map(|image| (image["id"].as_i64().unwrap(), image["file_name"].as_str().unwrap()))
        .collect();
    let last = images.iter().map(|image| image["id"].as_i64().unwrap()).max().unwrap();
    let name = images.iter().find(|image| image["id"] == 2).unwrap()["file_name"].as_str().unwrap();
    assert_eq!(listed.len(), images.len() + 3);
    let new = [format!("copies/2/{name}"), format!("copies/3/{name}"), "added/blob.png".to_owned()];
    assert_eq!(
        listed[images.len()..],
        [(last + 1, new[0].as_str()), (last + 2, new[1].as_str()), (last + 3, new[2].as_str())]
    );
    assert_eq!(fs_err::read_to_string(folder.join("images").join(&new[1])).unwrap(), "2");
    assert_eq!(fs_err::read_to_string(folder.join("images").join(&new[2])).unwrap(), "blob");
    let ids: Json =
        serde_json::from_str(&fs_err::read_to_string(project.path("results/judge/copies/ids.json")).unwrap())
            .unwrap();
    assert_eq!(ids["ids"], serde_json::json!([2, last + 1, last + 2]));

    project.write("pipelines/judge.toml", UNIVERSE.replace("id = \"2\"", "id = \"none\""));
    refused(&project, "`planted` names `none`, which no image of the captions file has");
}
