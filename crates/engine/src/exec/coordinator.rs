//! Carries out the effects of a run's state: asks planner and store, fills the queue, emits events.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use super::Run;
use super::queue::{Job, Queue, StageContext};
use super::state::RunState;
use super::state_messages::{Decision, Effect, Message, Part, RunError};
use super::work::Work;
use crate::exec::event::{Event, PlacedArtifact};
use crate::identity::digest::Digest;
use crate::identity::recipe::Recipe;
use crate::kind::{self, Inputs, Step, Unit, Units};
use crate::pipeline::{Source, StageNode};
use crate::plan::{Action, InputError, Planner, Reason, ResolvedInputs, Results};
use crate::provenance::manifest::Conditions;
use crate::store::{Entry, Lookup, PART, Repair, StoreError, UnitIndex, View, format_bytes};

/// The one thread that the state of a run belongs to.
pub(super) struct Coordinator<'a> {
    pub(super) run: &'a Run<'a>,
    queue: &'a Queue<'a>,
    planner: Planner<'a>,
    pub(super) view: View,
    pub(super) state: RunState,
    pub(super) begun: Instant,
    pub(super) started: String,
    /// Stages whose shown results are others than before this run.
    pub(super) replaced: BTreeSet<usize>,
    /// Stages whose units are chains, as far as they were queued.
    chains: BTreeSet<usize>,
}

impl<'a> Coordinator<'a> {
    pub fn new(run: &'a Run<'a>, queue: &'a Queue<'a>) -> Self {
        let stages = run.pipeline.stages.iter();
        let names: Vec<String> = stages.map(|stage| stage.id.clone()).collect();
        let dependents = (0..names.len()).map(|stage| run.graph.dependents(stage).collect()).collect();
        Self {
            run,
            queue,
            planner: Planner::new(run.pipeline, run.store, run.numerics, run.forced),
            view: View::open(&run.results),
            state: RunState::new(names, dependents, run.graph.order()),
            begun: Instant::now(),
            replaced: BTreeSet::new(),
            chains: BTreeSet::new(),
            started: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string(),
        }
    }

    /// Decides every stage once: cached results are taken, what can start starts.
    pub fn begin(&mut self) -> Result<(), RunError> {
        let pipeline = self.run.pipeline.name.clone();
        let Conditions { jobs, threads, devices, .. } = self.run.conditions.clone();
        let stages = self.run.graph.order().len();
        self.emit(Event::RunStarted { pipeline, stages, jobs, threads, devices });
        self.handle(Message::Begin)
    }

    /// Takes a message, and does what follows from it.
    pub fn handle(&mut self, message: Message) -> Result<(), RunError> {
        // Its units are told by their stage: it may have failed meanwhile.
        let in_chain = matches!(&message, Message::Done(stage, Some(_), ..) if self.chains.contains(stage));
        let mut messages = VecDeque::from([message]);
        while let Some(mut message) = messages.pop_front() {
            if self.run.stop.mode().is_some() && !self.state.stopped() && !matches!(message, Message::Stop) {
                messages.push_front(message);
                message = Message::Stop;
            }
            if let Message::Failed(stage, _, error) = &mut message {
                *error = self.describe(*stage, std::mem::take(error));
            }
            for effect in self.state.transition(message) {
                messages.extend(self.perform(effect)?);
            }
        }
        if in_chain {
            self.queue.followed();
        }
        Ok(())
    }

    fn perform(&mut self, effect: Effect) -> Result<Option<Message>, RunError> {
        match effect {
            Effect::Emit(event) => self.emit(event),
            Effect::Decide(_) if self.run.stop.mode().is_some() => return Ok(Some(Message::Stop)),
            Effect::Decide(stage) => return Ok(Some(Message::Decided(stage, self.decide(stage)?))),
            Effect::Place(stage, entry, took) => {
                let outputs = self.place(stage, &entry)?;
                return Ok(Some(Message::Placed(stage, entry, took, outputs)));
            }
            Effect::Enqueue(stage, part) => self.enqueue(stage, part)?,
            Effect::CancelStage(stage) => return Ok(Some(Message::Dropped(self.queue.cancel(stage)))),
            Effect::ClearQueue => return Ok(Some(Message::Dropped(self.queue.clear()))),
            Effect::Abort(error) => return Err(error),
        }
        Ok(None)
    }

    pub(super) fn emit(&self, event: Event) {
        (self.run.emit)(event);
    }

