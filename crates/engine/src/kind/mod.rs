//! The interface between the engine and the stage kinds.
//!
//! A stage is its parameters: a kind is a type declared with [`params!`](crate::params). Three traits describe it:
//! [`Kind`] its name and ports, [`Stage`] what the engine needs to plan it, [`Compute`] how a worker runs it. The last
//! two are separate so that the command-line process, which only plans and schedules, links no libtorch and starts in
//! milliseconds.

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
pub use task::{ByteRanges, Context, OnProgress, Step, Task, UnitInputs};

/// An input port of a kind.
#[derive(Debug, Clone, Copy)]
pub struct Input {
    /// The name used in `inputs`.
    pub name: &'static str,
    /// Its content: format and shape.
    pub doc: &'static str,
    /// Whether it must be connected.
    pub required: bool,
    /// Whether units read it; otherwise only the merge does, and a change of it recomputes no unit.
    pub units: bool,
    /// Whether it takes any number of sources, see [`Inputs::many`].
    pub many: bool,
}

impl Input {
    /// An input that every unit reads.
    pub const fn new(name: &'static str, doc: &'static str) -> Self {
        Self { name, doc, required: true, units: true, many: false }
    }

    /// An input that only the merge of the units reads.
    pub const fn merge(name: &'static str, doc: &'static str) -> Self {
        Self { units: false, ..Self::new(name, doc) }
    }

    /// The same input, but optional.
    pub const fn optional(self) -> Self {
        Self { required: false, ..self }
    }

    /// The same input for any number of sources: `"stage[*].port"` is one for each item of a repeated stage.
    pub const fn many(self) -> Self {
        Self { many: true, ..self }
    }
}

/// An output port of a kind.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    /// The name used in references, `stage.port`.
    pub name: &'static str,
    /// The file or folder name in the results folder.
    pub file: &'static str,
    /// Its content: format and shape.
    pub doc: &'static str,
    /// The parameter that enables it, if it is optional.
    pub enabled_by: Option<&'static str>,
    /// The parameter with which a stage has another output in its place.
    pub replaced_by: Option<&'static str>,
}

impl Output {
    /// An output that every stage of the kind has.
    pub const fn new(name: &'static str, file: &'static str, doc: &'static str) -> Self {
        Self { name, file, doc, enabled_by: None, replaced_by: None }
    }

    /// The same output, enabled by a parameter that is set, and not to `false`.
    pub const fn enabled_by(self, param: &'static str) -> Self {
        Self { enabled_by: Some(param), ..self }
    }

    /// The same output, of stages alone that do not set a parameter.
    pub const fn replaced_by(self, param: &'static str) -> Self {
        Self { replaced_by: Some(param), ..self }
    }

    /// Whether a stage with these parameters, as written, has it.
    pub fn is_there(&self, written: &Node) -> bool {
        let value = |param| written.as_table().and_then(|table| table.get(param));
        let is_set = |param| value(param).is_some_and(|node| !matches!(node.value, Value::Bool(false)));
        self.enabled_by.is_none_or(is_set) && !self.replaced_by.is_some_and(is_set)
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

/// A parameter that a stage inherits from the stage on one of its input ports.
///
/// Two stages whose numbers are comparable only under equal values can thus never have different ones.
#[derive(Debug, Clone, Copy)]
pub struct Inherit {
    /// The parameter, with the same name and type in both kinds.
    pub param: &'static str,
    /// The input port whose stage defines it.
    pub port: &'static str,
}

/// A parameter that holds where the results folder shows what an input port reads, such as `data/files/images`.
///
/// It is filled in from the pipeline, so that a result can name files that its reader finds. For a file outside the store, and
/// where it is written, it stays as it is.
#[derive(Debug, Clone, Copy)]
pub struct ShownAt {
    /// The parameter, a text.
    pub param: &'static str,
    /// The input port.
    pub port: &'static str,
}

/// Inputs that a stage and the stage on one of its input ports must have from the same place.
///
/// Two stages whose numbers are compared are of the same network and data.
#[derive(Debug, Clone, Copy)]
pub struct Shared {
    /// The input port of the other stage.
    pub port: &'static str,
    /// The kind of that stage; of another one nothing is expected.
    pub kind: &'static str,
    /// The ports, of the same names in both kinds.
    pub inputs: &'static [&'static str],
}

/// Paths of the artifacts on a stage's input ports.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Inputs(pub BTreeMap<String, PathBuf>);

impl Inputs {
    /// The path on a required port.
    ///
    /// # Panics
    /// If the port is not connected: the pipeline was checked before.
    pub fn path(&self, port: &str) -> &Path {
        self.0.get(port).unwrap_or_else(|| panic!("the input `{port}` is not connected"))
    }

