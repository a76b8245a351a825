//! Mutated pipelines and store files: any content is read or refused, without a panic or a hang.

use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use attrflow_engine::pipeline;
use attrflow_engine::plan::Planner;
use attrflow_engine::plan::graph::Graph;
use attrflow_engine::provenance::attest;
use attrflow_engine::provenance::audit::{Audit, Diff};
use attrflow_engine::provenance::manifest;
use attrflow_engine::provenance::manifest::Outcome;
use attrflow_engine::provenance::replay;
use attrflow_engine::store::Store;

use crate::fuzz_loop::{self, Seed, Target, copy, seed};
use crate::mutation::Mutator;
use crate::project::{PIPELINE, changed, files, project};
use crate::toys;

/// Fragments of the store's JSON.
const JSON: &[&str] = &[
    "null",
    "{}",
    "[]",
    "\"\"",
    "-1",
    "1e400",
    "18446744073709551616",
    "\\u0000",
    "\\ud800",
    "{",
    "}",
    "[[[[",
    ",",
    ":",
    "\"folder\":true",
];

/// All files that the engine reads back.
fn store(folder: &Path) -> Target<'_> {
    let mut project = project();
    project.run(&[]);
    std::thread::sleep(Duration::from_millis(120));
    project.run(&["first.times=3"]);
    fs_err::write(project.path("own.txt"), "source\naab").unwrap();
    project.adopt_set(&[], "second", &project.path("own.txt"), true).unwrap();
    project.run(&[]);
    let pristine = folder.join("pristine");
    copy(&project.root, &pristine);
    let json = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy();
        [".json", ".list", ".adopted", ".lock"].iter().any(|ending| name.ends_with(ending))
    };
    let seeds = ["cache", "results"].iter().flat_map(|below| files(&pristine.join(below))).filter(json);
    let seeds: Vec<Seed> =
        seeds.map(|path| seed(&pristine, path.strip_prefix(&pristine).unwrap().to_path_buf())).collect();
    assert!(seeds.len() > 20, "{}", seeds.len());
    project.backend.pause = Duration::ZERO;
    let registry = toys::registry();
    let read = move |seed: &Seed, bytes: &[u8], mutator: &mut Mutator| {
        let path = project.path(seed.path.to_str().unwrap());
        replace(&path, bytes);
        if mutator.below(16) == 0 {
            // The run ends, and an error names the damaged file.
            if let Err(error) = project.try_run(&[], &[]) {
                assert!(error.to_string().starts_with("cache: "), "{error}");
            }
            fs_err::remove_dir_all(&project.root).unwrap();
            copy(&pristine, &project.root);
            return;
        }
        let file = project.path("pipelines/toy.toml");
        let (pipeline, _) = pipeline::load(&file, &[], &registry).ok().unwrap();
        let graph = Graph::new(&pipeline).ok().unwrap();
        let store = Store::open(&project.cache).unwrap();
        let _ = Planner::new(&pipeline, &store, &project.numerics, &[]).all(&graph);
        let runs = manifest::list(&store.runs("toy"));
        let manifests: Vec<_> = runs.iter().filter_map(|path| manifest::read(path).ok()).collect();
        for manifest in &manifests {
            let _ = Audit { manifest, store: &store, all: true }.execute();
            let _ = Diff::of(manifest, &manifests[0]);
            let names: Vec<String> = manifest.stages.iter().map(|record| record.stage.clone()).collect();
            if let Ok(rebuilt) = replay::replay(manifest, &names, &registry, &store, &project.root) {
                let _ = Graph::new(&rebuilt.pipeline);
                let inside =
                    |folder: PathBuf| folder.components().all(|part| matches!(part, Component::Normal(_)));
                assert!(rebuilt.pipeline.stages.iter().all(|stage| inside(stage.folder())));
            }
            if let Ok(outputs) =
                attest::outputs(manifest, &store, &|record, port| format!("{}.{port}", record.stage))
            {
                let _ = attest::statement(manifest, &outputs, "");
            }
            for artifact in manifest.stages.iter().flat_map(|record| record.outputs.values()) {
                let _ = (
                    store.adoption_change(artifact),
                    store.listing(&artifact.digest),
                    store.sub(&artifact.digest, "sub/title.txt"),
                );
            }
        }
        replace(&path, &seed.bytes);
    };
    Target { name: "store", seeds, snippets: JSON, read: Box::new(read) }
}

fn replace(path: &Path, bytes: &[u8]) {
    let _ = fs_err::remove_file(path);
    fs_err::write(path, bytes).unwrap();
}

#[test]
fn any_file_content_is_read_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let below = ["pipelines", "store"].map(|name| folder.path().join(name));
    for name in ["pipelines/pipelines", "pipelines/configs", "store"] {
        fs_err::create_dir_all(folder.path().join(name)).unwrap();
    }
    fs_err::write(below[0].join("pipelines/toy.toml"), PIPELINE).unwrap();
    fs_err::write(below[0].join("configs/toy.toml"), crate::project::CONFIG).unwrap();
    let targets = [fuzz_loop::pipelines(&below[0], toys::registry()), store(&below[1])];
    fuzz_loop::fuzz(&targets, &Path::new(env!("CARGO_TARGET_TMPDIR")).join("fuzz"));
}

/// Earlier findings of the fuzzer.
#[test]
fn earlier_crashes_are_reported_as_errors() {
    let project = project();
    for set in ["jin\u{fffd}=", "\u{1f34e}=", "jin\u{fffd}"] {
        assert!(project.problems(&[set]).contains("error"), "{set}");
    }
    let ran = project.run(&[]);
    for (stage, port) in [("first", "text"), ("lines", "lines")] {
        let name = ran.stage(stage).fingerprint.unwrap().to_string();
        let file = format!("cache/recipes-v2/{}/{name}.json", &name[..2]);
        let text = project.read(&file);
        project.write(&file, &changed(&text, &format!("\"{port}\":{{"), "\"other\":{"));
        let again = project.run(&[]);
        assert_eq!(again.stage(stage).outcome, Outcome::Ran, "{stage}");
        let expected = format!(
            "is damaged: its outputs do not have its checksum; remove it to have it rebuilt; `{stage}` is computed"
        );
        assert!(again.warnings().iter().any(|warning| warning.contains(&expected)), "{:?}", again.warnings());
        assert_eq!(project.run(&[]).ran(), [""; 0]);
    }
}
