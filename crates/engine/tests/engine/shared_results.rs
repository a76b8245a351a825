//! Results folders and caches that are not one project's alone: files of the user, two runs at once, two projects.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::path::Path;

use attrflow_engine::identity::digest::Digest;
use attrflow_engine::maintenance::{Inventory, Plan, Policy};
use attrflow_engine::pipeline;
use attrflow_engine::plan::Planner;
use attrflow_engine::provenance::manifest::{self, Outcome, Repeat};
use attrflow_engine::store::Store;
use jiff::Timestamp;

use crate::maintenance::{POLICY, collect};
use crate::project::{Project, project};
use crate::toys::registry;

#[test]
fn files_of_the_user_are_moved_out_of_a_folder_that_is_replaced_or_removed() {
    let project = project();
    project.run(&[]);
    let folder = project.path("results/toy/lines/folder");
    assert!(folder.is_dir(), "an output that is a folder");
    fs_err::write(folder.join("notes.txt"), "mine").unwrap();
    assert_eq!(project.run(&[]).warnings(), Vec::<&str>::new());
    assert!(folder.join("notes.txt").exists(), "the folder was not replaced");
    let ran = project.run(&["count.to=3"]);
    let kept = project.path("results/toy/kept/lines/folder/notes.txt");
    assert_eq!(fs_err::read_to_string(&kept).unwrap(), "mine");
    let expected = format!(
        "{} is not known as a result of the stage; it was moved to {}",
        folder.join("notes.txt").display(),
        kept.display()
    );
    assert_eq!(ran.warnings(), [expected]);
    // A second one of the name gets a number.
    fs_err::write(folder.join("notes.txt"), "more").unwrap();
    project.run(&["count.to=2"]);
    assert_eq!(
        fs_err::read_to_string(project.path("results/toy/kept/lines/folder/notes.txt.1")).unwrap(),
        "more"
    );
}

#[test]
fn links_and_odd_names_are_moved_and_not_followed() {
    let project = project();
    project.run(&[]);
    let folder = project.path("results/toy/lines/folder");
    project.write("thesis/chapter.txt", "mine");
    symlink(project.path("thesis"), folder.join("link")).unwrap();
    symlink("nowhere", folder.join("broken")).unwrap();
    let odd = OsStr::from_bytes(b"odd\xff.txt");
    fs_err::write(folder.join(odd), "odd").unwrap();
    let ran = project.run(&["count.to=3"]);
    assert_eq!(project.read("thesis/chapter.txt"), "mine");
    let kept = project.path("results/toy/kept/lines/folder");
    assert_eq!(fs_err::read_link(kept.join("link")).unwrap(), project.path("thesis"));
    assert_eq!(fs_err::read_link(kept.join("broken")).unwrap(), Path::new("nowhere"));
    assert_eq!(fs_err::read(kept.join(odd)).unwrap(), b"odd");
    assert_eq!(ran.warnings().len(), 3);
}

#[test]
fn without_the_cache_nothing_of_the_user_is_lost() {
    let project = project();
    project.run(&[]);
    let folder = project.path("results/toy/lines/folder");
    // Read-only, as results are.
    fs_err::copy(folder.join("lines.txt"), folder.join("copy.txt")).unwrap();
    fs_err::remove_dir_all(&project.cache).unwrap();
    let ran = project.run(&["count.to=3"]);
    assert!(project.path("results/toy/kept/lines/folder/copy.txt").exists());
    assert!(!project.path("results/toy/kept/lines/folder/lines.txt").exists(), "a result");
    assert_eq!(ran.warnings().len(), 1);
    // Of a stage that is gone nothing is known.
    fs_err::write(folder.join("late.txt"), "late").unwrap();
    fs_err::remove_dir_all(&project.cache).unwrap();
    project.write("pipelines/toy.toml", "[stages.other]\nkind = \"say\"\nparams = { text = \"x\" }\n");
    project.run(&[]);
    assert_eq!(project.read("results/toy/kept/lines/folder.1/late.txt"), "late");
}

