//! What may happen to a run on a cluster: it ends with the right bytes, and computes nothing twice that was finished.

use rustix::process::Signal;

use crate::index_entries::{index, units};
use crate::lab::{Lab, hellos, miniature, newest_run, shell, wait};
use crate::project::Project;

pub const RUN: [&str; 2] = ["run", "pipelines/demo.toml"];
pub const SHELL: [&str; 2] = ["run", "pipelines/shell.toml"];
const THREE: &str = "\n[cluster.pools.cpu]\nworkers = 3\n";
/// Workers for shell commands.
pub const COMMANDS: &str = "\n[cluster.pools.shell]\nworkers = 3\nkinds = [\"command\"]\n";

/// The same project computed on this machine, by one thread as the workers are.
pub fn undisturbed(images: usize) -> Project {
    let project = Project::new(images);
    project.run(&[]);
    project
}

/// How often each number was computed: the lines of a file that every command appends to.
pub fn computed(project: &Project) -> Vec<usize> {
    let text = fs_err::read_to_string(project.path("ran")).unwrap_or_default();
    let mut counts =
        vec![0; 1 + text.lines().filter_map(|line| line.parse::<usize>().ok()).max().unwrap_or(0)];
    text.lines().filter_map(|line| line.parse::<usize>().ok()).for_each(|number| counts[number] += 1);
    counts
}

/// A line of shell that takes so long, and leaves a mark in `ran` when it is done.
fn takes(project_root: &str, seconds: f64) -> String {
    format!("sleep {seconds}; echo {{param.N}} >> {project_root}/ran; echo result {{param.N}} > out")
}

/// A project of shell commands, whose marks are in its own folder.
pub fn commands(stages: usize, seconds: f64, pools: &str) -> Project {
    let project = shell(stages, "true", pools);
    let line = takes(&project.root.display().to_string(), seconds);
    let text = fs_err::read_to_string(project.path("pipelines/shell.toml")).unwrap();
    project.write("pipelines/shell.toml", text.replace("\"true\"", &format!("{line:?}")));
    project
}

/// All results of a project of shell commands are right.
pub fn results_are_right(project: &Project, stages: usize) {
    for n in 0..stages {
        let out = project.path(format!("results/shell/say/n{n}/out"));
        assert_eq!(fs_err::read_to_string(out).unwrap(), format!("result {n}\n"));
    }
}

pub fn no_task_is_left(lab: &Lab) {
    wait(30, "no task is left", || lab.tasks().is_empty());
}

#[test]
fn the_demo_gives_the_bytes_of_a_local_run() {
    let Some(lab) = Lab::up(&[]) else { return };
    let (project, local) = (miniature(6, THREE), undisturbed(6));
    lab.attrflow(&project, &RUN).well();
    assert_eq!(project.results(), local.results());
    assert!(index(&project).keys().eq(index(&local).keys()));
    let nodes: std::collections::BTreeSet<String> =
        hellos(&project).iter().map(|hello| hello["node"].as_str().unwrap().to_owned()).collect();
    assert!(!nodes.is_empty() && nodes.iter().all(|node| node.starts_with("node")), "{nodes:?}");
    no_task_is_left(&lab);
    // The second run submits nothing.
    let runs = || fs_err::read_dir(project.path("cache/cluster")).unwrap().count();
    let before = runs();
    let again = lab.attrflow(&project, &RUN).well();
    assert!(again.text.contains("0 ran") && runs() == before, "{}", again.text);
}

#[test]
fn a_worker_that_is_killed_is_replaced() {
    let Some(lab) = Lab::up(&[]) else { return };
    let project = commands(12, 0.5, COMMANDS);
    let run = lab.start(&project, &SHELL);
    wait(30, "some are done", || computed(&project).len() > 1);
    let worker = workers(&project)[0];
    rustix::process::kill_process(worker, Signal::KILL).unwrap();
    let said = run.end().well();
    assert!(said.text.contains("a worker was lost"), "{}", said.text);
    results_are_right(&project, 12);
    let computed = computed(&project);
    assert!(computed.iter().sum::<usize>() <= 13, "{computed:?}");
    no_task_is_left(&lab);
}

