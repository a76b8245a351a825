//! What slots report to the coordinator.

use std::path::PathBuf;
use std::sync::mpsc::Sender;

use super::queue::{Job, Queue};
use super::state_messages::{Message, RunError};
use crate::store::{Entry, StoreError};
use crate::worker::cancel::{Cancel, CancelMode};
use crate::worker::protocol::TaskError;

/// Where a slot reports to, and whether the run is to stop.
pub(super) struct Reports<'a> {
    pub to: Sender<Message>,
    pub stop: &'a Cancel,
    pub queue: &'a Queue<'a>,
}

impl Reports<'_> {
    pub fn send(&self, message: Message) -> Sent {
        self.to.send(message).map_err(|_| Disconnected)
    }

    /// The same for what nothing depends on: a coordinator that is gone is noticed when the result is sent.
    pub fn say(&self, message: Message) {
        let _ = self.send(message);
    }

    /// How a job ended.
    pub fn ended(&self, job: &Job, outcome: Outcome) -> Sent {
        let (stage, unit) = (job.common.stage, job.unit);
        if outcome.is_ok() {
            self.queue.reported(job);
        }
        self.send(match outcome {
            Ok((entry, seconds)) => Message::Done(stage, unit, Box::new(entry), seconds),
            Err(JobError::Store(error)) if !error.is_the_stage() => Message::Broken(error.into()),
            Err(JobError::Task(TaskError::Refused(error))) => Message::Broken(RunError::Worker(error)),
            Err(JobError::Stopped) => Message::Dropped(1),
            // What was killed did not fail.
            Err(JobError::Task(TaskError::Died(_))) if self.stop.mode() == Some(CancelMode::Kill) => {
                Message::Dropped(1)
            }
            Err(error) => Message::Failed(stage, unit, error.to_string()),
        })
    }
}

#[derive(Debug, thiserror::Error)]
pub(super) enum JobError {
    #[error(transparent)]
    Task(#[from] TaskError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the input `{port}` changed while it was read: {path}", path = path.display())]
    Changed { port: String, path: PathBuf },
    #[error("the input `{port}` changed while it was read: {what}")]
    Damaged { port: String, what: String },
    #[error("the run was stopped")]
    Stopped,
    #[error("attrflow itself failed on this job, which is a bug; -vvv shows more")]
    Panic,
}

/// A result, and the seconds that it took; none where another run had computed it.
pub(super) type Outcome = Result<(Entry, Option<f64>), JobError>;
/// The coordinator is gone: nobody needs the slot any more.
pub(super) struct Disconnected;
pub(super) type Sent = Result<(), Disconnected>;
