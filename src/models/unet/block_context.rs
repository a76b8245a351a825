//! What the blocks of a UNet share while it is built.

use std::cell::RefCell;

use super::conditioning::CrossAttentionKv;
use crate::models::tape::Tape;

/// What all blocks of a network share.
pub struct BlockContext {
    /// Where the layers report to.
    pub tape: Tape,
    /// The keys and values of the cross attentions built so far, in their order.
    pub cross_attention_kv: RefCell<Vec<CrossAttentionKv>>,
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
