//! Kinds and their computations without their types, so that those of every sort stand in one registry.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize as _;
use serde_json::Value as Json;

use super::{
    Compute, Context, Estimate, ExpectedInputs, Inherit, Input, Inputs, Member, Output, Port, Stage,
    Together, Trial, Unit, UnitInputs, to_json,
};
use crate::config::param::{Key, Param, Reader};
use crate::config::tree::Node;

fn from_json<S: Stage>(params: &Json) -> S::Params {
    S::Params::deserialize(params).expect("parameters were read by this kind")
}

/// [`Stage`] without its types, so that kinds of every sort stand in one registry.
pub trait Kind: Sync {
    /// [`Stage::KIND`].
    fn name(&self) -> &'static str;
    /// [`Stage::VERSION`].
    fn version(&self) -> u32;
    /// [`Stage::SUMMARY`].
    fn summary(&self) -> &'static str;
    /// [`Stage::INPUTS`].
    fn inputs(&self) -> &'static [Input];
    /// [`Stage::OUTPUTS`].
    fn outputs(&self) -> &'static [Output];
    /// [`Stage::NUMERIC`].
    fn numeric(&self) -> bool;
    /// [`Stage::INHERITS`].
    fn inherits(&self) -> &'static [Inherit];
    /// [`Stage::LIGHT`].
    fn light(&self) -> bool;
    /// [`Stage::FREE_INPUTS`].
    fn free_inputs(&self) -> bool;
    /// [`Stage::ports`].
    fn ports(&self, written: &Node) -> Vec<Port>;
    /// The documented parameters.
    fn keys(&self) -> Vec<Key>;
    /// Reads and checks the parameters; the result holds every default.
    fn read(&self, node: &Node, reader: &mut Reader<'_>) -> Option<Json>;
    /// [`Stage::sources`].
    fn sources(&self, params: &Json) -> Vec<(String, PathBuf)>;
    /// Whether parameters from elsewhere, such as a manifest, are of its form and in range; all others must have been read by it.
    ///
    /// # Errors
    /// What is wrong with them.
    fn check_json(&self, params: &Json) -> Result<(), String>;
    /// [`Stage::relocated`].
    fn relocated(&self, params: &Json, places: &BTreeMap<PathBuf, PathBuf>) -> Json;
    /// [`Stage::identity`].
    fn identity(&self, params: &Json) -> Json;
    /// Whether two forms of parameters make the same stage, but for what stands on its inputs; a form that is
    /// none makes another.
    fn same(&self, params: &Json, other: &Json) -> bool;
    /// [`Stage::recorded`].
    fn recorded(&self, params: &Json) -> Json;
    /// [`Stage::unit_identity`].
    fn unit_identity(&self, params: &Json) -> Json;
    /// [`Stage::variables`].
    fn variables(&self, params: &Json) -> BTreeMap<String, Option<String>>;
    /// [`Stage::check`].
    fn check(&self, params: &Json, connected: &dyn Fn(&str) -> bool) -> Vec<(String, String)>;
    /// [`Stage::units`].
    ///
    /// # Errors
    /// As there.
    fn units(&self, params: &Json, inputs: &Inputs) -> anyhow::Result<Option<Vec<Unit>>>;
    /// [`Stage::unit_inputs`].
    ///
    /// # Errors
    /// As there.
    fn unit_inputs(&self, params: &Json, inputs: &Inputs, units: &[Unit]) -> anyhow::Result<Vec<UnitInputs>>;
    /// [`Stage::batch_key`], of each of the units.
    fn batch_key(&self, params: &Json, inputs: &Inputs, units: &[Unit]) -> Vec<Option<String>>;
    /// [`Stage::estimate`].
    ///
    /// # Errors
    /// As there.
    fn estimate(&self, params: &Json, inputs: &ExpectedInputs) -> anyhow::Result<Estimate>;
    /// [`Stage::source_path`].
    fn source_path(&self, params: &Json, port: &str, below: Option<&str>) -> Option<PathBuf>;
    /// [`Stage::accept`].
    ///
    /// # Errors
    /// As there.
    fn accept(
        &self,
        params: &Json,
        inputs: &Inputs,
        outputs: &BTreeMap<String, PathBuf>,
    ) -> anyhow::Result<()>;
}

impl<S: Stage> Kind for S {
    fn name(&self) -> &'static str {
        S::KIND
    }
    fn version(&self) -> u32 {
        S::VERSION
    }
    fn summary(&self) -> &'static str {
        S::SUMMARY
    }
    fn inputs(&self) -> &'static [Input] {
        S::INPUTS
    }
    fn outputs(&self) -> &'static [Output] {
        S::OUTPUTS
    }
    fn numeric(&self) -> bool {
        S::NUMERIC
    }
    fn inherits(&self) -> &'static [Inherit] {
        S::INHERITS
    }
    fn light(&self) -> bool {
        S::LIGHT
    }
    fn free_inputs(&self) -> bool {
        S::FREE_INPUTS
    }
    fn ports(&self, written: &Node) -> Vec<Port> {
        S::ports(written)
    }
    fn keys(&self) -> Vec<Key> {
        S::Params::keys()
    }
    fn read(&self, node: &Node, reader: &mut Reader<'_>) -> Option<Json> {
        S::Params::read(node, reader).map(|params| to_json(&params))
    }
    fn sources(&self, params: &Json) -> Vec<(String, PathBuf)> {
        S::sources(&from_json::<S>(params))
    }
    fn check_json(&self, params: &Json) -> Result<(), String> {
        let params = S::Params::deserialize(params).map_err(|error| error.to_string())?;
        params.faults().into_iter().next().map_or(Ok(()), Err)
    }
    fn relocated(&self, params: &Json, places: &BTreeMap<PathBuf, PathBuf>) -> Json {
        to_json(&S::relocated(from_json::<S>(params), places))
    }
    fn identity(&self, params: &Json) -> Json {
        S::identity(&from_json::<S>(params))
    }
    fn same(&self, params: &Json, other: &Json) -> bool {
        let Ok(other) = S::Params::deserialize(other) else { return false };
        let params = from_json::<S>(params);
        let ports = |params| S::sources(params).into_iter().map(|(port, _)| port).collect::<Vec<_>>();
        S::identity(&params) == S::identity(&other)
            && S::unit_identity(&params) == S::unit_identity(&other)
            && ports(&params) == ports(&other)
    }
    fn recorded(&self, params: &Json) -> Json {
        S::recorded(&from_json::<S>(params))
    }
    fn unit_identity(&self, params: &Json) -> Json {
        S::unit_identity(&from_json::<S>(params))
    }
    fn variables(&self, params: &Json) -> BTreeMap<String, Option<String>> {
        S::variables(&from_json::<S>(params))
    }
    fn check(&self, params: &Json, connected: &dyn Fn(&str) -> bool) -> Vec<(String, String)> {
        S::check(&from_json::<S>(params), connected)
    }
    fn units(&self, params: &Json, inputs: &Inputs) -> anyhow::Result<Option<Vec<Unit>>> {
        S::units(&from_json::<S>(params), inputs)
    }
    fn unit_inputs(&self, params: &Json, inputs: &Inputs, units: &[Unit]) -> anyhow::Result<Vec<UnitInputs>> {
        S::unit_inputs(&from_json::<S>(params), inputs, units)
    }
    fn batch_key(&self, params: &Json, inputs: &Inputs, units: &[Unit]) -> Vec<Option<String>> {
        let params = from_json::<S>(params);
        units.iter().map(|unit| S::batch_key(&params, inputs, unit)).collect()
    }
    fn estimate(&self, params: &Json, inputs: &ExpectedInputs) -> anyhow::Result<Estimate> {
        S::estimate(&from_json::<S>(params), inputs)
    }
    fn source_path(&self, params: &Json, port: &str, below: Option<&str>) -> Option<PathBuf> {
        S::source_path(&from_json::<S>(params), port, below)
    }
    fn accept(
        &self,
        params: &Json,
        inputs: &Inputs,
        outputs: &BTreeMap<String, PathBuf>,
    ) -> anyhow::Result<()> {
        S::accept(&from_json::<S>(params), inputs, outputs)
    }
}

