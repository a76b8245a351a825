//! CLIP's image encoder: from a picture to one vector, by whose cosine pictures are compared.
//!
//! Shapes: B pictures, S x S pixels in patches of P x P, D width, E width of the result. Source: Radford et al. 2021
//! (arXiv 2103.00020), section 2.4; names as in transformers' `CLIPVisionModelWithProjection`.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value as Json;
use tch::{Device, Tensor};

use super::text::default_eps;
use crate::io::image::resize::{Filter, shorter_side};
use crate::io::image::{RgbImage, center_square};
use crate::models::layers::{Embedding, LayerNorm, Linear};
use crate::models::tape::Tape;
use crate::models::transformer::{self, Activation, Layer, LayerShape};
use crate::models::vision::{self, PictureEncoder};
use crate::models::weights::config::{self, ModelError, OptionGuard};
use crate::models::weights::{self, Scope, Weights, checkpoint};

/// What of the configuration the encoder depends on. Files have no key for what is transformers' default.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct VisionConfig {
    hidden_size: i64,
    intermediate_size: i64,
    num_hidden_layers: i64,
    num_attention_heads: i64,
    projection_dim: i64,
    image_size: i64,
    patch_size: i64,
    hidden_act: Activation,
    layer_norm_eps: f64,
}

impl Default for VisionConfig {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            projection_dim: 512,
            image_size: 224,
            patch_size: 32,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: default_eps(),
        }
    }
}

/// A folder of both encoders, as OpenAI's are published.
#[derive(Deserialize)]
struct Both {
    vision_config: VisionConfig,
    #[serde(default = "default_projection")]
    projection_dim: i64,
}

fn default_projection() -> i64 {
    VisionConfig::default().projection_dim
}

const GUARDS: &[OptionGuard] = &[OptionGuard("model_type", &["\"clip\"", "\"clip_vision_model\""])];

impl VisionConfig {
    fn read(file: &Path) -> Result<Self, ModelError> {
        let whole: Json = config::read(file, GUARDS)?;
        if whole.get("model_type").is_none() {
            return Err(config::unsupported(
                file,
                "model_type",
                "not there",
                "\"clip\", \"clip_vision_model\"",
            ));
        }
        let config = match whole.get("vision_config") {
            Some(_) => {
                let Both { vision_config, projection_dim } = config::read(file, GUARDS)?;
                Self { projection_dim, ..vision_config }
            }
            None => config::read(file, GUARDS)?,
        };
        let Self { hidden_size, num_attention_heads, image_size, patch_size, .. } = config;
        vision::expect_sizes(file, num_attention_heads, hidden_size, patch_size, image_size)?;
        Ok(config)
    }
}

/// What is done with a picture before the encoder, by `preprocessor_config.json`.
#[derive(Debug, Deserialize)]
struct Preprocessing {
    #[serde(default = "mean")]
    image_mean: [f32; 3],
    #[serde(default = "std")]
    image_std: [f32; 3],
    /// Pillow's number of a filter.
    #[serde(default = "bicubic")]
    resample: u8,
}

/// OpenAI's mean and standard deviation of a picture's channels.
fn mean() -> [f32; 3] {
    [0.481_454_66, 0.457_827_5, 0.408_210_73]
}

fn std() -> [f32; 3] {
    [0.268_629_54, 0.261_302_6, 0.275_777_1]
}

fn bicubic() -> u8 {
    3
}

/// Checks the files of a folder without reading its tensors.
///
/// # Errors
/// The configuration is missing or of another model, or there is no checkpoint.
pub fn check_folder(folder: &Path) -> Result<(), ModelError> {
    VisionConfig::read(&folder.join("config.json"))?;
    checkpoint::find(folder).map(drop)
}

