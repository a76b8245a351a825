//! Adopted outputs: used in place, as long as they are not modified.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use attrflow_engine::exec::event::Event;
use attrflow_engine::plan::Reason;
use attrflow_engine::provenance::manifest::Outcome;

use crate::in_process::Fault;
use crate::project::{Project, Ran, files, project};

/// A project of which only the first stage ran, and a file to adopt as the second's output.
fn prepared() -> (Project, PathBuf) {
    let project = project();
    project.run_targets(&["first"]);
    project.write("mine/second.txt", "my own b");
    let file = project.path("mine/second.txt");
    (project, file)
}

fn object(project: &Project, digest: &str) -> PathBuf {
    project.cache.join("objects").join(&digest[..2]).join(digest)
}

fn warnings(ran: &Ran) -> Vec<&str> {
    let logs = ran.events.iter().filter_map(|event| match event {
        Event::Log { level, message } if level == "WARN" => Some(message.as_str()),
        _ => None,
    });
    logs.collect()
}

fn reason(ran: &Ran, name: &str) -> Option<Reason> {
    ran.events.iter().find_map(|event| match event {
        Event::StageStarted { stage, reason, .. } if stage == name => Some(reason.clone()),
        _ => None,
    })
}

#[test]
fn an_adopted_file_is_used_in_place() {
    let (project, file) = prepared();
    let before = fs_err::metadata(&file).unwrap();
    let entry = project.adopt("second", &file).unwrap();
    let ran = project.run(&[]);
    assert_eq!(ran.with(Outcome::Cached), ["first", "second"]);
    assert_eq!(ran.ran(), ["last[one]", "last[two]", "lines"]);
    assert!(project.read("results/toy/lines/folder/lines.txt").contains("my own b0x\n"));

    // The manifest records its origin, of this run and of the next.
    for ran in [ran, project.run(&[])] {
        let record = ran.stage("second");
        assert_eq!(record.adopted.as_ref().unwrap().paths["text"], file);
        assert_eq!((record.seconds, &record.outputs), (0.0, &entry.outputs));
        assert!(ran.stage("first").adopted.is_none());
    }
    // Neither cache nor results contain a copy, and the file is unchanged.
    let text = entry.outputs["text"].digest.to_string();
    for link in [object(&project, &text), project.path("results/toy/second/text.txt")] {
        assert_eq!(fs_err::read_link(&link).unwrap(), file);
    }
    let after = fs_err::metadata(&file).unwrap();
    let seen = |m: &std::fs::Metadata| (m.ino(), m.mode(), m.nlink(), m.mtime_nsec(), m.ctime_nsec());
    assert_eq!(seen(&before), seen(&after));
}

#[test]
fn an_adopted_folder_consists_of_the_files_it_had() {
    let project = project();
    project.run_targets(&["second"]);
    project.write("mine/lines/lines.txt", "from elsewhere\n");
    project.write("mine/lines/deep/er/more.txt", "more\n");
    let folder = project.path("mine/lines");
    project.adopt("lines", &folder).unwrap();
    let ran = project.run(&[]);
    assert_eq!(ran.ran(), ["last[one]", "last[two]"]);
    assert_eq!(project.read("results/toy/last/one/text.txt"), "from elsewhere\n1");
    assert_eq!(fs_err::read_link(project.path("results/toy/lines/folder")).unwrap(), folder);

    // A file that no stage reads is ignored; one that is read is not.
    project.write("mine/lines/later.txt", "later\n");
    project.write("mine/lines/deep/er/more.txt", "less\n");
    assert_eq!(project.run(&[]).ran(), [""; 0]);
    project.write("mine/lines/lines.txt", "from here\n");
    let ran = project.run(&[]);
    let expected = format!(
        "of the adopted folder {}, lines.txt holds other bytes than when it was adopted",
        folder.display()
    );
    assert_eq!(reason(&ran, "lines"), Some(Reason::Modified { what: expected.clone() }));
    assert_eq!(warnings(&ran), [format!("{expected}; `lines` is computed instead")]);
    assert_eq!(ran.ran(), ["last[one]", "last[two]", "lines"]);
    // What the run wrote is separate, and the user's folder is untouched.
    assert!(!fs_err::symlink_metadata(project.path("results/toy/lines/folder")).unwrap().is_symlink());
    assert_eq!(project.read("mine/lines/lines.txt"), "from here\n");
    assert_eq!(project.run(&[]).ran(), [""; 0]);
}

