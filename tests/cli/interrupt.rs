//! Runs that are stopped by signals, and runs that wait for one that hangs, with real processes.

use std::io::{BufRead, BufReader, Lines, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use attrflow_engine::provenance::manifest::{self, Outcome};
use serde_json::Value as Json;

use crate::index_entries::index;
use crate::kill::{IMAGES, at_work, finish, locks, undisturbed, wait_for_orphans};
use crate::project::{Project, command};

/// A run in a process group of its own, as a shell starts it, and its events.
struct Running {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    seen: Vec<Json>,
}

impl Running {
    fn start(project: &Project, arguments: &[&str]) -> Self {
        let mut run = command(Path::new(env!("CARGO_BIN_EXE_attrflow")), &project.root);
        run.args(["run", "pipelines/demo.toml", "--json"]).args(arguments).process_group(0);
        let mut child = run.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines, seen: Vec::new() }
    }

    /// Reads events up to one of this name; the number of it within the run is `nth`.
    fn until(&mut self, event: &str, nth: usize) {
        while self.named(event).count() < nth {
            let line = self.lines.next().unwrap_or_else(|| panic!("no {event}: {:#?}", self.seen)).unwrap();
            self.seen.push(serde_json::from_str(&line).unwrap());
        }
    }

    fn named<'a>(&'a self, event: &'a str) -> impl Iterator<Item = &'a Json> + 'a {
        self.seen.iter().filter(move |line| line["event"] == event)
    }

    /// Sends a signal to the whole group, as a terminal does.
    fn signal(&self, signal: &str) {
        assert!(kill(signal, &format!("-{}", self.child.id())));
    }

    /// The exit code and standard error.
    fn end(&mut self) -> (Option<i32>, String) {
        let rest = self.lines.by_ref().map(|line| serde_json::from_str(&line.unwrap()).unwrap());
        self.seen.extend(rest);
        let mut error = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut error).unwrap();
        (self.child.wait().unwrap().code(), error)
    }
}

fn kill(signal: &str, whom: &str) -> bool {
    Command::new("kill").args([&format!("-{signal}"), "--", whom]).status().unwrap().success()
}

const AGAIN: &str = "interrupted; the same command resumes the run\n";

#[test]
fn an_interrupt_finishes_running_units_and_starts_no_other() {
    let undisturbed = undisturbed();
    let project = Project::new(IMAGES);
    for begun in [1, 3, 6] {
        let mut run = Running::start(&project, &[]);
        run.until("unit_started", begun);
        run.signal("INT");
        assert_eq!(run.end(), (Some(130), AGAIN.into()));
        let stopping: Vec<&Json> = run.named("stopping").collect();
        assert_eq!((stopping.len(), &stopping[0]["now"]), (1, &Json::Bool(false)));
        // What had begun is done: pieces of stages, and stages of one piece or joined.
        let (begun, units) = (run.named("unit_started").count(), run.named("unit_finished").count());
        let (done, failed) = (run.named("stage_finished").count(), run.named("stage_failed").count());
        assert_eq!((begun, failed), (units + done, 0), "{:#?}", run.seen);
        let runs = manifest::list(&project.path("cache/runs/demo"));
        let stages = manifest::read(&runs[0]).unwrap().stages;
        let interrupted = stages.iter().filter(|record| record.outcome == Outcome::Interrupted).count();
        assert!(interrupted >= 4 && stages.len() == 12, "{interrupted} interrupted");
        assert_eq!(run.named("run_finished").next().unwrap()["interrupted"], interrupted);
        assert_eq!(project.cached("tmp"), ["gate"]);
        assert_eq!(at_work(&project), [""; 0].map(std::path::PathBuf::from));
    }
    finish(&project, &undisturbed);
}

