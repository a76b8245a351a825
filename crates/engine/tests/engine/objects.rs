//! Modified objects and results are found whatever their times are, reported, and repaired.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use attrflow_engine::identity::digest::Digest;
use attrflow_engine::store::{Health, Store};

use crate::project::{Project, Ran, files, flip, project};

/// Two runs, so that every object is known to be verified by how it looks.
fn past_racy_window() -> (Project, Ran) {
    let project = project();
    let ran = project.run(&[]);
    std::thread::sleep(Duration::from_millis(120));
    assert_eq!(project.run(&[]).ran(), [""; 0]);
    (project, ran)
}

fn object(project: &Project, ran: &Ran, stage: &str, port: &str) -> PathBuf {
    let digest = ran.stage(stage).outputs[port].digest.to_string();
    project.cache.join("objects").join(&digest[..2]).join(&digest)
}

fn set_time(file: &Path, time: SystemTime) {
    let file = fs_err::OpenOptions::new().append(true).open(file).unwrap();
    file.file().set_modified(time).unwrap();
}

#[test]
fn a_flipped_byte_of_an_object_is_found_and_its_stage_alone_runs() {
    let (project, ran) = past_racy_window();
    let before = project.results();
    let file = object(&project, &ran, "second", "text");
    let right = fs_err::read(&file).unwrap();
    flip(&file);
    let repaired = project.run(&[]);
    assert_eq!(repaired.ran(), ["second"]);
    let digest = ran.stage("second").outputs["text"].digest;
    let expected = format!("the file {} in the cache is damaged: its bytes hash to ", digest.short());
    assert!(repaired.warnings().iter().any(|line| line.starts_with(&expected)), "{:?}", repaired.warnings());
    assert_eq!(fs_err::read(&file).unwrap(), right);
    // The view shared the damaged bytes.
    assert_eq!(project.results(), before);
    // The damaged bytes are quarantined, with the reason.
    let quarantined = files(&project.path("cache/quarantine"));
    assert_eq!(quarantined.len(), 2, "{quarantined:?}");
    let note = fs_err::read_to_string(
        quarantined.iter().find(|path| path.to_str().unwrap().ends_with(".json")).unwrap(),
    )
    .unwrap();
    assert!(note.contains(&digest.to_string()) && note.contains("its bytes hash to "), "{note}");
    assert_eq!(project.run(&[]).ran(), [""; 0]);
}

#[test]
fn a_flipped_byte_in_a_folder_of_the_cache_is_found() {
    let (project, ran) = past_racy_window();
    let before = project.results();
    flip(&object(&project, &ran, "lines", "lines").join("lines.txt"));
    let repaired = project.run(&[]);
    // Its units stand: only the merge is done again.
    assert_eq!((repaired.ran(), repaired.stage("lines").units_cached), (vec!["lines"], 4));
    assert!(repaired.warnings().iter().any(|line| line.contains("in it, lines.txt holds other bytes")));
    assert_eq!(project.results(), before);
}

#[test]
fn a_flipped_byte_of_a_unit_is_found_when_the_unit_is_needed() {
    let (project, ran) = past_racy_window();
    let unit = files(&project.path("cache/objects")).into_iter().find(|path| path.ends_with("line")).unwrap();
    flip(&unit);
    // Nothing reads it while the stage is cached.
    assert_eq!(project.run(&[]).ran(), [""; 0]);
    fs_err::remove_dir_all(object(&project, &ran, "lines", "lines")).unwrap();
    let repaired = project.run(&[]);
    assert_eq!((repaired.ran(), repaired.stage("lines").units_cached), (vec!["lines"], 3));
    assert!(repaired.warnings().iter().any(|line| line.contains("of `lines` is computed instead")));
}

#[test]
fn a_damaged_or_missing_listing_is_found() {
    let (project, ran) = past_racy_window();
    let listing = PathBuf::from(format!("{}.list", object(&project, &ran, "lines", "lines").display()));
    for text in ["", "[]"] {
        fs_err::write(&listing, text).unwrap();
        assert_eq!(project.run(&[]).ran(), ["lines"], "{text:?}");
    }
    fs_err::remove_file(&listing).unwrap();
    assert_eq!(project.run(&[]).ran(), ["lines"]);
    assert_eq!(project.run(&[]).ran(), [""; 0]);
}

