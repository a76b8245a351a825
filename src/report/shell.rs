//! What pages share: head, style, script, policy, pictures.

use askama::Template;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};

use super::options::ReportError;
use super::pictures::Symbol;

const STYLE: &str = include_str!("templates/report.css");
const SCRIPT: &str = include_str!("templates/report.js");

/// A page that can be made smaller.
pub(super) trait Body: Template {
    /// The title of its window.
    fn title(&self) -> String;

    /// Shows so many rows of each query.
    fn cut(&mut self, rows: usize);

    /// Which of so many pictures are shown.
    fn used(&self, pictures: usize) -> Vec<bool>;

    /// What of it depends on its size.
    fn shown(&mut self) -> &mut Shown;

    /// The whole page.
    fn html(&mut self, symbols: &[Symbol], shown: Shown) -> Result<String, ReportError> {
        *self.shown() = shown;
        Shell::html(&self.title(), symbols, &self.render()?)
    }
}

/// What of a page depends on its size.
#[derive(Debug, Clone, Default)]
pub(super) struct Shown {
    /// What was left out to keep the page small.
    pub notes: Vec<String>,
    /// The symbol of each picture.
    pub places: Vec<Option<usize>>,
}

impl Shown {
    /// The symbol of a picture, if it could be read.
    pub fn symbol(&self, picture: &Option<usize>) -> Option<usize> {
        self.places.get((*picture)?).copied().flatten()
    }
}

#[derive(Template)]
#[template(path = "shell.html")]
pub(super) struct Shell<'a> {
    title: &'a str,
    policy: String,
    style: &'static str,
    script: &'static str,
    symbols: &'a [Symbol],
    body: &'a str,
}

impl Shell<'_> {
    fn html(title: &str, symbols: &[Symbol], body: &str) -> Result<String, ReportError> {
        let shell = Shell { title, policy: policy(), style: STYLE, script: SCRIPT, symbols, body };
        Ok(shell.render()?)
    }
}

/// Nothing may be fetched, and no other style or script than the page's own runs.
fn policy() -> String {
    let hash = |text: &str| STANDARD.encode(Sha256::digest(text.as_bytes()));
    format!(
        "default-src 'none'; img-src data:; style-src 'sha256-{}'; script-src 'sha256-{}'; base-uri 'none'; form-action 'none'",
        hash(STYLE),
        hash(SCRIPT)
    )
}
