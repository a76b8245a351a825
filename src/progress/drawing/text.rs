//! Graphs as text: a list with lanes, like `git log --graph`, from top to bottom.

use std::collections::BTreeSet;

use super::{Drawing, State};

/// With more lanes than this, only the list is written.
const MAX_LANES: usize = 24;
/// With more boxes than this, lanes are not tried.
const MAX_BOXES: usize = 2000;

/// The graph as text. Lanes lead from a stage to the stages that read it, without transitive ones; `reads` lists them all.
pub fn text(drawing: &Drawing, color: bool) -> String {
    let lanes = lanes(drawing).filter(|rows| rows.iter().all(|row| row.line.chars().count() < 2 * MAX_LANES));
    let rows = lanes.unwrap_or_else(|| {
        let row =
            |node: usize| Row { line: drawing.nodes[node].state().mark().to_string(), node: Some(node) };
        (0..drawing.nodes.len()).map(row).collect()
    });
    let sources = drawing.sources();
    let longest = |widths: &mut dyn Iterator<Item = usize>| widths.max().unwrap_or(0);
    let count = |text: &str| text.chars().count();
    let lane = longest(&mut rows.iter().map(|row| count(&row.line)));
    let name = longest(&mut drawing.nodes.iter().map(|node| count(&node.title())));
    let state = longest(&mut drawing.nodes.iter().map(|node| count(&node.words())));
    let paint = |text: &str, code: u8| match color {
        true => format!("\u{1b}[{code}m{text}\u{1b}[0m"),
        false => text.to_owned(),
    };
    let mut out = String::new();
    for row in &rows {
        let Some(index) = row.node else {
            out += row.line.trim_end();
            out.push('\n');
            continue;
        };
        let node = &drawing.nodes[index];
        let mark = node.state().mark();
        let line =
            format!("{:<lane$}", row.line).replace(mark, &paint(&mark.to_string(), node.state().ansi()));
        let words = paint(&format!("{:<state$}", node.words()), node.state().ansi());
        let mut reads: Vec<&str> =
            sources[index].iter().map(|from| drawing.nodes[*from].name.as_str()).collect();
        reads.sort_unstable();
        let reads = if reads.is_empty() { String::new() } else { format!("  reads {}", reads.join(", ")) };
        let touch = node.touch().map(|touch| paint(&format!("  * {touch}"), 35)).unwrap_or_default();
        let text = format!("{line}  {:<name$}  {words}{touch}{reads}", node.title());
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

/// A line: lanes, and the box on it.
struct Row {
    line: String,
    node: Option<usize>,
}

/// The lanes of the whole list; `None` if it is too long or has cycles.
fn lanes(drawing: &Drawing) -> Option<Vec<Row>> {
    if drawing.nodes.len() > MAX_BOXES || drawing.edges.iter().any(|(from, to)| from >= to) {
        return None;
    }
    let readers = transitive_reduction(drawing);
    // The box that each lane leads to.
    let mut lanes: Vec<Option<usize>> = Vec::new();
    let mut rows = Vec::new();
    for (index, node) in drawing.nodes.iter().enumerate() {
        let own = lanes.iter().position(|lane| *lane == Some(index)).unwrap_or_else(|| free(&mut lanes, 0));
        let cells = lanes.iter().enumerate().map(|(at, lane)| match (at == own, lane) {
            (true, _) => node.state().mark(),
            (false, Some(_)) => '│',
            (false, None) => ' ',
        });
        let line = cells.map(String::from).collect::<Vec<_>>().join(" ");
        rows.push(Row { line, node: Some(index) });
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
            rows.push(Row { line: branch(own, &targets, &before, &lanes), node: None });
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

/// The line below a box, from its lane to the lanes of its readers.
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

/// The readers of each box without those reached through another reader.
fn transitive_reduction(drawing: &Drawing) -> Vec<Vec<usize>> {
    let readers = drawing.readers();
    let words = drawing.nodes.len().div_ceil(64);
    let mut reached = vec![vec![0u64; words]; readers.len()];
    let mut kept = vec![Vec::new(); readers.len()];
    for from in (0..readers.len()).rev() {
        // Readers are in topological order: one that leads to another comes first.
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
