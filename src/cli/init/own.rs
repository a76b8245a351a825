//! A project on one's own images, model and pictures: looks at them, says what it found, and writes it down.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;

use super::found::{Found, as_json, lines};
use super::places::{self, Origin};
use super::text::{self, Project, Query};
use super::{keep_out_of_git, write_new};
use crate::cli::failure::Failure;
use crate::cli::plan;
use crate::cli::project::ProjectArgs;
use crate::cli::run_args::RunArgs;
use crate::io::dataset::{Form, Unused};
use crate::kinds::look::{self, ImagesLook, ModelLook, PictureLook};
use crate::progress::{print, short_path};
use attrflow_engine::kind::Registry;

#[derive(Debug, Default, Args)]
pub(super) struct Own {
    /// Your training images, with captions: a folder, a .parquet or .tar file, or hf://datasets/OWNER/NAME@REVISION/PATH
    #[arg(long, value_name = "PATH")]
    pub images: Option<String>,
    /// Your model: a diffusers folder, a .safetensors or .ckpt file, or OWNER/NAME or hf://OWNER/NAME@REVISION on the Hub
    #[arg(long, requires = "images")]
    model: Option<String>,
    /// For a model in a single file: a diffusers folder of its family, for configurations, tokenizer and scheduler
    #[arg(long, value_name = "DIR", requires = "model")]
    config: Option<PathBuf>,
    /// Whether a model on the Hub is Stable Diffusion XL; by default what its name says (a model on this machine is looked at)
    #[arg(long, requires = "model", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    sdxl: Option<bool>,
    /// A LoRA of the model
    #[arg(long, value_name = "PATH", requires = "model")]
    lora: Option<PathBuf>,
    /// Pictures to attribute (a pattern with * in the file's name may be quoted)
    #[arg(long = "query", value_name = "PICTURE", num_args = 1.., requires = "model")]
    queries: Vec<PathBuf>,
    /// The caption of the pictures that have none in their metadata or beside them; without --query, a picture is drawn from it
    #[arg(long, requires = "model")]
    caption: Option<String>,
    /// The side of the images that the model was trained with, where its configuration does not say
    #[arg(long, requires = "model", value_parser = clap::value_parser!(u32).range(8..=4096))]
    pixels: Option<u32>,
    /// The form of the images, where more than one fits: sidecar, imagefolder, parquet, webdataset or coco
    #[arg(long, value_parser = form, requires = "images")]
    form: Option<Form>,
    /// Say what was found, and write nothing
    #[arg(long, requires = "model")]
    dry_run: bool,
    /// Write what was found as one line of JSON
    #[arg(long, requires = "model")]
    json: bool,
}

/// The form of this name.
fn form(name: &str) -> Result<Form, String> {
    let found = Form::ALL.iter().find(|(_, known)| *known == name);
    let names = || Form::ALL.map(|(_, name)| name).join(", ");
    found.map(|(form, _)| *form).ok_or_else(|| format!("expected one of {}", names()))
}

