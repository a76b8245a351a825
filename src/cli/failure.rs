//! The errors of commands and their exit codes.

use std::panic::PanicHookInfo;

use crate::progress::{error_line, print_error, safe, safe_colored};
use attrflow_engine::config::text::{Problems, Sources};
use attrflow_engine::exec::RunError;
use attrflow_engine::store::StoreError;

pub(super) const SUCCESS: i32 = 0;
const STAGE_FAILED: i32 = 1;
pub(super) const USAGE: i32 = 2;
const DIFFERENT: i32 = 3;
const CACHE: i32 = 4;
/// `EX_SOFTWARE` of sysexits.h.
pub(super) const BUG: i32 = 70;
/// The number of a signal is added, as shells report it.
const SIGNALLED: i32 = 128;

pub(super) const EXIT_CODES: &str = "Exit codes:
  0    success
  1    a stage failed, or files or results are missing or unsuitable
  2    an error in the pipeline or on the command line
  3    an audit or a comparison found a difference
  4    the cache is damaged or unusable
  70   a bug in attrflow
  129  hangup (SIGHUP)
  130  interrupted (SIGINT)
  143  terminated (SIGTERM)";

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Errors in the pipeline.
    #[error("the pipeline has errors")]
    Pipeline(Problems, Sources),
    /// An error on the command line.
    #[error("{0}")]
    Usage(String),
    /// Stages that failed; each was reported when it did.
    #[error("{0} stages failed")]
    Stages(usize),
    /// A signal of this number ended the run; finished units are kept.
    #[error("interrupted; the same command resumes the run")]
    Interrupted(i32),
    /// A requirement of the program is missing.
    #[error("{0}")]
    Missing(String),
    /// Files or results that the command cannot use.
    #[error("{0}")]
    Refused(String),
    /// A difference, which was reported when it was found.
    #[error("{0}")]
    Different(String),
    /// An invalid signature.
    #[error("{0}")]
    InvalidSignature(String),
    /// Damage in the cache, which was reported and quarantined.
    #[error("{0}")]
    Damaged(String),
    /// The cache is unusable.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The exit code of a failure.
pub fn exit_code(failure: &Failure) -> i32 {
    match failure {
        Failure::Stages(_) | Failure::Missing(_) | Failure::Refused(_) => STAGE_FAILED,
        Failure::Pipeline(..) | Failure::Usage(_) => USAGE,
        Failure::Different(_) | Failure::InvalidSignature(_) => DIFFERENT,
        Failure::Damaged(_) | Failure::Store(_) => CACHE,
        Failure::Interrupted(signal) => SIGNALLED + signal,
    }
}

/// Reports a panic: a bug of the program, with its place.
pub(super) fn show_bug(panic: &PanicHookInfo<'_>) {
    let place = panic.location().map(|place| format!(" at {}:{}", place.file(), place.line()));
    let what = panic.payload_as_str().unwrap_or("a panic");
    if what.starts_with("failed to spawn thread") {
        print_error(&format!(
            "error: the system allows no more threads (`ulimit -u`, or a limit of the container): {what}"
        ));
        return;
    }
    print_error(&format!(
        "error: this is a bug in attrflow {}{}: {what}\nPlease report it with the command. Finished units are kept.",
        env!("CARGO_PKG_VERSION"),
        place.unwrap_or_default()
    ));
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        match error {
            RunError::Store(error) => Self::Store(error),
            RunError::Worker(error) => Self::Missing(error),
        }
    }
}

impl Failure {
    /// Prints it to standard error.
    pub(super) fn show(&self) {
        match self {
            Self::Pipeline(problems, sources) => {
                let color = super::colored(&std::io::stderr());
                print_error(&safe_colored(&problems.render(sources, color).to_string()));
                let count = problems.list.len();
                print_error(&format!(
                    "\n{count} {} found; nothing was run",
                    if count == 1 { "problem" } else { "problems" }
                ));
            }
            // Reported already.
            Self::Stages(_) | Self::Different(_) => {}
            Self::Interrupted(_) => print_error(&self.to_string()),
            other => print_error(&error_line(&safe(&format!("error: {other}{}", hint(&other.to_string()))))),
        }
    }
}

/// What helps where the system names only its limit.
fn hint(error: &str) -> &'static str {
    let limit = error.contains("Too many open files") && !error.contains("ulimit");
    if limit { "; raise the limit of open files (`ulimit -n`), or use fewer --jobs" } else { "" }
}
