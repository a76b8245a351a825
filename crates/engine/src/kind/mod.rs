//! The contract between the engine and the stage kinds.
//!
//! A kind is one type that implements [`Stage`] (what the engine must know to plan it) and [`Compute`]
//! (how a worker runs it). The two are apart so that the front program, which only plans and schedules,
//! links no libtorch and answers in milliseconds.

mod batch;
mod erased;
mod estimate;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::config::param::{Param, Validate};
use crate::config::tree::Node;

pub use batch::{ByteRanges, Member, Together, UnitInputs};
pub use erased::{Computation, Kind};
pub use estimate::{ArtifactShape, Estimate, ExpectedInputs, Trial, WorkSize};

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
    /// What stands on it: form and shape.
    pub doc: &'static str,
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

/// What surrounds a running unit; nothing in it may change a result.
pub struct Context<'a> {
    /// Where to compute.
    pub device: Device,
    /// Most rows to send through a network at once; 0 leaves it to the kind, as on GPUs, where results need not repeat bit for
    /// bit.
    pub micro_batch: usize,
    /// How to bring remote files.
    pub downloads: &'a Downloads,
    /// Reports steps done and their total.
    pub progress: &'a dyn Fn(u64, u64),
}

/// A kind of stage, as the engine sees it.
pub trait Stage: Sync + 'static {
    /// Its parameters.
    type Params: Param + Validate + Serialize + DeserializeOwned;
    /// Its name in `kind = "…"`.
    const KIND: &'static str;
    /// Bumped whenever the same recipe would give other bytes, or bytes of another meaning.
    const VERSION: u32;
    /// One sentence for people.
    const SUMMARY: &'static str;
    /// Its input ports.
    const INPUTS: &'static [Input];
    /// Its output ports.
    const OUTPUTS: &'static [Output];
    /// Whether libtorch computes its bytes: its version, device and precision then count.
    const NUMERIC: bool = true;
    /// Parameters taken from the stage on an input port.
    const INHERITS: &'static [Inherit] = &[];
    /// Whether computing needs no libtorch: the front program then serves as the worker, which starts at once.
    const LIGHT: bool = false;
    /// Whether each stage names its input ports itself; [`Stage::INPUTS`] is then empty.
    const FREE_INPUTS: bool = false;

    /// The output ports of a stage, from its parameters as they are written.
    ///
    /// What is wrong with them is told when they are read, so here it is passed over.
    fn ports(_written: &Node) -> Vec<Port> {
        let port = |port: &Output| Port { name: port.name.to_owned(), file: port.file.to_owned() };
        Self::OUTPUTS.iter().map(port).collect()
    }

    /// Local files and folders that the parameters name: the engine hashes them as inputs.
    fn sources(_params: &Self::Params) -> Vec<(String, PathBuf)> {
        Vec::new()
    }

    /// The parameters with local files and folders of [`Stage::sources`] at other places: by what they name now.
    fn relocated(params: Self::Params, _places: &BTreeMap<PathBuf, PathBuf>) -> Self::Params {
        params
    }

    /// The part of the parameters that counts for identity: all but places.
    fn identity(params: &Self::Params) -> Json {
        to_json(params)
    }

    /// The parameters as a manifest keeps them: all but secrets.
    fn recorded(params: &Self::Params) -> Json {
        to_json(params)
    }

    /// The part of the parameters that a unit's bytes depend on.
    fn unit_identity(params: &Self::Params) -> Json {
        Self::identity(params)
    }

    /// The environment variables that were read into the parameters, with what they were.
    fn variables(_params: &Self::Params) -> BTreeMap<String, Option<String>> {
        BTreeMap::new()
    }

    /// Faults between the parameters and the input ports that are connected: the parameter (`argv.1` for an item
    /// of an array) or the port to point at, and what is wrong.
    fn check(_params: &Self::Params, _connected: &dyn Fn(&str) -> bool) -> Vec<(String, String)> {
        Vec::new()
    }

    /// The units, or `None` where the stage is one piece that writes the output ports itself.
    ///
    /// Looks at the inputs no further than their headers.
    ///
    /// # Errors
    /// Inputs that cannot be used: the file, what was found and what was expected.
    fn units(_params: &Self::Params, _inputs: &Inputs) -> anyhow::Result<Option<Vec<Unit>>> {
        Ok(None)
    }

    /// For each of the units, the input ports of whose file only a part counts for the unit, and which part.
    ///
    /// The unit's recipe then holds the digest of that part, so that a change elsewhere in the file leaves the unit
    /// alone. Looks at the inputs no further than their headers.
    ///
    /// # Errors
    /// Inputs that cannot be read; they then count whole.
    fn unit_inputs(
        _params: &Self::Params,
        _inputs: &Inputs,
        units: &[Unit],
    ) -> anyhow::Result<Vec<UnitInputs>> {
        Ok(vec![UnitInputs::new(); units.len()])
    }

    /// What a unit shares with others that it is worth computing together with, of this stage or of others of the
    /// kind: units of equal keys may become one task, see [`Compute::run_batch`].
    fn batch_key(_params: &Self::Params, _inputs: &Inputs, _unit: &Unit) -> Option<String> {
        None
    }

    /// What it gives and takes, from what is known of its inputs before they are all there.
    ///
    /// Looks no further than at headers and configurations. A kind that does not say otherwise tells nothing, and is not
    /// measured.
    ///
    /// # Errors
    /// Which input is not known well enough, and what must run first; inputs that cannot be used.
    fn estimate(_params: &Self::Params, _inputs: &ExpectedInputs) -> anyhow::Result<Estimate> {
        Ok(Estimate::default())
    }

    /// Where what will stand on an output port, or at a path below it, lies already: for a kind that brings files as they are.
    fn source_path(_params: &Self::Params, _port: &str, _below: Option<&str>) -> Option<PathBuf> {
        None
    }

    /// Refuses files, by output port, that cannot be what these parameters and inputs give.
    ///
    /// They come from elsewhere and are to stand for the stage's outputs. Looks at headers, and at values where
    /// there are few.
    ///
    /// # Errors
    /// The file, what was found and what was expected; for a kind that does not say otherwise, that it takes none.
    fn accept(
        _params: &Self::Params,
        _inputs: &Inputs,
        _outputs: &BTreeMap<String, PathBuf>,
    ) -> anyhow::Result<()> {
        anyhow::bail!("the kind `{}` takes no outputs from elsewhere", Self::KIND)
    }
}

