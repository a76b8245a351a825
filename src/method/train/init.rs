//! Weights to begin with, distributed as torch's layers are when they are made.

use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};

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
