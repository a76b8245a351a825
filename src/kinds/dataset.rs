//! A training set of one's own, in any of the usual forms, as images and a captions file.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value as Json, json};

use super::shared::check_outputs::Outputs;
use super::shared::counted::Counted;
use crate::io::captions::coco::Captions;
use crate::io::dataset::{Form as IoForm, Item, Options, Picture, Source, Unused};
use crate::io::image::dimensions;
use crate::io::json;
use attrflow_engine::config::param::Validate;
use attrflow_engine::kind::{
    ArtifactShape, Compute, Context, Estimate, ExpectedInputs, Input, Inputs, Kind, KindInfo, Output, Stage,
    Task,
};
use attrflow_engine::{choice, params};

choice! {
    /// How the training set lies on disk.
    pub enum Form {
        /// Images, each with a `.txt` or `.caption` file of its name beside it.
        Sidecar = "sidecar",
        /// Images and `metadata.csv`, `.jsonl` or `.parquet`.
        ImageFolder = "imagefolder",
        /// Parquet files that hold the images.
        Parquet = "parquet",
        /// Tar files of samples.
        WebDataset = "webdataset",
        /// Images and a captions file in COCO's layout.
        Coco = "coco",
    }
}

choice! {
    /// What is done with images that have no caption.
    pub enum Missing {
        /// The data set is refused.
        Refuse = "refuse",
        /// They are left out.
        Skip = "skip",
        /// They get the text `caption`.
        Fill = "fill",
    }
}

choice! {
    /// What is done with an image whose bytes are those of an earlier one.
    pub enum Duplicates {
        /// It stays, with a warning: equal images share their influence.
        Keep = "keep",
        /// It is left out.
        Skip = "skip",
    }
}

choice! {
    /// Which lines of a `.txt` or `.caption` file are captions.
    pub enum Lines {
        /// The first, as kohya's scripts read it.
        First = "first",
        /// All that are not empty.
        All = "all",
    }
}

params! {
    /// Parameters of `dataset`.
    pub struct Dataset {
        /// How the training set lies on disk; found by what is there otherwise.
        form: Option<Form> = None,
        /// The column of the captions, of tables and of WebDataset's JSON; `text.en` is the key `en` of an object in the column `text`.
        caption_column: Option<String> = None,
        /// The column of the images, of parquet.
        image_column: Option<String> = None,
        /// The split to take, where there are several, such as `train`.
        split: Option<String> = None,
        /// Which lines of a `.txt` or `.caption` file are captions: the first, or all that are not empty.
        lines: Lines = Lines::First,
        /// Images without a caption: `refuse` ends with an error, `skip` leaves them out, `fill` gives them the text `caption`.
        missing: Missing = Missing::Refuse,
        /// The caption of images without one, for `missing = "fill"`.
        caption: Option<String> = None,
        /// Images with equal bytes: `keep` keeps them with a warning, `skip` leaves out all but the first.
        duplicates: Duplicates = Duplicates::Keep,
        /// Only the first images.
        limit: Option<usize> = None,
    }
}

impl Validate for Dataset {
    fn validate(&self) -> Vec<(&'static str, String)> {
        let mut faults = Vec::new();
        match (self.missing, &self.caption) {
            (Missing::Fill, None) => {
                faults.push(("missing", "`missing = \"fill\"` needs `caption`".to_owned()))
            }
            (Missing::Refuse | Missing::Skip, Some(_)) => {
                faults
                    .push(("caption", "`caption` has an effect with `missing = \"fill\"` alone".to_owned()));
            }
            _ => {}
        }
        if self.limit == Some(0) {
            faults.push(("limit", "`limit` is 0, expected 1 or more".to_owned()));
        }
        faults
    }
}

const SOURCE: &str = "source";
const CAPTIONS: &str = "captions";
const IMAGES: &str = "images";
const REPORT: &str = "report.json";

