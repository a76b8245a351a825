//! A backend whose workers compute toys in this process, with faults on request.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use attrflow_engine::exec::event::Event;
use attrflow_engine::kind::{Computation, Compute, Context, Device, Downloads, Kind, KindInfo, Step, Task};
use attrflow_engine::worker::protocol::{DeviceClass, Facts, Reply, TaskBatch, TaskError, Usage};
use attrflow_engine::worker::{Backend, Request, Work, Worker};

use crate::backends::Acts;
use crate::many::Join;
use crate::rows::Rows;
use crate::toys::{Count, Echo, Say, Steps, Where, registry};

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
    /// Seconds of work that a worker is given at once.
    pub seconds: f64,
    /// Two devices: the first computes the kind `count` alone, the second all others.
    pub devices: bool,
    /// How many batches each worker was given at once.
    pub given: Arc<Mutex<Vec<usize>>>,
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
    fn pool(&self, slot: usize) -> usize {
        if self.devices { slot % 2 } else { 0 }
    }
    fn serves(&self, pool: usize, kind: &KindInfo) -> bool {
        !self.devices || (pool == 0) == (kind.name == Count::INFO.name)
    }
    fn seconds_at_once(&self, _: usize) -> f64 {
        self.seconds
    }
    fn next(&self, request: &Request<'_>) -> Result<Option<Box<dyn Worker>>, TaskError> {
        self.starts.fetch_add(1, Ordering::Relaxed);
        Ok(Some(Box::new(Here(self.clone(), self.pool(request.slot)))))
    }
}

/// A worker, and its pool.
struct Here(InProcess, usize);

impl Worker for Here {
    fn facts(&self) -> &Facts {
        &self.0.facts
    }

    fn run(&mut self, work: &Work, on_reply: &mut dyn FnMut(Reply)) -> Result<Usage, TaskError> {
        self.0.given.lock().unwrap().push(work.batches.len());
        let [batch] = work.batches.as_slice() else {
            let mut first = 0;
            for batch in &work.batches {
                let tasks: Vec<usize> = (first..first + batch.tasks.len()).collect();
                on_reply(Reply::Started { tasks: tasks.clone() });
                self.one(batch, &mut |reply| match reply {
                    Reply::Finished { .. } => {}
                    Reply::Progress { task, done, total, note } => {
                        on_reply(Reply::Progress { task: first + task, done, total, note });
                    }
                    reply => on_reply(reply),
                })?;
                on_reply(Reply::Finished { tasks, files: Vec::new(), usage: Usage::default() });
                first += batch.tasks.len();
            }
            return Ok(Usage::default());
        };
        self.one(batch, on_reply)
    }
}

impl Here {
    fn one(&self, task: &TaskBatch, on_reply: &mut dyn FnMut(Reply)) -> Result<Usage, TaskError> {
        assert!(self.0.serves(self.1, kind_of(&task.kind)), "{} on device {}", task.kind, self.1);
        let usage = Usage::start(&|| 0);
        let computations = [
            Computation::of::<Say>(),
            Computation::of::<Count>(),
            Computation::of::<Steps>(),
            Computation::of::<Echo>(),
            Computation::of::<Where>(),
            Computation::of::<Rows>(),
            Computation::of::<Join>(),
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
        let progress = |task, done, total, note: Option<&str>| {
            let note = note.map(str::to_owned);
            (on_reply.borrow_mut())(Reply::Progress { task, done, total, note });
        };
        let finished = |pieces: &[usize]| {
            (on_reply.borrow_mut())(Reply::Finished {
                tasks: pieces.to_vec(),
                files: Vec::new(),
                usage: Usage::default(),
            })
        };
        let downloads = Downloads { folder: "downloads".into(), lock: "attrflow.lock".into(), at_once: 1 };
        let cx = Context::new(Device::Cpu, 1, (&downloads, Path::new("trials")), &progress, &finished);
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

/// A toy by its name.
fn kind_of(name: &str) -> &'static KindInfo {
    registry().into_iter().find(|kind| kind.name == name).unwrap_or(&Acts::INFO)
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
