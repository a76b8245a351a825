//! The transformer inside a UNet block: self attention, cross attention to the text, feed forward.
//!
//! Shapes: B rows, C channels, S = H*W positions, K texts of L tokens of width D. Names as in diffusers'
//! `Transformer2DModel` and `BasicTransformerBlock`.

use tch::Tensor;

use super::block_context::BlockContext;
use super::conditioning::{CrossAttentionKv, EncodedConditioning, split_heads};
use crate::models::layers::{self, Conv2d, FusedLinear, GroupNorm, LayerNorm, Linear};
use crate::models::profile::{Part, span};
use crate::models::weights::Scope;

/// `softmax(q k^T / sqrt(d)) v` for each head (Vaswani et al. 2017, arXiv 1706.03762, section 3.2).
///
/// Queries [K, T, C] in any grouping of rows, keys and values [K, heads, L, C/heads]; returns [K, T, C].
fn attend(q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
    span(Part::Attention, q.device(), || {
        let (q, no_mask) = (split_heads(q, k.size()[1]), None::<Tensor>);
        let y = Tensor::scaled_dot_product_attention(&q, k, v, no_mask, 0.0, false, None, false);
        y.transpose(1, 2).flatten(2, 3)
    })
}

/// Attention of an image's positions to each other.
struct SelfAttention {
    heads: i64,
    to_qkv: FusedLinear,
    to_out: Linear,
}

impl SelfAttention {
    fn new(scope: &Scope<'_>, width: i64, heads: i64, context: &BlockContext) -> SelfAttention {
        let to_qkv = FusedLinear::new(scope, &["to_q", "to_k", "to_v"], width, width, &context.tape);
        let to_out = Linear::new(&scope.sub("to_out.0"), width, width, true, &context.tape);
        SelfAttention { heads, to_qkv, to_out }
    }

    /// [B, S, C] to the same shape.
    fn forward(&self, x: &Tensor) -> Tensor {
        let qkv = self.to_qkv.forward(x); // 3 x [B, S, C]
        let y = attend(&qkv[0], &split_heads(&qkv[1], self.heads), &split_heads(&qkv[2], self.heads));
        self.to_out.forward(&y)
    }
}

/// Attention of an image's positions to a text.
struct CrossAttention {
    /// Which of the network's cross attentions it is.
    index: usize,
    to_q: Linear,
    to_out: Linear,
}

impl CrossAttention {
    fn new(scope: &Scope<'_>, width: i64, heads: i64, context: &BlockContext) -> CrossAttention {
        // In the weights' own precision: unlearning changes these weights by less than bfloat16 can represent.
        let map =
            |name| Linear::full_precision(&scope.sub(name), context.text_width, width, false, &context.tape);
        let mut all = context.cross_attention_kv.borrow_mut();
        all.push(CrossAttentionKv { heads, to_k: map("to_k"), to_v: map("to_v") });
        CrossAttention {
            index: all.len() - 1,
            to_q: Linear::new(&scope.sub("to_q"), width, width, false, &context.tape),
            to_out: Linear::new(&scope.sub("to_out.0"), width, width, true, &context.tape),
        }
    }

    /// [B, S, C] and K texts to [B, S, C]; row r sees text r / (B/K).
    ///
    /// The queries of the rows that share a text are joined and attend together, so that keys and values are
    /// kept, and read, once for each text.
    fn forward(&self, x: &Tensor, texts: &EncodedConditioning) -> Tensor {
        let [k, v] = texts.keys_values(self.index);
        let (rows, _, width) = x.size3().expect("tokens have three dimensions");
        let q = self.to_q.forward(x);
        if q.requires_grad() && q.device().is_cuda() {
            // The backward pass of one long attention would use few of a GPU's processors, so each row attends alone.
            let each = |x: &Tensor| x.repeat_interleave_self_int(rows / texts.count(), 0, None);
            return self.to_out.forward(&attend(&q, &each(k), &each(v)));
        }
        let q = q.view([texts.count(), -1, width]); // [K, B/K*S, C]
        self.to_out.forward(&attend(&q, k, v).view(x.size().as_slice())) // [B, S, C]
    }
}