pub(super) fn init(name: &Path, own: &Own, registry: &Registry) -> Result<(), Failure> {
    let name = name.to_str().filter(|name| places::is_name(name)).ok_or_else(|| {
        Failure::Usage(format!(
            "the name of the pipeline is `{}`, expected letters, digits, `-` and `_`",
            name.display()
        ))
    })?;
    let paths = [own.images.as_deref(), own.model.as_deref()];
    if let Some(path) = paths.into_iter().flatten().find(|path| path.contains(char::is_control)) {
        return Err(Failure::Usage(format!("{path:?} has a control character, expected a path in one line")));
    }
    if own.caption.as_ref().is_some_and(|caption| caption.trim().is_empty()) {
        return Err(Failure::Usage("`--caption` is empty, expected what the pictures show".to_owned()));
    }
    if own.caption.as_ref().is_some_and(|caption| caption.contains("${env:")) {
        return Err(Failure::Usage(
            "the caption has `${env:`, which a config would read as a reference".to_owned(),
        ));
    }
    let model = own.model.as_deref().ok_or_else(|| {
        Failure::Usage(
            "`--images` needs `--model`: a diffusers folder, a file, or OWNER/NAME on the Hub".to_owned(),
        )
    })?;
    let [pipeline, config] =
        ["pipelines", "configs"].map(|folder| Path::new(folder).join(format!("{name}.toml")));
    let there: Vec<String> = [&pipeline, &config]
        .into_iter()
        .filter(|path| path.symlink_metadata().is_ok())
        .map(|path| path.display().to_string())
        .collect();
    if !there.is_empty() {
        let verb = if there.len() > 1 { "already exist" } else { "already exists" };
        let there = there.join(" and ");
        return Err(Failure::Refused(format!(
            "{there} {verb}: take another name, or delete them; nothing was written"
        )));
    }
    let refused = |error: anyhow::Error| Failure::Refused(format!("{error:#}"));
    let mut found = look(own, model).map_err(refused)?;
    let project = describe(name, own, &mut found)?;
    let lines = lines(model, &project, &found);
    match own.json {
        true => print(&format!("{}\n", as_json(&project, &found))),
        false => print(&lines),
    }
    if own.dry_run {
        return Ok(());
    }
    let fault = |error: std::io::Error| Failure::Refused(error.to_string());
    write_new(&config, &text::config(&project)).map_err(fault)?;
    write_new(&pipeline, &text::pipeline(&project)).map_err(fault)?;
    let ignored = keep_out_of_git(Path::new("."))?;
    if own.json {
        return Ok(());
    }
    print(&format!("wrote    {}, {}; {ignored}\n\n", short_path(&pipeline), short_path(&config)));
    let args = ProjectArgs { pipeline: pipeline.clone(), settings: Default::default(), targets: Vec::new() };
    let opened = args.open(registry)?;
    plan::show(&opened, &[], &RunArgs::default(), None, false)?;
    print(&format!("\nnext     attrflow run {}\n", short_path(&pipeline)));
    Ok(())
}

/// Looks at everything that is on this machine.
fn look(own: &Own, model: &str) -> anyhow::Result<Found> {
    let places = [places::images(own.images.as_deref().unwrap_or(".")), places::model(model)];
    let images = match &places[0] {
        Origin::Path(path) => Some(look::images(path, own.form).context("--images")?),
        Origin::Hub(_) => None,
    };
    let model = match &places[1] {
        Origin::Path(path) => {
            anyhow::ensure!(
                path.exists(),
                "--model: {}: no such folder or file; of a model on the Hub, give OWNER/NAME or hf://OWNER/NAME@REVISION",
                path.display()
            );
            Some(look::model(path, own.config.as_deref()).context("--model")?)
        }
        Origin::Hub(_) => None,
    };
    let lora = match (&own.lora, &model) {
        (Some(path), Some(model)) => Some(look::lora(path, model).context("--lora")?),
        (Some(_), None) => {
            anyhow::bail!("`--lora` needs a model on this machine, whose layers tell whether it fits")
        }
        (None, _) => None,
    };
    let mut pictures = Vec::new();
    for pattern in &own.queries {
        for file in places::matching(pattern).context("--query")? {
            let look = look::picture(&file).context("--query")?;
            pictures.push((file, look));
        }
    }
    let notes = model.as_ref().map_or(Ok(Vec::new()), |model| other_models(model, &pictures))?;
    Ok(Found { places, images, model, lora, pictures, notes })
}

/// The pictures that name another model, of a model in a single file.
fn other_models(model: &ModelLook, pictures: &[(PathBuf, PictureLook)]) -> anyhow::Result<Vec<String>> {
    let said: Vec<(&PathBuf, &String)> =
        pictures.iter().filter_map(|(file, picture)| Some((file, picture.model_hash.as_ref()?))).collect();
    // The whole file is read for it.
    let Some(own) = (if said.is_empty() { None } else { model.hash()? }) else { return Ok(Vec::new()) };
    let other = said.into_iter().filter(|(_, hash)| hash.to_lowercase() != own);
    let note = |(file, hash): (&PathBuf, &String)| {
        format!("{}: it says that the model {hash} drew it, and this one is {own}", file.display())
    };
    Ok(other.map(note).collect())
}

