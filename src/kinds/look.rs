//! What a model, a LoRA, a training set or a picture is, from names and headers, and of tables and tar files all rows: for a new project.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::Value as Json;

use super::model::Model;
use super::shared::check_inputs;
use super::shared::trained_with::TrainedWith;
use crate::io::Dtype;
use crate::io::dataset::{Form, Options, Source, Unused};
use crate::io::download;
use crate::io::image::dimensions;
use crate::io::json;
use crate::io::lora::{Lora, Network};
use crate::io::prompt;
use crate::io::single_file;
use crate::io::tensor_file::{Header, TensorFile};
use crate::method::schedule::{Prediction, ScheduleConfig};
use crate::models::vae::VaeConfig;
use crate::models::weights::checkpoint;
use attrflow_engine::kind::{Inputs, Stage as _};

/// What is known of a model.
#[derive(Debug, Clone)]
pub struct ModelLook {
    /// What it is, for people.
    pub what: String,
    /// The side of its images, if its configuration says.
    pub pixels: Option<u32>,
    /// Image pixels per latent pixel, along one side.
    pub scale: u32,
    /// Whether it has two text encoders, as SDXL.
    pub sdxl: bool,
    /// Whether such a model encodes the empty text, in place of zeros.
    pub encodes_empty: bool,
    /// Whether its scheduler leaves nothing of the image at the last timestep.
    zero_terminal_snr: bool,
    /// The folder of its UNet's configuration.
    unet: PathBuf,
    /// The file of all weights, if it is one.
    file: Option<PathBuf>,
}

impl ModelLook {
    /// The hash by which pictures name a model in a single file.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn hash(&self) -> anyhow::Result<Option<String>> {
        let Some(file) = &self.file else { return Ok(None) };
        let (digest, _) = download::sha256(file)?;
        Ok(digest.get(..HASH).map(str::to_lowercase))
    }
}

/// Looks at a model in a folder or a file; `config` is that of a single file.
///
/// # Errors
/// Whatever the stage `model` refuses.
pub fn model(source: &Path, config: Option<&Path>) -> anyhow::Result<ModelLook> {
    let mut inputs = Inputs([("source".to_owned(), source.to_owned())].into());
    inputs.0.extend(config.map(|config| ("config".to_owned(), config.to_owned())));
    let found = Model::of(source, config);
    found.validate_inputs(&inputs)?;
    let folder = config.unwrap_or(source);
    let unet = check_inputs::unet(&folder.join("unet"))?;
    let family = match (found.sdxl, unet.cross_attention_dim) {
        (false, 768) => "Stable Diffusion 1".to_owned(),
        (false, 1024) => "Stable Diffusion 2".to_owned(),
        (true, 2048) => "Stable Diffusion XL".to_owned(),
        (false, width) => format!("like Stable Diffusion (texts of {width} numbers)"),
        (true, width) => format!("like Stable Diffusion XL (two text encoders, texts of {width} numbers)"),
    };
    let scale = VaeConfig::read(&folder.join("vae/config.json"))?.scale();
    let schedule = ScheduleConfig::load(&folder.join("scheduler"))?;
    let predicts = if schedule.prediction_type == Prediction::V { "predicts v" } else { "predicts noise" };
    let weights = match config {
        Some(_) => source.to_owned(),
        None => checkpoint::find(&folder.join("unet"))?,
    };
    let file = TensorFile::open(&weights)?;
    let dtype = file.headers().first().map(|header| header.dtype.to_string()).unwrap_or_default();
    let form = if config.is_some() { ", single file" } else { "" };
    Ok(ModelLook {
        what: format!("{family}, {dtype}, {predicts}{form}"),
        pixels: unet.latent_shape().and_then(|[_, side, _]| u32::try_from(side).ok()?.checked_mul(scale)),
        scale,
        sdxl: found.sdxl,
        encodes_empty: found.sdxl && encodes_empty(folder),
        zero_terminal_snr: schedule.rescale_betas_zero_snr,
        unet: folder.join("unet"),
        file: config.is_some().then_some(weights),
    })
}

/// Whether `model_index.json` says that the empty text is encoded.
fn encodes_empty(folder: &Path) -> bool {
    let index = json::read::<Json>(folder.join("model_index.json"));
    index.is_ok_and(|index| index["force_zeros_for_empty_prompt"] == Json::Bool(false))
}

/// Image pixels per latent pixel in Stable Diffusion.
pub const SCALE: u32 = 8;

/// What is known of a LoRA.
#[derive(Debug, Clone)]
pub struct LoraLook {
    /// What it is, for people.
    pub what: String,
    /// Whether it changes the UNet.
    pub unet: bool,
    /// The settings of its training that a project has too, as they are written: min-SNR gamma, noise offset.
    pub snr_gamma: Option<f64>,
    /// See above.
    pub noise_offset: Option<f64>,
    /// The side of its training images.
    pub pixels: Option<u32>,
    /// Whether it changes the text encoder.
    pub text_encoder: bool,
    /// What a reader should know.
    pub notes: Vec<String>,
}

