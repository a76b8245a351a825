//! What the VAE's encoder and decoder are made of: residual blocks, attention, steps between resolutions.
//!
//! Shapes: B images, C channels, S = H*W positions. Names as in diffusers' `ResnetBlock2D` (without a time
//! embedding), `Attention`, `DownEncoderBlock2D`, `UNetMidBlock2D` and `UpDecoderBlock2D`.

use tch::Tensor;

use crate::models::layers::{Conv2d, GroupNorm, Linear};
use crate::models::tape::Tape;
use crate::models::weights::Scope;

/// Added to the variance in every group norm of a VAE; diffusers fixes it.
pub(super) const EPS: f64 = 1e-6;

/// What all blocks of a VAE share.
pub(super) struct BlockContext {
    /// Groups of the group norms.
    pub groups: i64,
    /// Nothing records here: the VAE is never trained.
    pub tape: Tape,
}

impl BlockContext {
    pub fn norm(&self, scope: &Scope<'_>, channels: i64) -> GroupNorm {
        GroupNorm::new(scope, self.groups, channels, EPS, &self.tape)
    }

    /// A convolution of 3x3 that keeps height and width.
    pub fn conv3(&self, scope: &Scope<'_>, inputs: i64, outputs: i64) -> Conv2d {
        Conv2d::new(scope, inputs, outputs, 3, &self.tape).padding(1)
    }
}

/// Two convolutions with a residual connection.
struct Resnet {
    norm1: GroupNorm,
    conv1: Conv2d,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
}

impl Resnet {
    fn new(scope: &Scope<'_>, inputs: i64, outputs: i64, context: &BlockContext) -> Self {
        let shortcut = || Conv2d::new(&scope.sub("conv_shortcut"), inputs, outputs, 1, &context.tape);
        Self {
            norm1: context.norm(&scope.sub("norm1"), inputs),
            conv1: context.conv3(&scope.sub("conv1"), inputs, outputs),
            norm2: context.norm(&scope.sub("norm2"), outputs),
            conv2: context.conv3(&scope.sub("conv2"), outputs, outputs),
            conv_shortcut: (inputs != outputs).then(shortcut),
        }
    }

    /// [B, inputs, H, W] to [B, outputs, H, W].
    fn forward(&self, x: &Tensor) -> Tensor {
        let h = self.conv1.forward(&self.norm1.forward(x).silu());
        let h = self.conv2.forward(&self.norm2.forward(&h).silu());
        match &self.conv_shortcut {
            Some(conv) => conv.forward(x) + h,
            None => x + h,
        }
    }
}

fn resnets(scope: &Scope<'_>, count: i64, inputs: i64, outputs: i64, context: &BlockContext) -> Vec<Resnet> {
    let inputs = |i| if i == 0 { inputs } else { outputs };
    (0..count).map(|i| Resnet::new(&scope.sub("resnets").sub(i), inputs(i), outputs, context)).collect()
}

/// Self attention of one head over the positions of an image.
struct Attention {
    group_norm: GroupNorm,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
}

impl Attention {
    fn new(scope: &Scope<'_>, channels: i64, context: &BlockContext) -> Self {
        let linear = |name| Linear::new(&scope.sub(name), channels, channels, true, &context.tape);
        Self {
            group_norm: context.norm(&scope.sub("group_norm"), channels),
            to_q: linear("to_q"),
            to_k: linear("to_k"),
            to_v: linear("to_v"),
            to_out: linear("to_out.0"),
        }
    }

    /// [B, C, H, W] to the same shape.
    fn forward(&self, x: &Tensor) -> Tensor {
        let h = self.group_norm.forward(x).flatten(2, 3).transpose(1, 2); // [B, S, C]
        let head = |linear: &Linear| linear.forward(&h).unsqueeze(1); // [B, 1, S, C]
        let (q, k, v) = (head(&self.to_q), head(&self.to_k), head(&self.to_v));
        let y = Tensor::scaled_dot_product_attention(&q, &k, &v, None::<Tensor>, 0.0, false, None, false);
        let y = self.to_out.forward(&y.squeeze_dim(1)); // [B, S, C]
        x + y.transpose(1, 2).reshape(x.size())
    }
}

/// A residual block, attention if the model has it there, and another residual block.
pub(super) struct MidBlock {
    resnets: Vec<Resnet>,
    attention: Option<Attention>,
}

impl MidBlock {
    pub fn new(scope: &Scope<'_>, channels: i64, attention: bool, context: &BlockContext) -> Self {
        let attend = || Attention::new(&scope.sub("attentions.0"), channels, context);
        Self { resnets: resnets(scope, 2, channels, channels, context), attention: attention.then(attend) }
    }

    /// [B, C, H, W] to the same shape.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let mut h = self.resnets[0].forward(x);
        if let Some(attention) = &self.attention {
            h = attention.forward(&h);
        }
        self.resnets[1].forward(&h)
    }
}

/// Residual blocks, then a step to half the resolution in all but the last.
pub(super) struct DownBlock {
    resnets: Vec<Resnet>,
    downsample: Option<Conv2d>,
}

impl DownBlock {
    pub fn new(
        scope: &Scope<'_>,
        count: i64,
        inputs: i64,
        outputs: i64,
        last: bool,
        context: &BlockContext,
    ) -> Self {
        let conv = scope.sub("downsamplers.0.conv");
        let downsample = || Conv2d::new(&conv, outputs, outputs, 3, &context.tape).stride(2);
        Self {
            resnets: resnets(scope, count, inputs, outputs, context),
            downsample: (!last).then(downsample),
        }
    }

    /// [B, inputs, H, W] to [B, outputs, H/2, W/2], or H, W in the last.
    pub fn forward(&self, x: Tensor) -> Tensor {
        let h = self.resnets.iter().fold(x, |h, resnet| resnet.forward(&h));
        match &self.downsample {
            // Zeros on the right and below only: the model was trained so.
            Some(conv) => conv.forward(&h.constant_pad_nd([0, 1, 0, 1])),
            None => h,
        }
    }
}

/// Residual blocks, then a step to twice the resolution in all but the last.
pub(super) struct UpBlock {
    resnets: Vec<Resnet>,
    upsample: Option<Conv2d>,
}

impl UpBlock {
    pub fn new(
        scope: &Scope<'_>,
        count: i64,
        inputs: i64,
        outputs: i64,
        last: bool,
        context: &BlockContext,
    ) -> Self {
        let upsample = || context.conv3(&scope.sub("upsamplers.0.conv"), outputs, outputs);
        Self { resnets: resnets(scope, count, inputs, outputs, context), upsample: (!last).then(upsample) }
    }

    /// [B, inputs, H, W] to [B, outputs, 2H, 2W], or H, W in the last.
    pub fn forward(&self, x: Tensor) -> Tensor {
        let h = self.resnets.iter().fold(x, |h, resnet| resnet.forward(&h));
        match &self.upsample {
            Some(conv) => {
                let twice = [2 * h.size()[2], 2 * h.size()[3]];
                conv.forward(&h.upsample_nearest2d(twice, None, None))
            }
            None => h,
        }
    }
}