#[test]
fn a_changed_result_is_restored_and_reported() {
    let (project, _) = past_racy_window();
    let before = project.results();
    let inner = project.path("results/toy/lines/folder/lines.txt");
    let replace = |path: &Path, text: &str| {
        fs_err::remove_file(path).unwrap();
        fs_err::write(path, text).unwrap();
    };
    replace(&project.path("results/toy/first/text.txt"), "mine");
    replace(&inner, "mine");
    fs_err::remove_file(project.path("results/toy/second/text.txt")).unwrap();
    let repaired = project.run(&[]);
    let warnings = repaired.warnings();
    let expected = [
        "results/toy/kept/first/text.txt",
        "results/toy/first/text.txt held other bytes than the stage gave and is restored",
        "results/toy/kept/lines/folder/lines.txt",
        "results/toy/lines/folder: a file in it was missing or changed and is restored",
    ];
    assert_eq!(warnings.len(), expected.len(), "{warnings:?}");
    for (warning, end) in warnings.iter().zip(expected) {
        assert!(warning.ends_with(end), "{warning}");
    }
    for kept in ["first/text.txt", "lines/folder/lines.txt"] {
        assert_eq!(project.read(&format!("results/toy/kept/{kept}")), "mine");
    }
    fs_err::remove_dir_all(project.path("results/toy/kept")).unwrap();
    assert_eq!((repaired.ran(), project.results()), (vec![], before.clone()));
    // A missing file of a folder; the user's own file beside it stays.
    project.write("results/toy/lines/folder/mine.txt", "mine");
    fs_err::remove_file(&inner).unwrap();
    assert_eq!(project.run(&[]).warnings().len(), 1);
    assert_eq!(project.read("results/toy/lines/folder/mine.txt"), "mine");
    fs_err::remove_file(project.path("results/toy/lines/folder/mine.txt")).unwrap();
    let last = project.run(&[]);
    assert_eq!((last.warnings(), project.results()), (vec![], before));
}

/// A result written through a hard link also changes its object.
#[test]
fn a_result_overwritten_in_place_is_repaired_in_the_cache_too() {
    let (project, ran) = past_racy_window();
    let before = project.results();
    flip(&project.path("results/toy/first/text.txt"));
    let object = object(&project, &ran, "first", "text");
    let shared = Digest::of_file(&object).unwrap() != ran.stage("first").outputs["text"].digest;
    let repaired = project.run(&[]);
    // Where the file system copies on write, the object never changed.
    assert_eq!(repaired.ran(), if shared { vec!["first"] } else { vec![] });
    assert_eq!(project.results(), before);
    let store = Store::open(&project.cache).unwrap();
    assert_eq!(store.verify(&ran.stage("first").outputs["text"].digest).unwrap(), Health::Sound);
}

/// A touch costs a hash, and nothing else.
#[test]
fn a_touched_object_or_result_runs_nothing() {
    let (project, ran) = past_racy_window();
    for time in [SystemTime::UNIX_EPOCH, SystemTime::now() + Duration::from_secs(1 << 30)] {
        for file in [object(&project, &ran, "first", "text"), project.path("results/toy/second/text.txt")] {
            set_time(&file, time);
        }
        let again = project.run(&[]);
        assert_eq!((again.ran(), again.warnings()), (vec![], vec![]));
    }
}

/// Wrong clocks produce times of the future and of the far past, and equal ones.
#[test]
fn no_file_time_hides_a_changed_source() {
    let project = project();
    let source = project.path("source.txt");
    for (round, offset) in [-(1i64 << 30), 0, 1 << 30].into_iter().enumerate() {
        let time = SystemTime::now();
        let time = match u64::try_from(offset) {
            Ok(later) => time + Duration::from_secs(later),
            Err(_) => time - Duration::from_secs(offset.unsigned_abs()),
        };
        for text in ["one two\n", "two one\n"] {
            fs_err::write(&source, format!("{round} {text}")).unwrap();
            set_time(&source, time);
            std::thread::sleep(Duration::from_millis(70));
            let ran = project.run_targets(&["first"]);
            assert_eq!(ran.ran(), ["first"], "{text} at {offset}");
            assert!(project.read("results/toy/first/text.txt").contains(text.trim_end()));
        }
    }
}

#[test]
fn a_damaged_or_missing_file_state_only_costs_hashing() {
    let (project, _) = past_racy_window();
    let file = project.path("cache/file-state-v1");
    let good = fs_err::read(&file).unwrap();
    assert!(good.len() >= 64 * 5, "{}", good.len());
    for bad in [Vec::new(), vec![0; 64 * 9], good[..good.len() / 2 + 5].to_vec(), vec![255; 70]] {
        fs_err::write(&file, bad).unwrap();
        let again = project.run(&[]);
        assert_eq!((again.ran(), again.warnings()), (vec![], vec![]));
        assert!(project.remembers("source.txt"));
    }
}

/// Remembered index files mislead nobody: not when they are damaged, and not when an index file is gone or another.
#[test]
fn a_damaged_or_outdated_copy_of_the_index_costs_time_alone() {
    let (project, ran) = past_racy_window();
    let pack = project.path("cache/file-state-v1");
    let good = fs_err::read(&pack).unwrap();
    for bad in [Vec::new(), vec![255; 300], good[..good.len() - 9].to_vec()] {
        fs_err::write(&pack, bad).unwrap();
        assert_eq!(project.run(&[]).ran(), [""; 0]);
    }
    let mut flipped = good.clone();
    let at = flipped.windows(8).position(|bytes| bytes == b"\"digest\"").unwrap();
    flipped[at + 12] ^= 1;
    fs_err::write(&pack, flipped).unwrap();
    assert_eq!(project.run(&[]).ran(), [""; 0]);
    fs_err::write(&pack, good).unwrap();
    let name = ran.stage("second").fingerprint.unwrap().to_string();
    fs_err::remove_file(project.path("cache/recipes-v2").join(&name[..2]).join(format!("{name}.json")))
        .unwrap();
    assert_eq!(project.run(&[]).ran(), ["second"]);
}
