//! Decides what runs next.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Run;
use super::messages::Message;
use super::queue::{Job, Queue, StageContext};
use super::state::Work;
use super::worker_slots::PART;
use crate::exec::event::{Event, PlacedArtifact};
use crate::identity::recipe::Recipe;
use crate::kind::Step;
use crate::kind::{self, Inputs, Unit};
use crate::plan::{Action, InputError, Planner, Reason, ResolvedInputs};
use crate::provenance::manifest::{Conditions, Outcome, StageRecord};
use crate::store::{Entry, Lookup, Repair, StoreError, UnitIndex, View};
use crate::worker::local::Reply;

/// The state of a run; all of it belongs to one thread.
pub(super) struct Coordinator<'a> {
    pub(super) run: &'a Run<'a>,
    pub(super) queue: &'a Queue,
    planner: Planner<'a>,
    pub(super) view: View,
    /// Results of the stages that are done.
    pub(super) done: BTreeMap<usize, Entry>,
    /// Stages that run.
    pub(super) running: BTreeMap<usize, Work>,
    pub(super) records: BTreeMap<usize, StageRecord>,
    /// Jobs that wait or run.
    pub(super) jobs: usize,
    /// When it was last told that another run is waited for.
    waited: Option<Instant>,
    pub(super) begun: Instant,
    pub(super) started: String,
}

impl<'a> Coordinator<'a> {
    pub fn new(run: &'a Run<'a>, queue: &'a Queue) -> Self {
        Self {
            run,
            queue,
            planner: Planner::new(run.pipeline, run.store, run.numerics, run.forced),
            view: View::open(&run.results),
            done: BTreeMap::new(),
            running: BTreeMap::new(),
            records: BTreeMap::new(),
            jobs: 0,
            waited: None,
            begun: Instant::now(),
            started: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string(),
        }
    }

    /// Whether anything waits or runs.
    pub fn busy(&self) -> bool {
        self.jobs > 0
    }

    /// Looks at every stage once: what stands is reused, what can start starts.
    pub fn begin(&mut self) -> Result<(), StoreError> {
        let pipeline = self.run.pipeline.name.clone();
        let Conditions { jobs, threads, devices, .. } = self.run.conditions.clone();
        let stages = self.run.graph.order().len();
        self.emit(Event::RunStarted { pipeline, stages, jobs, threads, devices });
        for &stage in self.run.graph.order() {
            if self.stopped() {
                break;
            }
            self.start_if_ready(stage)?;
        }
        Ok(())
    }

    /// Takes a report from a slot.
    pub fn handle(&mut self, report: Message) -> Result<(), StoreError> {
        match report {
            Message::Started(stage, unit) => self.on_started(stage, unit),
            Message::Reply(stage, unit, reply) => self.on_reply(stage, unit, reply),
            Message::Done(stage, unit, entry, seconds) => {
                self.jobs -= 1;
                match unit {
                    Some(unit) => self.unit_done(stage, unit, *entry, seconds),
                    None => self.stage_done(stage, *entry, seconds)?,
                }
            }
            Message::Failed(stage, unit, error) => {
                self.jobs -= 1;
                self.fail(stage, unit, error);
            }
            Message::LockWait(stage, unit) => self.on_lock_wait(stage, unit),
            Message::Dropped => self.jobs -= 1,
            Message::Stop => self.jobs -= self.queue.clear(),
            Message::StoreFailed(error) => return Err(error),
        }
        Ok(())
    }

    pub(super) fn emit(&self, event: Event) {
        (self.run.emit)(event);
    }

    pub(super) fn id(&self, stage: usize) -> String {
        self.run.pipeline.stages[stage].id.clone()
    }

