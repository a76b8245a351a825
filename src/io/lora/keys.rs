//! The names of tensors in files of adapters.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};

use crate::io::single_file::names_in_ldm;

/// The network that an adapter changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Network {
    /// The denoising network.
    Unet,
    /// The text encoder, or the first of two.
    TextEncoder,
    /// The second text encoder, as SDXL has one.
    TextEncoder2,
}

impl Network {
    /// The name of its folder.
    pub fn name(self) -> &'static str {
        match self {
            Network::Unet => "unet",
            Network::TextEncoder => "text_encoder",
            Network::TextEncoder2 => "text_encoder_2",
        }
    }

    /// A layer's name without what older files of text encoders begin all names with.
    pub fn without_prefix(self, layer: &str) -> &str {
        match self {
            Network::Unet => layer,
            Network::TextEncoder | Network::TextEncoder2 => layer.strip_prefix(TEXT_MODEL).unwrap_or(layer),
        }
    }
}

const TEXT_MODEL: &str = "text_model.";

impl Display for Network {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Network::Unet => "UNet",
            Network::TextEncoder => "text encoder",
            Network::TextEncoder2 => "second text encoder",
        })
    }
}

/// What a tensor is in its adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Down,
    Up,
    Alpha,
}

/// How a file writes the name of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Name {
    /// With dots.
    Dotted(String),
    /// With underscores in place of dots: as diffusers names it, or the original code (LDM).
    Underscored(String),
}

/// A tensor's name, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key {
    pub network: Network,
    pub role: Role,
    pub name: Name,
}

/// Parts of names of what is no plain LoRA, and what it is.
const UNSUPPORTED: [(&str, &str); 10] = [
    ("dora_scale", "DoRA"),
    ("lora_magnitude_vector", "DoRA"),
    ("hada_w", "LyCORIS (LoHa)"),
    ("lokr_", "LyCORIS (LoKr)"),
    ("lora_mid", "LyCORIS (LoCon with a core)"),
    (".oft_", "OFT"),
    ("lora_te3_", "a LoRA of Stable Diffusion 3"),
    ("text_encoder_3.", "a LoRA of Stable Diffusion 3"),
    ("lora_transformer_", "a transformer's LoRA"),
    ("bundle_emb.", "a LoRA with embeddings of its own (pivotal tuning)"),
];

/// Ends of names, and what they mean. The first that fits counts.
const ROLES: [(&str, Role); 13] = [
    (".lora_A.weight", Role::Down),
    (".lora_B.weight", Role::Up),
    (".lora_A.default.weight", Role::Down),
    (".lora_B.default.weight", Role::Up),
    (".lora.down.weight", Role::Down),
    (".lora.up.weight", Role::Up),
    (".lora_linear_layer.down.weight", Role::Down),
    (".lora_linear_layer.up.weight", Role::Up),
    (".lora_down.weight", Role::Down),
    (".lora_up.weight", Role::Up),
    ("_lora.down.weight", Role::Down),
    ("_lora.up.weight", Role::Up),
    (".alpha", Role::Alpha),
];

impl Key {
    /// Takes a name apart: none for one that no LoRA has.
    ///
    /// # Errors
    /// What it is of, for a name of what is not supported.
    pub fn parse(name: &str) -> Result<Option<Key>, &'static str> {
        if let Some((_, what)) = UNSUPPORTED.iter().find(|(part, _)| name.contains(part)) {
            return Err(what);
        }
        let kohya = [
            ("lora_unet_", Network::Unet),
            ("lora_te_", Network::TextEncoder),
            ("lora_te1_", Network::TextEncoder),
            ("lora_te2_", Network::TextEncoder2),
        ];
        let dotted = [
            ("unet.", Network::Unet),
            ("text_encoder.", Network::TextEncoder),
            ("text_encoder_2.", Network::TextEncoder2),
            ("base_model.model.", Network::Unet),
        ];
        let of = |prefixes: &[(&str, Network)]| {
            prefixes.iter().find_map(|(prefix, network)| Some((*network, name.strip_prefix(prefix)?)))
        };
        let (network, rest, underscored) = match of(&kohya) {
            Some((network, rest)) => (network, rest, true),
            // The oldest files are of the UNet alone, and have no prefix.
            None => {
                of(&dotted).map_or((Network::Unet, name, false), |(network, rest)| (network, rest, false))
            }
        };
        let found = ROLES.iter().find_map(|(end, role)| Some((*role, rest.strip_suffix(end)?)));
        Ok(found.map(|(role, layer)| {
            let name =
                if underscored { Name::Underscored(layer.to_owned()) } else { Name::Dotted(plain(layer)) };
            Key { network, role, name }
        }))
    }
}

