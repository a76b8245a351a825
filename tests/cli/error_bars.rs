//! Error bars: losses per timestep and draw, the influences of each, and what a ranking makes of them.

use attrflow::io::npy::Npy;
use serde_json::Value as Json;

use crate::project::{Project, Ran};

const COLUMNS: [&str; 7] = ["standard_error", "low", "high", "p_top", "rank_low", "rank_high", "tied"];

fn floats(project: &Project, name: &str) -> (Vec<usize>, Vec<f32>) {
    let npy = Npy::open(project.result(name)).unwrap();
    let mut values = Vec::new();
    npy.read_f32(0..npy.rows(), &mut values).unwrap();
    (npy.shape().to_vec(), values)
}

fn report(project: &Project) -> Json {
    serde_json::from_slice(&fs_err::read(project.result("ranking/grin/top.json")).unwrap()).unwrap()
}

fn header(project: &Project) -> Vec<String> {
    let mut reader = csv::Reader::from_path(project.result("ranking/grin/top.csv")).unwrap();
    reader.headers().unwrap().iter().map(str::to_owned).collect()
}

fn refused(project: &Project, sets: &[&str]) -> String {
    let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    let ran = project.attrflow([&["plan", "pipelines/demo.toml"], &sets[..]].concat());
    assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{ran:?}");
    ran.err
}

#[test]
fn rows_of_a_ranking_have_error_bars() {
    let project = Project::finished();
    let before = floats(&project, "influence/grin/influence.npy");
    let plain = report(&project);
    assert_eq!(
        header(&project),
        ["rank", "index", "file_name", "influence", "caption", "percentile", "path"]
    );
    let (shape, none) = floats(&project, "ranking/grin/standard_error.npy");
    assert!(shape == [6] && none.iter().all(|error| error.is_nan()), "{none:?}");
    assert_eq!((&plain["format"], &plain["title"]), (&1.into(), &"an emoji of grinning face".into()));
    let why = plain["summary"]["no_error_bars"].as_str().unwrap();
    assert!(why.contains("the input `per_timestep` is not connected"), "{why}");

    let set = ["--set", "ranking.error_bars=true", "--target", "ranking[grin]"];
    let ran = project.run(&set);
    // Of the influence and the loss only the merge: all units are there.
    assert_eq!(ran.computed(), ["influence[grin]", "pretrain_loss", "ranking[grin]"]);
    assert_eq!(ran.events("unit_finished", "unit"), [""; 0]);
    assert_eq!(floats(&project, "influence/grin/influence.npy"), before);

    let (shape, rises) = floats(&project, "influence/grin/influence_per_timestep.npy");
    let (_, after) = floats(&project, "influence/grin/unlearned_loss.npy");
    let (_, losses) = floats(&project, "pretrain_loss/pretrain_loss.npy");
    assert_eq!(shape, [12, 2]);
    for (latent, row) in rises.chunks(2).enumerate() {
        let expected = after[latent] - losses[latent];
        assert!(((row[0] + row[1]) / 2.0 - expected).abs() < 1e-6, "{latent}: {row:?} {expected}");
    }

    let (json, expected) = (report(&project), plain["rows"].as_array().unwrap());
    let summary = &json["summary"]["error_bars"];
    assert_eq!(
        (&summary["timesteps"], &summary["draws"], &summary["top"]),
        (&2.into(), &1.into(), &3.into())
    );
    assert_eq!(summary["method"], "successive differences");
    assert_eq!(header(&project)[5..12], COLUMNS);
    let (_, errors) = floats(&project, "ranking/grin/standard_error.npy");
    let rows = json["rows"].as_array().unwrap();
    assert_eq!(rows.len(), expected.len());
    for (row, plain) in rows.iter().zip(expected) {
        let number = |key: &str| row[key].as_f64().unwrap();
        assert_eq!((&row["index"], &row["influence"]), (&plain["index"], &plain["influence"]));
        assert!(number("standard_error") > 0.0);
        assert_eq!(errors[number("index") as usize], number("standard_error") as f32);
        assert!(number("low") < number("influence") && number("influence") < number("high"), "{row}");
        assert!((0.0..=1.0).contains(&number("p_top")) && row["tied"].is_boolean());
        assert!(1.0 <= number("rank_low") && number("rank_low") <= number("rank_high"));
        assert!(number("rank_high") <= 6.0);
    }
    let mut reader = csv::Reader::from_path(project.result("ranking/grin/top.csv")).unwrap();
    let first = reader.records().next().unwrap().unwrap();
    assert_eq!(first[9], rows[0]["rank_low"].to_string());
    // The resamples are the same in every run.
    let again = project.run(&[&set[..], &["--force", "ranking[grin]"]].concat());
    assert_eq!(again.computed(), ["ranking[grin]"]);
    assert_eq!(report(&project), json);
}

