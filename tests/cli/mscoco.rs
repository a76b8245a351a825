//! The published experiment in miniature: the pipeline and the config as they are, on small published files.

use std::path::Path;

use safetensors::SafeTensors;

use crate::project::{DEMO, Project, Ran, copy};
use crate::published::{Files, Published};

/// What makes the published experiment small: the demo's model, its six images, and what costs a few seconds.
/// The numbers are those of the demo in miniature, whose results must come out.
pub const SMALL: [&str; 18] = [
    "queries=[{ name = \"0\", index = 0 }, { name = \"1\", index = 1 }]",
    "latents.pixels=32",
    "latents.captions=2",
    "latents.text_dtype=float32",
    "loss={ time_samples = 2, captions = 2, noise = \"per_image\" }",
    "fisher.epochs=1",
    "fisher.batch_size=4",
    "fisher.select=cross-attn-kv",
    "generate.steps=4",
    "generate.guidance_scale=3.0",
    "unlearn.grad_accum_steps=2",
    "unlearn.batch_size=4",
    "unlearn.lr=0.001",
    "unlearn.images=6",
    "ranking.rows=5",
    "ranking.images_shown=3",
    "run.threads=1",
    "run.jobs=2",
];

/// The published places as folders.
const LOCAL: [&str; 4] = [
    "sources.coco=./coco",
    "sources.published=./published",
    "sources.latents=./latents",
    "sources.stable_diffusion=./model",
];

pub const COMPUTE: [&str; 3] = ["compute.latents=true", "compute.fisher=true", "compute.samples=true"];

/// The stages that run where nothing but the pretrain loss and the queries' is computed.
pub const STAGES: [&str; 12] = [
    "coco_annotations",
    "coco_images",
    "influence[0]",
    "influence[1]",
    "pretrain_loss",
    "published_latents",
    "published_model",
    "published_samples",
    "ranking[0]",
    "ranking[1]",
    "unlearn[0]",
    "unlearn[1]",
];

/// A project with the repository's pipeline and config, and what the published places would hold.
pub fn pipeline() -> (Project, Published) {
    let project = Project::finished();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for file in ["pipelines/mscoco.toml", "configs/mscoco.toml"] {
        project.write(file, fs_err::read(root.join(file)).unwrap());
    }
    let model = Path::new(DEMO).join("model");
    let form = |file: &str| fs_err::read(model.join(file)).unwrap();
    project.write("configs/mscoco/unet/config.json", form("unet/config.json"));
    project.write("configs/mscoco/scheduler/scheduler_config.json", form("scheduler/scheduler_config.json"));
    let published = Published::of(&project);
    (project, published)
}

/// The same with all of it in folders.
pub fn local() -> (Project, Published) {
    let (project, published) = pipeline();
    let model = Path::new(DEMO).join("model");
    let write = |folder: &str, files: Files| {
        for (name, bytes) in files {
            project.write(&format!("{folder}/{name}"), bytes);
        }
    };
    write("coco", published.coco());
    write("published", published.repository());
    write("latents", published.latents.clone());
    for part in ["vae", "text_encoder", "tokenizer"] {
        fs_err::create_dir_all(project.path("model")).unwrap();
        copy(&model.join(part), &project.path("model").join(part));
    }
    (project, published)
}

/// `--set` with what makes it small and local, and with more.
pub fn arguments<'s>(sets: &[&'s str]) -> impl Iterator<Item = &'s str> {
    let sets: Vec<&str> = [&SMALL[..], &LOCAL, sets].concat();
    sets.into_iter().flat_map(|set| ["--set", set])
}

fn run(project: &Project, sets: &[&str]) -> Ran {
    let sets = arguments(sets);
    let ran = project
        .attrflow(["run", "pipelines/mscoco.toml", "--json", "--device", "cpu"].into_iter().chain(sets));
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    ran
}

/// Whether a result is, byte for byte, one of the demo in miniature.
#[track_caller]
pub fn same(project: &Project, result: &str, demo: &str) {
    let of = |path: String| fs_err::read(project.path(path)).unwrap();
    let equal = of(format!("results/mscoco/{result}")) == of(format!("results/demo/{demo}"));
    assert!(equal, "{result} is not {demo}");
}