    pub(super) fn warn(&self, message: String) {
        self.emit(Event::Log { level: "WARN".into(), message });
    }

    pub(super) fn id(&self, stage: usize) -> String {
        self.run.pipeline.stages[stage].id.clone()
    }

    /// What to do with a stage: for one that runs, its units and the results of those that are done.
    fn decide(&self, stage: usize) -> Result<Decision, StoreError> {
        let node = &self.run.pipeline.stages[stage];
        let fail = |recipe, error| Ok(Decision::Fail(recipe, self.describe(stage, error)));
        let (recipe, inputs, reason) = match self.planner.decide(stage, &self.state) {
            Ok(Action::Pending { .. }) => return Ok(Decision::Pending),
            Ok(Action::Cached(entry)) => return Ok(Decision::Cached(entry)),
            Ok(Action::Run(recipe, inputs, reason)) => (recipe, inputs, reason),
            Ok(Action::InvalidInput(error)) => return fail(None, error),
            Err(InputError::Store(error)) => return Err(error),
            Err(error) => return fail(None, error.to_string()),
        };
        // A warning: the user may rely on these files.
        if let Reason::Modified { what } = &reason {
            self.warn(format!("{what}; `{}` is computed instead", node.id));
        }
        let paths = Inputs(inputs.paths.clone());
        let units = match node.stage.validate_inputs(&paths).and_then(|()| node.stage.units(&paths)) {
            Ok(units) => units,
            Err(error) => return fail(Some(recipe), kind::describe(&error)),
        };
        let forced = reason == Reason::Forced;
        let mut lookup = |unit: &Unit, recipe: &Recipe| match forced {
            true => Ok(None),
            false => self.look_up(&node.id, unit, recipe),
        };
        let entries = self.planner.unit_entries(node, &inputs, &units, &mut lookup)?;
        // Where only the merge is left, the units have read the values.
        let computes = units == Units::Whole || entries.1.iter().any(Option::is_none);
        if computes && let Err(error) = node.stage.check_values(&self.unchecked(node, &inputs)) {
            return fail(Some(recipe), kind::describe(&error));
        }
        // The fingerprints of a chain are known as far as it is done, and of the unit that is next.
        let known = match units {
            Units::Chain(_) => entries.1.iter().take_while(|entry| entry.is_some()).count() + 1,
            Units::Whole | Units::Independent(_) => entries.0.len(),
        };
        if units != Units::Whole {
            let known = entries.0.iter().take(known).map(Recipe::fingerprint).collect();
            self.write_unit_index(stage, recipe.fingerprint(), known)?;
        }
        Ok(Decision::Run(Box::new(Work::new(*recipe, inputs, forced, units, entries)), reason))
    }

    /// The inputs whose values no stage has checked: files, and the outputs of programs and downloads.
    fn unchecked(&self, node: &StageNode, inputs: &ResolvedInputs) -> Inputs {
        let is_checked = |port: &str| match node.inputs.get(port) {
            Some(Source::Port { stage, .. }) => self.run.pipeline.stages[*stage].kind().libtorch,
            Some(Source::File(_)) | None => false,
        };
        let unchecked = inputs.paths.iter().filter(|(port, _)| !is_checked(port));
        Inputs(unchecked.map(|(port, path)| (port.clone(), path.clone())).collect())
    }

    /// The result of a unit, if it is in the cache.
    fn look_up(&self, stage: &str, unit: &Unit, recipe: &Recipe) -> Result<Option<Entry>, StoreError> {
        match self.run.store.find(&recipe.fingerprint())? {
            Lookup::Hit(entry) => {
                self.run.store.require(&entry, [PART])?;
                Ok(Some(*entry))
            }
            Lookup::Miss => Ok(None),
            Lookup::Invalid(what) => {
                self.warn(format!("{what}; {} of `{stage}` is computed instead", unit.name));
                Ok(None)
            }
        }
    }

    fn write_unit_index(
        &self,
        stage: usize,
        fingerprint: Digest,
        units: Vec<Digest>,
    ) -> Result<(), StoreError> {
        let index = UnitIndex { pipeline: self.run.pipeline.name.clone(), stage: self.id(stage), units };
        self.run.store.write_unit_index(&fingerprint, &index)
    }

