//! Weights to begin with, distributed as torch's layers are when they are made.

use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};

use super::TrainLora;
use crate::method::noise::{Generator, derived_seed};

/// Random weights of the names and shapes of `like`: each has a stream of its own.
///
/// Convolutions and linear maps are uniform within 1/sqrt(fan-in), their biases too; normalisations are 1, their biases 0.
pub fn random_weights(
    like: &BTreeMap<String, Tensor>,
    seed: i64,
    device: Device,
) -> BTreeMap<String, Tensor> {
    let random = |(place, (name, tensor)): (usize, (&String, &Tensor))| {
        let shape = tensor.size();
        // A bias is drawn as its weight is.
        let weight = name.strip_suffix("bias").map(|stem| format!("{stem}weight"));
        let weight = weight.and_then(|name| like.get(&name)).unwrap_or(tensor).size();
        let values = match weight.as_slice() {
            [_] if name.ends_with("bias") => Tensor::zeros(shape.as_slice(), (Kind::Float, Device::Cpu)),
            [_] | [] => Tensor::ones(shape.as_slice(), (Kind::Float, Device::Cpu)),
            [_, fan_in @ ..] => {
                let bound = (fan_in.iter().product::<i64>() as f64).sqrt().recip();
                let mut draws = Generator::seeded(derived_seed("initial weights", &[seed, place as i64]));
                draws.uniform(-bound, bound, &shape)
            }
        };
        (name.clone(), values.to_device(device))
    };
    like.iter().enumerate().map(random).collect()
}

/// The maps of a LoRA that is not trained yet, by the network's linear layers that are its targets: A is uniform within
/// 1/sqrt(inputs), as PEFT draws it, and B is zero, so that the network is the one without it.
pub fn new_adapters(
    parameters: &BTreeMap<String, Tensor>,
    lora: &TrainLora,
    seed: i64,
) -> BTreeMap<String, [Tensor; 2]> {
    let targets = parameters.iter().filter(|(name, weight)| weight.dim() == 2 && lora.targets.matches(name));
    let layers = targets.filter_map(|(name, weight)| Some((name.strip_suffix(".weight")?, weight)));
    let rank = lora.rank as i64;
    let maps = layers.enumerate().map(|(place, (layer, weight))| {
        let (outputs, inputs) = (weight.size()[0], weight.size()[1]);
        let bound = (inputs as f64).sqrt().recip();
        let mut draws = Generator::seeded(derived_seed("initial adapters", &[seed, place as i64]));
        let down = draws.uniform(-bound, bound, &[rank, inputs]).to_device(weight.device());
        let up = Tensor::zeros([outputs, rank], (Kind::Float, weight.device()));
        (layer.to_owned(), [down, up])
    });
    maps.collect()
}