/// The losses, influences and tables of both queries are those of the demo in miniature.
#[track_caller]
pub fn as_the_demo(project: &Project) {
    same(project, "pretrain_loss/pretrain_loss.npy", "pretrain_loss/pretrain_loss.npy");
    for (query, name) in [("0", "grin"), ("1", "pizza")] {
        for file in ["influence.npy", "rank.npy", "unlearned_loss.npy"] {
            same(project, &format!("influence/{query}/{file}"), &format!("influence/{name}/{file}"));
        }
    }
}

#[test]
fn from_the_published_files_then_computed() {
    let (project, _) = local();
    let ran = run(&project, &[]);
    let mut all = [ran.computed(), ran.reused()].concat();
    all.sort();
    assert_eq!(all, STAGES);
    // The same numbers as the demo's, from torch's files and a checkpoint that lies beside no config.json.
    as_the_demo(&project);
    for query in ["0", "1"] {
        let picture = image::open(project.path(format!("results/mscoco/ranking/{query}/top.png"))).unwrap();
        assert!(picture.width() > 100);
    }

    // Computing what was published gives the published bytes, so its dependents stay cached. The queries come from
    // one stream of random numbers here, and only the first is the demo's.
    let ran = run(&project, &[&COMPUTE[..], &["generate.batch_size=1"]].concat());
    let mut all = [ran.computed(), ran.reused()].concat();
    all.sort();
    let with = ["fisher", "generate", "latents", "stable_diffusion"];
    let mut expected: Vec<&str> =
        STAGES.iter().chain(&with).copied().filter(|name| *name != "published_latents").collect();
    expected.sort_unstable();
    assert_eq!(all, expected);
    same(&project, "latents/latents.npy", "latents/latents.npy");
    same(&project, "latents/text_embeddings.npy", "latents/text_embeddings.npy");
    same(&project, "fisher/fisher.safetensors", "fisher/fisher.safetensors");
    same(&project, "generate/images/0.png", "generate/grin/images/0.png");
    same(&project, "influence/0/influence.npy", "influence/grin/influence.npy");
    assert!(!project.path("results/mscoco/published_latents").exists());
    assert!(ran.reused().contains(&"pretrain_loss".to_owned()), "{ran:?}");
    assert!(ran.computed().contains(&"influence[1]".to_owned()), "{ran:?}");
    let shape = |name: &str| {
        attrflow::io::npy::Npy::open(project.path(format!("results/mscoco/generate/{name}.npy")))
            .unwrap()
            .shape()
            .to_vec()
    };
    assert_eq!(shape("latents"), [2, 4, 16, 16]);
    assert_eq!(shape("text_embeddings"), [2, 1, 16, 64]);
}

#[test]
fn the_defaults_are_the_published_ones() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/mscoco.toml");
    let config: toml::Table = fs_err::read_to_string(file).unwrap().parse().unwrap();
    let published: toml::Table = r#"
        [compute]
        latents = false
        fisher = false
        samples = false
        [latents]
        pixels = 128
        captions = 5
        posterior = "sample"
        [loss]
        batch_size = 8000
        time_samples = 20
        captions = 5
        seed = 0
        noise = "per_batch"
        [fisher]
        epochs = 5
        batch_size = 32
        caption_draw = "batch"
        weighting = "batch"
        select = "all"
        [generate]
        batch_size = 500
        guidance_scale = 7.5
        steps = 1000
        seed = 0
        noise = "per_batch"
        [unlearn]
        steps = 1
        grad_accum_steps = 625
        batch_size = 80
        lr = 0.01
        damping = 0.0
        select = "cross-attn-kv"
        images = 118287
        [ranking]
        images_shown = 10
    "#
    .parse()
    .unwrap();
    for (table, keys) in published {
        for (key, value) in keys.as_table().unwrap() {
            assert_eq!(config[&table].get(key), Some(value), "{table}.{key}");
        }
    }
}

