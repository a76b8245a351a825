//! This program, run as a user would run it. A signal that ends the check ends it too.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value as Json;
use signal_hook::iterator;

use crate::cli::failure::Failure;
use attrflow_engine::worker::signals::stopping;

/// Variables of this program begin so; a check depends on none of them but those that say where libtorch is.
const VARIABLES: &str = "ATTRFLOW_";
const KEPT: &str = "ATTRFLOW_LIBTORCH";

/// What is known of the child process, and of signals.
#[derive(Default)]
struct State {
    child: Mutex<Option<Pid>>,
    /// The first signal; 0 before there is one.
    signal: AtomicI32,
}

/// This program, while signals are watched.
pub(super) struct Program {
    file: PathBuf,
    state: Arc<State>,
    handle: Option<iterator::Handle>,
}

/// What a run of the program said, and how it ended.
pub(super) struct Ended {
    /// Its exit code; `None` where a signal ended it.
    pub code: Option<i32>,
    /// The lines of JSON on its standard output.
    pub lines: Vec<Json>,
    /// Its standard error.
    pub errors: String,
}

impl Program {
    /// Watches signals until the value is dropped.
    pub fn watch() -> Result<Self, Failure> {
        let file = std::env::current_exe().map_err(|error| Failure::Missing(error.to_string()))?;
        let state = Arc::new(State::default());
        // Without a handler, a signal ends the program as usual.
        let Ok(mut signals) = iterator::Signals::new(stopping()) else {
            return Ok(Self { file, state, handle: None });
        };
        let (handle, noted) = (signals.handle(), Arc::clone(&state));
        std::thread::spawn(move || {
            for signal in signals.forever() {
                let child = noted.child.lock().unwrap_or_else(PoisonError::into_inner);
                let _ = noted.signal.compare_exchange(0, signal, Ordering::SeqCst, Ordering::SeqCst);
                // It ends its workers, and nothing that it finished is wanted.
                if let Some(child) = *child {
                    let _ = kill_process(child, Signal::TERM);
                }
            }
        });
        Ok(Self { file, state, handle: Some(handle) })
    }

    /// Runs it in a folder.
    ///
    /// # Errors
    /// A signal came, or the program cannot be started.
    pub fn run(&self, folder: &Path, arguments: &[&str]) -> Result<Ended, Failure> {
        let mut command = Command::new(&self.file);
        command.args(arguments).current_dir(folder);
        for (name, _) in std::env::vars_os() {
            let known = name.to_string_lossy();
            if known.starts_with(VARIABLES) && known != KEPT {
                command.env_remove(&name);
            }
        }
        // Of its own group: a terminal's Ctrl-C reaches it through this process alone.
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let failed = |error| Failure::Missing(format!("{}: {error}", self.file.display()));
        let child = {
            let mut running = self.child();
            self.check_signal()?;
            let child = command.spawn().map_err(failed)?;
            *running = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
            child
        };
        let output = child.wait_with_output();
        *self.child() = None;
        self.check_signal()?;
        let output = output.map_err(failed)?;
        let lines = output.stdout.split(|byte| *byte == b'\n');
        Ok(Ended {
            code: output.status.code(),
            lines: lines.filter_map(|line| serde_json::from_slice(line).ok()).collect(),
            errors: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    fn child(&self) -> std::sync::MutexGuard<'_, Option<Pid>> {
        self.state.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_signal(&self) -> Result<(), Failure> {
        match self.state.signal.load(Ordering::SeqCst) {
            0 => Ok(()),
            signal => Err(Failure::Interrupted(signal)),
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if let Some(handle) = &self.handle {
            handle.close();
        }
    }
}

impl Ended {
    /// The lines of one event.
    pub fn events<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Json> {
        self.lines.iter().filter(move |line| line["event"] == name)
    }

    /// Names of the stages in the events of one kind.
    pub fn stages<'a>(&'a self, event: &'a str) -> Vec<&'a str> {
        self.events(event).filter_map(|line| line["stage"].as_str()).collect()
    }

    /// Why it failed, in the words of its stages, or else of its errors.
    pub fn why(&self) -> String {
        let failed = self.events("stage_failed").map(|line| {
            format!(
                "{}: {}",
                line["stage"].as_str().unwrap_or_default(),
                line["error"].as_str().unwrap_or_default()
            )
        });
        let failed: Vec<String> = failed.collect();
        if !failed.is_empty() {
            return failed.join("; ");
        }
        match (self.message(), self.code) {
            ("", Some(code)) => format!("exit code {code}"),
            ("", None) => "a signal ended it".to_owned(),
            (message, _) => message.to_owned(),
        }
    }

    /// Its error, without what it logged before.
    pub fn message(&self) -> &str {
        let start = self.errors.find("error: ").map_or(0, |at| at + "error: ".len());
        self.errors[start..].trim()
    }

    /// The largest of the numbers of this name in the log of a run with `-vv`, which says what each batch took.
    pub fn largest(&self, name: &str) -> u64 {
        let head = format!(" {name}: ");
        let numbers = self
            .errors
            .split(&head)
            .skip(1)
            .filter_map(|rest| rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok());
        numbers.max().unwrap_or(0)
    }
}