    /// The folder of the unit before, for each unit of a chain but the first.
    pub fn previous(&self) -> Option<&Path> {
        self.get(PREVIOUS)
    }

    /// The path on an optional port.
    pub fn get(&self, port: &str) -> Option<&Path> {
        self.0.get(port).map(PathBuf::as_path)
    }

    /// The inputs of one item of the ports that take many sources, under the names of these ports; others are as they are.
    #[must_use]
    pub fn of_item(&self, item: &str) -> Self {
        let own = self.0.iter().filter_map(|(key, path)| match split_port(key) {
            (port, Some(of)) => (of == item).then(|| (port.to_owned(), path.clone())),
            (port, None) => Some((port.to_owned(), path.clone())),
        });
        Self(own.collect())
    }

    /// The paths on a port that takes any number of sources, each with the name of its item.
    pub fn many<'a>(&'a self, port: &'a str) -> impl Iterator<Item = (&'a str, &'a Path)> {
        self.0.iter().filter_map(move |(key, path)| match split_port(key) {
            (name, Some(item)) if name == port => Some((item, path.as_path())),
            _ => None,
        })
    }
}

/// The port of an input, and the item that it is of: `losses[apple]` is of the port `losses`, which takes many sources.
pub fn split_port(input: &str) -> (&str, Option<&str>) {
    match input.strip_suffix(']').and_then(|rest| rest.split_once('[')) {
        Some((port, item)) => (port, Some(item)),
        None => (input, None),
    }
}

/// A part of a stage that is scheduled, cached and resumed on its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Unit {
    /// Its range, for people: `batches 0..8`.
    pub name: String,
    /// Its range, for the kind; part of the unit's identity.
    pub range: Json,
    /// Its work, in the steps that the kind reports as progress.
    pub steps: u64,
}

/// The input of a unit of a chain that is the folder of the unit before. No port has this name.
pub const PREVIOUS: &str = "previous unit";

/// How a stage is divided.
#[derive(Debug, Clone, PartialEq)]
pub enum Units {
    /// It is one piece, which writes the output ports itself.
    Whole,
    /// Units that can be computed in any order.
    Independent(Vec<Unit>),
    /// Units of which each but the first reads the folder of the one before, see [`Inputs::previous`].
    Chain(Vec<Unit>),
}

impl Units {
    /// The units, none for a stage of one piece.
    pub fn list(&self) -> &[Unit] {
        match self {
            Self::Whole => &[],
            Self::Independent(units) | Self::Chain(units) => units,
        }
    }
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

/// How remote files are downloaded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Downloads {
    /// The folder of downloaded files until they are used; it persists between runs.
    pub folder: PathBuf,
    /// The lock file: the digests of addresses at their first download.
    pub lock: PathBuf,
    /// Maximum parallel downloads.
    pub at_once: usize,
}

/// A stage of a pipeline for the engine: its parameters, and what follows from them.
pub trait Stage: Parameters {
    /// Local files and folders that the parameters name: the engine hashes them as inputs.
    fn sources(&self) -> Vec<(String, PathBuf)> {
        Vec::new()
    }

    /// Replaces the local files and folders of [`Stage::sources`]: new paths by old ones.
    fn relocate(&mut self, _places: &BTreeMap<PathBuf, PathBuf>) {}

    /// The part of the parameters that is hashed: all but paths and addresses.
    fn identity(&self) -> Json {
        self.to_json()
    }

    /// The parameters as a manifest records them: all but secrets.
    fn recorded(&self) -> Json {
        self.to_json()
    }

    /// The part of the parameters that a unit's bytes depend on.
    fn unit_identity(&self) -> Json {
        self.identity()
    }

    /// Whether no unit reads an input port, only the merge: by default as the kind declares it.
    ///
    /// A stage whose units read a port only with some parameters says so here.
    fn is_merge_only(&self, port: &str) -> bool {
        self.kind().inputs.iter().any(|input| input.name == port && !input.units)
    }

    /// The environment variables that the parameters contain, with their values.
    fn variables(&self) -> BTreeMap<String, Option<String>> {
        BTreeMap::new()
    }

    /// Faults between the parameters and the connected input ports: the parameter (`argv.1` for an item of an array) or
    /// the port to report, and what is wrong.
    fn check(&self, _connected: &dyn Fn(&str) -> bool) -> Vec<(String, String)> {
        Vec::new()
    }

