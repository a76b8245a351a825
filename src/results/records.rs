//! The stages of a manifest, and the files behind their inputs and outputs.

use std::collections::HashMap;
use std::path::PathBuf;

use serde_json::Value as Json;

use super::files::Files;
use attrflow_engine::kind::split_port;
use attrflow_engine::provenance::manifest::{Manifest, StageRecord};

/// A run whose stages are found by name.
pub struct Run<'a> {
    /// What the run wrote down.
    pub manifest: &'a Manifest,
    /// Where its files are.
    pub files: &'a dyn Files,
    stages: HashMap<&'a str, &'a StageRecord>,
}

impl<'a> Run<'a> {
    /// A run, by its manifest and files.
    pub fn new(manifest: &'a Manifest, files: &'a dyn Files) -> Self {
        let stages = manifest.stages.iter().map(|record| (record.stage.as_str(), record)).collect();
        Self { manifest, files, stages }
    }

    /// The kind of a stage. One that did not start has no recipe: its kind is that of another item, or guessed.
    pub fn kind(&self, record: &'a StageRecord) -> &'a str {
        if let Some(recipe) = &record.recipe {
            return &recipe.kind;
        }
        let same = |other: &&StageRecord| base(&other.stage) == base(&record.stage);
        let other = self.manifest.stages.iter().filter(same).find_map(|other| other.recipe.as_ref());
        match other {
            Some(recipe) => &recipe.kind,
            None if record.params.get("images_shown").is_some() => "ranking",
            // A screen has this parameter too, and many files of weights.
            None if record.reads.keys().any(|port| port.starts_with("weights[")) => "screen",
            None if record.params.get("other_images").is_some() => "influence",
            None => "",
        }
    }

    /// The stages of a kind.
    pub fn of_kind(&self, kind: &str) -> impl Iterator<Item = &'a StageRecord> {
        self.manifest.stages.iter().filter(move |record| self.kind(record) == kind)
    }

    /// The stage that a port reads.
    pub fn upstream(&self, record: &StageRecord, port: &str) -> Option<&'a StageRecord> {
        self.stages.get(record.reads.get(port)?.stage.as_str()).copied()
    }

    /// The file or folder of an output.
    pub fn output(&self, record: &StageRecord, port: &str) -> Option<PathBuf> {
        let artifact = record.outputs.get(port)?;
        self.files.output(&record.stage, port, artifact).filter(|path| path.exists())
    }

    /// The file or folder that a port reads.
    pub fn input(&self, record: &StageRecord, port: &str) -> Option<PathBuf> {
        if let Some(path) = record.sources.get(port) {
            return self.files.source(path);
        }
        let reads = record.reads.get(port)?;
        let path = self.output(self.upstream(record, port)?, &reads.port)?;
        Some(match &reads.below {
            Some(below) => path.join(below),
            None => path,
        })
    }
}

/// The name of a stage without its item: `influence[apple]` is `influence`.
pub fn base(stage: &str) -> &str {
    split_port(stage).0
}

/// The item of a stage, or its name if it is not repeated.
pub fn item(stage: &str) -> &str {
    split_port(stage).1.unwrap_or(stage)
}

/// A parameter as text, if it is one or a number.
pub fn text(params: &Json, key: &str) -> Option<String> {
    match params.get(key)? {
        Json::String(text) if !text.is_empty() => Some(text.clone()),
        Json::Number(number) => Some(number.to_string()),
        _ => None,
    }
}
