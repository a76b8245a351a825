//! The process of a command: started in its folder, logged, and killed together with its descendants.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io::{PipeReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, kill_process, kill_process_group, pidfd_open};

use super::template::{Argument, Piece};
use super::variable::{PARAMS, TMPDIR};
use super::{Command, INPUTS, TMP, links, outputs};
use attrflow_engine::kind::Inputs;

/// The running command, the leader of its process group.
static RUNNING: Mutex<Option<Pid>> = Mutex::new(None);
/// The program that was looked for last, on which PATH, and its file: as a shell does, it is not looked for again while it is there.
static FOUND: Mutex<Option<(String, Option<OsString>, PathBuf)>> = Mutex::new(None);
/// Whether orphans of commands become children of this process.
static ADOPTS: AtomicBool = AtomicBool::new(false);

/// Makes orphans of commands children of this process, so that they can be found and killed.
///
/// For a process without other children.
pub fn adopt_orphans() {
    let this = rustix::process::getpid();
    ADOPTS.store(rustix::process::set_child_subreaper(Some(this)).is_ok(), Ordering::Relaxed);
}

/// Kills the running command, if any, with all its descendants; no command starts after that.
pub fn kill_all() {
    let running = RUNNING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(group) = *running {
        let _ = kill_process_group(group, Signal::KILL);
    }
    kill_orphans();
    // The process is about to exit; until then no command may start.
    std::mem::forget(running);
}

/// Runs a command in the empty folder `out`, which then contains its outputs.
pub(super) fn run(params: &Command, inputs: &Inputs, out: &Path) -> anyhow::Result<()> {
    links::link_inputs(inputs, out)?;
    let argv: anyhow::Result<Vec<String>> =
        params.argv.iter().map(|argument| fill(argument, params, inputs)).collect();
    let argv = argv?;
    let path = variable("PATH", params);
    let program = find(&argv[0], path.as_deref(), out)?;
    let (reader, writer) = std::io::pipe()?;
    let mut command = Process::new(&program);
    command
        .arg0(&argv[0])
        .args(&argv[1..])
        .current_dir(out)
        .env_clear()
        .envs(environment(params, path, out)?)
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .process_group(0);
    let mut child = start(&mut command).map_err(|error| {
        let is_too_long = |error: &std::io::Error| error.kind() == std::io::ErrorKind::ArgumentListTooLong;
        let hint = match error.downcast_ref().is_some_and(is_too_long) {
            true => ", to which `argv` and `values` (ATTRFLOW_PARAMS) are passed",
            false => "",
        };
        error.context(format!("cannot start `{}`{hint}", program.display()))
    })?;
    // Closes this process's writers of the pipe, so that the reader sees its end.
    drop(command);
    let log = follow(&child, reader);
    let status = end(&mut child)?;
    let log = log?;
    if !status.success() {
        bail!("`{}` ended with {status}{}", argv[0], log.describe());
    }
    outputs::check(&params.outputs, out).with_context(|| format!("`{}`: invalid outputs", argv[0]))?;
    links::unlink_inputs(inputs, out);
    Ok(())
}

fn fill(argument: &Argument, params: &Command, inputs: &Inputs) -> anyhow::Result<String> {
    let mut text = String::new();
    for piece in argument.pieces().map_err(anyhow::Error::msg)? {
        match piece {
            Piece::Text(piece) => text += &piece,
            Piece::Input(name) => {
                text += &format!("{INPUTS}/{name}");
                // Else `find` and others would see a link instead of the folder.
                if inputs.path(name).is_dir() {
                    text.push('/');
                }
            }
            Piece::Output(name) => text += &params.outputs[name],
            Piece::Param(path) => match params.value(path) {
                Some(serde_json::Value::String(value)) => text += value,
                Some(value) => text += &value.to_string(),
                None => bail!("there is no `{path}` in `values`"),
            },
        }
    }
    Ok(text)
}

/// The value of a variable for the command: the hashed one, else that of this process.
fn variable(name: &str, params: &Command) -> Option<OsString> {
    match params.recorded_env().find(|(recorded, _)| *recorded == name) {
        Some((_, value)) => value.as_ref().map(OsString::from),
        None => std::env::var_os(name),
    }
}

fn environment(
    params: &Command,
    path: Option<OsString>,
    out: &Path,
) -> anyhow::Result<Vec<(String, OsString)>> {
    let values = serde_json::to_string(&params.values)?;
    let mut variables = vec![
        ("LANG".to_owned(), "C.UTF-8".into()),
        (PARAMS.to_owned(), values.into()),
        (TMPDIR.to_owned(), out.join(TMP).into()),
    ];
    variables.extend(path.map(|path| ("PATH".to_owned(), path)));
    let passed =
        params.env.iter().map(|variable| &variable.0).chain(params.recorded_env().map(|(name, _)| name));
    for name in passed.map(String::as_str).chain(["HOME"]) {
        // Later values replace earlier ones.
        variables.extend(variable(name, params).map(|value| (name.to_owned(), value)));
    }
    Ok(variables)
}