impl Kind for Dataset {
    const INFO: KindInfo = KindInfo {
        inputs: &[
            Input::new(SOURCE, "a folder, or a .parquet or .tar file"),
            Input::new(CAPTIONS, "a captions file in COCO's layout (.json), or a table (.csv, .jsonl, .parquet), that lies elsewhere")
                .optional(),
        ],
        outputs: &[
            Output::new("images", IMAGES, "the folder of the images, their bytes as they were"),
            Output::new("captions", "captions.json", "the images in their order, with their captions, in COCO's layout"),
            Output::new("report", REPORT, "what was found, left out and filled in; a digest of the list"),
        ],
        libtorch: false,
        ..KindInfo::new::<Self>("dataset", 1, "a training set of one's own, in any of the usual forms")
    };
}

impl Stage for Dataset {
    fn validate_inputs(&self, inputs: &Inputs) -> anyhow::Result<()> {
        self.form(&source(inputs)).map(drop)
    }

    fn estimate(&self, _: &ExpectedInputs) -> anyhow::Result<Estimate> {
        // The images are files that nothing has counted.
        Ok(Estimate {
            outputs: [("report".to_owned(), ArtifactShape::Bytes(1000))].into(),
            ..Estimate::default()
        })
    }

    fn accept(&self, _: &Inputs, outputs: &Outputs) -> anyhow::Result<&'static str> {
        Captions::read_all(&outputs["captions"])?.check_files(&outputs["images"])?;
        Ok("that the captions file can be read, and that its images are there")
    }
}

fn source(inputs: &Inputs) -> Source<'_> {
    Source { path: inputs.path(SOURCE), captions: inputs.get(CAPTIONS) }
}

impl Dataset {
    fn form(&self, source: &Source<'_>) -> anyhow::Result<IoForm> {
        let wanted = self.form.and_then(|wanted| IoForm::ALL.iter().find(|(_, name)| *name == wanted.name()));
        wanted.map_or_else(|| source.form(), |(form, _)| Ok(*form))
    }

    fn options(&self) -> Options {
        Options {
            image_column: self.image_column.clone(),
            caption_column: self.caption_column.clone(),
            split: self.split.clone(),
            all_lines: self.lines == Lines::All,
        }
    }
}

/// The list as far as it is written.
#[derive(Default)]
struct List {
    images: Entries,
    annotations: Entries,
    digest: blake3::Hasher,
    /// All that were found, also those that are left out.
    found: usize,
    without_caption: Counted,
    duplicates: Counted,
    cropped: Counted,
    /// Files that make no image of it, for people.
    unused: Vec<String>,
    /// The first name of each picture, by the digest of its bytes.
    seen: HashMap<blake3::Hash, String>,
}

/// A list in JSON, as text: a hundred thousand values in memory would take ten times as much.
#[derive(Default)]
struct Entries {
    text: String,
    count: usize,
}

impl Entries {
    fn add(&mut self, entry: &Json) {
        if self.count > 0 {
            self.text.push(',');
        }
        self.text += &entry.to_string();
        self.count += 1;
    }
}

/// That there are enough.
#[derive(Debug, thiserror::Error)]
#[error("there are enough images")]
struct Enough;

impl Compute for Dataset {
    fn run(&self, task: &Task, cx: &Context<'_>) -> anyhow::Result<()> {
        let Task { inputs, out, .. } = task;
        let source = source(inputs);
        let form = self.form(&source)?;
        let mut list = List::default();
        let read = source.read(form, &self.options(), &mut |item| {
            if self.limit.is_some_and(|limit| list.images.count >= limit) {
                return Err(Enough.into());
            }
            self.add(&mut list, item, &out.join(IMAGES))?;
            cx.progress(list.found as u64, list.found as u64);
            Ok(())
        });
        let unused = match read {
            Ok(unused) => unused,
            Err(error) if error.is::<Enough>() => Vec::new(),
            Err(error) => return Err(error),
        };
        for Unused { what, how, files } in unused {
            let mut counted = Counted::default();
            files.iter().for_each(|file| counted.count(true, &file.to_string_lossy()));
            list.unused.extend(counted.line(what, how));
        }
        let without = list.without_caption.total();
        if self.missing == Missing::Refuse && without > 0 {
            bail!(
                "{}: {without} of {} images have no caption, for instance {}; give them one by `missing = \"fill\"` and \
                 `caption`, or leave them out by `missing = \"skip\"`",
                source.path.display(),
                list.found,
                list.without_caption.example()
            );
        }
        ensure!(list.images.count > 0, "{}: no image is left of {}", source.path.display(), list.found);
        self.lines_for_people(&list).iter().for_each(|line| tracing::warn!("{line}"));
        let (annotations, images) = (&list.annotations.text, &list.images.text);
        fs_err::write(
            out.join("captions.json"),
            format!("{{\"annotations\":[{annotations}],\"images\":[{images}]}}\n"),
        )?;
        let report = json!({
            "form": form.name(),
            "order": form.order(),
            "found": list.found,
            "images": list.images.count,
            "captions": list.annotations.count,
            "without_caption": without,
            "duplicates": list.duplicates.total(),
            "digest": list.digest.finalize().to_string(),
            "notes": self.lines_for_people(&list),
        });
        Ok(json::write_pretty(&out.join(REPORT), &report)?)
    }
}