/// The processes whose command line has all of these words.
pub fn processes(words: &[&str]) -> Vec<rustix::process::Pid> {
    let processes = fs_err::read_dir("/proc").unwrap().flatten().filter_map(|process| {
        let line = fs_err::read_to_string(process.path().join("cmdline")).ok()?;
        let id = process.file_name().to_str()?.parse().ok()?;
        words.iter().all(|word| line.contains(word)).then_some(id)
    });
    processes.filter_map(rustix::process::Pid::from_raw).collect()
}

/// The processes of a project's workers.
fn workers(project: &Project) -> Vec<rustix::process::Pid> {
    processes(&["--cluster-worker", &newest_run(project).display().to_string()])
}

/// The node of a worker.
fn busy_node(lab: &Lab) -> String {
    let mut node = None;
    wait(30, "a task runs", || {
        let running =
            lab.tasks().into_iter().find_map(|task| Some(task.strip_prefix("RUNNING ")?.to_owned()));
        node = running;
        node.is_some()
    });
    node.unwrap()
}

#[test]
fn a_node_that_is_taken_away_is_done_without() {
    let Some(lab) = Lab::up(&[]) else { return };
    let project = commands(30, 0.5, COMMANDS);
    let run = lab.start(&project, &SHELL);
    wait(30, "some are done", || computed(&project).len() > 1);
    let node = busy_node(&lab);
    lab.does(&["down-node", &node]);
    run.end().well();
    results_are_right(&project, 30);
    let computed = computed(&project);
    assert!(computed.iter().sum::<usize>() <= 32, "{computed:?}");
    no_task_is_left(&lab);
}

#[test]
fn two_attempts_at_one_task_give_one_result() {
    let Some(lab) = Lab::up(&[]) else { return };
    let project = commands(60, 0.5, COMMANDS);
    let run = lab.start(&project, &SHELL);
    wait(30, "some are done", || computed(&project).len() > 1);
    // The daemon of the node ends, as in a partition; the worker there goes on.
    let node = busy_node(&lab);
    lab.does(&["kill-node", &node]);
    run.end().well();
    results_are_right(&project, 60);
    lab.does(&["start-node", &node]);
    no_task_is_left(&lab);
}

#[test]
fn a_run_that_is_killed_leaves_its_workers_to_the_next() {
    let Some(lab) = Lab::up(&[]) else { return };
    let project = commands(24, 0.5, COMMANDS);
    let mut run = lab.start(&project, &SHELL);
    wait(30, "some are done", || computed(&project).len() > 3);
    run.child.kill().unwrap();
    run.child.wait().unwrap();
    // What the workers had in hand, they finish.
    std::thread::sleep(std::time::Duration::from_secs(2));
    lab.attrflow(&project, &SHELL).well();
    results_are_right(&project, 24);
    let again = computed(&project).into_iter().filter(|count| *count > 1).count();
    assert_eq!(again, 0, "finished commands ran again");
    assert_eq!(
        fs_err::read_dir(project.path("cache/cluster")).unwrap().count(),
        1,
        "the next run took the folder over"
    );
    no_task_is_left(&lab);
}

/// The next run begins at once, while the workers still have commands in hand.
#[test]
fn what_workers_have_in_hand_at_a_takeover_is_computed_once() {
    let Some(lab) = Lab::up(&[]) else { return };
    let project = commands(12, 3.0, COMMANDS);
    let mut run = lab.start(&project, &SHELL);
    wait(30, "all are busy", || {
        processes(&["sh\0-c\0sleep 3", &project.root.display().to_string()]).len() > 2
    });
    run.child.kill().unwrap();
    run.child.wait().unwrap();
    let said = lab.attrflow(&project, &SHELL).well();
    results_are_right(&project, 12);
    assert!(computed(&project).iter().all(|count| *count == 1), "{:?}: {}", computed(&project), said.text);
    assert!(said.text.contains("in hand"), "{}", said.text);
    no_task_is_left(&lab);
}