#[test]
fn a_modified_adopted_file_is_reported() {
    type Edit = fn(&Path);
    let edits: [(&str, Edit); 4] = [
        ("is gone", |file| fs_err::remove_file(file).unwrap()),
        ("holds other bytes than when it was adopted", |file| fs_err::write(file, "longer than b").unwrap()),
        // The same size, and the times set back.
        ("holds other bytes than when it was adopted", |file| {
            let time = fs_err::metadata(file).unwrap().modified().unwrap();
            fs_err::write(file, "my OWN b").unwrap();
            fs_err::OpenOptions::new().write(true).open(file).unwrap().file().set_modified(time).unwrap();
        }),
        ("cannot be read: ", |file| {
            fs_err::remove_file(file).unwrap();
            std::os::unix::fs::symlink(file, file).unwrap();
        }),
    ];
    for (what, edit) in edits {
        let (project, file) = prepared();
        project.adopt("second", &file).unwrap();
        project.run(&[]);
        edit(&file);
        let ran = project.run(&[]);
        let Some(Reason::Modified { what: change }) = reason(&ran, "second") else {
            panic!("{what}: {ran:?}", ran = ran.tasks)
        };
        assert!(change.starts_with(&format!("the adopted file {} {what}", file.display())), "{change}");
        assert_eq!(warnings(&ran).len(), 1);
        assert!(ran.stage("second").adopted.is_none());
        assert_eq!(project.read("results/toy/second/text.txt"), "source\naab");
        assert!(!fs_err::symlink_metadata(project.path("results/toy/second/text.txt")).unwrap().is_symlink());
        assert_eq!(project.run(&[]).ran(), [""; 0], "{what}");
    }
}

#[test]
fn a_replaced_file_with_equal_bytes_stays_adopted() {
    let (project, file) = prepared();
    project.adopt("second", &file).unwrap();
    project.run(&[]);
    // Another inode, other times, another mode: the same bytes.
    fs_err::remove_file(&file).unwrap();
    fs_err::write(&file, "my own b").unwrap();
    let old = SystemTime::now() - Duration::from_secs(1000);
    fs_err::OpenOptions::new().write(true).open(&file).unwrap().file().set_modified(old).unwrap();
    fs_err::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let ran = project.run(&[]);
    assert_eq!((ran.ran(), warnings(&ran)), (vec![], vec![]));
}

#[test]
fn a_file_that_changes_while_it_is_read_fails_its_dependent() {
    let (mut project, file) = prepared();
    project.adopt("second", &file).unwrap();
    project.backend.fault = Some(("number 0".into(), Fault::Rewrites(file.clone(), "another".into())));
    let ran = project.run(&[]);
    let error = ran.stage("lines").error.clone().unwrap();
    assert!(error.starts_with("the input `from` changed while it was read: the adopted file "), "{error}");
    project.backend.fault = None;
    // The file's bytes changed, so the stage is computed.
    assert_eq!(project.run(&[]).ran(), ["last[one]", "last[two]", "lines", "second"]);
}

#[test]
fn a_refused_adoption_records_nothing() {
    let project = project();
    project.write("mine/text.txt", "my own b");
    let file = project.path("mine/text.txt");
    let refused = |stage: &str, path: &Path| project.adopt(stage, path).unwrap_err();
    assert_eq!(
        refused("lines", &file),
        "`lines` cannot be adopted yet: its inputs are not available; \
         run or adopt first: first, second"
    );
    project.run_targets(&["first"]);
    project.write("mine/wrong.txt", "c");
    assert_eq!(
        refused("second", &project.path("mine/wrong.txt")),
        "`second` does not take these files: found \"c\", expected a `b` in it"
    );
    assert!(refused("second", &project.path("mine/none.txt")).contains("PROJECT/mine/none.txt"));
    assert!(refused("first", &file).starts_with("`first` is cached: it was computed in "));
    // Files that a run may replace or remove cannot be adopted, not even through a link.
    let own = "PROJECT/results/toy/first/text.txt is in PROJECT/results/toy, where runs replace what is there: \
               move or copy it elsewhere first";
    assert_eq!(refused("second", &project.path("results/toy/first/text.txt")), own);
    std::os::unix::fs::symlink(project.path("results/toy/first/text.txt"), project.path("mine/link"))
        .unwrap();
    assert_eq!(refused("second", &project.path("mine/link")), own);
    assert!(refused("second", &project.root).starts_with("PROJECT is in "));
    let adopted = files(&project.cache).into_iter().filter(|path| path.to_string_lossy().contains("adopted"));
    assert_eq!(adopted.count(), 0);
    assert_eq!(project.run(&[]).ran(), ["last[one]", "last[two]", "lines", "second"]);
}

#[test]
fn a_kind_without_accept_adopts_nothing() {
    let project = Project::new(
        "[stages.lines]\nkind = \"count\"\nparams = { say = {} }\ninputs = { from = \"../source.txt\" }\n\
         [stages.echo]\nkind = \"echo\"\ninputs = { lines = \"lines.lines\" }\n",
        "",
    );
    project.write("source.txt", "source\n");
    project.run_targets(&["lines"]);
    let error = project.adopt("echo", &project.path("source.txt")).unwrap_err();
    assert_eq!(error, "`echo` does not take these files: the kind `echo` does not support adoption");
}

