//! Results pushed to a folder and pulled from it.

use std::os::unix::fs::PermissionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use attrflow_engine::identity::digest::{Digest, Listed, Listing};
use attrflow_engine::maintenance::Inventory;
use attrflow_engine::maintenance::{Pull, Pulled, Push, Pushed};
use attrflow_engine::provenance::manifest;
use attrflow_engine::remote::{Remote, RemoteError};
use attrflow_engine::store::Store;

use crate::project::{Project, files, project};

const QUIET: &dyn Fn(u64, u64) = &|_, _| ();

fn push_with(project: &Project, to: &Path, again: bool, progress: &dyn Fn(u64, u64)) -> Pushed {
    let store = Store::open(&project.cache).unwrap();
    let inventory = Inventory::of(&store).unwrap();
    let results = inventory.items.into_iter().filter(|(_, item)| !item.is_unit());
    let entries = results.map(|(fingerprint, item)| (fingerprint, item.entry)).collect();
    let newest = manifest::list(&project.cache.join("runs/toy"))[0].clone();
    let manifests = vec![("toy".to_owned(), newest)];
    let remote = Remote::open(to.to_str().unwrap(), true).unwrap();
    Push { store: &store, entries, manifests, again, progress }.execute(&remote).unwrap()
}

fn push(project: &Project, to: &Path) -> Pushed {
    push_with(project, to, false, QUIET)
}

fn pull(project: &Project, from: &Path) -> Result<Pulled, RemoteError> {
    let store = Store::open(&project.cache).unwrap();
    let remote = Remote::open(from.to_str().unwrap(), false).unwrap();
    Pull { store: &store, pipeline: None, back: 0, all: false, progress: QUIET }.execute(&remote)
}

/// The path of a digest's bytes on a remote.
fn at(remote: &Path, folder: &str, digest: &Digest, ending: &str) -> PathBuf {
    let name = digest.to_string();
    remote.join("attrflow-v1").join(folder).join(&name[..2]).join(format!("{name}{ending}"))
}

#[test]
fn a_pulled_run_is_not_computed() {
    let (here, there) = (project(), project());
    here.run(&[]);
    let remote = here.path("remote");
    let pushed = push(&here, &remote);
    // first, second, lines' two files, and the two last.
    assert_eq!((pushed.sent, pushed.there, pushed.entries), (6, 0, 5));
    assert_eq!(pushed.refused, [""; 0]);
    let before = files(&remote);
    let pushed = push(&here, &remote);
    assert_eq!((pushed.sent, pushed.there, files(&remote)), (0, 6, before));

    let pulled = pull(&there, &remote).unwrap();
    assert_eq!((pulled.downloaded, pulled.entries, pulled.there, pulled.manifests), (6, 5, 0, 1));
    let ran = there.run(&[]);
    assert_eq!((ran.ran(), ran.starts), (Vec::<&str>::new(), 0));
    assert_eq!(there.results(), here.results());
    let pulled = pull(&there, &remote).unwrap();
    assert_eq!((pulled.downloaded, pulled.entries, pulled.there, pulled.manifests), (0, 0, 5, 0));
    // Pulled objects are as read-only as computed ones.
    let store = Store::open(&there.cache).unwrap();
    let object = store.path(&ran.stage("first").outputs["text"].digest);
    assert_eq!(fs_err::metadata(object).unwrap().permissions().mode() & 0o222, 0);
}

#[test]
fn an_interrupted_push_leaves_no_entry() {
    let (here, there) = (project(), project());
    here.run(&[]);
    let remote = here.path("remote");
    let count = std::cell::Cell::new(0);
    let dies = |_: u64, _: u64| {
        count.set(count.get() + 1);
        assert!(count.get() < 3, "killed by the test");
    };
    catch_unwind(AssertUnwindSafe(|| push_with(&here, &remote, false, &dies))).unwrap_err();
    assert!(!remote.join("attrflow-v1/recipes-v2").exists() && !remote.join("attrflow-v1/runs").exists());
    let error = pull(&there, &remote).unwrap_err().to_string();
    assert!(error.ends_with("has no runs: push one first"), "{error}");
    // The next push resumes.
    let pushed = push(&here, &remote);
    assert!(pushed.there >= 2 && pushed.sent + pushed.there == 6, "{pushed:?}");
    pull(&there, &remote).unwrap();
    assert_eq!(there.run(&[]).ran(), [""; 0]);
}

