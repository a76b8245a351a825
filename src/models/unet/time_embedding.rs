//! Numbers, such as a timestep, as vectors; names as in diffusers.

use std::f64::consts::LN_10;

use tch::{Kind, Tensor};

use crate::models::layers::Linear;
use crate::models::tape::Tape;
use crate::models::weights::Scope;

/// Sines and cosines of a number at W/2 frequencies from 1 down to 1/10000 (Ho et al. 2020).
pub struct Timesteps {
    /// W.
    pub width: i64,
    /// Cosines before sines.
    pub flip_sin_to_cos: bool,
    /// Taken off the number of frequencies that their logarithms are spread over.
    pub freq_shift: f64,
}

impl Timesteps {
    /// [N] to [N, W], float32.
    pub fn forward(&self, numbers: &Tensor) -> Tensor {
        let half = self.width / 2;
        let exponent = Tensor::arange(half, (Kind::Float, numbers.device())) * (-4.0 * LN_10);
        let frequencies = (exponent / (half as f64 - self.freq_shift)).exp(); // [W/2]
        let angles = numbers.unsqueeze(1).to_kind(Kind::Float) * frequencies; // [N, W/2]
        let (sin, cos) = (angles.sin(), angles.cos());
        Tensor::cat(&(if self.flip_sin_to_cos { [cos, sin] } else { [sin, cos] }), 1) // [N, W]
    }
}

/// Two linear maps with a silu between them, in the parameters' own precision.
pub struct TimestepEmbedding {
    linear_1: Linear,
    linear_2: Linear,
}

impl TimestepEmbedding {
    /// From `inputs` numbers to `width`.
    pub fn new(scope: &Scope<'_>, inputs: i64, width: i64, tape: &Tape) -> TimestepEmbedding {
        let linear = |name, inputs| Linear::full_precision(&scope.sub(name), inputs, width, true, tape);
        TimestepEmbedding { linear_1: linear("linear_1", inputs), linear_2: linear("linear_2", width) }
    }

    /// [N, inputs] to [N, width].
    pub fn forward(&self, x: &Tensor) -> Tensor {
        self.linear_2.forward(&self.linear_1.forward(x).silu())
    }
}
