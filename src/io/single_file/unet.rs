//! The UNet's names.

use std::collections::BTreeSet;

use super::{Header, Part, SingleFileError, Use, count, few, index, layer, numbered};

/// The UNet's names in LDM and in diffusers.
///
/// LDM numbers places through. The first takes the latents. A block down is a place for each layer and one
/// that halves the size; a block up is a place for each layer and one more, of which the last also doubles
/// the size. The last block down and the last block up keep the size.
pub(super) struct Names {
    /// How many places a block has.
    places: usize,
}

/// Whether it is a name of a UNet, of whatever blocks.
pub(super) fn is_known(name: &str) -> bool {
    Names { places: 1 }.find(name).is_some()
}

impl Names {
    /// Reads off where the size changes how many places a block has.
    ///
    /// # Errors
    /// Blocks that are not of as many places each.
    pub fn of(tensors: &[Header<'_>]) -> Result<Names, SingleFileError> {
        let with = |prefix: &str, ends: &[&str]| -> BTreeSet<usize> {
            let numbers = numbered(tensors, prefix).into_iter();
            let changing = numbers.filter(|(_, rest)| ends.iter().any(|end| rest.starts_with(end)));
            changing.map(|(number, _)| number).collect()
        };
        let halved = with("input_blocks.", &["0.op."]);
        let doubled = with("output_blocks.", &["1.conv.", "2.conv."]);
        let [inputs, outputs] = ["input_blocks.", "output_blocks."].map(|prefix| count(tensors, prefix));
        let blocks = halved.len() + 1;
        // Without a change of size, all places are of one block.
        let places = halved.first().copied().or(inputs).unwrap_or(0);
        let fits = places >= 2
            && inputs.is_some_and(|inputs| Some(inputs) == blocks.checked_mul(places))
            && outputs == inputs
            && halved.iter().copied().eq((1..blocks).map(|block| block * places))
            && doubled.iter().copied().eq((1..blocks).map(|block| block * places - 1));
        if fits {
            return Ok(Names { places });
        }
        let number = |count: Option<usize>| count.map_or("gaps in its".to_owned(), |count| count.to_string());
        let [halved, doubled] = [halved, doubled].map(|places| few(&places.into_iter().collect::<Vec<_>>()));
        let found = format!(
            "{} `input_blocks` with `op` in [{halved}] and {} `output_blocks` with `conv` in [{doubled}]",
            number(inputs),
            number(outputs)
        );
        Err(SingleFileError::Layout { part: Part::Unet, found, expected: "blocks of as many layers each" })
    }

    /// What a tensor is for; none for a name that is not known.
    pub fn find(&self, name: &str) -> Option<Use> {
        let (parts, leaf) = layer(name)?;
        let target = match parts[..] {
            ["time_embed", "0"] => "time_embedding.linear_1".to_owned(),
            ["time_embed", "2"] => "time_embedding.linear_2".to_owned(),
            ["out", "0"] => "conv_norm_out".to_owned(),
            ["out", "2"] => "conv_out".to_owned(),
            ["middle_block", "0", ref rest @ ..] => format!("mid_block.resnets.0.{}", resnet(rest)?),
            ["middle_block", "1", ref rest @ ..] => format!("mid_block.attentions.0.{}", attention(rest)?),
            ["middle_block", "2", ref rest @ ..] => format!("mid_block.resnets.1.{}", resnet(rest)?),
            ["input_blocks", "0", "0"] => "conv_in".to_owned(),
            ["input_blocks", place, ref rest @ ..] => {
                self.at("down_blocks", index(place)?.checked_sub(1)?, rest)?
            }
            ["output_blocks", place, ref rest @ ..] => self.at("up_blocks", index(place)?, rest)?,
            _ => return None,
        };
        Some(Use::Whole(format!("{target}.{leaf}")))
    }

    /// The layer of a block: its first has number 0.
    fn at(&self, blocks: &str, place: usize, rest: &[&str]) -> Option<String> {
        let (block, index) = (place / self.places, place % self.places);
        let rest = match *rest {
            ["0", "op"] if blocks == "down_blocks" => "downsamplers.0.conv".to_owned(),
            // Attention, where there is some, stands before it.
            ["1" | "2", "conv"] if blocks == "up_blocks" => "upsamplers.0.conv".to_owned(),
            ["0", ref rest @ ..] => format!("resnets.{index}.{}", resnet(rest)?),
            ["1", ref rest @ ..] => format!("attentions.{index}.{}", attention(rest)?),
            _ => return None,
        };
        Some(format!("{blocks}.{block}.{rest}"))
    }
}

/// A layer of a residual block.
fn resnet(name: &[&str]) -> Option<&'static str> {
    Some(match name {
        ["in_layers", "0"] => "norm1",
        ["in_layers", "2"] => "conv1",
        ["emb_layers", "1"] => "time_emb_proj",
        ["out_layers", "0"] => "norm2",
        ["out_layers", "3"] => "conv2",
        ["skip_connection"] => "conv_shortcut",
        _ => return None,
    })
}

/// A layer of a transformer, which both call the same.
fn attention(name: &[&str]) -> Option<String> {
    let known = match name {
        ["norm" | "proj_in" | "proj_out"] => true,
        ["transformer_blocks", number, rest @ ..] => {
            index(number).is_some()
                && matches!(
                    rest,
                    ["norm1" | "norm2" | "norm3"]
                        | ["attn1" | "attn2", "to_q" | "to_k" | "to_v"]
                        | ["attn1" | "attn2", "to_out", "0"]
                        | ["ff", "net", "0", "proj"]
                        | ["ff", "net", "2"]
                )
        }
        _ => false,
    };
    known.then(|| name.join("."))
}
