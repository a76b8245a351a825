//! The networks that stages work with: the ports that they stand on, and their loading.

use std::path::Path;

use super::device;
use crate::nn::config::ModelError;
use crate::nn::unet::{Precision, UNet};
use crate::stage::{Context, Input, Inputs};

pub(super) const UNET: Input = Input::new(
    "unet",
    "a folder with config.json and a checkpoint (safetensors or torch), or with config.json alone beside `checkpoint`",
);
pub(super) const CHECKPOINT: Input = Input::new(
    "checkpoint",
    "the network's weights where they do not lie in the `unet` folder: a file (safetensors or torch)",
)
.optional();
pub(super) const SCHEDULER: Input = Input::new("scheduler", "a folder with scheduler_config.json");
pub(super) const VAE: Input =
    Input::new("vae", "a folder with config.json and a checkpoint (safetensors or torch)");
pub(super) const TEXT_ENCODER: Input =
    Input::new("text_encoder", "a folder with config.json and a checkpoint (safetensors or torch)");
pub(super) const TOKENIZER: Input = Input::new("tokenizer", "a folder with vocab.json and merges.txt");

/// The network on the ports `unet` and `checkpoint`, on the context's device.
pub(super) fn load_unet(inputs: &Inputs, cx: &Context<'_>) -> anyhow::Result<UNet> {
    load_changed(inputs, None, cx)
}

/// The same with the tensors of the file `changed` in place of its own.
pub(super) fn load_changed(
    inputs: &Inputs,
    changed: Option<&Path>,
    cx: &Context<'_>,
) -> anyhow::Result<UNet> {
    let (folder, checkpoint) = (inputs.path("unet"), inputs.get("checkpoint"));
    UNet::load_parts(folder, checkpoint, changed, device::torch(cx.device), Precision::Fp32).map_err(|error| match error {
        ModelError::NoCheckpoint { .. } => {
            anyhow::anyhow!("{error}; one that lies elsewhere belongs on the input `checkpoint`")
        }
        error => error.into(),
    })
}