#[test]
fn more_draws_compute_only_the_new_ones() {
    let project = Project::finished();
    let target = ["--target", "ranking[grin]", "--set", "ranking.error_bars=true"];
    project.run(&target);
    let (_, first) = floats(&project, "pretrain_loss/pretrain_loss_per_timestep.npy");
    let units = |ran: &Ran| ran.events("unit_finished", "unit");
    let ran = project.run(&[&target[..], &["--set", "loss.draws=2"]].concat());
    let (one, found) = (["", "mirror "], units(&ran));
    let expected: Vec<String> = one
        .iter()
        .flat_map(|mirror| [0, 500].map(|t| format!("{mirror}images 0..6 at timestep {t}, draw 1")))
        .flat_map(|name| [name.clone(), name])
        .collect();
    assert_eq!(found, expected);
    let (shape, losses) = floats(&project, "pretrain_loss/pretrain_loss_per_timestep.npy");
    assert_eq!(shape, [12, 2, 2]);
    // The first draw is what was there; the loss is the mean of all.
    let of_first: Vec<f32> = losses.iter().step_by(2).copied().collect();
    assert_eq!(of_first, first);
    let (_, means) = floats(&project, "pretrain_loss/pretrain_loss.npy");
    for (row, mean) in losses.chunks(4).zip(means) {
        assert!((row.iter().sum::<f32>() / 4.0 - mean).abs() < 1e-6, "{row:?} {mean}");
    }
    assert_eq!(floats(&project, "influence/grin/influence_per_timestep.npy").0, [12, 2, 2]);
    let summary = &report(&project)["summary"]["error_bars"];
    assert_eq!((&summary["method"], &summary["draws"]), (&"between draws".into(), &2.into()));
    // All is cached on the way back.
    assert!(project.run(&target).computed().is_empty());
}

#[test]
fn the_mean_of_both_flips_merges_the_same_units() {
    let project = Project::finished();
    project.edit(
        "pipelines/demo.toml",
        "params = { per_timestep",
        "params = { flips = \"mean\", per_timestep",
    );
    let ran = project.run(&["--target", "ranking[grin]", "--set", "ranking.error_bars=true"]);
    assert_eq!(ran.events("unit_finished", "unit"), [""; 0]);
    let (_, after) = floats(&project, "influence/grin/unlearned_loss.npy");
    let (_, losses) = floats(&project, "pretrain_loss/pretrain_loss.npy");
    for (image, found) in floats(&project, "influence/grin/influence.npy").1.into_iter().enumerate() {
        let rise = [image, image + 6].map(|latent| f64::from(after[latent] - losses[latent]));
        assert_eq!(found, (f64::midpoint(rise[0], rise[1])) as f32, "{image}");
    }
    // The ranking has it from the influence.
    assert_eq!(report(&project)["summary"]["error_bars"]["flips"], "mean");
    project.edit(
        "pipelines/demo.toml",
        "[stages.ranking.params]",
        "[stages.ranking.params]\nflips = \"max\"",
    );
    let error = refused(&project, &[]);
    assert!(error.contains("`flips` is inherited from the stage on the input `influence`"), "{error}");
}

#[test]
fn noise_per_batch_has_no_error_bars_and_says_so() {
    let project = Project::finished();
    let per_batch = ["loss.noise=per_batch", "loss.batch_size=8"];
    let error = refused(&project, &[&per_batch[..], &["ranking.error_bars=true"]].concat());
    assert!(error.contains("`per_timestep` needs `noise = \"per_image\"` in the loss"), "{error}");
    let error = refused(&project, &[&per_batch[..], &["loss.draws=2"]].concat());
    assert!(
        error.contains("`draws` is 2: more than one draw per image needs `noise = \"per_image\"`"),
        "{error}"
    );
    let sets = ["--set", per_batch[0], "--set", per_batch[1], "--target", "ranking[grin]"];
    project.run(&sets);
    let why = report(&project)["summary"]["no_error_bars"].to_string();
    assert!(why.contains("no error bars") && why.contains("per_batch"), "{why}");
    assert_eq!(header(&project).len(), 7);
}

#[test]
fn influences_per_timestep_need_those_of_the_pretrained_model() {
    let project = Project::new(6);
    project.edit(
        "pipelines/demo.toml",
        "params = { per_timestep = \"${ranking.error_bars}\" }",
        "params = { per_timestep = true }",
    );
    let error = refused(&project, &[]);
    assert!(error.contains("`per_timestep` needs the input `pretrain_loss_per_timestep`"), "{error}");
}

#[test]
fn one_timestep_with_one_draw_has_no_error_bars() {
    let project = Project::finished();
    let set =
        ["--set", "ranking.error_bars=true", "--set", "loss.time_samples=1", "--target", "ranking[grin]"];
    project.run(&set);
    let why = report(&project)["summary"]["no_error_bars"].to_string();
    assert!(why.contains("one timestep with one draw"), "{why}");
}
