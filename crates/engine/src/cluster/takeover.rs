//! What an earlier run left on a cluster: its finished results are kept, and its workers serve again or are ended.

use std::collections::BTreeMap;
use std::time::Duration;

use super::folder::{AttemptFolder, Follower, RunFolder};
use super::messages::{Order, Report, RunConfig};
use super::runs;
use crate::store::{Lookup, Store, StoreError};
use crate::worker::Note;

/// What was found of an earlier run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inheritance {
    /// Results that were finished and not kept.
    pub kept: usize,
    /// The epoch of the earlier run.
    pub epoch: u64,
}

/// The dead run of this pipeline whose workers would serve a run with this configuration, if there is one.
///
/// A run of another host counts as dead once it gave no sign of life for so long as its lease says.
///
/// # Errors
/// A folder that cannot be read.
pub fn heir_of(
    runs: &[RunFolder],
    config: &RunConfig,
    mut waiting: impl FnMut(&str, Duration),
) -> std::io::Result<Option<RunFolder>> {
    for folder in runs {
        let (Ok(found), Ok(lease)) = (folder.config(), folder.lease()) else { continue };
        let alike =
            |config: &RunConfig| (config.root.clone(), config.within.clone(), config.pipeline.clone());
        if lease.state != super::LeaseState::Running || alike(&found) != alike(config) {
            continue;
        }
        if runs::is_alive(folder, &lease, &mut waiting) {
            continue;
        }
        return Ok(Some(folder.clone()));
    }
    Ok(None)
}

/// Keeps what the workers of a run finished and the run did not take: what was given by runs before this epoch.
///
/// # Errors
/// A store that cannot be read or written. What cannot be read of a worker is computed again.
pub fn salvage(store: &Store, folder: &RunFolder, epoch: u64) -> Result<usize, StoreError> {
    let mut kept = 0;
    for entry in fs_err::read_dir(folder.workers()).into_iter().flatten().flatten() {
        let attempt = AttemptFolder::at(entry.path());
        let notes = notes(&attempt);
        let mut reports = Follower::<Report>::new(attempt.outbox());
        for report in reports.read().unwrap_or_default() {
            let Report::Finished(finished) = report else { continue };
            if finished.number >> 32 >= epoch {
                continue;
            }
            let Some(note) = notes.get(&finished.number).and_then(|notes| notes.get(finished.task)) else {
                continue;
            };
            let output = attempt.output(finished.number, finished.task);
            let fingerprint = note.recipe.fingerprint();
            // What the run took is not there any more.
            if !output.exists()
                || matches!(store.find(&fingerprint)?, Lookup::Hit(_))
                || !is_unchanged(store, note)
            {
                continue;
            }
            let Some(_lock) = store.try_lock(&fingerprint)? else { continue };
            let outputs: Vec<_> = note
                .outputs
                .iter()
                .map(|(port, file)| {
                    let path = if file.as_os_str().is_empty() { output.clone() } else { output.join(file) };
                    (port.clone(), path)
                })
                .collect();
            match store.commit(&note.recipe, &outputs, Some(&finished.files), note.spent + finished.seconds) {
                Ok(_) => kept += 1,
                Err(error) if error.is_the_stage() => tracing::warn!("{}: {error}", output.display()),
                Err(error) => return Err(error),
            }
        }
    }
    Ok(kept)
}

/// Whether all that a task read outside the store is what its recipe says.
fn is_unchanged(store: &Store, note: &Note) -> bool {
    note.sources.iter().all(|(path, digest)| store.source(path).is_ok_and(|found| found == *digest))
}

/// What it takes to keep the results of a worker's assignments, by their numbers.
fn notes(attempt: &AttemptFolder) -> BTreeMap<u64, Vec<Note>> {
    let mut notes = BTreeMap::new();
    for entry in fs_err::read_dir(attempt.path()).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with("in.") {
            continue;
        }
        let mut orders = Follower::<Order>::new(entry.path());
        for order in orders.read().unwrap_or_default() {
            if let Order::Work(assignment) = order {
                notes.insert(assignment.number, assignment.notes);
            }
        }
    }
    notes
}
