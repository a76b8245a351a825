//! CLIP's text encoder: from token ids to one vector a token, and where it has a projection to one a text.
//!
//! Shapes: B texts, L tokens, D width, P width of the projection. Source: Radford et al. 2021 (arXiv 2103.00020), section 2.4; names as in
//! transformers' `CLIPTextModel`.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use tch::{Device, Kind, Tensor};

use crate::io::lora::Network;
use crate::io::tensor_file::TensorFile;
use crate::models::layers::{Embedding, LayerNorm, Linear};
use crate::models::lora;
use crate::models::tape::Tape;
use crate::models::transformer::{self, Activation, Layer, LayerShape};
use crate::models::weights::checkpoint;
use crate::models::weights::config::{self, ModelError, OptionGuard};
use crate::models::weights::{self, Scope, Weights};

/// What of `config.json` the encoder depends on.
#[derive(Clone, Debug, Deserialize)]
pub struct ClipConfig {
    /// Number of tokens.
    pub vocab_size: i64,
    /// Width D of a token's vector.
    pub hidden_size: i64,
    /// Width inside the feed-forward part.
    pub intermediate_size: i64,
    /// Number of transformer layers.
    pub num_hidden_layers: i64,
    /// Attention heads of a layer.
    pub num_attention_heads: i64,
    /// Longest text, in tokens.
    pub max_position_embeddings: i64,
    /// The nonlinearity.
    pub hidden_act: Activation,
    /// Added to the variance in layer norms.
    #[serde(default = "default_eps")]
    pub layer_norm_eps: f64,
    /// Width P of a text's vector, of an encoder with a projection.
    pub projection_dim: Option<i64>,
    /// The token at which a text ends.
    pub eos_token_id: Option<i64>,
}

/// The defaults of the last two in transformers.
const PROJECTION: i64 = 512;
const END: i64 = 49_407;

/// In older configurations the end of texts, whose tokens have a larger number for it: the largest of a text is meant.
const OLD_END: i64 = 2;

/// Other text encoders, such as T5's.
const GUARDS: &[OptionGuard] = &[
    OptionGuard("model_type", &["\"clip_text_model\""]),
    OptionGuard("architectures", &["[\"CLIPTextModel\"]", "[\"CLIPTextModelWithProjection\"]", "null"]),
];

impl ClipConfig {
    /// Reads and checks a `config.json`.
    ///
    /// # Errors
    /// The file can't be read, or is of another network.
    pub fn read(file: &Path) -> Result<Self, ModelError> {
        let config: Self = config::read(file, GUARDS)?;
        let heads = ("num_attention_heads", config.num_attention_heads);
        config::expect_divides(file, heads, ("hidden_size", &[config.hidden_size]))?;
        Ok(config)
    }

    /// Width P of a text's vector, of an encoder with a projection.
    pub fn projection_width(&self) -> i64 {
        self.projection_dim.unwrap_or(PROJECTION)
    }
}

pub(super) fn default_eps() -> f64 {
    1e-5
}

/// The text encoder.
pub struct TextEncoder {
    token_embedding: Embedding,
    position_embedding: Embedding,
    layers: Vec<Layer>,
    final_layer_norm: LayerNorm,
    /// From the width of tokens to that of texts.
    projection: Option<Linear>,
    config: ClipConfig,
}

/// What an encoder makes of texts.
#[derive(Debug)]
pub struct HiddenStates {
    /// After the last layer but one, [B, L, D].
    pub penultimate: Tensor,
    /// After the last layer and the final layer norm, [B, L, D].
    pub last: Tensor,
}

impl TextEncoder {
    /// Reads `config.json` and the checkpoint of a folder, and merges the adapters that a LoRA has for it.
    ///
    /// # Errors
    /// A file can't be read, the configuration is of another model, or the tensors don't fit it.
    pub fn load(folder: &Path, lora: Option<&Path>, device: Device) -> Result<Self, ModelError> {
        Self::load_network(folder, Network::TextEncoder, lora, device)
    }

    /// The same for the second encoder of a model with two, as SDXL, which has a projection.
    ///
    /// # Errors
    /// As [`TextEncoder::load`].
    pub fn load_second(folder: &Path, lora: Option<&Path>, device: Device) -> Result<Self, ModelError> {
        Self::load_network(folder, Network::TextEncoder2, lora, device)
    }