impl Dataset {
    /// Adds an image to the list and writes it, unless it is left out.
    fn add(&self, list: &mut List, item: Item<'_>, folder: &Path) -> anyhow::Result<()> {
        let Item { name, picture, mut captions, id } = item;
        list.found += 1;
        if captions.is_empty() {
            list.without_caption.count(true, &name);
            match (self.missing, &self.caption) {
                (Missing::Fill, Some(caption)) => captions.push(caption.clone()),
                _ => return Ok(()),
            }
        }
        let owned;
        let bytes = match &picture {
            Picture::Bytes(bytes) => *bytes,
            Picture::File(file) => {
                owned = fs_err::read(file)?;
                &owned
            }
        };
        let [width, height] = dimensions(bytes).map_err(|why| {
            let start: Vec<String> = bytes.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
            anyhow::anyhow!("the image `{name}` cannot be read: {why}; it begins with {}", start.join(" "))
        })?;
        let digest = blake3::hash(bytes);
        if let Some(first) = list.seen.get(&digest) {
            list.duplicates.count(true, &format!("{name}, as {first}"));
            if self.duplicates == Duplicates::Skip {
                return Ok(());
            }
        } else {
            list.seen.insert(digest, name.clone());
        }
        let (long, short) = (width.max(height), width.min(height));
        list.cropped.count(u64::from(short) * 5 < u64::from(long) * 4, &name);
        let to = folder.join(&name);
        fs_err::create_dir_all(to.parent().unwrap_or(folder))?;
        match &picture {
            Picture::Bytes(bytes) => fs_err::write(&to, bytes)?,
            Picture::File(file) => {
                let _ =
                    reflink_copy::reflink_or_copy(file, &to).with_context(|| file.display().to_string())?;
            }
        }
        let id: Json = match id {
            Some(id) => serde_json::from_str(&id)?,
            None => json!(list.images.count + 1),
        };
        for part in [digest.as_bytes().as_slice(), name.as_bytes()] {
            list.digest.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
        for caption in captions {
            list.digest.update(&(caption.len() as u64).to_le_bytes()).update(caption.as_bytes());
            let number = list.annotations.count + 1;
            list.annotations.add(&json!({ "id": number, "image_id": id, "caption": caption }));
        }
        list.images.add(&json!({ "id": id, "file_name": name }));
        Ok(())
    }

    /// What is counted, for people.
    fn lines_for_people(&self, list: &List) -> Vec<String> {
        let without = match self.missing {
            Missing::Fill => "they get the text of `caption`",
            Missing::Refuse | Missing::Skip => "they are left out (`missing`)",
        };
        let equal = match self.duplicates {
            Duplicates::Keep => "they stay, and share their influence (`duplicates`)",
            Duplicates::Skip => "they are left out (`duplicates`)",
        };
        let notes = [
            list.without_caption.line("images without a caption", without),
            list.duplicates.line("images with the bytes of an earlier one", equal),
            list.cropped.line(
                "images of which more than a fifth is lost",
                "`latents` takes the middle square, which training in buckets or with random crops does not",
            ),
        ];
        notes.into_iter().flatten().chain(list.unused.iter().cloned()).collect()
    }
}