#[test]
fn an_absent_controller_is_waited_for() {
    let Some(lab) = Lab::up(&[]) else { return };
    let project = commands(40, 0.5, COMMANDS);
    let mut run = lab.start(&project, &SHELL);
    wait(30, "some are done", || computed(&project).len() > 1);
    lab.does(&["stop-controller"]);
    run.until_it_says("the scheduler does not answer");
    let before = computed(&project).iter().sum::<usize>();
    wait(20, "work goes on", || computed(&project).iter().sum::<usize>() > before);
    lab.does(&["start-controller"]);
    run.end().well();
    results_are_right(&project, 40);
    assert_eq!(computed(&project).into_iter().max(), Some(1));
    no_task_is_left(&lab);
}

#[test]
fn a_job_that_slurm_forgot_is_no_success() {
    let Some(lab) = Lab::up(&[("MINJOBAGE", "2")]) else { return };
    let project = commands(12, 1.0, "\n[cluster.pools.shell]\nworkers = 1\nkinds = [\"command\"]\n");
    let run = lab.start(&project, &SHELL);
    wait(30, "some are done", || computed(&project).len() > 1);
    // The controller is away while the job ends, and forgets it soon after.
    rustix::process::kill_process(workers(&project)[0], Signal::KILL).unwrap();
    run.end().well();
    results_are_right(&project, 12);
    no_task_is_left(&lab);
}

#[test]
fn what_sbatch_refuses_is_said_in_its_words() {
    let Some(lab) = Lab::up(&[]) else { return };
    let pool = "\n[cluster.pools.shell]\nkinds = [\"command\"]\nslurm = { partition = \"nowhere\" }\n";
    let said = lab.attrflow(&commands(3, 0.1, pool), &SHELL);
    assert_eq!(said.code, Some(1), "{}", said.text);
    assert!(said.text.contains("invalid partition specified: nowhere"), "{}", said.text);
    let pool = "\n[cluster.pools.shell]\nkinds = [\"command\"]\nsetup = [\"echo no module here; exit 3\"]\n";
    let said = lab.attrflow(&commands(3, 0.1, pool), &SHELL);
    assert_eq!(said.code, Some(1), "{}", said.text);
    assert!(said.text.contains("no module here"), "{}", said.text);
    no_task_is_left(&lab);
}

#[test]
fn one_interrupt_finishes_what_runs_and_two_end_it() {
    let Some(lab) = Lab::up(&[]) else { return };
    for interrupts in [1, 2] {
        let project = commands(60, 1.0, COMMANDS);
        let mut run = lab.start(&project, &SHELL);
        wait(30, "some are done", || computed(&project).len() > 1);
        run.signal(Signal::INT);
        run.until_it_says("stopping");
        if interrupts == 2 {
            run.signal(Signal::INT);
        }
        let said = run.end();
        assert_eq!(said.code, Some(130), "{}", said.text);
        no_task_is_left(&lab);
        // A command that the second interrupt ends may have left its mark already: three workers, three commands.
        let (kept, done) = (index(&project).len(), computed(&project).iter().sum::<usize>());
        let unkept = if interrupts == 1 { 0 } else { 3 };
        assert!(done < 50 && (kept..=kept + unkept).contains(&done), "{interrupts}: {kept} of {done}");
        // What was finished is kept.
        lab.attrflow(&project, &SHELL).well();
        results_are_right(&project, 60);
        let again = computed(&project).iter().sum::<usize>() - 60;
        assert_eq!(again, done - kept, "after {interrupts}: {kept} of {done} were kept");
    }
}

#[test]
fn a_thousand_small_stages_take_one_submission() {
    let Some(lab) = Lab::up(&[]) else { return };
    let pool = "\n[cluster.pools.shell]\nworkers = 6\nkinds = [\"command\"]\n";
    let project = commands(1000, 0.01, pool);
    let said = lab.attrflow(&project, &SHELL).well();
    results_are_right(&project, 1000);
    assert_eq!(computed(&project).into_iter().max(), Some(1));
    let last = lab.ask("scontrol", &["show", "job", "-o"]);
    let arrays: std::collections::BTreeSet<&str> =
        last.split_whitespace().filter(|word| word.starts_with("ArrayJobId=")).collect();
    assert_eq!(arrays.len(), 1, "{arrays:?}");
    println!("{:.1} s for 1,000 stages", said.seconds);
}

