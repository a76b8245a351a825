//! Files from elsewhere brought into one folder: local or http(s), unpacked, checked.

use std::path::{Component, Path, PathBuf};

use anyhow::Context as _;
use serde_json::{Value as Json, json};

use super::accept::{self, Outputs};
use crate::io::archive::{Limits, unpack_volumes};
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
        /// Whether to unpack it: zip, tar, tar.gz or 7z. An archive cut into volumes (`x.7z.001`, `x.7z.002`, …) is
        /// listed volume by volume, in order.
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

    /// For a volume of an archive, such as `x.7z.002`: the archive's name and the volume's number.
    fn volume(&self) -> Option<(&str, u32)> {
        let (archive, number) = self.from.file_name().rsplit_once('.').filter(|_| self.unpack)?;
        let is_number = number.len() == 3 && number.bytes().all(|byte| byte.is_ascii_digit());
        number.parse().ok().filter(|_| is_number).map(|number| (archive, number))
    }

    /// Whether both are volumes of one archive, this one right behind `before`.
    fn continues(&self, before: &File) -> bool {
        match (before.volume(), self.volume()) {
            (Some((archive, number)), Some((same, next))) => {
                archive == same && number + 1 == next && before.target() == self.target()
            }
            _ => false,
        }
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
        let archives = self.files.chunk_by(|before, file| file.continues(before));
        let starts = archives.filter_map(|volumes| volumes.first());
        let loose = starts.filter(|file| file.volume().is_some_and(|(_, number)| number != 1));
        let fault = |file: &File| {
            let (archive, number) = file.volume()?;
            let expected = number.saturating_sub(1);
            Some((
                "files",
                format!("`{archive}.{number:03}` must follow `{archive}.{expected:03}`, with the same `to`"),
            ))
        };
        loose.filter_map(fault).collect()
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
    /// SHA-256; only where neither is known does the address stand for them. A SHA-256 always counts, or another
    /// one would not be checked again.
    fn identity(params: &Params) -> Json {
        let files = params.files.iter().map(|file| {
            let address = match (file.from.local(), &file.sha256) {
                (None, None) => Some(&file.from.0),
                _ => None,
            };
            let sha256 = file.sha256.as_ref().map(|digest| digest.to_ascii_lowercase());
            json!({ "to": file.target(), "unpack": file.unpack, "sha256": sha256, "address": address })
        });
        json!({ "files": files.collect::<Vec<_>>() })
    }

    /// What an archive holds is not known without it; every other file has its name.
    fn accept(params: &Params, _: &Inputs, outputs: &Outputs) -> anyhow::Result<()> {
        let folder = &outputs["files"];
        anyhow::ensure!(folder.is_dir(), "{}: expected a folder", folder.display());
        for file in params.files.iter().filter(|file| !file.unpack) {
            accept::below(folder, file.target(), file.sha256.as_deref())?;
        }
        Ok(())
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
        // Sizes are known file by file, if at all: every file counts for a thousand steps.
        let total = STEPS * params.files.len() as u64;
        let mut done = 0;
        let progress = |done: u64| (cx.progress)(done, total);
        for volumes in params.files.chunk_by(|before, file| file.continues(before)) {
            match volumes {
                [file] if !file.unpack => bring(file, &files, &|steps| progress(done + steps))?,
                volumes => bring_archive(volumes, &files, &aside, &|steps| progress(done + steps))?,
            }
            done += STEPS * volumes.len() as u64;
            progress(done);
        }
        Ok(())
    }
}

/// Steps of progress for one file.
const STEPS: u64 = 1000;

fn bring(file: &File, files: &Path, progress: &dyn Fn(u64)) -> anyhow::Result<()> {
    let target = files.join(file.target());
    if let Some(folder) = file.from.local().filter(|path| path.is_dir()) {
        return copy_folder(folder, &target);
    }
    anyhow::ensure!(!target.exists(), "two files would become `{}`", file.target());
    let parent = target.parent().context("a file has a folder")?;
    fs_err::create_dir_all(parent)?;
    fetch_to(file, &target, progress)
}

/// Brings the volumes of one archive, most often a single one, and unpacks them as one.
fn bring_archive(volumes: &[File], files: &Path, aside: &Path, progress: &dyn Fn(u64)) -> anyhow::Result<()> {
    let target = volumes.first().context("an archive has a volume")?.target();
    if let [folder] = volumes
        && let Some(folder) = folder.from.local().filter(|path| path.is_dir())
    {
        return copy_folder(folder, &files.join(target));
    }
    let mut paths = Vec::new();
    let mut fetched = Vec::new();
    for (index, file) in volumes.iter().enumerate() {
        // A local archive without a digest to check is unpacked from where it stands.
        if let (Some(path), None) = (file.from.local(), &file.sha256) {
            paths.push(path.to_path_buf());
            continue;
        }
        let path = aside.join(index.to_string());
        fetch_to(file, &path, &|steps| progress(STEPS * index as u64 + steps))?;
        paths.push(path.clone());
        fetched.push(path);
    }
    unpack_volumes(&paths, files.join(target), Limits::default())?;
    for path in fetched {
        fs_err::remove_file(path)?;
    }
    Ok(())
}

fn fetch_to(file: &File, path: &Path, progress: &dyn Fn(u64)) -> anyhow::Result<()> {
    let options = Options { sha256: file.sha256.clone(), ..Options::default() };
    let mut hear = |heard: crate::io::fetch::Progress| {
        if let Some(total) = heard.total.filter(|total| *total > 0) {
            progress((u128::from(heard.done) * u128::from(STEPS) / u128::from(total)) as u64);
        }
    };
    fetch(&file.from.0, path, &options, &mut hear)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn files(names: &[&str]) -> Params {
        let file = |name: &&str| File {
            from: Location(format!("https://example.org/{name}")),
            to: None,
            unpack: true,
            sha256: None,
        };
        Params { files: names.iter().map(file).collect() }
    }

    #[test]
    fn volumes_that_follow_each_other_are_one_archive() {
        let params = files(&["a.zip", "x.7z.001", "x.7z.002", "y.7z.001", "x.7z.001"]);
        let archives = params.files.chunk_by(|before, file| file.continues(before));
        assert_eq!(archives.map(<[File]>::len).collect::<Vec<_>>(), [1, 2, 1, 1]);
        assert_eq!(params.validate(), []);
    }

    #[test]
    fn a_volume_without_the_one_before_it_is_a_fault() {
        let faults = files(&["x.7z.001", "x.7z.003", "y.7z.002"]).validate();
        let texts: Vec<_> = faults.into_iter().map(|(_, text)| text).collect();
        assert_eq!(
            texts,
            [
                "`x.7z.003` must follow `x.7z.002`, with the same `to`",
                "`y.7z.002` must follow `y.7z.001`, with the same `to`",
            ]
        );
    }
}
