//! Collects files in one folder: local, from http(s) or from the Hugging Face Hub, unpacked and verified.

mod apply;
mod fetch_all;
mod parallel;
mod plan;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use serde_json::{Value as Json, json};

use super::shared::check_outputs::{self, Outputs};
use crate::io::download::hub::{Hub, HubAddress};
use crate::io::download::{Client, RetryPolicy, name};
use attrflow_engine::config::param::{Location, Validate};
use attrflow_engine::kind::{Compute, Context, Inputs, Kind, KindInfo, Output, Stage, Task};
use attrflow_engine::params;

params! {
    /// One file, archive or folder, or several files of one repository.
    pub struct File {
        /// A path, relative to the file that names it; an http(s) address; or one on the Hugging Face Hub,
        /// `hf://datasets/OWNER/REPO[@REVISION]/PATH` for a dataset and `hf://OWNER/REPO[@REVISION]/PATH` for a
        /// model. There, PATH is a file, a folder (with all files below it), or a pattern in which `*` matches any part
        /// of a name; REVISION is `main` by default. Private and gated repositories need a token in HF_TOKEN. User,
        /// password and signature of a signed address (of Amazon, CloudFront, Google or Azure) are not hashed, so that a
        /// renewed signature downloads nothing again; they are stored nowhere, and only a hash of the rest of a query is.
        from: Location,
        /// Its path in the output folder; by default its own name, or the folder itself for an archive and for a
        /// pattern with `*`.
        to: Option<String> = None,
        /// Whether to unpack it: zip, tar, tar.gz or 7z. The volumes of a split archive (`x.7z.001`, `x.7z.002`, …) are
        /// listed in order; on the Hub, `x.7z.*` selects all of them.
        unpack: bool = false,
        /// The expected SHA-256 of the file in hexadecimal. Without it, the digest of the first download is pinned in
        /// attrflow.lock and expected from then on.
        sha256: Option<String> = None,
    }
}

impl Validate for File {
    fn validate(&self) -> Vec<(&'static str, String)> {
        let mut faults = Vec::new();
        let target = self.target();
        if !Path::new(&target)
            .components()
            .all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
        {
            faults.push(("to", format!("`{target}` leads outside the output folder")));
        }
        if let Some(digest) = &self.sha256
            && (digest.len() != 64 || !digest.bytes().all(|byte| byte.is_ascii_hexdigit()))
        {
            faults.push(("sha256", format!("invalid SHA-256 `{digest}`: expected 64 hexadecimal digits")));
        }
        if self.sha256.is_some() && self.from.local().is_some_and(Path::is_dir) {
            faults.push(("sha256", "a folder has no SHA-256".to_owned()));
        }
        if self.from.hub().is_some_and(|address| address.contains("OWNER/")) {
            let message =
                "it is the placeholder of a new project: name your own repository, or a path".to_owned();
            faults.push(("from", message));
        }
        match self.hub() {
            Some(Err(fault)) => faults.push(("from", fault)),
            Some(Ok(address)) if self.sha256.is_some() && (address.folder || address.is_pattern()) => {
                faults.push(("sha256", "several files have no common SHA-256".to_owned()));
            }
            _ => {}
        }
        faults
    }
}

impl File {
    fn hub(&self) -> Option<Result<HubAddress, String>> {
        self.from.hub().map(HubAddress::parse)
    }

    fn target(&self) -> String {
        let own = match self.hub() {
            _ if self.unpack => ".".to_owned(),
            Some(Ok(address)) => address.own_name().unwrap_or(".").to_owned(),
            // Without a path, the host is the name, which must not contain the password.
            _ => self.kept().file_name().to_owned(),
        };
        self.to.clone().unwrap_or(own)
    }

    /// Its source without secrets.
    fn kept(&self) -> Location {
        match self.from.local().is_some() || self.from.hub().is_some() {
            true => self.from.clone(),
            false => Location(name(&self.from.0)),
        }
    }

