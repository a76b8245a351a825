//! A project in a temporary folder, and the outcome of its runs.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use attrflow_engine::exec::adopt::Adoption;
use attrflow_engine::exec::event::Event;
use attrflow_engine::exec::{Cancel, CancelMode, Run, RunError};
use attrflow_engine::identity::recipe::Numerics;
use attrflow_engine::pipeline;
use attrflow_engine::plan::graph::{self, Graph};
use attrflow_engine::provenance::manifest::{Conditions, Manifest, Outcome, Program, StageRecord};
use attrflow_engine::store::{Entry, Store};
use attrflow_engine::worker::protocol::{DeviceClass, Facts};

use crate::in_process::InProcess;
use crate::toys::registry;

/// A project folder with one pipeline and one config.
pub struct Project {
    folder: tempfile::TempDir,
    pub root: PathBuf,
    pub cache: PathBuf,
    pub force: Vec<&'static str>,
    pub backend: InProcess,
    /// What the workers say of themselves, where that is not what the run needs.
    pub facts: Option<Facts>,
    pub numerics: Numerics,
    pub conditions: Conditions,
    pub stop: Cancel,
    /// The number of events after which a run is interrupted.
    pub interrupt: Option<usize>,
    pub haste: CancelMode,
}

/// The outcome of a run.
#[derive(Clone)]
pub struct Ran {
    pub manifest: Manifest,
    /// Names of the tasks that ran, sorted.
    pub tasks: Vec<String>,
    pub events: Vec<Event>,
    /// Workers that were started.
    pub starts: usize,
}

impl Ran {
    /// Names of the stages that ended so, sorted.
    pub fn with(&self, outcome: Outcome) -> Vec<&str> {
        let records = self.manifest.stages.iter().filter(|record| record.outcome == outcome);
        let mut names: Vec<&str> = records.map(|record| record.stage.as_str()).collect();
        names.sort_unstable();
        names
    }

    pub fn ran(&self) -> Vec<&str> {
        self.with(Outcome::Ran)
    }

    /// The warnings.
    pub fn warnings(&self) -> Vec<&str> {
        fn warning(event: &Event) -> Option<&str> {
            match event {
                Event::Log { level, message } if level == "WARN" => Some(message.as_str()),
                _ => None,
            }
        }
        self.events.iter().filter_map(warning).collect()
    }

    pub fn stage(&self, name: &str) -> &StageRecord {
        self.manifest.stages.iter().find(|record| record.stage == name).unwrap()
    }
}

impl Project {
    pub fn new(pipeline: &str, config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("project");
        let project = Self {
            folder,
            cache: root.join("cache"),
            root,
            force: Vec::new(),
            backend: InProcess { slots: 2, ..InProcess::default() },
            facts: None,
            numerics: Numerics { libtorch: "1".into(), device: "cpu".into(), deterministic: true },
            conditions: Conditions { jobs: 2, threads: 1, devices: vec!["cpu".into()], micro_batch: 1 },
            stop: Cancel::default(),
            interrupt: None,
            haste: CancelMode::Drain,
        };
        project.write("pipelines/toy.toml", pipeline);
        project.write("configs/toy.toml", config);
        project
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        fs_err::write(path, text).unwrap();
    }

    pub fn read(&self, name: &str) -> String {
        fs_err::read_to_string(self.path(name)).unwrap()
    }

    /// Replaces a text that must be in the file.
    /// Whether the cache knows the digest of a source.
    pub fn remembers(&self, source: &str) -> bool {
        let mut hasher = blake3::Hasher::new_derive_key("attrflow path of a source v1");
        let key = *hasher.update(self.path(source).as_os_str().as_encoded_bytes()).finalize().as_bytes();
        fs_err::read(self.path("cache/file-state-v1")).unwrap().windows(32).any(|bytes| bytes == key)
    }

    pub fn replace(&self, name: &str, old: &str, new: &str) {
        self.write(name, &changed(&self.read(name), old, new));
    }

    /// Moves the whole project folder.
    pub fn move_away(&mut self) {
        let to = self.folder.path().join("moved");
        fs_err::rename(&self.root, &to).unwrap();
        self.cache = to.join("cache");
        self.root = to;
    }

    /// The rendered problems of a pipeline that must not load.
    pub fn problems(&self, sets: &[&str]) -> String {
        let file = self.path("pipelines/toy.toml");
        let text = match pipeline::load(&file, &owned(sets), &registry()) {
            Err((problems, sources)) => problems.render(&sources, false),
            Ok((pipeline, sources)) => match Graph::new(&pipeline) {
                Err(problems) => problems.render(&sources, false),
                Ok(_) => panic!("the pipeline has no fault"),
            },
        };
        text.replace(self.root.to_str().unwrap(), "PROJECT")
    }

    pub fn run(&self, sets: &[&str]) -> Ran {
        self.try_run(sets, &[]).unwrap()
    }

    pub fn run_targets(&self, targets: &[&str]) -> Ran {
        self.try_run(&[], targets).unwrap()
    }

