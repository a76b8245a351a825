//! The graph of a pipeline, drawn: as text, for Graphviz, for Mermaid, as SVG.

mod formats;
mod svg;
mod text;

use std::collections::BTreeSet;

pub use formats::{dot, mermaid};
pub use svg::svg;
pub use text::text;

/// What would become of a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Its result is in the cache.
    Reuse,
    /// What runs before it decides.
    Wait,
    /// It would compute.
    Run,
    /// It failed when it last ran, or cannot run.
    Failed,
}

impl State {
    /// All, in the order of a legend.
    pub const ALL: [Self; 4] = [Self::Reuse, Self::Run, Self::Wait, Self::Failed];

    /// One word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Reuse => "reuse",
            Self::Run => "run",
            Self::Wait => "wait",
            Self::Failed => "failed",
        }
    }

    /// What a legend says.
    fn meaning(self) -> &'static str {
        match self {
            Self::Reuse => "reuse: the result is there",
            Self::Run => "run: would compute",
            Self::Wait => "wait: what runs before decides",
            Self::Failed => "failed, or cannot run",
        }
    }

    /// One character.
    fn mark(self) -> char {
        match self {
            Self::Reuse => '○',
            Self::Run => '●',
            Self::Wait => '◌',
            Self::Failed => '✗',
        }
    }

    /// Number of the colour on a terminal.
    fn ansi(self) -> u8 {
        match self {
            Self::Reuse => 32,
            Self::Run => 33,
            Self::Wait => 36,
            Self::Failed => 31,
        }
    }

    /// Colours of the inside and the border.
    fn colors(self) -> (&'static str, &'static str) {
        match self {
            Self::Reuse => ("#d9f2de", "#2e7d32"),
            Self::Run => ("#fdebc0", "#a15c00"),
            Self::Wait => ("#dce8fb", "#2a5db0"),
            Self::Failed => ("#f9d4d1", "#b3261e"),
        }
    }
}

/// The colour of the border of what a change touches.
const TOUCHED: &str = "#c2185b";

/// One box: a stage, or all items of a repeated one.
#[derive(Debug, Clone)]
pub struct GraphNode {
    /// The stage's name.
    pub name: String,
    /// Its kind.
    pub kind: String,
    /// How many stages are in each of the states of [`State::ALL`].
    pub counts: [usize; 4],
    /// How many of them a change touches.
    pub touched: usize,
}

impl GraphNode {
    fn total(&self) -> usize {
        self.counts.iter().sum()
    }

    /// The state that a user has to know of first.
    fn state(&self) -> State {
        let present = State::ALL.iter().zip(self.counts).filter(|(_, count)| *count > 0);
        present.map(|(state, _)| *state).max().unwrap_or(State::Reuse)
    }

    /// The name, with the number of items where there are several.
    fn title(&self) -> String {
        match self.total() {
            1 => self.name.clone(),
            several => format!("{} \u{d7}{several}", self.name),
        }
    }

    /// The state in words, apart for the items where they differ.
    fn words(&self) -> String {
        let present = State::ALL.iter().zip(self.counts).filter(|(_, count)| *count > 0);
        match present.clone().count() {
            1 => self.state().word().to_owned(),
            _ => present
                .map(|(state, count)| format!("{count} {}", state.word()))
                .collect::<Vec<_>>()
                .join(", "),
        }
    }

    /// `touched`, or how many of the items are; nothing where none is.
    fn touch(&self) -> Option<String> {
        match self.touched {
            0 => None,
            touched if touched == self.total() => Some("touched".to_owned()),
            touched => Some(format!("{touched} touched")),
        }
    }
}

/// The graph to draw.
#[derive(Debug, Clone, Default)]
pub struct Drawing {
    /// The pipeline's name.
    pub name: String,
    /// The boxes, each after what it reads as far as there are no cycles.
    pub vertices: Vec<GraphNode>,
    /// Arrows, from what is read to what reads it.
    pub edges: BTreeSet<(usize, usize)>,
    /// Whether the drawing shows what a change touches.
    pub change: bool,
}

impl Drawing {
    fn readers(&self) -> Vec<Vec<usize>> {
        let mut readers = vec![Vec::new(); self.vertices.len()];
        self.edges.iter().for_each(|(from, to)| readers[*from].push(*to));
        readers
    }

    fn sources(&self) -> Vec<Vec<usize>> {
        let mut sources = vec![Vec::new(); self.vertices.len()];
        self.edges.iter().for_each(|(from, to)| sources[*to].push(*from));
        sources
    }
}