    fn load_network(
        folder: &Path,
        network: Network,
        lora: Option<&Path>,
        device: Device,
    ) -> Result<Self, ModelError> {
        let config: ClipConfig = ClipConfig::read(&folder.join("config.json"))?;
        let file = checkpoint::find(folder)?;
        let mut tensors = without_prefix(weights::read(&file, device)?);
        if let Some(path) = lora {
            let parameters = TensorFile::open(&file)?;
            lora::read(path, network, parameters.headers(), device)?.merge(&mut tensors);
        }
        let weights = Weights::named(&file, tensors);
        weights.ignore("embeddings.position_ids"); // a stored 0, 1, 2, … of older releases
        let encoder = Self::new(&weights.root(), config, network == Network::TextEncoder2);
        weights.finish()?;
        Ok(encoder)
    }

    fn new(scope: &Scope<'_>, config: ClipConfig, with_projection: bool) -> Self {
        let tape = Tape::new();
        let width = config.hidden_size;
        let embedding = |name, count| Embedding::new(&scope.sub("embeddings").sub(name), count, width);
        let layers = scope.sub("encoder.layers");
        let shape = LayerShape {
            width,
            inner: config.intermediate_size,
            heads: config.num_attention_heads,
            activation: config.hidden_act,
            eps: config.layer_norm_eps,
            causal: true,
            names: &transformer::CLIP,
        };
        Self {
            token_embedding: embedding("token_embedding", config.vocab_size),
            position_embedding: embedding("position_embedding", config.max_position_embeddings),
            layers: (0..config.num_hidden_layers).map(|i| Layer::new(&layers.sub(i), shape, &tape)).collect(),
            final_layer_norm: LayerNorm::new(
                &scope.sub("final_layer_norm"),
                width,
                config.layer_norm_eps,
                &tape,
            ),
            projection: with_projection.then(|| {
                Linear::new(&scope.sub("text_projection"), width, config.projection_width(), false, &tape)
            }),
            config,
        }
    }

    /// What the encoder was built from.
    pub fn config(&self) -> &ClipConfig {
        &self.config
    }

    /// Token ids [B, L] (int64) to the last hidden state after the final layer norm, [B, L, D].
    pub fn forward(&self, ids: &Tensor) -> Tensor {
        self.hidden_states(ids).last
    }

    /// Token ids [B, L] (int64) to what SDXL takes, and the last hidden state.
    pub fn hidden_states(&self, ids: &Tensor) -> HiddenStates {
        let positions = self.position_embedding.first(ids.size()[1]); // [L, D]
        let mut h = self.token_embedding.forward(ids) + positions; // [B, L, D]
        let mut penultimate = h.shallow_clone();
        for layer in &self.layers {
            penultimate = std::mem::replace(&mut h, Tensor::new());
            h = layer.forward(&penultimate);
        }
        HiddenStates { penultimate, last: self.final_layer_norm.forward(&h) }
    }

    /// One vector a text [B, P]: the projection of the last hidden state [B, L, D] where the text of these ids [B, L] ends.
    ///
    /// # Panics
    /// The encoder has no projection.
    pub fn pooled(&self, ids: &Tensor, last: &Tensor) -> Tensor {
        let projection = self.projection.as_ref().expect("an encoder with a projection");
        let is_end = match self.config.eos_token_id.unwrap_or(END) {
            OLD_END => ids.shallow_clone(),
            end => ids.eq(end).to_kind(Kind::Int64),
        };
        let ends = is_end.argmax(1, false); // [B], the first of the largest
        let rows = Tensor::arange(ids.size()[0], (Kind::Int64, ids.device()));
        projection.forward(&last.index(&[Some(rows), Some(ends)]))
    }
}

/// Names as they are in newer files: older ones put all tensors under `text_model.`.
fn without_prefix(tensors: BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
    let strip = |name: String| name.strip_prefix("text_model.").map(str::to_owned).unwrap_or(name);
    tensors.into_iter().map(|(name, tensor)| (strip(name), tensor)).collect()
}
