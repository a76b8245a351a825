//! Verifies the bytes of a cache against their digests.

use std::os::unix::fs::PermissionsExt;

use attrflow_engine::maintenance::{Verify, VerifySummary};
use attrflow_engine::store::{Area, Store};

use crate::project::{Project, flip, project};

fn verify(project: &Project) -> VerifySummary {
    let store = Store::open(&project.cache).unwrap();
    Verify { store: &store, progress: &|done, total| assert!(done <= total) }.execute().unwrap()
}

fn named(checked: &VerifySummary) -> Vec<String> {
    checked.rebuilds.iter().map(ToString::to_string).collect()
}

#[test]
fn damage_is_found_quarantined_and_rebuilt() {
    let project = project();
    let ran = project.run(&[]);
    let results = project.results();
    let checked = verify(&project);
    assert_eq!((checked.objects, checked.entries, checked.damage.len()), (9, 9, 0));
    assert!(checked.bytes > 0 && checked.rebuilds.is_empty() && checked.incomplete.is_empty());

    let store = Store::open(&project.cache).unwrap();
    let object = |stage: &str, port: &str| store.path(&ran.stage(stage).outputs[port].digest);
    let second = object("second", "text");
    flip(&second);
    let lines = object("lines", "lines");
    fs_err::set_permissions(lines.join("sub"), PermissionsExt::from_mode(0o755)).unwrap();
    fs_err::remove_file(lines.join("sub/title.txt")).unwrap();
    let one = object("last[one]", "text");
    fs_err::remove_file(&one).unwrap();
    let checked = verify(&project);
    assert_eq!(checked.damage.len(), 2, "{:?}", checked.damage);
    assert_eq!(named(&checked), ["toy/lines", "toy/second"]);
    assert_eq!(checked.incomplete.iter().map(ToString::to_string).collect::<Vec<_>>(), ["toy/last[one]"]);
    let damage = checked.damage.iter().find(|damage| damage.path == second).unwrap();
    assert!(damage.why.contains("its bytes hash to "), "{}", damage.why);
    assert!(damage.moved.as_ref().unwrap().starts_with(project.cache.join("quarantine")));
    assert!(!second.exists() && !lines.exists());
    assert!(verify(&project).damage.is_empty());

    let ran = project.run(&[]);
    assert_eq!((ran.ran(), ran.stage("lines").units_run), (vec!["last[one]", "lines", "second"], 0));
    assert_eq!(project.results(), results);
    assert!(verify(&project).incomplete.is_empty());
}

#[test]
fn an_extra_file_of_a_folder_is_damage() {
    let project = project();
    let ran = project.run(&[]);
    let store = Store::open(&project.cache).unwrap();
    let lines = store.path(&ran.stage("lines").outputs["lines"].digest);
    fs_err::set_permissions(&lines, PermissionsExt::from_mode(0o755)).unwrap();
    fs_err::write(lines.join("more.txt"), "more").unwrap();
    let checked = verify(&project);
    assert_eq!((checked.damage.len(), named(&checked)), (1, vec!["toy/lines".to_owned()]));
    assert!(checked.damage[0].why.contains("more.txt is extra"), "{}", checked.damage[0].why);
}

#[test]
fn a_damaged_unit_costs_nothing_while_its_stage_is_cached() {
    let project = project();
    project.run(&[]);
    let store = Store::open(&project.cache).unwrap();
    let entries = store.entries().unwrap();
    let units = entries.iter().filter_map(|indexed| indexed.content.as_ref().ok());
    let (_, unit) = units.into_iter().find(|(_, entry)| entry.recipe.unit.is_some()).unwrap();
    flip(&store.path(&unit.outputs["part"].digest).join("line"));
    let checked = verify(&project);
    assert_eq!((checked.damage.len(), named(&checked)), (1, Vec::new()));
    assert_eq!(project.run(&[]).ran(), [""; 0]);
    assert_eq!(project.run(&["count.to=5"]).stage("lines").units_run, 2);
}

#[test]
fn damaged_or_wrong_entries_are_quarantined() {
    let project = project();
    let ran = project.run(&[]);
    let store = Store::open(&project.cache).unwrap();
    let path = |stage: &str| {
        let name = ran.stage(stage).fingerprint.unwrap().to_string();
        store.area(Area::Recipes).join(&name[..2]).join(format!("{name}.json"))
    };
    let (first, second) = (path("first"), path("second"));
    fs_err::write(&first, &fs_err::read(&first).unwrap()[..20]).unwrap();
    fs_err::copy(path("lines"), &second).unwrap();
    let checked = verify(&project);
    let mut damaged: Vec<_> =
        checked.damage.iter().map(|damage| (damage.part, damage.path.clone())).collect();
    damaged.sort();
    let mut expected = vec![("index", first), ("index", second)];
    expected.sort();
    assert_eq!((damaged, named(&checked)), (expected, vec!["toy/first".into(), "toy/second".into()]));
    assert_eq!(project.run(&[]).ran(), ["first", "second"]);
}

#[test]
fn modified_adopted_files_are_reported_and_left() {
    let project = project();
    let mine = project.path("mine.txt");
    fs_err::write(&mine, "b is mine\n").unwrap();
    project.run_targets(&["first"]);
    project.adopt("second", &mine).unwrap();
    project.run(&[]);
    assert!(verify(&project).damage.is_empty());
    fs_err::write(&mine, "b is not\n").unwrap();
    let checked = verify(&project);
    assert_eq!((checked.damage.len(), checked.lost.len()), (0, 1));
    assert!(checked.lost[0].contains("mine.txt holds other bytes"), "{:?}", checked.lost);
    fs_err::write(&mine, "b is mine\n").unwrap();
    assert_eq!(project.run(&[]).ran(), [""; 0]);
}
