//! Workers on a cluster, with files on the shared file system as their line of protocol.
//!
//! ```text
//! cluster/RUN/run.json       what the workers of a run must know
//! cluster/RUN/front          the run's sign of life: its epoch, and a number that grows
//! cluster/RUN/events.jsonl   the events of the run
//! cluster/RUN/log/           what the scheduler writes for each task
//! cluster/RUN/w/ATTEMPT/     a worker: hello, in.EPOCH.jsonl, out.jsonl, out/
//! ```
//! Each file has one writer. The run locks, commits and indexes; a worker writes into its own folder alone. A result is a file
//! with the right digest, never the state of a job: the scheduler is asked only whether a worker is still alive.

pub mod backend;
mod bucket;
mod carrier;
mod error;
mod folder;
mod jobs;
mod lock_test;
mod messages;
pub mod node;
mod node_files;
mod orders;
mod pool;
mod remote_worker;
pub mod runs;
pub mod slurm;
pub mod takeover;
mod threads;

pub use bucket::Bucket;
pub use carrier::RunCarrier;
pub use error::SlurmError;
pub use folder::{Lease, LeaseState, RunFolder};
pub use jobs::JobLine;
pub use messages::{Hello, PoolConfig, RunConfig};
