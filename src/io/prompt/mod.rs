//! What text made a picture, according to its own metadata.
//!
//! Two forms are read. AUTOMATIC1111's program and its descendants write lines of text: in a PNG's text chunk
//! `parameters`, or in the EXIF field `UserComment`. ComfyUI writes its graph as JSON: in a PNG's text chunk
//! `prompt`, or in the EXIF field `Model`. Nothing is guessed: where several texts are possible, the
//! error lists them.

mod a1111;
mod chunks;
mod comfyui;
mod error;
mod exif;
mod syntax;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io::{Read, Seek};
use std::path::Path;

use super::words::cut;
pub use error::{Candidate, PromptError};
pub use syntax::strip_a1111;

/// The program whose form the metadata have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// AUTOMATIC1111's Stable Diffusion web UI, Forge, and others that write its form.
    A1111,
    /// ComfyUI.
    ComfyUi,
}

/// What a picture says about how it was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The form of the metadata.
    pub source: Source,
    /// The prompt as written, without whitespace at its ends.
    pub prompt: String,
    /// The negative prompt, if there is one and it is known.
    pub negative: Option<String>,
    /// `Steps`, `Sampler`, `CFG scale`, `Seed`, `Size`, `Model hash`, `Model` and others, as written.
    pub settings: BTreeMap<String, String>,
    /// What a reader of the prompt should know, a sentence each.
    pub warnings: Vec<String>,
}

/// Reads what a PNG, JPEG or WebP, detected by content, says about how it was made.
///
/// `None`: another kind of file, or a picture without such metadata.
///
/// # Errors
/// The file cannot be read, a part that may hold the text is damaged, or the text is not known.
pub fn read(file: &Path) -> Result<Option<Found>, PromptError> {
    let opened = fs_err::File::open(file)?;
    let length = opened.metadata()?.len();
    read_from(file, opened, length)
}

fn read_from(file: &Path, opened: impl Read + Seek, length: u64) -> Result<Option<Found>, PromptError> {
    let mut metadata = chunks::read(file, opened, length)?;
    let mut written = metadata.parameters.take().and_then(|text| a1111::parse(&text.value, true));
    if metadata.prompt.is_none()
        && written.is_none()
        && let Some(part) = metadata.exif.take()
    {
        let fields = exif::fields(&part).map_err(|reason| part.damaged(file, reason))?;
        if let Some(comment) = fields.comment {
            written = a1111::parse(&comment.text, false);
            if written.is_some()
                && let Some(reason) = comment.broken
            {
                return Err(part.damaged(file, reason));
            }
        }
        metadata.prompt = fields.graph.map(|graph| part.text("the EXIF field Model", graph));
    }
    let graph = metadata.prompt.map(|text| comfyui::read(&text, file));
    let mut found = match (written, graph) {
        (Some(mut written), graph) => {
            if let Some(Ok(Some(graph))) = graph
                && graph.prompt != written.prompt
            {
                let other = cut(&graph.prompt, error::CUT);
                written
                    .warnings
                    .push(format!("the ComfyUI graph has another text, which is not taken: {other:?}"));
            }
            written
        }
        (None, Some(graph)) => match graph? {
            Some(found) => found,
            None => return Ok(None),
        },
        (None, None) => return Ok(None),
    };
    found.warnings.splice(0..0, metadata.warnings);
    if found.prompt.is_empty() {
        found.warnings.push("the prompt is empty".to_owned());
    }
    found.warnings.extend(syntax::warnings(&found.prompt, found.source));
    Ok(Some(found))
}