/// What is written down, and every choice that changes numbers as a note.
fn describe(name: &str, own: &Own, found: &mut Found) -> Result<Project, Failure> {
    let Found { places, images, model: known, lora, pictures, notes } = found;
    let [images_at, model_at] = places.clone();
    let from_model = known.as_ref().and_then(|model| model.pixels);
    let by_name = || {
        model_at
            .written()
            .to_lowercase()
            .split(['/', '-', '_', '.', '@'])
            .any(|word| word == "xl" || word == "sdxl")
    };
    let sdxl = known.as_ref().map_or_else(|| own.sdxl.unwrap_or_else(by_name), |model| model.sdxl);
    if own.sdxl.is_some_and(|given| given != sdxl) {
        let found = if sdxl { "two text encoders" } else { "one text encoder" };
        return Err(Failure::Refused(format!(
            "the model has {found}, and `--sdxl` says otherwise: leave it out"
        )));
    }
    if known.is_none() && own.sdxl.is_none() {
        notes.push(
            match sdxl {
                true => "the model is taken for Stable Diffusion XL, by its name; if it is not, give `--sdxl false`",
                false => "the model is taken for Stable Diffusion 1 or 2; if it is XL, give `--sdxl`",
            }
            .to_owned(),
        );
    }
    let pixels = own.pixels.or(from_model).unwrap_or(if sdxl { 1024 } else { 512 });
    if own.pixels.or(from_model).is_none() {
        notes.push(format!("the size of the model's images is not known: {pixels} is written to `latents.pixels`; --pixels sets it"));
    }
    let scale = known.as_ref().map_or(look::SCALE, |model| model.scale);
    if !pixels.is_multiple_of(scale) {
        return Err(Failure::Usage(format!(
            "`--pixels` is {pixels}, expected a multiple of {scale}: a side of the latent has one number for {scale} pixels"
        )));
    }
    if let Some((given, known)) = own.pixels.zip(from_model).filter(|(given, known)| given != known) {
        if own.queries.is_empty() {
            return Err(Failure::Refused(format!(
                "`--pixels` is {given}, and the model draws pictures of {known}: leave it out, or give pictures by --query"
            )));
        }
        notes.push(format!(
            "the model's configuration says {known} pixels, and --pixels {given}, which is taken"
        ));
    }
    if let Some(side) = lora.as_ref().and_then(|lora| lora.pixels).filter(|side| *side != pixels) {
        notes.push(format!(
            "the LoRA says that it was trained with {side} pixels, and `latents.pixels` is {pixels}"
        ));
    }
    notes.extend(lora.iter().flat_map(|lora| lora.notes.iter().cloned()));
    if let Some(lora) = lora {
        let said = [("min-SNR gamma", lora.snr_gamma), ("noise offset", lora.noise_offset)];
        for (what, value) in said.into_iter().filter_map(|(what, value)| Some((what, value?))) {
            notes.push(format!(
                "the LoRA says that it was trained with a {what} of {value}: written to `objective`"
            ));
        }
        if lora.unet {
            notes.push(
                "what the LoRA has changed is unlearned: `select` is `lora`, and `relative_damping` 0.01 for ranks that it does not use"
                    .to_owned(),
            );
        } else {
            notes.push(
                "the LoRA changes the text encoder alone: weights of the UNet are unlearned".to_owned(),
            );
        }
        if lora.text_encoder {
            let which = if sdxl { "text encoders" } else { "text encoder" };
            notes.push(format!("the LoRA changes the {which} as well: captions are encoded with it"));
        }
    }
    let count = images.as_ref().map(|images| images.images - images.without);
    match images {
        Some(images) => images_notes(images, notes)?,
        None => notes.push(
            "the images are looked at when they are there: each needs a caption (`data.missing`), of which the first is taken \
             (`latents.captions`)"
                .to_owned(),
        ),
    }
    let (mut queries, mut resized) = (Vec::new(), Vec::new());
    for (file, picture) in &*pictures {
        let caption =
            picture.caption.as_ref().map(|(caption, _)| caption.clone()).or_else(|| own.caption.clone());
        let Some(caption) = caption else {
            return Err(Failure::Refused(format!(
                "{}: no caption in its metadata, and no {} beside it: give one by --caption",
                file.display(),
                file.with_extension("txt").display()
            )));
        };
        if caption.contains("${env:") {
            return Err(Failure::Refused(format!(
                "{}: its caption has `${{env:`, which a config would read as a reference",
                file.display()
            )));
        }
        if picture.caption.is_some() && own.caption.is_some() {
            let kept = "it has a caption of its own, which is taken; --caption is for pictures without one";
            notes.push(format!("{}: {kept}", file.display()));
        }
        // The parameter of `query`, as the config has it.
        notes.extend(
            picture.notes.iter().map(|note| note.replace("prompt_syntax =", "captions.prompt_syntax =")),
        );
        resized.extend((picture.size != [pixels; 2]).then_some(file));
        let name = unused_name(file, &queries);
        queries.push(Query { name, caption, picture: Some(file.clone()) });
    }
    if let Some(first) = resized.first() {
        let others = match resized.len() {
            1 => String::new(),
            count => format!(" and {} others", count - 1),
        };
        notes.push(format!(
            "{}{others}: made {pixels} x {pixels} pixels, as the training images are",
            first.display()
        ));
    }
    if queries.is_empty() {
        let caption = own.caption.clone().ok_or_else(|| {
            Failure::Usage(
                "nothing to attribute: give pictures by --query, or a --caption to draw one from".to_owned(),
            )
        })?;
        queries.push(Query { name: "drawn".to_owned(), caption, picture: None });
    }
    Ok(Project {
        name: name.to_owned(),
        images: images_at,
        model: model_at,
        config: own.config.clone(),
        lora: own.lora.clone(),
        lora_unet: lora.as_ref().is_some_and(|lora| lora.unet),
        lora_text: lora.as_ref().is_some_and(|lora| lora.text_encoder),
        queries,
        pixels,
        sdxl,
        encodes_empty: known.as_ref().is_some_and(|model| model.encodes_empty),
        count,
        captions: images.as_ref().map_or(1, |images| images.captions.clamp(1, 5)),
        form: own.form.map(Form::name),
        skip: images.as_ref().is_some_and(|images| images.without > 0),
        upright: images.as_ref().is_some_and(|images| images.upright),
        snr_gamma: lora.as_ref().and_then(|lora| lora.snr_gamma),
        noise_offset: lora.as_ref().and_then(|lora| lora.noise_offset),
    })
}

