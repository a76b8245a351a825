//! Toy kinds that write text, and a project in a temporary folder to run them in.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use attrflow::event::Event;
use attrflow::exec::Run;
use attrflow::exec::worker::{Backend, Part, Reply, Task, TaskError, Worker};
use attrflow::graph::{self, Graph};
use attrflow::manifest::{Conditions, Manifest, Outcome};
use attrflow::param::Validate;
use attrflow::params;
use attrflow::pipeline;
use attrflow::recipe::Numerics;
use attrflow::stage::{
    Computation, Compute, Context, Device, Inherit, Input, Inputs, Output, Registry, Stage, Unit,
};
use attrflow::store::Store;
use serde_json::{Value as Json, json};

params! {
    pub struct SayParams {
        text: String = "hello".to_owned(),
        times: u32 [1..=9] = 1,
    }
}
impl Validate for SayParams {}

/// Writes a text, after what stands on its inputs.
pub struct Say;

impl Stage for Say {
    type Params = SayParams;
    const KIND: &'static str = "say";
    const VERSION: u32 = 1;
    const SUMMARY: &'static str = "writes a text";
    const INPUTS: &'static [Input] =
        &[Input::new("a", "text").optional(), Input::new("b", "text").optional()];
    const OUTPUTS: &'static [Output] = &[Output { name: "text", file: "text.txt", doc: "text" }];
}

impl Compute for Say {
    fn run(
        params: &SayParams,
        inputs: &Inputs,
        _: Option<&Unit>,
        out: &Path,
        _: &Context<'_>,
    ) -> anyhow::Result<()> {
        let mut text = String::new();
        for port in ["a", "b"] {
            if let Some(path) = inputs.get(port) {
                text += &fs_err::read_to_string(path)?;
            }
        }
        // The first letter alone, so that a changed parameter can give unchanged bytes.
        text +=
            &params.text.chars().next().map(String::from).unwrap_or_default().repeat(params.times as usize);
        anyhow::ensure!(!params.text.starts_with('!'), "told to fail");
        if params.text.starts_with("panic") {
            panic!("told to panic");
        }
        Ok(fs_err::write(out.join("text.txt"), text)?)
    }
}

params! {
    pub struct CountParams {
        say: SayParams,
        to: u32 = 4,
        title: String = "".to_owned(),
    }
}
impl Validate for CountParams {}

/// Writes a line per number, each by a unit of its own, and a title above.
pub struct Count;

impl Stage for Count {
    type Params = CountParams;
    const KIND: &'static str = "count";
    const VERSION: u32 = 1;
    const SUMMARY: &'static str = "writes numbers";
    const INPUTS: &'static [Input] = &[Input::new("from", "text"), Input::merge("name", "text").optional()];
    const OUTPUTS: &'static [Output] =
        &[Output { name: "lines", file: "folder", doc: "a folder with lines.txt" }];
    const INHERITS: &'static [Inherit] = &[];

    fn unit_identity(params: &CountParams) -> Json {
        json!({ "say": params.say })
    }

    fn units(params: &CountParams, inputs: &Inputs) -> anyhow::Result<Option<Vec<Unit>>> {
        anyhow::ensure!(inputs.path("from").exists(), "nothing to count from");
        let unit = |n: u32| Unit { name: format!("number {n}"), span: json!({ "n": n }), steps: 1 };
        Ok(Some((0..params.to).map(unit).collect()))
    }
}

impl Compute for Count {
    fn run(
        params: &CountParams,
        inputs: &Inputs,
        unit: Option<&Unit>,
        out: &Path,
        cx: &Context<'_>,
    ) -> anyhow::Result<()> {
        let from = fs_err::read_to_string(inputs.path("from"))?;
        (cx.progress)(1, 1);
        let n = &unit.expect("counted by units").span["n"];
        Ok(fs_err::write(out.join("line"), format!("{from}{n}{}\n", params.say.text))?)
    }

    fn merge(
        params: &CountParams,
        inputs: &Inputs,
        parts: &[PathBuf],
        out: &Path,
        _: &Context<'_>,
    ) -> anyhow::Result<()> {
        let mut text = params.title.clone();
        if let Some(name) = inputs.get("name") {
            text += &fs_err::read_to_string(name)?;
        }
        for part in parts {
            text += &fs_err::read_to_string(part.join("line"))?;
        }
        fs_err::create_dir_all(out.join("folder/sub"))?;
        fs_err::write(out.join("folder/sub/title.txt"), &params.title)?;
        Ok(fs_err::write(out.join("folder/lines.txt"), text)?)
    }
}

params! {
    pub struct EchoParams {
        say: SayParams,
    }
}
impl Validate for EchoParams {}

/// Takes `say` from the stage that it counts after.
pub struct Echo;

impl Stage for Echo {
    type Params = EchoParams;
    const KIND: &'static str = "echo";
    const VERSION: u32 = 1;
    const SUMMARY: &'static str = "repeats";
    const INPUTS: &'static [Input] = &[Input::new("lines", "a folder")];
    const OUTPUTS: &'static [Output] = &[Output { name: "text", file: "text.txt", doc: "text" }];
    const INHERITS: &'static [Inherit] = &[Inherit { param: "say", port: "lines" }];
}

impl Compute for Echo {
    fn run(
        params: &EchoParams,
        _: &Inputs,
        _: Option<&Unit>,
        out: &Path,
        _: &Context<'_>,
    ) -> anyhow::Result<()> {
        Ok(fs_err::write(out.join("text.txt"), &params.say.text)?)
    }
}

