//! Files from elsewhere brought into one folder: local or http(s), unpacked, checked.

use std::path::{Component, Path, PathBuf};

use anyhow::Context as _;
use serde_json::{Value as Json, json};

use crate::io::archive::{Limits, unzip};
use crate::io::fetch::{Options, fetch};
use crate::param::{Location, Validate};
use crate::params;
use crate::stage::{Compute, Context, Input, Inputs, Output, Stage, Unit};

params! {
    /// One file, archive or folder.
    pub struct File {
        /// A path, relative to the file that names it, or an http(s) address.
        from: Location,
        /// Where it goes in the output folder; by default its own name, or the folder itself for an archive.
        to: Option<String> = None,
        /// Whether to unpack it; zip archives can be.
        unpack: bool = false,
        /// The SHA-256 of the file in hexadecimal; another one is refused.
        sha256: Option<String> = None,
    }
}

impl Validate for File {
    fn validate(&self) -> Vec<(&'static str, String)> {
        let mut faults = Vec::new();
        let target = self.target();
        if !Path::new(target)
            .components()
            .all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
        {
            faults.push(("to", format!("`{target}` leads outside the output folder")));
        }
        if let Some(digest) = &self.sha256
            && (digest.len() != 64 || !digest.bytes().all(|byte| byte.is_ascii_hexdigit()))
        {
            faults.push(("sha256", format!("`{digest}` is no SHA-256: expected 64 hexadecimal digits")));
        }
        if self.sha256.is_some() && self.from.local().is_some_and(Path::is_dir) {
            faults.push(("sha256", "a folder has no SHA-256".to_owned()));
        }
        faults
    }
}

impl File {
    fn target(&self) -> &str {
        let own = if self.unpack { "." } else { self.from.file_name() };
        self.to.as_deref().unwrap_or(own)
    }

    fn port(index: usize) -> String {
        format!("files.{index}")
    }
}

params! {
    /// Parameters of `download`.
    pub struct Params {
        /// What to bring, in order; a later one may not overwrite an earlier.
        files: Vec<File>,
    }
}

impl Validate for Params {
    fn validate(&self) -> Vec<(&'static str, String)> {
        if self.files.is_empty() {
            return vec![("files", "`files` is empty, expected at least one".to_owned())];
        }
        Vec::new()
    }
}

/// See the module.
pub struct Download;

impl Stage for Download {
    type Params = Params;
    const KIND: &'static str = "download";
    const VERSION: u32 = 1;
    const SUMMARY: &'static str = "local or remote files brought into one folder, checked and unpacked";
    const INPUTS: &'static [Input] = &[];
    const OUTPUTS: &'static [Output] =
        &[Output { name: "files", file: "files", doc: "a folder; name what is in it as `stage.files/path`" }];
    const NUMERIC: bool = false;

    fn sources(params: &Params) -> Vec<(String, PathBuf)> {
        let files = params.files.iter().enumerate();
        files
            .filter_map(|(index, file)| Some((File::port(index), file.from.local()?.to_path_buf())))
            .collect()
    }

    /// Bytes count, not where they come from: a local file by its digest as an input, a remote one by its
    /// SHA-256; only where neither is known does the address stand for them.
    fn identity(params: &Params) -> Json {
        let files = params.files.iter().map(|file| {
            let address = match (file.from.local(), &file.sha256) {
                (None, None) => Some(&file.from.0),
                _ => None,
            };
            let sha256 = file.sha256.as_ref().filter(|_| file.from.local().is_none());
            let sha256 = sha256.map(|digest| digest.to_ascii_lowercase());
            json!({ "to": file.target(), "unpack": file.unpack, "sha256": sha256, "address": address })
        });
        json!({ "files": files.collect::<Vec<_>>() })
    }
}

impl Compute for Download {
    fn run(
        params: &Params,
        _: &Inputs,
        _: Option<&Unit>,
        out: &Path,
        cx: &Context<'_>,
    ) -> anyhow::Result<()> {
        let files = out.join("files");
        fs_err::create_dir(&files)?;
        // Archives land beside the output: only what is unpacked from them belongs to it.
        let aside = out.join("archives");
        fs_err::create_dir(&aside)?;
        for (index, file) in params.files.iter().enumerate() {
            bring(file, &files, &aside.join(index.to_string()), cx)?;
            (cx.progress)(index as u64 + 1, params.files.len() as u64);
        }
        Ok(())
    }
}

fn bring(file: &File, files: &Path, aside: &Path, cx: &Context<'_>) -> anyhow::Result<()> {
    let target = files.join(file.target());
    if let Some(folder) = file.from.local().filter(|path| path.is_dir()) {
        return copy_folder(folder, &target);
    }
    let options = Options { sha256: file.sha256.clone(), ..Options::default() };
    let mut progress = |progress: crate::io::fetch::Progress| {
        if let Some(total) = progress.total {
            (cx.progress)(progress.done, total);
        }
    };
    if file.unpack {
        // A local archive without a digest to check is unpacked from where it stands.
        let archive = match (file.from.local(), &file.sha256) {
            (Some(path), None) => path.to_path_buf(),
            _ => {
                fetch(&file.from.0, aside, &options, &mut progress)?;
                aside.to_path_buf()
            }
        };
        unzip(&archive, &target, Limits::default())?;
        if archive == aside {
            fs_err::remove_file(&archive)?;
        }
        return Ok(());
    }
    anyhow::ensure!(!target.exists(), "two files would become `{}`", file.target());
    let parent = target.parent().context("a file has a folder")?;
    fs_err::create_dir_all(parent)?;
    fetch(&file.from.0, &target, &options, &mut progress)?;
    Ok(())
}

fn copy_folder(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs_err::create_dir_all(to)?;
    for entry in fs_err::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if fs_err::metadata(entry.path())?.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else {
            anyhow::ensure!(!target.exists(), "two files would become `{}`", target.display());
            fs_err::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}
