//! `attrflow cache` on a finished project, with folders and a real S3 server.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use attrflow_engine::identity::digest::Digest;
use attrflow_engine::identity::recipe::Recipe;
use attrflow_engine::provenance::manifest;
use attrflow_engine::store::Store;
use serde_json::Value as Json;

use crate::project::{Project, Ran, command, files};
use crate::s3::{Moto, Server};

const STAGES: usize = 12;

impl Project {
    fn cache(&self, arguments: &[&str]) -> Ran {
        self.attrflow([&["cache"], arguments].concat())
    }

    /// The same, and it must succeed.
    fn cached_well(&self, arguments: &[&str]) -> Ran {
        let ran = self.cache(arguments);
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
        ran
    }

    /// `attrflow cache …` as a client of a server, with more of the environment replaced.
    fn cache_at(&self, server: &Server, arguments: &[&str], environment: &[(&str, &str)]) -> Ran {
        let mut command = command(Path::new(env!("CARGO_BIN_EXE_attrflow")), &self.root);
        for name in ["AWS_SESSION_TOKEN", "AWS_ENDPOINT", "AWS_DEFAULT_REGION", "http_proxy", "HTTP_PROXY"] {
            command.env_remove(name);
        }
        command.envs(server.environment()).envs(environment.iter().copied());
        command.arg("cache").args(arguments).output().unwrap().into()
    }

    /// The object of a stage's output in the newest run that has it.
    fn digest(&self, stage: &str, port: &str) -> Digest {
        let path = &manifest::list(&self.path("cache/runs/demo"))[0];
        let manifest = manifest::read(path).unwrap();
        manifest.stages.iter().find(|record| record.stage == stage).unwrap().outputs[port].digest
    }
}

/// Where a digest is below a folder.
fn below(digest: &Digest) -> String {
    let name = digest.to_string();
    format!("{}/{name}", &name[..2])
}

#[test]
fn ls_and_du_list_the_cache() {
    let project = Project::finished();
    let lines = project.cached_well(&["ls", "--json"]).json();
    let results = lines.iter().filter(|line| line["unit"].is_null()).count();
    assert_eq!(results, STAGES);
    assert!(lines.iter().all(|line| line["whole"] == true && line["pipeline"] == "demo"), "{lines:?}");
    let table = project.cached_well(&["ls"]).out;
    assert!(table.starts_with("stage ") && table.contains("demo/influence[grin]"), "{table}");
    assert!(table.contains("demo/latents") && table.contains(&format!("\n{STAGES} results and ")), "{table}");
    let row = |table: &str, name: &str| table.lines().filter(|line| line.starts_with(name)).count();
    assert_eq!(row(&table, "demo/latents "), 2, "its result and its units: {table}");
    let table = project.cached_well(&["ls", "--stage", "influence", "--sort", "size"]).out;
    // Two queries; each a result and a row of units.
    assert_eq!((row(&table, "demo/influence["), row(&table, "demo/")), (4, 4), "{table}");
    assert_eq!(row(&project.cached_well(&["ls", "--kind", "fisher"]).out, "demo/"), 2);
    let ran = project.cache(&["ls", "--pipeline", "other"]);
    let expected = "error: no pipeline named `other` in the cache: valid names: demo\n";
    assert_eq!((ran.code, ran.err.as_str()), (2, expected));

    let lines = project.cached_well(&["du", "--json"]).json();
    let total = lines.last().unwrap();
    let said = Command::new("du").args(["-s", "-B1"]).arg(project.path("cache")).output().unwrap();
    let said = String::from_utf8(said.stdout).unwrap();
    assert_eq!(
        (&total["what"], total["disk"].to_string().as_str()),
        (&"total".into(), said.split('\t').next().unwrap())
    );
    let sum: u64 = lines[..lines.len() - 1].iter().map(|line| line["disk"].as_u64().unwrap()).sum();
    assert_eq!(total["disk"], sum);
    let stages = lines.iter().filter(|line| line["what"] == "results").count();
    assert_eq!(stages, STAGES);
    assert!(
        lines.iter().any(|line| line["area"] == "runs" && line["what"] == "manifests of runs"),
        "{lines:?}"
    );
    assert!(project.cached_well(&["du", "--by", "kind"]).out.contains("\npretrain-loss"), "kinds");
    let ran = project.cache(&["du", "--cache", "elsewhere"]);
    assert_eq!(
        (ran.code, ran.err.as_str()),
        (2, "error: there is no folder elsewhere here: name the cache with --cache\n")
    );
}

