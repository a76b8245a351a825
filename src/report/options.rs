//! What a report is asked for.

use std::path::PathBuf;

/// How a report is made.
#[derive(Debug, Clone)]
pub struct Options {
    /// Training images shown for each query, from the most influential on.
    pub top: usize,
    /// Training images shown from the other end.
    pub bottom: usize,
    /// The longer side of a training image's picture, in pixels.
    pub thumbnail: u32,
    /// The most bytes of the page. Beyond it, pictures shrink, then the number of images.
    pub max_size: usize,
    /// Leave out paths, hosts and users, and the file names of training images.
    pub redact: bool,
    /// Link to the pictures in full size, for [`Page::write_zip`](super::Page::write_zip).
    pub full_size: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { top: 20, bottom: 0, thumbnail: 96, max_size: 10_000_000, redact: false, full_size: false }
    }
}

/// Why there is no report, or no manifest in one.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// A template failed.
    #[error("the page cannot be written: {0}")]
    Page(#[from] askama::Error),
    /// A picture cannot be read.
    #[error("{}: {reason}", path.display())]
    Picture {
        /// Its file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// An archive cannot be written.
    #[error("the archive cannot be written: {0}")]
    Zip(#[from] zip::result::ZipError),
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] std::io::Error),
    /// A manifest cannot be written as JSON.
    #[error("the manifest cannot be written: {0}")]
    Manifest(#[from] serde_json::Error),
    /// A text that is no report.
    #[error("no manifest in this file: it is no page of `attrflow report`, or it is cut off")]
    NoManifest,
    /// Two runs without a query that both have.
    #[error("nothing to compare: the runs have no query of one name; {0}")]
    NoCommonQuery(String),
}
