//! The autoencoder between images and latents.
//!
//! Shapes: B images of H x W pixels in [-1, 1], latents [B, C, h, w] with h = H / 2^(resolutions - 1).
//! Source: Kingma and Welling 2014 (arXiv 1312.6114); Rombach et al. 2022 (arXiv 2112.10752), section 3.1; names
//! as in diffusers' `AutoencoderKL`.

pub mod blocks;

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use tch::{Device, Tensor};

use super::layers::{Conv2d, GroupNorm};
use super::tape::Tape;
use super::weights::checkpoint;
use super::weights::config::{self, ModelError, OptionGuard};
use super::weights::{self, Scope, Weights};
use blocks::{BlockContext, DownBlock, MidBlock, UpBlock};

/// What of `config.json` the autoencoder depends on; the defaults are diffusers'.
#[derive(Clone, Debug, Deserialize)]
pub struct VaeConfig {
    /// Channels of an image.
    #[serde(default = "three")]
    pub in_channels: i64,
    /// Channels of a decoded image.
    #[serde(default = "three")]
    pub out_channels: i64,
    /// Channels C of a latent.
    #[serde(default = "four")]
    pub latent_channels: i64,
    /// Channels at each resolution, from the finest.
    pub block_out_channels: Vec<i64>,
    /// The type of each block of the encoder.
    pub down_block_types: Vec<String>,
    /// The type of each block of the decoder.
    pub up_block_types: Vec<String>,
    /// Residual blocks at each resolution of the encoder; the decoder has one more.
    #[serde(default = "one")]
    pub layers_per_block: i64,
    /// Groups of the group norms.
    #[serde(default = "thirty_two")]
    pub norm_num_groups: i64,
    /// What a posterior sample is multiplied by, to have unit variance over the training set.
    #[serde(default = "stable_diffusion_scaling")]
    pub scaling_factor: f64,
    /// Whether a 1x1 convolution follows the encoder.
    #[serde(default = "yes")]
    pub use_quant_conv: bool,
    /// Whether a 1x1 convolution precedes the decoder.
    #[serde(default = "yes")]
    pub use_post_quant_conv: bool,
    /// Whether there is attention at the coarsest resolution.
    #[serde(default = "yes")]
    pub mid_block_add_attention: bool,
}

fn one() -> i64 {
    1
}

fn three() -> i64 {
    3
}

fn four() -> i64 {
    4
}

fn thirty_two() -> i64 {
    32
}

fn stable_diffusion_scaling() -> f64 {
    0.18215
}

fn yes() -> bool {
    true
}

/// A shift would have to enter wherever the scaling factor does, and the method has none.
const GUARDS: &[OptionGuard] = &[
    OptionGuard("_class_name", &["\"AutoencoderKL\""]),
    OptionGuard("act_fn", &["\"silu\""]),
    OptionGuard("shift_factor", &["null", "0"]),
    OptionGuard("latents_mean", &["null"]),
    OptionGuard("latents_std", &["null"]),
];

impl VaeConfig {
    /// Image pixels per latent pixel, along one side: every block but the last halves it.
    pub fn scale(&self) -> u32 {
        1 << (self.block_out_channels.len().saturating_sub(1))
    }

    /// Reads and checks a `config.json`.
    ///
    /// # Errors
    /// The file can't be read, or holds a value that is not supported.
    pub fn read(file: &Path) -> Result<Self, ModelError> {
        let config: Self = config::read(file, GUARDS)?;
        let (blocks, scale) = (config.block_out_channels.len(), config.scaling_factor);
        if !(scale > 0.0 && scale.is_finite()) {
            return Err(config::unsupported(file, "scaling_factor", scale, "a positive number"));
        }
        let channels = ("block_out_channels", config.block_out_channels.as_slice());
        config::expect_divides(file, ("norm_num_groups", config.norm_num_groups), channels)?;
        for (key, types, supported) in [
            ("down_block_types", &config.down_block_types, "DownEncoderBlock2D"),
            ("up_block_types", &config.up_block_types, "UpDecoderBlock2D"),
        ] {
            if types.len() != blocks || types.iter().any(|found| found != supported) || blocks == 0 {
                let expected = format!("{blocks} of {supported}, one for each of block_out_channels");
                return Err(config::unsupported(file, key, types.join(", "), &expected));
            }
        }
        Ok(config)
    }
}

