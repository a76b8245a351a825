//! The layers that hold parameters; each reports its pass to the model's tape.
//!
//! Without gradients or recording, normalisations and adjacent operations use fused kernels.

use tch::{Kind, Tensor};

use super::adapter::Adapter;
use super::kernels::{self, ConcatInput, Filters, Matrix};
use super::profile::{Part, span};
use super::tape::{Op, Place, Tape};
use super::weights::Scope;

/// A linear map of the last dimension.
pub struct Linear {
    place: Place,
    weight: Tensor,
    bias: Option<Tensor>,
    adapter: Option<Adapter>,
}

impl Linear {
    /// Takes `weight` [outputs, inputs] and, if it has one, `bias` [outputs].
    pub fn new(scope: &Scope<'_>, inputs: i64, outputs: i64, bias: bool, tape: &Tape) -> Linear {
        let weight = scope.to_compute_dtype(&scope.take("weight", &[outputs, inputs]));
        let bias_of = || scope.to_compute_dtype(&scope.take("bias", &[outputs]));
        Linear::of(scope, weight, bias.then(bias_of), tape)
    }

    /// The same in the parameters' own precision, regardless of the model's.
    pub fn full_precision(scope: &Scope<'_>, inputs: i64, outputs: i64, bias: bool, tape: &Tape) -> Linear {
        let weight = scope.take("weight", &[outputs, inputs]);
        Linear::of(scope, weight, bias.then(|| scope.take("bias", &[outputs])), tape)
    }

    fn of(scope: &Scope<'_>, weight: Tensor, bias: Option<Tensor>, tape: &Tape) -> Linear {
        Linear {
            place: Place::new(scope, tape, bias.is_some()),
            weight,
            bias,
            adapter: Adapter::new(scope, tape),
        }
    }

    /// [.., inputs] to [.., outputs].
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let y = span(Part::Linear, x.device(), || kernels::linear(x, &self.weight, self.bias.as_ref()));
        let y = self.place.observe(Op::Linear, x, y);
        Adapter::add(self.adapter.as_ref(), y, |adapter| adapter.linear(Op::Linear, x))
    }
}

/// Linear maps of the same input, without biases, computed as one if nothing is recorded.
pub struct FusedLinear {
    maps: Vec<Linear>,
    /// All weights, [maps * outputs, inputs].
    fused: Tensor,
}

impl FusedLinear {
    /// Takes the `weight` [outputs, inputs] of each name below `scope`.
    pub fn new(scope: &Scope<'_>, names: &[&str], inputs: i64, outputs: i64, tape: &Tape) -> FusedLinear {
        let (parts, fused) = scope.take_fused(names, "weight", &[outputs, inputs]);
        let map = |(name, weight): (&&str, &Tensor)| {
            Linear::of(&scope.sub(name), scope.to_compute_dtype(weight), None, tape)
        };
        let maps = names.iter().zip(&parts).map(map).collect();
        FusedLinear { maps, fused: scope.to_compute_dtype(&fused) }
    }

    /// [.., inputs] to one [.., outputs] for each map.
    pub fn forward(&self, x: &Tensor) -> Vec<Tensor> {
        let quiet = |map: &Linear| map.adapter.is_none() && map.place.is_quiet([x, &map.weight]);
        if self.maps.iter().all(quiet) {
            let y = span(Part::Linear, x.device(), || kernels::linear(x, &self.fused, None));
            return y.chunk(self.maps.len() as i64, -1);
        }
        self.maps.iter().map(|map| map.forward(x)).collect()
    }
}

/// A square convolution with a bias, of images [B, C, H, W].
pub struct Conv2d {
    place: Place,
    weight: Tensor,
    bias: Tensor,
    /// The bias as it is kept, float32.
    full_precision_bias: Tensor,
    adapter: Option<Adapter>,
    filters: Filters,
    matrix: Matrix,
    stride: i64,
    padding: i64,
    kernel: i64,
}

impl Conv2d {
    /// Takes `weight` [outputs, inputs, kernel, kernel] and `bias` [outputs]; stride 1, no padding.
    pub fn new(scope: &Scope<'_>, inputs: i64, outputs: i64, kernel: i64, tape: &Tape) -> Conv2d {
        let weight =
            scope.to_compute_dtype(&scope.take_filters("weight", &[outputs, inputs, kernel, kernel]));
        let full_precision_bias = scope.take("bias", &[outputs]);
        let (place, bias) = (Place::new(scope, tape, true), scope.to_compute_dtype(&full_precision_bias));
        Conv2d {
            place,
            weight,
            bias,
            full_precision_bias,
            adapter: Adapter::new(scope, tape),
            filters: Filters::default(),
            matrix: Matrix::default(),
            stride: 1,
            padding: 0,
            kernel,
        }
    }

