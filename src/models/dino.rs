//! Vision transformers of DINO and DINOv2: from a picture to one vector, by whose cosine pictures are compared.
//!
//! Shapes: B pictures, S x S pixels in patches of P x P, D width. Source: Caron et al. 2021 (arXiv 2104.14294), Oquab et al. 2023 (arXiv
//! 2304.07193); names as in transformers' `ViTModel` and `Dinov2Model`. The vector is the class token after the last normalisation.

use std::path::Path;

use serde::Deserialize;
use tch::{Device, Tensor};

use super::layers::LayerNorm;
use super::tape::Tape;
use super::transformer::{self, Activation, Layer, LayerShape};
use super::vision::{self, PictureEncoder};
use super::weights::config::{self, ModelError, OptionGuard};
use super::weights::{self, Scope, Weights, checkpoint};
use crate::io::image::resize::{Filter, shorter_side};
use crate::io::image::{RgbImage, center_square};

/// Which of both families.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
enum Family {
    #[serde(rename = "vit")]
    Dino,
    #[serde(rename = "dinov2")]
    DinoV2,
}

/// What of the configuration the network depends on. Files have no key for what is transformers' default.
#[derive(Clone, Debug, Deserialize)]
struct DinoConfig {
    model_type: Family,
    #[serde(default = "of_base::<768>")]
    hidden_size: i64,
    #[serde(default = "of_base::<3072>")]
    intermediate_size: i64,
    /// Width inside the feed-forward part over that of a token, in place of `intermediate_size` for DINOv2.
    #[serde(default = "of_base::<4>")]
    mlp_ratio: i64,
    #[serde(default = "of_base::<12>")]
    num_hidden_layers: i64,
    #[serde(default = "of_base::<12>")]
    num_attention_heads: i64,
    #[serde(default = "of_base::<224>")]
    image_size: i64,
    #[serde(default = "of_base::<16>")]
    patch_size: i64,
    #[serde(default = "gelu")]
    hidden_act: Activation,
    layer_norm_eps: Option<f64>,
}

fn of_base<const VALUE: i64>() -> i64 {
    VALUE
}

fn gelu() -> Activation {
    Activation::Gelu
}

const GUARDS: &[OptionGuard] = &[
    OptionGuard("model_type", &["\"vit\"", "\"dinov2\""]),
    OptionGuard("num_channels", &["3"]),
    OptionGuard("qkv_bias", &["true"]),
    OptionGuard("use_swiglu_ffn", &["false"]),
];

impl DinoConfig {
    fn read(file: &Path) -> Result<Self, ModelError> {
        let config: Self = config::read(file, GUARDS)?;
        let Self { hidden_size, num_attention_heads, image_size, patch_size, .. } = config;
        vision::expect_sizes(file, num_attention_heads, hidden_size, patch_size, image_size)?;
        Ok(config)
    }

    fn shape(&self) -> LayerShape {
        let (inner, eps, names) = match self.model_type {
            Family::Dino => (self.intermediate_size, 1e-12, &transformer::VIT),
            Family::DinoV2 => (self.mlp_ratio * self.hidden_size, 1e-6, &transformer::DINO_V2),
        };
        LayerShape {
            width: self.hidden_size,
            inner,
            heads: self.num_attention_heads,
            activation: self.hidden_act,
            eps: self.layer_norm_eps.unwrap_or(eps),
            causal: false,
            names,
        }
    }
}

/// What is done with a picture before the network, by `preprocessor_config.json`.
#[derive(Debug, Default, Deserialize)]
struct Preprocessing {
    size: Option<Sides>,
    crop_size: Option<Sides>,
    image_mean: Option<[f32; 3]>,
    image_std: Option<[f32; 3]>,
    /// Pillow's number of a filter.
    resample: Option<u8>,
}

/// A length of sides, in one of three forms.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(untagged)]
enum Sides {
    Both(u32),
    Each { height: u32, width: u32 },
    Shortest { shortest_edge: u32 },
}

impl Sides {
    fn shorter(self) -> u32 {
        match self {
            Sides::Both(side) | Sides::Shortest { shortest_edge: side } => side,
            Sides::Each { height, width } => height.min(width),
        }
    }
}

/// How a picture becomes numbers.
struct Preparing {
    /// The shorter side is resized to `resized`, then the middle `cropped` x `cropped` is taken.
    resized: u32,
    cropped: u32,
    filter: Filter,
    /// Mean and standard deviation of each channel.
    statistics: [[f32; 3]; 2],
}

impl Preparing {
    /// By the file; without it as DINO's authors prepare pictures: resized to 256 and cropped to 224, or in this proportion.
    fn read(folder: &Path, image_size: i64) -> Result<Self, ModelError> {
        let file = folder.join("preprocessor_config.json");
        let found: Preprocessing =
            if file.is_file() { config::read(&file, &[])? } else { Preprocessing::default() };
        let own = image_size as u32;
        let cropped = found.crop_size.or(found.size).map_or(own, Sides::shorter);
        let resized = found.size.map_or(own * 256 / 224, Sides::shorter);
        let filter = found.resample.map_or(Ok(Filter::Bicubic), |number| vision::filter(&file, number))?;
        if cropped > resized {
            return Err(config::unsupported(
                &file,
                "crop_size",
                cropped,
                &format!("at most `size`, {resized}"),
            ));
        }
        let mean = found.image_mean.unwrap_or([0.485, 0.456, 0.406]);
        let std = found.image_std.unwrap_or([0.229, 0.224, 0.225]);
        Ok(Self { resized, cropped, filter, statistics: [mean, std] })
    }
}

