//! Checkpoints in a single file: which of its tensors make which tensors of the parts of a diffusers folder.
//!
//! Such a file holds a whole Stable Diffusion 1 or 2 with the names of the original code (latent diffusion,
//! LDM):
//!
//! | part | names begin with |
//! |---|---|
//! | UNet | `model.diffusion_model.` |
//! | VAE | `first_stage_model.` |
//! | text encoder of Stable Diffusion 1: CLIP | `cond_stage_model.transformer.` |
//! | text encoder of Stable Diffusion 2: OpenCLIP | `cond_stage_model.model.` |
//!
//! Names and shapes suffice. Numbers stay as they are: a tensor of a part is one of the file, or some of
//! its rows, at most in another shape. None has to be transposed: OpenCLIP's `text_projection` would have
//! to be, but the text encoder has no such tensor. How many blocks and layers there are is read from the
//! names. What a file has besides is counted where it is known ([`Parts::ignored`]) and an error where it
//! is not, so that nothing is left out without a word.

mod error;
mod other;
mod text;
mod unet;
mod vae;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::names::few;
use super::tensor_file::TensorFile;
pub use error::{Part, SingleFileError};

/// What is known of a tensor of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header<'a> {
    /// Its name.
    pub name: &'a str,
    /// Lengths of its axes.
    pub shape: &'a [usize],
}

/// The family of a model, which its text encoder decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Stable Diffusion 1.x, with CLIP.
    Sd1,
    /// Stable Diffusion 2.x, with OpenCLIP. Whether it predicts noise or v is not in the file.
    Sd2,
}

/// What a tensor of a part is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The name of the tensor in the file.
    pub source: String,
    /// Its rows, which are along axis 0; none for all. Their numbers follow each other.
    pub rows: Option<Range<usize>>,
    /// The shape that these numbers have in the part.
    pub shape: Vec<usize>,
}

/// The three parts, by the names that tensors have in a diffusers folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts {
    /// The family.
    pub family: Family,
    /// The UNet's tensors.
    pub unet: BTreeMap<String, Piece>,
    /// The VAE's tensors.
    pub vae: BTreeMap<String, Piece>,
    /// The text encoder's tensors. Their names begin with `text_model.`, as in released folders.
    pub text_encoder: BTreeMap<String, Piece>,
    /// How many tensors of the file belong to no part: tables of the noise schedule, means of weights,
    /// states of the optimizer, positions, and what the text encoder of a folder does not have.
    pub ignored: usize,
}

/// What a tensor is for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Use {
    /// It is this tensor.
    Whole(String),
    /// It is this one, without axes of length 1 after the second.
    Matrix(String),
    /// Its rows are these three, one after the other.
    Thirds([String; 3]),
    /// It is for nothing.
    Unused,
}

const UNET: &str = "model.diffusion_model.";
const VAE: &str = "first_stage_model.";
const TEXT: &str = "cond_stage_model.";
const CLIP: &str = "cond_stage_model.transformer.";
const OPEN_CLIP: &str = "cond_stage_model.model.";

/// Matches the tensors of an open file, see [`plan`].
///
/// # Errors
/// As [`plan`].
pub fn of(file: &TensorFile) -> Result<Parts, SingleFileError> {
    let headers = file.headers().iter();
    let headers: Vec<Header<'_>> =
        headers.map(|header| Header { name: &header.name, shape: &header.shape }).collect();
    plan(&headers)
}

