//! The parameters that a selection chooses among, from the headers of files alone.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::io::lora::{Lora, Network};
use crate::io::tensor_file::{Header, TensorFile};
use crate::method::selection::Selection;
use crate::models::lora::Adapters;
use crate::models::weights::checkpoint;
use attrflow_engine::kind::{ExpectedInputs, Inputs, Stage};
use serde::Deserialize as _;

/// The faults of a `select` that chooses weights of which the stage on one of the input `ports`, one for squared gradients or factors of
/// weights, computes nothing: for `Stage::check_sources`, which reports them at the parameter `key`.
pub(crate) fn short_of<'s>(
    own: &Selection,
    key: &str,
    ports: &[&str],
    source: &dyn Fn(&str) -> Option<&'s dyn Stage>,
) -> Vec<(String, String)> {
    let fault = |port: &&str| {
        let source = source(port)?;
        let params = source.to_json();
        let theirs = match source.kind().name {
            "fisher" => &params["select"],
            "eigenbasis" | "ekfac" => &params["fisher"]["select"],
            _ => return None,
        };
        let theirs = Selection::deserialize(theirs).ok()?;
        let message = || {
            format!(
                "`select` is {own}, and that of the stage on the input `{port}` is {theirs}: it has to hold all weights that are chosen here"
            )
        };
        theirs.is_short_of(own).then(|| (key.to_owned(), message()))
    };
    ports.iter().filter_map(fault).collect()
}

/// Parameters of a network, and the file that has them.
pub(crate) struct Parameters {
    pub path: PathBuf,
    all: Vec<Header>,
    selection: Selection,
}

impl Parameters {
    /// Those of the network on `unet`, `checkpoint` and `lora`: its weights, or its adapters, as the selection says.
    ///
    /// # Errors
    /// Files that make no network, or a selection of adapters where there are none.
    pub fn of(inputs: &Inputs, selection: &Selection) -> anyhow::Result<Parameters> {
        let ports = ["checkpoint", "lora"].map(|port| inputs.get(port));
        Parameters::read(inputs.path("unet"), ports, selection)
    }

    /// The same before all inputs exist.
    ///
    /// # Errors
    /// Also if one of these ports does not exist yet.
    pub fn expected(inputs: &ExpectedInputs, selection: &Selection) -> anyhow::Result<Parameters> {
        let path = |port| inputs.connected(port).then(|| inputs.path(port)).transpose();
        Parameters::read(inputs.path("unet")?, [path("checkpoint")?, path("lora")?], selection)
    }

    fn read(
        unet: &Path,
        [checkpoint, lora]: [Option<&Path>; 2],
        selection: &Selection,
    ) -> anyhow::Result<Parameters> {
        let file = TensorFile::open(checkpoint::of(unet, checkpoint)?)?;
        let selection = selection.clone();
        if selection.adapters() == Adapters::Merged {
            return Ok(Parameters { path: file.path().to_owned(), all: file.headers().to_vec(), selection });
        }
        let path = lora.with_context(|| {
            format!("the selection {selection} chooses layers of a LoRA, and none is connected to the input `lora`")
        })?;
        let lora = Lora::open(path, Network::Unet, file.headers())?;
        Ok(Parameters { path: lora.file().path().to_owned(), all: lora.headers(), selection })
    }

    /// The parameter of this name.
    pub fn get(&self, name: &str) -> Option<&Header> {
        self.all.iter().find(|header| header.name == name)
    }

    /// The chosen ones.
    pub fn selected(&self) -> impl Iterator<Item = &Header> {
        self.all.iter().filter(|header| self.selection.matches(&header.name))
    }
}
