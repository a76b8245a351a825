//! The whole pipeline: what it leaves, and what may not change it.

use std::path::Path;

use attrflow::io::npy::{Dtype, Npy};
use serde_json::Value as Json;

use crate::project::{Project, Ran, command};

pub const STAGES: [&str; 12] = [
    "data",
    "fisher",
    "generate[grin]",
    "generate[pizza]",
    "influence[grin]",
    "influence[pizza]",
    "latents",
    "pretrain_loss",
    "ranking[grin]",
    "ranking[pizza]",
    "unlearn[grin]",
    "unlearn[pizza]",
];

fn floats(path: &Path) -> Vec<f32> {
    let npy = Npy::open(path).unwrap();
    let mut values = Vec::new();
    npy.read_f32(0..npy.rows(), &mut values).unwrap();
    values
}

fn ranks(path: &Path) -> Vec<i64> {
    let npy = Npy::open(path).unwrap();
    let mut values = Vec::new();
    npy.read_i64(0..npy.rows(), &mut values).unwrap();
    values
}

#[test]
fn a_first_run_leaves_every_output_and_says_where() {
    let project = Project::new(6);
    let ran = project.attrflow(["run", "pipelines/demo.toml", "--jobs", "1"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    // A line as each stage starts, and as it ends. Steps divided by six images are too large, which is warned of.
    for stage in STAGES {
        let begun = format!("run {stage}: never run before");
        let ended = format!("done {stage} in ");
        let place = |line: &str| ran.err.lines().position(|found| found.starts_with(line)).unwrap();
        assert!(place(&begun) < place(&ended), "{ran:?}");
    }
    assert!(ran.err.contains("warn: the loss of the query rose by "), "{ran:?}");

    let rows: Vec<Vec<&str>> = ran.out.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["stage", "state", "computing", "results"]);
    for stage in STAGES {
        let row = rows.iter().find(|row| row.first() == Some(&stage)).unwrap();
        assert_eq!(row[1], "ran", "{row:?}");
        let place = row.last().unwrap();
        assert!(place.starts_with("results/demo/") && project.path(place).exists(), "{row:?}");
    }
    let (text, pictures) = ran.out.split_once("\nlook at\n").unwrap();
    let mut pictures: Vec<&str> = pictures.lines().collect();
    pictures.sort_unstable();
    let expected = ["grin", "pizza"].map(|query| format!("  results/demo/ranking/{query}/top.png"));
    assert_eq!(pictures, expected);
    let last = text.lines().last().unwrap();
    assert!(
        last.starts_with("12 ran, 0 cached in ") && last.contains("; manifest cache/runs/demo/"),
        "{last}"
    );

    let arrays: [(&str, Dtype, &[usize]); 9] = [
        ("latents/latents.npy", Dtype::F32, &[12, 4, 16, 16]),
        ("latents/text_embeddings.npy", Dtype::F32, &[6, 2, 16, 64]),
        ("pretrain_loss/pretrain_loss.npy", Dtype::F32, &[12]),
        ("generate/grin/latents.npy", Dtype::F32, &[1, 4, 16, 16]),
        ("generate/pizza/text_embeddings.npy", Dtype::F32, &[1, 1, 16, 64]),
        ("influence/grin/influence.npy", Dtype::F32, &[6]),
        ("influence/grin/unlearned_loss.npy", Dtype::F32, &[12]),
        ("influence/pizza/influence.npy", Dtype::F32, &[6]),
        ("influence/pizza/rank.npy", Dtype::I64, &[6]),
    ];
    for (file, dtype, shape) in arrays {
        let npy = Npy::open(project.result(file)).unwrap();
        assert_eq!((npy.dtype(), npy.shape()), (dtype, shape), "{file}");
    }
    for file in ["fisher/fisher.safetensors", "unlearn/grin/unlearned.safetensors"] {
        let bytes = fs_err::read(project.result(file)).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert!(
            !tensors.is_empty() && tensors.names().iter().all(|name| name.contains("attn2.to_")),
            "{file}"
        );
    }
    assert_eq!(project.cached("tmp"), ["gate"]);

    // Another folder, another number of workers: the same bytes, in every file.
    let other = Project::finished();
    let (results, expected) = (project.results(), other.results());
    assert!(results.len() > 30, "{results:?}");
    assert_eq!(results, expected);
}

#[test]
fn table_picture_and_ranking_agree() {
    let project = Project::finished();
    for query in ["grin", "pizza"] {
        let (folder, shown) =
            (project.result("influence").join(query), project.result("ranking").join(query));
        let (influence, rank) = (floats(&folder.join("influence.npy")), ranks(&folder.join("rank.npy")));
        let mut sorted = rank.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, [0, 1, 2, 3, 4, 5]);
        assert!(rank.windows(2).all(|pair| influence[pair[0] as usize] >= influence[pair[1] as usize]));

        let rises = floats(&folder.join("unlearned_loss.npy"));
        let before = floats(&project.result("pretrain_loss/pretrain_loss.npy"));
        for (image, influence) in influence.iter().enumerate() {
            let rise = [image, image + 6].map(|latent| rises[latent] - before[latent]);
            assert_eq!(rise[0].max(rise[1]), *influence, "{query}, image {image}");
        }

        let text = fs_err::read(project.path("data/demo/captions.json")).unwrap();
        let captions: Json = serde_json::from_slice(&text).unwrap();
        let text = fs_err::read(shown.join("top.json")).unwrap();
        let json: Json = serde_json::from_slice(&text).unwrap();
        let summary = &json["summary"];
        assert!(summary["query_rise"].as_f64().unwrap() > 0.0 && summary["images"].is_u64(), "{summary}");
        let top = json["rows"].as_array().unwrap();
        let rows: Vec<csv::StringRecord> =
            csv::Reader::from_path(shown.join("top.csv")).unwrap().records().map(Result::unwrap).collect();
        assert_eq!((top.len(), rows.len()), (5, 5));
        for (place, (row, item)) in rows.iter().zip(top).enumerate() {
            let index = rank[place] as usize;
            let file = captions["images"][index]["file_name"].as_str().unwrap();
            assert_eq!(&row[0], (place + 1).to_string());
            assert_eq!((&row[1], &row[2]), (index.to_string().as_str(), file));
            assert_eq!(row[3].parse::<f32>().unwrap(), influence[index]);
            assert_eq!(
                (item["index"].as_u64().unwrap() as usize, item["file_name"].as_str().unwrap()),
                (index, file)
            );
            assert_eq!(item["captions"][0].as_str().unwrap(), &row[4]);
            assert_eq!(item["captions"].as_array().unwrap().len(), 5);
        }
        for picture in [shown.join("top.png"), project.result("generate").join(query).join("images/0.png")] {
            let picture = image::open(&picture).unwrap();
            assert!(picture.width() >= 32 && picture.height() >= 32);
        }
    }
}

