//! Maintenance of a cache: what is removed, what is kept, and that the index stays consistent.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use attrflow_engine::maintenance::{
    GcSummary, Inventory, Pin, Pins, Plan, Policy, RetainReason, Retained, Target, Verify,
};
use attrflow_engine::provenance::manifest::{self, Outcome};
use attrflow_engine::store::Store;
use jiff::Timestamp;

use crate::in_process::Fault;
use crate::project::{Project, files, project};

pub const POLICY: Policy = Policy {
    keep_runs: 1,
    keep_manifests: None,
    budget: None,
    units: false,
    grace: Duration::ZERO,
    forget: Vec::new(),
};

fn store(project: &Project) -> Store {
    Store::open(&project.cache).unwrap()
}

pub fn plan(project: &Project, policy: &Policy) -> Plan {
    let store = store(project);
    Plan::of(&store, &Inventory::of(&store).unwrap(), policy, Timestamp::now()).unwrap()
}

/// The removed items by name; `+` marks units.
pub fn named(plan: &Plan) -> Vec<String> {
    let mut names: Vec<String> = plan
        .steps
        .iter()
        .map(|step| match &step.what {
            Target::Units { units } => format!("{} +{}", step.name, units.len()),
            _ => step.name.clone(),
        })
        .collect();
    names.sort();
    names
}

fn carry_out(project: &Project, policy: &Policy, tell: &mut dyn FnMut(GcSummary)) -> Plan {
    let store = store(project);
    let alone = store.exclusive_lock().unwrap().unwrap();
    let inventory = Inventory::of(&store).unwrap();
    let plan = Plan::of(&store, &inventory, policy, Timestamp::now()).unwrap();
    plan.execute(&store, &inventory, &alone, tell).unwrap();
    plan
}

pub fn collect(project: &Project, policy: &Policy) -> Plan {
    carry_out(project, policy, &mut |_| ())
}

/// Every index entry leads to objects that match their digests.
pub fn truthful(project: &Project) -> usize {
    let store = store(project);
    let entries = store.entries().unwrap();
    for indexed in &entries {
        let (_, entry) = indexed.content.as_ref().unwrap();
        for artifact in entry.outputs.values() {
            assert_eq!(store.verify(&artifact.digest).unwrap(), attrflow_engine::store::Health::Sound);
        }
    }
    entries.len()
}

#[test]
fn results_of_the_last_run_are_kept_and_older_ones_removed() {
    let project = project();
    project.run(&[]);
    assert_eq!(named(&plan(&project, &POLICY)), [""; 0]);
    project.run(&["second.text=z"]);
    let before = files(&project.cache);
    let found = plan(&project, &POLICY);
    // `first` is the same in both; the units of the old `lines` go with it.
    let expected = ["toy/last[one]", "toy/last[two]", "toy/lines", "toy/lines +4", "toy/second"];
    assert_eq!(named(&found), expected);
    assert_eq!(files(&project.cache), before, "a plan modifies nothing");
    assert!(found.steps.iter().all(|step| step.used.is_some() && step.seconds.is_some()));
    assert_eq!(found.frees, found.steps.iter().map(|step| step.frees).sum::<u64>());

    let done = collect(&project, &POLICY);
    assert_eq!((named(&done), truthful(&project)), (named(&found), 9));
    assert_eq!(named(&plan(&project, &POLICY)), [""; 0]);
    assert_eq!(project.run(&["second.text=z"]).ran(), [""; 0]);
    // The removed results are computed again, and nothing else.
    assert_eq!(project.run(&[]).ran(), ["last[one]", "last[two]", "lines", "second"]);
    // Two runs, two sets of results.
    let policy = Policy { keep_runs: 2, ..POLICY };
    assert_eq!(named(&plan(&project, &policy)), [""; 0]);
}