#[test]
fn the_published_quirks_run_and_so_do_their_corrections() {
    let (project, _) = local();
    // As published but for the sizes: noise by the batch, a padded batch of queries, means of batch means.
    let faithful =
        ["loss.noise=per_batch", "loss.batch_size=8", "generate.batch_size=5", "fisher.select=all"];
    run(&project, &[&COMPUTE[..], &faithful].concat());
    let corrected = ["generate.noise=per_image", "fisher.caption_draw=row", "fisher.weighting=row"];
    let ran = run(&project, &[&COMPUTE[..], &corrected].concat());
    for stage in ["pretrain_loss", "generate", "fisher", "unlearn[0]", "influence[1]"] {
        assert!(ran.computed().contains(&stage.to_owned()), "{stage}: {ran:?}");
    }
}

#[test]
fn the_chosen_weights_and_no_others_change() {
    let (project, _) = local();
    let names = |select: &str| {
        let select = format!("unlearn.select={select}");
        let sets =
            ["compute.fisher=true", "fisher.select=all", "unlearn.steps=2", "unlearn.lr=1e-6", &select];
        let sets = arguments(&sets);
        let target = ["run", "pipelines/mscoco.toml", "--device", "cpu", "--target", "unlearn[0]"];
        let ran = project.attrflow(target.into_iter().chain(sets));
        assert!(ran.code == 0 && !ran.err.contains("error"), "{ran:?}");
        let bytes = fs_err::read(project.path("results/mscoco/unlearn/0/unlearned.safetensors")).unwrap();
        let mut names: Vec<String> =
            SafeTensors::deserialize(&bytes).unwrap().names().into_iter().map(str::to_owned).collect();
        names.sort();
        names
    };
    let all = names("all");
    let keys_and_values = |name: &str| name.contains("attn2.to_k") || name.contains("attn2.to_v");
    let of =
        |chosen: &dyn Fn(&str) -> bool| all.iter().filter(|name| chosen(name)).cloned().collect::<Vec<_>>();
    assert!(all.len() > 200 && all.iter().any(|name| name == "conv_in.bias"), "{}", all.len());
    assert_eq!(names("cross-attn-kv"), of(&keys_and_values));
    assert_eq!(names("cross-attn"), of(&|name| name.contains("attn2")));
    assert_eq!(names("attn"), of(&|name| name.contains("attn")));
    assert_eq!(
        names(r#"["conv_in", "norm3"]"#),
        of(&|name| name.contains("conv_in") || name.contains("norm3"))
    );
}

#[test]
fn unneeded_files_are_not_downloaded() {
    let (project, _) = local();
    let planned = |sets: &[&str]| {
        let sets = arguments(sets);
        let ran = project.attrflow(["plan", "pipelines/mscoco.toml"].into_iter().chain(sets));
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
        let names = ran.out.lines().filter_map(|line| line.split_whitespace().next());
        names.map(str::to_owned).collect::<Vec<_>>()
    };
    let without = |sets: &[&str], absent: &[&str]| {
        let planned = planned(sets);
        let optional =
            ["coco_images", "published_latents", "stable_diffusion", "latents", "fisher", "generate"];
        for stage in optional {
            let expected = !absent.contains(&stage);
            assert_eq!(planned.iter().any(|name| name == stage), expected, "{sets:?}: {stage}");
        }
    };
    let computed = ["stable_diffusion", "latents", "fisher", "generate"];
    without(&[], &computed);
    without(&["show.pictures=false"], &[&computed[..], &["coco_images"]].concat());
    without(&["compute.samples=true"], &["latents", "fisher"]);
    without(&["compute.latents=true", "show.pictures=false"], &["fisher", "generate"]);
    without(&[COMPUTE[0], COMPUTE[2]], &["published_latents", "fisher"]);
}

#[test]
fn a_number_of_images_that_contradicts_the_fisher_is_refused() {
    let (project, _) = local();
    let sets = arguments(&["compute.fisher=true", "unlearn.images=7"]);
    let target = ["run", "pipelines/mscoco.toml", "--json", "--device", "cpu", "--target", "unlearn[0]"];
    let ran = project.attrflow(target.into_iter().chain(sets));
    let errors = ran.events("stage_failed", "error");
    assert!(ran.code == 1 && errors.len() == 1, "{ran:?}");
    assert!(errors[0].starts_with("`images` is 7, expected 6 or no key: "), "{errors:?}");
}