/// A name for a query, of its picture's: letters, digits, `-` and `_`, that no other query has.
fn unused_name(file: &Path, queries: &[Query]) -> String {
    const LONGEST: usize = 60;
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '-' };
    let mut name: String = stem.chars().take(LONGEST).map(plain).collect();
    if !name.contains(|c: char| c.is_ascii_alphanumeric()) {
        name = "picture".to_owned();
    }
    let is_used = |name: &str| queries.iter().any(|query| query.name == name);
    let numbered = |number: usize| format!("{name}-{number}");
    if is_used(&name) { (2..).map(numbered).find(|name| !is_used(name)).unwrap_or_default() } else { name }
}

/// What changes numbers, or is hard to see.
fn images_notes(images: &ImagesLook, notes: &mut Vec<String>) -> Result<(), Failure> {
    if images.without > 0 {
        notes.push(format!(
            "{} of {} images have no caption, for instance {}: they are left out; `data.missing` changes that",
            images.without, images.images, images.example
        ));
    }
    for Unused { what, how, files } in &images.unused {
        let first = files.first().map(|file| file.display().to_string()).unwrap_or_default();
        notes.push(format!("{what}: {}, the first {first}; {how}", files.len()));
    }
    if images.upright {
        notes.push(
            "images are turned as their EXIF orientation says, as the library of this form does: `latents.orientation`".to_owned(),
        );
    }
    let count = images.images - images.without;
    if count == 0 {
        return Err(Failure::Refused(format!(
            "none of {} images has a caption: write it into NAME.txt beside each, or into a metadata file",
            images.images
        )));
    }
    if count < 50 {
        notes.push(format!("with {count} images the Fisher information is noisy: `unlearn.relative_damping` keeps small values from counting"));
    }
    if count > 200_000 {
        notes.push(format!(
            "{count} images take long: `top_k` of `influence` finds the most influential ones with less work"
        ));
    }
    Ok(())
}
