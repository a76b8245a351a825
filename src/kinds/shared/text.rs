//! Texts as embeddings.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::Path;

use anyhow::Context as _;
use tch::{Device, Tensor};

use crate::models::clip::text::TextEncoder;
use crate::models::tokenizer::Tokenizer;

/// A tokenizer and a text encoder, with the embeddings of the last prompts.
pub(crate) struct TextModel {
    tokenizer: Tokenizer,
    encoder: TextEncoder,
    device: Device,
    cached: RefCell<Cached>,
}

/// Embeddings [L, D], on the CPU.
#[derive(Default)]
struct Cached {
    prompts: HashMap<String, Tensor>,
    empty: Option<Tensor>,
}

/// Prompts whose embeddings are kept: 60 MB with Stable Diffusion.
const KEPT: usize = 256;

impl TextModel {
    /// Reads the files of both, and of a LoRA what it has for the encoder.
    ///
    /// # Errors
    /// Files that make no tokenizer or text encoder.
    pub fn load(
        tokenizer: &Path,
        encoder: &Path,
        lora: Option<&Path>,
        device: Device,
    ) -> anyhow::Result<TextModel> {
        let folder = tokenizer;
        let (tokenizer, encoder) = (Tokenizer::load(tokenizer)?, TextEncoder::load(encoder, lora, device)?);
        let (largest, tokens) = (tokenizer.largest_id(), encoder.config().vocab_size);
        anyhow::ensure!(
            largest < tokens,
            "{}: a token has the id {largest}, expected less than {tokens}, the tokens of the text encoder",
            folder.display()
        );
        Ok(TextModel { tokenizer, encoder, device, cached: RefCell::default() })
    }

    /// Whether the end of a text is not read.
    ///
    /// # Errors
    /// As [`TextModel::embed`].
    pub fn is_cut(&self, text: &str) -> anyhow::Result<bool> {
        Ok(self.tokenizer.is_cut(text)?)
    }

    /// The embeddings of texts in one pass, [n, L, D].
    ///
    /// # Errors
    /// A text that the tokenizer cannot encode.
    pub fn embed(&self, texts: &[&str]) -> anyhow::Result<Tensor> {
        let ids = texts.iter().map(|text| Ok(Tensor::from_slice(&self.tokenizer.encode(text)?))); // each [L]
        let ids = ids.collect::<anyhow::Result<Vec<_>>>()?;
        Ok(self.encoder.forward(&Tensor::stack(&ids, 0).to_device(self.device)))
    }

    /// The embeddings of prompts [n, L, D] and of the empty text [1, L, D].
    ///
    /// Each prompt goes through the network with the empty text and no other, so that its embedding depends on nothing else,
    /// and goes through it once.
    ///
    /// # Errors
    /// As [`TextModel::embed`].
    pub fn prompts(&self, prompts: &[String]) -> anyhow::Result<(Tensor, Tensor)> {
        let mut cached = self.cached.borrow_mut();
        let Cached { prompts: known, empty } = &mut *cached;
        let mut embeddings = Vec::new();
        for prompt in prompts {
            if !known.contains_key(prompt) {
                if known.len() == KEPT {
                    known.clear();
                }
                let pair = self.embed(&[prompt, ""])?.to_device(Device::Cpu);
                known.insert(prompt.clone(), pair.get(0));
                *empty = Some(pair.get(1));
            }
            embeddings.push(known[prompt].shallow_clone());
        }
        let empty = empty.as_ref().context("no prompts")?;
        let to_device = |texts: &Tensor| texts.to_device(self.device);
        Ok((to_device(&Tensor::stack(&embeddings, 0)), to_device(&empty.unsqueeze(0))))
    }
}
