//! A whole text-to-image model as the folders that all stages read, five or, as SDXL, seven: from a diffusers folder, or from a single file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use safetensors::tensor::TensorView;
use serde_json::{Value as Json, json};

use super::shared::check_inputs;
use super::shared::check_outputs::Outputs;
use crate::io::dtype::Dtype;
use crate::io::json;
use crate::io::single_file::{self, Piece};
use crate::io::tensor_file::{TensorFile, is_index};
use crate::method::identity::hashed;
use crate::models::weights::checkpoint;
use attrflow_engine::config::param::Validate;
use attrflow_engine::kind::{
    ArtifactShape, Compute, Context, Estimate, ExpectedInputs, Input, Inputs, Kind, KindInfo, Output, Stage,
    Task,
};
use attrflow_engine::params;

params! {
    /// Parameters of `model`.
    pub struct Model {
        /// Whether the model has two text encoders, as Stable Diffusion XL: `text_encoder_2` and `tokenizer_2` come out as well.
        sdxl: bool = false,
    }
}

impl Validate for Model {}

const SOURCE: &str = "source";
const CONFIG: &str = "config";
const INDEX: &str = "model_index.json";
const REPORT: &str = "report.json";
/// A part, and the classes that it may be of.
type Part = (&'static str, &'static [&'static str]);

const TOKENIZERS: &[&str] = &["CLIPTokenizer", "CLIPTokenizerFast"];
const PARTS: [Part; 5] = [
    ("unet", &["UNet2DConditionModel"]),
    ("vae", &["AutoencoderKL"]),
    ("text_encoder", &["CLIPTextModel"]),
    ("tokenizer", TOKENIZERS),
    // By its own file: many are of DDPM's noise.
    ("scheduler", &[]),
];
/// What a model with two text encoders has besides.
const SECOND: [Part; 2] = [(TEXT_ENCODER_2, &["CLIPTextModelWithProjection"]), (TOKENIZER_2, TOKENIZERS)];
const TEXT_ENCODER_2: &str = "text_encoder_2";
const TOKENIZER_2: &str = "tokenizer_2";
/// Pipelines of diffusers that are made of these parts, with one text encoder and with two.
const PIPELINES: [&str; 2] = ["StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline"];
const XL_PIPELINES: [&str; 2] = ["StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline"];

impl Model {
    /// The parameters for the model in a folder, or in a file with its configurations in one.
    pub(super) fn of(source: &Path, config: Option<&Path>) -> Model {
        let folder = config.unwrap_or(source);
        Model { sdxl: has_two(folder, &json::read(folder.join(INDEX)).unwrap_or_default()) }
    }

    fn parts(&self) -> impl Iterator<Item = &'static Part> + Clone {
        PARTS.iter().chain(&SECOND[..if self.sdxl { SECOND.len() } else { 0 }])
    }

    fn names(&self) -> String {
        self.parts().map(|(part, _)| *part).collect::<Vec<_>>().join(", ")
    }

    /// The parts in a folder, as inputs of the same names.
    fn inputs(&self, folder: &Path) -> Inputs {
        Inputs(self.parts().map(|(part, _)| ((*part).to_owned(), folder.join(part))).collect())
    }

    /// Refuses a folder of the other family.
    fn check_family(&self, folder: &Path, index: &Json) -> anyhow::Result<()> {
        let has_two = has_two(folder, index);
        ensure!(
            !has_two || self.sdxl,
            "{}: the model has two text encoders, as SDXL: set `sdxl = true` of this stage, and connect its `{TEXT_ENCODER_2}` and \
             `{TOKENIZER_2}` where `text_encoder` and `tokenizer` are connected; `init --sdxl` writes such a pipeline, with what has to be \
             downloaded",
            folder.display()
        );
        ensure!(
            has_two || !self.sdxl,
            "{}: no `{TEXT_ENCODER_2}`, expected a model with two text encoders, as SDXL; of another one, remove `sdxl`",
            folder.display()
        );
        Ok(())
    }
}

/// Whether a folder, or its index, has a second text encoder.
fn has_two(folder: &Path, index: &Json) -> bool {
    folder.join(TEXT_ENCODER_2).is_dir() || index.get(TEXT_ENCODER_2).is_some_and(|part| part[1].is_string())
}

impl Kind for Model {
    const INFO: KindInfo = KindInfo {
        inputs: &[
            Input::new(SOURCE, "a diffusers folder, or a checkpoint in a single file (.safetensors, .ckpt)"),
            Input::new(
                CONFIG,
                "for a single file: a diffusers folder of a model of its family, whose configurations, tokenizer and scheduler are \
                 taken; weights in it are not read",
            )
            .optional(),
        ],
        outputs: &[
            Output::new("unet", "unet", "the denoising network: config.json and weights"),
            Output::new("vae", "vae", "the autoencoder: config.json and weights"),
            Output::new("text_encoder", "text_encoder", "the text encoder: config.json and weights"),
            Output::new("tokenizer", "tokenizer", "vocab.json, merges.txt, tokenizer_config.json"),
            Output::new(TEXT_ENCODER_2, TEXT_ENCODER_2, "the second text encoder: config.json and weights")
                .enabled_by("sdxl"),
            Output::new(TOKENIZER_2, TOKENIZER_2, "its tokenizer, with the same files").enabled_by("sdxl"),
            Output::new("scheduler", "scheduler", "scheduler_config.json"),
            Output::new("report", REPORT, "what was found, and the file of each part's weights"),
        ],
        libtorch: false,
        ..KindInfo::new::<Self>("model", 1, "a whole model, from a diffusers folder or a single file")
    };
}

impl Stage for Model {
    fn identity(&self) -> Json {
        hashed(self, &[("sdxl", !self.sdxl)])
    }

    fn validate_inputs(&self, inputs: &Inputs) -> anyhow::Result<()> {
        Source::open(self, inputs).map(drop)
    }

    fn estimate(&self, inputs: &ExpectedInputs) -> anyhow::Result<Estimate> {
        let source = inputs.path(SOURCE)?;
        let mut outputs = BTreeMap::from([("report".to_owned(), ArtifactShape::Bytes(1000))]);
        if source.is_dir() {
            for (part, _) in self.parts() {
                let like = source.join(part);
                let bytes =
                    files(&like)?.iter().filter_map(|file| Some(fs_err::metadata(file).ok()?.len())).sum();
                outputs.insert((*part).to_owned(), ArtifactShape::Like { path: like, bytes });
            }
        }
        Ok(Estimate { outputs, ..Estimate::default() })
    }

    fn accept(&self, _: &Inputs, outputs: &Outputs) -> anyhow::Result<&'static str> {
        let parts = outputs.iter().filter(|(port, _)| *port != "report");
        check_inputs::networks(&Inputs(parts.map(|(port, path)| (port.clone(), path.clone())).collect()))?;
        Ok("configurations, and that there are weights")
    }
}

