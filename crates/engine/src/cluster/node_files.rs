//! The files of a worker's tasks on a node: of the file system that it shares with the run, or brought from and sent to a bucket.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::bucket::Bucket;
use super::folder::{AttemptFolder, Pause, listing};
use super::messages::Input;
use crate::identity::digest::Listing;
use crate::identity::shared_fs;
use crate::kind::{ArtifactShape, Step, Task};
use crate::pipeline::cluster_table::Waits;
use crate::worker::measure::MeasureRequest;

/// A folder of this worker's own, gone when it ends. What workers left that were killed is removed before.
pub(super) fn scratch(run: &str) -> std::io::Result<Scratch> {
    const PREFIX: &str = "attrflow-worker-";
    let is_held = |folder: &Path| {
        let lock = fs_err::OpenOptions::new().write(true).open(folder.join("lock"));
        // One without a lock may begin just now.
        lock.map_or(true, |lock| lock.file().try_lock().is_err())
    };
    for entry in fs_err::read_dir(std::env::temp_dir())?.flatten() {
        let is_ours = entry.file_name().to_string_lossy().starts_with(PREFIX);
        if is_ours && !is_held(&entry.path()) {
            // Those of other users stay.
            let _ = fs_err::remove_dir_all(entry.path());
        }
    }
    let folder = tempfile::Builder::new().prefix(&format!("{PREFIX}{run}-")).tempdir()?;
    let lock = fs_err::File::create(folder.path().join("lock"))?;
    lock.file().lock()?;
    Ok(Scratch { folder, _lock: lock })
}

/// See [`scratch`].
pub(super) struct Scratch {
    folder: tempfile::TempDir,
    _lock: fs_err::File,
}

impl Scratch {
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// What a worker of a run with a bucket needs.
pub(super) struct NodeBucket<'a> {
    pub bucket: &'a Bucket,
    /// Where inputs are kept while the worker lives.
    pub inputs: PathBuf,
}

impl NodeBucket<'_> {
    /// Turns paths of the run into those of this node, and brings what is not here yet.
    fn localize<'p>(
        &self,
        paths: impl Iterator<Item = &'p mut PathBuf>,
        inputs: &BTreeMap<PathBuf, Input>,
        patience: f64,
    ) -> std::io::Result<()> {
        let part = self.inputs.join("part");
        let mut wanted = BTreeMap::new();
        for path in paths {
            let Some(input) = inputs.get(path) else { continue };
            let digest = input.digest.to_string();
            // Some formats are told by the ending of the name.
            let to = self.inputs.join(&digest).join(path.file_name().unwrap_or("input".as_ref()));
            if !to.exists() {
                let place = part.join(wanted.len().to_string());
                wanted.entry(to.clone()).or_insert((input, place));
            }
            *path = to;
        }
        if wanted.is_empty() {
            return Ok(());
        }
        let fetched: Vec<_> = wanted.values().cloned().collect();
        self.bucket
            .patiently(patience, || {
                // What an interrupted transfer left.
                let _ = fs_err::remove_dir_all(&part);
                fs_err::create_dir_all(&part)?;
                self.bucket.fetch_inputs(&fetched)
            })
            .map_err(std::io::Error::other)?;
        for (to, (_, from)) in wanted {
            to.parent().map_or(Ok(()), fs_err::create_dir_all)?;
            fs_err::rename(from, to)?;
        }
        Ok(())
    }
}

/// The files that a worker reads and writes.
pub(super) struct NodeFiles<'a> {
    pub attempt: &'a AttemptFolder,
    pub waits: &'a Waits,
    pub bucket: Option<NodeBucket<'a>>,
}

impl NodeFiles<'_> {
    /// Makes what a task reads readable here: brought from the bucket, or waited for, as another host may have written it a moment
    /// ago. What stays missing is the task's to report.
    pub fn bring(&self, task: &mut Task, inputs: &BTreeMap<PathBuf, Input>) -> std::io::Result<()> {
        let parts = match &mut task.step {
            Step::Merge(parts) => parts.as_mut_slice(),
            Step::Whole | Step::Unit(_) => &mut [],
        };
        let paths = task.inputs.0.values_mut().chain(parts);
        if let Some(bucket) = &self.bucket {
            return bucket.localize(paths, inputs, self.waits.visible);
        }
        let longest = Duration::from_secs_f64(self.waits.visible);
        let (begun, mut pause) = (Instant::now(), Pause::new(self.waits.poll));
        for path in paths {
            while !shared_fs::exists(&*path) && begun.elapsed() < longest {
                // Opening a folder makes a network file system look for news in it.
                let _ = path.parent().map(shared_fs::read_dir);
                pause.wait();
            }
        }
        Ok(())
    }

    /// A measurement of what is on this node.
    pub fn local(
        &self,
        mut request: MeasureRequest,
        inputs: &BTreeMap<PathBuf, Input>,
    ) -> Result<MeasureRequest, String> {
        let Some(bucket) = &self.bucket else { return Ok(request) };
        let paths = request.inputs.shapes.values_mut().filter_map(ArtifactShape::path_mut);
        bucket.localize(paths, inputs, self.waits.visible).map_err(|error| error.to_string())?;
        Ok(request)
    }

    /// Nothing more can be brought in time.
    pub fn stop(&self) {
        if let Some(NodeBucket { bucket, .. }) = &self.bucket {
            bucket.stop();
        }
    }

    /// Puts what a task wrote where the run can read it.
    pub fn give(&self, number: u64, task: usize) -> std::io::Result<Listing> {
        let output = self.attempt.output(number, task);
        let files = listing(&output)?;
        if let Some(NodeBucket { bucket, .. }) = &self.bucket {
            let name = self.attempt.name();
            let send = || bucket.send_result((&name, number, task), &output, &files);
            bucket.patiently(self.waits.visible, send).map_err(std::io::Error::other)?;
            fs_err::remove_dir_all(&output)?;
        }
        Ok(files)
    }
}
