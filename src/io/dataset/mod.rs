//! Training sets in the forms that people have, as one list of images with their captions.
//!
//! The order of the list is the identity of an image: index i of latents, losses and ranks. Folders are read by relative path,
//! compared as bytes; tables by row; several files by their names, then by row. It never depends on the order of a directory.

mod coco;
mod columns;
mod folders;
mod kohya;
mod metadata;
mod parquet;
mod sidecar;
mod webdataset;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{bail, ensure};

use crate::io::names;
pub use folders::is_picture;
use folders::{has_extension, is_metadata, walk};

/// How a training set lies on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Images, each with a `.txt` or `.caption` file of its name beside it, as kohya's scripts read them.
    Sidecar,
    /// Images and `metadata.csv`, `.jsonl` or `.parquet`, as `datasets` reads an `imagefolder`.
    ImageFolder,
    /// Parquet files that hold the images, as `push_to_hub` writes them.
    Parquet,
    /// Tar files whose neighbouring members of one name are a sample.
    WebDataset,
    /// Images and a captions file in COCO's layout.
    Coco,
}

impl Form {
    /// All forms, with their names.
    pub const ALL: [(Self, &'static str); 5] = [
        (Self::Sidecar, "sidecar"),
        (Self::ImageFolder, "imagefolder"),
        (Self::Parquet, "parquet"),
        (Self::WebDataset, "webdataset"),
        (Self::Coco, "coco"),
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(form, _)| *form == self).map_or("", |(_, name)| name)
    }

    /// What its order is.
    pub fn order(self) -> &'static str {
        match self {
            Self::Sidecar => "by relative path, compared as bytes",
            Self::ImageFolder => "by path of the metadata file, then by row",
            Self::Parquet | Self::WebDataset => "by file name, then by row",
            Self::Coco => "that of the captions file",
        }
    }
}

/// How a form is read where there is a choice.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The column of the images, of parquet; found by its type otherwise.
    pub image_column: Option<String>,
    /// The column of the captions; `text.en` is the key `en` of an object in the column `text`.
    pub caption_column: Option<String>,
    /// The split to take, where there are several.
    pub split: Option<String>,
    /// Whether every line of a sidecar that is not empty is a caption, or the first line alone.
    pub all_lines: bool,
}

/// An image of a training set.
pub struct Item<'a> {
    /// Its file's name in the list, relative, unique.
    pub name: String,
    /// Its bytes.
    pub picture: Picture<'a>,
    /// Its captions, none if it has none.
    pub captions: Vec<String>,
    /// Its id as JSON, where the form has ids.
    pub id: Option<String>,
}

/// Where an image's bytes are.
pub enum Picture<'a> {
    /// In a file of its own.
    File(PathBuf),
    /// In memory.
    Bytes(&'a [u8]),
}

/// Files of a folder that make no image of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unused {
    /// What they are.
    pub what: &'static str,
    /// What becomes of them.
    pub how: &'static str,
    /// Their names.
    pub files: Vec<PathBuf>,
}

/// What is done with each image, in order.
pub type Visit<'v> = dyn FnMut(Item<'_>) -> anyhow::Result<()> + 'v;

/// Where a training set lies.
#[derive(Debug, Clone, Copy)]
pub struct Source<'p> {
    /// A folder, or a file of a form that is one.
    pub path: &'p Path,
    /// A captions or metadata file elsewhere.
    pub captions: Option<&'p Path>,
}