/// Where a model comes from.
enum Source<'a> {
    Folder { folder: &'a Path, index: Json },
    File { file: Box<TensorFile>, config: &'a Path, parts: single_file::Parts },
}

impl<'a> Source<'a> {
    /// Finds out what it is, and refuses what no stage computes with.
    fn open(model: &Model, inputs: &'a Inputs) -> anyhow::Result<Source<'a>> {
        let (source, config) = (inputs.path(SOURCE), inputs.get(CONFIG));
        if source.is_dir() {
            ensure!(
                config.is_none(),
                "`{CONFIG}` is for a single file, and {} is a folder: remove it",
                source.display()
            );
            return Source::folder(model, source);
        }
        ensure!(
            !is_index(source),
            "{}: an index of several files; connect the folder that has them",
            source.display()
        );
        let file = TensorFile::open(source)?;
        let parts = single_file::of(&file).with_context(|| source.display().to_string())?;
        let Some(config) = config else {
            let example = match parts.family {
                single_file::Family::Sd1 => "stable-diffusion-v1-5/stable-diffusion-v1-5",
                single_file::Family::Sd2 => "stabilityai/stable-diffusion-2-1-base",
                single_file::Family::Sdxl => "stabilityai/stable-diffusion-xl-base-1.0",
            };
            bail!(
                "{}: a checkpoint in a single file has no configurations and no tokenizer: connect a diffusers folder of its family to \
                 the input `{CONFIG}`, for instance a download of `hf://{example}` without its weights",
                source.display()
            )
        };
        model.check_family(config, &Json::Null)?;
        check_configs(model, config)?;
        check_configs_fit(&parts, config)?;
        Ok(Source::File { file: Box::new(file), config, parts })
    }

    fn folder(model: &Model, folder: &'a Path) -> anyhow::Result<Source<'a>> {
        let file = folder.join(INDEX);
        if !file.is_file() {
            // The parts alone are enough: their own files say what they are.
            let missing = PARTS.iter().find(|(part, _)| !folder.join(part).is_dir());
            ensure!(
                missing.is_none(),
                "{}: no {INDEX}, expected a diffusers folder with it, or with {}; or a single file",
                folder.display(),
                model.names()
            );
            model.check_family(folder, &Json::Null)?;
            check_inputs::networks(&model.inputs(folder))?;
            return Ok(Source::Folder { folder, index: json!({}) });
        }
        let index: Json = json::read(&file)?;
        let class = index["_class_name"].as_str().unwrap_or("missing");
        ensure!(
            PIPELINES.iter().chain(&XL_PIPELINES).any(|known| *known == class),
            "{}: `_class_name` is {class}, supported: {}, {}",
            file.display(),
            PIPELINES.join(", "),
            XL_PIPELINES.join(", ")
        );
        if XL_PIPELINES.contains(&class) {
            // The refiner has the second text encoder alone.
            for part in ["text_encoder", TEXT_ENCODER_2] {
                ensure!(
                    index[part][1].is_string(),
                    "{}: a {class} without `{part}`, supported: with both text encoders; the refiner of Stable Diffusion XL is not",
                    file.display()
                );
            }
        }
        model.check_family(folder, &index)?;
        for (part, classes) in model.parts() {
            let found = index[part][1].as_str();
            ensure!(
                classes.is_empty() || found.is_some_and(|found| classes.contains(&found)),
                "{}: `{part}` is of the class {}, supported: {}",
                file.display(),
                found.unwrap_or("missing"),
                classes.join(", ")
            );
        }
        check_inputs::networks(&model.inputs(folder))?;
        Ok(Source::Folder { folder, index })
    }
}

/// Refuses configurations that no stage computes with; their weights need not be there.
fn check_configs(model: &Model, folder: &Path) -> anyhow::Result<()> {
    let mut parts = model.inputs(folder);
    check_inputs::texts(&parts)?;
    let unet = parts.0.remove("unet");
    unet.map_or(Ok(()), |unet| check_inputs::unet(&unet).map(drop))?;
    check_inputs::networks(&parts)
}

/// Refuses configurations of another family, and those that leave open what a network of the second one predicts.
fn check_configs_fit(parts: &single_file::Parts, config: &Path) -> anyhow::Result<()> {
    let expected = check_inputs::unet(&config.join("unet"))?.cross_attention_dim;
    let keys = parts.unet.iter().find(|(name, _)| name.ends_with("attn2.to_k.weight"));
    if let Some(found) =
        keys.and_then(|(_, piece)| piece.shape.get(1)).filter(|found| **found as i64 != expected)
    {
        bail!(
            "{}: `cross_attention_dim` is {expected}, and the file's texts have {found} numbers: expected a model of its family",
            config.join("unet/config.json").display()
        );
    }
    let scheduler = config.join("scheduler/scheduler_config.json");
    ensure!(
        parts.family == single_file::Family::Sd1
            || json::read::<Json>(&scheduler)?.get("prediction_type").is_some(),
        "{}: no `prediction_type`: models of this family predict noise or v, and a single file does not say which; set it",
        scheduler.display()
    );
    Ok(())
}

/// The files of a folder that a part is made of: not weights of another precision.
fn files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    const WEIGHTS: [&str; 9] =
        ["safetensors", "bin", "msgpack", "onnx", "onnx_data", "h5", "ckpt", "pt", "pb"];
    let is_weights = |path: &Path| {
        path.extension().is_some_and(|ending| WEIGHTS.iter().any(|weights| ending == *weights))
            || is_index(path)
    };
    let mut found = Vec::new();
    for entry in fs_err::read_dir(folder)? {
        let path = entry?.path();
        if path.is_file() && !is_weights(&path) {
            found.push(path);
        }
    }
    if found.iter().any(|path| path.ends_with("config.json")) {
        let weights = checkpoint::find(folder)?;
        found.extend(TensorFile::open(&weights)?.files().map(Path::to_path_buf));
        if is_index(&weights) {
            found.push(weights);
        }
    }
    found.sort();
    Ok(found)
}

/// Copies files into a new folder; where the file system can, they share their bytes.
fn copy(files: &[PathBuf], to: &Path) -> anyhow::Result<()> {
    fs_err::create_dir(to)?;
    for file in files {
        let name = file.file_name().context("a file without a name")?;
        let _ =
            reflink_copy::reflink_or_copy(file, to.join(name)).with_context(|| file.display().to_string())?;
    }
    Ok(())
}

impl Compute for Model {
    fn run(&self, task: &Task, cx: &Context<'_>) -> anyhow::Result<()> {
        let Task { inputs, out, .. } = task;
        let report = match Source::open(self, inputs)? {
            Source::Folder { folder, index } => {
                let mut weights = BTreeMap::new();
                for (place, (part, _)) in self.parts().enumerate() {
                    let files = files(&folder.join(part))?;
                    copy(&files, &out.join(part))?;
                    let names = files
                        .iter()
                        .filter_map(|file| Some(file.file_name()?.to_string_lossy().into_owned()));
                    weights.insert(*part, names.collect::<Vec<_>>());
                    cx.progress(place as u64 + 1, self.parts().count() as u64);
                }
                json!({ "form": "diffusers", "class": index["_class_name"], "files": weights })
            }
            Source::File { file, config, parts } => {
                for part in ["tokenizer", TOKENIZER_2, "scheduler"] {
                    if self.sdxl || part != TOKENIZER_2 {
                        copy(&files(&config.join(part))?, &out.join(part))?;
                    }
                }
                let mut tables = vec![
                    ("unet", &parts.unet, "diffusion_pytorch_model.safetensors"),
                    ("vae", &parts.vae, "diffusion_pytorch_model.safetensors"),
                    ("text_encoder", &parts.text_encoder, "model.safetensors"),
                ];
                if self.sdxl {
                    tables.push((TEXT_ENCODER_2, &parts.text_encoder_2, "model.safetensors"));
                }
                let total = tables.len() as u64;
                for (place, (part, pieces, name)) in tables.iter().enumerate() {
                    let folder = out.join(part);
                    fs_err::create_dir(&folder)?;
                    fs_err::copy(config.join(part).join("config.json"), folder.join("config.json"))?;
                    write(&file, pieces, &folder.join(name))?;
                    cx.progress(place as u64 + 1, total);
                }
                let tensors = tables.iter().map(|(part, pieces, _)| (*part, pieces.len()));
                json!({
                    "form": "single file",
                    "family": format!("{:?}", parts.family).to_lowercase(),
                    "tensors": tensors.collect::<BTreeMap<_, _>>(),
                    "ignored": parts.ignored,
                })
            }
        };
        Ok(json::write_pretty(&out.join(REPORT), &report)?)
    }
}

/// The elements of a matrix of this shape whose columns were the rows.
fn transposed(bytes: &[u8], shape: &[usize]) -> Vec<u8> {
    let (rows, columns) = (shape[0], shape[1]);
    let size = bytes.len() / (rows * columns).max(1);
    let places = (0..rows).flat_map(|row| (0..columns).map(move |column| column * rows + row));
    places.flat_map(|place| &bytes[place * size..(place + 1) * size]).copied().collect()
}

/// Writes the tensors of a part, in the element types that they have.
fn write(file: &TensorFile, pieces: &BTreeMap<String, Piece>, to: &Path) -> anyhow::Result<()> {
    let mut bytes = Vec::new();
    for (name, piece) in pieces {
        let header = file.header(&piece.source).context("a tensor of this file")?;
        let dtype = match header.dtype {
            Dtype::F32 => safetensors::Dtype::F32,
            Dtype::F16 => safetensors::Dtype::F16,
            Dtype::BF16 => safetensors::Dtype::BF16,
            Dtype::F64 => safetensors::Dtype::F64,
            other => bail!(
                "{}: tensor `{}` is {other}, expected a float type",
                file.path().display(),
                piece.source
            ),
        };
        let mut found = file.bytes(header)?;
        if piece.transposed {
            found = transposed(&found, &piece.shape).into();
        }
        bytes.push((name, dtype, &piece.shape, found, piece.rows.clone().zip(header.shape.first())));
    }
    let views = bytes.iter().map(|(name, dtype, shape, bytes, rows)| {
        let some = match rows {
            Some((rows, all)) => {
                let row = bytes.len() / *all;
                &bytes[rows.start * row..rows.end * row]
            }
            None => bytes.as_ref(),
        };
        Ok((name.as_str(), TensorView::new(*dtype, shape.to_vec(), some)?))
    });
    let views = views.collect::<anyhow::Result<Vec<_>>>()?;
    // Python's loaders require the name of the library.
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    safetensors::serialize_to_file(views, Some(metadata), to).with_context(|| to.display().to_string())
}
