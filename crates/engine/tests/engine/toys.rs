//! Toy kinds that write text, and a backend that runs them in this process.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use attrflow_engine::config::param::Validate;
use attrflow_engine::exec::event::Event;
use attrflow_engine::kind::{
    ArtifactShape, Computation, Compute, Context, Device, Downloads, Estimate, ExpectedInputs, Inherit,
    Input, Inputs, Kind, KindInfo, Output, Registry, Stage, Step, Task, Trial, Unit, Units, WorkSize,
};
use attrflow_engine::params;
use attrflow_engine::worker::protocol::{DeviceClass, Facts, Reply, TaskError, Usage};
use attrflow_engine::worker::{Backend, Request, Work, Worker};
use serde_json::{Value as Json, json};

use crate::backends::Acts;
use crate::rows::Rows;

params! {
    /// Writes a text, after the contents of its inputs.
    pub struct Say {
        text: String = "hello".to_owned(),
        times: u32 [1..=9] = 1,
    }
}
impl Validate for Say {
    const RENAMED: &'static [(&'static str, &'static str)] = &[("phrase", "text")];
}

impl Kind for Say {
    const INFO: KindInfo = KindInfo {
        inputs: &[Input::new("a", "text").optional(), Input::new("b", "text").optional()],
        outputs: &[Output::new("text", "text.txt", "text")],
        ..KindInfo::new::<Self>("say", 1, "writes a text")
    };
}

impl Stage for Say {
    fn accept(&self, inputs: &Inputs, outputs: &BTreeMap<String, PathBuf>) -> anyhow::Result<&'static str> {
        let text = fs_err::read_to_string(&outputs["text"])?;
        let expected = self.text.chars().next().map(String::from).unwrap_or_default();
        anyhow::ensure!(inputs.0.values().all(|path| path.exists()), "an input does not exist");
        anyhow::ensure!(text.contains(&expected), "found {text:?}, expected a `{expected}` in it");
        Ok("the first letter")
    }
}

impl Compute for Say {
    fn run(&self, task: &Task, _: &Context<'_>) -> anyhow::Result<()> {
        let Task { inputs, out, .. } = task;
        let mut text = String::new();
        for port in ["a", "b"] {
            if let Some(path) = inputs.get(port) {
                let file = if path.is_dir() { path.join("a.txt") } else { path.to_path_buf() };
                text += &fs_err::read_to_string(file)?;
            }
        }
        // Only the first letter, so that a changed parameter can give unchanged bytes.
        text += &self.text.chars().next().map(String::from).unwrap_or_default().repeat(self.times as usize);
        anyhow::ensure!(!self.text.starts_with('!'), "failing as requested");
        if self.text == "nothing" {
            return Ok(());
        }
        Ok(fs_err::write(out.join("text.txt"), text)?)
    }
}

params! {
    /// Writes a line per number, each by a unit of its own, and a title above.
    pub struct Count {
        say: Say,
        to: u32 = 4,
        title: String = "".to_owned(),
    }
}
impl Validate for Count {}

impl Kind for Count {
    const INFO: KindInfo = KindInfo {
        inputs: &[Input::new("from", "text"), Input::merge("name", "text").optional()],
        outputs: &[Output::new("lines", "folder", "a folder with lines.txt")],
        ..KindInfo::new::<Self>("count", 1, "writes numbers")
    };
}

impl Stage for Count {
    fn unit_identity(&self) -> Json {
        json!({ "say": self.say })
    }

    fn units(&self, inputs: &Inputs) -> anyhow::Result<Units> {
        anyhow::ensure!(inputs.path("from").exists(), "nothing to count from");
        let unit = |n: u32| Unit { name: format!("number {n}"), range: json!({ "n": n }), steps: 1 };
        Ok(Units::Independent((0..self.to).map(unit).collect()))
    }

    fn estimate(&self, inputs: &ExpectedInputs) -> anyhow::Result<Estimate> {
        inputs.shape("from")?;
        let to = u64::from(self.to);
        Ok(Estimate {
            outputs: [("lines".to_owned(), ArtifactShape::Bytes(100 * to))].into(),
            parts: 10 * to,
            work: Some(WorkSize { steps: to, tasks: to, cost_key: json!(self.say), ..WorkSize::default() }),
        })
    }