/// Matches the tensors of a file with those of the three parts.
///
/// The text encoder decides the family. The UNet's cross-attention has to take as many columns as it gives.
///
/// # Errors
/// A file that is something else, lacks a part, or has names that are not known.
pub fn plan(headers: &[Header<'_>]) -> Result<Parts, SingleFileError> {
    other::refuse(headers)?;
    let (extras, used): (Vec<Header<'_>>, Vec<_>) =
        headers.iter().partition(|header| other::is_extra(header.name));
    let [unet, vae, clip, open_clip] = [UNET, VAE, CLIP, OPEN_CLIP].map(|prefix| below(prefix, &used));
    let (family, prefix, text) = match (clip.is_empty(), open_clip.is_empty()) {
        (false, false) => return Err(SingleFileError::TwoTextEncoders),
        (_, true) => (Family::Sd1, CLIP, clip),
        (true, false) => (Family::Sd2, OPEN_CLIP, open_clip),
    };
    check_names(&used, family)?;
    check_parts([(Part::Unet, &unet), (Part::Vae, &vae), (Part::TextEncoder, &text)])?;

    let mut ignored = extras.len();
    let names = unet::Names::of(&unet)?;
    let unet = pieces(Part::Unet, UNET, &unet, |name| names.find(name), &mut ignored)?;
    let names = vae::Names::of(&vae)?;
    let vae = pieces(Part::Vae, VAE, &vae, |name| names.find(name), &mut ignored)?;
    text::check_layers(family, &text)?;
    let text_encoder =
        pieces(Part::TextEncoder, prefix, &text, |name| text::find(family, name), &mut ignored)?;
    let parts = Parts { family, unet, vae, text_encoder, ignored };
    check_channels(&parts)?;
    check_width(&parts)?;
    Ok(parts)
}

/// Every name has to be known.
fn check_names(used: &[Header<'_>], family: Family) -> Result<(), SingleFileError> {
    let is_known = |name: &str| {
        let of_text = || name.strip_prefix(CLIP).or_else(|| name.strip_prefix(OPEN_CLIP));
        match (name.strip_prefix(UNET), name.strip_prefix(VAE)) {
            (Some(name), _) => unet::is_known(name),
            (_, Some(name)) => vae::is_known(name),
            _ => of_text().is_some_and(|name| text::find(family, name).is_some()),
        }
    };
    let of_checkpoint = |name: &str| [UNET, VAE, TEXT].iter().any(|prefix| name.starts_with(prefix));
    if !used.iter().any(|header| of_checkpoint(header.name)) {
        return Err(SingleFileError::None);
    }
    let unknown: Vec<&str> = used.iter().map(|header| header.name).filter(|name| !is_known(name)).collect();
    match unknown.len() {
        0 => Ok(()),
        count => Err(SingleFileError::Unknown { count, names: few(&unknown) }),
    }
}

/// Every part has to be there.
fn check_parts(parts: [(Part, &Vec<Header<'_>>); 3]) -> Result<(), SingleFileError> {
    let (missing, found): (Vec<_>, Vec<_>) = parts.into_iter().partition(|(_, tensors)| tensors.is_empty());
    if missing.is_empty() {
        return Ok(());
    }
    let [found, missing] = [found, missing].map(|parts| parts.into_iter().map(|(part, _)| part).collect());
    Err(SingleFileError::Missing { found, missing })
}

/// The tensors whose names begin so, with the rest of their names.
fn below<'a>(prefix: &str, headers: &[Header<'a>]) -> Vec<Header<'a>> {
    let named = headers
        .iter()
        .filter_map(|header| Some(Header { name: header.name.strip_prefix(prefix)?, ..*header }));
    named.collect()
}

/// The tensors of one part. Those that are not used are counted.
fn pieces(
    part: Part,
    prefix: &str,
    tensors: &[Header<'_>],
    find: impl Fn(&str) -> Option<Use>,
    ignored: &mut usize,
) -> Result<BTreeMap<String, Piece>, SingleFileError> {
    let mut pieces: BTreeMap<String, Piece> = BTreeMap::new();
    for header in tensors {
        let source = format!("{prefix}{}", header.name);
        let unknown = || SingleFileError::Unknown { count: 1, names: source.clone() };
        let found = find(header.name).ok_or_else(unknown)?;
        let made: Vec<(String, Option<Range<usize>>, Vec<usize>)> = match found {
            Use::Unused => {
                *ignored += 1;
                continue;
            }
            Use::Whole(target) => vec![(target, None, header.shape.to_vec())],
            Use::Matrix(target) => vec![(target, None, matrix(&source, header.shape)?)],
            Use::Thirds(targets) => {
                let (rows, shape) = third(&source, header.shape)?;
                let ranges = (0..).map(|index| Some(index * rows..(index + 1) * rows));
                targets.into_iter().zip(ranges).map(|(target, rows)| (target, rows, shape.clone())).collect()
            }
        };
        for (target, rows, shape) in made {
            match pieces.entry(target) {
                Entry::Vacant(entry) => drop(entry.insert(Piece { source: source.clone(), rows, shape })),
                Entry::Occupied(entry) => {
                    let (target, first) = (entry.key().clone(), entry.get().source.clone());
                    return Err(SingleFileError::Twice { part, target, first, second: source });
                }
            }
        }
    }
    Ok(pieces)
}

/// The shape of a linear map that may be written as a convolution of kernel size 1.
fn matrix(name: &str, shape: &[usize]) -> Result<Vec<usize>, SingleFileError> {
    match shape {
        [rows, columns] | [rows, columns, 1] | [rows, columns, 1, 1] => Ok(vec![*rows, *columns]),
        _ => Err(SingleFileError::Shape {
            name: name.to_owned(),
            found: shape.to_vec(),
            expected: "a matrix, or a convolution of kernel size 1",
        }),
    }
}

/// How many rows a third of them is, and its shape.
fn third(name: &str, shape: &[usize]) -> Result<(usize, Vec<usize>), SingleFileError> {
    match shape {
        [rows, rest @ ..] if *rows > 0 && rows.is_multiple_of(3) => {
            Ok((rows / 3, [&[rows / 3], rest].concat()))
        }
        _ => Err(SingleFileError::Shape {
            name: name.to_owned(),
            found: shape.to_vec(),
            expected: "the rows of queries, keys and values, as many of each",
        }),
    }
}

/// How many channels the UNet takes has to be how many latents have.
fn check_channels(parts: &Parts) -> Result<(), SingleFileError> {
    let found = columns(Part::Unet, &parts.unet, "conv_in.weight", "input_blocks.0.0.weight")?;
    let expected = columns(Part::Vae, &parts.vae, "post_quant_conv.weight", "post_quant_conv.weight")?;
    let what = match found {
        _ if found == expected => return Ok(()),
        5 => "a model that also takes depth",
        7 => "an upscaler",
        8 => "a model that edits images (InstructPix2Pix)",
        9 => "an inpainting model",
        _ => "a model of another kind",
    };
    Err(SingleFileError::Channels { found, expected, what })
}

/// How many columns cross-attention takes has to be how many text embeddings have.
fn check_width(parts: &Parts) -> Result<(), SingleFileError> {
    const EMBEDDINGS: &str = "text_model.embeddings.token_embedding.weight";
    let expected = columns(Part::TextEncoder, &parts.text_encoder, EMBEDDINGS, "…token_embedding.weight")?;
    let cross = |name: &str| name.ends_with(".attn2.to_k.weight") || name.ends_with(".attn2.to_v.weight");
    for (_, piece) in parts.unet.iter().filter(|(name, _)| cross(name)) {
        let found = piece.shape.get(1).copied().unwrap_or(0);
        if found != expected {
            return Err(SingleFileError::Width { name: piece.source.clone(), found, expected });
        }
    }
    Ok(())
}

/// The length of a tensor's second axis.
fn columns(
    part: Part,
    pieces: &BTreeMap<String, Piece>,
    target: &str,
    name: &str,
) -> Result<usize, SingleFileError> {
    let length = pieces.get(target).and_then(|piece| piece.shape.get(1));
    length.copied().ok_or_else(|| SingleFileError::NoTensor { part, name: name.to_owned() })
}

/// A number as names have it.
fn index(text: &str) -> Option<usize> {
    let index = text.parse::<usize>().ok()?;
    (index.to_string() == text).then_some(index)
}

/// The numbers that follow this in names, with what follows the number.
fn numbered<'a>(tensors: &[Header<'a>], prefix: &str) -> Vec<(usize, &'a str)> {
    let of = |name: &'a str| {
        let (number, rest) = name.strip_prefix(prefix)?.split_once('.')?;
        Some((index(number)?, rest))
    };
    tensors.iter().filter_map(|header| of(header.name)).collect()
}

/// How many different numbers follow this in names; none if one is left out.
fn count(tensors: &[Header<'_>], prefix: &str) -> Option<usize> {
    let numbers: BTreeSet<usize> = numbered(tensors, prefix).into_iter().map(|(number, _)| number).collect();
    numbers.iter().copied().eq(0..numbers.len()).then_some(numbers.len())
}

/// The layer that a weight or bias is of, and which of them it is.
fn layer(name: &str) -> Option<(Vec<&str>, &str)> {
    let (layer, leaf) = name.rsplit_once('.')?;
    matches!(leaf, "weight" | "bias").then(|| (layer.split('.').collect(), leaf))
}

#[cfg(test)]
mod tests;
