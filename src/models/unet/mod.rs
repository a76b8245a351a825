//! The denoising network: a UNet that sees a noisy latent, its timestep and a text, and predicts the noise.
//!
//! Rombach et al. 2022 (arXiv 2112.10752); names and numbers as in diffusers' `UNet2DConditionModel`.

pub mod attention;
pub(crate) mod block_context;
pub mod blocks;
pub mod conditioning;
pub mod config;
pub mod resnet;
pub mod text_rows;
pub mod time_embedding;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use attrflow_engine::choice;

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::kernels::{ConcatInput, channels_last};
use super::layers::{Conv2d, GroupNorm};
use super::lora::{self, Adapters};
use super::tape::Tape;
use super::weights::checkpoint;
use super::weights::config::ModelError;
use super::weights::{self, WeightLayout, Weights};
use crate::io::lora::Network;
use crate::io::tensor_file::TensorFile;
use blocks::{DownBlock, MidBlock, UpBlock};
use conditioning::{AddEmbedding, Conditioning, CrossAttentionKv, EncodedConditioning};
use config::UNetConfig;
use time_embedding::{TimestepEmbedding, Timesteps};

choice! {
    /// The precision of matrix products; parameters, sums, normalisations and losses are always float32.
    pub enum Precision {
        /// In float32.
        Fp32 = "fp32",
        /// TF32 on GPUs that have it (factors rounded to 10 bits of mantissa); elsewhere as `Fp32`.
        Tf32 = "tf32",
        /// bfloat16, also for activations.
        Bf16 = "bf16",
    }
}

impl Precision {
    /// What speaks against gradients in it.
    pub fn of_gradients(self) -> Option<String> {
        let message = "`precision` is \"bf16\", expected \"fp32\" or \"tf32\": of sums of small gradients, bfloat16 would lose most";
        (self == Precision::Bf16).then(|| message.to_owned())
    }
}

/// What a network is built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelMode {
    /// Passes without a graph, with products in this precision.
    Inference(Precision),
    /// Passes with a graph, with products in this precision: float32 or TF32.
    Gradients(Precision),
}

impl ModelMode {
    /// How products are computed.
    pub fn precision(self) -> Precision {
        match self {
            ModelMode::Inference(precision) | ModelMode::Gradients(precision) => precision,
        }
    }

    /// The layout of the weights for it on a device.
    fn layout(self, device: Device) -> WeightLayout {
        WeightLayout {
            // The fused kernels need channels-last memory. With a graph they are not used, and cuDNN's kernels for
            // float32 are faster on contiguous channels.
            channels_last: !matches!(self, ModelMode::Gradients(_)) || device == Device::Cpu,
            products: (self.precision() == Precision::Bf16).then_some(Kind::BFloat16),
        }
    }
}

/// The files that make a network.
#[derive(Clone, Copy)]
pub struct UNetFiles<'a> {
    /// The folder with `config.json`.
    pub folder: &'a Path,
    /// The weights, if they are not in the folder.
    pub checkpoint: Option<&'a Path>,
    /// Low-rank adapters, and how the network holds them.
    pub lora: Option<(&'a Path, Adapters)>,
    /// Tensors to put in the place of those of the same names.
    pub changed: Option<&'a Path>,
}

impl<'a> UNetFiles<'a> {
    /// Those in a folder in the diffusers layout.
    pub fn new(folder: &'a Path) -> UNetFiles<'a> {
        UNetFiles { folder, checkpoint: None, lora: None, changed: None }
    }

    /// The checkpoint, its tensors in float32 as they are to be used, and the factor of each layer's adapter.
    ///
    /// # Errors
    /// As [`UNet::load_files`], but for what the network's configuration says.
    pub fn read(&self, device: Device) -> Result<NamedTensors, ModelError> {
        let &UNetFiles { folder, checkpoint, lora, changed } = self;
        let file = checkpoint::of(folder, checkpoint)?;
        let mut tensors = weights::read(&file, device)?;
        let mut changes = changed.map_or(Ok(BTreeMap::new()), |changed| weights::read(changed, device))?;
        let mut scales = BTreeMap::new();
        if let Some((path, adapters)) = lora {
            let mut lora = lora::read(path, Network::Unet, TensorFile::open(&file)?.headers(), device)?;
            if let Some(changed) = changed {
                lora.replace(&mut changes, changed)?;
            }
            match adapters {
                Adapters::Merged => lora.merge(&mut tensors),
                Adapters::Layers => scales = lora.keep(&mut tensors),
            }
        }
        if let Some(changed) = changed {
            weights::replace(&mut tensors, changes, changed)?;
        }
        Ok((file, tensors, scales))
    }
}

/// A checkpoint, its tensors by name, and the factor of each layer's adapter.
type NamedTensors = (PathBuf, BTreeMap<String, Tensor>, BTreeMap<String, f64>);

/// A UNet with its parameters, in float32 on one device.
pub struct UNet {
    config: UNetConfig,
    precision: Precision,
    channels_last: bool,
    cross_attention_kv: Vec<CrossAttentionKv>,
    parameters: BTreeMap<String, Tensor>,
    tape: Tape,
    conv_in: Conv2d,
    time_proj: Timesteps,
    time_embedding: TimestepEmbedding,
    add_embedding: Option<AddEmbedding>,
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
        UNet::load_files(&UNetFiles::new(folder), device, ModelMode::Inference(Precision::Fp32))
    }

