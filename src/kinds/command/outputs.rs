//! What a command left: every declared output, and in it nothing but files and folders.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{bail, ensure};

use super::{INPUTS, TMP};

/// Holds the outputs to what the cache can keep.
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
        bail!("but wrote no {}; its folder holds {found}", missing.join(", "));
    }
    outputs.values().try_for_each(|file| own(&out.join(file), out))
}

/// Refuses what leads elsewhere or is no file, and makes a file of two names one of its own.
fn own(path: &Path, out: &Path) -> anyhow::Result<()> {
    let metadata = fs_err::symlink_metadata(path)?;
    let name = path.strip_prefix(out).unwrap_or(path);
    ensure!(name.to_str().is_some(), "but the name of `{}` is not UTF-8", name.display());
    if metadata.is_dir() {
        for entry in fs_err::read_dir(path)? {
            own(&entry?.path(), out)?;
        }
        return Ok(());
    }
    let what = if metadata.is_symlink() { "a symbolic link" } else { "neither a file nor a folder" };
    let name = name.display();
    ensure!(
        metadata.is_file(),
        "but `{name}` is {what}: an output is files and folders, of bytes of their own"
    );
    // The other name may be that of an input, and the cache must share no bytes that somebody can change.
    if metadata.nlink() > 1 {
        // The command may have removed the folder.
        fs_err::create_dir_all(out.join(TMP))?;
        let aside = out.join(TMP).join("own");
        fs_err::copy(path, &aside)?;
        fs_err::rename(&aside, path)?;
    }
    Ok(())
}