/// Two linear maps around a gated GELU (Shazeer 2020, arXiv 2002.05202).
struct FeedForward {
    project: Linear,
    out: Linear,
}

impl FeedForward {
    fn new(scope: &Scope<'_>, width: i64, context: &BlockContext) -> FeedForward {
        // The inner width is four times the outer; the first map makes it and its gate in one.
        let project = Linear::new(&scope.sub("net.0.proj"), width, 8 * width, true, &context.tape);
        FeedForward { project, out: Linear::new(&scope.sub("net.2"), 4 * width, width, true, &context.tape) }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        self.out.forward(&layers::gated_gelu(&self.project.forward(x))) // [B, S, C]
    }
}

/// One layer of the transformer: three residual branches, each normalised at its entry.
struct TransformerBlock {
    norm1: LayerNorm,
    attn1: SelfAttention,
    norm2: LayerNorm,
    attn2: CrossAttention,
    norm3: LayerNorm,
    ff: FeedForward,
}

impl TransformerBlock {
    fn new(scope: &Scope<'_>, width: i64, heads: i64, context: &BlockContext) -> TransformerBlock {
        let norm = |name| LayerNorm::new(&scope.sub(name), width, 1e-5, &context.tape);
        TransformerBlock {
            norm1: norm("norm1"),
            attn1: SelfAttention::new(&scope.sub("attn1"), width, heads, context),
            norm2: norm("norm2"),
            attn2: CrossAttention::new(&scope.sub("attn2"), width, heads, context),
            norm3: norm("norm3"),
            ff: FeedForward::new(&scope.sub("ff"), width, context),
        }
    }

    /// [B, S, C], which is used up, to the same shape.
    fn forward(&self, x: Tensor, texts: &EncodedConditioning) -> Tensor {
        let h = self.attn1.forward(&self.norm1.forward(&x));
        let (x, h) = self.norm2.add_norm(x, &h);
        let (x, h) = self.norm3.add_norm(x, &self.attn2.forward(&h, texts));
        layers::sum(x, &self.ff.forward(&h))
    }
}

/// The map between image channels and transformer width: a 1x1 convolution or, the same thing, a linear map.
enum Projection {
    Conv(Conv2d),
    Linear(Linear),
}

impl Projection {
    fn new(scope: &Scope<'_>, channels: i64, context: &BlockContext) -> Projection {
        if context.linear_projection {
            Projection::Linear(Linear::new(scope, channels, channels, true, &context.tape))
        } else {
            Projection::Conv(Conv2d::new(scope, channels, channels, 1, &context.tape))
        }
    }

    /// Tokens [B, S, C] to the same shape.
    fn forward(&self, x: &Tensor) -> Tensor {
        match self {
            Projection::Conv(conv) => conv.forward_tokens(x),
            Projection::Linear(linear) => linear.forward(x),
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
    pub fn new(
        scope: &Scope<'_>,
        channels: i64,
        heads: i64,
        layers: i64,
        context: &BlockContext,
    ) -> Transformer2d {
        let blocks = scope.sub("transformer_blocks");
        Transformer2d {
            // Not the UNet's own epsilon: diffusers fixes this one.
            norm: GroupNorm::new(&scope.sub("norm"), context.groups, channels, 1e-6, &context.tape),
            proj_in: Projection::new(&scope.sub("proj_in"), channels, context),
            blocks: (0..layers)
                .map(|i| TransformerBlock::new(&blocks.sub(i), channels, heads, context))
                .collect(),
            proj_out: Projection::new(&scope.sub("proj_out"), channels, context),
        }
    }

    /// [B, C, H, W] and K texts to [B, C, H, W].
    pub fn forward(&self, x: &Tensor, texts: &EncodedConditioning) -> Tensor {
        let mut h = self.proj_in.forward(&layers::tokens(&self.norm.forward(x))); // [B, S, C]
        for block in &self.blocks {
            h = block.forward(h, texts);
        }
        layers::sum(layers::image(&self.proj_out.forward(&h), &x.size()), x) // [B, C, H, W]
    }
}
