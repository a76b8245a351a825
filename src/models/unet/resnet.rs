//! Residual blocks with the time embedding added, and the convolutions between resolutions.

use tch::Tensor;

use super::block_context::BlockContext;
use crate::models::kernels::ConcatInput;
use crate::models::layers::{Conv2d, GroupNorm, Linear};
use crate::models::weights::Scope;

/// Two convolutions with a residual connection (diffusers' `ResnetBlock2D`).
pub struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    time_emb_proj: Linear,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
}

impl ResnetBlock {
    /// A block from `inputs` to `outputs` channels; where they differ, a 1x1 convolution bridges the residual.
    pub fn new(scope: &Scope<'_>, inputs: i64, outputs: i64, context: &BlockContext) -> ResnetBlock {
        let tape = &context.tape;
        let norm = |name, channels| {
            GroupNorm::new(&scope.sub(name), context.groups, channels, context.norm_eps, tape)
        };
        let conv = |name, inputs| Conv2d::new(&scope.sub(name), inputs, outputs, 3, tape).padding(1);
        let shortcut = || Conv2d::new(&scope.sub("conv_shortcut"), inputs, outputs, 1, tape);
        ResnetBlock {
            norm1: norm("norm1", inputs),
            conv1: conv("conv1", inputs),
            time_emb_proj: Linear::full_precision(
                &scope.sub("time_emb_proj"),
                context.time_width,
                outputs,
                true,
                tape,
            ),
            norm2: norm("norm2", outputs),
            conv2: conv("conv2", outputs),
            conv_shortcut: (inputs != outputs).then(shortcut),
        }
    }

    /// [B, inputs, H, W] and the activated time embedding [K, E] to [B, outputs, H, W]; row b is at time b % K.
    pub fn forward(&self, x: &ConcatInput<'_>, time: &Tensor) -> Tensor {
        let shift = self.time_emb_proj.forward(time); // [K, outputs]
        let (h, shift) = self.conv1.add_shift(&self.norm1.silu(x, None), shift); // [B, outputs, H, W]
        let h = self.norm2.silu(&ConcatInput { first: &h, second: None }, Some(&shift));
        match &self.conv_shortcut {
            Some(conv) => self.conv2.forward_add(&h, &conv.forward_concat(x)),
            None => self.conv2.forward_add(&h, &x.cat()),
        }
    }
}

/// Halves height and width by a convolution of stride 2.
pub struct Downsample {
    conv: Conv2d,
    padding: i64,
}

impl Downsample {
    /// From `channels` to as many.
    pub fn new(scope: &Scope<'_>, channels: i64, context: &BlockContext) -> Downsample {
        let padding = context.downsample_padding;
        let conv = Conv2d::new(&scope.sub("conv"), channels, channels, 3, &context.tape).stride(2);
        Downsample { conv: conv.padding(padding), padding }
    }

    /// [B, C, H, W] to [B, C, H/2, W/2].
    pub fn forward(&self, x: &Tensor) -> Tensor {
        if self.padding > 0 {
            return self.conv.forward(x);
        }
        // Without padding, diffusers pads on the right and below alone.
        self.conv.forward(&x.constant_pad_nd([0, 1, 0, 1]))
    }
}

/// Repeats each pixel to a larger size and smooths by a convolution.
pub struct Upsample {
    conv: Conv2d,
}

impl Upsample {
    /// From `channels` to as many.
    pub fn new(scope: &Scope<'_>, channels: i64, context: &BlockContext) -> Upsample {
        Upsample { conv: Conv2d::new(&scope.sub("conv"), channels, channels, 3, &context.tape).padding(1) }
    }

    /// [B, C, h, w] to [B, C, H, W], the size of the skip connection that comes next.
    pub fn forward(&self, x: &Tensor, size: [i64; 2]) -> Tensor {
        self.conv.forward(&x.upsample_nearest2d(size, None, None))
    }
}
