//! The demo: a small data set and model, which the program carries with it.

use std::path::Path;

use super::IGNORE;
use crate::cli::failure::Failure;
use crate::cli::files;

/// Files of the project by their paths in it, with their bytes.
macro_rules! files {
    ($($path:literal),* $(,)?) => {
        [$(($path, include_bytes!(concat!("../../../", $path)) as &[u8])),*]
    };
}

const FILES: [(&str, &[u8]); 16] = files![
    "pipelines/demo.toml",
    "pipelines/parts/emoji.toml",
    "configs/demo.toml",
    "data/demo/README.md",
    "data/demo/captions.json",
    "data/demo/images.zip",
    "data/demo/model/scheduler/scheduler_config.json",
    "data/demo/model/text_encoder/config.json",
    "data/demo/model/text_encoder/model.safetensors",
    "data/demo/model/tokenizer/merges.txt",
    "data/demo/model/tokenizer/tokenizer_config.json",
    "data/demo/model/tokenizer/vocab.json",
    "data/demo/model/unet/config.json",
    "data/demo/model/unet/diffusion_pytorch_model.safetensors",
    "data/demo/model/vae/config.json",
    "data/demo/model/vae/diffusion_pytorch_model.safetensors",
];

/// The pipeline of the demo.
pub(in crate::cli) const PIPELINE: &str = FILES[0].0;

/// Writes the files that the folder lacks; how many these were. Others stay as they are.
pub(in crate::cli) fn write(folder: &Path) -> Result<usize, Failure> {
    let mut written = 0;
    for (name, bytes) in FILES.into_iter().chain([(IGNORE.0, IGNORE.1.as_bytes())]) {
        let path = folder.join(name);
        if path.symlink_metadata().is_err() {
            files::write(&path, bytes, false).map_err(|error| Failure::Refused(error.to_string()))?;
            written += 1;
        }
    }
    Ok(written)
}
