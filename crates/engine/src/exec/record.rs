//! The account of a run: what each stage read and gave, and the manifest that keeps it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::coordinator::Coordinator;
use crate::exec::event::Event;
use crate::identity::recipe::Recipe;
use crate::pipeline::Source;
use crate::provenance::manifest::{self, FORMAT, Manifest, Outcome, Reads, StageRecord};
use crate::store::{Artifact, StoreError};

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
                Some((port.clone(), self.done.get(stage)?.outputs.get(output)?.clone()))
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

    /// A record with what is known of a stage before it is known how it ended.
    pub(super) fn record(&self, stage: usize, recipe: Option<&Recipe>) -> StageRecord {
        let node = &self.run.pipeline.stages[stage];
        StageRecord {
            stage: node.id.clone(),
            outcome: Outcome::Ran,
            fingerprint: recipe.map(Recipe::fingerprint),
            recipe: recipe.cloned(),
            params: node.stage.recorded(),
            reads: self.reads(stage),
            sources: self.sources(stage),
            outputs: BTreeMap::new(),
            adopted: None,
            units_run: 0,
            units_cached: 0,
            seconds: 0.0,
            error: None,
        }
    }

    /// Writes the manifest and says how it ended.
    pub fn finish(mut self) -> Result<Manifest, StoreError> {
        self.note_interrupted();
        let stages = self.run.pipeline.stages.iter();
        let files = stages.flat_map(|s| s.outputs.iter().map(|port| s.folder().join(&port.file)));
        let shown = files.collect();
        let mut unkept = Vec::new();
        let mut keep = |what: &'static str, result: Result<(), StoreError>| match result {
            Err(error) if error.is_read_only() => {
                unkept.push((what, error.to_string()));
                Ok(())
            }
            result => result,
        };
        keep("results of stages that are gone", self.view.prune(&shown))?;
        keep("results index", self.view.save())?;
        keep("file-state cache", self.run.store.flush())?;
        let mut records = std::mem::take(&mut self.records);
        let selected: BTreeSet<usize> = self.run.graph.order().iter().copied().collect();
        let names = self.run.pipeline.stages.iter().enumerate();
        let left_out =
            names.filter(|(index, _)| !selected.contains(index)).map(|(_, s)| s.id.clone()).collect();
        let stages: Vec<StageRecord> =
            self.run.graph.order().iter().filter_map(|stage| records.remove(stage)).collect();
        debug_assert_eq!(stages.len(), self.run.graph.order().len(), "every stage ends in some way");
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
        if let Some((_, error)) = unkept.first() {
            let what: Vec<&str> = unkept.iter().map(|(what, _)| *what).collect();
            let message = format!("read-only file system ({error}); not saved: {}", what.join(", "));
            self.emit(Event::Log { level: "WARN".into(), message });
        }
        self.emit(Event::RunFinished { seconds, cached, ran, failed, blocked, interrupted, manifest: path });
        Ok(manifest)
    }
}