    pub fn try_run(&self, sets: &[&str], targets: &[&str]) -> Result<Ran, RunError> {
        let file = self.path("pipelines/toy.toml");
        let sets = owned(sets);
        let (pipeline, _) = pipeline::load(&file, &sets, &registry())
            .unwrap_or_else(|(problems, sources)| panic!("{}", problems.render(&sources, false)));
        let mut graph = Graph::new(&pipeline).unwrap_or_else(|_| panic!("a cycle"));
        graph.select(&owned(targets), &pipeline).unwrap();
        let forced = graph::named(&owned(&self.force), &pipeline).unwrap();
        let store = Store::open(&self.cache).unwrap();
        let backend = InProcess {
            log: Default::default(),
            starts: Default::default(),
            events: Default::default(),
            lost: Default::default(),
            facts: self.facts.clone().unwrap_or_else(|| facts(&self.numerics)),
            ..self.backend.clone()
        };
        let manifest = Run {
            pipeline: &pipeline,
            graph: &graph,
            store: &store,
            backend: &backend,
            numerics: &self.numerics,
            forced: &forced,
            results: self.path("results/toy"),
            file,
            sets,
            program: Program { version: "0".into(), commit: String::new() },
            conditions: self.conditions.clone(),
            stop: &self.stop,
            emit: &|event| {
                let mut events = backend.events.lock().unwrap();
                if self.interrupt == Some(events.len()) {
                    self.stop.request(self.haste);
                }
                events.push(event);
            },
        }
        .execute()?;
        let mut tasks = backend.log.lock().unwrap().clone();
        tasks.sort();
        let events = backend.events.lock().unwrap().clone();
        Ok(Ran { manifest, tasks, events, starts: backend.starts.load(Ordering::Relaxed) })
    }

    /// Adopts a file or folder as the only output of a stage; returns the error as text.
    pub fn adopt(&self, stage: &str, path: &Path) -> Result<Entry, String> {
        self.adopt_set(&[], stage, path, false)
    }

    pub fn adopt_set(&self, sets: &[&str], stage: &str, path: &Path, force: bool) -> Result<Entry, String> {
        let file = self.path("pipelines/toy.toml");
        let (pipeline, _) = pipeline::load(&file, &owned(sets), &registry())
            .unwrap_or_else(|(problems, sources)| panic!("{}", problems.render(&sources, false)));
        let mut graph = Graph::new(&pipeline).unwrap_or_else(|_| panic!("a cycle"));
        graph.select(&owned(&[stage]), &pipeline).unwrap();
        let stage = graph::named(&owned(&[stage]), &pipeline).unwrap()[0];
        let port = pipeline.stages[stage].outputs[0].name.clone();
        let store = Store::open(&self.cache).unwrap();
        Adoption {
            pipeline: &pipeline,
            graph: &graph,
            store: &store,
            numerics: &self.numerics,
            stage,
            paths: BTreeMap::from([(port, path.to_path_buf())]),
            force,
            own: vec![self.cache.clone(), self.path("results/toy")],
        }
        .execute()
        .map_err(|error| error.to_string().replace(self.root.to_str().unwrap(), "PROJECT"))
    }

    /// Every file of the results, by path.
    pub fn results(&self) -> BTreeMap<String, String> {
        let root = self.path("results/toy");
        let shown = files(&root).into_iter().filter(|path| !path.ends_with(".shown.json"));
        shown
            .map(|path| {
                let name = path.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
                (name, fs_err::read_to_string(&path).unwrap())
            })
            .collect()
    }
}

fn owned(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

/// A worker that can serve a run of these numerics.
pub fn facts(numerics: &Numerics) -> Facts {
    let device = if numerics.device == "cpu" { DeviceClass::Cpu } else { DeviceClass::Cuda };
    Facts { libtorch: Some(numerics.libtorch.clone()), device, ..Facts::default() }
}

/// A text with one edit, which must have something to replace.
pub fn changed(text: &str, old: &str, new: &str) -> String {
    assert!(text.contains(old), "`{old}` is not there");
    text.replace(old, new)
}

/// The rendered faults of a pipeline and a config.
pub fn faults(pipeline: &str, config: &str, sets: &[&str]) -> String {
    let project = Project::new(pipeline, config);
    project.write("source.txt", "source\n");
    project.problems(sets)
}

/// Every file below a folder.
pub fn files(root: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs_err::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    files
}

/// Flips a bit of a file in place, and restores its times.
pub fn flip(file: &Path) {
    let before = fs_err::metadata(file).unwrap();
    let mut bytes = fs_err::read(file).unwrap();
    bytes[0] ^= 1;
    fs_err::set_permissions(file, PermissionsExt::from_mode(0o644)).unwrap();
    fs_err::write(file, bytes).unwrap();
    let opened = fs_err::File::options().append(true).open(file).unwrap();
    opened.file().set_modified(before.modified().unwrap()).unwrap();
    fs_err::set_permissions(file, before.permissions()).unwrap();
    let after = fs_err::metadata(file).unwrap();
    assert_eq!(
        (after.mtime_nsec(), after.len(), after.ino()),
        (before.mtime_nsec(), before.len(), before.ino())
    );
}

/// A chain with a stage that is repeated over items.
pub const PIPELINE: &str = r#"
config = "../configs/toy.toml"

[stages.first]
kind = "say"
params = { text = "${first.text}", times = "${first.times}" }
inputs = { a = "../source.txt" }

[stages.second]
kind = "say"
params = { text = "${second.text}" }
inputs = { a = "first.text" }

[stages.lines]
kind = "count"
params = { say = "${say}", to = "${count.to}", title = "${count.title}" }
inputs = { from = "second.text", name = "first.text" }

[stages.last]
kind = "say"
each = { item = "${items}" }
params = { text = "${item.text}" }
inputs = { a = "lines.lines/lines.txt" }
"#;

pub const CONFIG: &str = r#"
[first]
text = "a"
times = 2

[second]
text = "b"

[say]
text = "x"

[count]
to = 4
title = "T"

[unused]
key = 1

[[items]]
name = "one"
text = "1"

[[items]]
name = "two"
text = "2"
"#;

pub fn project() -> Project {
    let project = Project::new(PIPELINE, CONFIG);
    project.write("source.txt", "source\n");
    project
}