    /// The same with `padding` zeros at each border.
    pub fn padding(self, padding: i64) -> Conv2d {
        Conv2d { padding, ..self }
    }

    /// The same with another step.
    pub fn stride(self, stride: i64) -> Conv2d {
        Conv2d { stride, ..self }
    }

    fn op(&self) -> Op {
        Op::Conv2d { kernel: self.kernel, stride: self.stride, padding: self.padding }
    }

    fn convolve(&self, x: &Tensor, bias: Option<&Tensor>) -> Tensor {
        span(Part::Convolution, x.device(), || {
            x.conv2d(&self.weight, bias, [self.stride; 2], [self.padding; 2], [1, 1], 1)
        })
    }

    /// The convolution with fewer products, where that is served.
    fn with_fewer_products(&self, x: &Tensor) -> Option<Tensor> {
        if (self.kernel, self.stride, self.padding) != (3, 1, 1) {
            return None;
        }
        let version = self.place.tape().version();
        span(Part::Convolution, x.device(), || {
            let Self { weight, bias, .. } = self;
            let by_tiles = self.filters.convolve(x, weight, bias, version);
            by_tiles.or_else(|| self.matrix.convolve(x, weight, bias, version))
        })
    }

    /// Whether a faster way may be taken, which computes the layer's own map and records nothing.
    fn is_quiet<'a>(&self, tensors: impl IntoIterator<Item = &'a Tensor>) -> bool {
        self.adapter.is_none() && self.place.is_quiet(tensors)
    }

    /// [B, inputs, H, W] to [B, outputs, H', W'].
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let y = self.with_fewer_products(x).unwrap_or_else(|| self.convolve(x, Some(&self.bias)));
        let y = self.place.observe(self.op(), x, y);
        Adapter::add(self.adapter.as_ref(), y, |adapter| adapter.conv2d(self.op(), x))
    }

    /// The convolution of x plus `residual`.
    pub fn forward_add(&self, x: &Tensor, residual: &Tensor) -> Tensor {
        if self.adds_late(x) && !residual.requires_grad() {
            let y = self.convolve(x, None);
            if kernels::add(residual, &self.full_precision_bias, &y).is_some() {
                return y;
            }
        }
        sum(self.forward(x), residual)
    }

    /// The convolution of x, plus as much of `shift` [K, outputs] as is cheap to add here.
    ///
    /// Returns the image and the rest, which the caller adds.
    pub fn add_shift(&self, x: &Tensor, shift: Tensor) -> (Tensor, Tensor) {
        if self.adds_late(x) {
            (self.convolve(x, None), shift + &self.full_precision_bias)
        } else {
            (self.forward(x), shift)
        }
    }

    /// Whether the bias should be added with something else: cuDNN uses an extra pass for it.
    fn adds_late(&self, x: &Tensor) -> bool {
        x.device().is_cuda()
            && !Matrix::serves(x, &self.weight)
            && self.is_quiet([x, &self.weight, &self.full_precision_bias])
    }

    /// A 1x1 convolution of the positions of images as tokens: [B, S, inputs] to [B, S, outputs].
    pub fn forward_tokens(&self, x: &Tensor) -> Tensor {
        let weight = self.weight.flatten(1, -1); // [O, I]
        let y = span(Part::Linear, x.device(), || kernels::linear(x, &weight, Some(&self.bias)));
        let y = self.place.observe(Op::Pointwise, x, y);
        Adapter::add(self.adapter.as_ref(), y, |adapter| adapter.linear(Op::Pointwise, x))
    }

    /// A 1x1 convolution of images whose channels follow each other: to [B, outputs, H, W].
    pub fn forward_concat(&self, x: &ConcatInput<'_>) -> Tensor {
        let parts = [Some(x.first), x.second, Some(&self.weight), Some(&self.bias)];
        let Some(second) = x.second.filter(|_| self.is_quiet(parts.into_iter().flatten())) else {
            return self.forward(&x.cat());
        };
        let width = x.first.size()[1];
        let weight = self.weight.flatten(1, -1); // [O, C1 + C2]
        let rest = weight.narrow(1, width, second.size()[1]).transpose(0, 1); // [C2, O]
        let y = span(Part::Linear, second.device(), || {
            let y = tokens(x.first).linear(&weight.narrow(1, 0, width), Some(&self.bias)); // [B, S, O]
            let _ = y.flatten(0, 1).addmm_(&tokens(second).flatten(0, 1), &rest);
            y
        });
        image(&y, &x.first.size())
    }
}

