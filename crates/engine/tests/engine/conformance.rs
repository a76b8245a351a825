//! What every backend must do, for the tests of each.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use attrflow_engine::identity::recipe::Recipe;
use attrflow_engine::kind::{Inputs, Step, Task};
use attrflow_engine::worker::cancel::{Cancel, CancelMode};
use attrflow_engine::worker::protocol::{Reply, TaskBatch, TaskError, VERSION};
use attrflow_engine::worker::{Backend, Note, Request, Work, Worker};
use serde_json::Value as Json;

/// What a task does.
pub enum Act {
    /// Writes `done` into its file.
    Write,
    /// Writes the line `a line` to the log, and its file.
    Log,
    /// Fails with `no luck`.
    Fail,
    /// Ends the worker.
    Die,
    /// Writes the first file, waits for the second, and writes its own.
    Meet(PathBuf, PathBuf),
    /// Writes its process id into this file, and never ends.
    Hang(PathBuf),
}

/// A backend with two slots at least, and how its tasks are written.
pub struct Subject<'a> {
    pub backend: &'a dyn Backend,
    /// Whether its tasks need a worker with libtorch.
    pub libtorch: bool,
    pub kind: &'a str,
    /// The parameters of a task.
    pub params: &'a (dyn Fn(&Act) -> Json + Sync),
    /// The file that a task writes.
    pub file: &'a str,
    /// Whether a task reports progress.
    pub progress: bool,
}

const SOON: Duration = Duration::from_secs(20);

impl Subject<'_> {
    fn worker(&self, slot: usize, cancel: &Cancel) -> Box<dyn Worker> {
        let request = Request { slot, libtorch: self.libtorch, waiting: &|| 1, cancel };
        self.backend.next(&request).expect("a worker").expect("a worker while a job waits")
    }

    /// A batch of tasks that do the same, each in a folder of its own.
    fn batch(&self, act: &Act, folders: &[&Path]) -> TaskBatch {
        let task = |folder: &&Path| {
            fs_err::create_dir_all(folder).unwrap();
            let (params, inputs) = ((self.params)(act), Inputs::default());
            Task { params, inputs, step: Step::Whole, out: folder.to_path_buf() }
        };
        TaskBatch { kind: self.kind.to_owned(), tasks: folders.iter().map(task).collect() }
    }

    /// Runs a batch, and returns how it ended with all replies.
    fn run(
        &self,
        worker: &mut dyn Worker,
        act: &Act,
        folders: &[&Path],
    ) -> (Result<(), TaskError>, Vec<Reply>) {
        let work =
            Work { batches: vec![self.batch(act, folders)], notes: folders.iter().map(|_| note()).collect() };
        let mut replies = Vec::new();
        let result = worker.run(&work, &mut |reply| replies.push(reply));
        if let Ok(usage) = &result {
            assert!(usage.wall > 0.0 && usage.cpu >= 0.0 && usage.peak_memory > 0, "{usage:?}");
            for folder in folders {
                assert_eq!(fs_err::read_to_string(folder.join(self.file)).unwrap(), "done");
            }
        }
        (result.map(|_| ()), replies)
    }
}

fn note() -> Note {
    let (kind, params) = ("conformance".to_owned(), Json::Null);
    let recipe = Recipe { kind, version: 1, params, inputs: BTreeMap::new(), numerics: None, unit: None };
    Note { recipe, outputs: Vec::new(), sources: Vec::new(), spent: 0.0 }
}

