//! The UNet's names.

use std::collections::{BTreeMap, BTreeSet};

use super::{Header, Part, SingleFileError, Use, count, few, index, numbered, split};

/// The UNet's names in LDM and in diffusers.
///
/// LDM numbers places through. The first takes the latents. A block down is a place for each layer and one
/// that halves the size; a block up is a place for each layer and one more, of which the last also doubles
/// the size. The last block down and the last block up keep the size.
pub(super) struct Names {
    /// How many places a block has.
    places: usize,
}

/// Layers outside of the blocks, in LDM and in diffusers.
const ENDS: [(&str, &str); 7] = [
    ("time_embed.0", "time_embedding.linear_1"),
    ("time_embed.2", "time_embedding.linear_2"),
    ("label_emb.0.0", "add_embedding.linear_1"),
    ("label_emb.0.2", "add_embedding.linear_2"),
    ("input_blocks.0.0", "conv_in"),
    ("out.0", "conv_norm_out"),
    ("out.2", "conv_out"),
];

/// What is in the middle, in LDM and in diffusers.
const MIDDLE: [(&str, &str); 3] = [("0", "resnets.0"), ("1", "attentions.0"), ("2", "resnets.1")];

/// Layers of a residual block, in LDM and in diffusers.
const RESNET: [(&str, &str); 6] = [
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "time_emb_proj"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
    ("skip_connection", "conv_shortcut"),
];

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
        let (name, leaf) = split(name)?;
        Some(Use::Whole(format!("{}.{leaf}", self.in_diffusers(name)?)))
    }

    /// The name in diffusers of a layer.
    fn in_diffusers(&self, layer: &str) -> Option<String> {
        if let Some((_, target)) = ENDS.iter().find(|(own, _)| *own == layer) {
            return Some((*target).to_owned());
        }
        let (side, rest) = layer.split_once('.')?;
        let (place, rest) = rest.split_once('.')?;
        match side {
            "middle_block" => {
                let (_, module) = MIDDLE.iter().find(|(own, _)| *own == place)?;
                let rest = if place == "1" { attention(rest)? } else { in_resnet(rest)? };
                Some(format!("mid_block.{module}.{rest}"))
            }
            "input_blocks" => self.at("down_blocks", index(place)?.checked_sub(1)?, rest),
            "output_blocks" => self.at("up_blocks", index(place)?, rest),
            _ => None,
        }
    }

    /// The layer of a block: its first has number 0.
    fn at(&self, blocks: &str, place: usize, rest: &str) -> Option<String> {
        let (block, index) = (place / self.places, place % self.places);
        let rest = match rest.split_once('.')? {
            ("0", "op") if blocks == "down_blocks" => "downsamplers.0.conv".to_owned(),
            // Attention, where there is some, stands before it.
            ("1" | "2", "conv") if blocks == "up_blocks" => "upsamplers.0.conv".to_owned(),
            ("0", rest) => format!("resnets.{index}.{}", in_resnet(rest)?),
            ("1", rest) => format!("attentions.{index}.{}", attention(rest)?),
            _ => return None,
        };
        Some(format!("{blocks}.{block}.{rest}"))
    }

    /// The name in LDM of a layer, in a network that has attention in these blocks up. It may be no name, if there is no
    /// such layer.
    fn in_ldm(&self, layer: &str, attend: &BTreeSet<usize>) -> Option<String> {
        if let Some((own, _)) = ENDS.iter().find(|(_, target)| *target == layer) {
            return Some((*own).to_owned());
        }
        let inside = |rest: &str| {
            let own = RESNET.iter().find(|(_, target)| *target == rest);
            own.map_or_else(|| rest.to_owned(), |(own, _)| (*own).to_owned())
        };
        let (side, rest) = layer.split_once('.')?;
        if side == "mid_block" {
            let within = |module| rest.strip_prefix(module)?.strip_prefix('.');
            let (own, rest) = MIDDLE.iter().find_map(|(own, module)| Some((own, within(*module)?)))?;
            return Some(format!("middle_block.{own}.{}", inside(rest)));
        }
        let (side, offset) = match side {
            "down_blocks" => ("input_blocks", 1),
            "up_blocks" => ("output_blocks", 0),
            _ => return None,
        };
        let mut parts = rest.splitn(4, '.');
        let block = index(parts.next()?)?;
        let (kind, number, rest) = (parts.next()?, index(parts.next()?)?, parts.next()?);
        let first = block.checked_mul(self.places)?.checked_add(offset)?;
        let (place, last) = (first.checked_add(number)?, first.checked_add(self.places - 1)?);
        Some(match kind {
            "resnets" => format!("{side}.{place}.0.{}", inside(rest)),
            "attentions" => format!("{side}.{place}.1.{rest}"),
            "downsamplers" => format!("{side}.{last}.0.op"),
            "upsamplers" => format!("{side}.{last}.{}.conv", if attend.contains(&block) { 2 } else { 1 }),
            _ => return None,
        })
    }
}

/// The layers of a UNet, which are given as diffusers names them, by their names in LDM: none if its blocks are not of as many
/// layers each, and without those that LDM does not have.
pub(in crate::io) fn names_in_ldm<'a>(
    layers: impl Iterator<Item = &'a str> + Clone,
) -> BTreeMap<String, &'a str> {
    let in_blocks = |prefix: &str, kind: &str| {
        let mut found: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
        let numbers = layers.clone().filter_map(|layer| {
            let (block, rest) = layer.strip_prefix(prefix)?.split_once('.')?;
            Some((index(block)?, index(rest.strip_prefix(kind)?.split_once('.')?.0)?))
        });
        for (block, number) in numbers {
            found.entry(block).or_default().insert(number);
        }
        found
    };
    let [down, up] = ["down_blocks.", "up_blocks."].map(|prefix| in_blocks(prefix, "resnets."));
    let attend: BTreeSet<usize> = in_blocks("up_blocks.", "attentions.").into_keys().collect();
    let places = down.values().next().map_or(0, BTreeSet::len) + 1;
    let even = down.values().all(|layers| layers.len() + 1 == places)
        && up.values().all(|layers| layers.len() == places);
    let names = Names { places };
    let named = layers.filter(|_| even).filter_map(|layer| {
        let name = names.in_ldm(layer, &attend)?;
        // What is read back as another layer, or as none, is no name of it.
        (names.in_diffusers(&name).as_deref() == Some(layer)).then_some((name, layer))
    });
    named.collect()
}

/// A layer of a residual block.
fn in_resnet(name: &str) -> Option<&'static str> {
    RESNET.iter().find_map(|(own, target)| (*own == name).then_some(*target))
}

/// A layer of a transformer, which both call the same.
fn attention(name: &str) -> Option<&str> {
    let parts: Vec<&str> = name.split('.').collect();
    let known = match parts[..] {
        ["norm" | "proj_in" | "proj_out"] => true,
        ["transformer_blocks", number, ref rest @ ..] => {
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
    known.then_some(name)
}
