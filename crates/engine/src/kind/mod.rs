//! The contract between the engine and the kinds of stages.
//!
//! A stage is its parameters: a kind is a type declared with [`params!`](crate::params) that says what it is
//! ([`Kind`]), what the engine must know to plan it ([`Stage`]) and how a worker runs it ([`Compute`]). The last two are
//! apart so that the command-line process, which only plans and schedules, links no libtorch and answers in milliseconds.

mod estimate;
mod info;
mod task;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::config::tree::{Node, Value};

pub use estimate::{ArtifactShape, Estimate, ExpectedInputs, Trial, WorkSize};
pub use info::{Computation, Kind, KindInfo, Parameters, Registry};
pub use task::{ByteRanges, Context, Step, Task, UnitInputs};

/// An input port of a kind.
#[derive(Debug, Clone, Copy)]
pub struct Input {
    /// The name used in `inputs`.
    pub name: &'static str,
    /// What stands on it: form and shape.
    pub doc: &'static str,
    /// Whether it must be connected.
    pub required: bool,
    /// Whether units read it; if not, only the merge does, and a change of it recomputes no unit.
    pub units: bool,
}

impl Input {
    /// An input that every unit reads.
    pub const fn new(name: &'static str, doc: &'static str) -> Self {
        Self { name, doc, required: true, units: true }
    }

    /// An input that only the merge of the units reads.
    pub const fn merge(name: &'static str, doc: &'static str) -> Self {
        Self { name, doc, required: true, units: false }
    }

    /// The same input, allowed to be left open.
    pub const fn optional(self) -> Self {
        Self { required: false, ..self }
    }
}

/// An output port of a kind.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    /// The name used in references, `stage.port`.
    pub name: &'static str,
    /// The file or folder name in the results folder.
    pub file: &'static str,
    /// What it is: form and shape.
    pub doc: &'static str,
    /// The parameter that asks for it, where it is not always there.
    pub asked_by: Option<&'static str>,
}

impl Output {
    /// An output that is always there.
    pub const fn new(name: &'static str, file: &'static str, doc: &'static str) -> Self {
        Self { name, file, doc, asked_by: None }
    }

    /// The same, there only where a parameter is set, and not to `false`.
    pub const fn asked_by(self, param: &'static str) -> Self {
        Self { asked_by: Some(param), ..self }
    }

    /// Whether a stage with these parameters, as they are written, has it.
    pub fn is_there(&self, written: &Node) -> bool {
        let value = |param| written.as_table().and_then(|table| table.get(param));
        self.asked_by
            .is_none_or(|param| value(param).is_some_and(|node| !matches!(node.value, Value::Bool(false))))
    }

    /// The port of a stage.
    pub fn port(&self) -> Port {
        Port { name: self.name.to_owned(), file: self.file.to_owned() }
    }
}

/// An output port of one stage of a pipeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// The name used in references, `stage.port`.
    pub name: String,
    /// The file or folder name in the results folder.
    pub file: String,
}

/// A parameter that a stage takes from the stage on one of its input ports.
///
/// Two stages whose numbers are only comparable under the same value can then never be given different ones.
#[derive(Debug, Clone, Copy)]
pub struct Inherit {
    /// The parameter, of the same name and type in both kinds.
    pub param: &'static str,
    /// The input port whose stage gives it.
    pub port: &'static str,
}

/// Paths of the artifacts on a stage's input ports.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Inputs(pub BTreeMap<String, PathBuf>);

impl Inputs {
    /// The path on a required port.
    ///
    /// # Panics
    /// If the port is not connected: the pipeline was checked for that.
    pub fn path(&self, port: &str) -> &Path {
        self.0.get(port).unwrap_or_else(|| panic!("the input `{port}` is not connected"))
    }

    /// The path on an optional port.
    pub fn get(&self, port: &str) -> Option<&Path> {
        self.0.get(port).map(PathBuf::as_path)
    }
}

/// A piece of a stage that is scheduled, cached and resumed on its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Unit {
    /// What it covers, for people: `batches 0..8`.
    pub name: String,
    /// What it covers, for the kind; part of the unit's identity.
    pub range: Json,
    /// Amount of work, in steps that the kind reports progress in.
    pub steps: u64,
}

/// Where a stage computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Device {
    /// The CPU.
    Cpu,
    /// The CUDA device of this index.
    Cuda(usize),
}

/// How remote files are brought.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Downloads {
    /// Where files lie until they are used; it outlives runs.
    pub folder: PathBuf,
    /// The lock file: what addresses gave when they were first downloaded.
    pub lock: PathBuf,
    /// Most files at once.
    pub at_once: usize,
}

/// A stage of a pipeline, as the engine sees it: its parameters, and what follows from them.
pub trait Stage: Parameters {
    /// Local files and folders that the parameters name: the engine hashes them as inputs.
    fn sources(&self) -> Vec<(String, PathBuf)> {
        Vec::new()
    }

    /// Moves the local files and folders of [`Stage::sources`] to other places: new paths by old ones.
    fn relocate(&mut self, _places: &BTreeMap<PathBuf, PathBuf>) {}

    /// The part of the parameters that is hashed: all but places.
    fn identity(&self) -> Json {
        self.to_json()
    }

