//! `plan --measure`: what is predicted before a run, with real workers.

use serde_json::Value as Json;

use crate::project::{Project, Ran};

fn plan(project: &Project, more: &[&str]) -> (Ran, Vec<Json>) {
    let ran = project.attrflow([&["plan", "pipelines/demo.toml", "--json"], more].concat());
    assert_eq!(ran.code, 0, "{ran:?}");
    let lines = ran.json();
    (ran, lines)
}

fn of<'a>(lines: &'a [Json], stage: &str) -> &'a Json {
    &lines.iter().find(|line| line["stage"] == stage).unwrap()["predicted"]
}

#[test]
fn everything_is_predicted_before_anything_ran() {
    let project = Project::new(6);
    let (ran, before) = plan(&project, &[]);
    assert_eq!(ran.err, "");
    // Shapes are known without a measurement: from the network's files, which lie beside the pipeline.
    assert!(of(&before, "fisher")["seconds"].is_null());
    let disk: Vec<u64> = before.iter().filter_map(|line| line["predicted"]["disk"].as_u64()).collect();
    assert_eq!(disk.len(), 11, "all but the downloaded files");

    let (ran, lines) = plan(&project, &["--measure"]);
    let heavy = ["latents", "pretrain_loss", "fisher", "generate[grin]", "unlearn[grin]", "influence[grin]"];
    let message: Vec<String> = heavy.iter().map(|stage| format!("measuring {stage}\n")).collect();
    assert_eq!(ran.err, message.concat(), "those that are alike once");
    for stage in heavy {
        let predicted = of(&lines, stage);
        assert!((0.0..600.0).contains(&predicted["seconds"].as_f64().unwrap()), "{predicted}");
        // A process with libtorch takes more than this, and the demo's network less than that.
        let host = predicted["host_memory"].as_u64().unwrap();
        assert!((50_000_000..2_000_000_000).contains(&host), "{predicted}");
        assert_eq!(predicted["device_memory"], 0);
        assert_eq!(predicted["basis"], "a measurement on this machine");
    }
    let needs = &lines.last().unwrap()["needs"];
    assert!(
        needs["wall_seconds"].as_f64().unwrap() > 0.0 && needs["disk_free"].as_u64().unwrap() > 0,
        "{needs}"
    );
    assert_eq!(project.cached("costs-v1").len(), 6);
    assert!(project.cached("objects").is_empty() && !project.path("results").exists());

    // A plan without measuring knows it, and so does one for people.
    let (ran, again) = plan(&project, &[]);
    assert_eq!(ran.err, "");
    for stage in heavy {
        assert_eq!(of(&again, stage), of(&lines, stage), "{stage}");
    }
    let text = project.attrflow(["plan", "pipelines/demo.toml"]).out;
    assert!(text.contains(" from start to end with 2 workers\n") && text.contains(" of memory\n"), "{text}");
    assert!(of(&plan(&project, &["--threads", "2"]).1, "fisher")["seconds"].is_null(), "measured with one");

    // The outputs are as long as was said.
    project.run(&[]);
    for (stage, port, file) in [
        ("latents", "latents", "latents/latents.npy"),
        ("pretrain_loss", "losses", "pretrain_loss/pretrain_loss.npy"),
        ("fisher", "fisher", "fisher/fisher.safetensors"),
        ("unlearn[grin]", "weights", "unlearn/grin/unlearned.safetensors"),
    ] {
        let found = fs_err::metadata(project.result(file)).unwrap().len() as f64;
        let said = of(&lines, stage)["bytes"].as_u64().unwrap() as f64;
        let others = if stage == "latents" {
            fs_err::metadata(project.result("latents/text_embeddings.npy")).unwrap().len() as f64
        } else {
            0.0
        };
        assert!((said / (found + others) - 1.0).abs() < 0.05, "{stage}.{port}: {said} of {found}");
    }
    let (_, after) = plan(&project, &["--force", "fisher"]);
    assert_eq!(of(&after, "fisher")["basis"], "a measurement on this machine");
}

#[test]
fn an_input_that_is_unknown_yet_is_named() {
    let project = Project::new(6);
    // As if the network's files were still to be downloaded.
    project.edit(
        "pipelines/parts/emoji.toml",
        "  { from = \"../../data/demo/model\" },",
        "  { from = \"http://127.0.0.1:9/model\" },",
    );
    let (ran, lines) = plan(&project, &["--measure"]);
    let why = "cannot measure fisher: the input `latents` is unknown until `latents` has run\n";
    assert!(ran.err.contains(why), "{ran:?}");
    assert!(
        ran.err.contains("cannot measure latents: the input `vae` is unknown until `data` has run\n"),
        "{ran:?}"
    );
    assert!(of(&lines, "fisher")["seconds"].is_null());
    assert!(!project.path("cache/costs-v1").exists());
}

/// After a run, a plan with another value of a parameter says nearly what `--measure` says, or that it does not know.
///
/// About ten minutes: `cargo nextest run --test cli estimate --run-ignored only`, on an idle machine.
#[test]
#[ignore = "measures for ten minutes"]
fn a_plan_after_a_run_scales_with_every_parameter_or_does_not_know() {
    let mut wrong = Vec::new();
    let mut compared = 0;
    for edit in [
        "latents.pixels=64",
        "latents.captions=1",
        "latents.posterior=sample",
        "loss.time_samples=20",
        "loss.captions=1",
        "loss.seed=1",
        "loss.noise=per_batch loss.batch_size=48",
        "fisher.epochs=8",
        "fisher.batch_size=1",
        "fisher.select=all",
        "generate.steps=40",
        "generate.guidance_scale=1.0",
        "unlearn.steps=4",
        "unlearn.grad_accum_steps=12",
        "unlearn.batch_size=32",
        "fisher.select=all unlearn.select=all",
        "unlearn.lr=0.01",
        "ranking.rows=3",
        "ranking.images_shown=6",
    ] {
        let project = Project::finished();
        let sets: Vec<&str> = edit.split(' ').flat_map(|set| ["--set", set]).collect();
        let (_, guessed) = plan(&project, &sets);
        let (_, measured) = plan(&project, &[&sets[..], &["--measure"]].concat());
        for line in measured.iter().filter(|line| line["stage"].is_string()) {
            let stage = line["stage"].as_str().unwrap();
            let seconds = |lines: &[Json]| of(lines, stage)["seconds"].as_f64();
            let (Some(guess), Some(truth)) = (seconds(&guessed), seconds(&measured)) else { continue };
            compared += 1;
            // Less than this is start-up and noise.
            let off = guess.max(0.5) / truth.max(0.5);
            if !(0.5..=2.0).contains(&off) {
                wrong.push(format!("{edit}: {stage} {guess:.2} s, measured {truth:.2} s"));
            }
        }
    }
    assert!(wrong.is_empty(), "{compared} compared:\n{}", wrong.join("\n"));
    assert!(compared > 60, "{compared}");
}
