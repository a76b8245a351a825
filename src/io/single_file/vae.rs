//! The VAE's names.

use super::{Header, Part, SingleFileError, Use, count, index, layer};

/// The VAE's names in LDM and in diffusers.
///
/// LDM numbers the decoder's blocks from the finest, diffusers from the coarsest. The attention's linear maps
/// are convolutions in LDM.
pub(super) struct Names {
    /// How many blocks the encoder and the decoder have.
    blocks: usize,
}

/// Whether it is a name of a VAE, of however many blocks.
pub(super) fn is_known(name: &str) -> bool {
    Names { blocks: usize::MAX }.find(name).is_some()
}

impl Names {
    /// Counts the blocks.
    ///
    /// # Errors
    /// An encoder and a decoder that have not as many.
    pub fn of(tensors: &[Header<'_>]) -> Result<Names, SingleFileError> {
        let [down, up] = ["encoder.down.", "decoder.up."].map(|prefix| count(tensors, prefix));
        match (down, up) {
            (Some(down), Some(up)) if down == up && up > 0 => Ok(Names { blocks: up }),
            _ => {
                let [down, up] =
                    [down, up].map(|count| count.map_or("gaps in".to_owned(), |count| count.to_string()));
                let found = format!("{down} blocks `encoder.down` and {up} blocks `decoder.up`");
                Err(SingleFileError::Layout {
                    part: Part::Vae,
                    found,
                    expected: "as many of both, and no gaps",
                })
            }
        }
    }

    /// What a tensor is for; none for a name that is not known.
    pub fn find(&self, name: &str) -> Option<Use> {
        let (parts, leaf) = layer(name)?;
        let whole = |target: String| Some(Use::Whole(format!("{target}.{leaf}")));
        match parts[..] {
            ["quant_conv" | "post_quant_conv"] => whole(parts[0].to_owned()),
            [side @ ("encoder" | "decoder"), ref rest @ ..] => match *rest {
                ["conv_in" | "conv_out"] => whole(format!("{side}.{}", rest[0])),
                ["norm_out"] => whole(format!("{side}.conv_norm_out")),
                ["mid", "attn_1", ref rest @ ..] => {
                    let target = format!("{side}.mid_block.attentions.0.{}.{leaf}", attention(rest)?);
                    Some(if leaf == "weight" && rest != ["norm"] {
                        Use::Matrix(target)
                    } else {
                        Use::Whole(target)
                    })
                }
                ["mid", "block_1", module] => {
                    whole(format!("{side}.mid_block.resnets.0.{}", resnet(module)?))
                }
                ["mid", "block_2", module] => {
                    whole(format!("{side}.mid_block.resnets.1.{}", resnet(module)?))
                }
                [way @ ("down" | "up"), number, ref rest @ ..] => {
                    let number = index(number)?;
                    let (blocks, number) = match (side, way) {
                        ("encoder", "down") => ("down_blocks", number),
                        ("decoder", "up") => ("up_blocks", self.blocks.checked_sub(number)?.checked_sub(1)?),
                        _ => return None,
                    };
                    let rest = match (way, rest) {
                        (_, ["block", layer, module]) => {
                            format!("resnets.{}.{}", index(layer)?, resnet(module)?)
                        }
                        ("down", ["downsample", "conv"]) => "downsamplers.0.conv".to_owned(),
                        ("up", ["upsample", "conv"]) => "upsamplers.0.conv".to_owned(),
                        _ => return None,
                    };
                    whole(format!("{side}.{blocks}.{number}.{rest}"))
                }
                _ => None,
            },
            _ => None,
        }
    }
}

/// A layer of a residual block.
fn resnet(name: &str) -> Option<&'static str> {
    Some(match name {
        "norm1" => "norm1",
        "conv1" => "conv1",
        "norm2" => "norm2",
        "conv2" => "conv2",
        "nin_shortcut" => "conv_shortcut",
        _ => return None,
    })
}

/// A layer of the attention. Some programs leave the names that it has in diffusers.
fn attention(name: &[&str]) -> Option<&'static str> {
    Some(match name {
        ["norm"] => "group_norm",
        ["q"] | ["to_q"] => "to_q",
        ["k"] | ["to_k"] => "to_k",
        ["v"] | ["to_v"] => "to_v",
        ["proj_out"] | ["to_out", "0"] => "to_out.0",
        _ => return None,
    })
}
