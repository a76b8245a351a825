//! The layers that hold parameters; each reports its pass to the model's tape.

use tch::Tensor;

use super::tape::{Op, Tape};
use super::weights::Scope;

/// A layer's place in the model: what it is called, and where it reports to.
struct Place {
    name: String,
    tape: Tape,
    has_bias: bool,
}

impl Place {
    fn new(scope: &Scope<'_>, tape: &Tape, has_bias: bool) -> Place {
        Place { name: scope.path().to_owned(), tape: tape.clone(), has_bias }
    }

    fn observe(&self, op: Op, input: &Tensor, output: Tensor) -> Tensor {
        self.tape.observe(&self.name, self.has_bias, op, input, output)
    }
}

/// A linear map of the last dimension.
pub struct Linear {
    place: Place,
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// Takes `weight` [outputs, inputs] and, if it has one, `bias` [outputs].
    pub fn new(scope: &Scope<'_>, inputs: i64, outputs: i64, bias: bool, tape: &Tape) -> Linear {
        let weight = scope.take("weight", &[outputs, inputs]);
        let place = Place::new(scope, tape, bias);
        Linear { place, weight, bias: bias.then(|| scope.take("bias", &[outputs])) }
    }

    /// [.., inputs] to [.., outputs].
    pub fn forward(&self, x: &Tensor) -> Tensor {
        self.place.observe(Op::Linear, x, x.linear(&self.weight, self.bias.as_ref()))
    }
}

/// A square convolution with a bias, of NCHW images.
pub struct Conv2d {
    place: Place,
    weight: Tensor,
    bias: Tensor,
    stride: i64,
    padding: i64,
    kernel: i64,
}

impl Conv2d {
    /// Takes `weight` [outputs, inputs, kernel, kernel] and `bias` [outputs]; stride 1, no padding.
    pub fn new(scope: &Scope<'_>, inputs: i64, outputs: i64, kernel: i64, tape: &Tape) -> Conv2d {
        let weight = scope.take("weight", &[outputs, inputs, kernel, kernel]);
        let bias = scope.take("bias", &[outputs]);
        Conv2d { place: Place::new(scope, tape, true), weight, bias, stride: 1, padding: 0, kernel }
    }

    /// The same with `padding` zeros at each border.
    pub fn padding(self, padding: i64) -> Conv2d {
        Conv2d { padding, ..self }
    }

    /// The same with another step.
    pub fn stride(self, stride: i64) -> Conv2d {
        Conv2d { stride, ..self }
    }

    /// [B, inputs, H, W] to [B, outputs, H', W'].
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let (stride, padding) = ([self.stride; 2], [self.padding; 2]);
        let y = x.conv2d(&self.weight, Some(&self.bias), stride, padding, [1, 1], 1);
        let op = Op::Conv2d { kernel: self.kernel, stride: self.stride, padding: self.padding };
        self.place.observe(op, x, y)
    }
}

/// Normalisation over groups of channels, with a scale and a shift a channel.
pub struct GroupNorm {
    place: Place,
    weight: Tensor,
    bias: Tensor,
    groups: i64,
    eps: f64,
}

impl GroupNorm {
    /// Takes `weight` and `bias` [channels].
    pub fn new(scope: &Scope<'_>, groups: i64, channels: i64, eps: f64, tape: &Tape) -> GroupNorm {
        let (weight, bias) = (scope.take("weight", &[channels]), scope.take("bias", &[channels]));
        GroupNorm { place: Place::new(scope, tape, true), weight, bias, groups, eps }
    }

    /// [B, channels, H, W] to the same shape.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let y = x.group_norm(self.groups, Some(&self.weight), Some(&self.bias), self.eps, true);
        self.place.observe(Op::GroupNorm { groups: self.groups, eps: self.eps }, x, y)
    }
}

/// Normalisation over the last dimension, with a scale and a shift.
pub struct LayerNorm {
    place: Place,
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    /// Takes `weight` and `bias` [width].
    pub fn new(scope: &Scope<'_>, width: i64, eps: f64, tape: &Tape) -> LayerNorm {
        let (weight, bias) = (scope.take("weight", &[width]), scope.take("bias", &[width]));
        LayerNorm { place: Place::new(scope, tape, true), weight, bias, eps }
    }

    /// [.., width] to the same shape.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let y = x.layer_norm(self.weight.size(), Some(&self.weight), Some(&self.bias), self.eps, true);
        self.place.observe(Op::LayerNorm { eps: self.eps }, x, y)
    }
}

/// A table of vectors. It reports to no tape: no method here asks for its gradient.
pub struct Embedding {
    weight: Tensor,
}

impl Embedding {
    /// Takes `weight` [count, width].
    pub fn new(scope: &Scope<'_>, count: i64, width: i64) -> Embedding {
        Embedding { weight: scope.take("weight", &[count, width]) }
    }

    /// Indices [..] (int64) to [.., width].
    pub fn forward(&self, indices: &Tensor) -> Tensor {
        Tensor::embedding(&self.weight, indices, -1, false, false)
    }

    /// The first `count` rows, as for positions: [count, width].
    pub fn first(&self, count: i64) -> Tensor {
        self.weight.narrow(0, 0, count)
    }
}
