//! Files that verbs write where a user names them.

use std::fs::File;
use std::io::Write;
use std::path::Path;

/// Writes a file atomically; replaces an existing one only with `force`.
pub(super) fn write(file: &Path, text: &[u8], force: bool) -> std::io::Result<()> {
    write_with(file, force, |out| out.write_all(text))
}

/// The same, with what a function writes.
pub(super) fn write_with<E: From<std::io::Error>>(
    file: &Path,
    force: bool,
    content: impl FnOnce(&mut File) -> Result<(), E>,
) -> Result<(), E> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs_err::create_dir_all(folder)?;
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    let mut temp = tempfile::Builder::new().permissions(readable).tempfile_in(folder)?;
    content(temp.as_file_mut())?;
    let done = if force { temp.persist(file) } else { temp.persist_noclobber(file) };
    Ok(done.map(drop).map_err(|error| {
        let hint = if force { "" } else { "; --force replaces it" };
        std::io::Error::new(error.error.kind(), format!("{}: {}{hint}", file.display(), error.error))
    })?)
}
