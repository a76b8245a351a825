//! What a run as a whole needs: time from start to end, memory at once, room on the disk.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::Serialize;

use super::project::Project;
use crate::io::disk_space;
use crate::progress::{duration, size};
use attrflow_engine::estimate::{Job, StageEstimate, wall};
use attrflow_engine::explain::Prediction;
use attrflow_engine::pipeline::{Source, StageNode};
use attrflow_engine::provenance::manifest::Conditions;

/// The needs of the stages that surely run, as far as they are known.
#[derive(Debug, Default, Serialize)]
pub(super) struct Requirements {
    /// Seconds from start to end.
    wall_seconds: f64,
    workers: usize,
    /// Bytes of memory of all workers, each at its most; 0 where nothing was measured.
    host_memory: u64,
    /// Bytes of memory of each device; 0 where nothing was measured.
    device_memory: u64,
    /// Bytes that are to be written to the cache.
    disk: u64,
    /// Bytes that are free there.
    disk_free: Option<u64>,
    /// Bytes of memory that are available.
    memory_free: Option<u64>,
    #[serde(skip)]
    cache: PathBuf,
    #[serde(skip)]
    start: f64,
    #[serde(skip)]
    jobs: Vec<Job>,
    /// Where a stage stands in `jobs`.
    #[serde(skip)]
    places: BTreeMap<usize, usize>,
}

impl Requirements {
    pub fn new(project: &Project, conditions: &Conditions) -> Self {
        Self { workers: conditions.jobs, cache: project.store.root().to_path_buf(), ..Self::default() }
    }

    /// Adds a stage that runs; those that it reads come before it.
    pub fn add(
        &mut self,
        index: usize,
        node: &StageNode,
        predicted: &Prediction,
        known: Option<&StageEstimate>,
    ) {
        let upstream = node.inputs.values().filter_map(|source| match source {
            Source::Port { stage, .. } => self.places.get(stage).copied(),
            Source::File(_) => None,
        });
        let after: BTreeSet<usize> = upstream.collect();
        let seconds = predicted.seconds.unwrap_or_default();
        self.places.insert(index, self.jobs.len());
        self.jobs.push(Job {
            after: after.into_iter().collect(),
            tasks: if seconds > 0.0 { predicted.tasks.unwrap_or(1) } else { 0 },
            seconds: (seconds - predicted.joining).max(0.0),
            merge: predicted.joining,
        });
        if let Some(measured) = known.and_then(|known| known.measured) {
            self.start = self.start.max(measured.start);
        }
        let each = predicted.host_memory.unwrap_or_default();
        self.host_memory = self.host_memory.max(each.saturating_mul(self.workers as u64));
        self.device_memory = self.device_memory.max(predicted.device_memory.unwrap_or_default());
        self.disk += predicted.disk.or(predicted.bytes).unwrap_or_default();
    }

    /// All stages are there.
    pub fn close(&mut self) {
        if self.jobs.is_empty() {
            // A plan that finds everything done is the same whatever else the machine does.
            *self = Self::default();
            return;
        }
        self.wall_seconds = wall(&self.jobs, self.workers, self.start);
        // The folder may have to be made first.
        let there = self.cache.ancestors().find(|folder| folder.is_dir());
        self.disk_free = there.and_then(|folder| disk_space::free(folder).ok());
        self.memory_free = available();
    }

    /// Lines for people, each behind a line break.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        let Self { wall_seconds, workers, host_memory, device_memory, disk, .. } = self;
        if *wall_seconds > 0.0 {
            let plural = if *workers == 1 { "" } else { "s" };
            text +=
                &format!("\n  {} from start to end with {workers} worker{plural}", duration(*wall_seconds));
        }
        if *host_memory > 0 {
            text += &format!("\n  {} of memory at most", size(*host_memory));
        }
        if *device_memory > 0 {
            text += &format!(", {} of each device", size(*device_memory));
        }
        if *disk > 0 {
            text += &format!("\n  {} of disk, the parts of units among it", size(*disk));
        }
        if let Some(free) = self.disk_free.filter(|free| free < disk) {
            let place = self.cache.display();
            text += &format!("\nwarning: {} are free on the disk of {place}", size(free));
        }
        if let Some(free) = self.memory_free.filter(|free| free < host_memory) {
            text += &format!("\nwarning: {} of memory are available; fewer --jobs need less", size(free));
        }
        text
    }
}

/// Bytes of memory that processes could still have, where the system tells.
fn available() -> Option<u64> {
    let text = fs_err::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}
