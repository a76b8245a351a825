//! Source texts and the problems found in them.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

/// A place in a source text: which text, and which bytes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Index of the text in [`Sources`].
    pub text: usize,
    /// Byte range within the text.
    pub span: Range<usize>,
}

/// One text that was read: a file, or a `--set` argument.
#[derive(Debug, Clone)]
pub struct Source {
    /// The name in messages: the path as given, or `--set`.
    pub name: String,
    /// The folder that relative paths written in this text start from.
    pub folder: PathBuf,
    /// The text itself.
    pub text: String,
    /// Where its lines begin, found on first use: a pipeline may have tens of thousands.
    lines: OnceLock<Vec<usize>>,
}

impl Source {
    /// The line that contains a byte, counted from 0, and the byte at which it begins.
    fn line(&self, byte: usize) -> (usize, usize) {
        let lines = self.lines.get_or_init(|| {
            let ends =
                self.text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(end, _)| end + 1);
            std::iter::once(0).chain(ends).collect()
        });
        let line = lines.partition_point(|begin| *begin <= byte) - 1;
        (line, lines[line])
    }
}

/// All texts of one invocation; an [`Origin`] points into it.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    texts: Vec<Source>,
    /// The files that they were read from, by each name that led to one.
    files: Vec<PathBuf>,
}

impl Sources {
    /// Adds a text and returns its index.
    pub fn add(&mut self, name: String, folder: PathBuf, text: String) -> usize {
        self.texts.push(Source { name, folder, text, lines: OnceLock::new() });
        self.texts.len() - 1
    }

    /// Records that a text came from this file, or would have if it had not been read under another name before.
    pub fn note_file(&mut self, path: &Path) {
        self.files.push(path.to_path_buf());
    }

    /// The files that the texts came from, by each name that led to one.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// The text at `index`.
    pub fn get(&self, index: usize) -> &Source {
        &self.texts[index]
    }

    /// The folder that a relative path written at `origin` starts from.
    pub fn folder(&self, origin: &Origin) -> &Path {
        &self.texts[origin.text].folder
    }

    /// `name:line:column` of the first byte of `origin`, both counted from 1.
    pub fn position(&self, origin: &Origin) -> String {
        let source = &self.texts[origin.text];
        let end = source.text.floor_char_boundary(origin.span.start);
        let (line, begin) = source.line(end);
        let column = source.text[begin..end].chars().count() + 1;
        format!("{}:{}:{column}", source.name, line + 1)
    }

    /// The line of the first byte of `origin`, counted from 1.
    pub fn line(&self, origin: &Origin) -> usize {
        self.texts[origin.text].line(origin.span.start).0 + 1
    }
}

/// One thing wrong in a pipeline, with its place.
#[derive(Debug, Clone)]
pub struct Problem {
    /// What was found and what was expected, in one line.
    pub message: String,
    /// Where, if the fault has a place.
    pub origin: Option<Origin>,
    /// A way out, such as the nearest valid name.
    pub help: Option<String>,
}

/// All faults found: one run reports them together.
#[derive(Debug, Clone, Default)]
pub struct Problems {
    /// In the order found.
    pub list: Vec<Problem>,
}

impl Problems {
    /// Adds a problem with a place.
    pub fn at(&mut self, origin: &Origin, message: impl Into<String>) -> &mut Problem {
        self.list.push(Problem { message: message.into(), origin: Some(origin.clone()), help: None });
        self.list.last_mut().expect("just pushed")
    }

    /// Adds a problem without a single place.
    pub fn general(&mut self, message: impl Into<String>) -> &mut Problem {
        self.list.push(Problem { message: message.into(), origin: None, help: None });
        self.list.last_mut().expect("just pushed")
    }

    /// Sorts problems by their place in the texts, and drops repetitions: the text of a repeated stage is read once per
    /// item.
    pub fn tidy(&mut self) {
        self.list.sort_by_key(|problem| problem.origin.as_ref().map(|o| (o.text, o.span.start)));
        let mut kept: Vec<Problem> = Vec::new();
        for problem in self.list.drain(..) {
            let place = |problem: &Problem| problem.origin.as_ref().map(|o| (o.text, o.span.start));
            let at = place(&problem);
            let mut beside = kept.iter().rev().take_while(|other| place(other) == at);
            if !beside.any(|other| other.origin == problem.origin && other.message == problem.message) {
                kept.push(problem);
            }
        }
        self.list = kept;
    }

    /// Whether there are no problems.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Renders all problems with file, line, column and a caret under the place.
    pub fn render(&self, sources: &Sources, color: bool) -> String {
        let renderer = if color { Renderer::styled() } else { Renderer::plain() };
        let texts: Vec<String> =
            self.list.iter().map(|problem| renderer.render(&[problem.group(sources)])).collect();
        texts.join("\n\n")
    }
}

impl Problem {
    /// Adds a way out.
    pub fn help(&mut self, help: impl Into<String>) {
        self.help = Some(help.into());
    }

    /// Suggests the nearest of `names` to `found`, or lists them when none is near.
    pub fn suggest<'a>(&mut self, found: &str, names: impl IntoIterator<Item = &'a str>) {
        self.help = suggestion(found, names);
    }

    fn group<'a>(&'a self, sources: &'a Sources) -> Group<'a> {
        let mut group = Group::with_title(Level::ERROR.primary_title(self.message.as_str()));
        if let Some(origin) = &self.origin {
            let source = sources.get(origin.text);
            // A parser may count a character of several bytes as one.
            let start = source.text.floor_char_boundary(origin.span.start);
            let end = source.text.ceil_char_boundary(origin.span.end.max(start));
            group = group.element(
                Snippet::source(source.text.as_str())
                    .path(source.name.as_str())
                    .annotation(AnnotationKind::Primary.span(start..end)),
            );
        }
        match &self.help {
            Some(help) => group.element(Level::HELP.message(help.as_str())),
            None => group,
        }
    }
}

/// The name that is near to `found`, if one is.
pub fn nearest<'a>(found: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let near = names.map(|name| (strsim::damerau_levenshtein(found, name), name)).min();
    near.filter(|(distance, name)| *distance <= 1 + name.len().max(found.len()) / 4).map(|(_, name)| name)
}

/// The most names that a hint lists.
const LISTED: usize = 30;

/// `did you mean …` for a near name, else the list of valid names.
pub fn suggestion<'a>(found: &str, names: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let mut names: Vec<&str> = names.into_iter().collect();
    names.sort_unstable();
    names.dedup();
    let near = nearest(found, names.iter().copied()).or_else(|| {
        // One that contains the other, such as `batch` in `per_batch`.
        let alike = |name: &&&str| found.len() > 3 && (name.contains(found) || found.contains(**name));
        let mut alike = names.iter().filter(alike);
        alike.next().filter(|_| alike.next().is_none()).copied()
    });
    match near {
        Some(name) => Some(format!("did you mean `{name}`?")),
        None if names.is_empty() => None,
        None => {
            let more = names.len().saturating_sub(LISTED);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            Some(format!("valid names: {}{more}", names[..names.len().min(LISTED)].join(", ")))
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}
