//! Live progress on a terminal, and the summary that ends every run.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressState, ProgressStyle};

use super::bars::BARS;
use super::log::log;
use super::{Reporter, Table, duration, print, short_path};
use attrflow_engine::exec::event::{Event, PlacedArtifact};

/// Shows a line as a stage starts and ends, failures, and the summary.
pub struct Quiet {
    summary: Option<Summary>,
}

impl Quiet {
    /// Without the summary, which the caller prints.
    pub fn without_summary() -> Self {
        Self { summary: None }
    }
}

impl Default for Quiet {
    fn default() -> Self {
        Self { summary: Some(Summary::default()) }
    }
}

impl Reporter for Quiet {
    fn on_event(&mut self, event: &Event) {
        log(event, false);
        // Where the caller prints what comes out, it prints what goes on too.
        let line = match event {
            Event::StageStarted { stage, reason, units, units_cached, .. } if self.summary.is_some() => {
                let cached = match units_cached {
                    0 => String::new(),
                    cached => format!("; {cached} of {units} units cached"),
                };
                Some(format!("run {stage}: {reason}{cached}"))
            }
            Event::StageFinished { stage, seconds, .. } if self.summary.is_some() => {
                Some(format!("done {stage} in {} of computing", duration(*seconds)))
            }
            event => important(event),
        };
        if let Some(line) = line {
            complain(&line);
        }
        if let Some(summary) = &mut self.summary {
            summary.on_event(event);
        }
    }
}

/// A bar per running stage, with rate and remaining time.
pub struct Live {
    bars: MultiProgress,
    running: BTreeMap<String, ProgressBar>,
    summary: Option<Summary>,
}

impl Default for Live {
    fn default() -> Self {
        let bars = BARS.get_or_init(MultiProgress::new).clone();
        Self { bars, running: BTreeMap::new(), summary: Some(Summary::default()) }
    }
}

/// The form of a bar: waiting for a worker, without a known end, with progress.
const WAITING: &str = "{prefix:>24} waiting for a worker";
const WORKING: &str = "{prefix:>24} {spinner} {elapsed}";
const MOVING: &str = "{prefix:>24} {wide_bar} {percent:>3}%  {pos}/{len} steps  {rate}  {left}{msg}";

fn style(form: &str) -> ProgressStyle {
    let rate = |state: &ProgressState, out: &mut dyn std::fmt::Write| {
        // A write error has no effect but a missing rate.
        let _ = write!(out, "{:.1}/s", state.per_sec());
    };
    bar_style(form).with_key("rate", rate)
}

/// The style of a bar; its key `left` is the time to the end, which nothing is known of before the first step.
pub fn bar_style(form: &str) -> ProgressStyle {
    let left = |state: &ProgressState, out: &mut dyn std::fmt::Write| {
        let _ = match state.pos() {
            0 => write!(out, ""),
            _ => write!(out, "{} left", duration(state.eta().as_secs_f64())),
        };
    };
    ProgressStyle::with_template(form).expect("the template is well formed").with_key("left", left)
}

impl Live {
    /// Without the summary, which the caller prints.
    pub fn without_summary() -> Self {
        Self { summary: None, ..Self::default() }
    }

    fn end(&mut self, stage: &str) {
        if let Some(bar) = self.running.remove(stage) {
            bar.finish_and_clear();
        }
    }

    fn line(&self, text: &str) {
        // Without a terminal there are no bars, and nothing to write.
        let _ = self.bars.println(super::safe(text));
    }

    fn begin(&mut self, stage: &str, steps: u64) {
        let bar = self.bars.add(ProgressBar::new(steps));
        bar.set_style(style(WAITING));
        bar.set_prefix(stage.to_owned());
        bar.tick();
        self.running.insert(stage.to_owned(), bar);
    }

    /// Starts the clock of a stage's bar with its first unit.
    fn work(&mut self, stage: &str) {
        let Some(bar) = self.running.get(stage) else { return };
        if bar.position() == 0 {
            bar.set_style(style(if bar.length() == Some(0) { WORKING } else { MOVING }));
            bar.reset();
            bar.enable_steady_tick(Duration::from_millis(200));
        }
    }

