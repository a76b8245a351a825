//! Who writes to a results folder now: two runs of one pipeline with other arguments would leave the outputs of both.

use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;

use crate::identity::digest::Digest;

/// The file that runs lock, beside their results.
const FILE: &str = ".run.lock";

/// A run's use of a results folder, until it is dropped or the process ends.
pub struct ResultsUse {
    _file: Option<fs_err::File>,
}

impl ResultsUse {
    /// Marks the folder as used by a run with these parameters; returns whether a run with others uses it too.
    ///
    /// A folder that cannot be written to is not marked.
    pub fn enter(folder: &Path, parameters: &Digest) -> (Self, bool) {
        let open = || {
            fs_err::create_dir_all(folder)?;
            fs_err::OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(folder.join(FILE))
        };
        let Ok(mut file) = open() else { return (Self { _file: None }, false) };
        if file.file().try_lock().is_ok() {
            let text = parameters.to_string();
            let written = file.set_len(0).and_then(|()| file.write_all(text.as_bytes()));
            // A lock that says nothing warns of nothing.
            let _ = written;
            let _ = file.seek(SeekFrom::Start(0));
            return (Self { _file: Some(file) }, false);
        }
        let mut text = String::new();
        let known = file.read_to_string(&mut text).is_ok() && text.len() == parameters.to_string().len();
        (Self { _file: None }, known && text != parameters.to_string())
    }
}