#[test]
fn a_run_is_warned_of_another_with_other_parameters() {
    let project = project();
    let store = Store::open(&project.cache).unwrap();
    let enter = |parameters: &Digest| store.use_results(&project.path("results/toy"), parameters).unwrap();
    let [one, two] = [b"one", b"two"].map(|text| Digest::from(blake3::hash(text)));
    let (first, others) = enter(&one);
    assert!(!others);
    assert!(!enter(&one).1, "the same parameters give the same results");
    assert!(enter(&two).1);
    let warned = project.run(&[]);
    assert!(
        warned.warnings()[0].starts_with("another run of this pipeline with other parameters is in progress")
    );
    drop(first);
    assert!(!enter(&two).1);
    // By another path, and before the folder is there.
    symlink(&project.root, project.path("link")).unwrap();
    let here = |path: &str| store.use_results(&project.path(path), &one).unwrap();
    for [first, then] in [["results/new", "link/results/new"], ["link/results/toy", "results/toy"]] {
        let _first = here(first);
        assert!(store.use_results(&project.path(then), &two).unwrap().1, "{first}");
    }
    let _first = here("results/later");
    fs_err::create_dir_all(project.path("results/later")).unwrap();
    assert!(store.use_results(&project.path("results/later"), &two).unwrap().1);
}

fn runs(project: &Project) -> Vec<std::path::PathBuf> {
    manifest::list(&project.cache.join("runs/toy"))
}

#[test]
fn a_run_that_changes_nothing_leaves_a_short_manifest() {
    let project = project();
    let first = project.run(&[]).manifest;
    for _ in 0..30 {
        project.run(&[]);
    }
    let short = &runs(&project)[0];
    assert!(fs_err::metadata(short).unwrap().len() < 1000);
    let read = manifest::read(short).unwrap();
    assert!(read.stages.iter().all(|record| record.outcome == Outcome::Cached));
    let fingerprints = |manifest: &manifest::Manifest| {
        manifest.stages.iter().map(|record| (record.stage.clone(), record.fingerprint)).collect::<Vec<_>>()
    };
    assert_eq!(fingerprints(&read), fingerprints(&first));
    assert_eq!(runs(&project).len(), 31);
    collect(&project, &POLICY);
    let left = runs(&project);
    let repeats = left.iter().filter(|path| Repeat::base_of(path).is_some()).count();
    assert_eq!((left.len() - repeats <= 2, repeats), (true, 20));
    assert_eq!(fingerprints(&manifest::read(&left[0]).unwrap()), fingerprints(&first));
    // Also with another project in the same cache in between, and with long settings.
    let mut other = crate::project::project();
    other.cache = project.cache.clone();
    let long = format!("second.text='{}'", "a".repeat(900));
    project.run(&[&long]);
    for _ in 0..2 {
        other.run(&[]);
        project.run(&[&long]);
        let newest = runs(&project).remove(0);
        let text = fs_err::read_to_string(&newest).unwrap();
        assert!(text.len() < 1000, "{text}");
        assert!(manifest::read(&newest).unwrap().sets[0].starts_with("1 settings with the digest "));
    }
    // Another parameter gives a whole one again.
    project.run(&["first.text=c"]);
    assert!(Repeat::base_of(&runs(&project)[0]).is_none());
}

#[test]
fn a_short_manifest_names_the_bytes_that_it_repeats() {
    let project = project();
    (0..3).for_each(|_| drop(project.run(&[])));
    let short = runs(&project)[0].clone();
    let base = short.with_file_name(Repeat::base_of(&short).unwrap().name);
    let text = fs_err::read_to_string(&base).unwrap();
    fs_err::write(&base, text.replace("\"toy\"", "\"toy2\"")).unwrap();
    let error = manifest::read(&short).unwrap_err().to_string();
    assert!(error.ends_with("which was changed"), "{error}");
    fs_err::remove_file(&base).unwrap();
    assert!(manifest::read(&short).unwrap_err().to_string().contains("it repeats another manifest: "));
    let elsewhere = fs_err::read_to_string(&short).unwrap().replace("\"name\": \"", "\"name\": \"../");
    fs_err::write(&short, elsewhere).unwrap();
    assert!(
        manifest::read(&short).unwrap_err().to_string().contains("expected the name of a file beside it")
    );
}