#[test]
fn two_runs_in_one_cache_compute_each_unit_once() {
    let Some(lab) = Lab::up(&[]) else { return };
    let project = commands(30, 0.3, COMMANDS);
    let runs = [lab.start(&project, &SHELL), lab.start(&project, &SHELL)];
    wait(30, "some are done", || computed(&project).len() > 1);
    let gc = lab.attrflow(&project, &["cache", "gc", "--yes"]);
    assert_ne!(gc.code, Some(0), "{}", gc.text);
    for run in runs {
        run.end().well();
    }
    results_are_right(&project, 30);
    assert_eq!(computed(&project).into_iter().max(), Some(1));
    no_task_is_left(&lab);
}

#[test]
fn a_unit_that_kills_its_worker_fails_alone() {
    let Some(lab) = Lab::up(&[]) else { return };
    let project = commands(6, 0.2, COMMANDS);
    let text = fs_err::read_to_string(project.path("pipelines/shell.toml")).unwrap();
    let deadly = "if [ {param.N} = 3 ]; then kill -9 $(cat /proc/$PPID/status | sed -n 's/^PPid:[^0-9]*//p'); sleep 60; fi; ";
    project.write("pipelines/shell.toml", text.replacen("sleep 0.2; ", &format!("{deadly}sleep 0.2; "), 1));
    let said = lab.attrflow(&project, &SHELL);
    assert_eq!(said.code, Some(1), "{}", said.text);
    assert!(
        said.text.contains("stage `say[n3]`") && said.text.contains("the worker was lost"),
        "{}",
        said.text
    );
    for n in [0, 1, 2, 4, 5] {
        assert!(project.path(format!("results/shell/say/n{n}/out")).exists(), "{n}: {}", said.text);
    }
    no_task_is_left(&lab);
}

#[test]
fn a_task_that_slurm_starts_again_costs_no_failure() {
    let Some(lab) = Lab::up(&[]) else { return };
    let project = commands(12, 1.0, COMMANDS);
    let run = lab.start(&project, &SHELL);
    wait(30, "some are done", || computed(&project).len() > 1);
    let running = lab.ask("squeue", &["-h", "-r", "-t", "RUNNING", "-o", "%A"]);
    for job in running.lines().take(2) {
        lab.ask("scontrol", &["requeue", job]);
    }
    run.end().well();
    results_are_right(&project, 12);
    no_task_is_left(&lab);
}

/// Slurm signals the processes of a job one after the other: a command may end before its worker knows why.
#[test]
fn a_command_that_slurm_ends_before_its_worker_is_no_failure() {
    let Some(lab) = Lab::up(&[]) else { return };
    let project = commands(8, 2.0, COMMANDS);
    let run = lab.start(&project, &SHELL);
    let commands = || processes(&["sh\0-c\0sleep 2", &project.root.display().to_string()]);
    wait(30, "a command runs", || !commands().is_empty());
    let workers = workers(&project);
    let signal = |process| rustix::process::kill_process(process, Signal::TERM);
    commands().into_iter().for_each(|command| signal(command).unwrap());
    std::thread::sleep(std::time::Duration::from_millis(300));
    workers.into_iter().for_each(|worker| signal(worker).unwrap());
    run.end().well();
    results_are_right(&project, 8);
    no_task_is_left(&lab);
}

#[test]
fn a_run_that_is_cancelled_from_elsewhere_is_resumed_by_the_same_command() {
    let Some(lab) = Lab::up(&[]) else { return };
    // So long a poll that work and its end are read together.
    let project = commands(40, 0.3, COMMANDS);
    let config = fs_err::read_to_string(project.path("configs/shell.toml")).unwrap();
    project.write("configs/shell.toml", config.replace("poll = 0.1", "poll = 3"));
    let mut run = lab.start(&project, &SHELL);
    wait(30, "some are done", || computed(&project).len() > 1);
    lab.attrflow(&project, &["cancel"]).well();
    run.until_it_says("asks this run to end");
    let said = run.end();
    assert_eq!(said.code, Some(143), "{}", said.text);
    no_task_is_left(&lab);
    // What was asked of the one run is not asked of the next.
    lab.attrflow(&project, &SHELL).well();
    results_are_right(&project, 40);
    assert_eq!(computed(&project).into_iter().max(), Some(1));
}