/// The positions of images [B, C, H, W] as tokens [B, S, C]: the same memory where the channels lie together.
pub fn tokens(x: &Tensor) -> Tensor {
    x.flatten(2, 3).transpose(1, 2)
}

/// Tokens [B, S, C] as images [B, C, H, W] of the height and width of `size`; the same memory.
pub fn image(x: &Tensor, size: &[i64]) -> Tensor {
    x.view([x.size()[0], size[2], size[3], x.size()[2]]).permute([0, 3, 1, 2])
}

/// `own + other`, in the memory of `own` where no gradient is wanted, else in the memory format of `other`.
pub fn sum(mut own: Tensor, other: &Tensor) -> Tensor {
    span(Part::Sum, other.device(), || {
        if own.requires_grad() || other.requires_grad() { other + own } else { own.g_add_(other) }
    })
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
        self.fused(&ConcatInput { first: x, second: None }, None, false).unwrap_or_else(|| self.plain(x))
    }

    /// `silu(norm(x + shift))`: [B, channels, H, W]. Row b gets row b % K of `shift` [K, channels].
    pub fn silu(&self, x: &ConcatInput<'_>, shift: Option<&Tensor>) -> Tensor {
        self.fused(x, shift, true).unwrap_or_else(|| {
            let x = x.cat();
            let shifted = shift.map(|shift| {
                let shift = shift.to_kind(x.kind());
                let rows = x.size()[0] / shift.size()[0];
                &x + shift.repeat([rows, 1]).unsqueeze(-1).unsqueeze(-1)
            });
            self.plain(&shifted.unwrap_or(x)).silu()
        })
    }

    fn fused(&self, x: &ConcatInput<'_>, shift: Option<&Tensor>, silu: bool) -> Option<Tensor> {
        if self.place.tape().records() {
            return None;
        }
        let Self { weight, bias, groups, eps, .. } = self;
        let shift = shift.map(|shift| shift.to_kind(x.first.kind()));
        let shift = shift.as_ref();
        kernels::group_norm(&kernels::GroupNorm { weight, bias, groups: *groups, eps: *eps, shift, silu }, x)
    }

    fn plain(&self, x: &Tensor) -> Tensor {
        // In float32 whatever the type of x, as the fused kernels do it.
        let wide = x.to_kind(Kind::Float);
        let y = wide
            .group_norm(self.groups, Some(&self.weight), Some(&self.bias), self.eps, true)
            .to_kind(x.kind());
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
        self.fused(x, None).unwrap_or_else(|| self.plain(x))
    }

    /// The sum of `x`, which is used up, and `branch` [.., width], and the sum normalised.
    pub fn add_norm(&self, x: Tensor, branch: &Tensor) -> (Tensor, Tensor) {
        if let Some(y) = self.fused(&x, Some(branch)) {
            return (x, y);
        }
        let x = sum(x, branch);
        let y = self.plain(&x);
        (x, y)
    }

    fn fused(&self, x: &Tensor, branch: Option<&Tensor>) -> Option<Tensor> {
        let norm =
            kernels::LayerNorm { weight: &self.weight, bias: &self.bias, eps: self.eps, branch_bias: None };
        if self.place.tape().records() { None } else { kernels::layer_norm(&norm, x, branch) }
    }

    fn plain(&self, x: &Tensor) -> Tensor {
        let wide = x.to_kind(Kind::Float);
        let size = self.weight.size();
        let y = wide.layer_norm(size, Some(&self.weight), Some(&self.bias), self.eps, true).to_kind(x.kind());
        self.place.observe(Op::LayerNorm { eps: self.eps }, x, y)
    }
}

/// The first half [.., W] of `both` [.., 2W] times the gelu of the second (Shazeer 2020, arXiv 2002.05202).
pub fn gated_gelu(both: &Tensor) -> Tensor {
    kernels::gated_gelu(both).unwrap_or_else(|| {
        let halves = both.chunk(2, -1);
        &halves[0] * halves[1].gelu("none")
    })
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