#[test]
fn a_cached_result_is_replaced_only_by_force() {
    let (project, file) = prepared();
    project.run(&[]);
    let error = project.adopt("second", &file).unwrap_err();
    assert!(error.ends_with("--force replaces that result"), "{error}");
    project.adopt_set(&[], "second", &file, true).unwrap();
    assert_eq!(project.run(&[]).ran(), ["last[one]", "last[two]", "lines"]);
    let error = project.adopt("second", &file).unwrap_err();
    assert!(error.starts_with("`second` is cached: it was adopted at 20"), "{error}");
    // Once computed again, it is no longer adopted.
    let mut project = project;
    project.force = vec!["second"];
    let ran = project.run(&[]);
    assert!(ran.stage("second").adopted.is_none() && ran.ran().contains(&"second"));
    assert_eq!(project.read("mine/second.txt"), "my own b");
}

#[test]
fn adoption_is_bound_to_the_parameters() {
    let (project, file) = prepared();
    project.adopt("second", &file).unwrap();
    let ran = project.run(&["second.text=bat"]);
    assert!(ran.ran().contains(&"second"), "{:?}", ran.ran());
    assert_eq!(project.run(&[]).ran(), ["last[one]", "last[two]", "lines"]);
    // The same file for another recipe: one object, two entries.
    project.adopt_set(&["second.text=by"], "second", &file, false).unwrap();
    assert_eq!(project.run(&["second.text=by"]).ran(), [""; 0]);
}

#[test]
fn bytes_in_the_store_are_not_adopted_by_path() {
    let (project, _) = prepared();
    project.run(&[]);
    // What another recipe of the stage gave.
    project.write("mine/same.txt", "source\naab");
    let file = project.path("mine/same.txt");
    let entry = project.adopt_set(&["second.text=bee", "first.times=2"], "second", &file, true).unwrap();
    let object = object(&project, &entry.outputs["text"].digest.to_string());
    assert!(!fs_err::symlink_metadata(&object).unwrap().is_symlink());
    fs_err::remove_file(&file).unwrap();
    let ran = project.run(&["second.text=bee"]);
    assert_eq!((ran.ran(), warnings(&ran)), (vec![], vec![]));
    assert_eq!(ran.stage("second").adopted.as_ref().unwrap().paths["text"], file);
}

#[test]
fn one_file_adopted_from_two_places_is_shown_from_the_last() {
    let (project, file) = prepared();
    project.adopt("second", &file).unwrap();
    project.run(&[]);
    project.write("mine/moved.txt", "my own b");
    let moved = project.path("mine/moved.txt");
    fs_err::remove_file(&file).unwrap();
    // A missing adopted file needs no force.
    project.adopt("second", &moved).unwrap();
    let ran = project.run(&[]);
    assert_eq!((ran.ran(), warnings(&ran)), (vec![], vec![]));
    assert_eq!(fs_err::read_link(project.path("results/toy/second/text.txt")).unwrap(), moved);
}

#[test]
fn equal_bytes_that_are_computed_take_the_place_of_adopted_ones() {
    let (mut project, _) = prepared();
    project.write("mine/same.txt", "source\naab");
    let file = project.path("mine/same.txt");
    let entry = project.adopt("second", &file).unwrap();
    project.run(&[]);
    project.force = vec!["second"];
    assert_eq!(project.run(&[]).ran(), ["second"]);
    project.force = vec![];
    let object = object(&project, &entry.outputs["text"].digest.to_string());
    for place in [object, project.path("results/toy/second/text.txt")] {
        assert!(!fs_err::symlink_metadata(&place).unwrap().is_symlink());
    }
    fs_err::remove_file(&file).unwrap();
    assert_eq!(project.run(&[]).ran(), [""; 0]);
}

#[test]
fn results_of_a_removed_adopted_stage_are_removed_and_its_file_stays() {
    let (project, file) = prepared();
    project.adopt("second", &file).unwrap();
    project.run(&[]);
    project.replace("pipelines/toy.toml", "[stages.second]", "[stages.middle]");
    project.replace("pipelines/toy.toml", "\"second.text\"", "\"middle.text\"");
    project.run(&[]);
    assert!(fs_err::symlink_metadata(project.path("results/toy/second/text.txt")).is_err());
    assert_eq!(fs_err::read_link(project.path("results/toy/middle/text.txt")).unwrap(), file);
    assert_eq!(fs_err::read_to_string(&file).unwrap(), "my own b");
}
