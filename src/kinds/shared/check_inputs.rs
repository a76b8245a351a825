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
use crate::models::unet::text_rows;
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

/// Refuses a parameter that is no timestep of the model.
pub(crate) fn timestep(inputs: &Inputs, key: &str, value: Option<usize>) -> anyhow::Result<()> {
    let Some(value) = value else { return Ok(()) };
    let timesteps = ScheduleConfig::load(inputs.path("scheduler"))?.num_train_timesteps;
    ensure!(
        (value as i64) < timesteps,
        "`{key}` is {value}, expected less than {timesteps}, the model's timesteps"
    );
    Ok(())
}

/// Refuses a LoRA that does not fit the network with this checkpoint.
fn lora(inputs: &Inputs, network: Network, checkpoint: &Path) -> anyhow::Result<()> {
    let Some(path) = inputs.get("lora") else { return Ok(()) };
    let lora = Lora::open(path, network, TensorFile::open(checkpoint)?.headers())?;
    ensure!(
        network != Network::TextEncoder
            || !lora.others.contains(&Network::TextEncoder2)
            || inputs.get("text_encoder_2").is_some(),
        "{}: it changes a second text encoder as well, and none is connected to `text_encoder_2`",
        lora.file().path().display()
    );
    Ok(())
}

/// Checks text encoders and tokenizers, where they are connected.
pub(crate) fn texts(inputs: &Inputs) -> anyhow::Result<()> {
    let first = encoder(inputs, Network::TextEncoder, "tokenizer")?;
    let second = encoder(inputs, Network::TextEncoder2, "tokenizer_2")?;
    if let (Some(one), Some(two)) = (first.tokens, second.tokens) {
        ensure!(one == two, "the tokenizers make {one} and {two} tokens of a text, expected as many of both");
    }
    let (Some(folder), Some(first)) = (inputs.get("unet"), first.config) else { return Ok(()) };
    let (file, config) = (folder.join("config.json"), unet(folder)?);
    match (config.pooled_width(), second.config) {
        (None, None) => Ok(()),
        (None, Some(_)) => bail!(
            "{}: the network takes no pooled text, so it has no second text encoder: remove `text_encoder_2` and `tokenizer_2`",
            file.display()
        ),
        (Some(_), None) => bail!(
            "{}: the network takes a pooled text (`addition_embed_type`): connect its second text encoder to `text_encoder_2` and \
             `tokenizer_2`",
            file.display()
        ),
        (Some(pooled), Some(second)) => {
            let (width, found) = (config.cross_attention_dim, first.hidden_size + second.hidden_size);
            ensure!(
                found == width,
                "the text encoders give {found} numbers a token, expected {width}, the `cross_attention_dim` in {}",
                file.display()
            );
            let found = second.projection_width();
            ensure!(
                found == pooled,
                "the second text encoder gives {found} numbers a text, expected {pooled}, which {} takes beside the sizes",
                file.display()
            );
            Ok(())
        }
    }
}

/// What is known of a text encoder and its tokenizer.
#[derive(Default)]
struct EncoderLook {
    config: Option<ClipConfig>,
    /// How many tokens it makes of a text.
    tokens: Option<usize>,
}

fn encoder(inputs: &Inputs, network: Network, tokenizer: &str) -> anyhow::Result<EncoderLook> {
    let mut look = EncoderLook::default();
    if let Some(folder) = inputs.get(network.name()) {
        look.config = Some(ClipConfig::read(&folder.join("config.json"))?);
        if inputs.get("lora").is_some() {
            lora(inputs, network, &checkpoint::find(folder)?)?;
        }
    }
    if let Some(folder) = inputs.get(tokenizer) {
        let gives = tokenizer::check_folder(folder)?;
        look.tokens = Some(gives);
        let reads = look.config.as_ref().map(|config| config.max_position_embeddings as usize);
        if let Some(reads) = reads.filter(|reads| *reads < gives) {
            let file = folder.join("tokenizer_config.json");
            bail!(
                "{}: `model_max_length` is {gives}, expected at most {reads}, the positions of the text encoder",
                file.display()
            );
        }
    }
    Ok(look)
}

/// Refuses one of the ports of a second text encoder without the other.
pub(crate) fn second_encoder(connected: &dyn Fn(&str) -> bool) -> Vec<(String, String)> {
    let (missing, there) = match (connected("text_encoder_2"), connected("tokenizer_2")) {
        (true, false) => ("tokenizer_2", "text_encoder_2"),
        (false, true) => ("text_encoder_2", "tokenizer_2"),
        _ => return Vec::new(),
    };
    vec![(there.to_owned(), format!("`{there}` needs `{missing}`: connect both or none"))]
}

/// The configuration of the UNet in a folder.
pub(crate) fn unet(folder: &Path) -> anyhow::Result<UNetConfig> {
    Ok(UNetConfig::read(&folder.join("config.json"))?)
}

/// Refuses arrays on `latents` and `text_embeddings` that are not of one data set, or do not fit the network.
pub(crate) fn arrays(inputs: &Inputs) -> anyhow::Result<(Npy, Npy)> {
    let (latents, texts) = arrays::open(inputs)?;
    let config = unet(inputs.path("unet"))?;
    arrays::expect_fit(&latents, &texts, &config)?;
    sizes(&texts, &config)?;
    Ok((latents, texts))
}

/// Refuses texts without the pooled text and the sizes that the network takes: by the first of them.
pub(crate) fn sizes(texts: &Npy, config: &UNetConfig) -> anyhow::Result<()> {
    let Some(pooled) = config.pooled_width().filter(|_| texts.rows() > 0) else { return Ok(()) };
    let shape = &texts.shape()[2..];
    let mut first = vec![0.0; shape.iter().product()];
    texts.read_f32_at(0, &mut first)?;
    text_rows::check(&first, shape[1], pooled).map_err(|found| {
        anyhow::anyhow!(
            "{}: {found}: the network takes a pooled text and sizes with each text, which `latents` and `generate` add where \
             `text_encoder_2` and `tokenizer_2` are connected",
            texts.path().display()
        )
    })
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