    fn progress(&mut self, stage: &str, done: u64, total: u64, note: Option<&str>) {
        let Some(bar) = self.running.get(stage) else { return };
        if bar.length() != Some(total) {
            bar.set_length(total);
            bar.set_style(style(MOVING));
        }
        if let Some(note) = note {
            bar.set_message(format!("  {note}"));
        }
        bar.set_position(done);
    }
}

impl Reporter for Live {
    fn on_event(&mut self, event: &Event) {
        log(event, true);
        match event {
            Event::RunStarted { pipeline, jobs, threads, devices, .. } => {
                let devices = devices.join(", ");
                let (jobs, threads) = (count(*jobs, "worker"), count(*threads, "thread"));
                self.line(&format!("{pipeline} on {devices}: {jobs}, {threads} each"));
            }
            Event::StageStarted { stage, reason, units, units_cached, steps } => {
                self.line(&format!("  run {stage}: {reason}"));
                if *units_cached > 0 {
                    self.line(&format!("      {units_cached} of {units} units cached"));
                }
                self.begin(stage, *steps);
            }
            Event::UnitStarted { stage, .. } => self.work(stage),
            Event::Progress { stage, done, total, note } => {
                self.progress(stage, *done, *total, note.as_deref());
            }
            Event::StageFinished { stage, seconds, .. } => {
                self.end(stage);
                self.line(&format!(" done {stage} in {} of computing", duration(*seconds)));
            }
            // Cached here: another run computed it meanwhile.
            Event::StageFailed { stage, .. } | Event::StageCached { stage, .. } => self.end(stage),
            Event::RunFinished { .. } => {
                // A closed terminal needs no cleaning.
                let _ = self.bars.clear();
            }
            _ => {}
        }
        if let Some(line) = important(event) {
            self.line(&line);
        }
        if let Some(summary) = &mut self.summary {
            summary.on_event(event);
        }
    }
}

/// `1 worker`, `2 workers`.
fn count(number: usize, word: &str) -> String {
    format!("{number} {word}{}", if number == 1 { "" } else { "s" })
}

/// The messages that every form of output shows.
fn important(event: &Event) -> Option<String> {
    match event {
        Event::StageFailed { stage, unit, error } => {
            let unit = unit.as_ref().map(|unit| format!(", {unit}")).unwrap_or_default();
            Some(format!("error: stage `{stage}`{unit}: {error}"))
        }
        Event::Stopping { now: false, working: 0 } => Some("stopping: no new units start".into()),
        Event::Stopping { now: false, working } => {
            let (units, it) = (count(*working, "unit"), if *working == 1 { "it" } else { "them" });
            Some(format!("stopping: finishing {units} first; interrupt again to stop now and lose {it}"))
        }
        Event::Stopping { now: true, .. } => Some("stopping now".into()),
        Event::Pool { pool, running, pending: 0, .. } => {
            Some(format!("pool {pool}: {} running", count(*running, "worker")))
        }
        Event::Pool { pool, running, pending, reason } => {
            let why = reason.as_ref().map_or_else(String::new, |reason| format!(" ({reason})"));
            Some(format!(
                "pool {pool}: {} running, {pending} waiting in the queue{why}",
                count(*running, "worker")
            ))
        }
        Event::Log { level, message } => Some(format!("{}: {message}", level.to_lowercase())),
        _ => None,
    }
}

fn complain(line: &str) {
    super::print_error(&super::error_line(&super::safe(line)));
}

/// Collects a row per stage and prints the table when the run ends.
#[derive(Default)]
struct Summary {
    rows: Vec<[String; 4]>,
    /// The number of cached stages; the first of them have rows.
    cached: usize,
    /// Stages that started and have not ended.
    running: BTreeSet<String>,
    /// The pictures of the last stage that gave any, and of its other items.
    pictures: Vec<(String, PathBuf)>,
}

/// With more cached stages than this, none is listed: the stages that ran would be hard to find among them.
const MAX_LISTED: usize = 50;
const CACHED: &str = "cached";

