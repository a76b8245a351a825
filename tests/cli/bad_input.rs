//! Pipelines and command lines that are wrong: exit code 2, the place, and nothing is run.

use crate::project::Project;

/// Runs and expects that nothing was: the code, the parts of the message, and no trace in the cache.
fn refused(project: &Project, arguments: &[&str], parts: &[&str]) {
    let before = project.cached("");
    let ran = project.attrflow([&["run"], arguments].concat());
    assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{arguments:?}: {ran:?}");
    for part in parts {
        assert!(ran.err.contains(part), "{arguments:?} does not say {part:?}:\n{}", ran.err);
    }
    assert_eq!(ran.err.matches("error: ").count(), 1, "{arguments:?}:\n{}", ran.err);
    assert_eq!(project.cached(""), before, "{arguments:?}");
}

#[test]
fn a_fault_of_the_pipeline_has_its_location() {
    // The text in the file, its replacement, and parts of the message.
    let cases: [(&str, &str, &[&str]); 14] = [
        (
            r#"kind = "fisher""#,
            "kind = \"fisher\"\nech = 3",
            &["unknown key `ech`", "parts/emoji.toml:38:1", "`each`?"],
        ),
        (
            r#"kind = "fisher""#,
            r#"kind = "fischer""#,
            &["unknown stage kind `fischer`", "did you mean `fisher`?"],
        ),
        (r#"kind = "fisher""#, r#"kind "fisher""#, &["key with no value", "parts/emoji.toml:37:6"]),
        (
            r#""data.files/model/vae""#,
            r#""dat.files/model/vae""#,
            &["unknown stage `dat`", "did you mean `data`?"],
        ),
        (
            r#"latents = "latents.latents""#,
            r#"latents = "latents.latent""#,
            &["no output `latent`", "`latents`?"],
        ),
        (
            r#"unet = "data.files/model/unet""#,
            "unet = 3",
            &["`stage.port` or a path, found an integer", "31:8"],
        ),
        (
            r#"fisher = "fisher.fisher""#,
            "",
            &[
                "the input `fisher` is not connected, which the `curvature` \"diagonal\" needs",
                "a stage of the kind `fisher`",
            ],
        ),
        (
            r#"weights = "unlearn.weights""#,
            "weights = \"unlearn.weights\"\ncheckpoint = \"../data/demo/captions.json\"",
            &[
                "captions.json`, and of the stage `pretrain_loss` on the input `pretrain_loss` it is not connected: both stages must",
            ],
        ),
        ("\"${loss}\"", "3", &["expected a table, found an integer", "parts/emoji.toml:28:19"]),
        (
            "../data/demo/images.zip",
            "../data/image.zip",
            &["/project/data/image.zip`", "parts/emoji.toml:10:12"],
        ),
        (
            r#""latents.latents""#,
            r#""../../latents.npy""#,
            &["no such file or folder", "/project/latents.npy`", "33:11"],
        ),
        (r#""../configs/demo.toml""#, r#""../configs/dem.toml""#, &["`configs/dem.toml`", "demo.toml:3:10"]),
        (
            r#""${query.caption}""#,
            r#""${query.captain}""#,
            &["`${query.captain}` does not exist", "the config has `caption`: one of the two is misspelt"],
        ),
        (
            r#"vae = "data.files/model/vae""#,
            r#"vae = "latents.latents""#,
            &["the stage `latents` reads its own output"],
        ),
    ];
    let project = Project::new(1);
    let read = |file| (file, fs_err::read_to_string(project.path(file)).unwrap());
    let files = [read("pipelines/parts/emoji.toml"), read("pipelines/demo.toml")];
    for (from, to, parts) in cases {
        for (file, good) in &files {
            project.write(file, good);
        }
        let file = files.iter().find(|(_, good)| good.contains(from)).unwrap().0;
        project.edit(file, from, to);
        refused(&project, &["pipelines/demo.toml"], &[parts, &["1 problem found; nothing was run"]].concat());
    }
}

#[test]
fn a_fault_of_the_config_has_its_location() {
    let cases: [(&str, &str, &[&str]); 10] = [
        (
            "time_samples = 2",
            "time_sample = 2",
            &["unknown key `time_sample`", "configs/demo.toml:", "`time_samples`?"],
        ),
        ("time_samples = 2", "time_samples = \"two\"", &["an integer of at least 0, found a string"]),
        (
            "time_samples = 2",
            "time_samples = 100001",
            &["`time_samples` is 100001, expected a value from 1 to 100000"],
        ),
        (
            "\"per_image\"",
            "\"per_batch\"\nbatch_size = 3",
            &["`batch_size` is 3, expected a multiple of 4, the 2 captions"],
        ),
        ("\"per_image\"", "\"per_batch\"", &["`batch_size` is missing: with noise = \"per_batch\""]),
        (
            "\"per_image\"",
            "\"per_image\"\nbatch_size = 4",
            &["`batch_size` has no effect with noise = \"per_image\""],
        ),
        (
            "\"cross-attn-kv\"",
            "\"cross-atn\"",
            &["found `cross-atn`, expected one of", "did you mean `cross-attn`?"],
        ),
        ("lr = 0.001", "damping = -1.0", &["`damping` is -1, expected a number of at least 0"]),
        ("lr = 0.001", "lr = nan", &["expected a finite number", "lr = nan"]),
        ("name = \"pizza\"", "name = \"grin\"", &["two items of `queries` have the name `grin`"]),
    ];
    let project = Project::new(1);
    let good = fs_err::read_to_string(project.path("configs/demo.toml")).unwrap();
    for (from, to, parts) in cases {
        project.write("configs/demo.toml", &good);
        project.edit("configs/demo.toml", from, to);
        // A fault in what several stages share is one fault.
        refused(&project, &["pipelines/demo.toml"], parts);
    }
}

#[test]
fn all_faults_are_reported_at_once() {
    let project = Project::new(1);
    project.edit("configs/demo.toml", "steps = 4", "steps = 0");
    project.edit("configs/demo.toml", "epochs = 1", "epoch = 1");
    project.edit("pipelines/demo.toml", r#"kind = "unlearn""#, r#"kind = "unlern""#);
    let ran = project.attrflow(["run", "pipelines/demo.toml"]);
    assert_eq!(ran.code, 2);
    for part in ["`steps` is 0", "unknown key `epoch`", "unknown stage kind `unlern`"] {
        assert!(ran.err.contains(part), "{part}:\n{}", ran.err);
    }
}

#[test]
fn a_wrong_command_line_is_refused() {
    let project = Project::new(1);
    let demo = "pipelines/demo.toml";
    let cases: [(&[&str], &[&str]); 15] = [
        (
            &[demo, "--target", "latent"],
            &["the pipeline `demo` has no stage `latent`: did you mean `latents`?"],
        ),
        (&[demo, "--target", "generate[grim]"], &["did you mean `generate[grin]`?"]),
        (&[demo, "--force", "latent"], &["has no stage `latent`"]),
        (&[demo, "--device", "gpu"], &["unknown device `gpu`: expected auto, cpu, cuda, or a list"]),
        (&[demo, "--device", "cpu,cuda:0"], &["`cpu,cuda:0` mixes the CPU and other devices"]),
        (&[demo, "--set", "loss.time_samples"], &["found no `=`"]),
        (&[demo, "--set", "los.time_samples=4"], &["no table `los`", "did you mean `loss`?"]),
        (&[demo, "--set", "loss.time_sample=4"], &["unknown key `time_sample`", "--set:1:6"]),
        (&[demo, "--set", "loss.time_samples=many"], &["found a string", "--set:1:19"]),
        (&[demo, "--set", "run.downloads=3"], &["unknown key `downloads`; it is named `download_jobs` now"]),
        // It would set a key that nobody reads: the run would go on as if nothing had been said.
        (&[demo, "--set", "generate.stpes=9"], &["no stage reads `generate.stpes`", "did you mean `steps`?"]),
        (&[demo, "--set", "queries.grin.captoin=x"], &["no stage reads `queries.grin.captoin`"]),
        (&[demo, "--set", "queries.grim.caption=x"], &["`queries` has no item `grim`"]),
        (
            &["pipelines/nothing.toml"],
            &["there is no pipeline file pipelines/nothing.toml; valid names: pipelines/demo.toml"],
        ),
        (&[demo, "--nothing"], &["unexpected argument '--nothing'"]),
    ];
    for (arguments, parts) in cases {
        refused(&project, arguments, parts);
    }
    let ran = project.attrflow(["nothing"]);
    assert!(ran.code == 2 && ran.err.contains("'nothing'"), "{ran:?}");
    let ran = project.attrflow(["stages"]);
    assert_eq!((ran.code, ran.err.as_str()), (2, "error: `stages` is named `kinds` now\n"));
}

#[test]
fn a_valid_set_is_accepted() {
    let project = Project::new(1);
    for set in
        ["queries.grin.caption=a dog", "queries.1.seed=4", "unlearn.damping=1e-9", "run.jobs=1", "queries=[]"]
    {
        let ran = project.attrflow(["plan", "pipelines/demo.toml", "--set", set]);
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{set}");
    }
}