#[test]
fn units_of_a_kept_result_are_removed_only_on_request() {
    let project = project();
    project.run(&[]);
    let kept = plan(&project, &POLICY).kept;
    assert_eq!((kept[&RetainReason::Run].0, kept[&RetainReason::Units].0, kept.len()), (5, 4, 2));
    // With them, one more number is one more unit.
    assert_eq!(project.run(&["count.to=5"]).stage("lines").units_run, 1);
    let units = Policy { units: true, ..POLICY };
    let done = collect(&project, &units);
    assert!(named(&done).contains(&"toy/lines +5".to_owned()), "{:?}", named(&done));
    assert_eq!(project.run(&["count.to=5"]).ran(), [""; 0]);
    assert_eq!(project.run(&["count.to=6"]).stage("lines").units_run, 6);
}

#[test]
fn a_kill_at_any_point_leaves_the_index_consistent() {
    for point in 1.. {
        let project = project();
        project.run(&["second.text=z"]);
        let expected = project.results();
        project.run(&[]);
        let mut count = 0;
        let units = Policy { units: true, ..POLICY };
        let killed = catch_unwind(AssertUnwindSafe(|| {
            carry_out(&project, &units, &mut |_| {
                count += 1;
                assert!(count < point, "killed by the test");
            });
        }));
        truthful(&project);
        assert_eq!(project.run(&[]).ran(), [""; 0], "the last run was kept");
        assert_eq!(project.run(&["second.text=z"]).with(Outcome::Failed), [""; 0]);
        assert_eq!(project.results(), expected);
        // Leftovers are removed the next time.
        collect(&project, &POLICY);
        assert_eq!(named(&plan(&project, &POLICY)), [""; 0]);
        if killed.is_ok() {
            assert!(point > 12, "{point} removals");
            return;
        }
    }
}

#[test]
fn nothing_is_removed_while_a_run_uses_the_cache() {
    let project = project();
    project.run(&[]);
    let store = store(&project);
    let held = store.shared_lock(|| panic!("nobody has it alone")).unwrap();
    assert!(store.exclusive_lock().unwrap().is_none());
    let second = store.shared_lock(|| panic!("runs share it")).unwrap();
    drop(held);
    assert!(store.exclusive_lock().unwrap().is_none());
    drop(second);
    let alone = store.exclusive_lock().unwrap().unwrap();
    assert!(store.exclusive_lock().unwrap().is_none());
    // A run waits, and continues once the lock is free.
    std::thread::scope(|scope| {
        let run = scope.spawn(|| project.run(&["count.to=5"]));
        std::thread::sleep(Duration::from_millis(100));
        assert!(!run.is_finished());
        drop(alone);
        let ran = run.join().unwrap();
        assert_eq!(ran.with(Outcome::Failed), [""; 0]);
        let waited = format!("{:?}", ran.events);
        assert!(waited.contains("waiting for `attrflow cache gc` to end"), "{waited}");
    });
}

#[test]
fn unselected_and_failed_stages_keep_their_results() {
    let mut project = project();
    project.run(&[]);
    // A run of selected stages does not affect the others.
    project.run_targets(&["first"]);
    assert_eq!(named(&plan(&project, &POLICY)), [""; 0]);

    project.backend.fault = Some(("number 3".into(), Fault::Fails));
    project.backend.slots = 1;
    let ran = project.run(&["say.text=y"]);
    assert_eq!((ran.with(Outcome::Failed), ran.stage("lines").units_run), (vec!["lines"], 3));
    collect(&project, &POLICY);
    let inventory = Inventory::of(&store(&project)).unwrap();
    let kept = Retained::of(&inventory, &POLICY, Timestamp::now());
    let there = kept.items.iter().filter(|(found, _)| inventory.items.contains_key(found));
    assert_eq!(there.filter(|(_, why)| **why == RetainReason::Partial).count(), 3);
    // It resumes, and the earlier results are still there.
    project.backend.fault = None;
    assert_eq!(project.run(&[]).ran(), [""; 0]);
    let ran = project.run(&["say.text=y"]);
    assert_eq!((ran.stage("lines").units_run, ran.stage("lines").units_cached), (1, 3));

    // A stage that the pipeline no longer has is not kept.
    project.replace("configs/toy.toml", "name = \"two\"\ntext = \"2\"", "name = \"two\"\ntext = \"3\"");
    project.run(&["say.text=y"]);
    assert!(named(&plan(&project, &POLICY)).contains(&"toy/last[two]".to_owned()));
}

