//! Runs a plan: schedules units on workers, keeps results, emits events.

pub mod adopt;
mod coordinator;
pub mod event;
mod keep_results;
pub mod noop_cache;
mod queue;
mod rates;
mod record;
mod reports;
mod state;
mod state_messages;
mod work;
mod worker_slots;

use std::path::PathBuf;
use std::sync::mpsc;

use crate::exec::event::Event;
use crate::identity::digest::Digest;
use crate::identity::recipe::Numerics;
use crate::kind::KindInfo;
use crate::pipeline::Pipeline;
use crate::plan::graph::Graph;
use crate::provenance::manifest::{Conditions, Manifest, Program};
use crate::store::Store;
use crate::worker::Backend;
pub use crate::worker::cancel::{Cancel, CancelMode};
use coordinator::Coordinator;
use queue::Queue;
use rates::Rates;
use reports::Reports;
use state_messages::Message;
pub use state_messages::RunError;
use worker_slots::{Shared, Slot};

/// A run: what to do, where to keep it, who observes it.
pub struct Run<'a> {
    /// The pipeline.
    pub pipeline: &'a Pipeline,
    /// The selected stages.
    pub graph: &'a Graph,
    /// The cache.
    pub store: &'a Store,
    /// Makes the workers.
    pub backend: &'a dyn Backend,
    /// How numbers are computed.
    pub numerics: &'a Numerics,
    /// Stages to compute whatever the cache holds.
    pub forced: &'a [usize],
    /// The results folder.
    pub results: PathBuf,
    /// The pipeline file, for the manifest.
    pub file: PathBuf,
    /// The `--set` arguments, for the manifest.
    pub sets: Vec<String>,
    /// The program that runs, for the manifest.
    pub program: Program,
    /// Workers, threads and devices, for the manifest.
    pub conditions: Conditions,
    /// Ends the run before it is done.
    pub stop: &'a Cancel,
    /// Gets what happens.
    pub emit: &'a dyn Fn(Event),
}

impl Run<'_> {
    /// Computes every selected stage that is not cached, and writes the manifest.
    ///
    /// A stage that fails is in the manifest with its error; stages that do not need it continue. A run that is stopped
    /// writes its manifest too.
    ///
    /// # Errors
    /// A store that cannot be read or written, and workers that cannot serve this run.
    pub fn execute(&self) -> Result<Manifest, RunError> {
        let _use = self.store.shared_lock(|| {
            let message = "waiting for `attrflow cache gc` to end".to_owned();
            (self.emit)(Event::Log { level: "INFO".into(), message });
        })?;
        if let Some(message) = self.store.old_index()? {
            (self.emit)(Event::Log { level: "WARN".into(), message });
        }
        // Where nothing can be written, nothing can be mixed.
        let used = self.store.use_results(&self.results, &self.parameters());
        if used.as_ref().is_ok_and(|(_, others)| *others) {
            let message = format!(
                "another run of this pipeline with other parameters is in progress: {} will hold outputs of both; the cache \
                 keeps them apart, and a run when both have ended shows its own",
                self.results.display()
            );
            (self.emit)(Event::Log { level: "WARN".into(), message });
        }
        self.run_jobs().map_err(|error| match error {
            RunError::Store(error) => self.store.with_free_space(error).into(),
            error => error,
        })
    }

    /// The parameters of all stages.
    fn parameters(&self) -> Digest {
        let mut hasher = blake3::Hasher::new();
        for stage in &self.pipeline.stages {
            for text in [stage.id.clone(), stage.stage.identity().to_string()] {
                hasher.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
            }
        }
        hasher.finalize().into()
    }

    fn run_jobs(&self) -> Result<Manifest, RunError> {
        let serves = |pool, kind: &KindInfo| self.backend.serves(pool, kind);
        let queue = Queue::new((0..self.backend.slots()).map(|slot| self.backend.pool(slot)), &serves);
        let mut coordinator = Coordinator::new(self, &queue);
        coordinator.begin()?;
        // No worker, thread or folder is made for a run that finds everything in the cache.
        if coordinator.state.busy() {
            let scratch = self.store.scratch()?;
            let rates = Rates::default();
            let (reports, incoming) = mpsc::channel();
            let wake = reports.clone();
            self.stop.listen(Box::new(move || wake.send(Message::Stop).is_ok()));
            std::thread::scope(|scope| {
                let _close = CloseOnDrop(&queue);
                let (backend, store, stop) = (self.backend, self.store, self.stop);
                let shared = Shared { queue: &queue, backend, store, scratch: &scratch, rates: &rates };
                for slot in 0..backend.slots() {
                    let reports = Reports { to: reports.clone(), stop, queue: &queue };
                    scope.spawn(move || Slot::new(slot, shared, reports).serve());
                }
                drop(reports);
                while coordinator.state.busy() {
                    let message = incoming.recv().expect("slots live as long as the queue is open");
                    coordinator.handle(message)?;
                }
                Ok::<(), RunError>(())
            })?;
        }
        coordinator.finish()
    }
}

/// Ends the slots however the coordinator ends, or they would wait for ever.
struct CloseOnDrop<'a>(&'a Queue<'a>);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}
