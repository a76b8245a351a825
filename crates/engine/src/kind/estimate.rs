//! What a stage would give and take, told before anything has run.
//!
//! Nothing here computes: a kind tells the forms of its outputs from those of its inputs, and cuts a small piece of its real work
//! for a worker to measure.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::{Compute, Inputs, Unit};

/// What stands on a port, or will stand there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ArtifactShape {
    /// It is there already, or its bytes are.
    Path(PathBuf),
    /// An array in a file of its own.
    Array {
        /// Lengths of its axes.
        shape: Vec<usize>,
        /// Bytes of a number.
        bytes: usize,
    },
    /// Files of which the length is known and nothing more.
    Bytes(u64),
}

impl ArtifactShape {
    /// The bytes that it will take; `None` for what is there, and takes none.
    pub fn bytes(&self) -> Option<u64> {
        /// What stands before the numbers of an array.
        const HEADER: u64 = 128;
        match self {
            Self::Path(_) => None,
            Self::Array { shape, bytes } => {
                let numbers = shape.iter().fold(1u64, |all, &length| all.saturating_mul(length as u64));
                Some(numbers.saturating_mul(*bytes as u64) + HEADER)
            }
            Self::Bytes(bytes) => Some(*bytes),
        }
    }
}

/// What is known of a stage's input ports before they are all there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpectedInputs {
    /// The forms that are known, by port.
    pub shapes: BTreeMap<String, ArtifactShape>,
    /// The connected ports of which nothing is known, with the stage that must run first.
    pub unknown: BTreeMap<String, String>,
}

impl ExpectedInputs {
    /// What stands on a connected port.
    ///
    /// # Errors
    /// Nothing is known of it; which stage must run first.
    pub fn shape(&self, port: &str) -> anyhow::Result<&ArtifactShape> {
        self.shapes.get(port).ok_or_else(|| match self.unknown.get(port) {
            Some(stage) => anyhow::anyhow!("what stands on `{port}` is not known before `{stage}` has run"),
            None => anyhow::anyhow!("the input `{port}` is not connected"),
        })
    }

    /// The path on a port whose file or folder is needed.
    ///
    /// # Errors
    /// It is not there yet; which stage must run first, if that is known.
    pub fn path(&self, port: &str) -> anyhow::Result<&Path> {
        match self.shape(port)? {
            ArtifactShape::Path(path) => Ok(path),
            _ => anyhow::bail!("what stands on `{port}` is not there yet"),
        }
    }

    /// Whether something stands on the port, or will.
    pub fn connected(&self, port: &str) -> bool {
        self.shapes.contains_key(port) || self.unknown.contains_key(port)
    }

    /// The ports on which there is something already, as a kind's inputs.
    pub fn inputs(&self) -> Inputs {
        let paths = self.shapes.iter().filter_map(|(port, form)| match form {
            ArtifactShape::Path(path) => Some((port.clone(), path.clone())),
            _ => None,
        });
        Inputs(paths.collect())
    }
}

/// What a stage comes to.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The forms of its outputs, by port, as far as they are known.
    pub outputs: BTreeMap<String, ArtifactShape>,
    /// Bytes of all its units' parts together, which the cache keeps beside the outputs.
    pub parts: u64,
    /// What it computes; `None` for a kind that is not measured.
    pub work: Option<WorkSize>,
}

impl Estimate {
    /// Bytes of the outputs together; `None` where that of one is not known.
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
    /// Tasks that it is cut into: each has a cost of its own besides its steps.
    pub tasks: u64,
    /// All of parameters, networks and shapes that the time of a step and the memory depend on: work that is alike is measured
    /// once.
    pub cost_key: Json,
}

/// A small piece of a stage's real work.
pub struct Trial {
    /// The stage, with those parameters changed that only say how much there is to do.
    pub stage: Box<dyn Compute>,
    /// Its inputs, all of which are there.
    pub inputs: Inputs,
    /// The unit to compute, for a kind that has units.
    pub unit: Option<Unit>,
    /// Its steps.
    pub steps: u64,
    /// Whether joining parts takes a time worth measuring, and can be tried on the trial's own parts.
    pub merges: bool,
}
