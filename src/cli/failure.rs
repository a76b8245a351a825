//! How a command fails, and the exit code that says so.

use attrflow_engine::config::text::{Problems, Sources};
use attrflow_engine::store::StoreError;

pub(super) const DONE: i32 = 0;
const STAGE_FAILED: i32 = 1;
pub(super) const USAGE: i32 = 2;
const DIFFERENT: i32 = 3;
const CACHE: i32 = 4;
/// The number of a signal is added, as shells report it.
const SIGNALLED: i32 = 128;

pub(super) const HELP: &str = "Exit codes: 0 done, 1 a stage failed or files were refused, 2 the pipeline or the command line is wrong, \
3 an audit or a comparison found a difference, 4 the cache is damaged or cannot be used, 130 interrupted (143 terminated, 129 hung up).";

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The pipeline has faults.
    #[error("the pipeline has faults")]
    Pipeline(Problems, Sources),
    /// The command line asks for something that is not there.
    #[error("{0}")]
    Usage(String),
    /// One or more stages failed; each was told when it did.
    #[error("{0} of the stages failed")]
    Stages(usize),
    /// A signal of this number ended the run; what was done is kept.
    #[error("interrupted; the same command goes on from here")]
    Interrupted(i32),
    /// Something that the program needs is missing.
    #[error("{0}")]
    Missing(String),
    /// Files or results that are not as the command needs them.
    #[error("{0}")]
    Refused(String),
    /// Something differs that should be the same; what it is was told.
    #[error("{0}")]
    Different(String),
    /// A signature that does not hold.
    #[error("{0}")]
    InvalidSignature(String),
    /// Something in the cache was damaged and is put aside; what it is was told.
    #[error("{0}")]
    Damaged(String),
    /// The cache cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The exit code that stands for a failure.
pub fn exit_code(failure: &Failure) -> i32 {
    match failure {
        Failure::Stages(_) | Failure::Missing(_) | Failure::Refused(_) => STAGE_FAILED,
        Failure::Pipeline(..) | Failure::Usage(_) => USAGE,
        Failure::Different(_) | Failure::InvalidSignature(_) => DIFFERENT,
        Failure::Damaged(_) | Failure::Store(_) => CACHE,
        Failure::Interrupted(signal) => SIGNALLED + signal,
    }
}

impl Failure {
    /// Tells it on standard error.
    #[expect(clippy::print_stderr, reason = "the shell is where messages are printed")]
    pub(super) fn show(&self) {
        use std::io::IsTerminal;
        match self {
            Self::Pipeline(problems, sources) => {
                let color = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
                eprintln!("{}", problems.render(sources, color));
                let count = problems.list.len();
                eprintln!(
                    "\n{count} {} found; nothing was run",
                    if count == 1 { "problem" } else { "problems" }
                );
            }
            // What there is to say was shown.
            Self::Stages(_) | Self::Different(_) => {}
            Self::Interrupted(_) => eprintln!("{self}"),
            other => eprintln!("error: {other}"),
        }
    }
}
