//! What `explain`, `plan` and `status` show after an edit.

use std::process::Command;

use serde_json::Value as Json;

use crate::project::Project;

fn git(project: &Project, arguments: &[&str]) {
    let known = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "commit.gpgsign=false"];
    let output = Command::new("git").current_dir(&project.root).args(known).args(arguments).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

fn line_of(project: &Project, file: &str, text: &str) -> usize {
    let all = fs_err::read_to_string(project.path(file)).unwrap();
    all.lines().position(|line| line == text).unwrap() + 1
}

#[test]
fn an_edit_is_reported_with_its_line_and_commit() {
    let project = Project::finished();
    let explain = |arguments: &[&str]| {
        let ran = project.attrflow([&["explain", "pipelines/demo.toml"], arguments].concat());
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
        ran.out
    };
    assert!(explain(&["fisher"]).contains("no change since the run of"));

    git(&project, &["init", "-q"]);
    git(&project, &["add", "configs", "pipelines"]);
    git(&project, &["commit", "-q", "-m", "begin"]);
    project.edit("configs/demo.toml", "epochs = 1", "epochs = 2");
    let line = line_of(&project, "configs/demo.toml", "epochs = 2");
    let text = explain(&["fisher"]);
    assert!(text.contains("  params.epochs: 1 -> 2\n"), "{text}");
    assert!(text.contains(&format!("      configs/demo.toml:{line}, not committed yet\n")), "{text}");
    git(&project, &["commit", "-q", "-a", "-m", "one more epoch"]);
    let text = explain(&["fisher"]);
    assert!(text.contains(&format!("configs/demo.toml:{line}, commit ")), "{text}");
    assert!(text.contains("by Ada: one more epoch\n"), "{text}");
    assert!(text.contains("numerics.device") && text.contains("inputs.latents"), "{text}");

    // What does not count is named apart, a value of the command line and a default as such.
    let text = explain(&["pretrain_loss", "--set", "loss.time_samples=4"]);
    assert!(text.contains("not hashed\n  params.loss.draws: 1\n  params.loss.objective"), "{text}");
    assert!(text.contains("\n  params.per_timestep: "), "{text}");
    assert!(text.contains("  params.loss.time_samples: 2 -> 4\n      --set loss.time_samples\n"), "{text}");
    let seed = text.lines().find(|line| line.contains("params.loss.seed")).unwrap();
    assert!(seed.ends_with("default"), "{seed}");
    let ran = project.attrflow(["explain", "pipelines/demo.toml", "fisher", "--json"]);
    let fields = ran.json()[0]["fields"].as_array().unwrap().clone();
    let epochs = fields.iter().find(|field| field["field"] == "params.epochs").unwrap();
    assert_eq!(
        (&epochs["place"]["line"], &epochs["blame"]["summary"]),
        (&line.into(), &"one more epoch".into())
    );

    // The plan names the line too, and the time of the run.
    let plan = project.attrflow(["plan", "pipelines/demo.toml"]).out;
    assert!(plan.contains(&format!("params.epochs: 1 -> 2 (configs/demo.toml:{line})")), "{plan}");
    assert!(plan.contains("\npredicted: ") && plan.contains("the last run of fisher"), "{plan}");
    let status = project.attrflow(["status", "pipelines/demo.toml"]).out;
    assert!(status.contains("\nout of date: ") && status.contains("\npending: "), "{status}");
}

#[test]
fn a_changed_source_is_explained_file_by_file() {
    let project = Project::finished();
    project.edit("data/demo/captions.json", "\"images\": [", "\"info\": {}, \"images\": [");
    assert_eq!(project.run(&["--target", "data"]).computed(), ["data"]);
    let text = project.attrflow(["explain", "pipelines/demo.toml", "latents"]).out;
    assert!(text.contains("reads data.files/captions.json"), "{text}");
    let text = project.attrflow(["explain", "pipelines/demo.toml", "ranking[grin]"]).out;
    assert!(text.contains("inputs.captions: ") && text.contains("pending"), "{text}");
}

#[test]
fn the_nearest_hit_names_the_edit_back() {
    let project = Project::finished();
    let nearest = |arguments: &[&str]| {
        let ran =
            project.attrflow([&["explain", "--nearest-hit", "pipelines/demo.toml"], arguments].concat());
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
        ran.out
    };
    assert_eq!(nearest(&["fisher"]), "fisher: cached\n");
    project.edit("configs/demo.toml", "epochs = 1", "epochs = 2");
    let line = line_of(&project, "configs/demo.toml", "epochs = 2");
    let text = nearest(&["fisher"]);
    assert!(text.starts_with("fisher: 1 edit from a result computed at "), "{text}");
    let edit = format!("  set fisher.epochs back to 1, now 2 (configs/demo.toml:{line})\n");
    assert!(text.contains(&edit) && text.ends_with("  for one run: --set fisher.epochs=1\n"), "{text}");
    // Further down it is the same edit.
    let text = nearest(&["influence[grin]"]);
    assert!(text.contains("influence[grin]: 1 edit from ") && text.contains(&edit), "{text}");
    // And what it says is so.
    let plan = project.attrflow(["plan", "pipelines/demo.toml", "--set", "fisher.epochs=1"]).out;
    assert!(plan.ends_with("0 to run, 12 cached, 0 pending\n"), "{plan}");
    let ran = Project::new(2).attrflow(["explain", "pipelines/demo.toml", "fisher", "--nearest-hit"]);
    assert_eq!(ran.out, "fisher: the cache has no result of the kind fisher\n");
}

#[test]
fn the_hint_of_an_export_repeats_the_given_command() {
    let project = Project::finished();
    let arguments = ["--unet", "out", "--set", "unlearn.lr=0.5", "--target", "unlearn[grin]"];
    let ran = project.attrflow([&["export", "pipelines/demo.toml"], &arguments[..]].concat());
    let hint = "run `attrflow run pipelines/demo.toml --set unlearn.lr=0.5 --target 'unlearn[grin]'` first";
    assert!(ran.code == 1 && ran.err.contains(hint), "{ran:?}");
}

#[test]
fn a_stage_is_predicted_as_in_the_plan() {
    let project = Project::finished();
    let predicted = |verb: &[&str], stage: &str, set: &str| {
        let ran = project.attrflow([verb, &["--set", set, "--json", "--device", "cpu"]].concat());
        assert_eq!(ran.code, 0, "{ran:?}");
        let mut lines = ran.out.lines().map(|line| serde_json::from_str::<Json>(line).unwrap());
        lines.find(|line| line["stage"] == stage).unwrap()["predicted"].clone()
    };
    for (stage, set) in
        [("latents", "latents.pixels=64"), ("fisher", "fisher.epochs=50"), ("fisher", "fisher.seed=3")]
    {
        let plan = predicted(&["plan", "pipelines/demo.toml"], stage, set);
        assert_eq!(predicted(&["explain", "pipelines/demo.toml", stage], stage, set), plan, "{set}");
        // Pixels are work of another kind, epochs are more of the same.
        assert_eq!(plan["seconds"].is_null(), stage == "latents", "{plan}");
    }
}
