//! CLIP's text encoder: from token ids to one vector a token.
//!
//! Shapes: B texts, L tokens, D width. Source: Radford et al. 2021 (arXiv 2103.00020), section 2.4; names as in
//! transformers' `CLIPTextModel`.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use tch::{Device, Tensor};

use crate::models::layers::{Embedding, LayerNorm, Linear};
use crate::models::tape::Tape;
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
}

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
}

fn default_eps() -> f64 {
    1e-5
}

/// The nonlinearity between the two linear maps.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// With the error function.
    Gelu,
    /// `x sigmoid(1.702 x)`, OpenAI's approximation.
    QuickGelu,
}

impl Activation {
    fn apply(self, x: &Tensor) -> Tensor {
        match self {
            Self::Gelu => x.gelu("none"),
            Self::QuickGelu => x * (x * 1.702).sigmoid(),
        }
    }
}

/// Causal multi-head self attention.
struct Attention {
    heads: i64,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
}

impl Attention {
    fn new(scope: &Scope<'_>, config: &ClipConfig, tape: &Tape) -> Self {
        let width = config.hidden_size;
        let linear = |name| Linear::new(&scope.sub(name), width, width, true, tape);
        Self {
            heads: config.num_attention_heads,
            q_proj: linear("q_proj"),
            k_proj: linear("k_proj"),
            v_proj: linear("v_proj"),
            out_proj: linear("out_proj"),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let [batch, length, width] = [x.size()[0], x.size()[1], x.size()[2]];
        let split = |x: Tensor| x.view([batch, length, self.heads, width / self.heads]).transpose(1, 2);
        let q = split(self.q_proj.forward(x)); // [B, heads, L, D/heads]
        let k = split(self.k_proj.forward(x));
        let v = split(self.v_proj.forward(x));
        let causal = true; // a token sees itself and those before it
        let y = Tensor::scaled_dot_product_attention(&q, &k, &v, None::<Tensor>, 0.0, causal, None, false);
        self.out_proj.forward(&y.transpose(1, 2).reshape([batch, length, width])) // [B, L, D]
    }
}

/// One transformer layer: attention and feed forward, each normalised at its entry and added to its input.
struct Layer {
    self_attn: Attention,
    layer_norm1: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    layer_norm2: LayerNorm,
    activation: Activation,
}

impl Layer {
    fn new(scope: &Scope<'_>, config: &ClipConfig, tape: &Tape) -> Self {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let norm = |name| LayerNorm::new(&scope.sub(name), width, config.layer_norm_eps, tape);
        Self {
            self_attn: Attention::new(&scope.sub("self_attn"), config, tape),
            layer_norm1: norm("layer_norm1"),
            fc1: Linear::new(&scope.sub("mlp.fc1"), width, inner, true, tape),
            fc2: Linear::new(&scope.sub("mlp.fc2"), inner, width, true, tape),
            layer_norm2: norm("layer_norm2"),
            activation: config.hidden_act,
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let x = x + self.self_attn.forward(&self.layer_norm1.forward(x)); // [B, L, D]
        let h = self.activation.apply(&self.fc1.forward(&self.layer_norm2.forward(&x)));
        x + self.fc2.forward(&h)
    }
}

/// The text encoder.
pub struct TextEncoder {
    token_embedding: Embedding,
    position_embedding: Embedding,
    layers: Vec<Layer>,
    final_layer_norm: LayerNorm,
    config: ClipConfig,
}

impl TextEncoder {
    /// Reads `config.json` and the checkpoint of a folder.
    ///
    /// # Errors
    /// A file can't be read, the configuration is of another model, or the tensors don't fit it.
    pub fn load(folder: impl AsRef<Path>, device: Device) -> Result<Self, ModelError> {
        let folder = folder.as_ref();
        let config: ClipConfig = ClipConfig::read(&folder.join("config.json"))?;
        let file = checkpoint::find(folder)?;
        let tensors = without_prefix(weights::read(&file, device)?);
        let weights = Weights::named(&file, tensors);
        weights.ignore("embeddings.position_ids"); // a stored 0, 1, 2, … of older releases
        let encoder = Self::new(&weights.root(), config);
        weights.finish()?;
        Ok(encoder)
    }

    fn new(scope: &Scope<'_>, config: ClipConfig) -> Self {
        let tape = Tape::new();
        let width = config.hidden_size;
        let embedding = |name, count| Embedding::new(&scope.sub("embeddings").sub(name), count, width);
        let layers = scope.sub("encoder.layers");
        Self {
            token_embedding: embedding("token_embedding", config.vocab_size),
            position_embedding: embedding("position_embedding", config.max_position_embeddings),
            layers: (0..config.num_hidden_layers)
                .map(|i| Layer::new(&layers.sub(i), &config, &tape))
                .collect(),
            final_layer_norm: LayerNorm::new(
                &scope.sub("final_layer_norm"),
                width,
                config.layer_norm_eps,
                &tape,
            ),
            config,
        }
    }

    /// What the encoder was built from.
    pub fn config(&self) -> &ClipConfig {
        &self.config
    }

    /// Token ids [B, L] (int64) to the last hidden state after the final layer norm, [B, L, D].
    pub fn forward(&self, ids: &Tensor) -> Tensor {
        let positions = self.position_embedding.first(ids.size()[1]); // [L, D]
        let mut h = self.token_embedding.forward(ids) + positions; // [B, L, D]
        for layer in &self.layers {
            h = layer.forward(&h);
        }
        self.final_layer_norm.forward(&h)
    }
}

/// Names as they are in newer files: older ones put all tensors under `text_model.`.
fn without_prefix(tensors: BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
    let strip = |name: String| name.strip_prefix("text_model.").map(str::to_owned).unwrap_or(name);
    tensors.into_iter().map(|(name, tensor)| (strip(name), tensor)).collect()
}
