//! The UNet's `config.json`, with diffusers' names and defaults.

use std::path::Path;

use serde::Deserialize;

use super::block_context::BlockContext;
use super::text_rows::SIZES;
use crate::models::tape::Tape;
use crate::models::weights::config::{self, ModelError, OptionGuard, PerBlock, unsupported};

/// What `UNet2DConditionModel` could compute but this crate does not.
const GUARDS: &[OptionGuard] = &[
    OptionGuard("_class_name", &["\"UNet2DConditionModel\""]),
    // Keys of transformers (DiT, PixArt, SD3, Flux), whatever the class.
    OptionGuard("caption_channels", &["null"]),
    OptionGuard("joint_attention_dim", &["null"]),
    OptionGuard("num_layers", &["null"]),
    OptionGuard("patch_size", &["null"]),
    OptionGuard("pooled_projection_dim", &["null"]),
    OptionGuard("pos_embed_max_size", &["null"]),
    OptionGuard("act_fn", &["\"silu\"", "\"swish\""]),
    OptionGuard("addition_embed_type", &["null", "\"text_time\""]),
    OptionGuard("attention_type", &["\"default\""]),
    OptionGuard("center_input_sample", &["false"]),
    OptionGuard("class_embed_type", &["null"]),
    OptionGuard("class_embeddings_concat", &["false"]),
    OptionGuard("conv_in_kernel", &["3"]),
    OptionGuard("conv_out_kernel", &["3"]),
    OptionGuard("cross_attention_norm", &["null"]),
    OptionGuard("dropout", &["0"]),
    OptionGuard("dual_cross_attention", &["false"]),
    OptionGuard("encoder_hid_dim", &["null"]),
    OptionGuard("encoder_hid_dim_type", &["null"]),
    OptionGuard("mid_block_only_cross_attention", &["null", "false"]),
    OptionGuard("mid_block_scale_factor", &["1"]),
    OptionGuard("mid_block_type", &["\"UNetMidBlock2DCrossAttn\""]),
    OptionGuard("num_attention_heads", &["null"]),
    OptionGuard("num_class_embeds", &["null"]),
    OptionGuard("only_cross_attention", &["false"]),
    OptionGuard("resnet_out_scale_factor", &["1"]),
    OptionGuard("resnet_skip_time_act", &["false"]),
    OptionGuard("resnet_time_scale_shift", &["\"default\""]),
    OptionGuard("reverse_transformer_layers_per_block", &["null"]),
    OptionGuard("time_cond_proj_dim", &["null"]),
    OptionGuard("time_embedding_act_fn", &["null"]),
    OptionGuard("time_embedding_dim", &["null"]),
    OptionGuard("time_embedding_type", &["\"positional\""]),
    OptionGuard("timestep_post_act", &["null"]),
    // It asks for attention in float32, where everything is computed here.
    OptionGuard("upcast_attention", &["null", "false", "true"]),
];

/// The keys of `unet/config.json` that shape the network.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "named and documented by diffusers' UNet2DConditionModel")]
pub struct UNetConfig {
    pub sample_size: Option<PerBlock>,
    pub in_channels: i64,
    pub out_channels: i64,
    pub flip_sin_to_cos: bool,
    pub freq_shift: f64,
    pub down_block_types: Vec<String>,
    pub up_block_types: Vec<String>,
    pub block_out_channels: Vec<i64>,
    pub layers_per_block: PerBlock,
    pub transformer_layers_per_block: PerBlock,
    /// The *number* of heads: a naming mistake that diffusers keeps, since 40,000 checkpoints have it.
    pub attention_head_dim: PerBlock,
    pub cross_attention_dim: i64,
    pub downsample_padding: i64,
    pub norm_num_groups: i64,
    pub norm_eps: f64,
    pub use_linear_projection: bool,
    pub addition_embed_type: Option<String>,
    pub addition_time_embed_dim: Option<i64>,
    pub projection_class_embeddings_input_dim: Option<i64>,
}

impl Default for UNetConfig {
    fn default() -> UNetConfig {
        let names = |names: [&str; 4]| names.map(str::to_owned).to_vec();
        let (down, up) = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D");
        UNetConfig {
            sample_size: None,
            in_channels: 4,
            out_channels: 4,
            flip_sin_to_cos: true,
            freq_shift: 0.0,
            down_block_types: names([down, down, down, "DownBlock2D"]),
            up_block_types: names(["UpBlock2D", up, up, up]),
            block_out_channels: vec![320, 640, 1280, 1280],
            layers_per_block: PerBlock::One(2),
            transformer_layers_per_block: PerBlock::One(1),
            attention_head_dim: PerBlock::One(8),
            cross_attention_dim: 1280,
            downsample_padding: 1,
            norm_num_groups: 32,
            norm_eps: 1e-5,
            use_linear_projection: false,
            addition_embed_type: None,
            addition_time_embed_dim: None,
            projection_class_embeddings_input_dim: None,
        }
    }
}

impl UNetConfig {
    /// Reads and checks a `config.json`.
    ///
    /// # Errors
    /// The file can't be read, or holds a value that this network doesn't support.
    pub fn read(file: &Path) -> Result<UNetConfig, ModelError> {
        let config: UNetConfig = config::read(file, GUARDS)?;
        let channels = ("block_out_channels", config.block_out_channels.as_slice());
        config::expect_divides(file, ("norm_num_groups", config.norm_num_groups), channels)?;
        config.addition(file)?;
        Ok(config)
    }

    /// The shape [C, H, W] of a latent, if the configuration gives the size.
    pub fn latent_shape(&self) -> Option<[i64; 3]> {
        match self.sample_size.as_ref()?.of(2)?.as_slice() {
            [height, width] => Some([self.in_channels, *height, *width]),
            _ => None,
        }
    }

