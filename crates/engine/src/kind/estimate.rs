//! The outputs and the cost of a stage before anything has run.
//!
//! Nothing here computes: a kind derives the shapes of its outputs from those of its inputs, and provides a small piece
//! of its real work for a worker to measure.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::{Compute, Inputs, Unit, split_port};

/// The artifact on a port, existing or expected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ArtifactShape {
    /// It exists, or its bytes do.
    Path(PathBuf),
    /// An array in a file of its own.
    Array {
        /// Lengths of its axes.
        shape: Vec<usize>,
        /// Bytes per element.
        bytes: usize,
    },
    /// It does not exist yet; what exists is of the same layout, and takes as long to work on.
    Like {
        /// What exists.
        path: PathBuf,
        /// Bytes of the artifact itself.
        bytes: u64,
    },
    /// Files with only a known size.
    Bytes(u64),
}

impl ArtifactShape {
    /// The existing artifact, or one that it resembles.
    pub fn path(&self) -> Option<&PathBuf> {
        match self {
            Self::Path(path) | Self::Like { path, .. } => Some(path),
            Self::Array { .. } | Self::Bytes(_) => None,
        }
    }

    /// The same, to change it.
    pub fn path_mut(&mut self) -> Option<&mut PathBuf> {
        match self {
            Self::Path(path) | Self::Like { path, .. } => Some(path),
            Self::Array { .. } | Self::Bytes(_) => None,
        }
    }

    /// The bytes that it will need; `None` for an existing artifact, which needs none.
    pub fn bytes(&self) -> Option<u64> {
        /// The size of an array's header.
        const HEADER: u64 = 128;
        match self {
            Self::Path(_) => None,
            Self::Array { shape, bytes } => {
                let numbers = shape.iter().fold(1u64, |all, &length| all.saturating_mul(length as u64));
                Some(numbers.saturating_mul(*bytes as u64) + HEADER)
            }
            Self::Like { bytes, .. } | Self::Bytes(bytes) => Some(*bytes),
        }
    }
}

/// The inputs of a stage before all of them exist.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpectedInputs {
    /// The known shapes, by port.
    pub shapes: BTreeMap<String, ArtifactShape>,
    /// The connected ports of unknown shape, with the stage that must run first.
    pub unknown: BTreeMap<String, String>,
}

impl ExpectedInputs {
    /// The artifact on a connected port.
    ///
    /// # Errors
    /// Its shape is unknown; the stage that must run first.
    pub fn shape(&self, port: &str) -> anyhow::Result<&ArtifactShape> {
        self.shapes.get(port).ok_or_else(|| match self.unknown.get(port) {
            Some(stage) => anyhow::anyhow!("the input `{port}` is unknown until `{stage}` has run"),
            None => anyhow::anyhow!("the input `{port}` is not connected"),
        })
    }

    /// The path on a port whose file or folder must exist.
    ///
    /// # Errors
    /// It does not exist yet; the stage that must run first, if known.
    pub fn path(&self, port: &str) -> anyhow::Result<&Path> {
        let path = self.shape(port)?.path();
        Ok(path.ok_or_else(|| anyhow::anyhow!("the input `{port}` does not exist yet"))?)
    }

    /// The inputs of a port that takes any number of sources, each as the other methods name it.
    pub fn many(&self, port: &str) -> Vec<&str> {
        let all = self.shapes.keys().chain(self.unknown.keys()).map(String::as_str);
        all.filter(|key| matches!(split_port(key), (name, Some(_)) if name == port)).collect()
    }

    /// Whether the port is connected.
    pub fn connected(&self, port: &str) -> bool {
        self.shapes.contains_key(port) || self.unknown.contains_key(port)
    }

    /// The ports with an existing artifact, as a kind's inputs.
    pub fn inputs(&self) -> Inputs {
        let paths = self.shapes.iter().filter_map(|(port, form)| Some((port.clone(), form.path()?.clone())));
        Inputs(paths.collect())
    }
}

/// The estimate of a stage.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The shapes of its outputs, by port, as far as known.
    pub outputs: BTreeMap<String, ArtifactShape>,
    /// Bytes of the parts of all units, which the cache keeps beside the outputs.
    pub parts: u64,
    /// Its work; `None` for a kind that is not measured.
    pub work: Option<WorkSize>,
}

impl Estimate {
    /// Bytes of all outputs; `None` if one is unknown.
    pub fn bytes(&self) -> Option<u64> {
        let sizes: Option<Vec<u64>> = self.outputs.values().map(ArtifactShape::bytes).collect();
        sizes.filter(|sizes| !sizes.is_empty()).map(|sizes| sizes.iter().sum())
    }
}

/// An amount of work.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct WorkSize {
    /// Steps, in the sense of [`Unit::steps`].
    pub steps: u64,
    /// What a stage does besides its steps whatever their number, in steps: an earlier time is scaled by the sum.
    pub extra: u64,
    /// Number of tasks: each has a cost of its own besides its steps.
    pub tasks: u64,
    /// All parameters, networks and shapes that the time per step and the memory depend on: work with equal keys is
    /// measured once. Null where one of them is not known yet: then it cannot be measured.
    pub cost_key: Json,
}

/// A small piece of a stage's real work.
pub struct Trial {
    /// The stage, with only those parameters changed that determine the amount of work.
    pub stage: Box<dyn Compute>,
    /// Its inputs, all of which exist.
    pub inputs: Inputs,
    /// The units to compute together, for a kind that has units: those of a batch, where a run makes batches.
    pub units: Vec<Unit>,
    /// Their steps.
    pub steps: u64,
    /// Whether merging takes a time worth measuring, and can be run on the trial's own parts.
    pub merges: bool,
}
