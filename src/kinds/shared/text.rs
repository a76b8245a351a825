//! Texts as embeddings.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::Path;

use anyhow::Context as _;
use tch::{Device, Kind, Tensor};

use crate::models::clip::text::TextEncoder;
use crate::models::tokenizer::Tokenizer;
use crate::models::unet::conditioning::Conditioning;
use crate::models::unet::text_rows;
use crate::models::weights::config::ModelError;

/// The sizes that networks like SDXL's are given with a text: original height and width, top and left of the crop, target height
/// and width, in pixels.
pub(crate) type Sizes = [u32; text_rows::SIZES];

/// A tokenizer and a text encoder, or two of each, with the embeddings of the last prompts.
pub(crate) struct TextModel {
    first: Encoder,
    second: Option<Encoder>,
    device: Device,
    cached: RefCell<Cached>,
}

struct Encoder {
    tokenizer: Tokenizer,
    encoder: TextEncoder,
}

/// Embeddings of a text, on the CPU.
#[derive(Default)]
struct Cached {
    prompts: HashMap<String, Texts>,
    empty: Option<Texts>,
}

/// Prompts whose embeddings are kept: 60 MB with Stable Diffusion.
const KEPT: usize = 256;

/// Embeddings of n texts.
#[derive(Debug)]
pub(crate) struct Texts {
    /// [n, L, D].
    context: Tensor,
    /// [n, P], of a model with two encoders.
    pooled: Option<Tensor>,
}

impl Texts {
    fn map(&self, change: impl Fn(&Tensor) -> Tensor) -> Texts {
        Texts { context: change(&self.context), pooled: self.pooled.as_ref().map(change) }
    }

    /// Some texts one after the other.
    fn cat(all: &[Texts]) -> Texts {
        let cat = |part: fn(&Texts) -> Option<&Tensor>| {
            let parts: Vec<&Tensor> = all.iter().filter_map(part).collect();
            (!parts.is_empty()).then(|| Tensor::cat(&parts, 0))
        };
        let context = cat(|texts| Some(&texts.context)).expect("a text");
        Texts { context, pooled: cat(|texts| texts.pooled.as_ref()) }
    }

    /// Zeros in place of all numbers.
    pub fn zeros(&self) -> Texts {
        self.map(Tensor::zeros_like)
    }

    /// The rows of arrays [n, L, D], in which all texts have these sizes where there is a place for them.
    pub fn rows(&self, sizes: Sizes) -> Tensor {
        let of_one = Tensor::from_slice(&sizes.map(f64::from)).to_kind(Kind::Float);
        let count = self.context.size()[0];
        let size_ids = self
            .pooled
            .as_ref()
            .map(|pooled| of_one.to_device(pooled.device()).unsqueeze(0).repeat([count, 1]));
        let (context, pooled) =
            (self.context.shallow_clone(), self.pooled.as_ref().map(Tensor::shallow_clone));
        text_rows::join(&Conditioning { context, pooled, size_ids })
    }
}

/// The folders of a tokenizer and its text encoder.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Folders<'a> {
    pub tokenizer: &'a Path,
    pub encoder: &'a Path,
}

impl Encoder {
    fn load(
        folders: Folders<'_>,
        encoder: impl FnOnce(&Path) -> Result<TextEncoder, ModelError>,
    ) -> anyhow::Result<Encoder> {
        let (tokenizer, encoder) = (Tokenizer::load(folders.tokenizer)?, encoder(folders.encoder)?);
        let (largest, tokens) = (tokenizer.largest_id(), encoder.config().vocab_size);
        anyhow::ensure!(
            largest < tokens,
            "{}: a token has the id {largest}, expected less than {tokens}, the tokens of the text encoder",
            folders.tokenizer.display()
        );
        Ok(Encoder { tokenizer, encoder })
    }

    /// The ids of texts, [n, L].
    fn ids(&self, texts: &[&str], device: Device) -> anyhow::Result<Tensor> {
        let ids = texts.iter().map(|text| Ok(Tensor::from_slice(&self.tokenizer.encode(text)?))); // each [L]
        let ids = ids.collect::<anyhow::Result<Vec<_>>>()?;
        Ok(Tensor::stack(&ids, 0).to_device(device))
    }
}

impl TextModel {
    /// Reads the files of one or two pairs, and of a LoRA what it has for the encoders.
    ///
    /// # Errors
    /// Files that make no tokenizer or text encoder.
    pub fn load(
        first: Folders<'_>,
        second_folders: Option<Folders<'_>>,
        lora: Option<&Path>,
        device: Device,
    ) -> anyhow::Result<TextModel> {
        let first = Encoder::load(first, |folder| TextEncoder::load(folder, lora, device))?;
        let second = |folder: &Path| TextEncoder::load_second(folder, lora, device);
        let second = second_folders.map(|folders| Encoder::load(folders, second)).transpose()?;
        Ok(TextModel { first, second, device, cached: RefCell::default() })
    }

    /// Whether the model has two encoders.
    pub fn has_two(&self) -> bool {
        self.second.is_some()
    }

    /// Whether the end of a text is not read.
    ///
    /// # Errors
    /// As [`TextModel::embed`].
    pub fn is_cut(&self, text: &str) -> anyhow::Result<bool> {
        Ok(self.first.tokenizer.is_cut(text)?)
    }

    /// The embeddings of texts in one pass: of one encoder its last hidden state, of two, as SDXL takes them, the last but one of
    /// each, side by side, and the second's pooled text.
    ///
    /// # Errors
    /// A text that the tokenizer cannot encode.
    pub fn embed(&self, texts: &[&str]) -> anyhow::Result<Texts> {
        let first = &self.first;
        let ids = first.ids(texts, self.device)?;
        let Some(second) = &self.second else {
            return Ok(Texts { context: first.encoder.forward(&ids), pooled: None });
        };
        let own = first.encoder.hidden_states(&ids).penultimate;
        let ids = second.ids(texts, self.device)?;
        let other = second.encoder.hidden_states(&ids);
        let context = Tensor::cat(&[own, other.penultimate], -1); // [n, L, D]
        Ok(Texts { context, pooled: Some(second.encoder.pooled(&ids, &other.last)) })
    }

    /// The embeddings of prompts and of the empty text.
    ///
    /// Each prompt goes through the network with the empty text and no other, so that its embedding depends on nothing else,
    /// and goes through it once.
    ///
    /// # Errors
    /// As [`TextModel::embed`].
    pub fn prompts(&self, prompts: &[String]) -> anyhow::Result<[Texts; 2]> {
        let mut cached = self.cached.borrow_mut();
        let Cached { prompts: known, empty } = &mut *cached;
        let mut embeddings = Vec::new();
        for prompt in prompts {
            if !known.contains_key(prompt) {
                if known.len() == KEPT {
                    known.clear();
                }
                let pair = self.embed(&[prompt, ""])?.map(|pair| pair.to_device(Device::Cpu));
                known.insert(prompt.clone(), pair.map(|pair| pair.narrow(0, 0, 1)));
                *empty = Some(pair.map(|pair| pair.narrow(0, 1, 1)));
            }
            embeddings.push(known[prompt].map(Tensor::shallow_clone));
        }
        let empty = empty.as_ref().context("no prompts")?;
        Ok([&Texts::cat(&embeddings), empty].map(|texts| texts.map(|tensor| tensor.to_device(self.device))))
    }
}