/// The program's file, found here so that the command can be started without a fork.
fn find(program: &str, path: Option<&OsStr>, out: &Path) -> anyhow::Result<PathBuf> {
    if program.contains('/') {
        // An input such as `inputs/script`; an absolute path stays one.
        return Ok(out.join(program));
    }
    let mut last = FOUND.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let known =
        last.as_ref().filter(|(name, on, file)| name == program && on.as_deref() == path && runs(file));
    if let Some((_, _, file)) = known {
        return Ok(file.clone());
    }
    let folders = path.map(|path| std::env::split_paths(path).collect::<Vec<_>>()).unwrap_or_default();
    let found = folders.iter().map(|folder| folder.join(program)).find(runs);
    let found = found.with_context(|| format!("program `{program}` not found on the PATH"))?;
    *last = Some((program.to_owned(), path.map(OsStr::to_owned), found.clone()));
    Ok(found)
}

/// Whether a file can be executed.
fn runs(file: &PathBuf) -> bool {
    file.is_absolute() && file.is_file() && rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok()
}

/// Starts the process, so that [`kill_all`] either kills it or prevents its start.
fn start(command: &mut Process) -> anyhow::Result<Child> {
    let mut running = RUNNING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let child = command.spawn()?;
    *running = Some(id(&child)?);
    Ok(child)
}

fn id(child: &Child) -> anyhow::Result<Pid> {
    i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("a process without an id")
}

/// Kills the rest of the process group, and returns the command's exit status.
fn end(child: &mut Child) -> anyhow::Result<std::process::ExitStatus> {
    // Its id is not reused before the wait.
    let _ = kill_process_group(id(child)?, Signal::KILL);
    *RUNNING.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = None;
    let status = child.wait()?;
    kill_orphans();
    Ok(status)
}

/// Kills the children of this process, and then theirs, which become its children in turn.
fn kill_orphans() {
    if !ADOPTS.load(Ordering::Relaxed) {
        return;
    }
    let begun = Instant::now();
    // A process may be stuck in the kernel.
    while begun.elapsed() < Duration::from_secs(2) {
        match rustix::process::wait(WaitOptions::NOHANG) {
            // There are none, as usual.
            Err(_) => return,
            Ok(Some(_)) => {}
            Ok(None) => {
                for child in children() {
                    let _ = kill_process(child, Signal::KILL);
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

/// The children of this process.
fn children() -> Vec<Pid> {
    let this = std::process::id().to_string();
    let processes = fs_err::read_dir("/proc").into_iter().flatten().flatten();
    let ids = processes.filter_map(|process| {
        let id = process.file_name().to_str()?.parse().ok().and_then(Pid::from_raw)?;
        let stat = fs_err::read_to_string(process.path().join("stat")).ok()?;
        // The state and the parent are after the name, which may contain anything.
        let parent = stat.rsplit_once(") ")?.1.split(' ').nth(1)?;
        (parent == this).then_some(id)
    });
    ids.collect()
}

/// Logs each line of a command until it ends.
fn follow(child: &Child, mut reader: PipeReader) -> anyhow::Result<OutputLog> {
    // Old kernels lack it; then the end of the pipe is the end.
    let ended: Option<OwnedFd> = pidfd_open(id(child)?, PidfdFlags::empty()).ok();
    let mut log = OutputLog::default();
    let mut open = true;
    while open {
        let mut fds = vec![PollFd::new(&reader, PollFlags::IN)];
        fds.extend(ended.as_ref().map(|ended| PollFd::new(ended, PollFlags::IN)));
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            ready => ready?,
        };
        // Orphans may hold the pipe open: the end of the command itself is the end.
        if fds.get(1).is_some_and(|fd| !fd.revents().is_empty()) {
            break;
        }
        open = log.read(&mut reader)? > 0;
    }
    // The rest of the output: at most the size of a pipe.
    for _ in 0..64 {
        let mut fds = [PollFd::new(&reader, PollFlags::IN)];
        if !open || poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap_or(0) == 0 {
            break;
        }
        open = log.read(&mut reader)? > 0;
    }
    log.end_line();
    // A command may close its output before it ends.
    if let Some(ended) = &ended {
        while poll(&mut [PollFd::new(ended, PollFlags::IN)], None) == Err(rustix::io::Errno::INTR) {}
    }
    Ok(log)
}

/// The last lines of a command's output.
#[derive(Default)]
struct OutputLog {
    line: Vec<u8>,
    last: VecDeque<String>,
}

/// The most lines in a message.
const SHOWN: usize = 20;
/// The most bytes of a line.
const LINE: usize = 2000;

impl OutputLog {
    /// Reads what is available; 0 at the end.
    fn read(&mut self, reader: &mut PipeReader) -> anyhow::Result<usize> {
        let mut bytes = [0; 16 * 1024];
        let read = match reader.read(&mut bytes) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => return Ok(1),
            read => read?,
        };
        for &byte in &bytes[..read] {
            match byte {
                b'\n' => self.end_line(),
                // A progress bar: only its last state is a line.
                b'\r' => self.line.clear(),
                byte if self.line.len() < LINE => self.line.push(byte),
                _ => {}
            }
        }
        Ok(read)
    }

    fn end_line(&mut self) {
        let line = String::from_utf8_lossy(&self.line).trim_end().to_owned();
        self.line.clear();
        if line.is_empty() {
            return;
        }
        tracing::info!("{line}");
        if self.last.len() == SHOWN {
            self.last.pop_front();
        }
        self.last.push_back(line);
    }

    /// The last lines, for a message.
    fn describe(&self) -> String {
        match self.last.len() {
            0 => "; no output".to_owned(),
            _ => self
                .last
                .iter()
                .fold("; last lines of its output:".to_owned(), |text, line| format!("{text}\n  {line}")),
        }
    }
}