#[test]
fn gc_plans_first_and_keeps_what_the_last_run_needs() {
    let project = Project::finished();
    let of_copy = manifest::list(&project.path("cache/runs/demo")).remove(0);
    let root = manifest::read(&of_copy).unwrap().root.unwrap().display().to_string();
    project.run(&["--set", "unlearn.lr=0.002"]);
    // The results are those of a copy of the project: what another project needs is kept unless it is forgotten.
    let kept = project.cached_well(&["gc"]).out;
    assert!(!kept.contains("demo/unlearn"), "{kept}");
    let before = files(&project.path("cache"));
    let planned = project.cached_well(&["gc", "--forget", &root]).out;
    for stage in ["demo/unlearn[grin]", "demo/influence[pizza]"] {
        assert!(planned.lines().any(|line| line.starts_with(stage) && line.contains("result ")), "{planned}");
    }
    assert!(planned.ends_with("nothing was removed: add --yes to remove these\n"), "{planned}");
    assert!(
        planned.contains("used by the last run of each pipeline") && planned.contains("--units"),
        "{planned}"
    );
    assert!(!planned.lines().any(|line| line.starts_with("demo/latents")), "{planned}");
    assert_eq!(files(&project.path("cache")), before);

    // The first run again is kept by a pin.
    project.cached_well(&["pin", "last~1", "--note", "for the paper"]);
    assert!(project.cached_well(&["gc", "--forget", &root]).out.contains(": pinned\n"));
    let listed = project.cached_well(&["ls"]).out;
    assert!(listed.contains(" (for the paper)"), "{listed}");
    project.cached_well(&["gc", "--yes", "--forget", &root]);
    assert!(project.run(&[]).computed().is_empty());
    let ran = project.cache(&["unpin", "last~1"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let ran = project.cache(&["unpin", "last~1"]);
    assert!(ran.code == 2 && ran.err.contains("`last~1` is not pinned; pins: none"), "{ran:?}");

    let lines = project.cached_well(&["gc", "--yes", "--json", "--forget", &root]).json();
    let total = lines.last().unwrap();
    assert_eq!((&total["done"], total["steps"].as_u64().unwrap() > 0), (&true.into(), true), "{total}");
    assert!(project.run(&[]).computed().is_empty());
    let computed = project.run(&["--set", "unlearn.lr=0.002"]).computed();
    assert_eq!(
        computed,
        ["influence", "ranking", "unlearn"].map(|s| ["grin", "pizza"].map(|i| format!("{s}[{i}]"))).concat()
    );
    let ran = project.cache(&["gc", "--budget", "much"]);
    assert!(ran.code == 2 && ran.err.contains("invalid size `much`"), "{ran:?}");
    let message = project.cached_well(&["gc", "--budget", "1k"]).out;
    assert!(message.contains(" above the budget: --units removes "), "{message}");
}

#[test]
fn gc_refuses_while_a_run_is_on() {
    let project = Project::finished();
    let held = fs_err::OpenOptions::new().append(true).open(project.path("cache/store.lock")).unwrap();
    held.file().lock_shared().unwrap();
    let ran = project.cache(&["gc", "--yes"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.err.contains("the cache is in use by a run or another gc"), "{ran:?}");
    project.cached_well(&["gc"]);
}

#[test]
fn verify_exits_with_4_and_the_next_run_rebuilds_only_the_damage() {
    let project = Project::finished();
    project.run(&[]);
    let ran = project.cached_well(&["verify"]);
    assert!(ran.out.ends_with("/s\nno damage\n"), "{ran:?}");
    let losses = project.path("cache/objects").join(below(&project.digest("pretrain_loss", "losses")));
    fs_err::set_permissions(&losses, PermissionsExt::from_mode(0o644)).unwrap();
    let mut bytes = fs_err::read(&losses).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs_err::write(&losses, bytes).unwrap();
    let ran = project.cache(&["verify"]);
    assert_eq!(ran.code, 4, "{ran:?}");
    assert!(ran.out.contains("(of demo/pretrain_loss): its bytes hash to "), "{ran:?}");
    assert!(ran.out.contains("\nthe next run recomputes: demo/pretrain_loss\n"), "{ran:?}");
    let ran = project.attrflow(["run", "pipelines/demo.toml", "--json"]);
    assert_eq!((ran.code, ran.computed()), (0, vec!["pretrain_loss".to_owned()]), "{ran:?}");
    assert_eq!(project.cached_well(&["verify", "--json"]).json().last().unwrap()["damage"], 0);
}

#[test]
fn pins_are_of_runs_stages_and_digests() {
    let project = Project::finished();
    let message = project.cached_well(&["pin", "unlearn[grin]"]).out;
    assert!(
        message.starts_with("pinned demo/unlearn[grin] as ") && message.ends_with(": 1 item\n"),
        "{message}"
    );
    let digest = project.digest("fisher", "fisher").to_string();
    let message = project.cached_well(&["pin", &digest[..12]]).out;
    assert!(message.starts_with(&format!("pinned {digest} as ")), "{message}");
    let message = project.cached_well(&["pin", "demo:last"]).out;
    assert!(message.contains(&format!(": {STAGES} items\n")), "{message}");
    for (name, expected) in [
        (
            "unlearn[grim]",
            "is neither a stage of the last runs (did you mean `unlearn[grin]`?), nor a digest, nor a manifest",
        ),
        ("00000000", "no digest of a result or object starts with 00000000"),
        ("last~7", "there is no run 7 before the last: demo has 1 run in "),
    ] {
        let ran = project.cache(&["pin", name]);
        assert!(ran.code == 2 && ran.err.contains(expected), "{ran:?}");
    }
    project.cached_well(&["unpin", "unlearn[grin]"]);
}

/// A second checkout with the same sources and no cache.
fn second(project: &Project) -> Project {
    let other = Project::finished();
    fs_err::remove_dir_all(other.path("cache")).unwrap();
    fs_err::remove_dir_all(other.path("results")).unwrap();
    assert!(project.path("cache").exists());
    other
}

#[test]
fn a_run_goes_through_a_folder_to_another_checkout() {
    let (here, there) = (Project::finished(), second(&Project::finished()));
    let remote = here.path("remote");
    let remote = remote.to_str().unwrap();
    let message = here.cached_well(&["push", remote]).out;
    assert!(
        message.starts_with("uploaded ") && message.contains(&format!("; {STAGES} results in ")),
        "{message}"
    );
    assert!(here.cached_well(&["push", remote, "demo:last"]).out.starts_with("uploaded 0 files, 0 B; "));
    let message = there.cached_well(&["pull", &format!("file://{remote}")]).out;
    assert!(message.contains(&format!("; {STAGES} results new, 0 already there; 1 manifest\n")), "{message}");
    let ran = there.run(&[]);
    assert!(ran.computed().is_empty() && ran.reused().len() == STAGES, "{ran:?}");
    assert_eq!(there.results().len(), here.results().len());
    assert_eq!(there.attrflow(["audit", "last"]).code, 0);
    // All of it, with units, of which an edit then profits.
    here.cached_well(&["push", remote, "--all", "--units"]);
    let message = there.cached_well(&["pull", remote, "--all", "--json"]).json().remove(0);
    assert!(
        message["entries"].as_u64().unwrap() > 0 && message["refused"] == Json::Array(vec![]),
        "{message}"
    );
    let ran = there.cache(&["pull", remote, "mine:last"]);
    assert!(ran.code == 2 && ran.err.contains("has no run of `mine`, only of demo"), "{ran:?}");
}

#[test]
fn a_run_goes_through_a_bucket_and_what_is_damaged_there_is_refused() {
    let (here, there) = (Project::finished(), second(&Project::finished()));
    let server = Server::start();
    let remote = "s3://results/team/one";
    let ran = here.cache_at(&server, &["push", remote], &[]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    let ran = here.cache_at(&server, &["push", remote], &[]);
    assert!(ran.code == 0 && ran.out.starts_with("uploaded 0 files, 0 B; "), "{ran:?}");

    let losses = here.digest("pretrain_loss", "losses");
    let object = server.object(&format!("team/one/attrflow-v1/objects/{}", below(&losses)));
    let whole = fs_err::read(&object).unwrap();
    let mut bytes = whole.clone();
    bytes[0] ^= 1;
    fs_err::write(&object, bytes).unwrap();
    let ran = there.cache_at(&server, &["pull", remote], &[]);
    assert!(ran.code == 1 && ran.err.contains(&format!("{losses} is damaged: its digest is ")), "{ran:?}");
    assert!(ran.err.contains("the result of `pretrain_loss` was refused"), "{ran:?}");
    assert!(ran.out.contains(&format!("; {} results new, 0 already there; ", STAGES - 1)), "{ran:?}");
    fs_err::write(&object, whole).unwrap();
    let ran = there.cache_at(&server, &["pull", remote], &[]);
    assert!(
        ran.code == 0 && ran.out.contains(&format!("1 result new, {} already there", STAGES - 1)),
        "{ran:?}"
    );
    assert!(there.run(&[]).computed().is_empty());
}

#[test]
fn a_run_goes_through_another_makers_server() {
    let Some(server) = Moto::start() else { return };
    let (here, there) = (Project::finished(), second(&Project::finished()));
    // A file that is sent in parts.
    let store = Store::open(&here.path("cache")).unwrap();
    let large = here.path("large");
    fs_err::write(&large, (0..6_000_000_u32).flat_map(u32::to_le_bytes).collect::<Vec<u8>>()).unwrap();
    let (kind, inputs) = ("large".to_owned(), Default::default());
    let recipe = Recipe { kind, version: 1, params: Json::Null, inputs, numerics: None, unit: None };
    let entry = store.commit(&recipe, &[("bytes".into(), large)], None, 1.0).unwrap();
    drop(store);
    let remote = "s3://results/team/one";
    let at = |project: &Project, arguments: &[&str]| -> Ran {
        let mut command = command(Path::new(env!("CARGO_BIN_EXE_attrflow")), &project.root);
        command.envs(server.environment()).arg("cache").args(arguments).output().unwrap().into()
    };
    let ran = at(&here, &["push", remote, "--all"]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    let objects = server.objects();
    assert!(objects.iter().all(|object| object.starts_with("team/one/attrflow-v1/")), "{objects:?}");
    let indexed = objects.iter().find(|object| object.contains("/recipes")).unwrap();
    assert!(server.object(indexed).contains("outputs"), "{indexed}");
    let ran = at(&here, &["push", remote, "--all"]);
    assert!(ran.code == 0 && ran.out.starts_with("uploaded 0 files, 0 B; "), "{ran:?}");
    let ran = at(&there, &["pull", remote, "--all"]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    let pulled = Store::open(&there.path("cache")).unwrap();
    assert_eq!(pulled.lookup(&recipe.fingerprint()).unwrap().unwrap().outputs, entry.outputs);
    assert!(there.run(&[]).computed().is_empty());
    assert_eq!(there.attrflow(["audit", "last"]).code, 0);
    let ran = at(&here, &["push", "s3://nothing/x"]);
    assert!(
        ran.code == 1 && ran.err.contains("s3://nothing/x: no such bucket at this endpoint: "),
        "{ran:?}"
    );
}

#[test]
fn a_refusal_differs_from_an_unreachable_server() {
    let project = Project::finished();
    let server = Server::start();
    let push = |remote: &str, environment: &[(&str, &str)]| {
        let ran = project.cache_at(&server, &["push", remote], environment);
        assert_eq!((ran.code, ran.out.as_str()), (1, ""), "{ran:?}");
        ran.err
    };
    let message = push("s3://results/x", &[("AWS_SECRET_ACCESS_KEY", "wrong")]);
    assert!(message.contains("s3://results/x refuses the keys, or they lack the permission: "), "{message}");
    let message = push("s3://results/x", &[("AWS_ACCESS_KEY_ID", "nobody")]);
    assert!(message.contains("refuses the keys"), "{message}");
    let message = push("s3://nothing/x", &[]);
    assert!(message.contains("s3://nothing/x: no such bucket at this endpoint: "), "{message}");
    let message = push("s3://results/x", &[("AWS_ENDPOINT_URL", "http://127.0.0.1:9")]);
    assert!(message.contains("s3://results/x cannot be reached at http://127.0.0.1:9: "), "{message}");
}

#[test]
fn a_large_file_is_uploaded_in_parts_and_a_killed_push_leaves_no_entry() {
    let project = Project::new(1);
    let store = Store::open(&project.path("cache")).unwrap();
    let mut entries = Vec::new();
    for number in 0..4_u32 {
        let file = project.path(format!("large-{number}"));
        let bytes: Vec<u8> = (0..5_000_000 + number).flat_map(|i| (i ^ number << 20).to_le_bytes()).collect();
        fs_err::write(&file, bytes).unwrap();
        let recipe = Recipe {
            kind: "large".into(),
            version: number,
            params: Json::Null,
            inputs: Default::default(),
            numerics: None,
            unit: None,
        };
        entries.push(store.commit(&recipe, &[("bytes".into(), file)], None, 1.0).unwrap());
    }
    let server = Server::start();
    let remote = "s3://results/large";
    let other = Project::new(1);
    for pause in [5, 20, 60, 150] {
        let mut command = command(Path::new(env!("CARGO_BIN_EXE_attrflow")), &project.root);
        command.envs(server.environment()).args(["cache", "push", remote, "--all", "--json"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(pause));
        child.kill().unwrap();
        child.wait().unwrap();
        // Whatever is there is whole.
        let ran = other.cache_at(&server, &["pull", remote, "--all", "--json"], &[]);
        assert_eq!((ran.code, &ran.json()[0]["refused"]), (0, &Json::Array(vec![])), "{ran:?}");
    }
    let ran = project.cache_at(&server, &["push", remote, "--all", "--json"], &[]);
    assert_eq!((ran.code, &ran.json()[0]["entries"]), (0, &4.into()), "{ran:?}");
    other.cache_at(&server, &["pull", remote, "--all"], &[]);
    let pulled = Store::open(&other.path("cache")).unwrap();
    for entry in &entries {
        let found = pulled.lookup(&entry.recipe.fingerprint()).unwrap().unwrap();
        assert_eq!(found.outputs, entry.outputs);
    }
    assert_eq!(other.cached_well(&["verify", "--json"]).json()[0]["objects"], 4);

    // One that is damaged after its first part was sent does not appear.
    let digest = entries[0].outputs["bytes"].digest;
    let object = store.path(&digest);
    let sent = server.object(&format!("large/attrflow-v1/objects/{}", below(&digest)));
    assert_eq!(fs_err::read(&object).unwrap(), fs_err::read(&sent).unwrap());
    fs_err::remove_file(&sent).unwrap();
    fs_err::set_permissions(&object, PermissionsExt::from_mode(0o644)).unwrap();
    let mut bytes = fs_err::read(&object).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs_err::write(&object, bytes).unwrap();
    let ran = project.cache_at(&server, &["push", remote, "--all"], &[]);
    assert!(ran.code == 1 && ran.err.contains("it is damaged: found "), "{ran:?}");
    assert!(!sent.exists());
}
