//! Stages that are programs of the user's own: what they get, what is taken, and that nothing of them outlives a run.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value as Json;
use tempfile::TempDir;

use crate::project::{Project, Ran, command, files};

/// A folder with one pipeline, `p.toml`.
struct Steps {
    folder: TempDir,
    /// As the system names it.
    root: PathBuf,
}

impl Steps {
    /// The shell runs the first stage.
    fn shell(script: &str, outputs: &str, more: &str) -> Self {
        Self::new(&format!(
            "[stages.step]\nkind = \"command\"\n[stages.step.params]\nargv = [\"sh\", \"-c\", '''{script}''']\n\
             outputs = {outputs}\n{more}"
        ))
    }

    fn new(pipeline: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = fs_err::canonicalize(folder.path()).unwrap();
        fs_err::write(root.join("p.toml"), pipeline).unwrap();
        Self { folder, root }
    }

    fn program(&self, arguments: &[&str]) -> Command {
        let mut program = command(Path::new(env!("CARGO_BIN_EXE_attrflow")), self.folder.path());
        program.args(["run", "p.toml", "--device", "cpu"]).args(arguments);
        program
    }

    fn run(&self, variables: &[(&str, &str)]) -> Ran {
        self.program(&["--json"]).envs(variables.iter().copied()).output().unwrap().into()
    }

    /// What the step's file holds after a run that must succeed.
    fn result(&self, variables: &[(&str, &str)], file: &str) -> String {
        let ran = self.run(variables);
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
        fs_err::read_to_string(self.root.join("results/p/step").join(file)).unwrap()
    }

    /// The error of the step, which must fail and leave nothing.
    fn error(&self) -> String {
        let ran = self.run(&[]);
        assert_eq!(ran.code, 1, "{ran:?}");
        let event = ran.json().into_iter().find(|line| line["event"] == "stage_failed").unwrap();
        assert_eq!(files(&self.root.join("cache/tmp")).into_keys().collect::<Vec<_>>(), ["gate"]);
        assert!(
            files(&self.root.join("cache/objects")).is_empty()
                && files(&self.root.join("results")).is_empty()
        );
        self.assert_quiet();
        event["error"].as_str().unwrap().to_owned()
    }

    /// Processes that work in the folder or below it.
    fn at_work(&self) -> Vec<(String, String)> {
        let processes = fs_err::read_dir("/proc").unwrap().flatten().map(|process| process.path());
        let here = |process: &PathBuf| {
            fs_err::read_link(process.join("cwd")).is_ok_and(|cwd| cwd.starts_with(&self.root))
        };
        let named = |process: PathBuf| {
            let name = fs_err::read_to_string(process.join("comm")).unwrap_or_default();
            (process.file_name().unwrap().to_str().unwrap().to_owned(), name.trim().to_owned())
        };
        processes.filter(here).map(named).collect()
    }