#[test]
fn the_work_of_a_killed_run_is_kept_for_a_while() {
    let project = project();
    project.run(&[]);
    // As if the engine had been killed before it wrote its manifest.
    for path in manifest::list(&project.cache.join("runs/toy")) {
        fs_err::remove_file(path).unwrap();
    }
    let week = Policy { grace: Duration::from_secs(7 * 24 * 3600), units: true, ..POLICY };
    let found = plan(&project, &week);
    assert_eq!(named(&found), ["toy/lines +4"]);
    assert_eq!(found.kept[&RetainReason::Recent].0, 5);
    let store = store(&project);
    let inventory = Inventory::of(&store).unwrap();
    let later = Timestamp::now() + jiff::SignedDuration::from_hours(8 * 24);
    let found = Plan::of(&store, &inventory, &week, later).unwrap();
    assert_eq!(found.steps.len(), 6);
    // Only the unit index has a name for it.
    assert!(named(&found).contains(&"of no recorded run".to_owned()));
    assert!(named(&found).contains(&"toy/lines".to_owned()));
}

#[test]
fn a_budget_frees_what_is_cheapest_to_rebuild() {
    let project = project();
    for text in ["a", "b", "c"] {
        project.run(&[&format!("first.text={text}")]);
    }
    let all = plan(&project, &POLICY);
    let results = |plan: &Plan| -> Vec<f64> {
        let results = plan.steps.iter().filter(|step| matches!(step.what, Target::Result { .. }));
        results.map(|step| step.seconds.unwrap()).collect()
    };
    assert!(results(&all).len() > 6 && all.over.is_none());
    // Everything has the same size here, except the folders.
    let budget = all.before - all.frees / 2;
    let half = plan(&project, &Policy { budget: Some(budget), ..POLICY });
    assert!(half.steps.len() < all.steps.len() && half.before - half.frees <= budget);
    // Units of complete stages first, and no more than needed.
    assert!(matches!(half.steps[0].what, Target::Units { .. }));
    assert!(half.before - half.frees + half.steps.last().unwrap().frees > budget);
    let none = plan(&project, &Policy { budget: Some(u64::MAX), ..POLICY });
    assert_eq!((none.steps.len(), none.frees), (0, 0));
    let too_small = plan(&project, &Policy { budget: Some(1), ..POLICY });
    assert_eq!(too_small.over, Some(too_small.before - too_small.frees - 1));
    let done = collect(&project, &Policy { budget: Some(budget), ..POLICY });
    let total = Inventory::of(&store(&project)).unwrap().disk.total().disk;
    // The folders of removed items stay, and a temporary folder for the removal may exist.
    assert!(total <= budget + 4096, "{total} {budget} {}", done.frees);
    assert_eq!(project.run(&["first.text=c"]).ran(), [""; 0]);
}

#[test]
fn adopted_files_are_never_modified() {
    let project = project();
    let mine = project.path("mine.txt");
    fs_err::write(&mine, "b is mine\n").unwrap();
    project.run_targets(&["first"]);
    project.adopt("second", &mine).unwrap();
    project.run(&[]);
    project.run(&["second.text=z"]);
    let budget = Policy { budget: Some(1), ..POLICY };
    let adopted = |plan: &Plan| plan.steps.iter().filter(|step| step.name == "toy/second").count();
    // It takes no space, so a budget keeps it.
    assert_eq!((adopted(&plan(&project, &POLICY)), adopted(&plan(&project, &budget))), (1, 0));
    collect(&project, &POLICY);
    assert_eq!(fs_err::read_to_string(&mine).unwrap(), "b is mine\n");
    assert!(files(&project.cache).iter().all(|path| path.extension().is_none_or(|e| e != "adopted")));
    // Now it is computed.
    assert!(project.run(&[]).ran().contains(&"second"));
}

