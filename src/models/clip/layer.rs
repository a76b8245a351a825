//! A transformer layer of CLIP, of its text encoder and of its image encoder.

use serde::Deserialize;
use tch::Tensor;

use crate::models::layers::{LayerNorm, Linear};
use crate::models::tape::Tape;
use crate::models::weights::Scope;

/// The sizes and options of a layer.
#[derive(Clone, Copy)]
pub(super) struct LayerShape {
    pub width: i64,
    /// Width inside the feed-forward part.
    pub inner: i64,
    pub heads: i64,
    pub activation: Activation,
    /// Added to the variance in layer norms.
    pub eps: f64,
    /// Whether a token sees only itself and those before it.
    pub causal: bool,
}

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
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
}

impl Attention {
    fn new(scope: &Scope<'_>, shape: LayerShape, tape: &Tape) -> Self {
        let width = shape.width;
        let linear = |name| Linear::new(&scope.sub(name), width, width, true, tape);
        Self {
            heads: shape.heads,
            causal: shape.causal,
            q_proj: linear("q_proj"),
            k_proj: linear("k_proj"),
            v_proj: linear("v_proj"),
            out_proj: linear("out_proj"),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let [batch, length, width] = [x.size()[0], x.size()[1], x.size()[2]];
        let split = |x: Tensor| x.view([batch, length, self.heads, width / self.heads]).transpose(1, 2);
        let q = split(self.q_proj.forward(x)); // [B, heads, L, D/heads]
        let k = split(self.k_proj.forward(x));
        let v = split(self.v_proj.forward(x));
        let none = None::<Tensor>;
        let y = Tensor::scaled_dot_product_attention(&q, &k, &v, none, 0.0, self.causal, None, false);
        self.out_proj.forward(&y.transpose(1, 2).reshape([batch, length, width])) // [B, L, D]
    }
}

/// One transformer layer: attention and feed forward, each normalised at its entry and added to its input.
pub(super) struct Layer {
    self_attn: Attention,
    layer_norm1: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    layer_norm2: LayerNorm,
    activation: Activation,
}

impl Layer {
    pub fn new(scope: &Scope<'_>, shape: LayerShape, tape: &Tape) -> Self {
        let LayerShape { width, inner, .. } = shape;
        let norm = |name| LayerNorm::new(&scope.sub(name), width, shape.eps, tape);
        Self {
            self_attn: Attention::new(&scope.sub("self_attn"), shape, tape),
            layer_norm1: norm("layer_norm1"),
            fc1: Linear::new(&scope.sub("mlp.fc1"), width, inner, true, tape),
            fc2: Linear::new(&scope.sub("mlp.fc2"), inner, width, true, tape),
            layer_norm2: norm("layer_norm2"),
            activation: shape.activation,
        }
    }

    pub fn forward(&self, x: &Tensor) -> Tensor {
        let x = x + self.self_attn.forward(&self.layer_norm1.forward(x)); // [B, L, D]
        let h = self.activation.apply(&self.fc1.forward(&self.layer_norm2.forward(&x)));
        x + self.fc2.forward(&h)
    }
}
