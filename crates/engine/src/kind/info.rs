//! The description of a kind, and how its parameters are read.

use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value as Json;

use super::{Compute, Inherit, Input, Output, Port, Shared, ShownAt, Stage};
use crate::config::param::{Key, Param, Reader, Validate};
use crate::config::tree::Node;

/// A type of parameters that defines a stage kind.
pub trait Kind:
    Param + Validate + Serialize + DeserializeOwned + Clone + fmt::Debug + Send + Sync + 'static
{
    /// The description of the kind.
    const INFO: KindInfo;
}

/// The description of a stage kind.
#[derive(Debug, Clone, Copy)]
pub struct KindInfo {
    /// Its name in `kind = "…"`.
    pub name: &'static str,
    /// Bumped whenever the same recipe would give other bytes, or bytes with another meaning.
    pub version: u32,
    /// One sentence for people.
    pub summary: &'static str,
    /// Its input ports.
    pub inputs: &'static [Input],
    /// Its output ports, including those that a parameter enables.
    pub outputs: &'static [Output],
    /// Parameters taken from the stage on an input port.
    pub inherits: &'static [Inherit],
    /// Parameters that say where the results folder shows an input.
    pub shown_at: &'static [ShownAt],
    /// Inputs that must be those of the stage on an input port.
    pub shared: &'static [Shared],
    /// Whether libtorch computes it: its version and device are then hashed, and a worker with libtorch is needed. All
    /// other kinds run in a worker without libtorch, which starts at once.
    pub libtorch: bool,
    /// Whether it computes on one thread however many a worker has on the CPU: more would change its bytes.
    pub one_thread: bool,
    /// Whether each stage chooses the names of its input ports; `inputs` is then empty.
    pub dynamic_inputs: bool,
    /// Folders that its tasks make below their own and leave there, empty, for the next task of the kind.
    pub leaves: &'static [&'static str],
    /// The output ports of a stage, from its parameters as written.
    ///
    /// Faults of the parameters are ignored here; they are reported when the parameters are read.
    pub ports: fn(&Self, &Node) -> Vec<Port>,
    /// Parameters and ports of earlier versions, each with its name now.
    pub renamed: &'static [(&'static str, &'static str)],
    /// How its parameters are read.
    pub reading: Reading,
}

/// How a kind's parameters are documented and read; derived from their type.
#[derive(Debug, Clone, Copy)]
pub struct Reading {
    keys: fn() -> Vec<Key>,
    read: fn(&Node, &mut Reader<'_>) -> Option<Box<dyn Stage>>,
    from_json: fn(&Json) -> Result<Box<dyn Stage>, String>,
}

impl KindInfo {
    /// A kind that libtorch computes, without ports.
    pub const fn new<S: Kind + Stage>(name: &'static str, version: u32, summary: &'static str) -> Self {
        Self {
            name,
            version,
            summary,
            inputs: &[],
            outputs: &[],
            inherits: &[],
            shown_at: &[],
            shared: &[],
            libtorch: true,
            one_thread: false,
            dynamic_inputs: false,
            leaves: &[],
            ports: |kind, written| {
                kind.outputs.iter().filter(|output| output.is_there(written)).map(Output::port).collect()
            },
            renamed: S::RENAMED,
            reading: Reading {
                keys: S::keys,
                read: |node, reader| Some(Box::new(S::read(node, reader)?)),
                from_json: |params| Ok(Box::new(from_json::<S>(params)?)),
            },
        }
    }

    /// The name now of a port of an earlier version.
    pub fn new_name(&self, port: &str) -> Option<&'static str> {
        self.renamed.iter().find(|(old, _)| *old == port).map(|(_, new)| *new)
    }

    /// The output ports of a stage with these parameters.
    pub fn ports(&self, written: &Node) -> Vec<Port> {
        (self.ports)(self, written)
    }

    /// The documented parameters.
    pub fn keys(&self) -> Vec<Key> {
        (self.reading.keys)()
    }

    /// Reads and checks parameters; `None` after a fault was reported.
    pub fn read(&self, node: &Node, reader: &mut Reader<'_>) -> Option<Box<dyn Stage>> {
        (self.reading.read)(node, reader)
    }

    /// The stage with these parameters, written as JSON.
    ///
    /// # Errors
    /// Parameters with other fields or types; ranges are not checked, see [`Parameters::faults`].
    pub fn from_json(&self, params: &Json) -> Result<Box<dyn Stage>, String> {
        (self.reading.from_json)(params)
    }
}

/// The methods that every stage has because its kind is a type of parameters.
pub trait Parameters: fmt::Debug + Send + Sync {
    /// The description of the kind.
    fn kind(&self) -> &'static KindInfo;
    /// All parameters, with defaults filled in.
    fn to_json(&self) -> Json;
    /// The range faults of parameters that were not read from a pipeline.
    fn faults(&self) -> Vec<String>;
    /// A copy.
    fn boxed(&self) -> Box<dyn Stage>;
}

impl<S: Kind + Stage> Parameters for S {
    fn kind(&self) -> &'static KindInfo {
        &S::INFO
    }
    fn to_json(&self) -> Json {
        serde_json::to_value(self).expect("parameters are plain data")
    }
    fn faults(&self) -> Vec<String> {
        Param::faults(self)
    }
    fn boxed(&self) -> Box<dyn Stage> {
        Box::new(self.clone())
    }
}

impl Clone for Box<dyn Stage> {
    fn clone(&self) -> Self {
        self.boxed()
    }
}

impl dyn Stage + '_ {
    /// Whether another stage of the kind gives the same results from the same inputs.
    pub fn is_equivalent(&self, other: &dyn Stage) -> bool {
        let ports = |stage: &dyn Stage| stage.sources().into_iter().map(|(port, _)| port).collect::<Vec<_>>();
        self.identity() == other.identity()
            && self.unit_identity() == other.unit_identity()
            && ports(self) == ports(other)
    }
}

/// How a worker makes the stages of a kind that it can compute.
#[derive(Clone, Copy)]
pub struct Computation {
    /// The kind.
    pub kind: &'static KindInfo,
    /// The stage with these parameters, written as JSON.
    pub from_json: fn(&Json) -> Result<Box<dyn Compute>, String>,
}

impl Computation {
    /// The computation of a kind.
    pub const fn of<C: Kind + Compute>() -> Self {
        Self { kind: &C::INFO, from_json: |params| Ok(Box::new(from_json::<C>(params)?)) }
    }
}

/// The kinds that a pipeline can use.
pub type Registry = Vec<&'static KindInfo>;

fn from_json<S: Kind>(params: &Json) -> Result<S, String> {
    S::deserialize(params).map_err(|error| error.to_string())
}