    /// The same, from files in several places.
    ///
    /// # Errors
    /// Also if the LoRA does not fit the network, or `changed` holds a name or a shape that neither has.
    pub fn load_files(files: &UNetFiles<'_>, device: Device, mode: ModelMode) -> Result<UNet, ModelError> {
        let (file, tensors, adapters) = files.read(device)?;
        let weights = Weights::named(&file, tensors).with_adapters(adapters);
        UNet::build(&files.folder.join("config.json"), weights, device, mode)
    }

    /// Builds the network that the configuration file describes out of `weights`.
    ///
    /// # Errors
    /// See [`UNet::load`].
    pub fn new(config_file: &Path, weights: Weights) -> Result<UNet, ModelError> {
        UNet::build(config_file, weights, Device::Cpu, ModelMode::Inference(Precision::Fp32))
    }

    /// The same for weights on `device` in a mode.
    ///
    /// # Errors
    /// See [`UNet::load`].
    pub fn build(
        config_file: &Path,
        weights: Weights,
        device: Device,
        mode: ModelMode,
    ) -> Result<UNet, ModelError> {
        let layout = mode.layout(device);
        let weights = weights.with_layout(layout);
        let config = UNetConfig::read(config_file)?;
        let (down, up) = config.blocks(config_file)?;
        let addition = config.addition(config_file)?;
        let (tape, root) = (Tape::new(), weights.root());
        let context = config.block_context(&tape);
        let (finest, last) = (config.block_out_channels[0], down.len() - 1);
        let inputs = |blocks: &[config::BlockConfig], first, i: usize| match i {
            0 => first,
            _ => blocks[i - 1].channels,
        };

        let conv = |name, inputs, outputs| Conv2d::new(&root.sub(name), inputs, outputs, 3, &tape).padding(1);
        let conv_in = conv("conv_in", config.in_channels, finest);
        let embedding =
            |name, inputs| TimestepEmbedding::new(&root.sub(name), inputs, context.time_width, &tape);
        let UNetConfig { flip_sin_to_cos, freq_shift, .. } = config;
        let timesteps = |width| Timesteps { width, flip_sin_to_cos, freq_shift };
        let time_embedding = embedding("time_embedding", finest);
        let add_embedding = addition.map(|[width, inputs]| AddEmbedding {
            size_proj: timesteps(width),
            embedding: embedding("add_embedding", inputs),
        });
        let down_block = |i: usize| {
            let scope = root.sub("down_blocks").sub(i);
            DownBlock::new(&scope, inputs(&down, finest, i), i == last, &down[i], &context)
        };
        let down_blocks = (0..down.len()).map(down_block).collect();
        let mid_block = MidBlock::new(&root.sub("mid_block"), &down[last], &context);
        let up_block = |i: usize| {
            let (scope, finer) = (root.sub("up_blocks").sub(i), up[(i + 1).min(last)].channels);
            UpBlock::new(&scope, inputs(&up, up[0].channels, i), finer, i == last, &up[i], &context)
        };
        let up_blocks = (0..up.len()).map(up_block).collect();
        let norm_out = root.sub("conv_norm_out");
        let conv_norm_out = GroupNorm::new(&norm_out, context.groups, finest, context.norm_eps, &tape);
        let conv_out = conv("conv_out", finest, config.out_channels);

        let parameters = weights.finish()?;
        let cross_attention_kv = context.cross_attention_kv.into_inner();
        Ok(UNet {
            config,
            precision: mode.precision(),
            channels_last: layout.channels_last,
            cross_attention_kv,
            parameters,
            tape,
            conv_in,
            time_proj: timesteps(finest),
            time_embedding,
            add_embedding,
            down_blocks,
            mid_block,
            up_blocks,
            conv_norm_out,
            conv_out,
        })
    }