/// How a kind is computed, inside a worker.
pub trait Compute: Stage {
    /// Computes one unit into the empty folder `out`; a stage of one piece gets no unit and writes
    /// `out/<Output::file>` for each of its ports.
    ///
    /// # Errors
    /// Whatever keeps the result from being right; nothing of `out` is then kept.
    fn run(
        params: &Self::Params,
        inputs: &Inputs,
        unit: Option<&Unit>,
        out: &Path,
        cx: &Context<'_>,
    ) -> anyhow::Result<()>;

    /// Computes several units of one company, see [`Stage::batch_key`], each into its own empty folder.
    ///
    /// Each must give the bytes that it gives alone, whatever its company. Nothing is lost where this fails: what is
    /// not finished then is computed unit by unit.
    ///
    /// # Errors
    /// As [`Compute::run`].
    fn run_batch(members: &[Member<'_, Self::Params>], cx: &Together<'_>) -> anyhow::Result<()> {
        for (index, member) in members.iter().enumerate() {
            let Member { params, inputs, unit, out } = *member;
            cx.alone(index, |cx| Self::run(params, inputs, Some(unit), out, cx))?;
            (cx.finished)(&[index]);
        }
        Ok(())
    }

    /// Joins the folders that the units wrote, in order, into `out/<Output::file>` for each port.
    ///
    /// # Errors
    /// As [`Compute::run`].
    fn merge(
        _params: &Self::Params,
        _inputs: &Inputs,
        _parts: &[PathBuf],
        _out: &Path,
        _cx: &Context<'_>,
    ) -> anyhow::Result<()> {
        anyhow::bail!("the kind `{}` has units but no merge", Self::KIND)
    }

    /// About `steps` steps of the stage's real work, to be measured; at least as many as one pass through the network takes.
    ///
    /// Inputs of which only the form is known are made up, in files below `folder`, and no longer than the trial needs.
    ///
    /// # Errors
    /// As [`Stage::estimate`], and files that cannot be written.
    fn trial(
        _params: &Self::Params,
        _inputs: &ExpectedInputs,
        _steps: u64,
        _folder: &Path,
        _cx: &Context<'_>,
    ) -> anyhow::Result<Trial<Self::Params>> {
        anyhow::bail!("the kind `{}` is not measured", Self::KIND)
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

fn to_json<T: Serialize>(value: &T) -> Json {
    serde_json::to_value(value).expect("parameters are plain data")
}

/// The kinds that a pipeline can use.
pub type Registry = Vec<&'static dyn Kind>;
