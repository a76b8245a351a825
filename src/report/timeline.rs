//! When each worker computed what, in as many bars as a screen shows, however many tasks there were.

use std::collections::BTreeMap;

use super::plot::{Scale, Tick, place, ticks};
use super::words::seconds;
use crate::io::words::count;
use crate::results::base;
use attrflow_engine::provenance::task_times::TaskTime;

/// Most bars of a lane.
const BARS: usize = 200;
/// Most lanes: beyond, those with the most work.
const LANES: usize = 24;
const WIDTH: f64 = 640.0;
const LEFT: f64 = 110.0;
const LANE: f64 = 22.0;

/// The timeline as SVG has it.
#[derive(Debug, Clone)]
pub(super) struct Timeline {
    pub lanes: Vec<Lane>,
    pub across: Vec<Tick>,
    pub height: String,
    pub bottom: String,
    pub labels: String,
    pub words: String,
    /// Workers that have no lane.
    pub left_out: Option<String>,
}

/// A worker.
#[derive(Debug, Clone)]
pub(super) struct Lane {
    pub worker: String,
    pub label: String,
    pub middle: String,
    pub bars: Vec<Bar>,
    pub tasks: usize,
    pub busy: String,
}

/// What a worker did for a while: tasks of one stage.
#[derive(Debug, Clone)]
pub(super) struct Bar {
    pub x: String,
    pub y: String,
    pub width: String,
    /// The number of the stage's colour.
    pub color: usize,
    pub title: String,
}

/// Tasks of one stage, one after another.
#[derive(Debug, Clone)]
struct Piece {
    stage: usize,
    begin: f64,
    end: f64,
    tasks: usize,
}

impl Timeline {
    /// `None` without a task. `stages` are the names whose places are their colours.
    pub fn of(tasks: &[TaskTime], stages: &[&str], redact: bool) -> Option<Self> {
        let mut workers: BTreeMap<&str, Vec<Piece>> = BTreeMap::new();
        for task in tasks
            .iter()
            .filter(|task| task.end >= task.begin && task.end.is_finite() && task.begin.is_finite())
        {
            let stage = stages.iter().position(|name| *name == base(&task.stage)).unwrap_or(stages.len());
            let piece = Piece { stage, begin: task.begin.max(0.0), end: task.end.max(0.0), tasks: 1 };
            workers.entry(&task.worker).or_default().push(piece);
        }
        let end = workers.values().flatten().map(|piece| piece.end).fold(0.0, f64::max);
        if end <= 0.0 {
            return None;
        }
        let busy = |pieces: &[Piece]| pieces.iter().map(|piece| piece.end - piece.begin).sum::<f64>();
        let all = workers.len();
        let mut workers: Vec<(&str, Vec<Piece>)> = workers.into_iter().collect();
        let mut left_out = None;
        if all > LANES {
            workers.sort_by(|a, b| busy(&b.1).total_cmp(&busy(&a.1)).then(a.0.cmp(b.0)));
            let rest: f64 = workers.drain(LANES..).map(|(_, pieces)| busy(&pieces)).sum();
            workers.sort_by(|a, b| a.0.cmp(b.0));
            left_out = Some(format!(
                "{} with less work have no lane; together they computed for {}.",
                count(all - LANES, "worker", "workers"),
                seconds(rest)
            ));
        }
        let x = Scale::new([0.0, end], [LEFT, WIDTH - 8.0]);
        let lane = |(number, (worker, mut pieces)): (usize, (&str, Vec<Piece>))| {
            pieces.sort_by(|a, b| a.begin.total_cmp(&b.begin));
            let y = number as f64 * LANE + 4.0;
            let (tasks, busy) = (pieces.len(), seconds(busy(&pieces)));
            let bar = |piece: &Piece| Bar {
                x: place(x.at(piece.begin)),
                y: place(y),
                width: place((x.at(piece.end) - x.at(piece.begin)).max(0.8)),
                color: piece.stage % 8,
                title: format!(
                    "{}: {}, from {} to {}",
                    stages.get(piece.stage).unwrap_or(&"another stage"),
                    count(piece.tasks, "task", "tasks"),
                    seconds(piece.begin),
                    seconds(piece.end)
                ),
            };
            let worker = if redact { format!("worker {}", number + 1) } else { worker.to_owned() };
            let bars = merged(pieces, end).iter().map(bar).collect();
            Lane { label: shortened(&worker), worker, middle: place(y + 12.0), bars, tasks, busy }
        };
        let lanes: Vec<Lane> = workers.into_iter().enumerate().map(lane).collect();
        let bottom = lanes.len() as f64 * LANE + 4.0;
        Some(Self {
            words: format!(
                "{} on {} in {}",
                count(tasks.len(), "task", "tasks"),
                count(all, "worker", "workers"),
                seconds(end)
            ),
            lanes,
            across: ticks(&x, 0.0, end, 6),
            height: place(bottom + 24.0),
            bottom: place(bottom),
            labels: place(bottom + 16.0),
            left_out,
        })
    }
}

