//! Audits: a manifest compared with the cache, and with another manifest.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use attrflow_engine::identity::digest::Digest;
use attrflow_engine::provenance::audit::{Audit, AuditReport, Diff, Difference, Mismatch};
use attrflow_engine::provenance::manifest::{self, Manifest, Reads};
use attrflow_engine::store::Store;
use serde_json::{Value as Json, json};

use crate::project::{Project, flip, project};

fn audit(project: &Project, manifest: &Manifest, all: bool) -> AuditReport {
    let store = Store::open(&project.cache).unwrap();
    Audit { manifest, store: &store, all }.execute().unwrap()
}

/// All findings, as stage and fault.
fn faults(project: &Project, manifest: &Manifest) -> Vec<(String, Mismatch)> {
    let findings = audit(project, manifest, true).findings;
    findings.into_iter().map(|finding| (finding.stage, finding.fault)).collect()
}

fn object(project: &Project, digest: &Digest) -> PathBuf {
    Store::open(&project.cache).unwrap().path(digest)
}

/// A manifest with one edit of its JSON.
fn edited(manifest: &Manifest, edit: impl FnOnce(&mut Json)) -> Manifest {
    let mut json = serde_json::to_value(manifest).unwrap();
    edit(&mut json);
    serde_json::from_value(json).unwrap()
}

fn stage<'j>(json: &'j mut Json, name: &str) -> &'j mut Json {
    let stages = json["stages"].as_array_mut().unwrap();
    stages.iter_mut().find(|record| record["stage"] == name).unwrap()
}

#[test]
fn a_finished_run_has_no_difference() {
    let project = project();
    let ran = project.run(&[]);
    for manifest in [&ran.manifest, &project.run(&[]).manifest] {
        let report = audit(&project, manifest, true);
        assert_eq!(report.findings, []);
        assert_eq!((report.stages, report.recipes, report.sources), (5, 5, 1));
        // first: the source; second: first; lines: two; the two last: one each.
        assert_eq!(report.inputs, 6);
        // lines is a folder of two files.
        assert_eq!((report.artifacts, report.files), (5, 6));
        let bytes: u64 = ran.manifest.stages.iter().flat_map(|s| s.outputs.values()).map(|a| a.size).sum();
        assert_eq!(report.bytes, bytes);
    }
    let below = Some("lines.txt".to_owned());
    let reads = Reads { stage: "lines".into(), port: "lines".into(), below };
    assert_eq!(ran.stage("last[one]").reads["a"], reads);
    assert_eq!(ran.stage("last[one]").params, json!({ "text": "1", "times": 1 }));
}

#[test]
fn a_changed_byte_is_found_despite_equal_size_and_times() {
    let project = project();
    let manifest = project.run(&[]).manifest;
    let second = manifest.stages.iter().find(|record| record.stage == "second").unwrap();
    let digest = second.outputs["text"].digest;
    let path = object(&project, &digest);
    flip(&path);
    let found = Digest::of_file(&path).unwrap();
    let expected = Mismatch::Bytes { port: "text".into(), path, recorded: digest, found };
    assert_eq!(faults(&project, &manifest), [("second".into(), expected)]);

    // In a folder, the file is named; an extra file differs from a missing one.
    let lines = manifest.stages.iter().find(|record| record.stage == "lines").unwrap();
    let folder = object(&project, &lines.outputs["lines"].digest);
    flip(&folder.join("lines.txt"));
    fs_err::set_permissions(folder.join("sub"), PermissionsExt::from_mode(0o755)).unwrap();
    fs_err::remove_file(folder.join("sub/title.txt")).unwrap();
    fs_err::write(folder.join("more.txt"), "more").unwrap();
    let found = faults(&project, &manifest);
    let of_lines: Vec<&Mismatch> =
        found.iter().filter(|(stage, _)| stage == "lines").map(|(_, fault)| fault).collect();
    let port = || "lines".to_owned();
    assert_eq!(of_lines[0], &Mismatch::Files { port: port(), path: folder.join("more.txt"), extra: true });
    assert!(matches!(of_lines[1], Mismatch::Bytes { path, .. } if *path == folder.join("lines.txt")));
    assert_eq!(
        of_lines[2],
        &Mismatch::Files { port: port(), path: folder.join("sub/title.txt"), extra: false }
    );
    assert_eq!((of_lines.len(), found.len()), (3, 4));

    // Without `all`, the audit stops at the first difference.
    let report = audit(&project, &manifest, false);
    assert_eq!((report.findings.len(), report.difference().unwrap().stage.as_str()), (1, "second"));
    assert!(report.stages < manifest.stages.len());
}

