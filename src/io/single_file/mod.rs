//! Checkpoints in a single file: which of its tensors make which tensors of the parts of a diffusers folder.
//!
//! Such a file holds a whole Stable Diffusion 1, 2 or XL with the names of the original code (latent diffusion,
//! LDM):
//!
//! | part | names begin with |
//! |---|---|
//! | UNet | `model.diffusion_model.` |
//! | VAE | `first_stage_model.` |
//! | text encoder of Stable Diffusion 1: CLIP | `cond_stage_model.transformer.` |
//! | text encoder of Stable Diffusion 2: OpenCLIP | `cond_stage_model.model.` |
//! | text encoders of Stable Diffusion XL: CLIP | `conditioner.embedders.0.transformer.` |
//! | and OpenCLIP | `conditioner.embedders.1.model.` |
//!
//! Names and shapes suffice. Numbers stay as they are: a tensor of a part is one of the file, or some of
//! its rows, at most in another shape. One matrix alone has to be transposed, the projection of SDXL's second
//! text encoder ([`Piece::transposed`]). How many blocks and layers there are is read from the names. What a
//! file has besides is counted where it is known ([`Parts::ignored`]) and an error where it is not, so that
//! nothing is left out without a word.

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
use text::Text;
pub(super) use unet::names_in_ldm;

/// What is known of a tensor of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header<'a> {
    /// Its name.
    pub name: &'a str,
    /// Lengths of its axes.
    pub shape: &'a [usize],
}

/// The family of a model, which its text encoders decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Stable Diffusion 1.x, with CLIP.
    Sd1,
    /// Stable Diffusion 2.x, with OpenCLIP. Whether it predicts noise or v is not in the file.
    Sd2,
    /// Stable Diffusion XL, with both.
    Sdxl,
}

impl Family {
    const ALL: [Family; 3] = [Family::Sd1, Family::Sd2, Family::Sdxl];

    /// Its text encoders.
    fn encoders(self) -> &'static [Encoder] {
        use {Part::TextEncoder as First, Part::TextEncoder2 as Second};
        match self {
            Family::Sd1 => {
                &[Encoder { part: First, names: Text::Clip, prefix: "cond_stage_model.transformer." }]
            }
            Family::Sd2 => &[Encoder {
                part: First,
                names: Text::OpenClip { whole: false },
                prefix: "cond_stage_model.model.",
            }],
            Family::Sdxl => &[
                Encoder { part: First, names: Text::Clip, prefix: "conditioner.embedders.0.transformer." },
                Encoder {
                    part: Second,
                    names: Text::OpenClip { whole: true },
                    prefix: "conditioner.embedders.1.model.",
                },
            ],
        }
    }
}

/// A text encoder in a file.
struct Encoder {
    part: Part,
    names: Text,
    /// What the names of its tensors begin with.
    prefix: &'static str,
}

/// What a tensor of a part is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The name of the tensor in the file.
    pub source: String,
    /// Its rows, which are along axis 0; none for all. Their numbers follow each other.
    pub rows: Option<Range<usize>>,
    /// Whether its two axes change places: then it is a matrix, all rows are taken, and its shape in the file is
    /// [`Piece::shape`] in reverse. Else its numbers follow each other as they do in the file.
    pub transposed: bool,
    /// The shape that these numbers have in the part.
    pub shape: Vec<usize>,
}

/// The parts, by the names that tensors have in a diffusers folder.
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
    /// The second text encoder's tensors: as the first's, and its projection. None but for [`Family::Sdxl`].
    pub text_encoder_2: BTreeMap<String, Piece>,
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
    /// It is this one, transposed.
    Transposed(String),
    /// Its rows are these three, one after the other.
    Thirds([String; 3]),
    /// It is for nothing.
    Unused,
}

