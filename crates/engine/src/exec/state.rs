//! The state of a run: one transition for each message, without a thread, a process or a store.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use super::event::{Event, PlacedArtifact};
use super::state_messages::{Decision, Effect, Message, Part, Took};
use super::work::{Tally, Work};
use crate::identity::recipe::Recipe;
use crate::kind::Units;
use crate::plan::{Reason, Results};
use crate::provenance::manifest::StageWorkers;
use crate::store::Entry;
use crate::worker::protocol::Reply;

/// How far a stage is.
pub(super) enum StageState {
    Pending,
    Running(Box<Work>),
    /// With what this run computed of it; none for a cached result.
    Done(Box<Entry>, Option<Tally>),
    Failed(Partial, String),
    Blocked,
    Interrupted(Partial),
}

/// What is known of a stage that ended without a result.
#[derive(Default)]
pub(super) struct Partial {
    /// None where it did not begin.
    pub recipe: Option<Box<Recipe>>,
    pub tally: Tally,
}

/// All stages, and what is queued.
pub(super) struct RunState {
    names: Vec<String>,
    dependents: Vec<Vec<usize>>,
    pub stages: Vec<StageState>,
    /// Stages to decide at the beginning, in this order.
    order: VecDeque<usize>,
    /// Stages to decide because one that they read is done.
    ready: BTreeSet<usize>,
    /// Jobs that are queued or run.
    jobs: usize,
    stopped: bool,
    /// The workers on a cluster, by stage.
    pub workers: BTreeMap<usize, StageWorkers>,
    /// The tasks that gave a result, in the order of their ends.
    pub tasks: Vec<Took>,
    /// When it was last reported that another run is waited for.
    waited: Option<Instant>,
}

impl Results for RunState {
    fn entry(&self, stage: usize) -> Option<&Entry> {
        match &self.stages[stage] {
            StageState::Done(entry, _) => Some(entry),
            _ => None,
        }
    }
}

impl RunState {
    /// Stages by name, with those that read each, and the order to decide the selected ones in.
    pub fn new(names: Vec<String>, dependents: Vec<Vec<usize>>, order: &[usize]) -> Self {
        let stages = names.iter().map(|_| StageState::Pending).collect();
        let (order, ready) = (order.iter().copied().collect(), BTreeSet::new());
        Self {
            names,
            dependents,
            stages,
            order,
            ready,
            jobs: 0,
            stopped: false,
            workers: BTreeMap::new(),
            tasks: Vec::new(),
            waited: None,
        }
    }

    /// Whether anything is queued or runs.
    pub fn busy(&self) -> bool {
        self.jobs > 0
    }

    /// Whether nothing new may begin.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// A stage that runs.
    pub fn work(&mut self, stage: usize) -> Option<&mut Work> {
        match &mut self.stages[stage] {
            StageState::Running(work) => Some(work),
            _ => None,
        }
    }

    /// Takes a message; what is to be done about it, in this order.
    pub fn transition(&mut self, message: Message) -> Vec<Effect> {
        let mut out = Vec::new();
        match message {
            Message::Begin => self.decide_next(&mut out),
            Message::Decided(stage, Decision::Cached(entry)) => out.push(Effect::Place(stage, entry, None)),
            Message::Decided(stage, decision) => {
                match decision {
                    Decision::Run(work, reason) => self.start(stage, work, reason, &mut out),
                    Decision::Fail(recipe, error) => self.fail(stage, None, recipe, error, &mut out),
                    Decision::Pending | Decision::Cached(_) => {}
                }
                self.decide_next(&mut out);
            }
            Message::Placed(stage, entry, took, outputs) => {
                self.placed(stage, entry, took, outputs, &mut out)
            }
            Message::Started(stage, unit) => {
                let unit = self.unit_name(stage, unit);
                out.push(Effect::Emit(Event::UnitStarted { stage: self.name(stage), unit }));
            }
            Message::Reply(stage, unit, reply) => {
                out.extend(self.reply(stage, unit, reply).map(Effect::Emit))
            }
            Message::Done(stage, unit, entry, took) => {
                self.jobs -= 1;
                match unit {
                    Some(unit) => self.unit_done(stage, unit, *entry, took, &mut out),
                    None => out.push(Effect::Place(stage, entry, took)),
                }
            }
            Message::Failed(stage, unit, error) => {
                self.jobs -= 1;
                self.fail(stage, unit, None, error, &mut out);
            }
            Message::Warn(message) => out.push(Effect::Emit(Event::Log { level: "WARN".into(), message })),
            Message::Took(task) => self.tasks.push(task),
            Message::Used(stage, workers) => self.workers.entry(stage).or_default().add(*workers),
            Message::LockWait(stage, unit, at) => {
                out.extend(self.lock_wait(stage, unit, at).map(Effect::Emit))
            }
            Message::Dropped(jobs) => self.jobs -= jobs,
            Message::Stop => {
                self.stopped = true;
                self.order.clear();
                self.ready.clear();
                out.push(Effect::ClearQueue);
            }
            Message::Broken(error) => out.push(Effect::Abort(error)),
            Message::End => self.end(),
        }
        out
    }

