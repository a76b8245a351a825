//! Checks of inputs before anything is computed: only headers and configurations are read.

use std::path::Path;

use anyhow::{bail, ensure};

use super::arrays;
use super::parameters::Parameters;
use crate::io::TensorFile;
use crate::io::lora::{Lora, Network};
use crate::io::npy::Npy;
use crate::method::schedule::ScheduleConfig;
use crate::method::selection::Selection;
use crate::models::clip::text::ClipConfig;
use crate::models::tokenizer;
use crate::models::unet::config::UNetConfig;
use crate::models::vae::VaeConfig;
use crate::models::weights::checkpoint;
use attrflow_engine::kind::Inputs;

/// Refuses networks and schedulers that no stage computes with, on all ports that are connected.
pub(crate) fn networks(inputs: &Inputs) -> anyhow::Result<()> {
    if let Some(folder) = inputs.get("unet") {
        unet(folder)?;
        let file = checkpoint::of(folder, inputs.get("checkpoint"))?;
        lora(inputs, Network::Unet, &file)?;
    }
    if let Some(folder) = inputs.get("scheduler") {
        ScheduleConfig::load(folder)?;
    }
    if let Some(folder) = inputs.get("vae") {
        VaeConfig::read(&folder.join("config.json"))?;
    }
    texts(inputs)
}

/// Refuses a LoRA that does not fit the network with this checkpoint.
fn lora(inputs: &Inputs, network: Network, checkpoint: &Path) -> anyhow::Result<()> {
    if let Some(path) = inputs.get("lora") {
        Lora::open(path, network, TensorFile::open(checkpoint)?.headers())?;
    }
    Ok(())
}

/// Checks text encoder and tokenizer, where they are connected.
pub(crate) fn texts(inputs: &Inputs) -> anyhow::Result<()> {
    let mut reads = None;
    if let Some(folder) = inputs.get("text_encoder") {
        reads = Some(ClipConfig::read(&folder.join("config.json"))?.max_position_embeddings as usize);
        if inputs.get("lora").is_some() {
            lora(inputs, Network::TextEncoder, &checkpoint::find(folder)?)?;
        }
    }
    if let Some(folder) = inputs.get("tokenizer") {
        let gives = tokenizer::check_folder(folder)?;
        if let Some(reads) = reads.filter(|reads| *reads < gives) {
            let file = folder.join("tokenizer_config.json");
            bail!(
                "{}: `model_max_length` is {gives}, expected at most {reads}, the positions of the text encoder",
                file.display()
            );
        }
    }
    Ok(())
}

/// The configuration of the UNet in a folder, unless it is one that no stage computes with.
pub(crate) fn unet(folder: &Path) -> anyhow::Result<UNetConfig> {
    let file = folder.join("config.json");
    let config = UNetConfig::read(&file)?;
    ensure!(
        !config.takes_pooled(),
        "{}: `addition_embed_type` is \"text_time\": the network needs pooled text embeddings and image sizes, \
         which no stage computes yet",
        file.display()
    );
    Ok(config)
}

/// Refuses arrays on `latents` and `text_embeddings` that are not of one data set, or do not fit the network.
pub(crate) fn arrays(inputs: &Inputs) -> anyhow::Result<(Npy, Npy)> {
    let (latents, texts) = arrays::open(inputs)?;
    arrays::expect_fit(&latents, &texts, &unet(inputs.path("unet"))?)?;
    Ok((latents, texts))
}

/// Refuses a selection of which the network has nothing.
pub(crate) fn selected(inputs: &Inputs, selection: &Selection) -> anyhow::Result<()> {
    let network = Parameters::of(inputs, selection)?;
    ensure!(
        network.selected().next().is_some(),
        "the selection {selection} chooses no weight of {}",
        network.path.display()
    );
    Ok(())
}

/// Refuses a file of tensors that lacks one of the selected weights of the network.
pub(crate) fn covers(inputs: &Inputs, port: &str, selection: &Selection) -> anyhow::Result<()> {
    let network = Parameters::of(inputs, selection)?;
    let file = TensorFile::open(inputs.path(port))?;
    let missing: Vec<&str> = network
        .selected()
        .map(|header| header.name.as_str())
        .filter(|name| file.header(name).is_none())
        .collect();
    ensure!(
        missing.is_empty(),
        "{}: it lacks {} of the selected weights, for instance `{}`: set `select` to weights that it has, or \
         compute it for these",
        file.path().display(),
        missing.len(),
        missing[0]
    );
    Ok(())
}