    fn accept(&self, _: &Inputs, outputs: &BTreeMap<String, PathBuf>) -> anyhow::Result<&'static str> {
        anyhow::ensure!(outputs["lines"].join("lines.txt").is_file(), "no lines.txt");
        Ok("names")
    }
}

impl Compute for Count {
    fn run(&self, task: &Task, cx: &Context<'_>) -> anyhow::Result<()> {
        let Task { inputs, out, .. } = task;
        let from = fs_err::read_to_string(inputs.path("from"))?;
        cx.progress(1, 1);
        let n = &task.unit()?.range["n"];
        Ok(fs_err::write(out.join("line"), format!("{from}{n}{}\n", self.say.text))?)
    }

    fn merge(&self, task: &Task, parts: &[PathBuf], _: &Context<'_>) -> anyhow::Result<()> {
        let Task { inputs, out, .. } = task;
        let mut text = self.title.clone();
        if let Some(name) = inputs.get("name") {
            text += &fs_err::read_to_string(name)?;
        }
        for part in parts {
            text += &fs_err::read_to_string(part.join("line"))?;
        }
        fs_err::create_dir_all(out.join("folder/sub"))?;
        fs_err::write(out.join("folder/sub/title.txt"), &self.title)?;
        Ok(fs_err::write(out.join("folder/lines.txt"), text)?)
    }

    fn trial(
        &self,
        inputs: &ExpectedInputs,
        steps: u64,
        folder: &Path,
        _: &Context<'_>,
    ) -> anyhow::Result<Trial> {
        let mut inputs = inputs.inputs();
        if inputs.get("from").is_none() {
            fs_err::write(folder.join("from"), "made up\n")?;
            inputs.0.insert("from".into(), folder.join("from"));
        }
        // Five steps at most, and two at least.
        let steps = steps.clamp(2, 5);
        let unit = Unit { name: "a trial".into(), range: json!({ "n": 0 }), steps };
        Ok(Trial { stage: Box::new(self.clone()), inputs, unit: Some(unit), steps, merges: true })
    }
}

params! {
    /// Inherits `say` from the stage that it reads.
    pub struct Echo {
        say: Say,
    }
}
impl Validate for Echo {}

impl Kind for Echo {
    const INFO: KindInfo = KindInfo {
        inputs: &[Input::new("lines", "a folder")],
        outputs: &[Output::new("text", "text.txt", "text")],
        inherits: &[Inherit { param: "say", port: "lines" }],
        libtorch: false,
        ..KindInfo::new::<Self>("echo", 1, "repeats")
    };
}

impl Stage for Echo {}

impl Compute for Echo {
    fn run(&self, task: &Task, _: &Context<'_>) -> anyhow::Result<()> {
        let Task { out, .. } = task;
        Ok(fs_err::write(out.join("text.txt"), &self.say.text)?)
    }
}

pub fn registry() -> Registry {
    vec![&Say::INFO, &Count::INFO, &Steps::INFO, &Echo::INFO, &Rows::INFO]
}

params! {
    /// Writes a line per step, each by a unit that reads the lines of the unit before.
    pub struct Steps {
        text: String = "s".to_owned(),
        to: u32 = 4,
        start: String = "".to_owned(),
        /// A file that the step 1 reads although it is not hashed.
        salt: String = "".to_owned(),
    }
}
impl Validate for Steps {}

impl Kind for Steps {
    const INFO: KindInfo = KindInfo {
        inputs: &[Input::new("from", "text").optional()],
        outputs: &[Output::new("text", "text.txt", "text")],
        ..KindInfo::new::<Self>("steps", 1, "adds lines")
    };
}

impl Stage for Steps {
    fn unit_identity(&self) -> Json {
        json!({ "text": self.text })
    }