#[test]
fn a_missing_artifact_is_not_a_difference() {
    let project = project();
    let manifest = project.run(&[]).manifest;
    let first = manifest.stages.iter().find(|record| record.stage == "first").unwrap();
    fs_err::remove_file(object(&project, &first.outputs["text"].digest)).unwrap();
    fs_err::remove_file(project.path("source.txt")).unwrap();
    let report = audit(&project, &manifest, false);
    assert!(report.difference().is_none());
    assert_eq!(report.findings.len(), 1);
    assert_eq!(report.findings[0].fault.to_string(), "its output `text` is no longer in the cache");
    assert_eq!((report.stages, report.sources), (5, 0));
    assert_eq!(report.sources_gone, [project.path("source.txt")]);
}

#[test]
fn a_source_with_other_bytes_is_named() {
    let project = project();
    let manifest = project.run(&[]).manifest;
    flip(&project.path("source.txt"));
    let found = faults(&project, &manifest);
    assert_eq!(found.len(), 1);
    assert!(
        matches!(&found[0], (stage, Mismatch::Source { path, .. }) if stage == "first" && *path == project.path("source.txt")),
        "{found:?}"
    );
}

#[test]
fn an_edit_of_the_manifest_is_found() {
    let project = project();
    let manifest = project.run(&[]).manifest;
    let other = "0".repeat(64);
    let names = |edit: &dyn Fn(&mut Json)| {
        let found = faults(&project, &edited(&manifest, |json| edit(json)));
        found
            .into_iter()
            .map(|(stage, fault)| (stage, json!(fault)["fault"].as_str().unwrap().to_owned()))
            .collect::<Vec<_>>()
    };
    let is = |found: Vec<(String, String)>, expected: &[(&str, &str)]| {
        let found: Vec<(&str, &str)> =
            found.iter().map(|(stage, fault)| (stage.as_str(), fault.as_str())).collect();
        assert_eq!(found, expected);
    };
    // A parameter: the fingerprint no longer matches.
    is(
        names(&|json| stage(json, "second")["recipe"]["params"]["text"] = "c".into()),
        &[("second", "fingerprint")],
    );
    // The fingerprint: and the cache has no such recipe.
    is(
        names(&|json| stage(json, "second")["fingerprint"] = other.clone().into()),
        &[("second", "fingerprint"), ("second", "gone")],
    );
    // An output: the cache has another one for the recipe, its bytes are missing, and its dependents read other ones.
    is(
        names(&|json| stage(json, "second")["outputs"]["text"]["digest"] = other.clone().into()),
        &[("second", "index"), ("second", "gone"), ("lines", "chain")],
    );
    // An input, also below a folder.
    is(
        names(&|json| stage(json, "last[one]")["reads"]["a"]["below"] = "sub/title.txt".into()),
        &[("last[one]", "chain")],
    );
    is(names(&|json| stage(json, "last[one]")["reads"] = json!({})), &[("last[one]", "unexplained")]);
    is(names(&|json| stage(json, "second")["outputs"]["text"]["size"] = 99.into()), &[("second", "size")]);
    is(names(&|json| stage(json, "second")["recipe"] = Json::Null), &[("second", "incomplete")]);
}

#[test]
fn a_manifest_of_an_older_format_is_followed_by_digest() {
    let project = project();
    let manifest = project.run(&[]).manifest;
    let old = |digest: Option<&str>| {
        edited(&manifest, |json| {
            json["format"] = 2.into();
            json["conditions"].as_object_mut().unwrap().remove("micro_batch");
            for record in json["stages"].as_array_mut().unwrap() {
                record.as_object_mut().unwrap().remove("reads");
                record.as_object_mut().unwrap().remove("params");
                let units = record.as_object_mut().unwrap().remove("units_cached").unwrap();
                (record["units_reused"], record["outcome"]) = (units, "reused".into());
            }
            if let Some(digest) = digest {
                stage(json, "last[one]")["recipe"]["inputs"]["a"] = digest.into();
            }
        })
    };
    assert_eq!(faults(&project, &old(None)), []);
    let found = faults(&project, &old(Some(&"0".repeat(64))));
    assert!(
        matches!(found[0].1, Mismatch::Fingerprint { .. })
            && matches!(found[1].1, Mismatch::Unexplained { .. })
    );

    // A newer format is refused.
    project.write(
        "new.json",
        &serde_json::to_string(&edited(&manifest, |json| json["format"] = 99.into())).unwrap(),
    );
    let error = manifest::read(&project.path("new.json")).unwrap_err().to_string();
    assert!(error.ends_with("manifest format 99, expected at most 7"), "{error}");
}