#[test]
fn damaged_remote_files_are_refused_and_the_rest_is_pulled() {
    let (here, there) = (project(), project());
    let ran = here.run(&[]);
    let remote = here.path("remote");
    push(&here, &remote);
    let digest = ran.stage("second").outputs["text"].digest;
    let object = at(&remote, "objects", &digest, "");
    let mut bytes = fs_err::read(&object).unwrap();
    bytes[0] ^= 1;
    fs_err::write(&object, &bytes).unwrap();
    let pulled = pull(&there, &remote).unwrap();
    assert_eq!((pulled.entries, pulled.manifests, pulled.refused.len()), (4, 0, 2), "{pulled:?}");
    assert!(pulled.refused[0].contains(&format!("{digest} is damaged: its digest is ")), "{pulled:?}");
    assert_eq!(pulled.refused[1], "the result of `second` was refused");
    assert_eq!(there.run(&[]).ran(), ["second"]);
    // A shorter one is sent again by default, one of the same size only on request.
    fs_err::write(&object, "short").unwrap();
    assert_eq!(push(&here, &remote).sent, 1);
    fs_err::write(&object, &bytes).unwrap();
    assert_eq!(push(&here, &remote).sent, 0);
    assert_eq!(push_with(&here, &remote, true, QUIET).sent, 6);
    assert_eq!(pull(&project(), &remote).unwrap().refused, [""; 0]);
}

#[test]
fn files_that_do_not_match_their_name_are_refused() {
    let here = project();
    let ran = here.run(&[]);
    let remote = here.path("remote");
    push(&here, &remote);
    // An entry under another's name, and one that promises other bytes.
    let entry = |stage: &str| at(&remote, "recipes-v2", &ran.stage(stage).fingerprint.unwrap(), ".json");
    fs_err::copy(entry("first"), entry("second")).unwrap();
    let other = ran.stage("second").outputs["text"].digest.to_string();
    let text = fs_err::read_to_string(entry("last[one]")).unwrap();
    let own = ran.stage("last[one]").outputs["text"].digest.to_string();
    assert!(text.contains(&own));
    fs_err::write(entry("last[one]"), text.replace(&own, &other)).unwrap();
    let pulled = pull(&project(), &remote).unwrap();
    assert_eq!((pulled.entries, pulled.refused.len()), (3, 2), "{pulled:?}");
    assert!(pulled.refused.iter().any(|fault| fault.contains("not that of its name")));
    assert!(pulled.refused.iter().any(|fault| fault.contains("do not have its checksum")));
    push_with(&here, &remote, true, QUIET);

    // A listing with a file outside of the cache.
    let there = project();
    let first = ran.stage("first").outputs["text"].digest;
    let evil = Listing(vec![Listed { path: "../../evil".into(), size: 1, digest: first }]);
    let lines = ran.stage("lines");
    let path = at(&remote, "listings", &lines.outputs["lines"].digest, ".json");
    fs_err::write(&path, serde_json::to_vec(&evil).unwrap()).unwrap();
    let pulled = pull(&there, &remote).unwrap();
    assert!(pulled.refused[0].contains("lists another folder"), "{pulled:?}");
    // Also if the entry asks for exactly that listing.
    let text = fs_err::read_to_string(entry("lines")).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
    json["outputs"]["lines"]["digest"] = evil.digest().to_string().into();
    json.as_object_mut().unwrap().remove("check");
    fs_err::write(entry("lines"), json.to_string()).unwrap();
    let path = at(&remote, "listings", &evil.digest(), ".json");
    fs_err::create_dir_all(path.parent().unwrap()).unwrap();
    fs_err::write(&path, serde_json::to_vec(&evil).unwrap()).unwrap();
    let pulled = pull(&there, &remote).unwrap();
    assert!(pulled.refused[0].contains("names a file outside its folder: ../../evil"), "{pulled:?}");
    assert!(!files(&there.root).iter().any(|path| path.ends_with("evil")));
}

#[test]
fn damaged_local_objects_are_not_sent() {
    let here = project();
    let ran = here.run(&[]);
    let store = Store::open(&here.cache).unwrap();
    let object = store.path(&ran.stage("second").outputs["text"].digest);
    fs_err::set_permissions(&object, PermissionsExt::from_mode(0o644)).unwrap();
    fs_err::write(&object, "other").unwrap();
    let remote = here.path("remote");
    let pushed = push(&here, &remote);
    assert_eq!((pushed.sent, pushed.entries, pushed.refused.len()), (5, 4, 2), "{pushed:?}");
    assert!(pushed.refused[0].contains("it is damaged: found "), "{pushed:?}");
    assert!(!remote.join("attrflow-v1/runs").exists());
}

#[test]
fn invalid_addresses_are_reported() {
    let error = |address: &str| Remote::open(address, false).err().unwrap().to_string();
    assert!(
        error("ftp://host/x").contains("unknown scheme `ftp`; expected a folder, file:///FOLDER or s3://")
    );
    assert!(error("s3:///x").contains("it names no bucket"));
    assert!(error("/nowhere/at/all").contains("no such folder"));
    assert!(error("").contains("it is empty"));
    let here = project();
    here.run(&[]);
    let remote = here.path("remote");
    fs_err::create_dir_all(remote.join("attrflow-v9")).unwrap();
    let error = pull(&here, &remote).unwrap_err().to_string();
    assert!(error.contains("contains attrflow-v9, which this version does not read: expected attrflow-v1"));
    assert!(
        pull(&here, &here.path("pipelines")).unwrap_err().to_string().contains("no runs: push one first")
    );
}