#[test]
fn pipelines_of_one_name_in_two_projects_keep_their_results() {
    let (one, mut two) = (project(), project());
    two.cache = one.cache.clone();
    one.run(&["first.text=one"]);
    for text in ["two", "three", "four"] {
        two.run(&[&format!("first.text={text}")]);
    }
    collect(&one, &Policy { keep_manifests: Some(1), ..POLICY });
    collect(&one, &POLICY);
    assert_eq!(one.run(&["first.text=one"]).ran(), Vec::<&str>::new());
    assert_eq!(two.run(&["first.text=four"]).ran(), Vec::<&str>::new());
    assert!(two.run(&["first.text=two"]).ran().contains(&"first"));
    // A project that is gone is named, and released on request alone.
    let store = Store::open(&one.cache).unwrap();
    let gone = fs_err::canonicalize(&two.root).unwrap();
    drop(two);
    let inventory = Inventory::of(&store).unwrap();
    assert_eq!(inventory.gone_projects().into_iter().collect::<Vec<_>>(), [gone.as_path()]);
    let removed = |forget: Vec<std::path::PathBuf>| {
        let policy = Policy { forget, ..POLICY };
        Plan::of(&store, &inventory, &policy, Timestamp::now()).unwrap().steps.len()
    };
    assert!(removed(vec![gone]) > removed(Vec::new()));
}

#[test]
fn a_file_of_the_user_where_a_result_goes_is_moved_aside() {
    let project = project();
    project.run(&[]);
    fs_err::remove_dir_all(project.path("results")).unwrap();
    // One with the name of a result, one with that of a stage, and a link.
    project.write("results/toy/first/text.txt", "two days of work");
    project.write("results/toy/lines", "a note");
    fs_err::create_dir_all(project.path("results/toy/second")).unwrap();
    symlink(project.path("elsewhere"), project.path("results/toy/second/text.txt")).unwrap();
    let ran = project.run(&[]);
    assert_eq!(ran.warnings().len(), 3, "{:?}", ran.warnings());
    assert_eq!(project.read("results/toy/kept/first/text.txt"), "two days of work");
    assert_eq!(project.read("results/toy/kept/lines"), "a note");
    let link = fs_err::read_link(project.path("results/toy/kept/second/text.txt")).unwrap();
    assert_eq!(link, project.path("elsewhere"));
    assert_eq!(project.read("results/toy/second/text.txt"), "source\naab");
    // An edit that is replaced by a new result.
    let edited = project.path("results/toy/second/text.txt");
    fs_err::remove_file(&edited).unwrap();
    fs_err::write(&edited, "my edit").unwrap();
    project.run(&["second.text=c"]);
    assert_eq!(project.read("results/toy/kept/second/text.txt.1"), "my edit");
    assert_eq!(project.read("results/toy/second/text.txt"), "source\naac");
}

#[test]
fn results_of_an_earlier_run_beside_new_ones_are_named() {
    let project = project();
    project.run(&[]);
    let ran = project.try_run(&["first.times=3"], &["first"]).unwrap();
    let expected =
        "still shows results of an earlier run, from other inputs than are shown now: second, lines";
    assert!(ran.warnings().iter().any(|line| line.contains(expected)), "{:?}", ran.warnings());
    assert!(project.run(&["first.times=3"]).warnings().is_empty());
}

#[test]
fn projects_that_share_a_cache_have_histories_of_their_own() {
    let one = project();
    one.run(&[]);
    let mut two = project();
    two.cache = one.cache.clone();
    let plan = |project: &Project| {
        let (pipeline, _) =
            pipeline::load(&project.path("pipelines/toy.toml"), &[], &registry()).ok().unwrap();
        let store = Store::open(&project.cache).unwrap();
        let planner = Planner::new(&pipeline, &store, &project.numerics, &[]);
        planner.history().last("first").is_some()
    };
    assert!(plan(&one) && !plan(&two));
    two.run(&[]);
    assert!(plan(&one) && plan(&two));
}

#[test]
fn two_runs_that_take_turns_leave_short_manifests() {
    let project = project();
    project.run(&[]);
    for _ in 0..5 {
        project.run_targets(&["first"]);
        project.run(&[]);
    }
    let long = runs(&project).iter().filter(|path| fs_err::metadata(path).unwrap().len() > 1024).count();
    assert_eq!(long, 2);
}