    fn units(&self, _: &Inputs) -> anyhow::Result<Units> {
        let unit = |n: u32| {
            let range = if n == 0 { json!({ "step": n, "start": self.start }) } else { json!({ "step": n }) };
            Unit { name: format!("step {n}"), range, steps: 1 }
        };
        Ok(Units::Chain((0..self.to).map(unit).collect()))
    }

    fn estimate(&self, _: &ExpectedInputs) -> anyhow::Result<Estimate> {
        let to = u64::from(self.to);
        let work = Some(WorkSize { steps: to, tasks: to, cost_key: json!(self.text), ..WorkSize::default() });
        Ok(Estimate { outputs: [("text".to_owned(), ArtifactShape::Bytes(10))].into(), parts: 10 * to, work })
    }
}

impl Compute for Steps {
    fn run(&self, task: &Task, cx: &Context<'_>) -> anyhow::Result<()> {
        let Task { inputs, out, .. } = task;
        let step = task.unit()?.range["step"].as_u64();
        let before = match (inputs.previous(), step) {
            (None, Some(0)) => self.start.clone(),
            (Some(before), Some(1..)) => fs_err::read_to_string(before.join("text"))?,
            (before, step) => anyhow::bail!("step {step:?} after {before:?}"),
        };
        let salt = if step == Some(1) { fs_err::read_to_string(&self.salt)? } else { String::new() };
        cx.progress(1, 1);
        let step = step.unwrap_or_default();
        Ok(fs_err::write(out.join("text"), format!("{before}{}{step}{salt}\n", self.text))?)
    }

    fn merge(&self, task: &Task, parts: &[PathBuf], _: &Context<'_>) -> anyhow::Result<()> {
        fs_err::copy(parts[parts.len() - 1].join("text"), task.out.join("text.txt"))?;
        Ok(())
    }
}

/// A fault of a task.
#[derive(Debug, Clone, PartialEq)]
pub enum Fault {
    /// The worker ends, as after a kill.
    Dies,
    /// The worker is lost so many times, as with its machine.
    Lost(usize),
    /// The task fails and the worker survives.
    Fails,
    /// The worker's own thread in the engine panics.
    Panics,
    /// Before the task, this file is rewritten.
    Rewrites(PathBuf, String),
    /// Before the task, this file is rewritten, and written as it was, with its time.
    ChangesBack(PathBuf, String),
}

/// Runs tasks in this process and records them.
#[derive(Clone, Default)]
pub struct InProcess {
    pub slots: usize,
    /// The fault of the task of this name, after it wrote a part of its output.
    pub fault: Option<(String, Fault)>,
    /// Each unit waits for the next one to be kept, so that they finish in reverse.
    pub reversed: bool,
    /// Minimum time of every task.
    pub pause: Duration,
    /// Tasks that ran, in the order of their start.
    pub log: Arc<Mutex<Vec<String>>>,
    /// What the workers say of themselves.
    pub facts: Facts,
    /// Workers that were lost so far.
    pub lost: Arc<AtomicUsize>,
    /// Number of started workers.
    pub starts: Arc<AtomicUsize>,
    /// The events of the run so far.
    pub events: Arc<Mutex<Vec<Event>>>,
}