const UNET: &str = "model.diffusion_model.";
const VAE: &str = "first_stage_model.";
/// What the names of text encoders begin with, of the older families and of the last.
const TEXT: [&str; 2] = ["cond_stage_model.", "conditioner.embedders."];

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

/// Matches the tensors of a file with those of the parts.
///
/// The text encoders decide the family. The UNet's cross-attention has to take as many columns as they give.
///
/// # Errors
/// A file that is something else, lacks a part, or has names that are not known.
pub fn plan(headers: &[Header<'_>]) -> Result<Parts, SingleFileError> {
    other::refuse(headers)?;
    let (extras, used): (Vec<Header<'_>>, Vec<_>) =
        headers.iter().partition(|header| other::is_extra(header.name));
    let family = family(&used)?;
    check_names(&used, family)?;
    let [unet, vae] = [UNET, VAE].map(|prefix| below(prefix, &used));
    let texts = family.encoders().iter().map(|encoder| (encoder, below(encoder.prefix, &used)));
    let texts: Vec<_> = texts.collect();
    let found = [(Part::Unet, &unet), (Part::Vae, &vae)].into_iter();
    check_parts(found.chain(texts.iter().map(|(encoder, tensors)| (encoder.part, tensors))))?;

    let mut ignored = extras.len();
    let names = unet::Names::of(&unet)?;
    let unet = pieces(Part::Unet, UNET, &unet, |name| names.find(name), &mut ignored)?;
    let names = vae::Names::of(&vae)?;
    let vae = pieces(Part::Vae, VAE, &vae, |name| names.find(name), &mut ignored)?;
    let [mut text_encoder, mut text_encoder_2] = [BTreeMap::new(), BTreeMap::new()];
    for (Encoder { part, names, prefix }, tensors) in texts {
        names.check_layers(*part, &tensors)?;
        let pieces = pieces(*part, prefix, &tensors, |name| names.find(name), &mut ignored)?;
        *if *part == Part::TextEncoder2 { &mut text_encoder_2 } else { &mut text_encoder } = pieces;
    }
    let parts = Parts { family, unet, vae, text_encoder, text_encoder_2, ignored };
    check_channels(&parts)?;
    check_width(&parts)?;
    Ok(parts)
}

/// The family whose text encoders there are; the first if there is none, so that this can be said.
fn family(used: &[Header<'_>]) -> Result<Family, SingleFileError> {
    let is_there = |prefix: &&str| used.iter().any(|header| header.name.starts_with(prefix));
    let mut found = Family::ALL.into_iter().filter_map(|family| {
        let mut prefixes = family.encoders().iter().map(|encoder| encoder.prefix);
        Some((family, prefixes.find(is_there)?))
    });
    match (found.next(), found.next()) {
        (Some((_, first)), Some((_, second))) => Err(SingleFileError::TwoFamilies { first, second }),
        (first, _) => Ok(first.map_or(Family::Sd1, |(family, _)| family)),
    }
}

/// Whether a tensor is of a checkpoint's part, by its name.
fn is_of_part(name: &str) -> bool {
    [UNET, VAE].iter().chain(&TEXT).any(|prefix| name.starts_with(prefix))
}

/// Every name has to be known.
fn check_names(used: &[Header<'_>], family: Family) -> Result<(), SingleFileError> {
    let is_known = |name: &str| match (name.strip_prefix(UNET), name.strip_prefix(VAE)) {
        (Some(name), _) => unet::is_known(name),
        (_, Some(name)) => vae::is_known(name),
        _ => family.encoders().iter().any(|encoder| {
            name.strip_prefix(encoder.prefix).is_some_and(|name| encoder.names.find(name).is_some())
        }),
    };
    if !used.iter().any(|header| is_of_part(header.name)) {
        return Err(SingleFileError::None);
    }
    let unknown: Vec<&str> = used.iter().map(|header| header.name).filter(|name| !is_known(name)).collect();
    match unknown.len() {
        0 => Ok(()),
        count => Err(SingleFileError::Unknown { count, names: few(&unknown) }),
    }
}

/// Every part has to be there.
fn check_parts<'a>(parts: impl Iterator<Item = (Part, &'a Vec<Header<'a>>)>) -> Result<(), SingleFileError> {
    let (missing, found): (Vec<_>, Vec<_>) = parts.partition(|(_, tensors)| tensors.is_empty());
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
        let piece = |rows, shape| Piece { source: source.clone(), rows, transposed: false, shape };
        let made: Vec<(String, Piece)> = match found {
            Use::Unused => {
                *ignored += 1;
                continue;
            }
            Use::Whole(target) => vec![(target, piece(None, header.shape.to_vec()))],
            Use::Matrix(target) => vec![(target, piece(None, matrix(&source, header.shape)?))],
            Use::Transposed(target) => {
                let [rows, columns] = *header.shape else {
                    let (name, found) = (source, header.shape.to_vec());
                    return Err(SingleFileError::Shape { name, found, expected: "a matrix" });
                };
                vec![(target, Piece { transposed: true, ..piece(None, vec![columns, rows]) })]
            }
            Use::Thirds(targets) => {
                let (rows, shape) = third(&source, header.shape)?;
                let ranges = (0..).map(|index| Some(index * rows..(index + 1) * rows));
                targets
                    .into_iter()
                    .zip(ranges)
                    .map(|(target, rows)| (target, piece(rows, shape.clone())))
                    .collect()
            }
        };
        for (target, piece) in made {
            match pieces.entry(target) {
                Entry::Vacant(entry) => drop(entry.insert(piece)),
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

/// How many columns cross-attention takes has to be how many text embeddings have, those of both encoders if there are two.
fn check_width(parts: &Parts) -> Result<(), SingleFileError> {
    let first = width(Part::TextEncoder, &parts.text_encoder)?;
    let (expected, of) = match parts.family {
        Family::Sd1 | Family::Sd2 => (first, "the text encoder's embeddings have"),
        Family::Sdxl => (first + second_width(parts)?, "the embeddings of both text encoders have together"),
    };
    let cross = |name: &str| name.ends_with(".attn2.to_k.weight") || name.ends_with(".attn2.to_v.weight");
    for (_, piece) in parts.unet.iter().filter(|(name, _)| cross(name)) {
        let found = piece.shape.get(1).copied().unwrap_or(0);
        if found != expected {
            return Err(SingleFileError::Width { name: piece.source.clone(), found, expected, of });
        }
    }
    Ok(())
}

/// How many columns a text encoder's embeddings have.
fn width(part: Part, pieces: &BTreeMap<String, Piece>) -> Result<usize, SingleFileError> {
    columns(part, pieces, "text_model.embeddings.token_embedding.weight", "…token_embedding.weight")
}

/// The same of the second text encoder. It has to give pooled embeddings too, and the UNet has to take them.
fn second_width(parts: &Parts) -> Result<usize, SingleFileError> {
    let (part, pieces) = (Part::TextEncoder2, &parts.text_encoder_2);
    let (projection, expected) = ("text_projection.weight", width(part, pieces)?);
    let found = columns(part, pieces, projection, "text_projection")?;
    if found != expected {
        let name = pieces[projection].source.clone();
        return Err(SingleFileError::Width { name, found, expected, of: "its own embeddings have" });
    }
    columns(Part::Unet, &parts.unet, "add_embedding.linear_1.weight", "label_emb.0.0.weight")?;
    Ok(expected)
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
fn split(name: &str) -> Option<(&str, &str)> {
    name.rsplit_once('.').filter(|(_, leaf)| matches!(*leaf, "weight" | "bias"))
}

/// The same, with the parts of the layer's name.
fn layer(name: &str) -> Option<(Vec<&str>, &str)> {
    split(name).map(|(layer, leaf)| (layer.split('.').collect(), leaf))
}

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(super) use tests::published::published;