    /// Makes jobs of a stage that runs, and queues them.
    fn enqueue(&mut self, stage: usize, part: Part) -> Result<(), StoreError> {
        let node = &self.run.pipeline.stages[stage];
        let (sources, upstream) = (self.sources(stage), self.upstream(stage));
        let Some(work) = self.state.work(stage) else { return Ok(()) };
        let chain = matches!(work.units, Units::Chain(_));
        if chain {
            self.chains.insert(stage);
        }
        let common = Arc::new(StageContext {
            stage,
            kind: node.kind(),
            outputs: node.outputs.clone(),
            params: node.stage.to_json(),
            inputs: Inputs(work.inputs.paths.clone()),
            resolved: work.inputs.clone(),
            sources,
            upstream,
            forced: work.forced,
            chain,
        });
        let job = |unit, step, recipe, previous, batch_key, spent| Job {
            common: Arc::clone(&common),
            unit,
            step,
            recipe,
            previous,
            batch_key,
            spent,
            lost: 0,
        };
        let step = match part {
            Part::Units(indexes) => {
                let jobs = indexes.into_iter().filter_map(|index| {
                    let (recipe, unit) = (work.take_recipe(index)?, work.units.list()[index].clone());
                    let key = node.stage.batch_key(&common.inputs, &unit);
                    Some(job(Some(index), Step::Unit(unit), recipe, work.previous(index), key, 0.0))
                });
                let jobs: Vec<Job> = jobs.collect();
                // A chain that has begun ends before others begin: its result is there the sooner.
                let chain_goes_on = chain && work.entries[0].is_some();
                if let Some(next) = jobs.first().filter(|_| chain) {
                    let done = work.entries.iter().flatten().map(|entry| &entry.recipe);
                    let known = done.chain([&next.recipe]).map(Recipe::fingerprint).collect();
                    let fingerprint = work.recipe.fingerprint();
                    self.write_unit_index(stage, fingerprint, known)?;
                }
                match chain_goes_on {
                    true => jobs.into_iter().for_each(|job| self.queue.push_first(job)),
                    false => self.queue.extend(jobs),
                }
                return Ok(());
            }
            Part::Whole => Step::Whole,
            Part::Merge => {
                let parts = work.entries.iter().flatten();
                Step::Merge(parts.map(|entry| self.run.store.path(&entry.outputs[PART].digest)).collect())
            }
        };
        let spent = work.entries.iter().flatten().map(|entry| entry.seconds).sum();
        let job = job(None, step, work.recipe.clone(), None, None, spent);
        match job.step {
            Step::Merge(_) => self.queue.push_first(job),
            _ => self.queue.extend(vec![job]),
        }
        Ok(())
    }

    /// Rewrites the paths of objects in an error to paths of the results folder, and adds the free space of a full disk.
    fn describe(&self, stage: usize, mut error: String) -> String {
        let shown = |node: &StageNode, port: &str| {
            let file = node.outputs.iter().find(|output| output.name == port).map(|output| &output.file);
            self.run.results.join(node.folder()).join(file.map_or("", String::as_str)).display().to_string()
        };
        let node = &self.run.pipeline.stages[stage];
        error = self.planner.name_outputs(node, &error, &|upstream| self.state.entry(upstream), &shown);
        // As the system says it, in whatever language a stage is written.
        if error.contains("No space left on device") || error.contains("os error 28") {
            let (free, root) = (format_bytes(self.run.store.free_space()), self.run.store.root().display());
            error.push_str(&format!("; {free} free on the disk of {root}; `attrflow cache gc` frees space"));
        }
        error
    }

    /// Reports files of the user that were moved aside.
    pub(super) fn report_moved(&mut self) {
        for moved in std::mem::take(&mut self.view.moved) {
            self.warn(moved.to_string());
        }
    }

    /// Updates the results folder for one stage.
    fn place(&mut self, stage: usize, entry: &Entry) -> Result<BTreeMap<String, PlacedArtifact>, StoreError> {
        let node = &self.run.pipeline.stages[stage];
        let mut outputs = BTreeMap::new();
        for port in &node.outputs {
            let Some(artifact) = entry.outputs.get(&port.name) else { continue };
            let placed = self.view.show(&node.folder().join(&port.file), artifact, self.run.store)?;
            if placed.replaced {
                self.replaced.insert(stage);
            }
            self.report_moved();
            if let Some(repair) = placed.mended {
                // Bytes that are replaced may have been someone's.
                let level = if repair == Repair::Missing { "INFO" } else { "WARN" };
                self.emit(Event::Log { level: level.into(), message: placed.to_string() });
            }
            let path = placed.path;
            outputs.insert(port.name.clone(), PlacedArtifact { artifact: artifact.clone(), path });
        }
        Ok(outputs)
    }
}
