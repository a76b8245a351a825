//! Why a LoRA could not be used.

use std::io;
use std::path::PathBuf;

use super::keys::Network;
use crate::io::json::JsonError;
use crate::io::tensor_file::TensorFileError;

/// Why a LoRA could not be used. Every message names the file.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message says what its fields are")]
pub enum LoraError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Tensors(#[from] TensorFileError),
    #[error(transparent)]
    Json(#[from] JsonError),
    #[error("{}: no LoRA, looked for {names}", folder.display())]
    NoFile { folder: PathBuf, names: String },
    #[error("{}: `{key}` in the metadata: {source}", path.display())]
    Metadata { path: PathBuf, key: &'static str, source: serde_json::Error },
    #[error(
        "{}: no key of a LoRA, expected names such as `unet.….lora_A.weight` or `lora_unet_….lora_down.weight`",
        path.display()
    )]
    None { path: PathBuf },
    #[error("{}: `{key}` is of {what}, which is not supported: expected a plain LoRA of Stable Diffusion 1, 2 or XL", path.display())]
    Unsupported { path: PathBuf, key: String, what: &'static str },
    #[error("{}: `{key}` is of a second text encoder, and the UNet is of a model without one: is the LoRA for another model?", path.display())]
    SecondEncoder { path: PathBuf, key: String },
    #[error("{}: {count} keys fit no layer of the {network}: {names}: is the LoRA for another model?", path.display())]
    Unfit { path: PathBuf, network: Network, count: usize, names: String },
    #[error("{}: `{first}` and `{second}` are both of the layer `{layer}`", path.display())]
    Twice { path: PathBuf, layer: String, first: String, second: String },
    #[error("{}: the layer `{layer}` has no map {missing}", path.display())]
    Half { path: PathBuf, layer: String, missing: &'static str },
    #[error("{}: `{key}` is {found:?}, expected {expected:?} as the network's layer has it: is the LoRA for another model?", path.display())]
    Shape { path: PathBuf, key: String, found: Vec<usize>, expected: Vec<usize> },
    #[error("{}: an adapter of PEFT, whose alpha is in adapter_config.json: connect the folder that has both", path.display())]
    NoConfig { path: PathBuf },
    #[error("{}: `alpha_pattern` names `{name}`, which is no layer of the LoRA; expected names, not regular expressions", path.display())]
    Pattern { path: PathBuf, name: String },
    #[error("{}: `{key}` is {value} in its metadata: it was trained with a loss that is not computed here", path.display())]
    Loss { path: PathBuf, key: &'static str, value: String },
    #[error(
        "{}: `ss_num_reg_images` is {count} in its metadata: it was trained with class images (prior preservation), whose losses are \
         not measured here; expected 0",
        path.display()
    )]
    ClassImages { path: PathBuf, count: u64 },
    #[error("{}: `{key}` is {shape:?}, expected one finite number", path.display())]
    Alpha { path: PathBuf, key: String, shape: Vec<usize> },
}
