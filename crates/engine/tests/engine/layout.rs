//! The areas of a cache: each has a name and a purpose; old ones are recognised, and unknown files are not modified.

use std::collections::BTreeSet;

use attrflow_engine::maintenance::{Inventory, Target, Verify};
use attrflow_engine::store::{Area, Part, Store};

use crate::maintenance::{POLICY, collect, named, plan, truthful};
use crate::project::{Project, project};

fn store(project: &Project) -> Store {
    Store::open(&project.cache).unwrap()
}

/// The areas that `du` lists beside the objects.
fn listed(project: &Project) -> Vec<String> {
    let disk = Inventory::of(&store(project)).unwrap().disk;
    disk.parts.keys().map(|part| part.name().to_owned()).collect()
}

#[test]
fn an_old_cache_is_recognised_reported_and_collected() {
    let project = project();
    let before = project.run(&[]).ran().len();
    let old = ["stat-v1.json", "vouched-v1", "slices-v1", "packed-v1", "recall-v1/toy", "measured-v1/a.json"];
    for name in old.into_iter().chain(["use.lock"]) {
        project.write(&format!("cache/{name}"), "{}");
    }
    fs_err::rename(project.path("cache/recipes-v2"), project.path("cache/recipes-v1")).unwrap();
    let first = project.run(&[]);
    let warnings = first.warnings();
    let expected = "cache/recipes-v1 is the results index of an earlier version of attrflow, whose fingerprints differ: \
                    results are computed again; `attrflow cache gc --yes` removes it";
    assert!(warnings.len() == 1 && warnings[0].ends_with(expected), "{warnings:?}");
    assert_eq!(first.ran().len(), before);
    let second = project.run(&[]);
    assert_eq!((second.ran(), second.warnings()), (vec![], vec![]), "it is reported once");

    let names = [
        "measured-v1",
        "packed-v1",
        "recall-v1",
        "recipes-v1",
        "slices-v1",
        "stat-v1.json",
        "use.lock",
        "vouched-v1",
    ];
    let listed = listed(&project);
    assert!(names.iter().all(|name| listed.contains(&(*name).to_owned())), "{listed:?}");
    let found = plan(&project, &POLICY);
    let obsolete = found.steps.iter().filter(|step| matches!(step.what, Target::Obsolete { .. })).count();
    assert_eq!(obsolete, names.len(), "{:?}", named(&found));
    // A run of an earlier version may still be active.
    let running = fs_err::File::open(project.path("cache/use.lock")).unwrap();
    running.file().lock_shared().unwrap();
    assert!(store(&project).exclusive_lock().unwrap().is_none());
    drop(running);
    collect(&project, &POLICY);
    assert!(names.iter().all(|name| !project.path("cache").join(name).exists()));
    assert_eq!(truthful(&project), 9);
    assert_eq!(project.run(&[]).ran(), [""; 0]);
}

#[test]
fn every_area_is_listed_and_none_is_removed() {
    let project = project();
    project.run(&[]);
    let folders = [
        Area::Pins,
        Area::Costs,
        Area::Trials,
        Area::Noop,
        Area::Cluster,
        Area::Leases,
        Area::Downloads,
        Area::Quarantine,
    ];
    for area in folders {
        fs_err::create_dir_all(store(&project).area(area)).unwrap();
    }
    for area in [Area::FileState, Area::StoreLock, Area::LockTest, Area::UnitsLock] {
        fs_err::OpenOptions::new().create(true).append(true).open(store(&project).area(area)).unwrap();
    }
    let expected: BTreeSet<Part> =
        Area::ALL.iter().map(|area| Part::Area(*area)).chain([Part::Root]).collect();
    let disk = Inventory::of(&store(&project)).unwrap().disk;
    assert_eq!(disk.parts.keys().cloned().collect::<BTreeSet<_>>(), expected);
    assert!(disk.parts.keys().all(|part| !part.name().is_empty() && !part.purpose().is_empty()));
    collect(&project, &POLICY);
    assert!(Area::ALL.iter().all(|area| store(&project).area(*area).exists()));
    let docs = include_str!("../../../../docs/caching.md");
    for area in Area::ALL {
        assert!(
            docs.contains(&format!("\n| `{}", area.name())),
            "docs/caching.md does not list {}",
            area.name()
        );
    }
}

#[test]
fn what_is_unknown_is_listed_by_name_and_left_alone() {
    let project = project();
    project.run(&[]);
    project.write("cache/notes.txt", "mine");
    project.write("cache/mine/a", "mine");
    let listed = listed(&project);
    assert!(listed.contains(&"notes.txt".to_owned()) && listed.contains(&"mine".to_owned()), "{listed:?}");
    let verified = Verify { store: &store(&project), progress: &|_, _| {} }.execute().unwrap();
    assert_eq!(
        verified.unchecked,
        ["mine", "notes.txt"].map(|name| format!("{name} (unknown: not written by attrflow)"))
    );
    collect(&project, &POLICY);
    assert_eq!(
        (project.read("cache/notes.txt"), project.read("cache/mine/a")),
        ("mine".into(), "mine".into())
    );
}

/// `cache/.gitignore` is all that a clone has of a cache.
#[test]
fn a_cache_of_a_fresh_clone_is_an_empty_one() {
    let project = project();
    let ignore = include_str!("../../../../cache/.gitignore");
    project.write("cache/.gitignore", ignore);
    let store = store(&project);
    assert_eq!(Inventory::of(&store).unwrap().items.len(), 0);
    assert!(Verify { store: &store, progress: &|_, _| {} }.execute().unwrap().damage.is_empty());
    assert_eq!(collect(&project, &POLICY).steps.len(), 0);
    assert_eq!(project.read("cache/.gitignore"), ignore);
    let ran = project.run(&[]);
    assert!(!ran.ran().is_empty() && ran.warnings().is_empty());
    // Who deletes the cache has nothing to commit after the next run.
    fs_err::remove_dir_all(&project.cache).unwrap();
    project.run(&[]);
    assert_eq!(project.read("cache/.gitignore"), ignore);
}
