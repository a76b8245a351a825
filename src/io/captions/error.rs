//! Why captions of a training set are refused.

use std::io;
use std::path::PathBuf;

use crate::io::json::JsonError;

/// The most names that a message lists.
pub(super) const LISTED: usize = 3;

/// Why captions could not be read, or do not match their images.
#[derive(Debug, thiserror::Error)]
pub enum CocoError {
    /// The operating system refused; fs-err puts the path into the message.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Not JSON, or not of the expected form.
    #[error("{}: not a COCO captions file: {source}", path.display())]
    Json {
        /// The annotation file.
        path: PathBuf,
        /// The error of the parser, with line and column.
        source: serde_json::Error,
    },
    /// Something else stands in its place.
    #[error(
        "{}: found {found}, expected a COCO captions file: {{\"images\": [{{\"id\": 1, \"file_name\": \"a.png\"}}], \
         \"annotations\": [{{\"image_id\": 1, \"caption\": \"an apple\"}}]}}",
        path.display()
    )]
    Instead {
        /// The file or folder.
        path: PathBuf,
        /// What it is.
        found: String,
    },
    /// A value that is not finite where one is needed, or another file.
    #[error(transparent)]
    Other(JsonError),
    /// A file name that could lead outside the folder of images.
    #[error("{}: entry {index} of `images` has the file_name {name:?}, which is refused: {reason}", path.display())]
    Unsafe {
        /// The annotation file.
        path: PathBuf,
        /// Position in `images`, from 0.
        index: usize,
        /// The name.
        name: String,
        /// Why it is refused.
        reason: &'static str,
    },
    /// Two images share an id, or a file name.
    #[error("{}: {what} {value} occurs twice in `images`", path.display())]
    Duplicate {
        /// The annotation file.
        path: PathBuf,
        /// `id` or `file_name`.
        what: &'static str,
        /// The duplicate value.
        value: String,
    },
    /// Two names that one file may have.
    #[error(
        "{}: the file_names {first:?} and {second:?} differ only in case or in the form of accents: many file systems take them for one \
         file, so rename one",
        path.display()
    )]
    Twins {
        /// The annotation file.
        path: PathBuf,
        /// The name that comes first.
        first: String,
        /// The other.
        second: String,
    },
    /// Two names that lead to one file.
    #[error(
        "{}: {first:?} and {second:?} are one file, expected a file for each image; to count it twice, copy it",
        folder.display()
    )]
    OneFile {
        /// The image folder.
        folder: PathBuf,
        /// The name that comes first.
        first: String,
        /// The other.
        second: String,
    },
    /// A caption belongs to no image.
    #[error("{}: annotation {index} has image_id {image_id}, which no entry of `images` has", path.display())]
    Orphan {
        /// The annotation file.
        path: PathBuf,
        /// Position in `annotations`, from 0.
        index: usize,
        /// The id that is missing.
        image_id: String,
    },
    /// Images have too few captions.
    #[error("{}: {count} images have fewer than {expected} captions, for instance {}", path.display(), some(examples))]
    TooFew {
        /// The annotation file.
        path: PathBuf,
        /// Number of images.
        count: usize,
        /// Captions needed for each image.
        expected: usize,
        /// The first of them, with their numbers of captions.
        examples: Vec<String>,
    },
    /// There is no image.
    #[error("{}: `images` is empty", path.display())]
    Empty {
        /// The annotation file.
        path: PathBuf,
    },
    /// A file where the images are expected.
    #[error("{}: it is a file, expected the folder of the images; a `download` unpacks archives", path.display())]
    NoFolder {
        /// The file.
        path: PathBuf,
    },
    /// Images named by the captions are not in the folder.
    #[error("{}: {count} of {total} images are missing, for instance {}{}", folder.display(), some(examples), has(near))]
    MissingFiles {
        /// The image folder.
        folder: PathBuf,
        /// Number of images.
        count: usize,
        /// Images named by the captions.
        total: usize,
        /// The first of them.
        examples: Vec<String>,
        /// A file that was probably meant by the first.
        near: Option<String>,
    },
}

fn has(near: &Option<String>) -> String {
    near.as_ref().map(|near| format!("; the folder has {near}")).unwrap_or_default()
}

fn some(examples: &[String]) -> String {
    examples.join(", ")
}