#[test]
fn pins_keep_results_and_objects() {
    let project = project();
    let first = project.run(&[]).manifest;
    project.run(&["second.text=z"]);
    let store = store(&project);
    let pins = Pins::of(&store);
    let second = first.stages.iter().find(|record| record.stage == "second").unwrap();
    let lines = first.stages.iter().find(|record| record.stage == "lines").unwrap();
    let blank = Pin {
        what: "toy/second".into(),
        asked: "second".into(),
        at: "2026-01-01T00:00:00Z".into(),
        note: "for the paper".into(),
        results: BTreeSet::from([second.fingerprint.unwrap()]),
        objects: BTreeSet::new(),
        manifest: None,
    };
    pins.set(&blank).unwrap();
    let of_object = Pin {
        what: "object".into(),
        asked: "object".into(),
        results: BTreeSet::new(),
        objects: BTreeSet::from([lines.outputs["lines"].digest]),
        ..blank.clone()
    };
    pins.set(&of_object).unwrap();
    pins.set(&of_object).unwrap();
    assert_eq!(pins.list().unwrap().len(), 2);
    let found = plan(&project, &POLICY);
    assert_eq!(named(&found), ["toy/last[one]", "toy/last[two]", "toy/lines +4"]);
    assert_eq!(found.kept[&RetainReason::Pin].0, 1);
    collect(&project, &POLICY);
    assert_eq!(truthful(&project), 11);
    assert_eq!(project.run(&[]).ran(), ["last[one]", "last[two]"]);
    assert_eq!(pins.remove(&of_object.id()[..6]).unwrap(), [of_object]);
    assert_eq!(pins.remove("second").unwrap(), [blank]);
    assert_eq!(pins.remove("second").unwrap(), []);
    // An unreadable pin may keep something.
    fs_err::write(project.cache.join("pins-v1/x.json"), "{").unwrap();
    assert!(Inventory::of(&store).unwrap_err().to_string().contains("x.json is damaged"));
}

#[test]
fn orphans_are_removed_when_old_and_unlocked() {
    let project = project();
    project.run(&[]);
    let write = |name: &str| {
        let path = project.cache.join(name);
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        fs_err::write(path, "left behind").unwrap();
    };
    let digest = "ab".repeat(32);
    write(&format!("objects/ab/{digest}"));
    write("tmp/1-a.lock");
    write("tmp/1-a/0/part");
    write("tmp/write-b");
    write("tmp/2-b.lock");
    write("quarantine/T-ab.json");
    write("downloads/k.file");
    write("downloads/k.json");
    write("downloads/k.lock");
    write("downloads/under-way.part");
    write("downloads/under-way.json");
    // Still locked.
    let held = fs_err::File::open(project.cache.join("tmp/2-b.lock")).unwrap();
    held.file().lock().unwrap();
    let found = plan(&project, &Policy { grace: Duration::from_secs(3600), ..POLICY });
    assert_eq!(named(&found), ["abababab, which no entry names", "working folders of killed runs"]);
    let done = collect(&project, &POLICY);
    assert_eq!(done.steps.len(), 4, "{:?}", named(&done));
    let left = |name: &str| project.cache.join(name).exists();
    let gone = ["tmp/1-a", "tmp/1-a.lock", "tmp/write-b", "quarantine/T-ab.json", "downloads/k.file"];
    assert!(!gone.iter().any(|name| left(name)) && !left(&format!("objects/ab/{digest}")));
    assert!(left("tmp/2-b.lock") && left("downloads/under-way.part"));
    drop(held);
    assert_eq!(truthful(&project), 9);
}

#[test]
fn manifests_are_removed_only_on_request() {
    let project = project();
    for text in ["a", "b", "c"] {
        project.run(&[&format!("first.text={text}")]);
    }
    let runs = || manifest::list(&project.cache.join("runs/toy"));
    let tables = || {
        let of = |path: &PathBuf| path.to_string_lossy().ends_with(".tasks.csv");
        files(&project.cache.join("runs/toy")).iter().filter(|path| of(path)).count()
    };
    collect(&project, &POLICY);
    assert_eq!((runs().len(), tables()), (3, 3));
    collect(&project, &Policy { keep_manifests: Some(2), ..POLICY });
    assert_eq!((runs().len(), tables()), (2, 2));
}