pub fn registry() -> Registry {
    vec![&Say, &Count, &Echo]
}

/// Runs tasks in this process and keeps a list of them.
pub struct InProcess {
    pub slots: usize,
    pub log: Arc<Mutex<Vec<String>>>,
    /// Ends the worker, as a kill would, when the task of this name comes.
    pub dies_at: Option<String>,
}

struct Here {
    log: Arc<Mutex<Vec<String>>>,
    dies_at: Option<String>,
}

impl Backend for InProcess {
    fn slots(&self) -> usize {
        self.slots
    }
    fn start(&self, _: usize) -> Result<Box<dyn Worker>, TaskError> {
        Ok(Box::new(Here { log: self.log.clone(), dies_at: self.dies_at.clone() }))
    }
}

impl Worker for Here {
    fn run(&mut self, task: &Task, said: &mut dyn FnMut(Reply)) -> Result<(), TaskError> {
        let computations: [&dyn Computation; 3] = [&Say, &Count, &Echo];
        let computation = computations.iter().find(|c| c.kind() == task.kind).expect("a toy");
        let name = match &task.part {
            Part::Whole => task.kind.clone(),
            Part::Unit(unit) => unit.name.clone(),
            Part::Merge(_) => format!("{} merge", task.kind),
        };
        if self.dies_at.as_ref() == Some(&name) {
            fs_err::write(task.out.join("line"), "half-wr").unwrap();
            return Err(TaskError::Died("killed by the test".into()));
        }
        self.log.lock().unwrap().push(name);
        let said = std::cell::RefCell::new(said);
        let progress = |done, total| (said.borrow_mut())(Reply::Progress { done, total });
        let cx = Context { device: Device::Cpu, micro_batch: 1, progress: &progress };
        let Task { params, inputs, out, .. } = task;
        let result = match &task.part {
            Part::Whole => computation.run(params, inputs, None, out, &cx),
            Part::Unit(unit) => computation.run(params, inputs, Some(unit), out, &cx),
            Part::Merge(parts) => computation.merge(params, inputs, parts, out, &cx),
        };
        result.map_err(|error| TaskError::Failed(format!("{error:#}")))
    }
}

/// A project folder with one pipeline and one config.
pub struct Project {
    pub folder: tempfile::TempDir,
    pub slots: usize,
    pub force: Vec<String>,
    pub dies_at: Option<String>,
    pub numerics: Numerics,
}

/// What a run did.
pub struct Ran {
    pub manifest: Manifest,
    pub tasks: Vec<String>,
    pub events: Vec<Event>,
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
}

impl Project {
    pub fn new(pipeline: &str, config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let project = Self {
            folder,
            slots: 2,
            force: Vec::new(),
            dies_at: None,
            numerics: Numerics {
                libtorch: "1".into(),
                device: "cpu".into(),
                precision: "fp32".into(),
                deterministic: true,
            },
        };
        project.write("pipelines/toy.toml", pipeline);
        project.write("configs/toy.toml", config);
        project
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        fs_err::write(path, text).unwrap();
    }

    pub fn read(&self, name: &str) -> String {
        fs_err::read_to_string(self.path(name)).unwrap()
    }

    /// The rendered problems of a pipeline that must not load.
    pub fn problems(&self, sets: &[&str]) -> String {
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        let file = self.path("pipelines/toy.toml");
        let text = match pipeline::load(&file, &sets, &registry()) {
            Err((problems, sources)) => problems.render(&sources, false),
            Ok((pipeline, sources)) => match Graph::new(&pipeline) {
                Err(problems) => problems.render(&sources, false),
                Ok(_) => panic!("the pipeline has no fault"),
            },
        };
        text.replace(self.folder.path().to_str().unwrap(), "PROJECT")
    }

    pub fn run(&self, sets: &[&str]) -> Ran {
        self.run_targets(sets, &[])
    }

    pub fn run_targets(&self, sets: &[&str], targets: &[&str]) -> Ran {
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        let targets: Vec<String> = targets.iter().map(|target| (*target).to_owned()).collect();
        let file = self.path("pipelines/toy.toml");
        let (pipeline, _) = pipeline::load(&file, &sets, &registry())
            .unwrap_or_else(|(problems, sources)| panic!("{}", problems.render(&sources, false)));
        let mut graph = Graph::new(&pipeline).unwrap_or_else(|_| panic!("a cycle"));
        graph.select(&targets, &pipeline).unwrap();
        let forced = graph::named(&self.force, &pipeline).unwrap();
        let store = Store::open(&self.path("cache")).unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let backend = InProcess { slots: self.slots, log: log.clone(), dies_at: self.dies_at.clone() };
        let events = Mutex::new(Vec::new());
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
            conditions: Conditions { jobs: 2, threads: 1, devices: vec!["cpu".into()] },
            emit: &|event| events.lock().unwrap().push(event),
        }
        .execute()
        .unwrap();
        let tasks = log.lock().unwrap().clone();
        Ran { manifest, tasks, events: events.into_inner().unwrap() }
    }

    /// Every file of the results, by path.
    pub fn results(&self) -> BTreeMap<String, String> {
        let mut files = BTreeMap::new();
        let root = self.path("results");
        let mut folders = vec![root.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs_err::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.file_name().is_some_and(|name| name != ".shown.json") {
                    let name = path.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
                    files.insert(name, fs_err::read_to_string(&path).unwrap());
                }
            }
        }
        files
    }
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