    /// For a volume of a split archive: the archive's name and the volume's number.
    fn volume(&self) -> Option<(&str, u32)> {
        volume(self.from.file_name()).filter(|_| self.unpack)
    }

    /// Whether both are volumes of one archive, this one directly after `before`.
    fn continues(&self, before: &File) -> bool {
        match (before.volume(), self.volume()) {
            (Some((archive, number)), Some((same, next))) => {
                archive == same && number + 1 == next && before.target() == self.target()
            }
            _ => false,
        }
    }

    /// Whether it is one file, whose path is its own: several folders and archives may share one.
    fn single(&self) -> bool {
        if self.unpack {
            return false;
        }
        match (self.from.local(), self.hub()) {
            (Some(path), _) => fs_err::metadata(path).is_ok_and(|found| found.is_file()),
            (None, Some(address)) => address.is_ok_and(|address| !address.folder && !address.is_pattern()),
            (None, None) => true,
        }
    }

    fn port(index: usize) -> String {
        format!("files.{index}")
    }
}

/// For a volume's name such as `x.7z.002`: the archive's name and the volume's number.
fn volume(name: &str) -> Option<(&str, u32)> {
    let (archive, number) = name.rsplit_once('.')?;
    let is_number = number.len() == 3 && number.bytes().all(|byte| byte.is_ascii_digit());
    number.parse().ok().filter(|_| is_number).map(|number| (archive, number))
}

params! {
    /// Parameters of `download`.
    pub struct Download {
        /// The files to collect, in order; a later one may not overwrite an earlier one.
        files: Vec<File>,
    }
}

impl Validate for Download {
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
        let mut faults: Vec<_> = loose.filter_map(fault).collect();
        let mut places = BTreeSet::new();
        for target in self.files.iter().filter(|file| file.single()).map(File::target) {
            let place: PathBuf =
                Path::new(&target).components().filter(|c| *c != Component::CurDir).collect();
            if !places.insert(place) {
                faults.push(("files", format!("two files would become `{target}`")));
            }
        }
        faults
    }
}

impl Kind for Download {
    const INFO: KindInfo = KindInfo {
        inputs: &[],
        outputs: &[Output::new("files", "files", "a folder; refer to its content as `stage.files/path`")],
        libtorch: false,
        ..KindInfo::new::<Self>("download", 1, "local or remote files in one folder, verified and unpacked")
    };
}

impl Stage for Download {
    fn sources(&self) -> Vec<(String, PathBuf)> {
        let files = self.files.iter().enumerate();
        files
            .filter_map(|(index, file)| Some((File::port(index), file.from.local()?.to_path_buf())))
            .collect()
    }

    fn relocate(&mut self, places: &BTreeMap<PathBuf, PathBuf>) {
        for file in &mut self.files {
            if let Some(place) = file.from.local().and_then(|path| places.get(path)) {
                file.from = Location(place.to_string_lossy().into_owned());
            }
        }
    }

    /// The address of a remote file without its secrets.
    fn recorded(&self) -> Json {
        let mut kept = self.clone();
        for file in &mut kept.files {
            file.from = file.kept();
        }
        json!(kept)
    }

    /// Content is hashed, not its source: a local file by its digest as an input, a remote one by its SHA-256. Only if
    /// that is unknown, the address without its secrets is hashed instead. A given SHA-256 is always hashed, so that
    /// another one is verified.
    fn identity(&self) -> Json {
        let files = self.files.iter().map(|file| {
            let address = match (file.from.local(), &file.sha256) {
                (None, None) => Some(file.kept().0),
                _ => None,
            };
            let sha256 = file.sha256.as_ref().map(|digest| digest.to_ascii_lowercase());
            json!({ "to": file.target(), "unpack": file.unpack, "sha256": sha256, "address": address })
        });
        json!({ "files": files.collect::<Vec<_>>() })
    }