    /// Judges a stage, and reuses or starts it; one that waits is tried again when its inputs are there.
    ///
    /// Whether it was reused: its readers may then start too.
    fn start_if_ready(&mut self, stage: usize) -> Result<bool, StoreError> {
        if self.stopped() || self.records.contains_key(&stage) || self.running.contains_key(&stage) {
            return Ok(false);
        }
        match self.planner.decide(stage, &self.done) {
            Ok(Action::Pending { .. }) => {}
            Ok(Action::Cached(entry)) => {
                self.reuse(stage, *entry)?;
                return Ok(true);
            }
            Ok(Action::Run(recipe, inputs, reason)) => self.start(stage, *recipe, inputs, reason)?,
            Ok(Action::InvalidInput(error)) => self.fail(stage, None, error),
            Err(InputError::Store(error)) => return Err(error),
            Err(error) => self.fail(stage, None, error.to_string()),
        }
        Ok(false)
    }

    /// Tries the stages that waited for this one, and in turn those that waited for one now reused.
    fn start_dependents(&mut self, stage: usize) -> Result<(), StoreError> {
        let graph = self.run.graph;
        let mut next: BTreeSet<usize> = graph.dependents(stage).collect();
        while let Some(reader) = next.pop_first() {
            if self.start_if_ready(reader)? {
                next.extend(graph.dependents(reader));
            }
        }
        Ok(())
    }

    fn reuse(&mut self, stage: usize, entry: Entry) -> Result<(), StoreError> {
        let outputs = self.show(stage, &entry)?;
        let adopted = entry.adopted.clone();
        self.emit(Event::StageCached { stage: self.id(stage), outputs, adopted });
        let record = StageRecord {
            outcome: Outcome::Cached,
            seconds: entry.seconds,
            ..self.record(stage, Some(&entry.recipe))
        };
        let (outputs, adopted) = (entry.outputs.clone(), entry.adopted.clone());
        self.records.insert(stage, StageRecord { outputs, adopted, ..record });
        self.done.insert(stage, entry);
        Ok(())
    }

    /// Cuts a stage into its units and queues those that are not there.
    fn start(
        &mut self,
        stage: usize,
        recipe: Recipe,
        inputs: ResolvedInputs,
        reason: Reason,
    ) -> Result<(), StoreError> {
        let node = &self.run.pipeline.stages[stage];
        // Whoever counted on the files must hear of it, whatever the form of the report.
        if let Reason::Modified { what } = &reason {
            let message = format!("{what}; `{}` is computed instead", node.id);
            self.emit(Event::Log { level: "WARN".into(), message });
        }
        let units = node.stage.units(&Inputs(inputs.paths.clone()));
        let mut work = Work::new(recipe, inputs, reason == Reason::Forced);
        let jobs = match units {
            Ok(Some(units)) => self.unit_jobs(stage, units, &mut work)?,
            Ok(None) => vec![self.whole(stage, Step::Whole, &work)],
            Err(error) => {
                self.running.insert(stage, work);
                self.fail(stage, None, kind::describe(&error));
                return Ok(());
            }
        };
        self.emit(Event::StageStarted {
            stage: node.id.clone(),
            reason,
            units: work.units.len().max(1),
            units_cached: work.units_cached,
            steps: work.progress.total,
        });
        let merge_now = jobs.is_empty();
        self.jobs += jobs.len();
        self.queue.extend(jobs);
        self.running.insert(stage, work);
        if merge_now {
            self.merge(stage);
        }
        Ok(())
    }

    /// Looks up each unit, and lists those that must be computed.
    fn unit_jobs(&self, stage: usize, units: Vec<Unit>, work: &mut Work) -> Result<Vec<Job>, StoreError> {
        let node = &self.run.pipeline.stages[stage];
        let common = Arc::new(self.common(stage, work));
        let mut jobs = Vec::new();
        let mut fingerprints = Vec::new();
        let recipes = self.planner.unit_recipes(node, &work.inputs, &units);
        for (index, (unit, recipe)) in units.into_iter().zip(recipes).enumerate() {
            fingerprints.push(recipe.fingerprint());
            let entry = if work.forced { None } else { self.look_up(&node.id, &unit, &recipe)? };
            if let Some(entry) = &entry {
                self.run.store.require(entry, [PART])?;
            }
            match &entry {
                Some(_) => work.units_cached += 1,
                None => {
                    work.progress.total += unit.steps;
                    let batch_key = node.stage.batch_key(&common.inputs, &unit);
                    let (step, common) = (Step::Unit(unit.clone()), Arc::clone(&common));
                    jobs.push(Job { common, unit: Some(index), step, recipe, batch_key, spent: 0.0 });
                }
            }
            work.units.push(unit);
            work.entries.push(entry);
        }
        let pipeline = self.run.pipeline.name.clone();
        let cut = UnitIndex { pipeline, stage: node.id.clone(), units: fingerprints };
        self.run.store.write_unit_index(&work.recipe.fingerprint(), &cut)?;
        Ok(jobs)
    }