    /// The conditions that arrays keep as rows [K, L, D], see [`text_rows`].
    pub fn conditioning(&self, rows: Tensor) -> Conditioning {
        match self.config.pooled_width() {
            Some(pooled) => text_rows::split(&rows, pooled),
            None => rows.into(),
        }
    }

    /// Predicts the noise in `xt` [B, C, H, W] at `timesteps` [B] (int64), given K conditions.
    ///
    /// See [`UNet::denoise`], which takes conditions that are encoded already.
    pub fn forward(&self, xt: &Tensor, timesteps: &Tensor, conditioning: &Conditioning) -> Tensor {
        self.denoise(xt, timesteps, &self.encode(conditioning))
    }

    /// Computes what all timesteps share: keys and values for the cross attentions, and what is added to the time embedding.
    ///
    /// # Panics
    /// The network takes pooled texts and sizes, and there are none.
    pub fn encode(&self, conditioning: &Conditioning) -> EncodedConditioning {
        let (maps, add_embedding) = (&self.cross_attention_kv, self.add_embedding.as_ref());
        EncodedConditioning::new(maps, add_embedding, conditioning, self.kind())
    }

    /// Predicts the noise in `xt` [B, C, H, W] at `timesteps` [T] (int64), given K conditions.
    ///
    /// B must be a multiple of K and of T: row r has condition r / (B/K), so rows of one condition follow each other, and
    /// timestep r % T. Returns [B, C, H, W] in float32.
    pub fn denoise(&self, xt: &Tensor, timesteps: &Tensor, conditioning: &EncodedConditioning) -> Tensor {
        let rows = xt.size()[0];
        assert!(rows % conditioning.count() == 0, "rows must be a multiple of conditions");
        assert!(rows % timesteps.size()[0] == 0, "rows must be a multiple of timesteps");
        let time = self.embed(timesteps, rows, conditioning); // [T or B, E]
        let mut h = self.conv_in.forward(&self.to_memory_format(&xt.to_kind(self.kind()))); // [B, C0, H, W]
        let mut skips = vec![h.shallow_clone()];
        for block in &self.down_blocks {
            h = block.forward(h, &time, conditioning, &mut skips);
        }
        h = self.mid_block.forward(&h, &time, conditioning);
        for block in &self.up_blocks {
            h = block.forward(h, &time, conditioning, &mut skips);
        }
        let h = self.conv_norm_out.silu(&ConcatInput { first: &h, second: None }, None);
        self.conv_out.forward(&h).to_kind(Kind::Float) // [B, C, H, W]
    }

    /// Images [B, C, H, W] as the network works on them.
    fn to_memory_format(&self, x: &Tensor) -> Tensor {
        if self.channels_last { channels_last(x) } else { x.contiguous() }
    }

    /// Timesteps [T] to the time embedding [T, E], with the activation that every residual block applies to it.
    ///
    /// Where a condition adds to it, it is [B, E]: each of the B rows has its own.
    fn embed(&self, timesteps: &Tensor, rows: i64, conditioning: &EncodedConditioning) -> Tensor {
        let time = self.time_embedding.forward(&self.time_proj.forward(timesteps)); // [T, E]
        let Some(added) = conditioning.added() else { return time.silu() };
        let repeated = time.repeat([rows / timesteps.size()[0], 1]);
        (repeated + added.repeat_interleave_self_int(rows / conditioning.count(), 0, None)).silu()
    }

    /// The configuration as read.
    pub fn config(&self) -> &UNetConfig {
        &self.config
    }

    /// All parameters by their names in the checkpoint, to be read: [`UNet::update`] changes one.
    pub fn parameters(&self) -> &BTreeMap<String, Tensor> {
        &self.parameters
    }

    /// Sets a parameter, and invalidates everything that layers derived from it.
    ///
    /// # Panics
    /// No parameter has this name and shape, or the network computes in bfloat16, of copies of its parameters.
    pub fn update(&mut self, name: &str, values: &Tensor) {
        assert!(self.precision != Precision::Bf16, "a network in bfloat16 cannot be updated");
        let parameter = self.parameters.get_mut(name).unwrap_or_else(|| panic!("no parameter `{name}`"));
        assert_eq!(parameter.size(), values.size(), "`{name}` has another shape");
        tch::no_grad(|| parameter.copy_(values));
        self.tape.parameters_changed();
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