/// The layer's own name, where a file names the processor of its attention.
fn plain(layer: &str) -> String {
    match layer.split_once(".processor.to_") {
        Some((attention, "out")) => format!("{attention}.to_out.0"),
        Some((attention, map)) => format!("{attention}.to_{map}"),
        None => layer.to_owned(),
    }
}

/// The layers of a network, by all ways to write their names.
pub(super) struct Layers<'a> {
    network: Network,
    dotted: BTreeMap<&'a str, &'a str>,
    underscored: BTreeMap<String, &'a str>,
}

impl<'a> Layers<'a> {
    pub fn new(network: Network, names: impl Iterator<Item = &'a str> + Clone) -> Layers<'a> {
        let underscored = |name: &'a str| {
            let whole = match network {
                // It stands beside the text model.
                Network::TextEncoder2 if name == "text_projection" => name.to_owned(),
                Network::TextEncoder | Network::TextEncoder2 => format!("{TEXT_MODEL}{name}"),
                Network::Unet => name.to_owned(),
            };
            (whole.replace('.', "_"), name)
        };
        let of_ldm = match network {
            Network::Unet => names_in_ldm(names.clone()),
            Network::TextEncoder | Network::TextEncoder2 => BTreeMap::new(),
        };
        let dotted = names.clone().map(|name| (name, name)).collect();
        let of_ldm = of_ldm.into_iter().map(|(name, layer)| (name.replace('.', "_"), layer));
        Layers { network, dotted, underscored: names.map(underscored).chain(of_ldm).collect() }
    }

