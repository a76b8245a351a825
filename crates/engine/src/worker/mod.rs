//! Who computes a task: what a backend is, the protocol to its workers, and the backend on this machine.

pub mod cancel;
pub mod local;
pub mod measure;
pub mod protocol;
pub mod serve;
pub mod signals;

use cancel::Cancel;
use protocol::{DeviceClass, Facts, Reply, TaskBatch, TaskError, Usage};

/// Provides workers.
pub trait Backend: Sync {
    /// How many workers may run at once.
    fn slots(&self) -> usize;
    /// What its workers compute on where the user leaves it open.
    fn device_class(&self) -> DeviceClass;
    /// A worker of a slot that is ready for tasks, waited for: one with libtorch, or one for the kinds that need none.
    ///
    /// # Errors
    /// Why there is none.
    fn next(&self, slot: usize, libtorch: bool, cancel: &Cancel) -> Result<Box<dyn Worker>, TaskError>;
}

/// Runs tasks one after the other.
pub trait Worker {
    /// Its hello, sent before its first task.
    fn facts(&self) -> &Facts;
    /// Runs one task; `on_reply` gets progress, log lines and the numbers of tasks that are done.
    ///
    /// # Errors
    /// Why there is no result.
    fn run(&mut self, batch: &TaskBatch, on_reply: &mut dyn FnMut(Reply)) -> Result<Usage, TaskError>;
    /// The process group that it works in, to be killed where it must end at once.
    fn group(&self) -> Option<u32> {
        None
    }
}