    /// The parameters as a manifest keeps them: all but secrets.
    fn recorded(&self) -> Json {
        self.to_json()
    }

    /// The part of the parameters that a unit's bytes depend on.
    fn unit_identity(&self) -> Json {
        self.identity()
    }

    /// The environment variables that were read into the parameters, with their values.
    fn variables(&self) -> BTreeMap<String, Option<String>> {
        BTreeMap::new()
    }

    /// Faults between the parameters and the input ports that are connected: the parameter (`argv.1` for an item
    /// of an array) or the port to point at, and what is wrong.
    fn check(&self, _connected: &dyn Fn(&str) -> bool) -> Vec<(String, String)> {
        Vec::new()
    }

    /// The units, or `None` where the stage is one piece that writes the output ports itself.
    ///
    /// Reads no more of the inputs than their headers.
    ///
    /// # Errors
    /// Inputs that cannot be used: the file, what was found and what was expected.
    fn units(&self, _inputs: &Inputs) -> anyhow::Result<Option<Vec<Unit>>> {
        Ok(None)
    }

    /// For each of the units, the input ports of whose file the unit reads only a part, and which part.
    ///
    /// The unit's recipe then holds the digest of that part, so that a change elsewhere in the file leaves the unit
    /// alone. Reads no more of the inputs than their headers.
    ///
    /// # Errors
    /// Inputs that cannot be read; they are then hashed whole.
    fn unit_inputs(&self, _inputs: &Inputs, units: &[Unit]) -> anyhow::Result<Vec<UnitInputs>> {
        Ok(vec![UnitInputs::new(); units.len()])
    }

    /// The key of the units, of this stage or of others of the kind, that are worth computing together with this one:
    /// units of equal keys may become one batch, see [`Compute::run_batch`].
    ///
    /// The key covers all that `run_batch` reads of the parameters, so that the first stage can speak for the batch.
    fn batch_key(&self, _inputs: &Inputs, _unit: &Unit) -> Option<String> {
        None
    }

    /// Its outputs and its work, from what is known of its inputs before they are all there.
    ///
    /// Reads no more than headers and configurations. By default nothing is known, and the kind is not measured.
    ///
    /// # Errors
    /// Which input is not known well enough, and what must run first; inputs that cannot be used.
    fn estimate(&self, _inputs: &ExpectedInputs) -> anyhow::Result<Estimate> {
        Ok(Estimate::default())
    }

    /// Where the bytes of an output port, or of a path below it, are already: for a kind that copies files unchanged.
    fn source_path(&self, _port: &str, _below: Option<&str>) -> Option<PathBuf> {
        None
    }

    /// Refuses files, by output port, that cannot be what these parameters and inputs give.
    ///
    /// They were made elsewhere and are to be adopted as the stage's outputs. Reads headers, and values where
    /// there are few.
    ///
    /// # Errors
    /// The file, what was found and what was expected; by default, that the kind adopts nothing.
    fn accept(&self, _inputs: &Inputs, _outputs: &BTreeMap<String, PathBuf>) -> anyhow::Result<()> {
        anyhow::bail!("outputs of the kind `{}` cannot be adopted", self.kind().name)
    }
}

/// How a stage is computed, inside a worker.
pub trait Compute: Stage {
    /// Computes one unit into the empty folder `task.out`; a stage of one piece gets no unit and writes
    /// `out/<Output::file>` for each of its ports.
    ///
    /// # Errors
    /// Whatever keeps the result from being right; nothing of `out` is then kept.
    fn run(&self, task: &Task, cx: &Context<'_>) -> anyhow::Result<()>;

    /// Computes several units of one key, see [`Stage::batch_key`], each into its own empty folder. A lone unit is a
    /// batch of one.
    ///
    /// Each must give the bytes that it gives alone, whatever the batch. Nothing is lost where this fails: what is
    /// not finished then is computed unit by unit.
    ///
    /// # Errors
    /// As [`Compute::run`].
    fn run_batch(&self, tasks: &[Task], cx: &Context<'_>) -> anyhow::Result<()> {
        for (index, task) in tasks.iter().enumerate() {
            self.run(task, &cx.of_task(index))?;
            cx.finished(&[index]);
        }
        Ok(())
    }

    /// Joins the folders that the units wrote, in order, into `out/<Output::file>` for each port.
    ///
    /// # Errors
    /// As [`Compute::run`].
    fn merge(&self, _task: &Task, _parts: &[PathBuf], _cx: &Context<'_>) -> anyhow::Result<()> {
        anyhow::bail!("the kind `{}` has units but no merge", self.kind().name)
    }

    /// About `steps` steps of the stage's real work, to be measured; at least as many as one pass through the network takes.
    ///
    /// Inputs of which only the shape is known are made up, in files below `folder`, and no longer than the trial needs.
    ///
    /// # Errors
    /// As [`Stage::estimate`], and files that cannot be written.
    fn trial(
        &self,
        _inputs: &ExpectedInputs,
        _steps: u64,
        _folder: &Path,
        _cx: &Context<'_>,
    ) -> anyhow::Result<Trial> {
        anyhow::bail!("the kind `{}` is not measured", self.kind().name)
    }
}

/// An error with its causes, outermost first. A cause that the message before it ends with is not said again.
pub fn describe(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}