/// Holds a backend to what a run relies on.
pub fn conformance(subject: &Subject<'_>) {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let cancel = Cancel::default();
    let mut worker = subject.worker(0, &cancel);

    let facts = worker.facts().clone();
    assert!(facts.protocol == VERSION && !facts.build.is_empty() && !facts.host.is_empty(), "{facts:?}");
    assert!(facts.memory > 0, "{facts:?}");
    assert_eq!(facts.device, subject.backend.device_class());
    assert_eq!(facts.libtorch.is_some(), subject.libtorch);

    let (result, replies) = subject.run(&mut *worker, &Act::Write, &[&at("one")]);
    result.unwrap();
    let progress =
        |reply: &Reply| matches!(reply, Reply::Progress { task: 0, done, total, .. } if done <= total);
    assert_eq!(replies.iter().any(progress), subject.progress, "{replies:?}");

    // Each task of a batch is finished once.
    let (result, replies) = subject.run(&mut *worker, &Act::Write, &[&at("two"), &at("three")]);
    result.unwrap();
    let finished = replies.iter().filter_map(|reply| match reply {
        Reply::Finished { tasks, .. } => Some(tasks.clone()),
        _ => None,
    });
    let mut finished = finished.flatten().collect::<Vec<_>>();
    finished.sort_unstable();
    assert_eq!(finished, [0, 1]);

    let (result, replies) = subject.run(&mut *worker, &Act::Log, &[&at("log")]);
    result.unwrap();
    let line = |reply: &Reply| matches!(reply, Reply::Log { message, .. } if message.contains("a line"));
    assert!(replies.iter().any(line), "{replies:?}");

    // A task that fails leaves the worker as it was.
    let (result, _) = subject.run(&mut *worker, &Act::Fail, &[&at("fails")]);
    assert!(matches!(&result, Err(TaskError::Failed(error)) if error.contains("no luck")), "{result:?}");
    subject.run(&mut *worker, &Act::Write, &[&at("after")]).0.unwrap();

    // One that dies is reported, and replaced.
    let (result, _) = subject.run(&mut *worker, &Act::Die, &[&at("dies")]);
    assert!(matches!(result, Err(TaskError::Died(_))), "{result:?}");
    drop(worker);
    subject.run(&mut *subject.worker(0, &cancel), &Act::Write, &[&at("replaced")]).0.unwrap();

    two_slots_work_at_once(subject, folder.path());
    a_kill_ends_what_was_started(subject, folder.path());
}

fn two_slots_work_at_once(subject: &Subject<'_>, folder: &Path) {
    let [left, right] = ["left", "right"].map(|name| folder.join(name));
    std::thread::scope(|scope| {
        for (slot, own, other) in [(0, &left, &right), (1, &right, &left)] {
            scope.spawn(move || {
                let mut worker = subject.worker(slot, &Cancel::default());
                let meet = Act::Meet(own.clone(), other.clone());
                let out = folder.join(format!("slot-{slot}"));
                subject.run(&mut *worker, &meet, &[&out]).0.unwrap();
            });
        }
    });
}

/// Of workers that have a process group; others have their own way to be ended.
fn a_kill_ends_what_was_started(subject: &Subject<'_>, folder: &Path) {
    let (cancel, id) = (Cancel::default(), folder.join("id"));
    let mut worker = subject.worker(0, &cancel);
    let Some(group) = worker.group() else { return };
    let begun = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !fs_err::read_to_string(&id).is_ok_and(|text| text.ends_with('\n')) {
                assert!(begun.elapsed() < SOON, "the task does not begin");
                std::thread::sleep(Duration::from_millis(5));
            }
            cancel.request(CancelMode::Kill);
        });
        let working = cancel.enter(Some(group));
        assert_eq!(cancel.working(), 1);
        let (result, _) = subject.run(&mut *worker, &Act::Hang(id.clone()), &[&folder.join("hangs")]);
        drop(working);
        assert!(matches!(result, Err(TaskError::Died(_))), "{result:?}");
    });
    let id = fs_err::read_to_string(&id).unwrap();
    let process = PathBuf::from(format!("/proc/{}", id.trim()));
    while process.exists() {
        assert!(begun.elapsed() < SOON, "the task still runs");
        std::thread::sleep(Duration::from_millis(5));
    }
    // A worker that is started after the kill is ended too, or not started at all.
    assert_eq!(cancel.mode(), Some(CancelMode::Kill));
}