/// From an image to mean and log variance of the latents.
struct Encoder {
    conv_in: Conv2d,
    down_blocks: Vec<DownBlock>,
    mid_block: MidBlock,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Encoder {
    fn new(scope: &Scope<'_>, config: &VaeConfig, context: &BlockContext) -> Self {
        let channels = &config.block_out_channels;
        let last = channels.len() - 1;
        let down = |i: usize| {
            let scope = scope.sub("down_blocks").sub(i);
            let inputs = channels[i.saturating_sub(1)];
            DownBlock::new(&scope, config.layers_per_block, inputs, channels[i], i == last, context)
        };
        let mid = scope.sub("mid_block");
        Self {
            conv_in: context.conv3(&scope.sub("conv_in"), config.in_channels, channels[0]),
            down_blocks: (0..channels.len()).map(down).collect(),
            mid_block: MidBlock::new(&mid, channels[last], config.mid_block_add_attention, context),
            conv_norm_out: context.norm(&scope.sub("conv_norm_out"), channels[last]),
            conv_out: context.conv3(&scope.sub("conv_out"), channels[last], 2 * config.latent_channels),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let h = self.conv_in.forward(x); // [B, .., H, W]
        let h = self.down_blocks.iter().fold(h, |h, block| block.forward(h)); // [B, .., h, w]
        let h = self.mid_block.forward(&h);
        self.conv_out.forward(&self.conv_norm_out.forward(&h).silu()) // [B, 2C, h, w]
    }
}

/// From latents to an image.
struct Decoder {
    conv_in: Conv2d,
    mid_block: MidBlock,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Decoder {
    fn new(scope: &Scope<'_>, config: &VaeConfig, context: &BlockContext) -> Self {
        let channels: Vec<i64> = config.block_out_channels.iter().rev().copied().collect(); // from the coarsest
        let last = channels.len() - 1;
        let up = |i: usize| {
            let scope = scope.sub("up_blocks").sub(i);
            let inputs = channels[i.saturating_sub(1)];
            UpBlock::new(&scope, config.layers_per_block + 1, inputs, channels[i], i == last, context)
        };
        let mid = scope.sub("mid_block");
        Self {
            conv_in: context.conv3(&scope.sub("conv_in"), config.latent_channels, channels[0]),
            mid_block: MidBlock::new(&mid, channels[0], config.mid_block_add_attention, context),
            up_blocks: (0..channels.len()).map(up).collect(),
            conv_norm_out: context.norm(&scope.sub("conv_norm_out"), channels[last]),
            conv_out: context.conv3(&scope.sub("conv_out"), channels[last], config.out_channels),
        }
    }

    fn forward(&self, z: &Tensor) -> Tensor {
        let h = self.mid_block.forward(&self.conv_in.forward(z)); // [B, .., h, w]
        let h = self.up_blocks.iter().fold(h, |h, block| block.forward(h)); // [B, .., H, W]
        self.conv_out.forward(&self.conv_norm_out.forward(&h).silu()) // [B, 3, H, W]
    }
}

/// The normal distribution that the encoder gives for an image's latents, not yet scaled.
#[derive(Debug)]
pub struct Posterior {
    /// Mean, [B, C, h, w].
    pub mean: Tensor,
    /// Logarithm of the variance, [B, C, h, w], within [-30, 20].
    pub logvar: Tensor,
}

impl Posterior {
    /// The most probable latents.
    pub fn mode(&self) -> Tensor {
        self.mean.shallow_clone()
    }

    /// Latents for standard normal noise `eps` [B, C, h, w].
    pub fn sample(&self, eps: &Tensor) -> Tensor {
        &self.mean + self.std() * eps
    }

    /// The standard deviation.
    pub fn std(&self) -> Tensor {
        (&self.logvar * 0.5).exp()
    }
}

/// The autoencoder.
pub struct Vae {
    encoder: Encoder,
    quant_conv: Option<Conv2d>,
    post_quant_conv: Option<Conv2d>,
    decoder: Decoder,
    config: VaeConfig,
}

impl Vae {
    /// Reads `config.json` and the checkpoint of a folder.
    ///
    /// # Errors
    /// A file can't be read, the configuration holds what is not built in, or the tensors don't fit it.
    pub fn load(folder: &Path, device: Device) -> Result<Self, ModelError> {
        let config = VaeConfig::read(&folder.join("config.json"))?;
        let file = checkpoint::find(folder)?;
        let weights = Weights::named(&file, with_new_names(weights::read(&file, device)?));
        let vae = Self::new(&weights.root(), config);
        weights.finish()?;
        Ok(vae)
    }

    fn new(scope: &Scope<'_>, config: VaeConfig) -> Self {
        let context = BlockContext { groups: config.norm_num_groups, tape: Tape::new() };
        let conv1 = |name, channels| Conv2d::new(&scope.sub(name), channels, channels, 1, &context.tape);
        let latent = config.latent_channels;
        Self {
            encoder: Encoder::new(&scope.sub("encoder"), &config, &context),
            quant_conv: config.use_quant_conv.then(|| conv1("quant_conv", 2 * latent)),
            post_quant_conv: config.use_post_quant_conv.then(|| conv1("post_quant_conv", latent)),
            decoder: Decoder::new(&scope.sub("decoder"), &config, &context),
            config,
        }
    }

    /// Images [B, 3, H, W] in [-1, 1] to the distribution of their latents.
    pub fn encode(&self, x: &Tensor) -> Posterior {
        let h = self.encoder.forward(x); // [B, 2C, h, w]
        let moments = self.quant_conv.as_ref().map_or_else(|| h.shallow_clone(), |conv| conv.forward(&h));
        let moments = moments.chunk(2, 1); // 2 x [B, C, h, w]
        Posterior { mean: moments[0].shallow_clone(), logvar: moments[1].clamp(-30.0, 20.0) }
    }

    /// Latents [B, C, h, w], already divided by the scaling factor, to images [B, 3, H, W] around [-1, 1].
    pub fn decode(&self, z: &Tensor) -> Tensor {
        match &self.post_quant_conv {
            Some(conv) => self.decoder.forward(&conv.forward(z)),
            None => self.decoder.forward(z),
        }
    }

    /// What a posterior's latents are multiplied by for the diffusion model.
    pub fn scaling_factor(&self) -> f64 {
        self.config.scaling_factor
    }

    /// Height or width of the latents of an image with as many pixels.
    pub fn latent_size(&self, pixels: i64) -> i64 {
        pixels / i64::from(self.config.scale())
    }

    /// What the autoencoder was built from.
    pub fn config(&self) -> &VaeConfig {
        &self.config
    }
}

/// Renames what files of early diffusers releases, such as Stable Diffusion's, call otherwise.
fn with_new_names(tensors: BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
    const RENAMED: [(&str, &str); 4] = [
        (".attentions.0.query.", ".attentions.0.to_q."),
        (".attentions.0.key.", ".attentions.0.to_k."),
        (".attentions.0.value.", ".attentions.0.to_v."),
        (".attentions.0.proj_attn.", ".attentions.0.to_out.0."),
    ];
    let rename = |name: String| RENAMED.iter().fold(name, |name, (old, new)| name.replace(old, new));
    tensors.into_iter().map(|(name, tensor)| (rename(name), tensor)).collect()
}
