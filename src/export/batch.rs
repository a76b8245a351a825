//! Writes several files into a folder: each appears complete, and none if one of them cannot be written.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::ExportError;
use crate::io::compare::same_bytes;

/// Files to be written into a folder.
pub struct Batch {
    folder: PathBuf,
    temp: TempDir,
    names: Vec<PathBuf>,
}

/// What was at a file's path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Nothing.
    New,
    /// The same bytes, which were kept.
    Same,
    /// Other bytes.
    Replaced,
}

/// A written file.
#[derive(Debug, Clone)]
pub struct Written {
    /// The file.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size: u64,
    /// What was at its path.
    pub state: State,
}

impl Batch {
    /// Creates the folder if missing, and a temporary one in it.
    ///
    /// # Errors
    /// A folder cannot be created.
    pub fn new(folder: &Path) -> Result<Self, ExportError> {
        fs_err::create_dir_all(folder)?;
        let temp = tempfile::Builder::new().prefix(".attrflow-").tempdir_in(folder)?;
        Ok(Self { folder: folder.to_path_buf(), temp, names: Vec::new() })
    }

    /// The temporary path for the file `name` of the folder.
    ///
    /// # Errors
    /// Another file has this name, or a folder cannot be created.
    pub fn file(&mut self, name: impl Into<PathBuf>) -> Result<PathBuf, ExportError> {
        let name = name.into();
        if self.names.contains(&name) {
            return Err(ExportError::Twice { path: self.folder.join(name) });
        }
        let path = self.temp.path().join(&name);
        fs_err::create_dir_all(path.parent().unwrap_or(self.temp.path()))?;
        self.names.push(name);
        Ok(path)
    }

    /// Moves the files of all batches to their paths; with `force` also replaces other content.
    ///
    /// # Errors
    /// A path has other content, in which case no file of any batch is moved; or the file system refuses.
    pub fn finish(batches: &[Self], force: bool) -> Result<Vec<Written>, ExportError> {
        let mut moves = Vec::new();
        for batch in batches {
            for name in &batch.names {
                let (from, path) = (batch.temp.path().join(name), batch.folder.join(name));
                let file = fs_err::File::open(&from)?;
                file.sync_all()?;
                let state = match path.exists() {
                    false => State::New,
                    true if same_bytes(&from, &path)? => State::Same,
                    true => State::Replaced,
                };
                moves.push((from, Written { path, size: file.metadata()?.len(), state }));
            }
        }
        let differ = moves.iter().filter(|(_, file)| file.state == State::Replaced);
        let paths: Vec<PathBuf> = differ.map(|(_, file)| file.path.clone()).collect();
        if !paths.is_empty() && !force {
            return Err(ExportError::Differs { paths });
        }
        for (from, file) in moves.iter().filter(|(_, file)| file.state != State::Same) {
            if let Some(folder) = file.path.parent() {
                fs_err::create_dir_all(folder)?;
            }
            fs_err::rename(from, &file.path)?;
        }
        Ok(moves.into_iter().map(|(_, file)| file).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finish(folder: &Path, files: &[(&str, &str)], force: bool) -> Result<Vec<State>, String> {
        let written = Batch::finish(&[batch(folder, files)], force).map_err(|error| error.to_string())?;
        Ok(written.into_iter().map(|file| file.state).collect())
    }

    fn batch(folder: &Path, files: &[(&str, &str)]) -> Batch {
        let mut batch = Batch::new(folder).unwrap();
        for (name, text) in files {
            fs_err::write(batch.file(name).unwrap(), text).unwrap();
        }
        batch
    }

    #[test]
    fn other_content_is_replaced_only_by_force() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        assert_eq!(finish(&out, &[("a", "1"), ("b/c", "2")], false).unwrap(), [State::New; 2]);
        let again = [("a", "1"), ("b/c", "3"), ("d", "4")];
        let error = finish(&out, &again, false).unwrap_err();
        assert!(error.ends_with("out/b/c exists with other content: --force replaces it"), "{error}");
        assert!(!out.join("d").exists() && fs_err::read(out.join("b/c")).unwrap() == b"2");
        let states = finish(&out, &again, true).unwrap();
        assert_eq!(states, [State::Same, State::Replaced, State::New]);
        assert_eq!(fs_err::read(out.join("b/c")).unwrap(), b"3");
        assert_eq!(fs_err::read_dir(&out).unwrap().count(), 3, "a temporary folder was left");
    }

    #[test]
    fn a_refused_batch_stops_the_others() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (folder.path().join("one"), folder.path().join("other"));
        finish(&other, &[("a", "1")], false).unwrap();
        let batches = [batch(&one, &[("b", "2")]), batch(&other, &[("a", "3")])];
        assert!(Batch::finish(&batches, false).is_err());
        assert!(!one.join("b").exists());
        assert_eq!(Batch::finish(&batches, true).unwrap().len(), 2);
        assert_eq!(fs_err::read(other.join("a")).unwrap(), b"3");
    }

    #[test]
    fn a_name_is_used_once() {
        let folder = tempfile::tempdir().unwrap();
        let error = batch(folder.path(), &[("a", "1")]).file("a").unwrap_err().to_string();
        assert!(error.starts_with("two results would be written to ") && error.contains("/a: "), "{error}");
    }
}