    fn name(&self, stage: usize) -> String {
        self.names[stage].clone()
    }

    fn unit_name(&mut self, stage: usize, unit: Option<usize>) -> Option<String> {
        self.work(stage).zip(unit).map(|(work, unit)| work.name(unit))
    }

    /// Asks about the next stage that may start.
    fn decide_next(&mut self, out: &mut Vec<Effect>) {
        while let Some(stage) = self.order.pop_front().or_else(|| self.ready.pop_first()) {
            if matches!(self.stages[stage], StageState::Pending) {
                return out.push(Effect::Decide(stage));
            }
        }
    }

    fn enqueue(&mut self, stage: usize, part: Part, out: &mut Vec<Effect>) {
        // What is queued after the queue was cleared would be begun.
        if self.stopped {
            return;
        }
        self.jobs += if let Part::Units(units) = &part { units.len() } else { 1 };
        out.push(Effect::Enqueue(stage, part));
    }

    fn start(&mut self, stage: usize, mut work: Box<Work>, reason: Reason, out: &mut Vec<Effect>) {
        let (units, missing) = (work.units.list(), work.missing());
        work.tally.units_cached = units.len() - missing.len();
        work.progress.total = missing.iter().map(|unit| units[*unit].steps).sum();
        out.push(Effect::Emit(Event::StageStarted {
            stage: self.name(stage),
            reason,
            units: units.len().max(1),
            units_cached: work.tally.units_cached,
            steps: work.progress.total,
        }));
        let part = match &work.units {
            Units::Whole => Part::Whole,
            _ if missing.is_empty() => Part::Merge,
            Units::Independent(_) => Part::Units(missing),
            Units::Chain(_) => Part::Units(missing[..1].to_vec()),
        };
        self.stages[stage] = StageState::Running(work);
        self.enqueue(stage, part, out);
    }

    fn reply(&mut self, stage: usize, unit: Option<usize>, reply: Reply) -> Option<Event> {
        match reply {
            Reply::Progress { done, total, note, .. } => {
                let work = self.work(stage)?;
                // A merge has no steps of its own among the units'.
                if unit.is_none() && !work.units.list().is_empty() {
                    return None;
                }
                let (done, total) = work.progress.at(unit, done, total);
                Some(Event::Progress { stage: self.name(stage), done, total, note })
            }
            Reply::Log { level, message } => Some(Event::Log { level, message }),
            Reply::Hello(_)
            | Reply::Started { .. }
            | Reply::Finished { .. }
            | Reply::Done(_)
            | Reply::Failed { .. } => None,
        }
    }

    fn unit_done(
        &mut self,
        stage: usize,
        unit: usize,
        entry: Entry,
        took: Option<f64>,
        out: &mut Vec<Effect>,
    ) {
        let work = match &mut self.stages[stage] {
            StageState::Running(work) => work,
            // Another unit of the stage failed meanwhile; this one is kept for the next run.
            StageState::Failed(partial, _) => return partial.tally.add(took),
            _ => return,
        };
        work.entries[unit] = Some(entry);
        work.tally.add(took);
        let (done, total) = work.progress.finished(unit, work.units.list()[unit].steps);
        let (name, chain) = (work.name(unit), matches!(work.units, Units::Chain(_)));
        let next = work.next();
        let (stage_name, seconds) = (self.name(stage), took.unwrap_or_default());
        out.push(Effect::Emit(Event::Progress { stage: stage_name.clone(), done, total, note: None }));
        out.push(Effect::Emit(Event::UnitFinished { stage: stage_name, unit: name, seconds }));
        match next {
            None => self.enqueue(stage, Part::Merge, out),
            Some(next) if chain => self.enqueue(stage, Part::Units(vec![next]), out),
            Some(_) => {}
        }
    }

