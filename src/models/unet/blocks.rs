//! The blocks of the UNet: down, middle and up, with or without attention to the text.
//!
//! A plain block (`DownBlock2D`) is one with attention (`CrossAttnDownBlock2D`) but without the transformers.

use tch::Tensor;

use super::attention::Transformer2d;
use super::block_context::BlockContext;
use super::conditioning::EncodedConditioning;
use super::config::BlockConfig;
use super::resnet::{Downsample, ResnetBlock, Upsample};
use crate::models::kernels::ConcatInput;
use crate::models::weights::Scope;

/// A residual block and, where the block type has it, the transformer after it.
struct Layer {
    resnet: ResnetBlock,
    attention: Option<Transformer2d>,
}

impl Layer {
    fn new(scope: &Scope<'_>, index: i64, inputs: i64, block: &BlockConfig, context: &BlockContext) -> Layer {
        let resnet = scope.sub("resnets").sub(index);
        let attention = scope.sub("attentions").sub(index);
        let transformer =
            || Transformer2d::new(&attention, block.channels, block.heads, block.transformer_layers, context);
        Layer {
            resnet: ResnetBlock::new(&resnet, inputs, block.channels, context),
            attention: block.cross_attention.then(transformer),
        }
    }

    fn forward(&self, x: &ConcatInput<'_>, time: &Tensor, texts: &EncodedConditioning) -> Tensor {
        let h = self.resnet.forward(x, time);
        match &self.attention {
            Some(attention) => attention.forward(&h, texts),
            None => h,
        }
    }
}

/// Residual blocks, then a step to half the resolution in all but the last.
pub struct DownBlock {
    layers: Vec<Layer>,
    downsample: Option<Downsample>,
}

impl DownBlock {
    /// A block that gets `inputs` channels.
    pub fn new(
        scope: &Scope<'_>,
        inputs: i64,
        last: bool,
        block: &BlockConfig,
        context: &BlockContext,
    ) -> DownBlock {
        let layer = |i| Layer::new(scope, i, if i == 0 { inputs } else { block.channels }, block, context);
        let downsample = || Downsample::new(&scope.sub("downsamplers.0"), block.channels, context);
        DownBlock { layers: (0..block.layers).map(layer).collect(), downsample: (!last).then(downsample) }
    }

    /// Returns the block's output; every state on the way is pushed to `skips`.
    pub fn forward(
        &self,
        x: Tensor,
        time: &Tensor,
        texts: &EncodedConditioning,
        skips: &mut Vec<Tensor>,
    ) -> Tensor {
        let mut h = x;
        for layer in &self.layers {
            h = layer.forward(&one(&h), time, texts);
            skips.push(h.shallow_clone());
        }
        if let Some(downsample) = &self.downsample {
            h = downsample.forward(&h);
            skips.push(h.shallow_clone());
        }
        h
    }
}

/// A residual block, a transformer and another residual block at the coarsest resolution.
pub struct MidBlock {
    first: Layer,
    last: ResnetBlock,
}

impl MidBlock {
    /// A block with the last down block's channels and heads (`UNetMidBlock2DCrossAttn`).
    pub fn new(scope: &Scope<'_>, block: &BlockConfig, context: &BlockContext) -> MidBlock {
        let block = BlockConfig { cross_attention: true, ..*block };
        MidBlock {
            first: Layer::new(scope, 0, block.channels, &block, context),
            last: ResnetBlock::new(&scope.sub("resnets.1"), block.channels, block.channels, context),
        }
    }

    /// [B, C, H, W] to the same shape.
    pub fn forward(&self, x: &Tensor, time: &Tensor, texts: &EncodedConditioning) -> Tensor {
        self.last.forward(&one(&self.first.forward(&one(x), time, texts)), time)
    }
}

/// Residual blocks over the states of the down path, then a step to twice the resolution in all but the last.
pub struct UpBlock {
    layers: Vec<Layer>,
    upsample: Option<Upsample>,
}

impl UpBlock {
    /// A block that gets `inputs` channels from below and whose skips come from down blocks with the channels of
    /// `block` and, at its last layer, `next_finer`.
    pub fn new(
        scope: &Scope<'_>,
        inputs: i64,
        next_finer: i64,
        last: bool,
        block: &BlockConfig,
        context: &BlockContext,
    ) -> UpBlock {
        // One layer more than on the way down: each down block leaves one state more than it has layers.
        let count = block.layers + 1;
        let layer = |i| {
            let below = if i == 0 { inputs } else { block.channels };
            let skip = if i == count - 1 { next_finer } else { block.channels };
            Layer::new(scope, i, below + skip, block, context)
        };
        let upsample = || Upsample::new(&scope.sub("upsamplers.0"), block.channels, context);
        UpBlock { layers: (0..count).map(layer).collect(), upsample: (!last).then(upsample) }
    }

    /// Takes one state off `skips` for each layer.
    pub fn forward(
        &self,
        x: Tensor,
        time: &Tensor,
        texts: &EncodedConditioning,
        skips: &mut Vec<Tensor>,
    ) -> Tensor {
        let mut h = x;
        for layer in &self.layers {
            let skip = skips.pop().expect("the down path left a state for every layer of the up path");
            h = layer.forward(&ConcatInput { first: &h, second: Some(&skip) }, time, texts);
        }
        match (&self.upsample, skips.last()) {
            (Some(upsample), Some(next)) => upsample.forward(&h, [next.size()[2], next.size()[3]]),
            _ => h,
        }
    }
}

fn one(x: &Tensor) -> ConcatInput<'_> {
    ConcatInput { first: x, second: None }
}