impl InProcess {
    fn wait_for(&self, name: &str) {
        let finished = |event: &Event| matches!(event, Event::UnitFinished { unit, .. } if unit == name);
        let begun = Instant::now();
        while !self.events.lock().unwrap().iter().any(finished) {
            assert!(begun.elapsed() < Duration::from_secs(20), "`{name}` never finished");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Backend for InProcess {
    fn slots(&self) -> usize {
        self.slots
    }
    fn device_class(&self) -> DeviceClass {
        DeviceClass::Cpu
    }
    fn next(&self, _: &Request<'_>) -> Result<Option<Box<dyn Worker>>, TaskError> {
        self.starts.fetch_add(1, Ordering::Relaxed);
        Ok(Some(Box::new(Here(self.clone()))))
    }
}

struct Here(InProcess);

impl Worker for Here {
    fn facts(&self) -> &Facts {
        &self.0.facts
    }

    fn run(&mut self, work: &Work, on_reply: &mut dyn FnMut(Reply)) -> Result<Usage, TaskError> {
        let task = &work.batches[0];
        let usage = Usage::start(&|| 0);
        let computations = [
            Computation::of::<Say>(),
            Computation::of::<Count>(),
            Computation::of::<Steps>(),
            Computation::of::<Echo>(),
            Computation::of::<Rows>(),
            Computation::of::<Acts>(),
        ];
        let computation =
            computations.iter().find(|computation| computation.kind.name == task.kind).expect("a toy");
        let name = |piece: &Task| match &piece.step {
            Step::Whole => task.kind.clone(),
            Step::Unit(unit) => unit.name.clone(),
            Step::Merge(_) => format!("{} merge", task.kind),
        };
        let names: Vec<String> = task.tasks.iter().map(name).collect();
        if let Some((at, fault)) = &self.0.fault
            && let Some(place) = names.iter().position(|name| name == at)
        {
            let half = || fs_err::write(task.tasks[place].out.join("line"), "half-wr").unwrap();
            match fault {
                Fault::Dies => {
                    half();
                    return Err(TaskError::Died("killed by the test".into()));
                }
                Fault::Fails => {
                    half();
                    return Err(TaskError::Failed("failed by the test".into()));
                }
                Fault::Lost(times) if self.0.lost.fetch_add(1, Ordering::Relaxed) < *times => {
                    half();
                    return Err(TaskError::Lost("lost by the test".into()));
                }
                Fault::Lost(_) => {}
                Fault::Panics => panic!("panicking as requested"),
                Fault::Rewrites(file, text) => fs_err::write(file, text).unwrap(),
                Fault::ChangesBack(file, text) => {
                    let (old, when) =
                        (fs_err::read(file).unwrap(), fs_err::metadata(file).unwrap().modified());
                    fs_err::write(file, text).unwrap();
                    fs_err::write(file, old).unwrap();
                    let opened = fs_err::File::options().append(true).open(file).unwrap();
                    opened.file().set_modified(when.unwrap()).unwrap();
                }
            }
        }
        self.0.log.lock().unwrap().push(names.join(" + "));
        std::thread::sleep(self.0.pause);
        let on_reply = std::cell::RefCell::new(on_reply);
        let progress = |task, done, total| (on_reply.borrow_mut())(Reply::Progress { task, done, total });
        let finished = |pieces: &[usize]| {
            (on_reply.borrow_mut())(Reply::Finished {
                tasks: pieces.to_vec(),
                files: Vec::new(),
                usage: Usage::default(),
            })
        };
        let downloads = Downloads { folder: "downloads".into(), lock: "attrflow.lock".into(), at_once: 1 };
        let cx = Context::new(Device::Cpu, 1, &downloads, &progress, &finished);
        if let Some(line) =
            task.tasks[0].params["own"].as_str().filter(|_| task.tasks[0].params["act"] == "log")
        {
            (on_reply.borrow_mut())(Reply::Log { level: "INFO".into(), message: line.to_owned() });
        }
        let stage = (computation.from_json)(&task.tasks[0].params).expect("parameters of the kind");
        let result = match task.tasks.as_slice() {
            [one] => self.alone(one, &*stage, &cx),
            tasks => stage.run_batch(tasks, &cx),
        };
        result.map(|()| usage()).map_err(|error| match format!("{error:#}") {
            error if error == "dies" => TaskError::Died(error),
            error => TaskError::Failed(error),
        })
    }
}

impl Here {
    fn alone(&self, task: &Task, stage: &dyn Compute, cx: &Context<'_>) -> anyhow::Result<()> {
        match &task.step {
            Step::Whole => stage.run(task, cx),
            Step::Unit(unit) => {
                let n = unit.range["n"].as_u64();
                if let Some(n) = n.filter(|n| self.0.reversed && *n < 3) {
                    self.0.wait_for(&format!("number {}", n + 1));
                }
                stage.run(task, cx)
            }
            Step::Merge(parts) => stage.merge(task, parts, cx),
        }
    }
}