/// Checks the files of a folder without reading its tensors.
///
/// # Errors
/// The configuration is missing or of another model, or there is no checkpoint.
pub fn check_folder(folder: &Path) -> Result<(), ModelError> {
    let config = DinoConfig::read(&folder.join("config.json"))?;
    Preparing::read(folder, config.image_size)?;
    checkpoint::find(folder).map(drop)
}

/// The vision transformer.
pub struct VisionTransformer {
    preparing: Preparing,
    class_token: Tensor,
    patch_weight: Tensor,
    patch_bias: Tensor,
    /// [1, 1 + patches, D], for pictures of the prepared size.
    positions: Tensor,
    layers: Vec<Layer>,
    norm: LayerNorm,
}

impl VisionTransformer {
    /// Reads `config.json`, `preprocessor_config.json` if it is there, and the checkpoint of a folder.
    ///
    /// # Errors
    /// A file can't be read, the configuration is of another model, or the tensors don't fit it.
    pub fn load(folder: &Path, device: Device) -> Result<Self, ModelError> {
        let config = DinoConfig::read(&folder.join("config.json"))?;
        let preparing = Preparing::read(folder, config.image_size)?;
        let checkpoint = checkpoint::find(folder)?;
        let tensors = weights::read(&checkpoint, device)?;
        // Of a whole classifier or of the model alone; what stands above the class token is not needed.
        let inner = |name: String| match name.strip_prefix("vit.").or(name.strip_prefix("dinov2.")) {
            Some(inner) => inner.to_owned(),
            None => name,
        };
        let needed = |name: &str| {
            ["embeddings.", "encoder.", "layernorm."].iter().any(|part| name.starts_with(part))
                && name != "embeddings.mask_token"
        };
        let tensors = tensors.into_iter().map(|(name, tensor)| (inner(name), tensor));
        let weights = Weights::named(&checkpoint, tensors.filter(|(name, _)| needed(name)).collect());
        let network = Self::new(&weights.root(), &config, preparing);
        weights.finish()?;
        Ok(network)
    }

    fn new(scope: &Scope<'_>, config: &DinoConfig, preparing: Preparing) -> Self {
        let (tape, shape) = (Tape::new(), config.shape());
        let (width, patch) = (config.hidden_size, config.patch_size);
        let (embeddings, layers) = (scope.sub("embeddings"), scope.sub("encoder.layer"));
        let patches = embeddings.sub("patch_embeddings.projection");
        let side = config.image_size / patch;
        let positions = embeddings.take("position_embeddings", &[1, 1 + side * side, width]);
        Self {
            class_token: embeddings.take("cls_token", &[1, 1, width]),
            patch_weight: patches.take("weight", &[width, 3, patch, patch]),
            patch_bias: patches.take("bias", &[width]),
            positions: resized_positions(&positions, side, i64::from(preparing.cropped) / patch),
            layers: (0..config.num_hidden_layers).map(|i| Layer::new(&layers.sub(i), shape, &tape)).collect(),
            norm: LayerNorm::new(&scope.sub("layernorm"), width, shape.eps, &tape),
            preparing,
        }
    }
}

impl PictureEncoder for VisionTransformer {
    fn prepare(&self, picture: &RgbImage) -> Tensor {
        let Preparing { resized, cropped, filter, statistics } = &self.preparing;
        let smaller = center_square(&shorter_side(picture, *resized, *filter));
        let (margin, side) = ((resized - cropped) / 2, *cropped);
        let square = ::image::imageops::crop_imm(&smaller, margin, margin, side, side).to_image();
        vision::normalised(&square, *statistics)
    }

    fn forward(&self, pictures: &Tensor) -> Tensor {
        let tokens = vision::tokens(pictures, &self.patch_weight, Some(&self.patch_bias), &self.class_token);
        let mut h = tokens + &self.positions; // [B, 1 + patches, D]
        for layer in &self.layers {
            h = layer.forward(&h);
        }
        self.norm.forward(&h.select(1, 0))
    }
}

/// Embeddings [1, 1 + from from, D] of a square of patches for one of `to` x `to`, as transformers interpolates them.
fn resized_positions(positions: &Tensor, from: i64, to: i64) -> Tensor {
    if from == to {
        return positions.shallow_clone();
    }
    let width = positions.size()[2];
    let (class, patches) = (positions.narrow(1, 0, 1), positions.narrow(1, 1, from * from));
    let square = patches.view([1, from, from, width]).permute([0, 3, 1, 2]);
    let square = square.upsample_bicubic2d([to, to], false, None, None);
    Tensor::cat(&[class, square.permute([0, 2, 3, 1]).reshape([1, to * to, width])], 1)
}
