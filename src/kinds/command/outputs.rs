//! Checks the outputs of a command: all of them exist, and consist of files and folders.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{bail, ensure};

use super::{INPUTS, TMP};

/// Checks that the cache can store the outputs.
pub(super) fn check(outputs: &BTreeMap<String, String>, out: &Path) -> anyhow::Result<()> {
    let missing: Vec<String> = outputs
        .iter()
        .filter(|(_, file)| fs_err::symlink_metadata(out.join(file)).is_err())
        .map(|(port, file)| format!("`{file}` (output `{port}`)"))
        .collect();
    if !missing.is_empty() {
        let mut found: Vec<String> = fs_err::read_dir(out)?
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| ![INPUTS, TMP].contains(&name.as_str()))
            .collect();
        found.sort();
        let found = if found.is_empty() { "nothing".to_owned() } else { found.join(", ") };
        bail!("missing {}; its folder contains {found}", missing.join(", "));
    }
    outputs.values().try_for_each(|file| own(&out.join(file), out))
}

/// Refuses links and special files, and copies a file with several hard links.
fn own(path: &Path, out: &Path) -> anyhow::Result<()> {
    let metadata = fs_err::symlink_metadata(path)?;
    let name = path.strip_prefix(out).unwrap_or(path);
    ensure!(name.to_str().is_some(), "the name of `{}` is not UTF-8", name.display());
    if metadata.is_dir() {
        for entry in fs_err::read_dir(path)? {
            own(&entry?.path(), out)?;
        }
        return Ok(());
    }
    let what = if metadata.is_symlink() { "a symbolic link" } else { "neither a file nor a folder" };
    let name = name.display();
    ensure!(metadata.is_file(), "`{name}` is {what}: an output consists of files and folders");
    // The other link may be an input, and nobody may change the cache's bytes.
    if metadata.nlink() > 1 {
        // The command may have removed the folder.
        fs_err::create_dir_all(out.join(TMP))?;
        let copy = out.join(TMP).join("own");
        fs_err::copy(path, &copy)?;
        fs_err::rename(&copy, path)?;
    }
    Ok(())
}