impl Summary {
    fn on_event(&mut self, event: &Event) {
        if let Event::StageCached { stage, outputs, .. } | Event::StageFinished { stage, outputs, .. } = event
        {
            self.add_pictures(stage, outputs);
        }
        match event {
            Event::StageStarted { stage, .. } => _ = self.running.insert(stage.clone()),
            Event::StageCached { stage, .. }
            | Event::StageFinished { stage, .. }
            | Event::StageFailed { stage, .. }
            | Event::StageBlocked { stage, .. } => _ = self.running.remove(stage),
            _ => {}
        }
        let row = match event {
            Event::StageCached { adopted: None, .. } if self.cached >= MAX_LISTED => {
                self.cached += 1;
                return;
            }
            Event::StageCached { stage, outputs, adopted } => {
                self.cached += usize::from(adopted.is_none());
                let word = if adopted.is_some() { "adopted" } else { CACHED };
                [stage.clone(), word.into(), String::new(), place(outputs)]
            }
            Event::StageFinished { stage, seconds, outputs } => {
                [stage.clone(), "ran".into(), duration(*seconds), place(outputs)]
            }
            Event::StageFailed { stage, .. } => {
                [stage.clone(), "failed".into(), String::new(), String::new()]
            }
            Event::StageBlocked { stage, by } => {
                [stage.clone(), "blocked".into(), String::new(), format!("`{by}` failed")]
            }
            Event::RunFinished { seconds, cached, ran, failed, blocked, interrupted, manifest } => {
                for stage in std::mem::take(&mut self.running) {
                    let hint = "the same command resumes it".to_owned();
                    self.rows.push([stage, "interrupted".into(), String::new(), hint]);
                }
                let mut table = Table::new(&["stage", "state", "computing", "results"]);
                let unlisted = self.cached > MAX_LISTED;
                let listed = self.rows.drain(..).filter(|row| !unlisted || row[1] != CACHED);
                let listed: Vec<[String; 4]> = listed.collect();
                let none = listed.is_empty();
                listed.into_iter().for_each(|row| table.row(row));
                let table = if none { String::new() } else { format!("{table}\n") };
                let mut text = format!("{table}{ran} ran, {cached} cached");
                if unlisted {
                    text.push_str(" (not listed; `attrflow status` lists all)");
                }
                for (count, word) in [(failed, "failed"), (blocked, "blocked"), (interrupted, "interrupted")]
                {
                    if *count > 0 {
                        text.push_str(&format!(", {count} {word}"));
                    }
                }
                text.push_str(&format!(" in {}", duration(*seconds)));
                if let Some(manifest) = manifest {
                    text.push_str(&format!("; manifest {}", short_path(manifest)));
                }
                print(&format!("{text}\n{}", self.look_at()));
                return;
            }
            _ => return,
        };
        self.rows.push(row);
    }
}

impl Summary {
    fn add_pictures(&mut self, stage: &str, outputs: &BTreeMap<String, PlacedArtifact>) {
        let is_picture = |path: &&PathBuf| path.extension().is_some_and(|extension| extension == "png");
        let paths = outputs.values().map(|placed| &placed.path).filter(is_picture);
        let base = stage.split('[').next().unwrap_or(stage);
        for path in paths {
            self.pictures.retain(|(of, _)| of == base);
            self.pictures.push((base.to_owned(), path.clone()));
        }
    }

    /// What to look at after a run.
    fn look_at(&self) -> String {
        const SHOWN: usize = 3;
        let paths: Vec<String> = self.pictures.iter().map(|(_, path)| short_path(path)).collect();
        let more = match paths.len().saturating_sub(SHOWN) {
            0 => String::new(),
            more => format!("  and {more} more\n"),
        };
        let listed: String = paths.iter().take(SHOWN).map(|path| format!("  {path}\n")).collect();
        if paths.is_empty() { String::new() } else { format!("look at\n{listed}{more}") }
    }
}

/// The path of a stage's output, or the folder of its outputs.
fn place(outputs: &BTreeMap<String, PlacedArtifact>) -> String {
    let paths: Vec<&PathBuf> = outputs.values().map(|shown| &shown.path).collect();
    match paths.as_slice() {
        [one] => short_path(one),
        [first, ..] => short_path(first.parent().unwrap_or(Path::new(""))),
        [] => String::new(),
    }
}