#[test]
fn threads_change_rounding_and_nothing_more() {
    let one = Project::finished();
    let two = Project::new(6);
    two.run(&["--threads", "2", "--jobs", "1"]);
    let mut losses = Vec::new();
    for project in [&one, &two] {
        losses.push(floats(&project.result("pretrain_loss/pretrain_loss.npy")));
    }
    for (a, b) in losses[0].iter().zip(&losses[1]) {
        assert!((a - b).abs() <= 1e-5 * a.abs(), "{a} against {b}");
    }
    for query in ["grin", "pizza"] {
        let file = |name: &str| Path::new("influence").join(query).join(name);
        let [a, b] = [&one, &two].map(|project| floats(&project.result(file("influence.npy"))));
        // Small Fisher values make a step long, and long steps make rounding large.
        let scale = a.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
        assert!(scale > 0.0);
        let near = |a: f32, b: f32| (a - b).abs() <= 1e-3 * scale;
        assert!(a.iter().zip(&b).all(|(a, b)| near(*a, *b)), "{a:?} against {b:?}");
        let [first, second] = [&one, &two].map(|project| ranks(&project.result(file("rank.npy"))));
        for (x, y) in first.iter().zip(&second) {
            assert!(x == y || near(a[*x as usize], a[*y as usize]), "{first:?} against {second:?}");
        }
    }
}

#[test]
fn a_second_run_starts_no_worker() {
    let project = Project::finished();
    let before = project.results();
    // A worker that cannot be: a run that needs one fails.
    let program = project.path("bin/attrflow");
    project.write("bin/attrflow-worker", "no program");
    fs_err::copy(env!("CARGO_BIN_EXE_attrflow"), &program).unwrap();
    let run = |arguments: &[&str]| -> Ran {
        let arguments = [&["run", "pipelines/demo.toml"], arguments].concat();
        command(&program, &project.root).args(arguments).output().unwrap().into()
    };
    let ran = run(&["--json"]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    assert_eq!((ran.reused(), ran.computed()), (STAGES.map(str::to_owned).to_vec(), vec![]));
    assert_eq!(project.results(), before);

    let ran = run(&["--set", "generate.steps=3"]);
    assert_eq!(ran.code, 1);
    assert!(
        ran.err.contains("cannot start a worker") && ran.err.contains("bin/attrflow-worker"),
        "{}",
        ran.err
    );

    fs_err::remove_file(project.path("bin/attrflow-worker")).unwrap();
    let ran = run(&["--set", "generate.steps=3"]);
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("the worker program is missing"), "{}", ran.err);
}

#[test]
fn a_moved_folder_runs_nothing_again() {
    let project = Project::finished();
    let (before, old) = (project.results(), project.root.clone());
    let moved = old.with_file_name("elsewhere");
    fs_err::rename(&old, &moved).unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_attrflow"));
    let mut run = command(program, old.parent().unwrap());
    let ran = Ran::from(run.args(["run", "elsewhere/pipelines/demo.toml", "--json"]).output().unwrap());
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    assert_eq!(ran.reused(), STAGES);
    fs_err::rename(&moved, &old).unwrap();
    assert_eq!(project.results(), before);
}

#[test]
fn execution_settings_run_nothing_again() {
    let project = Project::finished();
    for how in [
        &["--jobs", "1"][..],
        &["--threads", "3"],
        &["--micro-batch", "5"],
        &["--set", "run.micro_batch=7"],
        &["-vv", "--device", "cpu"],
    ] {
        let ran = project.attrflow([&["run", "pipelines/demo.toml", "--json"], how].concat());
        assert_eq!((ran.code, ran.reused()), (0, STAGES.map(str::to_owned).to_vec()), "{how:?}");
    }
}
