//! `attrflow doctor --cluster`: one worker of each pool says what its node has, and what lies between it and this host.

use std::path::Path;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::json;

use super::cluster::apart;
use super::failure::Failure;
use super::project::{Project, Settings};
use super::run_args::RunArgs;
use super::signals::{EventSink, Signals};
use crate::progress::{print, print_error};
use attrflow_engine::cluster::backend::Notice;
use attrflow_engine::cluster::node::clock;
use attrflow_engine::cluster::{Hello, RunFolder};
use attrflow_engine::exec::Cancel;
use attrflow_engine::kind::Registry;
use attrflow_engine::pipeline::cluster_table::BackendName;
use attrflow_engine::worker::protocol::{Facts, Reply};
use attrflow_engine::worker::{Backend, Request, Work};

/// What was found of one pool.
#[derive(Serialize)]
struct Found {
    pool: String,
    node: String,
    /// Seconds from the submission to the hello.
    waited: f64,
    facts: Facts,
    visible_devices: Option<String>,
    /// Seconds of the fastest message to the node and back.
    round_trip: f64,
    /// How far the node's clock is ahead of this host's, in seconds.
    clock: f64,
    /// Whether a lock that is held here is refused there.
    locks: Option<bool>,
}

pub(super) fn check(
    pipeline: &Path,
    settings: &Settings,
    registry: &Registry,
    log: &str,
    as_json: bool,
) -> Result<(), Failure> {
    let mut settings = settings.clone();
    settings.cluster.backend.get_or_insert(BackendName::Slurm);
    let project = settings.open(pipeline, &[], registry)?;
    let Some(table) = project.cluster.clone() else {
        return Err(Failure::Usage("doctor --cluster checks a cluster, and --backend is local".into()));
    };
    let template = RunArgs::default().template(&project, log);
    let cancel = Arc::new(Cancel::default());
    let sink: EventSink = Arc::new(|_| {});
    let signals = Signals::watch(Arc::clone(&cancel), sink, true);
    let notice = |notice: Notice| match notice {
        Notice::Warning(message) => print_error(&format!("warning: {message}")),
        Notice::Pool { pool, running: 0, pending, reason } if pending > 0 => {
            print_error(&format!("pool {pool}: waiting in the queue ({reason})"));
        }
        Notice::Pool { .. } => {}
    };
    let (backend, folder) = apart("doctor", &project, &table, &template, &cancel, Box::new(notice))?;
    let found = pools(&project, &backend, &folder, &cancel);
    let ended = backend.end().map_err(Failure::Refused);
    // Its events, logs and hellos are told here.
    let _ = fs_err::remove_dir_all(folder.path());
    if let Some(signal) = signals.received() {
        return Err(Failure::Interrupted(signal));
    }
    let (found, failed) = found;
    match as_json {
        true => print(&format!("{}\n", json!({ "pools": found, "failed": failed }))),
        false => print(&found.iter().map(describe).collect::<String>()),
    }
    ended?;
    match failed {
        Some(failed) => Err(Failure::Refused(failed)),
        None => Ok(()),
    }
}

/// One worker of each pool; and why there was none.
fn pools(
    project: &Project,
    backend: &dyn Backend,
    folder: &RunFolder,
    cancel: &Cancel,
) -> (Vec<Found>, Option<String>) {
    let mut found = Vec::new();
    let kinds = project.pipeline.stages.iter().map(|stage| stage.kind());
    let kinds: Vec<_> = kinds.collect();
    let mut slots: Vec<usize> = Vec::new();
    for slot in 0..backend.slots() {
        let first = !slots.iter().any(|known| backend.pool(*known) == backend.pool(slot));
        if first && backend.seconds_at_once(backend.pool(slot)) > 0.0 {
            slots.push(slot);
        }
    }
    for slot in slots {
        let libtorch = kinds.iter().any(|kind| kind.libtorch && backend.serves(backend.pool(slot), kind));
        let begun = Instant::now();
        let mut worker = match backend.next(&Request { slot, libtorch, waiting: &|| 1, cancel }) {
            Ok(Some(worker)) => worker,
            Ok(None) => return (found, Some("interrupted".into())),
            Err(error) => return (found, Some(error.to_string())),
        };
        let waited = begun.elapsed().as_secs_f64();
        let place = worker.place().unwrap_or_default();
        let mut round_trip = f64::INFINITY;
        for _ in 0..3 {
            let begun = Instant::now();
            let nothing = Work { batches: Vec::new(), notes: Vec::new() };
            if let Err(error) = worker.run(&nothing, &mut |_: Reply| {}) {
                return (found, Some(format!("pool {}: {error}", place.pool)));
            }
            round_trip = round_trip.min(begun.elapsed().as_secs_f64());
        }
        if let Some((hold, longest)) = backend.locks_hold() {
            // What cannot be noted is tested again.
            let _ = project.store.note_locks(hold, longest);
        }
        let hellos = folder.hellos().into_iter();
        let of_worker = |(hello, _): &(Hello, SystemTime)| {
            place.worker.starts_with(&format!("{}_{} ", hello.array, hello.task))
        };
        let Some((hello, written)) = hellos.into_iter().find(of_worker) else { continue };
        // The file server's clock is what both are held to: messages may take long, and clocks are never sent.
        let node = hello.clock - seconds(written);
        let here = clock() - own_time(folder);
        let (facts, pool) = (worker.facts().clone(), place.pool);
        let Hello { node: name, visible_devices, locks, .. } = hello;
        found.push(Found {
            pool,
            node: name,
            waited,
            facts,
            visible_devices,
            round_trip,
            clock: node - here,
            locks,
        });
    }
    (found, None)
}

/// The time that the file system gives a file that is written now.
fn own_time(folder: &RunFolder) -> f64 {
    let path = folder.path().join("clock");
    let written = fs_err::write(&path, "").and_then(|()| fs_err::metadata(&path)?.modified());
    written.map_or_else(|_| clock(), seconds)
}

fn seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

fn describe(found: &Found) -> String {
    let Found { pool, node, waited, facts, visible_devices, round_trip, clock, locks } = found;
    let devices = visible_devices
        .as_ref()
        .map_or_else(String::new, |devices| format!("gpus       CUDA_VISIBLE_DEVICES={devices}\n"));
    let locks = match locks {
        Some(true) => "a lock that is held here is refused there: yes",
        Some(false) => {
            "a lock that is held here is refused there: NO; runs on several hosts may compute a unit twice, and `cache gc` refuses"
        }
        None => "could not be tried; with a bucket, no node needs them",
    };
    format!(
        "pool       {pool}\nnode       {node}, after {waited:.1} s\nworker     {facts}\n{devices}messages   {:.0} ms to the node and back\n\
         clock      {clock:+.2} s against this host's\nlocks      {locks}\n",
        round_trip * 1000.0
    )
}