#[test]
#[ignore = "three minutes: Slurm's time limits are in minutes"]
fn workers_that_reach_their_time_limit_are_replaced() {
    let Some(lab) = Lab::up(&[]) else { return };
    let pool = "\n[cluster.pools.shell]\nworkers = 2\ntime = \"1\"\nkinds = [\"command\"]\n";
    let project = commands(90, 4.0, pool);
    lab.attrflow(&project, &SHELL).well();
    results_are_right(&project, 90);
    let computed = computed(&project);
    assert!(computed.iter().all(|count| *count == 1), "{computed:?}");
    no_task_is_left(&lab);
}

#[test]
#[ignore = "two minutes: Slurm's time limits are in minutes"]
fn a_unit_longer_than_the_time_limit_fails_at_once() {
    let Some(lab) = Lab::up(&[]) else { return };
    let pool = "\n[cluster.pools.shell]\nworkers = 1\ntime = \"1\"\nkinds = [\"command\"]\n";
    let project = commands(1, 400.0, pool);
    let said = lab.attrflow(&project, &SHELL);
    assert_eq!(said.code, Some(1), "{}", said.text);
    assert!(said.text.contains("longer than the time limit of pool `shell`"), "{}", said.text);
    assert!(said.seconds < 200.0, "{}", said.seconds);
    no_task_is_left(&lab);
}

#[test]
#[ignore = "the demo in miniature once more, with a worker killed in each stage"]
fn the_demo_survives_the_loss_of_workers() {
    let Some(lab) = Lab::up(&[]) else { return };
    let (project, local) = (miniature(20, THREE), undisturbed(20));
    let mut run = lab.start(&project, &RUN);
    // Not so often that one unit is hit twice, which would fail its stage.
    let mut killed = 0;
    while run.child.try_wait().unwrap().is_none() && killed < 4 {
        std::thread::sleep(std::time::Duration::from_secs(7));
        if let Some(worker) = workers(&project).get(killed % 2) {
            let _ = rustix::process::kill_process(*worker, Signal::KILL);
            killed += 1;
        }
    }
    assert!(killed > 0, "the run ended before a worker could be killed");
    run.end().well();
    assert_eq!(project.results(), local.results());
    assert_eq!(units(&index(&project)), units(&index(&local)));
    no_task_is_left(&lab);
}

/// The library of the engine's tests that answers as a network file system may.
fn late_files(folder: &std::path::Path) -> String {
    let library = folder.join("file_system.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/crates/engine/tests/faults/file_system.c");
    let options = ["-shared", "-fPIC", "-O0", "-w", "-fno-delete-null-pointer-checks", "-o"];
    let mut compiler = std::process::Command::new("cc");
    assert!(compiler.args(options).arg(&library).arg(source).status().unwrap().success());
    library.display().to_string()
}

#[test]
fn results_that_are_seen_late_are_waited_for_and_those_that_are_not_seen_are_computed_again() {
    let Some(lab) = Lab::up(&[]) else { return };
    let folder = tempfile::tempdir().unwrap();
    let (library, switch) = (late_files(folder.path()), folder.path().join("on"));
    for (seconds, is_seen) in [("4", true), ("1000", false)] {
        fs_err::write(&switch, "").unwrap();
        let project = commands(4, 0.2, "\n[cluster.pools.shell]\nworkers = 1\nkinds = [\"command\"]\n");
        let variables = [
            ("LD_PRELOAD", library.as_str()),
            ("ATTRFLOW_TEST_FAULT", "late"),
            // Where a worker writes, as the command sees it.
            ("ATTRFLOW_TEST_BELOW", "/out/"),
            ("ATTRFLOW_TEST_SECONDS", seconds),
            ("ATTRFLOW_TEST_SWITCH", switch.to_str().unwrap()),
        ];
        let mut run = lab.start_with(&project, &SHELL, &variables);
        if !is_seen {
            run.until_it_says("cannot be seen here after 12 s");
            fs_err::remove_file(&switch).unwrap();
        }
        let said = run.end().well();
        results_are_right(&project, 4);
        let again = computed(&project).iter().sum::<usize>() - 4;
        assert_eq!(again, usize::from(!is_seen), "{seconds} s: {}", said.text);
        assert!(said.seconds > 4.0, "nothing was late");
    }
    no_task_is_left(&lab);
}
