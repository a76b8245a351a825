//! The process of a command: started in its folder, heard to its end, and ended with all that it started.

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

/// The command that runs, whose process leads a group of its own.
static RUNNING: Mutex<Option<Pid>> = Mutex::new(None);
/// Whether orphans of commands become children of this process.
static ADOPTS: AtomicBool = AtomicBool::new(false);

/// Lets whatever a command leaves running become a child of this process, so that it can be found and ended.
///
/// For a process that has no other children.
pub fn adopt_orphans() {
    let this = rustix::process::getpid();
    ADOPTS.store(rustix::process::set_child_subreaper(Some(this)).is_ok(), Ordering::Relaxed);
}

/// Ends the command that runs, if one does, and all that it started; none starts after that.
pub fn kill_all() {
    let running = RUNNING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(group) = *running {
        let _ = kill_process_group(group, Signal::KILL);
    }
    end_orphans();
    // The process is about to end; until then no command may start.
    std::mem::forget(running);
}

/// Runs a command in the empty folder `out`, which then holds its outputs.
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
    let mut child = start(&mut command).with_context(|| format!("cannot start `{}`", program.display()))?;
    // With this process's ends of the pipe open, it would never end.
    drop(command);
    let said = hear(&child, reader);
    let status = end(&mut child)?;
    let said = said?;
    if !status.success() {
        bail!("`{}` ended with {status}{}", argv[0], said.describe());
    }
    outputs::check(&params.outputs, out).with_context(|| format!("`{}` ended well", argv[0]))?;
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
                // Or `find` and others would see a link and not the folder.
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

/// What a variable is for the command: the value that counts, else that of this process.
fn variable(name: &str, params: &Command) -> Option<OsString> {
    match params.counted().find(|(counted, _)| *counted == name) {
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
    let passed = params.env.iter().map(|variable| &variable.0).chain(params.counted().map(|(name, _)| name));
    for name in passed.map(String::as_str).chain(["HOME"]) {
        // What is set later wins.
        variables.extend(variable(name, params).map(|value| (name.to_owned(), value)));
    }
    Ok(variables)
}

/// The program's file, so that starting it needs no copy of this process to look for it.
fn find(program: &str, path: Option<&OsStr>, out: &Path) -> anyhow::Result<PathBuf> {
    if program.contains('/') {
        // An input such as `inputs/script`; an absolute path stays one.
        return Ok(out.join(program));
    }
    let folders = path.map(|path| std::env::split_paths(path).collect::<Vec<_>>()).unwrap_or_default();
    let runs = |file: &PathBuf| {
        file.is_absolute() && file.is_file() && rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok()
    };
    let found = folders.iter().map(|folder| folder.join(program)).find(runs);
    found.with_context(|| format!("there is no program `{program}` on the PATH"))
}

/// Starts the process, so that [`end_all`] either sees it or keeps it from starting.
fn start(command: &mut Process) -> anyhow::Result<Child> {
    let mut running = RUNNING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let child = command.spawn()?;
    *running = Some(id(&child)?);
    Ok(child)
}

fn id(child: &Child) -> anyhow::Result<Pid> {
    i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("a process without an id")
}

/// Ends what is left of the command, and says how it ended itself.
fn end(child: &mut Child) -> anyhow::Result<std::process::ExitStatus> {
    // Until it is waited for, its id cannot become another's.
    let _ = kill_process_group(id(child)?, Signal::KILL);
    *RUNNING.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = None;
    let status = child.wait()?;
    end_orphans();
    Ok(status)
}

/// Ends the children of this process, and theirs when they come to it in turn.
fn end_orphans() {
    if !ADOPTS.load(Ordering::Relaxed) {
        return;
    }
    let begun = Instant::now();
    // What hangs in the kernel ends when the kernel lets it.
    while begun.elapsed() < Duration::from_secs(2) {
        match rustix::process::wait(WaitOptions::NOHANG) {
            // There are none, which is the rule and costs this call alone.
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
        // Behind the name, which may hold anything, come the state and the parent.
        let parent = stat.rsplit_once(") ")?.1.split(' ').nth(1)?;
        (parent == this).then_some(id)
    });
    ids.collect()
}

/// Hears a command to its end; each line it writes is one of the log.
fn hear(child: &Child, mut reader: PipeReader) -> anyhow::Result<Said> {
    // Not every kernel has it; then the end of the pipe must do.
    let ended: Option<OwnedFd> = pidfd_open(id(child)?, PidfdFlags::empty()).ok();
    let mut said = Said::default();
    let mut open = true;
    while open {
        let mut fds = vec![PollFd::new(&reader, PollFlags::IN)];
        fds.extend(ended.as_ref().map(|ended| PollFd::new(ended, PollFlags::IN)));
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            ready => ready?,
        };
        // What the command left running may hold the pipe open: its own end is the end.
        if fds.get(1).is_some_and(|fd| !fd.revents().is_empty()) {
            break;
        }
        open = said.read(&mut reader)? > 0;
    }
    // The last of it: no more than a pipe holds.
    for _ in 0..64 {
        let mut fds = [PollFd::new(&reader, PollFlags::IN)];
        if !open || poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap_or(0) == 0 {
            break;
        }
        open = said.read(&mut reader)? > 0;
    }
    said.end();
    // A command that closed its output runs on.
    if let Some(ended) = &ended {
        while poll(&mut [PollFd::new(ended, PollFlags::IN)], None) == Err(rustix::io::Errno::INTR) {}
    }
    Ok(said)
}

/// What a command wrote last.
#[derive(Default)]
struct Said {
    line: Vec<u8>,
    last: VecDeque<String>,
}

/// Lines of a command that a message about it shows.
const SHOWN: usize = 20;
/// Bytes of a line that are kept.
const LINE: usize = 2000;

impl Said {
    /// Takes what there is; 0 at the end.
    fn read(&mut self, reader: &mut PipeReader) -> anyhow::Result<usize> {
        let mut bytes = [0; 16 * 1024];
        let read = match reader.read(&mut bytes) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => return Ok(1),
            read => read?,
        };
        for &byte in &bytes[..read] {
            match byte {
                b'\n' => self.end(),
                // A bar that is drawn over itself: only its last state is a line.
                b'\r' => self.line.clear(),
                byte if self.line.len() < LINE => self.line.push(byte),
                _ => {}
            }
        }
        Ok(read)
    }

    fn end(&mut self) {
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
            0 => "; it wrote nothing".to_owned(),
            _ => self
                .last
                .iter()
                .fold("; its last lines:".to_owned(), |text, line| format!("{text}\n  {line}")),
        }
    }
}
