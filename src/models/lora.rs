//! Low-rank adapters (LoRA) of a file: merged into a network's weights, or kept as layers of their own.

use std::collections::BTreeMap;
use std::path::Path;

use tch::{Device, Tensor};

use super::weights::config::ModelError;
use super::weights::{checkpoint, replace, widened};
use crate::io::lora::{Adapter, Lora, Network};
use crate::io::tensor_file::Header;

/// How a network holds its adapters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Adapters {
    /// As a part of its weights, W + s B A: nothing computes more slowly.
    #[default]
    Merged,
    /// As layers, whose weights are parameters of the network.
    Layers,
}

/// The adapters of one network, in float32.
pub(super) struct Loaded {
    adapters: Vec<Adapter>,
    /// By the names that the network gives them.
    tensors: BTreeMap<String, Tensor>,
}

/// Reads the adapters of a network that has these parameters.
pub(super) fn read(
    path: &Path,
    network: Network,
    parameters: &[Header],
    device: Device,
) -> Result<Loaded, ModelError> {
    let lora = Lora::open(path, network, parameters)?;
    let file = lora.file();
    let mut tensors = BTreeMap::new();
    for adapter in &lora.adapters {
        for ((name, own), shape) in adapter.names.iter().zip(adapter.parameters()).zip(&adapter.shapes) {
            let header = file.header(name).expect("a tensor of this file");
            let shape: Vec<i64> = shape.iter().map(|&size| size as i64).collect();
            tensors.insert(own, checkpoint::tensor(file, header)?.view(shape.as_slice()));
        }
    }
    let tensors = widened(tensors, device);
    // It would make every loss NaN, and be blamed on an image.
    file.expect_finite()?;
    Ok(Loaded { adapters: lora.adapters, tensors })
}

impl Loaded {
    /// Puts the tensors of `changed` in place of those of the same names, and takes them out of it.
    pub fn replace(&mut self, changed: &mut BTreeMap<String, Tensor>, file: &Path) -> Result<(), ModelError> {
        let own = changed.extract_if(.., |name, _| self.tensors.contains_key(name)).collect();
        replace(&mut self.tensors, own, file)
    }

    /// Adds s B A to the weights of each layer.
    pub fn merge(&self, weights: &mut BTreeMap<String, Tensor>) {
        for adapter in &self.adapters {
            let [down, up] = adapter.parameters().map(|name| self.tensors[&name].flatten(1, -1));
            let name = format!("{}.weight", adapter.layer);
            let weight = weights.get_mut(&name).expect("a layer of this network");
            *weight = &*weight + (up.matmul(&down) * adapter.scale).view(weight.size().as_slice());
        }
    }

    /// Adds the tensors to the network's; returns the factor of each layer.
    pub fn keep(self, weights: &mut BTreeMap<String, Tensor>) -> BTreeMap<String, f64> {
        weights.extend(self.tensors);
        self.adapters.into_iter().map(|adapter| (adapter.layer, adapter.scale)).collect()
    }
}
