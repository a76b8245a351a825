//! The transformer inside a UNet block: self attention, cross attention to the text, feed forward.
//!
//! Shapes: B rows, C channels, S = H*W positions, K texts of L tokens of width D. Names as in diffusers'
//! `Transformer2DModel` and `BasicTransformerBlock`.

use tch::Tensor;

use super::layers::{Conv2d, GroupNorm, LayerNorm, Linear};
use super::unet_config::Common;
use super::weights::Scope;

/// Multi-head attention (Vaswani et al. 2017, arXiv 1706.03762, section 3.2), without biases on q, k and v.
pub struct Attention {
    heads: i64,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
}

impl Attention {
    fn new(scope: &Scope<'_>, width: i64, context: i64, heads: i64, common: &Common) -> Attention {
        let linear = |name, inputs, bias| Linear::new(&scope.sub(name), inputs, width, bias, &common.tape);
        Attention {
            heads,
            to_q: linear("to_q", width, false),
            to_k: linear("to_k", context, false),
            to_v: linear("to_v", context, false),
            to_out: linear("to_out.0", width, true),
        }
    }

    /// Queries from `x` [B, S, C]; keys and values from `context` [K, L, D], where B is a multiple of K.
    ///
    /// Consecutive rows share a context: the queries of B/K rows are laid end to end and attend together, so
    /// that keys and values are computed, and kept, once for each context.
    fn forward(&self, x: &Tensor, context: &Tensor) -> Tensor {
        let contexts = context.size()[0];
        let split = |x: Tensor| {
            let width = x.size()[2];
            x.view([contexts, -1, self.heads, width / self.heads]).transpose(1, 2)
        };
        let q = split(self.to_q.forward(x)); // [K, heads, B/K*S, C/heads]
        let k = split(self.to_k.forward(context)); // [K, heads, L, C/heads]
        let v = split(self.to_v.forward(context)); // [K, heads, L, C/heads]
        let no_mask = None::<Tensor>;
        let y = Tensor::scaled_dot_product_attention(&q, &k, &v, no_mask, 0.0, false, None, false);
        self.to_out.forward(&y.transpose(1, 2).reshape(x.size())) // [B, S, C]
    }
}

/// Two linear maps around a gated GELU (Shazeer 2020, arXiv 2002.05202).
struct FeedForward {
    project: Linear,
    out: Linear,
}

impl FeedForward {
    fn new(scope: &Scope<'_>, width: i64, common: &Common) -> FeedForward {
        // The inner width is four times the outer; the first map makes it and its gate in one.
        let project = Linear::new(&scope.sub("net.0.proj"), width, 8 * width, true, &common.tape);
        FeedForward { project, out: Linear::new(&scope.sub("net.2"), 4 * width, width, true, &common.tape) }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let both = self.project.forward(x).chunk(2, -1); // 2 x [B, S, 4C]
        self.out.forward(&(&both[0] * both[1].gelu("none"))) // [B, S, C]
    }
}

/// One layer of the transformer: three residual branches, each normalised at its entry.
struct TransformerBlock {
    norm1: LayerNorm,
    attn1: Attention,
    norm2: LayerNorm,
    attn2: Attention,
    norm3: LayerNorm,
    ff: FeedForward,
}

impl TransformerBlock {
    fn new(scope: &Scope<'_>, width: i64, heads: i64, common: &Common) -> TransformerBlock {
        let norm = |name| LayerNorm::new(&scope.sub(name), width, 1e-5, &common.tape);
        TransformerBlock {
            norm1: norm("norm1"),
            attn1: Attention::new(&scope.sub("attn1"), width, width, heads, common),
            norm2: norm("norm2"),
            attn2: Attention::new(&scope.sub("attn2"), width, common.text_width, heads, common),
            norm3: norm("norm3"),
            ff: FeedForward::new(&scope.sub("ff"), width, common),
        }
    }

    fn forward(&self, x: &Tensor, text: &Tensor) -> Tensor {
        let h = self.norm1.forward(x); // [B, S, C]
        let x = x + self.attn1.forward(&h, &h);
        let x = &x + self.attn2.forward(&self.norm2.forward(&x), text);
        &x + self.ff.forward(&self.norm3.forward(&x))
    }
}

/// The map between image channels and transformer width: a 1x1 convolution or, the same thing, a linear map.
enum Projection {
    Conv(Conv2d),
    Linear(Linear),
}

impl Projection {
    fn new(scope: &Scope<'_>, channels: i64, common: &Common) -> Projection {
        if common.linear_projection {
            Projection::Linear(Linear::new(scope, channels, channels, true, &common.tape))
        } else {
            Projection::Conv(Conv2d::new(scope, channels, channels, 1, &common.tape))
        }
    }

    /// [B, C, H, W] to [B, S, C].
    fn to_tokens(&self, x: &Tensor) -> Tensor {
        let tokens = |x: &Tensor| x.flatten(2, 3).transpose(1, 2).contiguous();
        match self {
            Projection::Conv(conv) => tokens(&conv.forward(x)),
            Projection::Linear(linear) => linear.forward(&tokens(x)),
        }
    }

    /// [B, S, C] to [B, C, H, W] of the given shape.
    fn to_image(&self, x: &Tensor, shape: &[i64]) -> Tensor {
        let image = |x: &Tensor| x.transpose(1, 2).reshape(shape);
        match self {
            Projection::Conv(conv) => conv.forward(&image(x)),
            Projection::Linear(linear) => image(&linear.forward(x)),
        }
    }
}

/// A transformer over the positions of an image, with a residual connection around it.
pub struct Transformer2d {
    norm: GroupNorm,
    proj_in: Projection,
    blocks: Vec<TransformerBlock>,
    proj_out: Projection,
}

impl Transformer2d {
    /// `layers` transformer blocks of `heads` heads over `channels` channels.
    pub fn new(scope: &Scope<'_>, channels: i64, heads: i64, layers: i64, common: &Common) -> Transformer2d {
        let blocks = scope.sub("transformer_blocks");
        Transformer2d {
            // Not the UNet's own epsilon: diffusers fixes this one.
            norm: GroupNorm::new(&scope.sub("norm"), common.groups, channels, 1e-6, &common.tape),
            proj_in: Projection::new(&scope.sub("proj_in"), channels, common),
            blocks: (0..layers)
                .map(|i| TransformerBlock::new(&blocks.sub(i), channels, heads, common))
                .collect(),
            proj_out: Projection::new(&scope.sub("proj_out"), channels, common),
        }
    }

    /// [B, C, H, W] and texts [K, L, D] to [B, C, H, W].
    pub fn forward(&self, x: &Tensor, text: &Tensor) -> Tensor {
        let mut h = self.proj_in.to_tokens(&self.norm.forward(x)); // [B, S, C]
        for block in &self.blocks {
            h = block.forward(&h, text);
        }
        x + self.proj_out.to_image(&h, &x.size()) // [B, C, H, W]
    }
}
