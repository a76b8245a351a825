//! The stages as a graph, from top to bottom: a box is a layer below the lowest one that it reads.

use std::fmt::Write as _;

use super::plot::place;
use super::stages::StageRow;
use crate::progress::drawing::layered::{Layered, Spot};

const HEIGHT: f64 = 42.0;
const BETWEEN: f64 = 40.0;
const GAP: f64 = 18.0;
const MARGIN: f64 = 12.0;
/// The advance of a letter of the page's font in the graph.
const ADVANCE: f64 = 7.2;
/// A graph of more boxes is not drawn: the table of stages says the same.
const MOST: usize = 60;

/// The graph as SVG has it.
#[derive(Debug, Clone)]
pub(super) struct Graph {
    pub boxes: Vec<Node>,
    pub arrows: String,
    pub width: String,
    pub height: String,
    pub words: String,
}

/// A stage.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub x: String,
    pub y: String,
    pub width: String,
    pub middle: String,
    pub title_y: String,
    pub note_y: String,
    pub title: String,
    pub note: String,
    pub outcome: &'static str,
}

impl Graph {
    /// `None` with too many boxes or a single one.
    pub fn of(rows: &[StageRow]) -> Option<Self> {
        if !(2..=MOST).contains(&rows.len()) {
            return None;
        }
        let titles: Vec<[String; 2]> = rows.iter().map(texts).collect();
        let width = |[title, note]: &[String; 2]| {
            title.chars().count().max(note.chars().count()) as f64 * ADVANCE + 22.0
        };
        let place_of = |name: &String| rows.iter().position(|other| other.name == *name);
        let of_row = |(to, row): (usize, &StageRow)| {
            let sources: Vec<usize> = row.reads.iter().filter_map(place_of).collect();
            // Stages come after those that they read.
            sources.into_iter().filter(move |from| *from < to).map(move |from| (from, to))
        };
        let edges: Vec<(usize, usize)> = rows.iter().enumerate().flat_map(of_row).collect();
        let layered = Layered::new(titles.iter().map(width), &edges, GAP, MARGIN);
        let Layered { spots, paths, depth, right } = layered;
        let boxes = titles.into_iter().zip(rows).zip(&spots).map(|(([title, note], row), spot)| {
            let y = top(spot.layer);
            Node {
                x: place(spot.x - spot.width / 2.0),
                y: place(y),
                width: place(spot.width),
                middle: place(spot.x),
                title_y: place(y + 18.0),
                note_y: place(y + 34.0),
                title,
                note,
                outcome: row.outcome,
            }
        });
        let of = |row: &StageRow| match row.reads.as_slice() {
            [] => format!("{} reads no other stage", row.name),
            reads => format!("{} reads {}", row.name, reads.join(", ")),
        };
        Some(Self {
            boxes: boxes.collect(),
            arrows: paths.iter().map(|path| curve(path, &spots)).collect(),
            width: place(right + MARGIN),
            height: place(top(depth) - BETWEEN + MARGIN),
            words: rows.iter().map(of).collect::<Vec<_>>().join("; ") + ".",
        })
    }
}

/// The two lines in a box.
fn texts(row: &StageRow) -> [String; 2] {
    let title = if row.items > 1 { format!("{} \u{d7}{}", row.name, row.items) } else { row.name.clone() };
    [
        title,
        if row.kind.is_empty() { row.outcomes.clone() } else { format!("{}: {}", row.kind, row.outcomes) },
    ]
}

fn top(layer: usize) -> f64 {
    MARGIN + layer as f64 * (HEIGHT + BETWEEN)
}

/// A smooth line with a head.
fn curve(path: &[usize], spots: &[Spot]) -> String {
    let mut out = String::new();
    for (number, pair) in path.windows(2).enumerate() {
        let (from, to) = (&spots[pair[0]], &spots[pair[1]]);
        let (start, end) = (top(from.layer) + HEIGHT, top(to.layer));
        let letter = if number == 0 { "M" } else { "L" };
        let (x, half) = (place(from.x), place((start + end) / 2.0));
        let _ = write!(
            out,
            "{letter}{x} {}C{x} {half} {} {half} {} {}",
            place(start),
            place(to.x),
            place(to.x),
            place(end)
        );
    }
    out + "m-3.5 -6l3.5 6l3.5 -6"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, reads: &[&str]) -> StageRow {
        StageRow::of_test(name, reads)
    }

    #[test]
    fn boxes_of_a_layer_do_not_overlap() {
        let rows =
            [row("data", &[]), row("a", &["data"]), row("b", &["data"]), row("c", &["a", "b", "data"])];
        let graph = Graph::of(&rows).unwrap();
        let number = |text: &str| text.parse::<f64>().unwrap();
        let [_, a, b, c] = graph.boxes.as_slice() else { panic!("four boxes") };
        assert!(a.y == b.y && number(&a.y) < number(&c.y));
        let (left, right) = if number(&a.x) < number(&b.x) { (a, b) } else { (b, a) };
        assert!(number(&left.x) + number(&left.width) <= number(&right.x));
        assert!(graph.words.ends_with("c reads a, b, data."));
        assert!(Graph::of(&rows[..1]).is_none());
    }
}