impl Source<'_> {
    /// The form, from what is there.
    ///
    /// # Errors
    /// Nothing fits, or more than one form does: all that do are named.
    pub fn form(&self) -> anyhow::Result<Form> {
        let Self { path, captions } = *self;
        if let Some(file) = captions {
            return Ok(if has_extension(file, &["json"]) { Form::Coco } else { Form::ImageFolder });
        }
        if path.is_file() {
            return match () {
                () if has_extension(path, &["parquet"]) => Ok(Form::Parquet),
                () if has_extension(path, &["tar"]) => Ok(Form::WebDataset),
                () => {
                    bail!("{}: expected a folder, a .parquet or a .tar file{}", path.display(), unpack(path))
                }
            };
        }
        let files = walk(path)?;
        let any = |is: &dyn Fn(&Path) -> bool| files.iter().find(|file| is(file));
        let pictures = files.iter().filter(|file| is_picture(file)).count();
        let found = [
            (Form::ImageFolder, any(&is_metadata)),
            (Form::Parquet, any(&|file| has_extension(file, &["parquet"]) && !is_metadata(file))),
            (Form::WebDataset, any(&|file| has_extension(file, &["tar"]))),
            (Form::Coco, any(&|file| coco::of_file(&path.join(file)).is_some())),
            (Form::Sidecar, any(&|file| sidecar::is_one(path, file))),
        ];
        let found: Vec<(Form, &PathBuf)> =
            found.into_iter().filter_map(|(form, file)| Some((form, file?))).collect();
        match found.as_slice() {
            [(form, _)] => Ok(*form),
            // Images alone: each is without a caption, which the parameters may allow.
            [] if pictures > 0 => Ok(Form::Sidecar),
            [] => bail!(
                "{}: no training set: expected images, .parquet or .tar files, found {}",
                path.display(),
                match files.as_slice() {
                    [] => "nothing".to_owned(),
                    [first, ..] => {
                        format!(
                            "{} files of other kinds, such as {}{}",
                            files.len(),
                            first.display(),
                            unpack(first)
                        )
                    }
                }
            ),
            several => {
                let each: Vec<String> = several
                    .iter()
                    .map(|(form, file)| format!("`{}` ({})", form.name(), file.display()))
                    .collect();
                bail!(
                    "{}: more than one form fits: {}; choose one by `form`",
                    path.display(),
                    each.join(", ")
                )
            }
        }
    }

    /// Calls `visit` with each image, in the order of the form; the files beside them that make none.
    ///
    /// # Errors
    /// The file, what was found and what was expected; and the first error of `visit`.
    pub fn read(&self, form: Form, options: &Options, visit: &mut Visit<'_>) -> anyhow::Result<Vec<Unused>> {
        if let Some(split) = options.split.as_ref().filter(|_| matches!(form, Form::Sidecar | Form::Coco)) {
            bail!(
                "`split` is `{split}`, and the form `{}` has no splits: give the folder of one",
                form.name()
            );
        }
        let mut unique = names::Unique::default();
        let mut used = BTreeSet::new();
        let mut visit = |item: Item<'_>| {
            if matches!(item.picture, Picture::File(_)) {
                used.insert(item.name.clone());
            }
            if let Some(fault) = unique.add(&item.name, false) {
                bail!("{}: the image `{}`: {fault}", self.path.display(), item.name);
            }
            visit(item)
        };
        match form {
            Form::Sidecar => sidecar::read(self.path, options, &mut visit),
            Form::ImageFolder => metadata::read(self, options, &mut visit),
            Form::Parquet => parquet::read(self.path, options, &mut visit),
            Form::WebDataset => webdataset::read(self.path, options, &mut visit),
            Form::Coco => coco::read(self, &mut visit),
        }?;
        match form {
            Form::Sidecar => unused(self.path, &used, true),
            Form::ImageFolder if options.split.is_none() => unused(self.path, &used, false),
            _ => Ok(Vec::new()),
        }
    }
}

/// Pictures that the list does not have, pictures of formats that are not read, and captions without an image.
fn unused(folder: &Path, used: &BTreeSet<String>, with_captions: bool) -> anyhow::Result<Vec<Unused>> {
    let stems: BTreeSet<PathBuf> = used.iter().map(|name| Path::new(name).with_extension("")).collect();
    let files = walk(folder)?;
    let of = |what, is: &dyn Fn(&Path) -> bool| Unused {
        what,
        how: "they are not in the list",
        files: files.iter().filter(|file| is(file)).cloned().collect(),
    };
    let varying = of("configurations of kohya's scripts that shuffle or change captions", &|file| {
        with_captions && has_extension(file, &["toml"]) && kohya::varies_captions(&folder.join(file))
    });
    let listed = |file: &Path| used.contains(file.to_string_lossy().as_ref());
    let found = [
        of("pictures that the table does not name", &|file| is_picture(file) && !listed(file)),
        of("pictures of formats that are not read", &|file| has_extension(file, &NOT_READ)),
        of("captions without an image", &|file| {
            with_captions
                && has_extension(file, &sidecar::ENDINGS)
                && !stems.contains(&file.with_extension(""))
        }),
        Unused { how: "captions are taken as they are written", ..varying },
    ];
    Ok(found.into_iter().filter(|unused| !unused.files.is_empty()).collect())
}

/// Endings of pictures that cannot be read here.
const NOT_READ: [&str; 7] = ["svg", "heic", "heif", "avif", "jxl", "psd", "ico"];

/// What is to be done with an archive.
fn unpack(file: &Path) -> &'static str {
    match has_extension(file, &["zip", "gz", "tgz", "7z"]) {
        true => "; a `download` stage unpacks archives: files = [{ from = \"…\", unpack = true }]",
        false => "",
    }
}

/// The one split among the names of files, or the wanted one: `train` of `data/train-00000-of-00005.parquet`.
///
/// # Errors
/// Several, or not the wanted one: those that are there.
fn of_split(files: Vec<PathBuf>, wanted: Option<&str>) -> anyhow::Result<Vec<PathBuf>> {
    let split = |file: &PathBuf| {
        let stem = file.file_stem()?.to_str()?;
        let (name, rest) = stem.split_once('-')?;
        rest.contains("-of-").then(|| name.to_owned())
    };
    let mut splits: Vec<String> = files.iter().filter_map(split).collect();
    splits.sort();
    splits.dedup();
    let listed = splits.iter().map(|split| format!("`{split}`")).collect::<Vec<_>>().join(", ");
    match wanted {
        None => {
            ensure!(splits.len() < 2, "the files are of several splits: {listed}; choose one by `split`");
            Ok(files)
        }
        Some(wanted) => {
            let found: Vec<PathBuf> =
                files.into_iter().filter(|file| split(file).is_some_and(|split| split == wanted)).collect();
            let listed = if listed.is_empty() { "no split".to_owned() } else { listed };
            ensure!(!found.is_empty(), "`split` is `{wanted}`, found {listed}");
            Ok(found)
        }
    }
}
