//! Why a file could not be taken as a checkpoint.

use std::fmt::{self, Display, Formatter};

/// A part of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The denoising network.
    Unet,
    /// The autoencoder of images.
    Vae,
    /// The text encoder, or the first of two.
    TextEncoder,
    /// The second text encoder.
    TextEncoder2,
}

impl Display for Part {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Part::Unet => "UNet",
            Part::Vae => "VAE",
            Part::TextEncoder => "text encoder",
            Part::TextEncoder2 => "second text encoder",
        })
    }
}

/// Why a file could not be taken as a checkpoint. No message names the file: it is not known here.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message says what its fields are")]
pub enum SingleFileError {
    #[error(
        "no tensor of a checkpoint, expected names such as `model.diffusion_model.…`, \
         `first_stage_model.…`, and `cond_stage_model.…` or `conditioner.…`"
    )]
    None,
    #[error(
        "this is {what} (`{name}`), which is not supported: expected a checkpoint of Stable Diffusion 1, 2 or XL"
    )]
    Unsupported { name: String, what: &'static str },
    #[error(
        "this is {what}: its UNet takes {found} channels and its VAE's latents have {expected}, expected \
         a model that makes images from text alone, with as many"
    )]
    Channels { found: usize, expected: usize, what: &'static str },
    #[error("this is a LoRA (`{name}`), expected a checkpoint: give it as `lora`")]
    Lora { name: String },
    #[error(
        "this is the {part} of a diffusers folder (`{name}`), expected a checkpoint in a single file: \
         give the folder that holds `unet`, `vae` and `text_encoder`"
    )]
    Diffusers { name: String, part: Part },
    #[error(
        "the UNet's weights are here only as their means over training ({count} tensors `model_ema.…`), \
         expected the weights (`model.diffusion_model.…`)"
    )]
    OnlyMeans { count: usize },
    #[error("this is only a {}: a whole checkpoint is expected, missing {}", list(found), list(missing))]
    Missing { found: Vec<Part>, missing: Vec<Part> },
    #[error("names of the text encoders of two families (`{first}…` and `{second}…`): expected those of one")]
    TwoFamilies { first: &'static str, second: &'static str },
    #[error("unknown names ({count}): {names}; expected those of Stable Diffusion 1, 2 or XL alone")]
    Unknown { count: usize, names: String },
    #[error("the {part} has {found}, expected {expected}")]
    Layout { part: Part, found: String, expected: &'static str },
    #[error("the {part} has no `{name}`")]
    NoTensor { part: Part, name: String },
    #[error("`{name}` is {found:?}, expected {expected}")]
    Shape { name: String, found: Vec<usize>, expected: &'static str },
    #[error("`{name}` has {found} columns, expected {expected} as {of}")]
    Width { name: String, found: usize, expected: usize, of: &'static str },
    #[error("`{first}` and `{second}` are both `{target}` of the {part}")]
    Twice { part: Part, target: String, first: String, second: String },
}

/// Parts, as they stand in a sentence.
fn list(parts: &[Part]) -> String {
    let names: Vec<String> = parts.iter().map(Part::to_string).collect();
    match names.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} and {last}", others.join(", ")),
        None => String::new(),
    }
}