    /// Nothing works in the folder any more, or soon.
    fn assert_quiet(&self) {
        let begun = Instant::now();
        while !self.at_work().is_empty() {
            assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", self.at_work());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Starts a run, and waits until the step has written its `ready`.
    fn started(&self) -> Child {
        let child = self.program(&[]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let begun = Instant::now();
        while !files(&self.root.join("cache/tmp")).keys().any(|name| name.ends_with("/ready")) {
            assert!(begun.elapsed() < Duration::from_secs(20), "the step does not start");
            std::thread::sleep(Duration::from_millis(2));
        }
        child
    }
}

fn kill(signal: &str, process: &str) {
    assert!(Command::new("kill").args([signal, process]).status().unwrap().success());
}

/// Children of every sort: of the step's group, of a session of their own, and without a parent.
const FAMILY: &str =
    "sleep 300 & setsid sleep 300 & (setsid setsid sleep 300 &) ; sleep 0.2; echo > ready; wait; sleep 300";

#[test]
fn a_command_gets_declared_inputs_and_gives_declared_outputs() {
    let steps = Steps::new(
        r#"
[stages.first]
kind = "command"
params = { argv = ["sh", "-c", "mkdir d && echo in > d/f && echo a > a.txt && echo extra > extra"], outputs = { a = "a.txt", d = "d" } }

[stages.step]
kind = "command"
inputs = { "table.csv" = "first.a", d = "first.d", f = "first.d/f", script = "./script.sh" }

[stages.step.params]
argv = ["sh", "{input.script}", "{output.o}", "{input.table.csv}", "{input.d}", "{{{param.name}}}", "{param.list}"]
outputs = { o = "o.txt" }
values = { name = "x y", list = [1, 2.5, true], nested = { key = "v" } }
"#,
    );
    let script = "for word; do echo \"$word\"; done > \"$1\"\ncat inputs/table.csv inputs/d/f inputs/f >> \"$1\"\n\
                  echo \"$ATTRFLOW_PARAMS\" >> \"$1\"\nfind inputs/d/ -type f >> \"$1\"\n";
    fs_err::write(steps.root.join("script.sh"), script).unwrap();
    let expected = "o.txt\ninputs/table.csv\ninputs/d/\n{x y}\n[1,2.5,true]\na\nin\nin\n\
                    {\"list\":[1,2.5,true],\"name\":\"x y\",\"nested\":{\"key\":\"v\"}}\ninputs/d/f\n";
    assert_eq!(steps.result(&[], "o.txt"), expected);
    let shown = files(&steps.root.join("results/p")).into_keys().filter(|name| !name.starts_with('.'));
    assert_eq!(shown.collect::<Vec<_>>(), ["first/a.txt", "first/d/f", "step/o.txt"]);
    assert_eq!(steps.run(&[]).reused(), ["first", "step"]);
    // The script counts by its bytes.
    fs_err::write(steps.root.join("script.sh"), format!("{script}echo more >> \"$1\"\n")).unwrap();
    let ran = steps.run(&[]);
    assert_eq!((ran.computed(), ran.reused()), (vec!["step".to_owned()], vec!["first".to_owned()]));
}

#[test]
fn the_environment_holds_only_declared_variables() {
    let steps = Steps::shell(
        "env > o; test -d \"$TMPDIR\" && echo x > \"$TMPDIR/scratch\"",
        "{ o = \"o\" }",
        "env = [\"PASSED\", \"ABSENT\"]\nenv_counted = [\"COUNTED\", \"UNSET\"]\n",
    );
    let variables = |passed, counted| [("PASSED", passed), ("COUNTED", counted), ("SECRET", "s")];
    let text = steps.result(&variables("1", "1"), "o");
    let mut names: Vec<&str> = text.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
    // The shell's own.
    names.retain(|name| !["PWD", "OLDPWD", "SHLVL", "_"].contains(name));
    names.sort_unstable();
    assert_eq!(names, ["ATTRFLOW_PARAMS", "COUNTED", "HOME", "LANG", "PASSED", "PATH", "TMPDIR"]);
    assert!(text.contains("\nCOUNTED=1\n") || text.starts_with("COUNTED=1\n"), "{text}");
    // Neither a variable that is passed on counts, nor one that is not.
    assert_eq!(steps.run(&[("PASSED", "2"), ("COUNTED", "1"), ("SECRET", "t")]).reused(), ["step"]);
    let ran = steps.run(&variables("1", "2"));
    let started = ran.json().into_iter().find(|line| line["event"] == "stage_started").unwrap();
    assert_eq!(
        started["reason"]["changes"],
        serde_json::json!([{ "field": "params.env_counted.COUNTED", "old": "\"1\"", "new": "\"2\"" }])
    );
    // Back to the old value, and one that is not set.
    assert_eq!(steps.run(&variables("1", "1")).reused(), ["step"]);
    assert_eq!(steps.run(&[("PASSED", "1")]).computed(), ["step"]);
    assert_eq!(steps.run(&[("COUNTED", "1"), ("UNSET", "")]).computed(), ["step"]);
    // What is not to count is kept nowhere.
    let manifests = files(&steps.root.join("cache/runs")).into_values();
    assert!(manifests.into_iter().all(|path| !fs_err::read_to_string(path).unwrap().contains("SECRET")));
}

#[test]
fn a_failed_command_shows_its_status_and_last_output() {
    let steps = Steps::shell("echo out; echo err >&2; echo x > o; exit 3", "{ o = \"o\" }", "");
    assert_eq!(steps.error(), "`sh` ended with exit status: 3; last lines of its output:\n  out\n  err");
    let steps = Steps::shell("for i in $(seq 50); do echo $i; done; kill -9 $$", "{ o = \"o\" }", "");
    let error = steps.error();
    assert!(
        error.starts_with("`sh` ended with signal: 9 (SIGKILL); last lines of its output:\n  31\n"),
        "{error}"
    );
    assert!(error.ends_with("\n  50"), "{error}");
    let steps = Steps::shell("printf '1/2\\r2/2\\n\\377\\n' >&2; false", "{ o = \"o\" }", "");
    assert_eq!(steps.error(), "`sh` ended with exit status: 1; last lines of its output:\n  2/2\n  \u{fffd}");
    let steps = Steps::shell("exit 1", "{ o = \"o\" }", "");
    assert_eq!(steps.error(), "`sh` ended with exit status: 1; no output");
}

#[test]
fn a_command_that_cannot_start() {
    let step = |argv: &str, more: &str| {
        let params = format!("params = {{ argv = {argv}, outputs = {{ o = \"o\" }} }}");
        Steps::new(&format!("[stages.step]\nkind = \"command\"\n{more}\n{params}\n"))
    };
    assert_eq!(step("[\"no-such-program\"]", "").error(), "program `no-such-program` not found on the PATH");
    let steps = step("[\"{input.script}\"]", "inputs = { script = \"./script\" }");
    fs_err::write(steps.root.join("script"), "echo x > o\n").unwrap();
    let error = steps.error();
    assert!(error.starts_with("cannot start `"), "{error}");
    assert!(error.ends_with("inputs/script`: Permission denied (os error 13)"), "{error}");
}

#[test]
fn outputs_that_are_missing_or_lead_elsewhere_are_refused() {
    let error = |script: &str, outputs: &str| Steps::shell(script, outputs, "").error();
    assert_eq!(
        error("echo x > o; echo y > b.csv", "{ table = \"a.csv\", o = \"o\", z = \"z\" }"),
        "`sh`: invalid outputs: missing `a.csv` (output `table`), `z` (output `z`); its folder contains b.csv, o"
    );
    assert_eq!(
        error("true", "{ o = \"o\" }"),
        "`sh`: invalid outputs: missing `o` (output `o`); its folder contains nothing"
    );
    let refused = "an output consists of files and folders";
    assert_eq!(
        error("ln -s /etc/passwd o", "{ o = \"o\" }"),
        format!("`sh`: invalid outputs: `o` is a symbolic link: {refused}")
    );
    assert_eq!(
        error("mkdir -p o/deep; mkfifo o/deep/pipe", "{ o = \"o\" }"),
        format!("`sh`: invalid outputs: `o/deep/pipe` is neither a file nor a folder: {refused}")
    );
}

/// Or the cache would share bytes with a file that somebody may change, and make it read-only.
#[test]
fn a_second_name_of_an_input_becomes_a_file_of_its_own() {
    let steps = Steps::new(
        r#"
[stages.step]
kind = "command"
inputs = { data = "./data.txt" }
params = { argv = ["ln", "-L", "{input.data}", "o"], outputs = { o = "o" } }
"#,
    );
    let data = steps.root.join("data.txt");
    fs_err::write(&data, "one\n").unwrap();
    let writable = fs_err::metadata(&data).unwrap().permissions();
    assert_eq!(steps.result(&[], "o"), "one\n");
    assert_eq!(fs_err::metadata(&data).unwrap().permissions(), writable);
    fs_err::write(&data, "two\n").unwrap();
    let results = steps.root.join("results/p/step/o");
    assert_eq!(fs_err::read_to_string(results).unwrap(), "one\n");
}

#[test]
fn the_output_of_a_command_is_logged() {
    let steps = Steps::shell("echo one; echo two >&2; echo x > o", "{ o = \"o\" }", "");
    let ran: Ran = steps.program(&["--json", "-v"]).output().unwrap().into();
    let log: Vec<Json> = ran.json().into_iter().filter(|line| line["event"] == "log").collect();
    let said = |line: &Json| {
        (line["level"].as_str().unwrap().to_owned(), line["message"].as_str().unwrap().to_owned())
    };
    let info = |text: &str| ("INFO".to_owned(), text.to_owned());
    assert_eq!(log.iter().map(said).collect::<Vec<_>>(), [info("one"), info("two")]);
}

#[test]
fn processes_left_by_a_command_end_with_it() {
    // They hold the step's output open, which must not be waited for.
    let begun = Instant::now();
    let family = "sleep 300 & setsid sleep 300 & (setsid setsid sleep 300 &) ; sleep 0.2; echo x > o";
    let steps = Steps::shell(family, "{ o = \"o\" }", "");
    assert_eq!(steps.result(&[], "o"), "x\n");
    assert!(begun.elapsed() < Duration::from_secs(100));
    steps.assert_quiet();
    // A step that fails is no exception.
    let steps = Steps::shell("setsid sleep 300 & sleep 0.1; exit 1", "{ o = \"o\" }", "");
    steps.error();
    // One that closes its output is waited for all the same.
    let steps = Steps::shell("exec > /dev/null 2>&1; sleep 0.3; echo x > o", "{ o = \"o\" }", "");
    assert_eq!(steps.result(&[], "o"), "x\n");
}

#[test]
fn no_process_of_a_command_outlives_a_killed_run() {
    // One interrupt lets the step end by itself.
    for signals in [&["-KILL"][..], &["-TERM"], &["-HUP"], &["-INT", "-INT"], &["-QUIT"]] {
        let steps = Steps::shell(&format!("{FAMILY}; echo x > o"), "{ o = \"o\" }", "");
        let mut run = steps.started();
        assert!(
            steps.at_work().iter().filter(|(_, name)| name == "sleep").count() >= 3,
            "{:?}",
            steps.at_work()
        );
        for signal in signals {
            kill(signal, &run.id().to_string());
            std::thread::sleep(Duration::from_millis(200));
        }
        run.wait().unwrap();
        steps.assert_quiet();
        assert!(files(&steps.root.join("cache/objects")).is_empty());
    }
}

/// As a terminal does that is closed, or a job's manager: the worker is no part of the group.
#[test]
fn no_process_of_a_command_outlives_a_killed_process_group() {
    use std::os::unix::process::CommandExt;
    let steps = Steps::shell(FAMILY, "{ o = \"o\" }", "");
    let mut run =
        steps.program(&[]).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0).spawn().unwrap();
    while !files(&steps.root.join("cache/tmp")).keys().any(|name| name.ends_with("/ready")) {
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(
        Command::new("kill").args(["-KILL", "--", &format!("-{}", run.id())]).status().unwrap().success()
    );
    run.wait().unwrap();
    steps.assert_quiet();
}

#[test]
fn a_killed_worker_ends_its_command() {
    let steps = Steps::shell("echo > ready; sleep 300", "{ o = \"o\" }", "");
    let run = steps.started();
    let runner = run.id().to_string();
    let all = steps.at_work();
    let worker = all.iter().find(|(id, name)| name == "attrflow" && *id != runner).unwrap();
    kill("-KILL", &worker.0);
    let ran = Ran::from(run.wait_with_output().unwrap());
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(
        ran.err.contains("the worker process ended in the middle of the task (signal: 9 (SIGKILL): out of memory is the usual reason)"),
        "{ran:?}"
    );
    steps.assert_quiet();
}

/// As a worker ends that is asked to while it can still do something.
#[test]
fn a_terminated_worker_ends_its_command() {
    let steps = Steps::shell(FAMILY, "{ o = \"o\" }", "");
    let run = steps.started();
    let runner = run.id().to_string();
    let all = steps.at_work();
    kill("-TERM", &all.iter().find(|(id, name)| name == "attrflow" && *id != runner).unwrap().0);
    assert_eq!(Ran::from(run.wait_with_output().unwrap()).code, 1);
    steps.assert_quiet();
}

/// The example, on a small data set: both sorts of workers in one run, and the user's own step behind the model's.
#[test]
fn the_example_runs_on_what_the_demo_computed() {
    let project = Project::finished();
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines");
    fs_err::create_dir_all(project.path("pipelines/steps")).unwrap();
    for file in ["custom.toml", "steps/least_known.py"] {
        fs_err::copy(own.join(file), project.path("pipelines").join(file)).unwrap();
    }
    let run = |force: &[&str]| {
        let ran = project.attrflow([&["run", "pipelines/custom.toml", "--json"], force].concat());
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
        ran
    };
    let ran = run(&[]);
    assert_eq!(ran.computed(), ["least_known", "words"]);
    assert_eq!(ran.reused(), ["data", "latents", "pretrain_loss"]);
    let table = fs_err::read_to_string(project.path("results/custom/least_known/least_known.csv")).unwrap();
    let losses: Vec<f64> =
        table.lines().skip(1).map(|line| line.split(',').nth(3).unwrap().parse().unwrap()).collect();
    assert_eq!(losses.len(), 6);
    assert!(losses.is_sorted_by(|a, b| a >= b) && losses.iter().all(|loss| *loss > 0.0), "{losses:?}");
    let words = fs_err::read_to_string(project.path("results/custom/words/words.txt")).unwrap();
    assert!(words.lines().count() > 6 && words.contains("face"), "{words}");
    let ran = run(&["--force", "pretrain_loss", "--force", "least_known", "--force", "words"]);
    assert_eq!(ran.computed(), ["least_known", "pretrain_loss", "words"]);
}