    fn placed(
        &mut self,
        stage: usize,
        entry: Box<Entry>,
        took: Option<f64>,
        outputs: BTreeMap<String, PlacedArtifact>,
        out: &mut Vec<Effect>,
    ) {
        let name = self.name(stage);
        let tally = match &mut self.stages[stage] {
            // Otherwise another run computed all of it while this one waited.
            StageState::Running(work) if took.is_some() || work.tally.units_run > 0 => {
                let units_run = if work.units.list().is_empty() { 1 } else { work.tally.units_run };
                let seconds = work.tally.seconds + took.unwrap_or_default();
                Some(Tally { units_run, units_cached: work.tally.units_cached, seconds })
            }
            _ => None,
        };
        out.push(Effect::Emit(match &tally {
            Some(Tally { seconds, .. }) => Event::StageFinished { stage: name, seconds: *seconds, outputs },
            None => Event::StageCached { stage: name, outputs, adopted: entry.adopted.clone() },
        }));
        self.stages[stage] = StageState::Done(entry, tally);
        // At the beginning each stage has its turn anyway.
        if self.order.is_empty() && !self.stopped {
            self.ready.extend(&self.dependents[stage]);
        }
        self.decide_next(out);
    }

    /// Drops what is left of a stage and blocks what needs it.
    fn fail(
        &mut self,
        stage: usize,
        unit: Option<usize>,
        recipe: Option<Box<Recipe>>,
        error: String,
        out: &mut Vec<Effect>,
    ) {
        out.push(Effect::CancelStage(stage));
        let unit = self.unit_name(stage, unit);
        let partial = match std::mem::replace(&mut self.stages[stage], StageState::Blocked) {
            StageState::Pending => Partial { recipe, tally: Tally::default() },
            StageState::Running(work) => Partial { recipe: Some(Box::new(work.recipe)), tally: work.tally },
            // A second unit of the same stage failed: the first was reported.
            ended => return self.stages[stage] = ended,
        };
        let stage_name = self.name(stage);
        out.push(Effect::Emit(Event::StageFailed { stage: stage_name.clone(), unit, error: error.clone() }));
        self.stages[stage] = StageState::Failed(partial, error);
        let mut next: Vec<usize> = self.dependents[stage].iter().rev().copied().collect();
        while let Some(reader) = next.pop() {
            if matches!(self.stages[reader], StageState::Pending) {
                self.stages[reader] = StageState::Blocked;
                let (stage, by) = (self.name(reader), stage_name.clone());
                out.push(Effect::Emit(Event::StageBlocked { stage, by }));
                next.extend(self.dependents[reader].iter().rev());
            }
        }
    }

    /// That another run is waited for, not more than once a minute.
    fn lock_wait(&mut self, stage: usize, unit: Option<usize>, at: Instant) -> Option<Event> {
        if self.waited.is_some_and(|waited| at.duration_since(waited) < Duration::from_secs(60)) {
            return None;
        }
        self.waited = Some(at);
        let unit = self.unit_name(stage, unit).map(|unit| format!(", {unit}")).unwrap_or_default();
        let message = format!("waiting for another run that computes `{}`{unit}", self.names[stage]);
        Some(Event::Log { level: "INFO".into(), message })
    }

    fn end(&mut self) {
        for state in &mut self.stages {
            *state = match std::mem::replace(state, StageState::Blocked) {
                StageState::Pending => StageState::Interrupted(Partial::default()),
                StageState::Running(work) => {
                    let recipe = Some(Box::new(work.recipe));
                    StageState::Interrupted(Partial { recipe, tally: work.tally })
                }
                ended => ended,
            };
        }
    }
}

#[cfg(test)]
mod tests;