    /// Whether the network is given pooled texts and sizes beside the texts, as SDXL's.
    pub fn takes_pooled(&self) -> bool {
        self.addition_embed_type.is_some()
    }

    /// How many numbers the pooled text has that the network takes, if it takes one: all that `add_embedding` takes but six sizes.
    pub fn pooled_width(&self) -> Option<i64> {
        let (sinusoids, all) = (self.addition_time_embed_dim?, self.projection_class_embeddings_input_dim?);
        self.takes_pooled().then_some(all - SIZES as i64 * sinusoids)
    }

    /// For a network that takes pooled texts and sizes: the width of a size's sinusoids, and of all that `add_embedding` takes.
    pub(super) fn addition(&self, file: &Path) -> Result<Option<[i64; 2]>, ModelError> {
        let positive = |key: &str, found: Option<i64>| {
            found.filter(|&width| width > 0).ok_or_else(|| {
                let found = found.map_or("null".to_owned(), |found| found.to_string());
                unsupported(file, key, found, "a positive number with addition_embed_type \"text_time\"")
            })
        };
        let widths = || {
            let sinusoids = positive("addition_time_embed_dim", self.addition_time_embed_dim)?;
            let key = "projection_class_embeddings_input_dim";
            let all = positive(key, self.projection_class_embeddings_input_dim)?;
            let sizes = SIZES as i64 * sinusoids;
            if all <= sizes {
                let more = format!("more than {sizes}, {SIZES} sizes of {sinusoids} numbers each");
                return Err(unsupported(file, key, all, &more));
            }
            Ok([sinusoids, all])
        };
        self.takes_pooled().then(widths).transpose()
    }

    /// What all blocks share.
    pub(super) fn block_context(&self, tape: &Tape) -> BlockContext {
        BlockContext {
            tape: tape.clone(),
            cross_attention_kv: Default::default(),
            groups: self.norm_num_groups,
            norm_eps: self.norm_eps,
            time_width: 4 * self.block_out_channels[0],
            text_width: self.cross_attention_dim,
            linear_projection: self.use_linear_projection,
            downsample_padding: self.downsample_padding,
        }
    }

    /// The down blocks and the up blocks, each in the order of computation. Errors name `file`.
    pub(super) fn blocks(&self, file: &Path) -> Result<(Vec<BlockConfig>, Vec<BlockConfig>), ModelError> {
        let channels = &self.block_out_channels;
        let count = channels.len();
        let each = |key: &str, values: &PerBlock| {
            values.of(count).filter(|values| values.iter().all(|&value| value > 0)).ok_or_else(|| {
                let one_each =
                    format!("a positive number, or {count} of them (one for each of block_out_channels)");
                unsupported(file, key, values, &one_each)
            })
        };
        let layers = each("layers_per_block", &self.layers_per_block)?;
        let heads = each("attention_head_dim", &self.attention_head_dim)?;
        let transformer_layers = each("transformer_layers_per_block", &self.transformer_layers_per_block)?;
        let down_types = attends(file, "down_block_types", &self.down_block_types, count)?;
        let mut up_types = attends(file, "up_block_types", &self.up_block_types, count)?;
        up_types.reverse(); // now finest first, as all the other lists

        self.check_divisors(file, &heads)?;
        let block = |i: usize, cross_attention| BlockConfig {
            channels: channels[i],
            layers: layers[i],
            heads: heads[i],
            transformer_layers: transformer_layers[i],
            cross_attention,
        };
        let down = (0..count).map(|i| block(i, down_types[i])).collect();
        let up = (0..count).rev().map(|i| block(i, up_types[i])).collect();
        Ok((down, up))
    }

    /// Heads and groups must divide the channels, or the widths inside would not add up.
    fn check_divisors(&self, file: &Path, heads: &[i64]) -> Result<(), ModelError> {
        let groups = self.norm_num_groups;
        if self.block_out_channels.is_empty() {
            return Err(unsupported(file, "block_out_channels", "empty", "one number a block"));
        }
        for (&channels, &heads) in self.block_out_channels.iter().zip(heads) {
            if channels <= 0 || channels % heads != 0 {
                let divisor = format!("a divisor of the block's {channels} channels");
                return Err(unsupported(file, "attention_head_dim", heads, &divisor));
            }
            if groups <= 0 || channels % groups != 0 {
                let divisor = format!("a divisor of the block's {channels} channels");
                return Err(unsupported(file, "norm_num_groups", groups, &divisor));
            }
        }
        Ok(())
    }
}

/// For each block type whether it attends to the text.
fn attends(file: &Path, key: &str, types: &[String], count: usize) -> Result<Vec<bool>, ModelError> {
    let (plain, cross) = match key {
        "down_block_types" => ("DownBlock2D", "CrossAttnDownBlock2D"),
        _ => ("UpBlock2D", "CrossAttnUpBlock2D"),
    };
    if types.len() != count {
        let wanted = format!("{count}, as many as block_out_channels");
        return Err(unsupported(file, key, format!("a list of {}", types.len()), &wanted));
    }
    let attends = |name: &String| match name.as_str() {
        name if name == plain => Ok(false),
        name if name == cross => Ok(true),
        _ => Err(unsupported(file, key, name, &format!("{plain}, {cross}"))),
    };
    types.iter().map(attends).collect()
}

/// What a block has of its own.
#[derive(Clone, Copy)]
pub struct BlockConfig {
    /// Channels that come out.
    pub channels: i64,
    /// Residual blocks on the way down; one more on the way up.
    pub layers: i64,
    /// Attention heads.
    pub heads: i64,
    /// Transformer blocks after each residual block.
    pub transformer_layers: i64,
    /// Whether there are transformers at all.
    pub cross_attention: bool,
}
