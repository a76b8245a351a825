//! What reaches the coordinator while a run is at work.

use crate::store::{Entry, StoreError};
use crate::worker::local::Reply;

/// What a slot reports to the coordinator.
pub(super) enum Message {
    Started(usize, Option<usize>),
    Reply(usize, Option<usize>, Reply),
    /// The result, and the seconds that it took; none where another run had computed it.
    Done(usize, Option<usize>, Box<Entry>, Option<f64>),
    Failed(usize, Option<usize>, String),
    /// Another run computes it; said again and again while that lasts.
    LockWait(usize, Option<usize>),
    /// The run was stopped before it was done.
    Dropped,
    /// The run is asked to stop.
    Stop,
    /// The store cannot go on, and so no stage can.
    StoreFailed(StoreError),
}