    /// The layer of this name.
    pub fn find(&self, name: &Name) -> Option<&'a str> {
        match name {
            Name::Dotted(name) => self.dotted.get(self.network.without_prefix(name)).copied(),
            Name::Underscored(name) => self.underscored.get(name).copied(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::io::single_file;

    #[test]
    fn every_way_to_write_a_name_gives_its_layer() {
        let attention = "mid_block.attentions.0.transformer_blocks.0.attn2";
        let layers = [format!("{attention}.to_k"), format!("{attention}.to_out.0")];
        let network = Layers::new(Network::Unet, layers.iter().map(String::as_str));
        let under = attention.replace('.', "_");
        for (name, layer, role) in [
            (format!("unet.{attention}.to_k.lora_A.weight"), 0, Role::Down),
            (format!("unet.{attention}.to_out.0.lora_B.weight"), 1, Role::Up),
            (format!("base_model.model.{attention}.to_k.lora_A.default.weight"), 0, Role::Down),
            (format!("unet.{attention}.to_k.lora.up.weight"), 0, Role::Up),
            (format!("unet.{attention}.processor.to_out_lora.down.weight"), 1, Role::Down),
            (format!("{attention}.processor.to_k_lora.up.weight"), 0, Role::Up),
            (format!("lora_unet_{under}_to_k.lora_down.weight"), 0, Role::Down),
            (format!("lora_unet_{under}_to_out_0.alpha"), 1, Role::Alpha),
        ] {
            let key = Key::parse(&name).unwrap().unwrap();
            assert_eq!((key.network, key.role), (Network::Unet, role), "{name}");
            assert_eq!(network.find(&key.name), Some(layers[layer].as_str()), "{name}");
        }
        assert_eq!(Key::parse("conv_in.weight"), Ok(None));
        assert_eq!(Key::parse(&format!("lora_unet_{under}_to_k.hada_w1_a")), Err("LyCORIS (LoHa)"));
    }

    /// The layers that can have an adapter in the UNet of a family, by the names that they have in LDM.
    fn published(family: &str) -> BTreeMap<String, String> {
        let linear = |shape: &str| matches!(shape.split('x').count(), 2 | 4);
        let lines = single_file::published(family).into_iter();
        let weights = lines.filter(|[_, _, part, _, shape]| part == "unet" && linear(shape));
        let layer = |name: &str| name.strip_suffix(".weight").map(str::to_owned);
        let of_ldm = |name: &str| layer(name.strip_prefix("model.diffusion_model.")?);
        weights.filter_map(|[source, _, _, target, _]| Some((of_ldm(&source)?, layer(&target)?))).collect()
    }

    #[test]
    fn the_layers_of_published_networks_are_found_by_both_their_names() {
        for (family, count) in [("sd1", 282), ("sd2", 282), ("sdxl", 794)] {
            let layers = published(family);
            assert_eq!(layers.len(), count, "{family}");
            let network = Layers::new(Network::Unet, layers.values().map(String::as_str));
            for (name, layer) in &layers {
                for name in [name, layer] {
                    let key = Key::parse(&format!("lora_unet_{}.lora_up.weight", name.replace('.', "_")));
                    let Key { network: of, name, .. } = key.unwrap().unwrap();
                    assert_eq!((of, network.find(&name)), (Network::Unet, Some(layer.as_str())), "{name:?}");
                }
            }
            // Each layer has two names, and none is of two layers.
            let names = layers.iter().flat_map(|(own, other)| [own, other]);
            let names: BTreeSet<String> = names.map(|name| name.replace('.', "_")).collect();
            assert_eq!((names.len(), network.underscored.len()), (2 * count, 2 * count), "{family}");
        }
    }

    #[test]
    fn blocks_of_unlike_depths_have_no_names_in_ldm() {
        let name = Name::Underscored("input_blocks_1_0_in_layers_2".to_owned());
        for (other, found) in [("up_blocks.0.resnets.1", true), ("down_blocks.1.resnets.1", false)] {
            let layers =
                ["down_blocks.0.resnets.0", "down_blocks.1.resnets.0", "up_blocks.0.resnets.0", other];
            let layers = layers.map(|resnet| format!("{resnet}.conv1"));
            for (count, found) in [(4, found), (3, false)] {
                let network = Layers::new(Network::Unet, layers[..count].iter().map(String::as_str));
                assert_eq!(network.find(&name).is_some(), found, "{other}: {count}");
            }
        }
    }

    #[test]
    fn a_text_encoder_is_named_with_and_without_its_prefix() {
        let layer = "encoder.layers.0.self_attn.q_proj";
        let network = Layers::new(Network::TextEncoder, [layer].into_iter());
        for name in [
            "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight",
            "text_encoder.encoder.layers.0.self_attn.q_proj.lora_linear_layer.down.weight",
            "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight",
            "lora_te1_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight",
        ] {
            let key = Key::parse(name).unwrap().unwrap();
            assert_eq!((key.network, network.find(&key.name)), (Network::TextEncoder, Some(layer)), "{name}");
        }
    }

    #[test]
    fn a_second_text_encoder_has_prefixes_of_its_own() {
        let layers = ["encoder.layers.31.mlp.fc1", "text_projection"];
        let network = Layers::new(Network::TextEncoder2, layers.into_iter());
        for (name, layer) in [
            ("text_encoder_2.text_model.encoder.layers.31.mlp.fc1.lora_A.weight", 0),
            ("text_encoder_2.encoder.layers.31.mlp.fc1.lora.up.weight", 0),
            ("text_encoder_2.text_projection.lora_B.weight", 1),
            ("lora_te2_text_model_encoder_layers_31_mlp_fc1.lora_down.weight", 0),
            ("lora_te2_text_projection.alpha", 1),
        ] {
            let Key { network: of, name: found, .. } = Key::parse(name).unwrap().unwrap();
            assert_eq!((of, network.find(&found)), (Network::TextEncoder2, Some(layers[layer])), "{name}");
        }
        for name in ["lora_te3_encoder_block_0_layer_0.lora_up.weight", "text_encoder_3.x.lora_A.weight"] {
            assert_eq!(Key::parse(name), Err("a LoRA of Stable Diffusion 3"));
        }
    }
}
