//! The denoising network: a UNet that sees a noisy latent, its timestep and a text, and predicts the noise.
//!
//! Rombach et al. 2022 (arXiv 2112.10752); names and numbers as in diffusers' `UNet2DConditionModel`.

use std::collections::BTreeMap;
use std::f64::consts::LN_10;
use std::path::Path;

use tch::{Device, Kind, Tensor};

use super::blocks::{DownBlock, MidBlock, UpBlock};
use super::checkpoint;
use super::config::ModelError;
use super::layers::{Conv2d, GroupNorm, Linear};
use super::tape::Tape;
use super::unet_config::UNetConfig;
use super::weights::{self, Scope, Weights};

/// A UNet with its parameters, in float32 on one device.
pub struct UNet {
    config: UNetConfig,
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
        UNet::load_parts(folder, None, None, device)
    }

    /// The same, with the tensors of the file `changed` in place of the checkpoint's.
    ///
    /// # Errors
    /// Also if `changed` holds a name or a shape that the model does not have.
    pub fn load_with(folder: &Path, changed: &Path, device: Device) -> Result<UNet, ModelError> {
        UNet::load_parts(folder, None, Some(changed), device)
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
    ) -> Result<UNet, ModelError> {
        let file = checkpoint::of(folder, checkpoint)?;
        let mut tensors = weights::read(&file, device)?;
        if let Some(changed) = changed {
            weights::replace(&mut tensors, weights::read(changed, device)?, changed)?;
        }
        UNet::new(&folder.join("config.json"), Weights::named(&file, tensors))
    }

    /// Builds the network that the configuration file describes out of `weights`.
    ///
    /// # Errors
    /// See [`UNet::load`].
    pub fn new(config_file: &Path, weights: Weights) -> Result<UNet, ModelError> {
        let config = UNetConfig::read(config_file)?;
        let (down, up) = config.blocks(config_file)?;
        let (tape, root) = (Tape::new(), weights.root());
        let common = config.common(&tape);
        let (finest, last) = (config.block_out_channels[0], down.len() - 1);
        let inputs = |blocks: &[super::unet_config::BlockConfig], first, i: usize| match i {
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
        Ok(UNet {
            config,
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
    /// B must be a multiple of K: row r sees text r / (B/K), so rows of one text stand together. Keys and values
    /// of the cross attention are computed for the K texts only. Returns [B, C, H, W].
    pub fn forward(&self, xt: &Tensor, timesteps: &Tensor, text: &Tensor) -> Tensor {
        assert!(xt.size()[0] % text.size()[0] == 0, "rows must be a multiple of texts");
        let time = self.embed(timesteps); // [B, E]
        let mut h = self.conv_in.forward(xt); // [B, C0, H, W]
        let mut skips = vec![h.shallow_clone()];
        for block in &self.down_blocks {
            h = block.forward(h, &time, text, &mut skips);
        }
        h = self.mid_block.forward(&h, &time, text);
        for block in &self.up_blocks {
            h = block.forward(h, &time, text, &mut skips);
        }
        self.conv_out.forward(&self.conv_norm_out.forward(&h).silu()) // [B, C, H, W]
    }

    /// Timesteps [B] to the time embedding [B, E], with the activation that every residual block applies to it.
    fn embed(&self, timesteps: &Tensor) -> Tensor {
        let [first, second] = &self.time_embedding;
        let waves = self.sinusoids(timesteps); // [B, C0]
        second.forward(&first.forward(&waves).silu()).silu()
    }

    /// Sines and cosines of the timestep at C0/2 frequencies from 1 down to 1/10000 (Ho et al. 2020).
    fn sinusoids(&self, timesteps: &Tensor) -> Tensor {
        let half = self.config.block_out_channels[0] / 2;
        let exponent = Tensor::arange(half, (Kind::Float, timesteps.device())) * (-4.0 * LN_10);
        let frequencies = (exponent / (half as f64 - self.config.freq_shift)).exp(); // [C0/2]
        let angles = timesteps.unsqueeze(1).to_kind(Kind::Float) * frequencies; // [B, C0/2]
        let (sin, cos) = (angles.sin(), angles.cos());
        Tensor::cat(&(if self.config.flip_sin_to_cos { [cos, sin] } else { [sin, cos] }), 1) // [B, C0]
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

    /// Where the parameters are.
    pub fn device(&self) -> Device {
        self.parameters.values().next().map_or(Device::Cpu, Tensor::device)
    }
}

fn time_embedding(scope: &Scope<'_>, inputs: i64, width: i64, tape: &Tape) -> [Linear; 2] {
    let linear = |name, inputs| Linear::new(&scope.sub(name), inputs, width, true, tape);
    [linear("linear_1", inputs), linear("linear_2", width)]
}
