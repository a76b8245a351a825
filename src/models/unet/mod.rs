//! The denoising network: a UNet that sees a noisy latent, its timestep and a text, and predicts the noise.
//!
//! Rombach et al. 2022 (arXiv 2112.10752); names and numbers as in diffusers' `UNet2DConditionModel`.

pub mod attention;
pub(crate) mod block_context;
pub mod blocks;
pub mod config;
pub mod resnet;

use std::collections::BTreeMap;
use std::f64::consts::LN_10;
use std::path::Path;

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::kernels::ConcatInput;
use super::layers::{Conv2d, GroupNorm, Linear};
use super::tape::Tape;
use super::weights::checkpoint;
use super::weights::config::ModelError;
use super::weights::{self, Scope, WeightLayout, Weights};
use attention::EncodedConditioning;
use block_context::CrossAttentionKv;
use blocks::{DownBlock, MidBlock, UpBlock};
use config::UNetConfig;

/// How a network's products are computed; parameters, sums, normalisations and losses are float32 in each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// In float32.
    #[default]
    Fp32,
    /// In float32 with factors rounded to 10 bits of mantissa, on GPUs that have it; elsewhere as `Fp32`.
    Tf32,
    /// Of bfloat16 factors, with activations in bfloat16 between them.
    Bf16,
}

/// What a network is built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelMode {
    /// Passes without a graph, with products in this precision.
    Inference(Precision),
    /// Passes with a graph, in float32.
    Gradients,
}

impl ModelMode {
    /// How products are computed.
    pub fn precision(self) -> Precision {
        match self {
            ModelMode::Inference(precision) => precision,
            ModelMode::Gradients => Precision::Fp32,
        }
    }

    /// The form of the weights for it on a device.
    fn form(self, device: Device) -> WeightLayout {
        WeightLayout {
            // The fused kernels want the channels together. With a graph they have no part, and of cuDNN's kernels for
            // float32, those for channels that lie apart are the faster ones.
            channels_last: self != ModelMode::Gradients || device == Device::Cpu,
            products: (self.precision() == Precision::Bf16).then_some(Kind::BFloat16),
        }
    }
}