/// The image encoder.
pub struct ImageEncoder {
    config: VisionConfig,
    filter: Filter,
    /// Mean and standard deviation of each channel.
    statistics: [[f32; 3]; 2],
    class_embedding: Tensor,
    patch_embedding: Tensor,
    position_embedding: Embedding,
    pre_layernorm: LayerNorm,
    layers: Vec<Layer>,
    post_layernorm: LayerNorm,
    visual_projection: Linear,
}

impl ImageEncoder {
    /// Reads `config.json`, `preprocessor_config.json` if it is there, and the checkpoint of a folder: of CLIP as a whole, or of
    /// its image encoder with the projection.
    ///
    /// # Errors
    /// A file can't be read, the configuration is of another model, or the tensors don't fit it.
    pub fn load(folder: &Path, device: Device) -> Result<Self, ModelError> {
        let config = VisionConfig::read(&folder.join("config.json"))?;
        let file = folder.join("preprocessor_config.json");
        let preprocessing: Preprocessing = match file.is_file() {
            true => config::read(&file, &[])?,
            false => Preprocessing { image_mean: mean(), image_std: std(), resample: bicubic() },
        };
        let filter = vision::filter(&file, preprocessing.resample)?;
        let checkpoint = checkpoint::find(folder)?;
        let mut tensors = weights::read(&checkpoint, device)?;
        tensors.retain(|name, _| name.starts_with("vision_model.") || name.starts_with("visual_projection."));
        let weights = Weights::named(&checkpoint, tensors);
        weights.ignore("vision_model.embeddings.position_ids"); // a stored 0, 1, 2, … of older releases
        let statistics = [preprocessing.image_mean, preprocessing.image_std];
        let encoder = Self::new(&weights.root(), config, filter, statistics);
        weights.finish()?;
        Ok(encoder)
    }

    fn new(scope: &Scope<'_>, config: VisionConfig, filter: Filter, statistics: [[f32; 3]; 2]) -> Self {
        let tape = Tape::new();
        let (width, patch) = (config.hidden_size, config.patch_size);
        let shape = LayerShape {
            width,
            inner: config.intermediate_size,
            heads: config.num_attention_heads,
            activation: config.hidden_act,
            eps: config.layer_norm_eps,
            causal: false,
            names: &transformer::CLIP,
        };
        let projection =
            Linear::new(&scope.sub("visual_projection"), width, config.projection_dim, false, &tape);
        let scope = scope.sub("vision_model");
        let norm = |name| LayerNorm::new(&scope.sub(name), width, config.layer_norm_eps, &tape);
        let (embeddings, layers) = (scope.sub("embeddings"), scope.sub("encoder.layers"));
        let tokens = 1 + (config.image_size / patch).pow(2);
        Self {
            filter,
            statistics,
            class_embedding: embeddings.take("class_embedding", &[width]),
            patch_embedding: embeddings.take("patch_embedding.weight", &[width, 3, patch, patch]),
            position_embedding: Embedding::new(&embeddings.sub("position_embedding"), tokens, width),
            // Spelt so in the checkpoints.
            pre_layernorm: norm("pre_layrnorm"),
            layers: (0..config.num_hidden_layers).map(|i| Layer::new(&layers.sub(i), shape, &tape)).collect(),
            post_layernorm: norm("post_layernorm"),
            visual_projection: projection,
            config,
        }
    }
}

impl PictureEncoder for ImageEncoder {
    fn prepare(&self, picture: &RgbImage) -> Tensor {
        let side = self.config.image_size as u32;
        vision::normalised(&center_square(&shorter_side(picture, side, self.filter)), self.statistics)
    }

    fn forward(&self, pictures: &Tensor) -> Tensor {
        let tokens = vision::tokens(pictures, &self.patch_embedding, None, &self.class_embedding);
        let h = &tokens + self.position_embedding.first(tokens.size()[1]);
        let mut h = self.pre_layernorm.forward(&h); // [B, tokens, D]
        for layer in &self.layers {
            h = layer.forward(&h);
        }
        self.visual_projection.forward(&self.post_layernorm.forward(&h.select(1, 0)))
    }
}
