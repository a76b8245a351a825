//! A transformer layer of CLIP's encoders of texts and pictures, and of vision transformers.

use serde::Deserialize;
use tch::Tensor;

use super::layers::{LayerNorm, Linear};
use super::tape::Tape;
use super::weights::Scope;

/// The sizes and options of a layer.
#[derive(Clone, Copy)]
pub struct LayerShape {
    /// Width of a token.
    pub width: i64,
    /// Width inside the feed-forward part.
    pub inner: i64,
    /// Heads of the attention.
    pub heads: i64,
    /// The nonlinearity of the feed-forward part.
    pub activation: Activation,
    /// Added to the variance in layer norms.
    pub eps: f64,
    /// Whether a token sees only itself and those before it.
    pub causal: bool,
    /// What the parts are called in the checkpoint.
    pub names: &'static Names,
}

/// What the parts of a layer are called in a checkpoint.
pub struct Names {
    norm1: &'static str,
    query: &'static str,
    key: &'static str,
    value: &'static str,
    output: &'static str,
    /// The factors of the attention's result and of that of the feed-forward part, if there are any.
    scales: Option<[&'static str; 2]>,
    norm2: &'static str,
    fc1: &'static str,
    fc2: &'static str,
}

/// As in transformers' CLIP.
pub const CLIP: Names = Names {
    norm1: "layer_norm1",
    query: "self_attn.q_proj",
    key: "self_attn.k_proj",
    value: "self_attn.v_proj",
    output: "self_attn.out_proj",
    scales: None,
    norm2: "layer_norm2",
    fc1: "mlp.fc1",
    fc2: "mlp.fc2",
};

/// As in transformers' ViT.
pub const VIT: Names = Names {
    norm1: "layernorm_before",
    query: "attention.attention.query",
    key: "attention.attention.key",
    value: "attention.attention.value",
    output: "attention.output.dense",
    scales: None,
    norm2: "layernorm_after",
    fc1: "intermediate.dense",
    fc2: "output.dense",
};

/// As in transformers' DINOv2.
pub const DINO_V2: Names = Names {
    norm1: "norm1",
    query: "attention.attention.query",
    key: "attention.attention.key",
    value: "attention.attention.value",
    output: "attention.output.dense",
    scales: Some(["layer_scale1.lambda1", "layer_scale2.lambda1"]),
    norm2: "norm2",
    fc1: "mlp.fc1",
    fc2: "mlp.fc2",
};

/// The nonlinearity between the two linear maps.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// With the error function.
    Gelu,
    /// `x sigmoid(1.702 x)`, OpenAI's approximation.
    QuickGelu,
}

impl Activation {
    fn apply(self, x: &Tensor) -> Tensor {
        match self {
            Self::Gelu => x.gelu("none"),
            Self::QuickGelu => x * (x * 1.702).sigmoid(),
        }
    }
}

/// Multi-head self attention.
struct Attention {
    heads: i64,
    /// Whether a token sees only itself and those before it.
    causal: bool,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
}

impl Attention {
    fn new(scope: &Scope<'_>, shape: LayerShape, tape: &Tape) -> Self {
        let width = shape.width;
        let linear = |name| Linear::new(&scope.sub(name), width, width, true, tape);
        Self {
            heads: shape.heads,
            causal: shape.causal,
            query: linear(shape.names.query),
            key: linear(shape.names.key),
            value: linear(shape.names.value),
            output: linear(shape.names.output),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let [batch, length, width] = [x.size()[0], x.size()[1], x.size()[2]];
        let split = |x: Tensor| x.view([batch, length, self.heads, width / self.heads]).transpose(1, 2);
        let q = split(self.query.forward(x)); // [B, heads, L, D/heads]
        let k = split(self.key.forward(x));
        let v = split(self.value.forward(x));
        let none = None::<Tensor>;
        let y = Tensor::scaled_dot_product_attention(&q, &k, &v, none, 0.0, self.causal, None, false);
        self.output.forward(&y.transpose(1, 2).reshape([batch, length, width])) // [B, L, D]
    }
}

/// One transformer layer: attention and feed forward, each normalised at its entry and added to its input.
pub struct Layer {
    norm1: LayerNorm,
    attention: Attention,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    scales: Option<[Tensor; 2]>,
    activation: Activation,
}

impl Layer {
    /// Takes the tensors of one layer.
    pub fn new(scope: &Scope<'_>, shape: LayerShape, tape: &Tape) -> Self {
        let LayerShape { width, inner, names, .. } = shape;
        let norm = |name| LayerNorm::new(&scope.sub(name), width, shape.eps, tape);
        Self {
            norm1: norm(names.norm1),
            attention: Attention::new(scope, shape, tape),
            norm2: norm(names.norm2),
            fc1: Linear::new(&scope.sub(names.fc1), width, inner, true, tape),
            fc2: Linear::new(&scope.sub(names.fc2), inner, width, true, tape),
            scales: names.scales.map(|scales| scales.map(|name| scope.take(name, &[width]))),
            activation: shape.activation,
        }
    }

    /// [B, L, D] to [B, L, D].
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let scaled = |part: usize, x: Tensor| {
            self.scales.as_ref().map_or(x.shallow_clone(), |scales| x * &scales[part])
        };
        let x = x + scaled(0, self.attention.forward(&self.norm1.forward(x)));
        let h = self.activation.apply(&self.fc1.forward(&self.norm2.forward(&x)));
        &x + scaled(1, self.fc2.forward(&h))
    }
}
