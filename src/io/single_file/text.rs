//! The text encoder's names.

use super::{Header, Part, SingleFileError, Use, count, index, layer};

/// OpenCLIP's layer that no text encoder of Stable Diffusion 2 has.
///
/// OpenCLIP (ViT-H/14) has 24 layers, numbered from 0. The model was trained on what the last but one
/// gives, so folders hold 23, and diffusers leaves out layer 23. It does so by the number: files that were
/// written from a folder have 23 layers, of which none is too many. Other depths are kept whole, as
/// diffusers does.
const UNUSED_LAYER: usize = 23;

/// The names that a text encoder has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Text {
    /// Those of the folder.
    Clip,
    /// Those of OpenCLIP.
    OpenClip {
        /// Whether the part has all layers and the projection, as Stable Diffusion XL's: what is used of them is decided when
        /// texts are encoded.
        whole: bool,
    },
}

impl Text {
    /// What a tensor is for; none for a name that is not known.
    pub fn find(self, name: &str) -> Option<Use> {
        match self {
            Text::Clip => clip(name),
            Text::OpenClip { whole } => open_clip(name, whole),
        }
    }

    /// # Errors
    /// Layers that are not all there, or more than are known.
    pub fn check_layers(self, part: Part, tensors: &[Header<'_>]) -> Result<(), SingleFileError> {
        let layers = match self {
            Text::Clip => {
                let plain =
                    tensors.iter().map(|header| Header { name: without_prefix(header.name), ..*header });
                count(&plain.collect::<Vec<_>>(), "encoder.layers.")
            }
            Text::OpenClip { .. } => count(tensors, "transformer.resblocks."),
        };
        let (found, expected) = match layers {
            None => ("gaps in the numbers of its layers".to_owned(), "all from 0 on"),
            Some(layers) if self == (Text::OpenClip { whole: false }) && layers > UNUSED_LAYER + 1 => {
                (format!("{layers} layers"), "24 or fewer, as OpenCLIP ViT-H/14 has")
            }
            Some(_) => return Ok(()),
        };
        Err(SingleFileError::Layout { part, found, expected })
    }
}

/// Some files leave it out.
fn without_prefix(name: &str) -> &str {
    name.strip_prefix("text_model.").unwrap_or(name)
}

/// CLIP has the names of the folder.
fn clip(name: &str) -> Option<Use> {
    let name = without_prefix(name);
    let (parts, leaf) = layer(name)?;
    let known = match parts[..] {
        ["embeddings", "token_embedding" | "position_embedding"] => leaf == "weight",
        ["final_layer_norm"] => true,
        ["encoder", "layers", number, ref rest @ ..] => {
            index(number).is_some()
                && matches!(
                    rest,
                    ["layer_norm1" | "layer_norm2"]
                        | ["self_attn", "q_proj" | "k_proj" | "v_proj" | "out_proj"]
                        | ["mlp", "fc1" | "fc2"]
                )
        }
        _ => false,
    };
    known.then(|| Use::Whole(format!("text_model.{name}")))
}

/// OpenCLIP has names of its own, and queries, keys and values in one tensor. Its projection is multiplied from the right.
fn open_clip(name: &str, with_all: bool) -> Option<Use> {
    let whole = |target: String| Some(Use::Whole(format!("text_model.{target}")));
    match name {
        "token_embedding.weight" => return whole("embeddings.token_embedding.weight".to_owned()),
        "positional_embedding" => return whole("embeddings.position_embedding.weight".to_owned()),
        "ln_final.weight" | "ln_final.bias" => return whole(name.replace("ln_final", "final_layer_norm")),
        "text_projection" if with_all => return Some(Use::Transposed("text_projection.weight".to_owned())),
        _ => {}
    }
    let (number, rest) = name.strip_prefix("transformer.resblocks.")?.split_once('.')?;
    let number = index(number)?;
    let thirds = |leaf: &str| {
        let target = |map| format!("text_model.encoder.layers.{number}.self_attn.{map}_proj.{leaf}");
        Use::Thirds(["q", "k", "v"].map(target))
    };
    let found = match rest {
        "attn.in_proj_weight" => thirds("weight"),
        "attn.in_proj_bias" => thirds("bias"),
        _ => {
            let (parts, leaf) = layer(rest)?;
            let module = match parts[..] {
                ["attn", "out_proj"] => "self_attn.out_proj",
                ["mlp", "c_fc"] => "mlp.fc1",
                ["mlp", "c_proj"] => "mlp.fc2",
                ["ln_1"] => "layer_norm1",
                ["ln_2"] => "layer_norm2",
                _ => return None,
            };
            Use::Whole(format!("text_model.encoder.layers.{number}.{module}.{leaf}"))
        }
    };
    Some(if number == UNUSED_LAYER && !with_all { Use::Unused } else { found })
}