    /// The result of a unit, if it stands.
    fn look_up(&self, stage: &str, unit: &Unit, recipe: &Recipe) -> Result<Option<Entry>, StoreError> {
        match self.run.store.find(&recipe.fingerprint())? {
            Lookup::Hit(entry) => Ok(Some(*entry)),
            Lookup::Miss => Ok(None),
            Lookup::Invalid(what) => {
                let message = format!("{what}; {} of `{stage}` is computed instead", unit.name);
                self.emit(Event::Log { level: "WARN".into(), message });
                Ok(None)
            }
        }
    }

    fn common(&self, stage: usize, work: &Work) -> StageContext {
        let node = &self.run.pipeline.stages[stage];
        StageContext {
            stage,
            kind: node.kind(),
            outputs: node.outputs.clone(),
            params: node.stage.to_json(),
            inputs: Inputs(work.inputs.paths.clone()),
            resolved: work.inputs.clone(),
            sources: self.sources(stage),
            upstream: self.upstream(stage),
            forced: work.forced,
        }
    }

    /// A stage of one piece, or what joins its units.
    fn whole(&self, stage: usize, step: Step, work: &Work) -> Job {
        Job {
            common: Arc::new(self.common(stage, work)),
            unit: None,
            step,
            recipe: work.recipe.clone(),
            batch_key: None,
            spent: work.entries.iter().flatten().map(|entry| entry.seconds).sum(),
        }
    }

    fn merge(&mut self, stage: usize) {
        // What is queued after the queue was cleared would be begun.
        if self.stopped() {
            return;
        }
        let work = &self.running[&stage];
        let parts =
            work.entries.iter().flatten().map(|entry| self.run.store.path(&entry.outputs[PART].digest));
        let job = self.whole(stage, Step::Merge(parts.collect()), work);
        self.queue.push_first(job);
        self.jobs += 1;
    }

    /// Whether nothing new may begin.
    fn stopped(&self) -> bool {
        self.run.stop.mode().is_some()
    }

    /// The records of stages that were not done when the run was stopped.
    pub(super) fn note_interrupted(&mut self) {
        for &stage in self.run.graph.order() {
            if self.records.contains_key(&stage) {
                continue;
            }
            let work = self.running.remove(&stage);
            let record = self.record(stage, work.as_ref().map(|work| &work.recipe));
            let mut record = StageRecord { outcome: Outcome::Interrupted, ..record };
            if let Some(work) = work {
                (record.units_run, record.units_cached) = (work.units_run, work.units_cached);
                record.seconds = work.seconds;
            }
            self.records.insert(stage, record);
        }
    }

    /// Says that another run is waited for, not more than once a minute.
    fn on_lock_wait(&mut self, stage: usize, unit: Option<usize>) {
        if self.waited.is_some_and(|waited| waited.elapsed() < Duration::from_secs(60)) {
            return;
        }
        self.waited = Some(Instant::now());
        let unit =
            self.running.get(&stage).zip(unit).map(|(work, unit)| format!(", {}", work.units[unit].name));
        let message =
            format!("waiting for another run that computes `{}`{}", self.id(stage), unit.unwrap_or_default());
        self.emit(Event::Log { level: "INFO".into(), message });
    }

