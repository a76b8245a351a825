//! Drawings of a pipeline's graph: as text, for Graphviz, for Mermaid, as SVG.

mod formats;
pub mod layered;
mod svg;
mod text;

use std::collections::BTreeSet;

pub use formats::{dot, mermaid};
pub use svg::svg;
pub use text::text;

/// The state of a stage, in the order of urgency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Its result is in the cache.
    Cached,
    /// It is reused if its inputs come out byte-identical.
    Pending,
    /// It would run.
    Run,
    /// It failed in the last run.
    Failed,
    /// An input cannot be read.
    InvalidInput,
}

impl State {
    /// All states, in the order of the legend.
    pub const ALL: [Self; 5] = [Self::Cached, Self::Run, Self::Pending, Self::Failed, Self::InvalidInput];

    /// Its name.
    pub fn word(self) -> &'static str {
        match self {
            Self::Cached => "cached",
            Self::Run => "run",
            Self::Pending => "pending",
            Self::Failed => "failed",
            Self::InvalidInput => "invalid input",
        }
    }

    /// Its name as an identifier.
    fn class(self) -> String {
        self.word().replace(' ', "_")
    }

    /// Its text in the legend.
    fn meaning(self) -> &'static str {
        match self {
            Self::Cached => "cached: the result is in the cache",
            Self::Run => "run: would compute",
            Self::Pending => "pending: reused if its inputs come out byte-identical",
            Self::Failed => "failed: failed in the last run",
            Self::InvalidInput => "invalid input: an input cannot be read",
        }
    }

    /// Its character.
    fn mark(self) -> char {
        match self {
            Self::Cached => '○',
            Self::Run => '●',
            Self::Pending => '◌',
            Self::Failed => '✗',
            Self::InvalidInput => '!',
        }
    }

    /// The number of its colour on a terminal.
    fn ansi(self) -> u8 {
        match self {
            Self::Cached => 32,
            Self::Run => 33,
            Self::Pending => 36,
            Self::Failed | Self::InvalidInput => 31,
        }
    }

    /// The colours of a box and its border.
    fn colors(self) -> (&'static str, &'static str) {
        match self {
            Self::Cached => ("#d9f2de", "#2e7d32"),
            Self::Run => ("#fdebc0", "#a15c00"),
            Self::Pending => ("#dce8fb", "#2a5db0"),
            Self::Failed | Self::InvalidInput => ("#f9d4d1", "#b3261e"),
        }
    }
}

/// The border colour of stages that a change affects.
const TOUCHED: &str = "#c2185b";

/// A box: a stage, or all items of a repeated stage.
#[derive(Debug, Clone)]
pub struct GraphNode {
    /// The stage's name.
    pub name: String,
    /// Its kind.
    pub kind: String,
    /// The number of stages in each state of [`State::ALL`].
    pub counts: [usize; State::ALL.len()],
    /// How many of them a change affects.
    pub touched: usize,
}

impl GraphNode {
    fn total(&self) -> usize {
        self.counts.iter().sum()
    }

    /// The most urgent state.
    fn state(&self) -> State {
        let present = State::ALL.iter().zip(self.counts).filter(|(_, count)| *count > 0);
        present.map(|(state, _)| *state).max().unwrap_or(State::Cached)
    }

    /// The name, with the number of items if there are several.
    fn title(&self) -> String {
        match self.total() {
            1 => self.name.clone(),
            several => format!("{} \u{d7}{several}", self.name),
        }
    }

    /// The state; the number of items in each state if they differ.
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

    /// `touched`, or the number of touched items; nothing if a change affects none.
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
    /// The boxes, in topological order as far as there are no cycles.
    pub nodes: Vec<GraphNode>,
    /// The arrows, from a stage to a stage that reads its outputs.
    pub edges: BTreeSet<(usize, usize)>,
    /// Whether the drawing shows the effect of a change.
    pub change: bool,
}

impl Drawing {
    fn readers(&self) -> Vec<Vec<usize>> {
        let mut readers = vec![Vec::new(); self.nodes.len()];
        self.edges.iter().for_each(|(from, to)| readers[*from].push(*to));
        readers
    }

    fn sources(&self) -> Vec<Vec<usize>> {
        let mut sources = vec![Vec::new(); self.nodes.len()];
        self.edges.iter().for_each(|(from, to)| sources[*to].push(*from));
        sources
    }
}
