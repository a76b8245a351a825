//! `graph`, `init`, `completions` and `man`, and the pipelines of this repository.

use std::path::Path;

use crate::project::{Project, Ran, command};

fn attrflow(folder: &Path, arguments: &[&str]) -> Ran {
    command(Path::new(env!("CARGO_BIN_EXE_attrflow")), folder).args(arguments).output().unwrap().into()
}

#[test]
fn a_graph_is_drawn_before_and_after_a_run_and_with_a_change() {
    let project = Project::new(2);
    let drawn = project.attrflow(["graph", "pipelines/demo.toml"]);
    assert_eq!((drawn.code, drawn.err.as_str()), (0, ""));
    insta::assert_snapshot!("text_new", drawn.out);

    let done = Project::finished();
    let drawn = done.attrflow(["graph", "pipelines/demo.toml", "--set", "unlearn.lr=1"]);
    insta::assert_snapshot!("text_set", drawn.out);
    for format in ["dot", "mermaid", "svg"] {
        let drawn = done.attrflow(["graph", "pipelines/demo.toml", "--format", format, "--touch", "fisher"]);
        assert_eq!((drawn.code, drawn.err.as_str()), (0, ""));
        insta::assert_snapshot!(format, drawn.out);
    }
    let full = done.attrflow(["graph", "pipelines/demo.toml", "--full", "--format", "mermaid"]);
    assert!(full.out.contains("\"unlearn[grin]<br/>unlearn: cached\""), "{}", full.out);
    let wrong = done.attrflow(["graph", "pipelines/demo.toml", "--touch", "fischer"]);
    assert_eq!(wrong.code, 2);
    assert!(wrong.err.contains("did you mean `fisher`?"), "{}", wrong.err);
}

#[test]
fn init_writes_files_that_plan() {
    let folder = tempfile::tempdir().unwrap();
    let begun = attrflow(folder.path(), &["init", "new"]);
    assert_eq!((begun.code, begun.err.as_str()), (0, ""));
    assert!(begun.out.contains("attrflow run new/pipelines/attribution.toml"), "{}", begun.out);
    let plan = attrflow(folder.path(), &["plan", "new/pipelines/attribution.toml", "--device", "cpu"]);
    assert!(plan.code == 2 && plan.err.contains("it is the placeholder of a new project"), "{plan:?}");
    let config = folder.path().join("new/configs/attribution.toml");
    let text = fs_err::read_to_string(&config).unwrap().replace("OWNER/", "someone/");
    fs_err::write(&config, text).unwrap();
    let plan = attrflow(folder.path(), &["plan", "new/pipelines/attribution.toml", "--device", "cpu"]);
    assert_eq!((plan.code, plan.err.as_str()), (0, ""), "{plan:?}");
    assert!(plan.out.contains("influence[first]"), "{}", plan.out);

    fs_err::write(&config, "mine").unwrap();
    fs_err::remove_file(folder.path().join("new/pipelines/attribution.toml")).unwrap();
    let again = attrflow(folder.path(), &["init", "new"]);
    assert_eq!(again.code, 1);
    assert_eq!(again.err, "error: new/configs/attribution.toml already exists; nothing was written\n");
    assert_eq!(fs_err::read_to_string(&config).unwrap(), "mine");
    assert!(!folder.path().join("new/pipelines/attribution.toml").exists());
}

#[test]
fn shells_and_man_know_every_verb() {
    let folder = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = attrflow(folder.path(), &["completions", shell]);
        assert_eq!(script.code, 0);
        assert!(
            ["graph", "adopt", "--touch"]
                .iter()
                .all(|word| script.out.contains(word.trim_start_matches('-')))
        );
    }
    let pages = attrflow(folder.path(), &["man", "man1"]);
    assert_eq!(pages.code, 0, "{pages:?}");
    let page = fs_err::read_to_string(folder.path().join("man1/attrflow-graph.1")).unwrap();
    assert!(page.contains("\\-\\-touch"), "{page}");
    assert!(folder.path().join("man1/attrflow.1").exists());
}

#[test]
fn the_pipelines_of_this_repository_load() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let cache = tempfile::tempdir().unwrap();
    for pipeline in ["demo", "self_influence", "mscoco"] {
        let file = format!("pipelines/{pipeline}.toml");
        let cache = cache.path().to_str().unwrap();
        let plan = attrflow(root, &["plan", &file, "--device", "cpu", "--cache", cache]);
        assert_eq!((plan.code, plan.err.as_str()), (0, ""), "{pipeline}");
    }
}

#[test]
fn the_environment_is_hashed_only_where_declared() {
    let project = Project::new(2);
    let plan = |variables: &[(&str, &str)]| -> Ran {
        let mut command = command(Path::new(env!("CARGO_BIN_EXE_attrflow")), &project.root);
        command.args(["plan", "pipelines/demo.toml", "--target", "latents"]).envs(variables.iter().copied());
        command.output().unwrap().into()
    };
    project.edit("configs/demo.toml", "pixels = 32", "pixels = \"${env:PIXELS:-32}\"");
    let refused = plan(&[]);
    assert_eq!(refused.code, 2);
    assert!(
        refused.err.contains("`${env:PIXELS}` is not declared, and this value is hashed"),
        "{}",
        refused.err
    );
    assert!(refused.err.contains("configs/demo.toml:13:10"), "{}", refused.err);
    project.edit("pipelines/demo.toml", "include", "env = [\"PIXELS\"]\ninclude");
    assert_eq!(plan(&[]).code, 0);
    let wrong = plan(&[("PIXELS", "many")]);
    assert!(wrong.err.contains("expected an integer of at least 0"), "{}", wrong.err);
    // The location of a file is not hashed.
    let emoji = "pipelines/parts/emoji.toml";
    project.edit(emoji, "../../data/demo/images.zip", "${env:PLACE}/images.zip");
    let unset = plan(&[]);
    assert!(unset.err.contains("the environment variable `PLACE` is not set"), "{}", unset.err);
    assert!(unset.err.contains("pipelines/parts/emoji.toml:10:12"), "{}", unset.err);
    let place = project.path("data/demo");
    assert_eq!(plan(&[("PLACE", place.to_str().unwrap())]).code, 0);
    // A name in the folder that results counts.
    project.edit(
        emoji,
        "${env:PLACE}/images.zip\"",
        "${env:PLACE}/images.zip\", to = \"${env:NAME:-a}.zip\"",
    );
    let name = plan(&[("PLACE", place.to_str().unwrap())]);
    assert!(name.err.contains("`${env:NAME}` is not declared, and this value is hashed"), "{}", name.err);
}
