//! When each task of a run was computed, and by whom: a table beside the manifest, since there may be tens of thousands.

use std::fs::Permissions;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::identity::{regular_file, shared_fs};

/// A task that gave a result: a stage, one of its units, or their merge.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskTime {
    /// The full name of its stage.
    pub stage: String,
    /// Who computed it.
    pub worker: String,
    /// Seconds from the start of the run to its begin.
    pub begin: f64,
    /// The same to its end. Of tasks that were computed at once, each has an equal share of the time.
    pub end: f64,
    /// The most memory that the worker had while it computed the task, in bytes; 0 where unknown.
    #[serde(default)]
    pub peak_memory: u64,
}

/// The table of the run of a manifest: `TIME.tasks.csv`.
pub fn path(manifest: &Path) -> PathBuf {
    manifest.with_extension("tasks.csv")
}

/// Writes the table of a run; none where nothing was computed.
///
/// # Errors
/// A write that failed.
pub fn write(manifest: &Path, tasks: &[TaskTime]) -> std::io::Result<()> {
    if tasks.is_empty() {
        return Ok(());
    }
    let folder = manifest.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new().permissions(Permissions::from_mode(0o666)).tempfile_in(folder)?;
    let mut table = csv::Writer::from_writer(&mut file);
    tasks.iter().try_for_each(|task| table.serialize(task))?;
    table.flush()?;
    drop(table);
    file.persist(path(manifest))?;
    Ok(())
}

/// Reads the table of a run; empty where there is none.
///
/// # Errors
/// A file that cannot be read, or is no such table.
pub fn read(manifest: &Path) -> std::io::Result<Vec<TaskTime>> {
    let path = path(manifest);
    if !shared_fs::exists(&path) {
        return Ok(Vec::new());
    }
    let bytes = regular_file::read(&path)?;
    let rows: Result<_, csv::Error> = csv::Reader::from_reader(&*bytes).into_deserialize().collect();
    rows.map_err(|error| std::io::Error::new(ErrorKind::InvalidData, format!("{}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_read_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let manifest = folder.path().join("20261130T174706.912286Z.json");
        assert!(read(&manifest).unwrap().is_empty());
        write(&manifest, &[]).unwrap();
        assert!(!path(&manifest).exists());
        let stage = "influence[a, \"b\"]".to_owned();
        let task = TaskTime { stage, worker: "worker 1".into(), begin: 0.25, end: 1.5, peak_memory: 7 };
        write(&manifest, &[task.clone(), TaskTime { begin: 1.5, end: 3.0, ..task.clone() }]).unwrap();
        let table = folder.path().join("20261130T174706.912286Z.tasks.csv");
        let text = fs_err::read_to_string(&table).unwrap();
        let first = "stage,worker,begin,end,peak_memory\n\"influence[a, \"\"b\"\"]\",worker 1,0.25,1.5,7\n";
        assert!(text.starts_with(first), "{text}");
        assert_eq!(read(&manifest).unwrap()[0], task);
        fs_err::write(&table, "stage,worker\n1,2\n").unwrap();
        assert!(read(&manifest).unwrap_err().to_string().contains(".tasks.csv: "));
    }
}
