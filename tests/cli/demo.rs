//! The first minutes: the program alone, and the demo that it carries.

use std::path::Path;

use crate::project::attrflow;

#[test]
fn the_program_alone_says_how_to_start() {
    let folder = tempfile::tempdir().unwrap();
    let ran = attrflow(folder.path(), [""; 0]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    for command in ["attrflow demo", "attrflow init", "attrflow run"] {
        assert!(ran.out.lines().any(|line| line.trim().starts_with(command)), "{command}: {}", ran.out);
    }
    assert!(ran.out.lines().all(|line| line.len() <= 80), "{}", ran.out);
}

#[test]
fn the_demo_is_that_of_the_repository() {
    let folder = tempfile::tempdir().unwrap();
    let demo = folder.path().join("a demo");
    let ran = attrflow(folder.path(), ["init", "--demo", "a demo"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(
        ran.out.starts_with("wrote 17 files") && ran.out.contains("a demo/pipelines/demo.toml"),
        "{ran:?}"
    );
    // All that its stages read is there: the plan finds it.
    let ran = attrflow(&demo, ["plan", "pipelines/demo.toml"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for file in ["configs/demo.toml", "data/demo/images.zip", "data/demo/model/tokenizer/vocab.json"] {
        assert!(fs_err::read(demo.join(file)).unwrap() == fs_err::read(root.join(file)).unwrap(), "{file}");
    }
    // What is there is kept.
    fs_err::write(demo.join("configs/demo.toml"), "mine").unwrap();
    fs_err::remove_file(demo.join("data/demo/captions.json")).unwrap();
    let ran = attrflow(folder.path(), ["init", "--demo", "a demo"]);
    assert!(ran.out.starts_with("wrote 1 file\n"), "{ran:?}");
    assert_eq!(fs_err::read_to_string(demo.join("configs/demo.toml")).unwrap(), "mine");
}

#[test]
fn a_demo_that_cannot_be_written_or_run_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    fs_err::write(folder.path().join("attrflow-demo"), "a file").unwrap();
    let ran = attrflow(folder.path(), ["demo"]);
    assert!(ran.code == 1 && ran.err.contains("attrflow-demo"), "{ran:?}");
    fs_err::create_dir_all(folder.path().join("other/pipelines")).unwrap();
    fs_err::write(folder.path().join("other/pipelines/demo.toml"), "[stages]\n").unwrap();
    let ran = attrflow(folder.path(), ["demo", "other"]);
    assert!(ran.code == 2 && ran.err.contains("pipelines/demo.toml"), "{ran:?}");
}