/// A UNet with its parameters, in float32 on one device.
pub struct UNet {
    config: UNetConfig,
    precision: Precision,
    channels_last: bool,
    text_maps: Vec<CrossAttentionKv>,
    parameters: BTreeMap<String, Tensor>,
    tape: Tape,
    conv_in: Conv2d,
    time_embedding: [Linear; 2],
    down_blocks: Vec<DownBlock>,
    mid_block: MidBlock,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl UNet {
    /// Reads `config.json` and the checkpoint from a folder in the diffusers layout.
    ///
    /// # Errors
    /// A file can't be read, the configuration asks for what is not supported, or the tensors don't fit it.
    pub fn load(folder: &Path, device: Device) -> Result<UNet, ModelError> {
        UNet::load_parts(folder, None, None, device, ModelMode::Inference(Precision::Fp32))
    }

    /// The same, with the tensors of the file `changed` in place of the checkpoint's.
    ///
    /// # Errors
    /// Also if `changed` holds a name or a shape that the model does not have.
    pub fn load_with(folder: &Path, changed: &Path, device: Device) -> Result<UNet, ModelError> {
        UNet::load_parts(folder, None, Some(changed), device, ModelMode::Inference(Precision::Fp32))
    }

    /// Reads `config.json` from a folder, the tensors from `checkpoint`, by default the folder's own, and puts
    /// those of the file `changed` in their place.
    ///
    /// # Errors
    /// As [`UNet::load`] and [`UNet::load_with`].
    pub fn load_parts(
        folder: &Path,
        checkpoint: Option<&Path>,
        changed: Option<&Path>,
        device: Device,
        purpose: ModelMode,
    ) -> Result<UNet, ModelError> {
        let file = checkpoint::of(folder, checkpoint)?;
        let mut tensors = weights::read(&file, device)?;
        if let Some(changed) = changed {
            weights::replace(&mut tensors, weights::read(changed, device)?, changed)?;
        }
        UNet::build(&folder.join("config.json"), Weights::named(&file, tensors), device, purpose)
    }

    /// Builds the network that the configuration file describes out of `weights`.
    ///
    /// # Errors
    /// See [`UNet::load`].
    pub fn new(config_file: &Path, weights: Weights) -> Result<UNet, ModelError> {
        UNet::build(config_file, weights, Device::Cpu, ModelMode::Inference(Precision::Fp32))
    }

    /// The same for weights on `device` and a purpose.
    ///
    /// # Errors
    /// See [`UNet::load`].
    pub fn build(
        config_file: &Path,
        weights: Weights,
        device: Device,
        purpose: ModelMode,
    ) -> Result<UNet, ModelError> {
        let form = purpose.form(device);
        let weights = weights.in_form(form);
        let config = UNetConfig::read(config_file)?;
        let (down, up) = config.blocks(config_file)?;
        let (tape, root) = (Tape::new(), weights.root());
        let common = config.common(&tape);
        let (finest, last) = (config.block_out_channels[0], down.len() - 1);
        let inputs = |blocks: &[config::BlockConfig], first, i: usize| match i {
            0 => first,
            _ => blocks[i - 1].channels,
        };

        let conv = |name, inputs, outputs| Conv2d::new(&root.sub(name), inputs, outputs, 3, &tape).padding(1);
        let conv_in = conv("conv_in", config.in_channels, finest);
        let time_embedding = time_embedding(&root.sub("time_embedding"), finest, common.time_width, &tape);
        let down_block = |i: usize| {
            let scope = root.sub("down_blocks").sub(i);
            DownBlock::new(&scope, inputs(&down, finest, i), i == last, &down[i], &common)
        };
        let down_blocks = (0..down.len()).map(down_block).collect();
        let mid_block = MidBlock::new(&root.sub("mid_block"), &down[last], &common);
        let up_block = |i: usize| {
            let (scope, finer) = (root.sub("up_blocks").sub(i), up[(i + 1).min(last)].channels);
            UpBlock::new(&scope, inputs(&up, up[0].channels, i), finer, i == last, &up[i], &common)
        };
        let up_blocks = (0..up.len()).map(up_block).collect();
        let norm_out = root.sub("conv_norm_out");
        let conv_norm_out = GroupNorm::new(&norm_out, common.groups, finest, common.norm_eps, &tape);
        let conv_out = conv("conv_out", finest, config.out_channels);

        let parameters = weights.finish()?;
        let text_maps = common.text_maps.into_inner();
        Ok(UNet {
            config,
            precision: purpose.precision(),
            channels_last: form.channels_last,
            text_maps,
            parameters,
            tape,
            conv_in,
            time_embedding,
            down_blocks,
            mid_block,
            up_blocks,
            conv_norm_out,
            conv_out,
        })
    }

    /// Predicts the noise in `xt` [B, C, H, W] at `timesteps` [B] (int64), given texts [K, L, D].
    ///
    /// See [`UNet::denoise`], which takes texts that are encoded already.
    pub fn forward(&self, xt: &Tensor, timesteps: &Tensor, text: &Tensor) -> Tensor {
        self.denoise(xt, timesteps, &self.encode(text))
    }

    /// Computes the keys and values of texts [K, L, D] for all cross attentions: they depend on nothing else.
    pub fn encode(&self, text: &Tensor) -> EncodedConditioning {
        EncodedConditioning::new(&self.text_maps, text, self.kind())
    }

    /// Predicts the noise in `xt` [B, C, H, W] at `timesteps` [T] (int64), given K texts.
    ///
    /// B must be a multiple of K and of T: row r sees text r / (B/K), so rows of one text stand together, at timestep
    /// r % T. Returns [B, C, H, W] in float32.
    pub fn denoise(&self, xt: &Tensor, timesteps: &Tensor, texts: &EncodedConditioning) -> Tensor {
        let rows = xt.size()[0];
        assert!(rows % texts.count() == 0, "rows must be a multiple of texts");
        assert!(rows % timesteps.size()[0] == 0, "rows must be a multiple of timesteps");
        let time = self.embed(timesteps); // [T, E]
        let mut h = self.conv_in.forward(&self.to_memory_format(&xt.to_kind(self.kind()))); // [B, C0, H, W]
        let mut skips = vec![h.shallow_clone()];
        for block in &self.down_blocks {
            h = block.forward(h, &time, texts, &mut skips);
        }
        h = self.mid_block.forward(&h, &time, texts);
        for block in &self.up_blocks {
            h = block.forward(h, &time, texts, &mut skips);
        }
        let h = self.conv_norm_out.silu(&ConcatInput { first: &h, second: None }, None);
        self.conv_out.forward(&h).to_kind(Kind::Float) // [B, C, H, W]
    }

    /// Images [B, C, H, W] as the network works on them.
    fn to_memory_format(&self, x: &Tensor) -> Tensor {
        if self.channels_last {
            x.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
        } else {
            x.contiguous()
        }
    }

    /// Timesteps [T] to the time embedding [T, E], with the activation that every residual block applies to it.
    fn embed(&self, timesteps: &Tensor) -> Tensor {
        let [first, second] = &self.time_embedding;
        let waves = self.sinusoids(timesteps); // [T, C0]
        second.forward(&first.forward(&waves).silu()).silu()
    }

    /// Sines and cosines of the timestep at C0/2 frequencies from 1 down to 1/10000 (Ho et al. 2020).
    fn sinusoids(&self, timesteps: &Tensor) -> Tensor {
        let half = self.config.block_out_channels[0] / 2;
        let exponent = Tensor::arange(half, (Kind::Float, timesteps.device())) * (-4.0 * LN_10);
        let frequencies = (exponent / (half as f64 - self.config.freq_shift)).exp(); // [C0/2]
        let angles = timesteps.unsqueeze(1).to_kind(Kind::Float) * frequencies; // [T, C0/2]
        let (sin, cos) = (angles.sin(), angles.cos());
        Tensor::cat(&(if self.config.flip_sin_to_cos { [cos, sin] } else { [sin, cos] }), 1) // [T, C0]
    }

    /// The configuration as read.
    pub fn config(&self) -> &UNetConfig {
        &self.config
    }

    /// All parameters by their names in the checkpoint.
    pub fn parameters(&self) -> &BTreeMap<String, Tensor> {
        &self.parameters
    }

    /// The tape that the layers report to.
    pub fn tape(&self) -> &Tape {
        &self.tape
    }

    /// How products are computed.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// The type of activations.
    fn kind(&self) -> Kind {
        if self.precision == Precision::Bf16 { Kind::BFloat16 } else { Kind::Float }
    }

    /// Where the parameters are.
    pub fn device(&self) -> Device {
        self.parameters.values().next().map_or(Device::Cpu, Tensor::device)
    }
}

fn time_embedding(scope: &Scope<'_>, inputs: i64, width: i64, tape: &Tape) -> [Linear; 2] {
    let linear = |name, inputs| Linear::full_precision(&scope.sub(name), inputs, width, true, tape);
    [linear("linear_1", inputs), linear("linear_2", width)]
}
