//! Stages that fail: how it is told, and what it means for the others.

use super::coordinator::Coordinator;
use crate::exec::event::Event;
use crate::pipeline::Source;
use crate::provenance::manifest::{Outcome, StageRecord};
use crate::store::format_bytes;

impl Coordinator<'_> {
    /// An error in the words of who reads it: results by their path in the results folder, not by that of the object
    /// behind them; and how full a full disk is.
    fn describe(&self, stage: usize, mut error: String) -> String {
        for source in self.run.pipeline.stages[stage].inputs.values() {
            let Source::Port { stage: upstream, port, .. } = source else { continue };
            let Some(artifact) = self.done.get(upstream).and_then(|entry| entry.outputs.get(port)) else {
                continue;
            };
            let object = self.run.store.path(&artifact.digest).display().to_string();
            let node = &self.run.pipeline.stages[*upstream];
            let output = node.outputs.iter().find(|output| output.name == *port);
            if let Some(output) = output {
                let shown = self.run.results.join(node.folder()).join(&output.file).display().to_string();
                error = error.replace(&object, &shown);
            }
        }
        // As the system says it, in whatever language a stage is written.
        if error.contains("No space left on device") || error.contains("os error 28") {
            let (free, root) = (format_bytes(self.run.store.free_space()), self.run.store.root().display());
            error.push_str(&format!("; {free} free on the disk of {root}"));
        }
        error
    }

    /// Notes a failure, drops what is left of the stage, and blocks what needs it.
    pub(super) fn fail(&mut self, stage: usize, unit: Option<usize>, error: String) {
        let error = self.describe(stage, error);
        self.jobs -= self.queue.cancel(stage);
        let work = self.running.remove(&stage);
        // A second unit of the same stage failed: the first told it.
        if self.records.contains_key(&stage) {
            return;
        }
        let unit = work.as_ref().zip(unit).map(|(work, unit)| work.units[unit].name.clone());
        self.emit(Event::StageFailed { stage: self.id(stage), unit, error: error.clone() });
        let mut record = self.record(stage, work.as_ref().map(|work| &work.recipe));
        if let Some(work) = work {
            record.units_run = work.units_run;
            record.units_cached = work.units_cached;
            record.seconds = work.seconds;
        }
        let record = StageRecord { outcome: Outcome::Failed, error: Some(error), ..record };
        self.records.insert(stage, record);
        self.block_dependents(stage, stage);
    }

    fn block_dependents(&mut self, stage: usize, cause: usize) {
        for reader in self.run.graph.dependents(stage) {
            if self.records.contains_key(&reader) {
                continue;
            }
            self.emit(Event::StageBlocked { stage: self.id(reader), by: self.id(cause) });
            let record = StageRecord { outcome: Outcome::Blocked, ..self.record(reader, None) };
            self.records.insert(reader, record);
            self.block_dependents(reader, cause);
        }
    }
}