/// [`Compute`] without its types.
pub trait Computation: Sync {
    /// [`Stage::KIND`].
    fn kind(&self) -> &'static str;
    /// [`Compute::run`].
    ///
    /// # Errors
    /// As there.
    fn run(
        &self,
        params: &Json,
        inputs: &Inputs,
        unit: Option<&Unit>,
        out: &Path,
        cx: &Context<'_>,
    ) -> anyhow::Result<()>;
    /// [`Compute::run_batch`].
    ///
    /// # Errors
    /// As there.
    fn run_batch(&self, members: &[Member<'_, Json>], cx: &Together<'_>) -> anyhow::Result<()>;
    /// [`Compute::merge`].
    ///
    /// # Errors
    /// As there.
    fn merge(
        &self,
        params: &Json,
        inputs: &Inputs,
        parts: &[PathBuf],
        out: &Path,
        cx: &Context<'_>,
    ) -> anyhow::Result<()>;
    /// [`Compute::trial`].
    ///
    /// # Errors
    /// As there.
    fn trial(
        &self,
        params: &Json,
        inputs: &ExpectedInputs,
        steps: u64,
        folder: &Path,
        cx: &Context<'_>,
    ) -> anyhow::Result<Trial<Json>>;
}

impl<C: Compute> Computation for C {
    fn kind(&self) -> &'static str {
        C::KIND
    }
    fn run(
        &self,
        params: &Json,
        inputs: &Inputs,
        unit: Option<&Unit>,
        out: &Path,
        cx: &Context<'_>,
    ) -> anyhow::Result<()> {
        C::run(&from_json::<C>(params), inputs, unit, out, cx)
    }
    fn run_batch(&self, members: &[Member<'_, Json>], cx: &Together<'_>) -> anyhow::Result<()> {
        let params: Vec<C::Params> = members.iter().map(|member| from_json::<C>(member.params)).collect();
        let typed = params.iter().zip(members).map(|(params, member)| {
            let Member { params: _, inputs, unit, out } = *member;
            Member { params, inputs, unit, out }
        });
        C::run_batch(&typed.collect::<Vec<_>>(), cx)
    }
    fn merge(
        &self,
        params: &Json,
        inputs: &Inputs,
        parts: &[PathBuf],
        out: &Path,
        cx: &Context<'_>,
    ) -> anyhow::Result<()> {
        C::merge(&from_json::<C>(params), inputs, parts, out, cx)
    }
    fn trial(
        &self,
        params: &Json,
        inputs: &ExpectedInputs,
        steps: u64,
        folder: &Path,
        cx: &Context<'_>,
    ) -> anyhow::Result<Trial<Json>> {
        let Trial { params, inputs, unit, steps, merges } =
            C::trial(&from_json::<C>(params), inputs, steps, folder, cx)?;
        Ok(Trial { params: to_json(&params), inputs, unit, steps, merges })
    }
}
