//! A graph as text: lanes beside a list, as `git log --graph` draws them, with the flow from top to bottom.

use std::collections::BTreeSet;

use super::{Drawing, State};

/// Lanes beyond which they tell nothing any more; the list alone is then written.
const MOST_LANES: usize = 24;
/// Boxes beyond which lanes are not tried.
const MOST_BOXES: usize = 2000;

/// The graph as text. A lane leads from a stage to each stage that reads it; one that follows from others is left out,
/// and `reads` names them all.
pub fn text(drawing: &Drawing, color: bool) -> String {
    let lanes =
        lanes(drawing).filter(|rows| rows.iter().all(|row| row.line.chars().count() < 2 * MOST_LANES));
    let rows = lanes.unwrap_or_else(|| {
        let row = |vertex: usize| Row {
            line: drawing.vertices[vertex].state().mark().to_string(),
            vertex: Some(vertex),
        };
        (0..drawing.vertices.len()).map(row).collect()
    });
    let sources = drawing.sources();
    let longest = |widths: &mut dyn Iterator<Item = usize>| widths.max().unwrap_or(0);
    let count = |text: &str| text.chars().count();
    let lane = longest(&mut rows.iter().map(|row| count(&row.line)));
    let name = longest(&mut drawing.vertices.iter().map(|vertex| count(&vertex.title())));
    let state = longest(&mut drawing.vertices.iter().map(|vertex| count(&vertex.words())));
    let paint = |text: &str, code: u8| match color {
        true => format!("\u{1b}[{code}m{text}\u{1b}[0m"),
        false => text.to_owned(),
    };
    let mut out = String::new();
    for row in &rows {
        let Some(index) = row.vertex else {
            out += row.line.trim_end();
            out.push('\n');
            continue;
        };
        let vertex = &drawing.vertices[index];
        let mark = vertex.state().mark();
        let line =
            format!("{:<lane$}", row.line).replace(mark, &paint(&mark.to_string(), vertex.state().ansi()));
        let words = paint(&format!("{:<state$}", vertex.words()), vertex.state().ansi());
        let mut reads: Vec<&str> =
            sources[index].iter().map(|from| drawing.vertices[*from].name.as_str()).collect();
        reads.sort_unstable();
        let reads = if reads.is_empty() { String::new() } else { format!("  reads {}", reads.join(", ")) };
        let touch = vertex.touch().map(|touch| paint(&format!("  * {touch}"), 35)).unwrap_or_default();
        let text = format!("{line}  {:<name$}  {words}{touch}{reads}", vertex.title());
        out += text.trim_end();
        out.push('\n');
    }
    out.push('\n');
    let legend =
        State::ALL.iter().map(|state| paint(&format!("{} {}", state.mark(), state.word()), state.ansi()));
    let mut legend: Vec<String> = legend.collect();
    legend.extend(drawing.change.then(|| paint("* touched by the change", 35)));
    out + &legend.join("  ") + "\n"
}

/// One line: lanes, and the box that stands on it.
struct Row {
    line: String,
    vertex: Option<usize>,
}

/// The lanes of the whole list; `None` where it is too long, or goes in circles.
fn lanes(drawing: &Drawing) -> Option<Vec<Row>> {
    if drawing.vertices.len() > MOST_BOXES || drawing.edges.iter().any(|(from, to)| from >= to) {
        return None;
    }
    let readers = reduced(drawing);
    // What each lane leads to.
    let mut lanes: Vec<Option<usize>> = Vec::new();
    let mut rows = Vec::new();
    for (index, vertex) in drawing.vertices.iter().enumerate() {
        let own = lanes.iter().position(|lane| *lane == Some(index)).unwrap_or_else(|| free(&mut lanes, 0));
        let cells = lanes.iter().enumerate().map(|(at, lane)| match (at == own, lane) {
            (true, _) => vertex.state().mark(),
            (false, Some(_)) => '│',
            (false, None) => ' ',
        });
        let line = cells.map(String::from).collect::<Vec<_>>().join(" ");
        rows.push(Row { line, vertex: Some(index) });
        lanes[own] = None;
        let before = lanes.clone();
        let mut targets = BTreeSet::new();
        for (number, reader) in readers[index].iter().enumerate() {
            let lane = match lanes.iter().position(|lane| lane == &Some(*reader)) {
                Some(lane) => lane,
                None if number == 0 => own,
                None => free(&mut lanes, own),
            };
            lanes[lane] = Some(*reader);
            targets.insert(lane);
        }
        if targets.iter().any(|target| *target != own) {
            rows.push(Row { line: branch(own, &targets, &before, &lanes), vertex: None });
        }
        while lanes.last() == Some(&None) {
            lanes.pop();
        }
    }
    Some(rows)
}

/// The first free lane from `start` on.
fn free(lanes: &mut Vec<Option<usize>>, start: usize) -> usize {
    match (start..lanes.len()).find(|at| lanes[*at].is_none()) {
        Some(at) => at,
        None => {
            lanes.push(None);
            lanes.len() - 1
        }
    }
}

/// The line below a box, from its lane to those of its readers.
fn branch(
    own: usize,
    targets: &BTreeSet<usize>,
    before: &[Option<usize>],
    after: &[Option<usize>],
) -> String {
    let first = targets.first().copied().unwrap_or(own).min(own);
    let last = targets.last().copied().unwrap_or(own).max(own);
    let mut line = String::new();
    for (at, lane) in after.iter().enumerate() {
        let ends = at == own || targets.contains(&at);
        let up = at == own || before.get(at).is_some_and(Option::is_some);
        let down = lane.is_some();
        let (left, right) = (ends && at > first, ends && at < last);
        line.push(match (up, down, left, right) {
            (true, true, true, true) => '┼',
            (true, true, true, false) => '┤',
            (true, true, false, true) => '├',
            (true, true, false, false) => '│',
            (true, false, true, true) => '┴',
            (true, false, true, false) => '╯',
            (true, false, false, true) => '╰',
            (false, true, true, true) => '┬',
            (false, true, true, false) => '╮',
            (false, true, false, true) => '╭',
            _ if at > first && at < last => '─',
            _ => ' ',
        });
        line.push(if at >= first && at < last { '─' } else { ' ' });
    }
    line
}

/// Readers of each box without those that are reached by way of another reader.
fn reduced(drawing: &Drawing) -> Vec<Vec<usize>> {
    let readers = drawing.readers();
    let words = drawing.vertices.len().div_ceil(64);
    let mut reached = vec![vec![0u64; words]; readers.len()];
    let mut kept = vec![Vec::new(); readers.len()];
    for from in (0..readers.len()).rev() {
        // Readers come in order, so one that leads to another comes before it.
        for &to in &readers[from] {
            if reached[from][to / 64] >> (to % 64) & 1 == 0 {
                kept[from].push(to);
                let below = reached[to].clone();
                reached[from].iter_mut().zip(below).for_each(|(all, below)| *all |= below);
                reached[from][to / 64] |= 1 << (to % 64);
            }
        }
    }
    kept
}