#[test]
fn adopted_files_and_folders_are_hashed_where_they_are() {
    let project = project();
    project.run_targets(&["second"]);
    for (name, text) in [("mine/lines.txt", "own lines"), ("mine/sub/a.txt", "a")] {
        project.write(name, text);
    }
    project.adopt("lines", &project.path("mine")).unwrap();
    let manifest = project.run(&[]).manifest;
    // A file that no stage reads is ignored.
    project.write("mine/sub/a.txt", "b");
    assert_eq!(faults(&project, &manifest), []);

    flip(&project.path("mine/lines.txt"));
    let found = faults(&project, &manifest);
    let named = |fault: &Mismatch| matches!(fault, Mismatch::Bytes { path, .. } if *path == project.path("mine/lines.txt"));
    assert!(found.len() == 1 && found[0].0 == "lines" && named(&found[0].1), "{found:?}");
    fs_err::remove_file(project.path("mine/lines.txt")).unwrap();
    let found = faults(&project, &manifest);
    let path = project.path("mine/lines.txt");
    assert_eq!(found, [("lines".into(), Mismatch::Files { port: "lines".into(), path, extra: false })]);
    fs_err::remove_dir_all(project.path("mine")).unwrap();
    let found = faults(&project, &manifest);
    let message = found[0].1.to_string();
    assert!(found.len() == 1 && !found[0].1.differs(), "{found:?}");
    assert!(message.contains("adopted from") && message.ends_with("is no longer in the cache"), "{message}");
}

#[test]
fn a_failed_stage_is_audited_as_far_as_it_ran() {
    let project = project();
    let manifest = project.run(&["second.text='!'"]).manifest;
    let report = audit(&project, &manifest, true);
    assert_eq!(report.findings, []);
    // The blocked ones have no recipe.
    assert_eq!((report.stages, report.recipes, report.artifacts), (5, 2, 1));
}

#[test]
fn two_manifests_are_compared_key_by_key() {
    let mut project = project();
    let first = project.run(&[]).manifest;
    let again = project.run(&[]).manifest;
    let diff = Diff::of(&first, &again);
    assert!(diff.same_results() && diff.run.is_empty() && diff.recipes.is_empty(), "{diff:?}");

    // Other bytes, and what they come from; `first` gives the same for "ab" as for "a".
    project.conditions.threads = 3;
    let other = project.run(&["first.text=ab", "second.text=c"]).manifest;
    let diff = Diff::of(&first, &other);
    let key =
        |key: &str, a: &str, b: &str| Difference { key: key.into(), a: Some(a.into()), b: Some(b.into()) };
    assert!(diff.run.contains(&key("conditions.threads", "1", "3")), "{diff:?}");
    assert!(diff.run.contains(&key("sets", "[]", r#"["first.text=ab","second.text=c"]"#)), "{diff:?}");
    let names =
        |list: &[(String, Vec<Difference>)]| list.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&diff.recipes), ["first", "second", "lines", "last[one]", "last[two]"]);
    assert_eq!(diff.recipes[0].1, [key("params.text", r#""a""#, r#""ab""#)]);
    assert_eq!(names(&diff.results), ["second", "lines", "last[one]", "last[two]"]);
    let digest = |manifest: &Manifest| manifest.stages[1].outputs["text"].digest.to_string();
    assert_eq!(diff.results[0].1, [key("outputs.text", &digest(&first), &digest(&other))]);

    // A stage that only one has.
    let part = project.run_targets(&["first"]).manifest;
    let diff = Diff::of(&first, &part);
    let only = |key: &str, a: &str| Difference { key: key.into(), a: Some(a.into()), b: None };
    assert!(!diff.same_results() && diff.results[0].0 == "second");
    assert_eq!(diff.results[0].1[0], only("ended", "done"));
}
