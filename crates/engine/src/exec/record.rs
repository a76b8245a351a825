//! The account of a run: what each stage read and gave, and the manifest that keeps it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Instant;

use super::coordinator::Coordinator;
use super::state::StageState;
use super::state_messages::{Message, RunError, Took};
use super::work::Tally;
use crate::exec::event::Event;
use crate::identity::recipe::Recipe;
use crate::pipeline::Source;
use crate::plan::Results;
use crate::provenance::manifest::{self, FORMAT, Manifest, Outcome, Reads, StageRecord};
use crate::provenance::task_times::{self, TaskTime};
use crate::store::{Artifact, Entry, StoreError};

/// The first names of many.
fn some(names: &[&str]) -> String {
    const FIRST: usize = 3;
    let more = names.len().saturating_sub(FIRST);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", names[..names.len().min(FIRST)].join(", "))
}

impl Coordinator<'_> {
    /// The files and folders outside the store that a stage reads, by port.
    pub(super) fn sources(&self, stage: usize) -> BTreeMap<String, PathBuf> {
        let inputs = self.run.pipeline.stages[stage].inputs.iter();
        let sources = inputs.filter_map(|(port, source)| match source {
            Source::File(path) => Some((port.clone(), path.clone())),
            Source::Port { .. } => None,
        });
        sources.collect()
    }

    /// The outputs of other stages that a stage reads, whole or in part, by port.
    pub(super) fn upstream(&self, stage: usize) -> BTreeMap<String, Artifact> {
        let inputs = self.run.pipeline.stages[stage].inputs.iter();
        let artifacts = inputs.filter_map(|(port, source)| match source {
            Source::File(_) => None,
            Source::Port { stage, port: output, .. } => {
                Some((port.clone(), self.state.entry(*stage)?.outputs.get(output)?.clone()))
            }
        });
        artifacts.collect()
    }

    /// The outputs of other stages that a stage reads, by name and port.
    fn reads(&self, stage: usize) -> BTreeMap<String, Reads> {
        let inputs = self.run.pipeline.stages[stage].inputs.iter();
        let reads = inputs.filter_map(|(input, source)| match source {
            Source::File(_) => None,
            Source::Port { stage, port, sub, .. } => {
                let (stage, port, below) = (self.id(*stage), port.clone(), sub.clone());
                Some((input.clone(), Reads { stage, port, below }))
            }
        });
        reads.collect()
    }

    /// What the manifest keeps of a stage that ended.
    fn record(&self, stage: usize) -> StageRecord {
        let node = &self.run.pipeline.stages[stage];
        let cached = |entry: &Entry| Tally { seconds: entry.seconds, ..Tally::default() };
        let (outcome, recipe, tally, entry, error) = match &self.state.stages[stage] {
            StageState::Done(entry, None) => {
                (Outcome::Cached, Some(&entry.recipe), cached(entry), Some(entry), None)
            }
            StageState::Done(entry, Some(tally)) => {
                (Outcome::Ran, Some(&entry.recipe), tally.clone(), Some(entry), None)
            }
            StageState::Failed(partial, error) => {
                let recipe = partial.recipe.as_deref();
                (Outcome::Failed, recipe, partial.tally.clone(), None, Some(error.clone()))
            }
            StageState::Interrupted(partial) => {
                (Outcome::Interrupted, partial.recipe.as_deref(), partial.tally.clone(), None, None)
            }
            StageState::Blocked | StageState::Pending | StageState::Running(_) => {
                (Outcome::Blocked, None, Tally::default(), None, None)
            }
        };
        StageRecord {
            stage: node.id.clone(),
            outcome,
            fingerprint: recipe.map(Recipe::fingerprint),
            recipe: recipe.cloned(),
            params: node.stage.recorded(),
            reads: self.reads(stage),
            sources: self.sources(stage),
            outputs: entry.map(|entry| entry.outputs.clone()).unwrap_or_default(),
            // Another process may have adopted it while this one waited for the lock.
            adopted: entry.and_then(|entry| entry.adopted.clone()),
            units_run: tally.units_run,
            units_cached: tally.units_cached,
            seconds: tally.seconds,
            workers: self.state.workers.get(&stage).cloned(),
            error,
        }
    }

    /// The tasks that were computed, in milliseconds.
    fn task_times(&self) -> Vec<TaskTime> {
        let at = |time: Instant| time.saturating_duration_since(self.begun).as_millis() as f64 / 1000.0;
        let of = |task: &Took| TaskTime {
            stage: self.id(task.stage),
            worker: task.worker.clone(),
            begin: at(task.begin),
            end: at(task.end),
            peak_memory: task.peak_memory,
        };
        self.state.tasks.iter().map(of).collect()
    }

    /// Names results of earlier runs that were computed from other results than those shown now.
    fn warn_of_earlier_results(&self) {
        if self.replaced.is_empty() {
            return;
        }
        let Self { run, state, .. } = self;
        let mut stale = self.replaced.clone();
        let mut names = Vec::new();
        for stage in run.graph.all() {
            let node = &run.pipeline.stages[stage];
            let reads = node.inputs.values().any(|source| match source {
                Source::Port { stage, .. } => stale.contains(stage),
                Source::File(_) => false,
            });
            let is_new = matches!(state.stages[stage], StageState::Done(..));
            let is_shown =
                || node.outputs.iter().any(|port| self.view.shows(&node.folder().join(&port.file)));
            if reads && !is_new && is_shown() {
                stale.insert(stage);
                names.push(node.id.as_str());
            }
        }
        if !names.is_empty() {
            self.warn(format!(
                "{} still shows results of an earlier run, from other inputs than are shown now: {}",
                run.results.display(),
                some(&names)
            ));
        }
    }

    /// Names another pipeline of this project, of the same name, whose results were shown here.
    fn warn_of_another_pipeline(&self) {
        let run = self.run;
        let newest = manifest::list(&run.store.runs(&run.pipeline.name)).into_iter().next();
        let newest = newest.and_then(|path| manifest::read(&path).ok());
        let here = newest.filter(|newest| newest.root == fs_err::canonicalize(&run.pipeline.root).ok());
        let both = here.and_then(|newest| newest.within).zip(run.pipeline.within.as_ref());
        if let Some((other, own)) = both.filter(|(other, own)| other != *own) {
            self.warn(format!(
                "{} and {} have one name, and take turns in {}",
                other.display(),
                own.display(),
                run.results.display()
            ));
        }
    }

    /// Writes the manifest and says how it ended.
    pub fn finish(mut self) -> Result<Manifest, RunError> {
        self.handle(Message::End)?;
        let stages = self.run.pipeline.stages.iter();
        let files = stages.flat_map(|s| s.outputs.iter().map(|port| s.folder().join(&port.file)));
        let shown = files.collect();
        self.warn_of_earlier_results();
        // Another pipeline's results are replaced or removed.
        if !self.replaced.is_empty() || self.view.shows_others(&shown) {
            self.warn_of_another_pipeline();
        }
        let mut unkept = Vec::new();
        let mut keep = |what: &'static str, result: Result<(), StoreError>| match result {
            Err(error) if error.is_read_only() => {
                unkept.push((what, error.to_string()));
                Ok(())
            }
            result => result,
        };
        keep("results of stages that are gone", self.view.prune(&shown, self.run.store))?;
        keep("results index", self.view.save())?;
        keep("file-state cache", self.run.store.flush())?;
        let selected: BTreeSet<usize> = self.run.graph.order().iter().copied().collect();
        let names = self.run.pipeline.stages.iter().enumerate();
        let left_out =
            names.filter(|(index, _)| !selected.contains(index)).map(|(_, s)| s.id.clone()).collect();
        let stages: Vec<StageRecord> =
            self.run.graph.order().iter().map(|stage| self.record(*stage)).collect();
        let count = |outcome| stages.iter().filter(|record| record.outcome == outcome).count();
        let (cached, ran) = (count(Outcome::Cached), count(Outcome::Ran));
        let (failed, blocked) = (count(Outcome::Failed), count(Outcome::Blocked));
        let interrupted = count(Outcome::Interrupted);
        let seconds = self.begun.elapsed().as_secs_f64();
        let manifest = Manifest {
            format: FORMAT,
            attrflow: self.run.program.clone(),
            pipeline: self.run.pipeline.name.clone(),
            file: self.run.file.clone(),
            root: fs_err::canonicalize(&self.run.pipeline.root).ok(),
            within: self.run.pipeline.within.clone(),
            sets: self.run.sets.clone(),
            started: self.started.clone(),
            seconds,
            numerics: self.run.numerics.clone(),
            conditions: self.run.conditions.clone(),
            left_out,
            stages,
        };
        let path = manifest::write(&self.run.store.runs(&manifest.pipeline), &manifest);
        let path = match path.map_err(StoreError::from) {
            Err(error) if error.is_read_only() => {
                unkept.push(("the manifest", error.to_string()));
                None
            }
            path => Some(path?),
        };
        if let Some(Err(error)) = path.as_ref().map(|path| task_times::write(path, &self.task_times())) {
            self.warn(format!("times of the tasks not saved: {error}"));
        }
        if let Some((_, error)) = unkept.first() {
            let what: Vec<&str> = unkept.iter().map(|(what, _)| *what).collect();
            let message = format!("read-only file system ({error}); not saved: {}", what.join(", "));
            self.emit(Event::Log { level: "WARN".into(), message });
        }
        self.emit(Event::RunFinished { seconds, cached, ran, failed, blocked, interrupted, manifest: path });
        Ok(manifest)
    }
}