/// Looks at a LoRA of a model.
///
/// # Errors
/// A file that is no LoRA, is of a kind that is not supported, or does not fit the model.
pub fn lora(path: &Path, model: &ModelLook) -> anyhow::Result<LoraLook> {
    let unet = match &model.file {
        // A single file has the UNet's tensors under other names.
        Some(file) => single_file_headers(file)?,
        None => TensorFile::open(checkpoint::find(&model.unet)?)?.headers().to_vec(),
    };
    let lora = Lora::open(path, Network::Unet, &unet)?;
    let ranks: BTreeSet<usize> = lora.adapters.iter().map(|adapter| adapter.shapes[0][0]).collect();
    let ranks: Vec<String> = ranks.iter().map(usize::to_string).collect();
    let encoder = match (lora.others.len(), lora.others.first()) {
        (0, _) => "none of the text encoder",
        (1, Some(Network::TextEncoder2)) => "and some of the second text encoder",
        (1, _) => "and some of the text encoder",
        _ => "and some of both text encoders",
    };
    let TrainedWith { snr_gamma, noise_offset } = TrainedWith::of(&lora);
    let training = lora.training();
    let number = |key: &str| training.get(key).and_then(|value| value.parse::<f64>().ok());
    let mut notes = Vec::new();
    // Of two text encoders the last hidden state but one is taken, whatever it says.
    if let Some(skip) = number("clip_skip").filter(|skip| *skip > 1.0 && !model.sdxl) {
        notes.push(format!(
            "it was trained with clip skip {skip}, and the text encoder's last layer is used here"
        ));
    }
    if training.get("shuffle_caption") == Some(&"True") {
        notes
            .push("its training shuffled the tags of captions, which are read here as they stand".to_owned());
    }
    if training.get("zero_terminal_snr") == Some(&"True") && !model.zero_terminal_snr {
        notes.push(
            "it was trained with a zero terminal SNR: the scheduler needs `rescale_betas_zero_snr`"
                .to_owned(),
        );
    }
    let side = |text: &&str| text.trim_matches(['(', ')']).split(',').next()?.trim().parse().ok();
    Ok(LoraLook {
        what: format!("rank {}, {} layers of the UNet, {encoder}", ranks.join(" and "), lora.adapters.len()),
        unet: !lora.adapters.is_empty(),
        snr_gamma,
        noise_offset,
        pixels: training.get("resolution").and_then(side),
        text_encoder: !lora.others.is_empty(),
        notes,
    })
}

/// The UNet's tensors in a single file, by the names of a folder.
fn single_file_headers(file: &Path) -> anyhow::Result<Vec<Header>> {
    let file = TensorFile::open(file)?;
    let parts = single_file::of(&file).with_context(|| file.path().display().to_string())?;
    let header =
        |(name, piece): (String, single_file::Piece)| Header { name, dtype: Dtype::F32, shape: piece.shape };
    Ok(parts.unet.into_iter().map(header).collect())
}

/// What is known of a training set.
#[derive(Debug, Clone, Default)]
pub struct ImagesLook {
    /// The name of its form.
    pub form: &'static str,
    /// Whether its form applies EXIF orientations when it is read by its own library.
    pub upright: bool,
    /// Images, those without a caption too.
    pub images: usize,
    /// The fewest captions of an image that has any.
    pub captions: usize,
    /// Images without a caption: how many, and the first.
    pub without: usize,
    /// The first of them.
    pub example: String,
    /// Files beside them that make no image.
    pub unused: Vec<Unused>,
}

/// Counts the images and captions of a training set.
///
/// # Errors
/// Whatever the stage `dataset` refuses.
pub fn images(source: &Path, form: Option<Form>) -> anyhow::Result<ImagesLook> {
    let source = Source { path: source, captions: None };
    let form = form.map_or_else(|| source.form(), Ok)?;
    let mut look = ImagesLook {
        form: form.name(),
        upright: matches!(form, Form::ImageFolder | Form::Parquet),
        ..ImagesLook::default()
    };
    let mut fewest = usize::MAX;
    let unused = source.read(form, &Options::default(), &mut |item| {
        look.images += 1;
        match item.captions.len() {
            0 if look.without == 0 => (look.without, look.example) = (1, item.name),
            0 => look.without += 1,
            count => fewest = fewest.min(count),
        }
        Ok(())
    })?;
    look.captions = fewest;
    look.unused = unused;
    anyhow::ensure!(look.images > 0, "{}: no images", source.path.display());
    Ok(look)
}

/// What is known of a picture.
#[derive(Debug, Clone)]
pub struct PictureLook {
    /// Width and height.
    pub size: [u32; 2],
    /// Its caption, and where that is from.
    pub caption: Option<(String, &'static str)>,
    /// The first ten digits of the SHA-256 of the checkpoint that it says it was drawn with.
    pub model_hash: Option<String>,
    /// What a reader should know.
    pub notes: Vec<String>,
}

/// Digits of a model's hash in a picture.
const HASH: usize = 10;

/// Looks at a picture: its caption is what it says itself, or the first line of the text file beside it.
///
/// # Errors
/// A file that is no picture, or one that says several texts.
pub fn picture(file: &Path) -> anyhow::Result<PictureLook> {
    let bytes = fs_err::read(file)?;
    let size = dimensions(&bytes).map_err(|why| anyhow::anyhow!("{}: {why}", file.display()))?;
    let (mut notes, mut caption, mut model_hash) = (Vec::new(), None, None);
    match prompt::read(file) {
        Ok(Some(mut found)) => {
            // Older programs write eight digits of a part of the file.
            model_hash = found.settings.remove("Model hash").filter(|hash| hash.len() == HASH);
            notes.extend(found.warnings.iter().map(|warning| format!("{}: {warning}", file.display())));
            caption = Some((found.prompt, "from the picture"));
        }
        Ok(None) => {}
        Err(error @ prompt::PromptError::Io(_)) => return Err(error.into()),
        // A caption that is given is enough.
        Err(error) => notes.push(error.to_string()),
    }
    for beside in ["txt", "caption"].map(|ending| file.with_extension(ending)) {
        if caption.is_none() && beside.is_file() {
            let text = fs_err::read_to_string(&beside)?;
            caption =
                text.lines().next().map(|line| (line.trim().to_owned(), "from the text file beside it"));
        }
    }
    caption = caption.filter(|(text, _)| !text.is_empty());
    Ok(PictureLook { size, caption, model_hash, notes })
}
