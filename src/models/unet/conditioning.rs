//! What a UNet is given beside latents and timesteps: texts, and for networks like SDXL's their pooled embeddings and the
//! images' sizes.

use tch::{Kind, Tensor};

use super::time_embedding::{TimestepEmbedding, Timesteps};
use crate::models::layers::Linear;

/// The conditions of K images; in brackets what diffusers calls them.
#[derive(Debug)]
pub struct Conditioning {
    /// A text's tokens, [K, L, D] (`encoder_hidden_states`).
    pub context: Tensor,
    /// One vector for each text, [K, P] (`text_embeds`).
    pub pooled: Option<Tensor>,
    /// Original height and width, top and left of the crop, target height and width: [K, 6] (`time_ids`).
    pub size_ids: Option<Tensor>,
}

impl From<Tensor> for Conditioning {
    /// Texts alone.
    fn from(context: Tensor) -> Conditioning {
        Conditioning { context, pooled: None, size_ids: None }
    }
}

impl Conditioning {
    /// K, the number of conditions.
    pub fn count(&self) -> i64 {
        self.context.size()[0]
    }

    /// The same with each tensor changed.
    pub fn map(&self, change: impl Fn(&Tensor) -> Tensor) -> Conditioning {
        Conditioning {
            context: change(&self.context),
            pooled: self.pooled.as_ref().map(&change),
            size_ids: self.size_ids.as_ref().map(&change),
        }
    }

    /// Sets the text of one condition to that of another, which has one; its sizes stay.
    pub fn set_text(&self, index: i64, other: &Conditioning) {
        self.context.get(index).copy_(&other.context.get(0));
        if let (Some(own), Some(pooled)) = (&self.pooled, &other.pooled) {
            own.get(index).copy_(&pooled.get(0));
        }
    }

    /// Some of the conditions.
    pub fn narrow(&self, start: i64, count: i64) -> Conditioning {
        self.map(|x| x.narrow(0, start, count))
    }
}

/// Whether the inputs of a layer, by its full name, are the texts: maps to keys and values of a cross attention, or to the ranks of
/// their LoRA.
pub fn reads_text(layer: &str) -> bool {
    layer.contains("attn2.")
        && (layer.contains(".to_k") || layer.contains(".to_v"))
        && !layer.contains("lora_B")
}

/// The maps of a text to keys and values for one cross attention.
pub struct CrossAttentionKv {
    /// Attention heads.
    pub heads: i64,
    /// To keys.
    pub to_k: Linear,
    /// To values.
    pub to_v: Linear,
}

impl CrossAttentionKv {
    /// Texts [K, L, D] to keys and values [K, heads, L, C/heads], of type `kind`.
    fn forward(&self, context: &Tensor, kind: Kind) -> [Tensor; 2] {
        [&self.to_k, &self.to_v].map(|map| split_heads(&map.forward(context).to_kind(kind), self.heads))
    }
}

/// [K, T, C] to [K, heads, T, C/heads].
pub fn split_heads(x: &Tensor, heads: i64) -> Tensor {
    let (contexts, tokens, width) = x.size3().expect("tokens have three dimensions");
    x.view([contexts, tokens, heads, width / heads]).transpose(1, 2)
}

/// What pooled text and sizes add to the time embedding (`addition_embed_type = "text_time"`).
pub struct AddEmbedding {
    /// Sinusoids of a size.
    pub size_proj: Timesteps,
    /// From the pooled text and all sinusoids to the width of the time embedding.
    pub embedding: TimestepEmbedding,
}

impl AddEmbedding {
    /// [K, E].
    fn forward(&self, conditioning: &Conditioning) -> Tensor {
        let (Some(pooled), Some(size_ids)) = (&conditioning.pooled, &conditioning.size_ids) else {
            panic!("a network with `text_time` needs pooled text embeddings and size ids");
        };
        let sizes = self.size_proj.forward(&size_ids.flatten(0, -1)).view([conditioning.count(), -1]);
        self.embedding.forward(&Tensor::cat(&[pooled, &sizes], -1))
    }
}

/// Conditions as a network's layers read them: they depend on nothing else, so they are computed once for all timesteps.
pub struct EncodedConditioning {
    /// Keys and values for each cross attention, in their order.
    keys_values: Vec<[Tensor; 2]>,
    /// What is added to the time embedding, [K, E].
    added: Option<Tensor>,
    count: i64,
}

impl EncodedConditioning {
    /// Keys and values are of type `kind`.
    pub(super) fn new(
        maps: &[CrossAttentionKv],
        add_embedding: Option<&AddEmbedding>,
        conditioning: &Conditioning,
        kind: Kind,
    ) -> EncodedConditioning {
        let keys_values = maps.iter().map(|maps| maps.forward(&conditioning.context, kind)).collect();
        let added = add_embedding.map(|embedding| embedding.forward(conditioning));
        EncodedConditioning { keys_values, added, count: conditioning.count() }
    }

    /// K, the number of conditions.
    pub fn count(&self) -> i64 {
        self.count
    }

    /// Keys and values of the cross attention `index`.
    pub(super) fn keys_values(&self, index: usize) -> &[Tensor; 2] {
        &self.keys_values[index]
    }

    /// What is added to the time embedding, [K, E].
    pub(super) fn added(&self) -> Option<&Tensor> {
        self.added.as_ref()
    }
}
