//! The most influential images without all timesteps of all images, on the demo's network.

use attrflow::io::npy::Npy;
use serde_json::Value as Json;

use crate::project::Project;

const IMAGES: usize = 16;
/// The parameters of `influence` in the demo.
const PARAMS: &str = r#"params = { per_timestep = "${ranking.error_bars}" }"#;

fn floats(path: impl AsRef<std::path::Path>) -> Vec<f32> {
    Npy::vector(path).unwrap()
}

fn ranks(path: impl AsRef<std::path::Path>) -> Vec<usize> {
    let npy = Npy::open(path).unwrap();
    let mut values = Vec::new();
    npy.read_i64(0..npy.rows(), &mut values).unwrap();
    values.into_iter().map(|index| index as usize).collect()
}

/// Asks for the top k in a project of the demo, and for what that needs.
fn ask(project: &Project, top_k: &str) {
    project.edit("pipelines/parts/emoji.toml", r#""${ranking.error_bars}""#, "true");
    project.edit("pipelines/demo.toml", PARAMS, &format!("params = {{ top_k = {top_k} }}"));
}

#[test]
fn the_top_is_that_of_a_full_pass() {
    let project = Project::new(IMAGES);
    let settings = ["--set", "loss.time_samples=20", "--set", "loss.captions=1", "--target", "ranking[grin]"];
    project.run(&settings);
    let file = |name: &str| project.result("influence/grin").join(name);
    let shown = |name: &str| project.result("ranking/grin").join(name);
    let (full, order) = (floats(file("influence.npy")), ranks(file("rank.npy")));
    let (losses, before) =
        (floats(file("unlearned_loss.npy")), project.result("pretrain_loss/pretrain_loss.npy"));
    let before_full = floats(&before);
    assert!(!file("top_k.json").exists());

    ask(&project, "{ k = 2, confidence = 0.6, certify_samples = 2 }");
    let ran = project.run(&settings);
    // What only says how to go on computes nothing else again.
    assert_eq!(ran.computed(), ["influence[grin]", "pretrain_loss", "ranking[grin]"]);
    assert_eq!(floats(&before), before_full);
    let at_each = Npy::open(project.result("pretrain_loss/pretrain_loss_per_timestep.npy")).unwrap();
    assert_eq!(at_each.shape(), [2 * IMAGES, 20]);

    let report: Json = serde_json::from_slice(&fs_err::read(file("top_k.json")).unwrap()).unwrap();
    let exact: Vec<usize> = serde_json::from_value(report["exact"].clone()).unwrap();
    let (found, ranked) = (floats(file("influence.npy")), ranks(file("rank.npy")));
    assert!(exact.len() < IMAGES && exact.len() >= 2, "{report:#}");
    assert_eq!(ranked[..2], order[..2], "{report:#}");
    // Exact ones first, each part by falling influence; every image once.
    let falls = |part: &[usize]| part.windows(2).all(|pair| found[pair[0]] >= found[pair[1]]);
    let (first, last) = ranked.split_at(exact.len());
    assert!(falls(first) && falls(last) && first.iter().all(|image| exact.contains(image)), "{ranked:?}");
    let mut all = ranked.clone();
    all.sort_unstable();
    assert_eq!(all, (0..IMAGES).collect::<Vec<_>>());
    // The numbers are those of the full pass, but for the rounding of other batches.
    let after = floats(file("unlearned_loss.npy"));
    for &image in &exact {
        for latent in [image, image + IMAGES] {
            assert!((after[latent] - losses[latent]).abs() <= 2e-6 * losses[latent], "latent {latent}");
        }
        assert!((found[image] - full[image]).abs() <= 4e-6 * losses[image], "image {image}");
    }
    for (image, influence) in found.iter().enumerate() {
        let rise = [image, image + IMAGES].map(|latent| after[latent] - before_full[latent]);
        assert_eq!(rise[0].max(rise[1]), *influence, "image {image}");
    }

    let rows = &report["rows"];
    assert!(rows["computed"].as_u64() < rows["full"].as_u64() && rows["full"] == 2 * IMAGES * 20, "{rows}");
    let kept = report["rounds"].as_array().unwrap().last().unwrap()["kept"].as_u64().unwrap() as usize;
    let certificate = &report["certificate"];
    assert_eq!(certificate["discarded"], IMAGES - kept);
    assert_eq!(exact.len(), kept + certificate["sample"].as_u64().unwrap() as usize);
    // The table marks what is an estimate.
    let json: Json = serde_json::from_slice(&fs_err::read(shown("top.json")).unwrap()).unwrap();
    let top = json["rows"].as_array().unwrap();
    let table: Vec<csv::StringRecord> =
        csv::Reader::from_path(shown("top.csv")).unwrap().records().map(Result::unwrap).collect();
    for (line, row) in table.iter().zip(top) {
        let image = row["index"].as_u64().unwrap() as usize;
        assert_eq!(row["exact"], exact.contains(&image));
        assert_eq!(&line[5], exact.contains(&image).to_string());
        assert_eq!(line.len(), 8);
    }
    let why = json["summary"]["no_error_bars"].as_str().unwrap();
    assert!(why.starts_with("no error bars with `top_k`"), "{why}");

    // The same again, from its manifest and by other batches of rows.
    let results = project.results();
    fs_err::remove_dir_all(project.path("cache")).unwrap();
    project.run(&settings);
    assert_eq!(project.results(), results);
    let audit = project.attrflow(["audit", "last", "--replay", "influence[grin]"]);
    assert_eq!(audit.code, 0, "{audit:?}");
}

#[test]
fn requirements_of_top_k_are_checked_before_a_run() {
    let project = Project::new(6);
    let refused = |arguments: &[&str]| {
        let ran = project.attrflow([&["plan", "pipelines/demo.toml"], arguments].concat());
        assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{ran:?}");
        ran.err
    };
    project.edit("pipelines/demo.toml", PARAMS, "params = { top_k = { k = 3 } }");
    let error = refused(&[]);
    assert!(error.contains("`top_k` needs the input `pretrain_loss_per_timestep`"), "{error}");
    let error = refused(&["--set", "loss.noise=per_batch", "--set", "loss.batch_size=8"]);
    assert!(error.contains("`top_k` needs `noise = \"per_image\"`"), "{error}");
    let error = refused(&["--set", "loss.draws=2", "--set", "ranking.error_bars=true"]);
    assert!(error.contains("`top_k` needs `draws = 1`"), "{error}");
    project.edit("pipelines/demo.toml", "{ k = 3 } }", "{ k = 3 }, per_timestep = true, flips = \"mean\" }");
    let error = refused(&["--set", "ranking.error_bars=true"]);
    assert!(error.contains("`per_timestep` cannot be used with `top_k`"), "{error}");
    assert!(error.contains("`flips` has to be \"max\" with `top_k`"), "{error}");
    project.edit("pipelines/demo.toml", "{ k = 3 }, per_timestep = true, flips = \"mean\" }", "{ k = 3 } }");
    // The output is there where it is asked for.
    project.edit(
        "pipelines/demo.toml",
        r#"["pretrain_loss.per_timestep", ""]"#,
        r#""pretrain_loss.per_timestep""#,
    );
    let error = refused(&[]);
    assert!(error.contains("`per_timestep`") && error.contains("pretrain_loss"), "{error}");
    project.edit("pipelines/demo.toml", "{ k = 3 }", "{ k = 3, confidence = 1.5 }");
    let error = refused(&[]);
    assert!(error.contains("`confidence` is 1.5, expected a value from 0.5 to 0.999999"), "{error}");
}

#[test]
fn losses_of_two_passes_are_not_mixed() {
    let project = Project::new(6);
    ask(&project, "{ k = 2 }");
    // Another pass, of the same form and with other noise, gives the losses at each timestep.
    let stage = "\n[stages.other]\nkind = \"pretrain-loss\"\n\
         params = { loss = { time_samples = 2, captions = 2, noise = \"per_image\", seed = 9 }, per_timestep = true }\n\
         [stages.other.inputs]\nunet = \"data.files/model/unet\"\nscheduler = \"data.files/model/scheduler\"\n\
         latents = \"latents.latents\"\ntext_embeddings = \"latents.text_embeddings\"\n";
    let text = fs_err::read_to_string(project.path("pipelines/demo.toml")).unwrap();
    project.write(
        "pipelines/demo.toml",
        text.replace("pretrain_loss.per_timestep", "other.per_timestep") + stage,
    );
    let ran = project.attrflow(["run", "pipelines/demo.toml", "--target", "influence[grin]"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    let message = ran.out + &ran.err;
    assert!(message.contains("both must come from the same stage"), "{message}");
}