#[test]
fn nothing_is_removed_if_something_cannot_be_read() {
    let project = project();
    project.run(&[]);
    let refused = || {
        let store = store(&project);
        let inventory = Inventory::of(&store).unwrap();
        Plan::of(&store, &inventory, &POLICY, Timestamp::now()).unwrap_err().to_string()
    };
    let entry = project.cache.join("recipes-v2/ab").join(format!("{}.json", "ab".repeat(32)));
    fs_err::create_dir_all(entry.parent().unwrap()).unwrap();
    fs_err::write(&entry, "{").unwrap();
    assert!(refused().contains("ab.json is damaged: "));
    fs_err::remove_file(&entry).unwrap();
    fs_err::create_dir(project.cache.join("recipes-v99")).unwrap();
    assert!(refused().contains("a newer version of attrflow wrote"));
    fs_err::remove_dir(project.cache.join("recipes-v99")).unwrap();
}

#[test]
fn what_a_manifest_of_a_newer_version_names_is_kept() {
    let project = project();
    let run = project.run(&[]).manifest;
    let path = manifest::list(&project.cache.join("runs/toy")).remove(0);
    let newer = path.with_file_name("29990101T000000.000000Z.json");
    fs_err::rename(&path, &newer).unwrap();
    let fingerprint = run.stages.iter().find(|record| record.stage == "first").unwrap().fingerprint.unwrap();
    fs_err::write(&newer, format!(r#"{{ "format": 99, "unheard": ["of", "{fingerprint}"] }}"#)).unwrap();
    let checked = Verify { store: &store(&project), progress: &|_, _| () }.execute().unwrap();
    assert!(checked.damage.is_empty() && newer.exists());
    assert_eq!(checked.unchecked, ["runs/toy/29990101T000000.000000Z.json (of a newer version)"]);
    let forgetful = Policy { grace: Duration::ZERO, ..POLICY };
    collect(&project, &forgetful);
    let left = Inventory::of(&store(&project)).unwrap();
    assert_eq!(left.items.keys().collect::<Vec<_>>(), [&fingerprint]);
}

#[test]
fn a_manifest_that_is_cut_off_stops_nothing_and_is_quarantined() {
    let project = project();
    project.run(&[]);
    let store = store(&project);
    let newest = manifest::list(&project.cache.join("runs/toy"))[0].clone();
    fs_err::write(&newest, "{").unwrap();
    let inventory = Inventory::of(&store).unwrap();
    assert_eq!(inventory.unread.len(), 1);
    Plan::of(&store, &inventory, &POLICY, Timestamp::now()).unwrap();
    let checked = Verify { store: &store, progress: &|_, _| {} }.execute().unwrap();
    let damage: Vec<&str> = checked.damage.iter().map(|damage| damage.part).collect();
    assert_eq!((damage, newest.exists()), (vec!["manifest"], false));
    assert!(Inventory::of(&store).unwrap().unread.is_empty());
}

#[test]
fn disk_usage_matches_du() {
    let project = project();
    project.run(&[]);
    fs_err::write(project.cache.join("downloads"), vec![1; 5000]).unwrap();
    // Two names of one file.
    fs_err::hard_link(project.cache.join("downloads"), project.cache.join("other")).unwrap();
    let disk = Inventory::of(&store(&project)).unwrap().disk;
    let du = std::process::Command::new("du").args(["-s", "-B1"]).arg(&project.cache).output().unwrap();
    let du = String::from_utf8(du.stdout).unwrap();
    assert_eq!(disk.total().disk.to_string(), du.split('\t').next().unwrap());
    let lengths: u64 = files(&project.cache).iter().map(|path| fs_err::metadata(path).unwrap().len()).sum();
    assert_eq!(disk.total().bytes, lengths);
    let missing = Store::open(Path::new("/nowhere/at/all")).unwrap();
    assert_eq!(Inventory::of(&missing).unwrap().disk.total().disk, 0);
}
