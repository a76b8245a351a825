//! Why the text that made a picture could not be read, or is not known.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::io::words::cut;

/// The most candidates that a message lists, and the most characters of each.
const LISTED: usize = 8;
pub(super) const CUT: usize = 80;

/// A text that may have made the picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Where it stands, for instance `node 6 (CLIPTextEncode)`.
    pub place: String,
    /// The whole text.
    pub text: String,
}

/// Why the text that made a picture could not be read, or is not known.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    /// The operating system refused; fs-err puts the path into the message.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A part of the picture that may hold the text is damaged, cut off or too large.
    #[error("{}: {part} at byte {at} is damaged: {reason}", path.display())]
    Damaged {
        /// The picture.
        path: PathBuf,
        /// Which part, for instance ``the chunk zTXt `parameters` ``.
        part: String,
        /// Where in the file it begins.
        at: u64,
        /// What was found.
        reason: String,
    },
    /// Several texts, and nothing says which of them counts.
    #[error("{}: {}; give the caption yourself", path.display(), listed(candidates))]
    Several {
        /// The picture.
        path: PathBuf,
        /// The texts, all different.
        candidates: Vec<Candidate>,
    },
    /// The text is the result of a node, which the picture does not hold.
    #[error(
        "{}: the text is computed by node {node} ({class}), and the picture does not hold the result; give \
         the caption yourself",
        path.display()
    )]
    Computed {
        /// The picture.
        path: PathBuf,
        /// The node's id.
        node: String,
        /// The node's class.
        class: String,
    },
    /// The links of the graph end without a text.
    #[error("{}: the ComfyUI graph leads to no text: {reason}; give the caption yourself", path.display())]
    NoText {
        /// The picture.
        path: PathBuf,
        /// Where the search ended.
        reason: String,
    },
}

fn listed(candidates: &[Candidate]) -> String {
    let texts = match candidates.len() {
        1 => "1 text may have made this picture".to_owned(),
        count => format!("{count} texts may have made this picture"),
    };
    let mut list: Vec<String> = candidates.iter().take(LISTED).map(Candidate::to_string).collect();
    if candidates.len() > LISTED {
        list.push(format!("and {} more", candidates.len() - LISTED));
    }
    format!("{texts}: {}", list.join("; "))
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:?}", self.place, cut(&self.text, CUT))
    }
}