#[test]
fn a_second_interrupt_or_a_termination_ends_a_long_task_now() {
    let project = Project::finished();
    let before = index(&project);
    // Minutes of computing, in one task.
    let long = ["--set", "unlearn.grad_accum_steps=5000"];
    for (signals, code) in [(&["INT", "INT"][..], 130), (&["TERM"], 143), (&["HUP"], 129)] {
        let mut run = Running::start(&project, &long);
        run.until("progress", 1);
        for (nth, signal) in signals.iter().enumerate() {
            run.signal(signal);
            run.until("stopping", nth + 1);
        }
        let begun = Instant::now();
        assert_eq!(run.end(), (Some(code), AGAIN.into()), "{signals:?}");
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
        let stopping = run.named("stopping").last().unwrap();
        assert_eq!(stopping["now"], true);
        assert_eq!(run.named("stage_failed").count(), 0, "what was killed did not fail");
        let last = run.seen.last().unwrap();
        assert_eq!((&last["event"], &last["interrupted"]), (&"run_finished".into(), &6.into()));
        wait_for_orphans(&project);
        assert_eq!(index(&project), before, "{signals:?}: something half-done was kept");
        assert_eq!(project.cached("tmp"), ["gate"]);
    }
    assert_eq!(project.run(&[]).computed(), [""; 0]);
}

#[test]
fn an_interrupt_is_reported_on_the_terminal() {
    let project = Project::finished();
    let mut run = command(Path::new(env!("CARGO_BIN_EXE_attrflow")), &project.root);
    run.args(["run", "pipelines/demo.toml", "--set", "unlearn.grad_accum_steps=5000", "-vv"])
        .process_group(0);
    let mut child = run.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let group = format!("-{}", child.id());
    assert!(lines.any(|line| line.contains("start unlearn[grin]")));
    std::thread::sleep(Duration::from_millis(300));
    assert!(kill("INT", &group));
    let said = lines.find(|line| line.starts_with("stopping")).unwrap();
    let expected = "first; interrupt again to stop now and lose ";
    assert!(said.starts_with("stopping: finishing ") && said.contains(expected), "{said}");
    assert!(kill("INT", &group));
    let rest: Vec<String> = lines.filter(|line| !line.contains("DEBUG")).collect();
    assert_eq!(rest, ["stopping now", AGAIN.trim_end()]);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let mut out = String::new();
    child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    assert!(out.contains("0 ran, 6 cached, 6 interrupted in "), "{out}");
}

#[test]
fn a_hanging_run_blocks_only_its_unit_until_it_ends() {
    let project = Project::finished();
    let set = ["--set", "loss.time_samples=4", "--jobs", "1"];
    let mut first = Running::start(&project, &set);
    first.until("unit_started", 1);
    // Stopped, with its locks held.
    first.signal("STOP");
    for process in at_work(&project) {
        kill("STOP", &process.file_name().unwrap().to_string_lossy());
    }
    let held = locks(&project);
    if held == 0 {
        // It was between two units.
        first.signal("CONT");
    }
    // Who only reads does not wait.
    for verb in ["plan", "status"] {
        let ran = project.attrflow([&[verb, "pipelines/demo.toml"], &set[..2]].concat());
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    }
    // Nor does a run of something else.
    assert_eq!(
        project.run(&["--set", "generate.steps=3", "--target", "generate[grin]"]).computed(),
        ["generate[grin]"]
    );

    let mut second = Running::start(&project, &set);
    if held > 0 {
        second.until("log", 1);
        let waiting = second.named("log").next().unwrap()["message"].as_str().unwrap();
        assert!(waiting.starts_with("waiting for another run that computes `pretrain_loss`"), "{waiting}");
        // Long enough for it to ask many times.
        std::thread::sleep(Duration::from_millis(500));
    }
    let orphans = at_work(&project);
    assert!(kill("KILL", &first.child.id().to_string()));
    first.child.wait().unwrap();
    let (code, error) = second.end();
    assert_eq!((code, error.as_str()), (Some(0), ""), "{:#?}", second.seen);
    let waits = second.named("log").filter(|line| line["level"] == "INFO");
    assert!(waits.count() <= 1, "{:#?}", second.seen);
    // The orphan of the dead run wakes when all is built, and ends.
    let before = project.results();
    for process in orphans {
        kill("CONT", &process.file_name().unwrap().to_string_lossy());
    }
    wait_for_orphans(&project);
    assert_eq!(project.results(), before);
    assert_eq!(project.run(&set).computed(), [""; 0]);
    // A run that has something to write sweeps what the dead one left.
    project.run(&["--force", "generate[grin]", "--target", "generate[grin]"]);
    assert_eq!(project.cached("tmp"), ["gate"]);

    let undisturbed = Project::finished();
    undisturbed.run(&set);
    assert_eq!(project.results(), undisturbed.results());
}