    fn on_started(&self, stage: usize, unit: Option<usize>) {
        let unit = self.running.get(&stage).zip(unit).map(|(work, unit)| work.units[unit].name.clone());
        self.emit(Event::UnitStarted { stage: self.id(stage), unit });
    }

    fn on_reply(&mut self, stage: usize, unit: Option<usize>, reply: Reply) {
        match reply {
            Reply::Progress { done, total, .. } => {
                let Some(work) = self.running.get_mut(&stage) else { return };
                // A merge has no steps of its own among the units'.
                if unit.is_none() && !work.units.is_empty() {
                    return;
                }
                let (done, total) = work.progress.said(unit, done, total);
                self.emit(Event::Progress { stage: self.id(stage), done, total });
            }
            Reply::Log { level, message } => self.emit(Event::Log { level, message }),
            Reply::Finished { .. } | Reply::Done | Reply::Failed { .. } => {}
        }
    }

    fn unit_done(&mut self, stage: usize, unit: usize, entry: Entry, took: Option<f64>) {
        let seconds = took.unwrap_or_default();
        // Another unit of the stage may have failed meanwhile; this one is kept for the next run.
        let Some(work) = self.running.get_mut(&stage) else {
            if let Some(record) = self.records.get_mut(&stage) {
                record.units_run += usize::from(took.is_some());
                record.units_cached += usize::from(took.is_none());
                record.seconds += seconds;
            }
            return;
        };
        work.entries[unit] = Some(entry);
        work.units_run += usize::from(took.is_some());
        work.units_cached += usize::from(took.is_none());
        work.seconds += seconds;
        let name = work.units[unit].name.clone();
        let (done, total) = work.progress.finished(unit, work.units[unit].steps);
        let complete = work.complete();
        self.emit(Event::Progress { stage: self.id(stage), done, total });
        self.emit(Event::UnitFinished { stage: self.id(stage), unit: name, seconds });
        if complete {
            self.merge(stage);
        }
    }

    fn stage_done(&mut self, stage: usize, entry: Entry, took: Option<f64>) -> Result<(), StoreError> {
        // Another run computed all of it while this one waited.
        if took.is_none() && self.running.get(&stage).is_some_and(|work| work.units_run == 0) {
            self.running.remove(&stage);
            self.reuse(stage, entry)?;
            return self.start_dependents(stage);
        }
        let seconds = took.unwrap_or_default();
        let outputs = self.show(stage, &entry)?;
        let record = self.record(stage, Some(&entry.recipe));
        let Some(work) = self.running.remove(&stage) else { return Ok(()) };
        let seconds = work.seconds + seconds;
        let units_run = if work.units.is_empty() { 1 } else { work.units_run };
        self.emit(Event::StageFinished { stage: self.id(stage), seconds, outputs });
        let record = StageRecord { units_run, units_cached: work.units_cached, seconds, ..record };
        // Another process may have adopted it while this one waited for the lock.
        let (outputs, adopted) = (entry.outputs.clone(), entry.adopted.clone());
        self.records.insert(stage, StageRecord { outputs, adopted, ..record });
        self.done.insert(stage, entry);
        self.start_dependents(stage)
    }

    /// Brings the results folder up to date for one stage.
    fn show(&mut self, stage: usize, entry: &Entry) -> Result<BTreeMap<String, PlacedArtifact>, StoreError> {
        let node = &self.run.pipeline.stages[stage];
        let mut shown = BTreeMap::new();
        for port in &node.outputs {
            let Some(artifact) = entry.outputs.get(&port.name) else { continue };
            let placed = self.view.show(&node.folder().join(&port.file), artifact, self.run.store)?;
            if let Some(mended) = placed.mended {
                // Bytes that are replaced may have been someone's.
                let level = if mended == Repair::Missing { "INFO" } else { "WARN" };
                self.emit(Event::Log { level: level.into(), message: placed.to_string() });
            }
            let path = placed.path;
            shown.insert(port.name.clone(), PlacedArtifact { artifact: artifact.clone(), path });
        }
        Ok(shown)
    }
}