    /// Files that are not unpacked can be read at their source before the stage runs.
    fn source_path(&self, _: &str, below: Option<&str>) -> Option<PathBuf> {
        let below = Path::new(below?);
        let found = self.files.iter().filter(|file| !file.unpack).find_map(|file| {
            let target: PathBuf =
                Path::new(&file.target()).components().filter(|c| *c != Component::CurDir).collect();
            let rest = below.strip_prefix(target).ok()?;
            let from = file.from.local()?;
            Some(if rest.as_os_str().is_empty() { from.to_path_buf() } else { from.join(rest) })
        });
        found.filter(|path| path.exists())
    }

    /// The content of an archive is unknown; every other file has its name.
    fn accept(&self, _: &Inputs, outputs: &Outputs) -> anyhow::Result<&'static str> {
        let folder = &outputs["files"];
        anyhow::ensure!(folder.is_dir(), "{}: expected a folder", folder.display());
        for file in self.files.iter().filter(|file| !file.unpack) {
            check_outputs::below(folder, &file.target(), file.sha256.as_deref())?;
        }
        Ok("names, and the SHA-256 where one is given")
    }
}

impl Compute for Download {
    fn run(&self, task: &Task, cx: &Context<'_>) -> anyhow::Result<()> {
        let Task { out, .. } = task;
        let files = out.join("files");
        fs_err::create_dir(&files)?;
        fetch_all::fetch_all(self, &files, &Client::new(RetryPolicy::default()), &Hub::from_env, cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(names: &[&str]) -> Download {
        let file = |name: &&str| File {
            from: Location(if name.contains("://") {
                (*name).into()
            } else {
                format!("https://example.org/{name}")
            }),
            to: None,
            unpack: true,
            sha256: None,
        };
        Download { files: names.iter().map(file).collect() }
    }

    #[test]
    fn consecutive_volumes_are_one_archive() {
        let params = files(&["a.zip", "x.7z.001", "x.7z.002", "y.7z.001", "x.7z.001"]);
        let archives = params.files.chunk_by(|before, file| file.continues(before));
        assert_eq!(archives.map(<[File]>::len).collect::<Vec<_>>(), [1, 2, 1, 1]);
        assert_eq!(params.validate(), []);
    }

    #[test]
    fn a_volume_without_its_predecessor_is_a_fault() {
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

    #[test]
    fn two_files_with_one_path_are_a_fault() {
        let loose = |names: &[&str]| {
            let mut params = files(names);
            params.files.iter_mut().for_each(|file| file.unpack = false);
            params.validate()
        };
        let faults = loose(&["https://a.example/x", "https://b.example/y", "https://c.example/x?v=2"]);
        assert_eq!(faults, [("files", "two files would become `x`".to_owned())]);
        assert_eq!(loose(&["hf://o/r/*", "hf://o/r/*"]), []);
    }

    #[test]
    fn the_address_gives_the_path() {
        let target = |address: &str, unpack: bool| {
            let mut params = files(&[address]);
            params.files[0].unpack = unpack;
            params.files[0].target().to_owned()
        };
        assert_eq!(target("https://example.org/a/b.zip?x=/y", false), "b.zip");
        assert_eq!(target("https://example.org/a/b.zip", true), ".");
        assert_eq!(target("hf://datasets/o/r/a/b.txt", false), "b.txt");
        assert_eq!(target("hf://datasets/o/r/a/folder/", false), "folder");
        assert_eq!(target("hf://datasets/o/r/a/*.txt", false), ".");
        assert_eq!(target("hf://o/r@v2", false), "r");
        assert_eq!(target("hf://o/r@refs/pr/2/a@b#c.txt", false), "a@b#c.txt");
    }

    #[test]
    fn an_address_on_the_hub_is_validated() {
        let mut wrong = files(&["hf://o/r/../x"]).files.remove(0);
        assert!(wrong.validate()[0].1.contains("`..`"), "{:?}", wrong.validate());
        wrong.from = Location("hf://o/r/*".into());
        wrong.sha256 = Some("0".repeat(64));
        assert_eq!(wrong.validate(), [("sha256", "several files have no common SHA-256".to_owned())]);
    }
}