/// The last letters of a name that is too long.
fn shortened(name: &str) -> String {
    let letters = name.chars().count();
    match letters > 15 {
        true => format!("\u{2026}{}", name.chars().skip(letters - 14).collect::<String>()),
        false => name.to_owned(),
    }
}

/// At most [`BARS`] pieces: neighbours of one stage become one; if there are still too many, each span of time has the stage that
/// took most of it.
fn merged(pieces: Vec<Piece>, end: f64) -> Vec<Piece> {
    let joined = join(pieces, end / 1000.0);
    if joined.len() <= BARS {
        return joined;
    }
    let span = end / BARS as f64;
    let mut spans: Vec<BTreeMap<usize, (f64, usize)>> = vec![BTreeMap::new(); BARS];
    for piece in &joined {
        let first = ((piece.begin / span) as usize).min(BARS - 1);
        let last = ((piece.end / span) as usize).min(BARS - 1);
        for (number, found) in spans.iter_mut().enumerate().take(last + 1).skip(first) {
            let from = piece.begin.max(number as f64 * span);
            let found = found.entry(piece.stage).or_default();
            found.0 += (piece.end.min((number + 1) as f64 * span) - from).max(0.0);
            found.1 += if number == first { piece.tasks } else { 0 };
        }
    }
    let of = |(number, found): (usize, &BTreeMap<usize, (f64, usize)>)| {
        let (stage, _) = found.iter().max_by(|a, b| a.1.0.total_cmp(&b.1.0))?;
        let begin = number as f64 * span;
        let tasks = found.values().map(|(_, tasks)| tasks).sum();
        Some(Piece { stage: *stage, begin, end: begin + span, tasks })
    };
    join(spans.iter().enumerate().filter_map(of).collect(), span / 2.0)
}

/// Makes one of neighbours of one stage with less than `gap` between them.
fn join(pieces: Vec<Piece>, gap: f64) -> Vec<Piece> {
    let mut out: Vec<Piece> = Vec::new();
    for piece in pieces {
        match out.last_mut().filter(|last| last.stage == piece.stage && piece.begin - last.end <= gap) {
            Some(last) => {
                last.end = last.end.max(piece.end);
                last.tasks += piece.tasks;
            }
            None => out.push(piece),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(stage: &str, worker: usize, begin: f64, end: f64) -> TaskTime {
        TaskTime { stage: stage.into(), worker: format!("cpu {worker}"), begin, end, peak_memory: 0 }
    }

    #[test]
    fn many_tasks_are_few_bars() {
        let stages = ["a", "b"];
        let name = |number: usize| if number.is_multiple_of(2) { "a[x]" } else { "b" };
        let tasks: Vec<TaskTime> = (0..40_000)
            .map(|number| {
                task(name(number / 2), number % 2, number as f64 * 0.01, number as f64 * 0.01 + 0.02)
            })
            .collect();
        let found = Timeline::of(&tasks, &stages, false).unwrap();
        assert_eq!(found.lanes.len(), 2);
        assert!(found.lanes.iter().all(|lane| lane.bars.len() <= BARS && lane.tasks == 20_000));
        let many: Vec<TaskTime> = (0..500).map(|worker| task("a", worker, 0.0, 1.0)).collect();
        let found = Timeline::of(&many, &stages, true).unwrap();
        assert_eq!((found.lanes.len(), found.lanes[0].worker.as_str()), (LANES, "worker 1"));
        assert!(found.left_out.is_some_and(|text| text.starts_with("476 workers")));
    }

    #[test]
    fn neighbours_of_a_stage_are_one_bar() {
        let tasks = [task("a", 0, 0.0, 10.0), task("a", 0, 10.0, 20.0), task("b", 0, 20.0, 40.0)];
        let found = Timeline::of(&tasks, &["a", "b"], false).unwrap();
        let bars: Vec<(&str, usize)> =
            found.lanes[0].bars.iter().map(|bar| (bar.title.as_str(), bar.color)).collect();
        assert_eq!(bars, [("a: 2 tasks, from 0 ms to 20.0 s", 0), ("b: 1 task, from 20.0 s to 40.0 s", 1)]);
        assert!(Timeline::of(&[], &[], false).is_none());
    }
}