    /// Faults between the parameters and those of the stages on input ports: parameters to report, and what is wrong.
    fn check_sources<'s>(&self, _source: &dyn Fn(&str) -> Option<&'s dyn Stage>) -> Vec<(String, String)> {
        Vec::new()
    }

    /// Refuses inputs that cannot be used with these parameters, before anything is computed.
    ///
    /// Reads only headers, configurations and small files.
    ///
    /// # Errors
    /// The file, what was found and what was expected.
    fn validate_inputs(&self, _inputs: &Inputs) -> anyhow::Result<()> {
        Ok(())
    }

    /// Refuses inputs with values that nothing can be computed from, before the first unit is computed.
    ///
    /// May read all of the inputs; not called by `plan`, nor when all units are cached. Contains only the inputs whose values
    /// nothing has checked: a kind that computes on libtorch writes no value that is NaN or infinite, and accepts none.
    ///
    /// # Errors
    /// The file, the place in it, what was found and what was expected.
    fn check_values(&self, _inputs: &Inputs) -> anyhow::Result<()> {
        Ok(())
    }

    /// How the stage is split into units.
    ///
    /// Reads only the headers of the inputs.
    ///
    /// # Errors
    /// Inputs that cannot be used: the file, what was found and what was expected.
    fn units(&self, _inputs: &Inputs) -> anyhow::Result<Units> {
        Ok(Units::Whole)
    }

    /// For each unit, the input ports of which the unit reads only a part of the file, and which part.
    ///
    /// The unit's recipe then contains the digest of that part, so that a change elsewhere in the file does not
    /// invalidate the unit. Reads only the headers of the inputs.
    ///
    /// # Errors
    /// Inputs that cannot be read; they are then hashed whole.
    fn unit_inputs(&self, _inputs: &Inputs, units: &[Unit]) -> anyhow::Result<Vec<UnitInputs>> {
        Ok(vec![UnitInputs::new(); units.len()])
    }

    /// The key for batches: units with equal keys, of this stage or of others of the kind, may be computed as one
    /// batch, see [`Compute::run_batch`].
    ///
    /// The key covers all parameters that `run_batch` reads, so that it can run on the first stage.
    fn batch_key(&self, _inputs: &Inputs, _unit: &Unit) -> Option<String> {
        None
    }

    /// Its outputs and its work, from the shapes of its inputs, before all of them exist.
    ///
    /// Reads only headers and configurations. By default nothing is estimated, and the kind is not measured.
    ///
    /// # Errors
    /// The unknown input, and the stage that must run first; inputs that cannot be used.
    fn estimate(&self, _inputs: &ExpectedInputs) -> anyhow::Result<Estimate> {
        Ok(Estimate::default())
    }

    /// The existing file with the bytes of an output port, or of a path below it: for a kind that copies files
    /// unchanged.
    fn source_path(&self, _port: &str, _below: Option<&str>) -> Option<PathBuf> {
        None
    }

    /// Refuses files, by output port, that cannot be the results of these parameters and inputs; says what was checked.
    ///
    /// The files were made elsewhere and are to be adopted as the stage's outputs. Reads headers, and the values of
    /// small files.
    ///
    /// # Errors
    /// The file, what was found and what was expected; by default, that the kind does not support adoption.
    fn accept(&self, _inputs: &Inputs, _outputs: &BTreeMap<String, PathBuf>) -> anyhow::Result<&'static str> {
        anyhow::bail!("the kind `{}` does not support adoption", self.kind().name)
    }
}

/// How a worker computes a stage.
pub trait Compute: Stage {
    /// Computes one unit into the empty folder `task.out`; a stage without units writes `out/<Output::file>` for each
    /// of its ports.
    ///
    /// # Errors
    /// Any error; the content of `out` is then discarded.
    fn run(&self, task: &Task, cx: &Context<'_>) -> anyhow::Result<()>;

    /// Computes several units with one key, see [`Stage::batch_key`], each into its own empty folder. A single unit is
    /// a batch of one.
    ///
    /// Each unit must give the same bytes in any batch. After an error, finished units are kept, and the others are
    /// computed one by one.
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

    /// Merges the folders of the units, in order, into `out/<Output::file>` for each port.
    ///
    /// # Errors
    /// As [`Compute::run`].
    fn merge(&self, _task: &Task, _parts: &[PathBuf], _cx: &Context<'_>) -> anyhow::Result<()> {
        anyhow::bail!("the kind `{}` has units but no merge", self.kind().name)
    }

    /// About `steps` steps of the stage's real work, to be measured; at least one forward pass.
    ///
    /// Inputs with only a known shape are filled with made-up values, in files below `folder`, as short as the trial
    /// allows.
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
        anyhow::bail!("the kind `{}` does not support measurement", self.kind().name)
    }
}

/// An error with its causes, outermost first. A cause that already ends the message before it is not repeated.
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
