//! What the blocks of a UNet share while it is built, and the maps of a text that they leave with it.

use std::cell::RefCell;

use tch::{Kind, Tensor};

use crate::models::layers::Linear;
use crate::models::tape::Tape;

/// What all blocks of a network share.
pub struct BlockContext {
    /// Where the layers report to.
    pub tape: Tape,
    /// What the cross attentions built so far make of a text, in their order.
    pub text_maps: RefCell<Vec<CrossAttentionKv>>,
    /// Groups of every group norm.
    pub groups: i64,
    /// Epsilon of the residual blocks' norms.
    pub norm_eps: f64,
    /// Width of the time embedding.
    pub time_width: i64,
    /// Width of the text's tokens.
    pub text_width: i64,
    /// Linear maps instead of 1x1 convolutions around the transformers.
    pub linear_projection: bool,
    /// Zeros at each border before a step down in resolution.
    pub downsample_padding: i64,
}

/// The maps that make a text's keys and values for one layer.
pub struct CrossAttentionKv {
    pub heads: i64,
    pub to_k: Linear,
    pub to_v: Linear,
}

impl CrossAttentionKv {
    /// Texts [K, L, D] to keys and values [K, heads, L, C/heads], of type `kind`.
    pub fn forward(&self, texts: &Tensor, kind: Kind) -> [Tensor; 2] {
        [&self.to_k, &self.to_v].map(|map| split(&map.forward(texts).to_kind(kind), self.heads))
    }
}

/// [K, T, C] to [K, heads, T, C/heads].
pub fn split(x: &Tensor, heads: i64) -> Tensor {
    let (contexts, tokens, width) = x.size3().expect("tokens have three dimensions");
    x.view([contexts, tokens, heads, width / heads]).transpose(1, 2)
}
