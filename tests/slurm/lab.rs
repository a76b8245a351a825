//! A Slurm on loopback, and a project whose workers are its jobs.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::project::Project;

/// Times a tenth of the defaults or less, so that a trial takes seconds.
const WAITS: &str = "
[cluster]
backend = \"slurm\"

[cluster.waits]
poll = 0.1
heartbeat = 0.5
silent = 4
gone = 30
lease = 4
orphaned = 10
visible = 12
squeue = 1
work = 2
leave = 10
";

/// A cluster that goes with the value; no two are up at once.
pub struct Lab {
    folder: PathBuf,
    _turn: fs_err::File,
}

impl Lab {
    /// Brings one up; `None` where this machine cannot, which is said.
    pub fn up(settings: &[(&str, &str)]) -> Option<Self> {
        let shared = Path::new(env!("CARGO_TARGET_TMPDIR"));
        fs_err::create_dir_all(shared).unwrap();
        let turn = fs_err::File::create(shared.join("slurm.lock")).unwrap();
        turn.file().lock().unwrap();
        let lab = Self { folder: shared.join("slurm"), _turn: turn };
        let is_root = rustix::process::geteuid().is_root();
        let installed = Command::new("slurmctld").arg("-V").output().is_ok();
        if !is_root || !installed {
            let why =
                if is_root { "Slurm is not installed: tests/slurm/lab.sh install" } else { "it takes root" };
            assert!(std::env::var("CI").is_err(), "no Slurm can be brought up: {why}");
            eprintln!("skipped: no Slurm can be brought up: {why}");
            return None;
        }
        lab.script(&["down"], &[]);
        let up = lab.script(&["up"], settings);
        assert!(up.status.success(), "{}", String::from_utf8_lossy(&up.stderr));
        Some(lab)
    }

    fn script(&self, arguments: &[&str], settings: &[(&str, &str)]) -> Output {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/slurm/lab.sh");
        let mut command = Command::new("bash");
        command.arg(script).args(arguments).env("SLURM_LAB", &self.folder).envs(settings.iter().copied());
        command.stdin(Stdio::null()).output().unwrap()
    }

    /// Does something to it: `lab.sh` says what there is.
    pub fn does(&self, arguments: &[&str]) {
        let output = self.script(arguments, &[]);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn conf(&self) -> PathBuf {
        self.folder.join("etc/slurm.conf")
    }

    /// What one of Slurm's programs prints.
    pub fn ask(&self, program: &str, arguments: &[&str]) -> String {
        let output = Command::new(program).args(arguments).env("SLURM_CONF", self.conf()).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// The tasks that are not over.
    pub fn tasks(&self) -> Vec<String> {
        self.ask("squeue", &["-h", "-a", "-r", "-o", "%T %N"]).lines().map(str::to_owned).collect()
    }

    /// Starts a command on the cluster; what it says is kept.
    pub fn start(&self, project: &Project, arguments: &[&str]) -> Background {
        self.start_with(project, arguments, &[])
    }

    /// The same with more variables.
    pub fn start_with(
        &self,
        project: &Project,
        arguments: &[&str],
        variables: &[(&str, &str)],
    ) -> Background {
        let folder = project.path("said");
        fs_err::create_dir_all(&folder).unwrap();
        let count = fs_err::read_dir(&folder).unwrap().count();
        let said = folder.join(count.to_string());
        let file = fs_err::File::create(&said).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_attrflow"));
        command.args(arguments).current_dir(&project.root).env("SLURM_CONF", self.conf());
        command.envs(variables.iter().copied());
        command.stdin(Stdio::null()).stdout(file.file().try_clone().unwrap()).stderr(file.into_file());
        Background { child: command.spawn().unwrap(), said, begun: Instant::now() }
    }

    /// Runs a command on the cluster.
    pub fn attrflow(&self, project: &Project, arguments: &[&str]) -> Said {
        self.start(project, arguments).end()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.folder.exists() {
            self.script(&["down"], &[]);
        }
    }
}

/// A command that runs.
pub struct Background {
    pub child: std::process::Child,
    said: PathBuf,
    begun: Instant,
}

impl Background {
    /// What it said so far.
    pub fn said(&self) -> String {
        fs_err::read_to_string(&self.said).unwrap()
    }

    /// Waits until it has said this.
    pub fn until_it_says(&mut self, text: &str) {
        wait(60, text, || self.said().contains(text) || self.child.try_wait().unwrap().is_some());
        assert!(self.said().contains(text), "{}", self.said());
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.child.id() as i32).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Waits for its end.
    pub fn end(mut self) -> Said {
        let status = loop {
            match self.child.try_wait().unwrap() {
                Some(status) => break status,
                None if self.begun.elapsed() > Duration::from_secs(400) => {
                    let _ = self.child.kill();
                    panic!("it does not end: {}", self.said());
                }
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        Said { code: status.code(), text: self.said(), seconds: self.begun.elapsed().as_secs_f64() }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a command that ended said.
#[derive(Debug)]
pub struct Said {
    pub code: Option<i32>,
    pub text: String,
    pub seconds: f64,
}

impl Said {
    /// It must have succeeded.
    pub fn well(self) -> Self {
        assert_eq!(self.code, Some(0), "{}", self.text);
        self
    }
}

/// Waits until something holds.
pub fn wait(seconds: u64, what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(seconds), "waited {seconds} s for: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The demo in miniature, on the cluster by its config.
pub fn miniature(images: usize, pools: &str) -> Project {
    let project = Project::new(images);
    let config = fs_err::read_to_string(project.path("configs/demo.toml")).unwrap();
    project.write("configs/demo.toml", format!("{config}{WAITS}{pools}"));
    project
}

/// So many stages that each run a line of shell, with `N` for their number; more workers than one would be idle in `pool`.
pub fn shell(stages: usize, line: &str, pools: &str) -> Project {
    let project = Project::new(1);
    let items: Vec<String> = (0..stages).map(|n| format!("{{ name = \"n{n}\", n = \"{n}\" }}")).collect();
    project.write("configs/shell.toml", format!("items = [{}]\n{WAITS}{pools}", items.join(", ")));
    let pipeline = format!(
        "config = \"../configs/shell.toml\"\n[stages.say]\nkind = \"command\"\neach = {{ item = \"${{items}}\" }}\n\
         params = {{ argv = [\"sh\", \"-c\", {line:?}], outputs = {{ out = \"out\" }}, values = {{ N = \"${{item.n}}\" }} }}\n"
    );
    project.write("pipelines/shell.toml", pipeline);
    project
}

/// The folder of the newest run on a cluster.
pub fn newest_run(project: &Project) -> PathBuf {
    let runs = fs_err::read_dir(project.path("cache/cluster")).unwrap().map(|run| run.unwrap());
    runs.max_by_key(|run| run.metadata().unwrap().modified().unwrap()).unwrap().path()
}

/// The workers of the newest run, as they said hello.
pub fn hellos(project: &Project) -> Vec<serde_json::Value> {
    let workers = fs_err::read_dir(newest_run(project).join("w")).into_iter().flatten().flatten();
    let hello = |path: PathBuf| serde_json::from_slice(&fs_err::read(path.join("hello")).ok()?).ok();
    workers.filter_map(|worker| hello(worker.path())).collect()
}
