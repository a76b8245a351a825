//! The requirements of a whole run: time from start to end, peak memory, disk space.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::Serialize;

use super::project::Project;
use crate::progress::duration;
use attrflow_engine::estimate::{Job, StageEstimate, wall};
use attrflow_engine::explain::Prediction;
use attrflow_engine::pipeline::{Source, StageNode};
use attrflow_engine::provenance::manifest::Conditions;
use attrflow_engine::store::{disk_space, format_bytes};

/// The requirements of the stages that certainly run, as far as they are known.
#[derive(Debug, Default, Serialize)]
pub(super) struct Requirements {
    /// Seconds from start to end.
    wall_seconds: f64,
    workers: usize,
    /// Peak memory of all workers in bytes; 0 where unknown.
    host_memory: u64,
    /// Peak memory of each device in bytes; 0 where unknown.
    device_memory: u64,
    /// Bytes that will be written to the cache.
    disk: u64,
    /// Stages whose time is not known, and those whose outputs are of unknown size: they are not in the sums.
    unknown_time: usize,
    unknown_disk: usize,
    /// Bytes that are free on the cache's disk.
    disk_free: Option<u64>,
    /// Available memory in bytes.
    memory_free: Option<u64>,
    #[serde(skip)]
    cache: PathBuf,
    #[serde(skip)]
    start: f64,
    #[serde(skip)]
    jobs: Vec<Job>,
    /// The place of each stage in `jobs`.
    #[serde(skip)]
    places: BTreeMap<usize, usize>,
}

impl Requirements {
    pub fn new(project: &Project, conditions: &Conditions) -> Self {
        Self { workers: conditions.jobs, cache: project.store.root().to_path_buf(), ..Self::default() }
    }

    /// Adds a stage that runs; the stages that it depends on come first.
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
        let disk = predicted.disk.or(predicted.bytes);
        self.disk += disk.unwrap_or_default();
        self.unknown_time += usize::from(predicted.seconds.is_none());
        self.unknown_disk += usize::from(disk.is_none());
    }

    /// Computes the totals, after the last stage.
    pub fn finish(&mut self) {
        if self.jobs.is_empty() {
            // The plan of a complete pipeline does not depend on the state of the machine.
            *self = Self::default();
            return;
        }
        self.wall_seconds = wall(&self.jobs, self.workers, self.start);
        // The cache folder may not exist yet.
        let there = self.cache.ancestors().find(|folder| folder.is_dir());
        self.disk_free = there.and_then(|folder| disk_space(folder).ok());
        self.memory_free = available();
    }

    /// Lines for people, each after a line break.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        let Self { wall_seconds, workers, host_memory, device_memory, disk, unknown_disk, .. } = self;
        if *wall_seconds > 0.0 {
            let plural = if *workers == 1 { "" } else { "s" };
            let least = if self.unknown_time > 0 { "at least " } else { "" };
            let wall = duration(*wall_seconds);
            text += &format!("\n  {least}{wall} from start to end with {workers} worker{plural}");
        }
        if *host_memory > 0 {
            text += &format!("\n  at most {} of memory", format_bytes(*host_memory));
        }
        if *device_memory > 0 {
            text += &format!(", {} on each device", format_bytes(*device_memory));
        }
        if *disk > 0 {
            text += &format!("\n  {} of disk space, including units", format_bytes(*disk));
        }
        if *unknown_disk > 0 {
            let (plural, first) = (
                if *unknown_disk == 1 { "" } else { "s" },
                if *disk > 0 { ", without" } else { "\n  without" },
            );
            text += &format!("{first} {unknown_disk} stage{plural} with outputs of unknown size");
        }
        if let Some(free) = self.disk_free.filter(|free| free < disk) {
            let place = self.cache.display();
            text += &format!("\nwarning: only {} free on the disk of {place}", format_bytes(free));
        }
        if let Some(free) = self.memory_free.filter(|free| free < host_memory) {
            text += &format!("\nwarning: only {} of memory available; use fewer --jobs", format_bytes(free));
        }
        text
    }
}

/// Available memory in bytes, where the system reports it.
fn available() -> Option<u64> {
    let text = fs_err::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}
