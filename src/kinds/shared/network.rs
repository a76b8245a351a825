//! The networks that stages compute with: their ports, their loading, and the last few of each type kept loaded.

use std::any::Any;
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Context as _;

use super::device;
use super::text::{Folders, TextModel};
use crate::models::lora::Adapters;
use crate::models::unet::{ModelMode, Precision, UNet, UNetFiles};
use crate::models::vae::Vae;
use crate::models::weights::config::ModelError;
use attrflow_engine::kind::{Device, Input, Inputs};

pub(crate) const UNET: Input = Input::new(
    "unet",
    "a folder with config.json and a checkpoint (safetensors or torch), or with config.json alone beside `checkpoint`",
);
pub(crate) const CHECKPOINT: Input = Input::new(
    "checkpoint",
    "the network's weights, if they are not in the `unet` folder: a file (safetensors or torch)",
)
.optional();
pub(crate) const LORA: Input = Input::new(
    "lora",
    "a LoRA of the network, in the names of diffusers, PEFT or kohya's scripts: a file, or a folder with one",
)
.optional();
pub(crate) const SCHEDULER: Input = Input::new("scheduler", "a folder with scheduler_config.json");
pub(crate) const VAE: Input =
    Input::new("vae", "a folder with config.json and a checkpoint (safetensors or torch)");
pub(crate) const TEXT_ENCODER: Input =
    Input::new("text_encoder", "a folder with config.json and a checkpoint (safetensors or torch)");
pub(crate) const TOKENIZER: Input = Input::new("tokenizer", "a folder with vocab.json and merges.txt");
pub(crate) const TEXT_ENCODER_2: Input = Input::new(
    "text_encoder_2",
    "the second text encoder of a model with two, as SDXL: a folder as the first",
)
.optional();
pub(crate) const TOKENIZER_2: Input =
    Input::new("tokenizer_2", "the tokenizer of the second text encoder: a folder as the first").optional();

/// The network on the ports `unet`, `checkpoint` and `lora`, to be changed: it is not cached.
///
/// # Errors
/// Files that make no network, or one that needs what no stage computes.
pub(crate) fn load_unet(
    inputs: &Inputs,
    adapters: Adapters,
    device: Device,
    mode: ModelMode,
) -> anyhow::Result<UNet> {
    load(inputs, adapters, None, device, mode)
}

/// Does `work` with the network on the ports `unet`, `checkpoint` and `lora`, with the tensors of the file `changed` in place of its
/// own, and a LoRA merged into its weights.
///
/// # Errors
/// As [`load_unet`], and those of `work`.
pub(crate) fn with_unet<T>(
    inputs: &Inputs,
    changed: Option<&Path>,
    device: Device,
    mode: ModelMode,
    work: impl FnOnce(&UNet) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let paths = [Some(inputs.path("unet")), inputs.get("checkpoint"), inputs.get("lora"), changed];
    let key = ModelKey::of(device, Some((mode, Adapters::Merged)), &paths)?;
    let _guard = device::apply_mode(mode);
    with_cached(key, || load(inputs, Adapters::Merged, changed, device, mode), work)
}

/// Does `work` with the network on the ports `unet`, `checkpoint` and `lora`, for gradients of some of its parameters.
///
/// # Errors
/// As [`load_unet`], and those of `work`.
pub(crate) fn with_gradients<T>(
    inputs: &Inputs,
    adapters: Adapters,
    precision: Precision,
    device: Device,
    work: impl FnOnce(&UNet) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let mode = ModelMode::Gradients(precision);
    let paths = [Some(inputs.path("unet")), inputs.get("checkpoint"), inputs.get("lora")];
    let key = ModelKey::of(device, Some((mode, adapters)), &paths)?;
    let _guard = device::apply_mode(mode);
    with_cached(key, || load(inputs, adapters, None, device, mode), work)
}

/// Does `work` with the autoencoder on the port `vae`.
///
/// # Errors
/// Files that make no autoencoder, and those of `work`.
pub(crate) fn with_vae<T>(
    inputs: &Inputs,
    device: Device,
    work: impl FnOnce(&Vae) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    with_folder(inputs.path("vae"), device, Vae::load, work)
}

/// Does `work` with the tokenizers and the text encoders on the ports `tokenizer`, `text_encoder`, `tokenizer_2`, `text_encoder_2`
/// and `lora`.
///
/// # Errors
/// Files that make none, and those of `work`.
pub(crate) fn with_text_model<T>(
    inputs: &Inputs,
    device: Device,
    work: impl FnOnce(&TextModel) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let folders = |tokenizer, encoder| {
        let (tokenizer, encoder) = (inputs.get(tokenizer)?, inputs.get(encoder)?);
        Some(Folders { tokenizer, encoder })
    };
    let first = folders("tokenizer", "text_encoder").context("no text encoder")?;
    let (second, lora) = (folders("tokenizer_2", "text_encoder_2"), inputs.get("lora"));
    let paths = [
        Some(first.tokenizer),
        Some(first.encoder),
        second.map(|second| second.tokenizer),
        second.map(|second| second.encoder),
        lora,
    ];
    let key = ModelKey::of(device, None, &paths)?;
    with_cached(key, || TextModel::load(first, second, lora, device::torch(device)), work)
}

/// Does `work` with the model that `load` makes of a folder.
///
/// # Errors
/// Files that make none, and those of `work`.
pub(crate) fn with_folder<M: 'static, T>(
    folder: &Path,
    device: Device,
    load: fn(&Path, tch::Device) -> Result<M, ModelError>,
    work: impl FnOnce(&M) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let key = ModelKey::of(device, None, &[Some(folder)])?;
    with_cached(key, || Ok(load(folder, device::torch(device))?), work)
}

/// Models of a type that are kept: of UNets, a few queries' and the pretrained one.
const KEPT: usize = 4;

thread_local! {
    /// The last used first. Tasks run on one thread, and a model belongs to the thread that loaded it.
    static CACHED: RefCell<Vec<(ModelKey, Box<dyn Any>)>> = const { RefCell::new(Vec::new()) };
}

/// Does `work` with what `make` makes of some files for the network on the ports `unet`, `checkpoint` and `lora`. It is too large to
/// be kept for long: until something else is loaded.
///
/// # Errors
/// Files that cannot be read, and those of `make` and `work`.
pub(crate) fn with_large<M: 'static, T>(
    inputs: &Inputs,
    files: &[&Path],
    device: Device,
    make: impl FnOnce() -> anyhow::Result<M>,
    work: impl FnOnce(&M) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let network = [Some(inputs.path("unet")), inputs.get("checkpoint"), inputs.get("lora")];
    let paths: Vec<Option<&Path>> = network.into_iter().chain(files.iter().map(|file| Some(*file))).collect();
    let key = ModelKey { large: true, ..ModelKey::of(device, None, &paths)? };
    with_cached(key, make, work)
}

/// Calls `work` with a cached model, or loads and then caches it.
fn with_cached<M: 'static, T>(
    key: ModelKey,
    load: impl FnOnce() -> anyhow::Result<M>,
    work: impl FnOnce(&M) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let cached = CACHED.with_borrow_mut(|cached| {
        let place = cached.iter().position(|(known, model)| *known == key && model.is::<M>())?;
        cached.remove(place).1.downcast::<M>().ok()
    });
    let model = match cached {
        Some(model) => model,
        None => {
            // Before another is loaded, so that there is never one too many.
            let mut kept = 0;
            CACHED.with_borrow_mut(|cached| {
                cached.retain(|(known, model)| {
                    kept += usize::from(model.is::<M>());
                    !known.large && (!model.is::<M>() || kept < KEPT)
                });
            });
            Box::new(load()?)
        }
    };
    // Not cached again if the work fails or panics: its tape may still be recording.
    let result = work(&model)?;
    CACHED.with_borrow_mut(|cached| cached.insert(0, (key, model)));
    Ok(result)
}

/// A model's device, mode and files, as the file system shows them: its identity without reading it.
#[derive(PartialEq)]
struct ModelKey {
    device: Device,
    mode: Option<(ModelMode, Adapters)>,
    /// The files of each path, with their lengths and times of change.
    files: Vec<Vec<(PathBuf, u64, SystemTime)>>,
    /// Whether it is dropped before anything else is loaded.
    large: bool,
}

impl ModelKey {
    fn of(
        device: Device,
        mode: Option<(ModelMode, Adapters)>,
        paths: &[Option<&Path>],
    ) -> anyhow::Result<ModelKey> {
        let files = |path: &Option<&Path>| {
            let Some(path) = path else { return Ok(Vec::new()) };
            let mut files = vec![path.to_path_buf()];
            if path.is_dir() {
                files =
                    fs_err::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<anyhow::Result<_>>()?;
                files.sort();
            }
            files.into_iter().map(stat).collect()
        };
        let files = paths.iter().map(files).collect::<anyhow::Result<_>>()?;
        Ok(ModelKey { device, mode, files, large: false })
    }
}

fn stat(path: PathBuf) -> anyhow::Result<(PathBuf, u64, SystemTime)> {
    let found = fs_err::metadata(&path)?;
    Ok((path, found.len(), found.modified()?))
}

fn load(
    inputs: &Inputs,
    adapters: Adapters,
    changed: Option<&Path>,
    device: Device,
    mode: ModelMode,
) -> anyhow::Result<UNet> {
    let (folder, checkpoint) = (inputs.path("unet"), inputs.get("checkpoint"));
    super::check_inputs::unet(folder)?;
    let lora = inputs.get("lora").map(|path| (path, adapters));
    let files = UNetFiles { folder, checkpoint, lora, changed };
    UNet::load_files(&files, device::torch(device), mode).map_err(|error| match error {
        ModelError::NoCheckpoint { .. } => {
            anyhow::anyhow!("{error}; connect a checkpoint stored elsewhere to the input `checkpoint`")
        }
        error => error.into(),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::models::unet::Precision;

    const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/demo/model/unet");
    const NAMES: [&str; 2] = ["config.json", "diffusion_pytorch_model.safetensors"];

    fn inputs(folder: &Path) -> Inputs {
        Inputs(BTreeMap::from([("unet".to_owned(), folder.to_path_buf())]))
    }

    fn copy(to: &Path) -> Inputs {
        fs_err::create_dir_all(to).unwrap();
        for name in NAMES {
            fs_err::copy(Path::new(DEMO).join(name), to.join(name)).unwrap();
        }
        inputs(to)
    }

    /// Whether the network was cached, and marks it.
    fn again(inputs: &Inputs) -> bool {
        with_unet(inputs, None, Device::Cpu, ModelMode::Inference(Precision::Fp32), |unet| {
            let marked = marked(unet);
            let _ = unet.parameters()["conv_in.bias"].set_requires_grad(true);
            Ok(marked)
        })
        .unwrap()
    }

    fn marked(unet: &UNet) -> bool {
        unet.parameters()["conv_in.bias"].requires_grad()
    }

    #[test]
    fn a_network_is_kept_until_its_files_change() {
        let folder = tempfile::tempdir().unwrap();
        let inputs = copy(&folder.path().join("unet"));
        assert_eq!([again(&inputs), again(&inputs)], [false, true]);
        let file = folder.path().join("unet").join(NAMES[1]);
        let file = fs_err::OpenOptions::new().write(true).open(file).unwrap();
        file.file().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!([again(&inputs), again(&inputs)], [false, true]);
    }

    #[test]
    fn only_the_last_few_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let all: Vec<Inputs> = (0..=KEPT).map(|n| copy(&folder.path().join(n.to_string()))).collect();
        assert!(all.iter().all(|inputs| !again(inputs)));
        assert!(all[1..].iter().all(again));
        assert!(!again(&all[0]));
        assert_eq!(CACHED.with_borrow(Vec::len), KEPT);
    }

    #[test]
    fn work_that_fails_keeps_nothing_and_a_network_to_be_changed_is_nobody_elses() {
        let folder = tempfile::tempdir().unwrap();
        let inputs = copy(folder.path());
        assert!(!again(&inputs));
        let failed = with_unet(&inputs, None, Device::Cpu, ModelMode::Inference(Precision::Fp32), |_| {
            anyhow::bail!("on purpose")
        });
        assert!(failed.map(|(): ()| ()).is_err());
        assert!(!again(&inputs));
        assert!(again(&inputs));
        assert!(!marked(
            &load_unet(&inputs, Adapters::Merged, Device::Cpu, ModelMode::Gradients(Precision::Fp32))
                .unwrap()
        ));
        assert!(again(&inputs));
    }

    #[test]
    fn what_is_large_is_kept_until_something_else_is_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let inputs = copy(&folder.path().join("unet"));
        let file = folder.path().join("weights");
        fs_err::write(&file, "1").unwrap();
        let mut made = 0;
        let mut large = || {
            let make = || {
                made += 1;
                Ok(1u8)
            };
            with_large(&inputs, &[&file], Device::Cpu, make, |_| Ok(())).unwrap();
            made
        };
        assert_eq!([large(), large()], [1, 1]);
        assert!(!again(&inputs));
        assert_eq!([large(), large()], [2, 2]);
        assert!(again(&inputs));
        assert_eq!(large(), 2);
        fs_err::write(&file, "22").unwrap();
        assert_eq!(large(), 3);
    }

    #[test]
    fn models_of_different_types_do_not_displace_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let key = || ModelKey::of(Device::Cpu, None, &[Some(folder.path())]).unwrap();
        let mut loaded = 0;
        let mut load = || {
            loaded += 1;
            Ok(())
        };
        for _ in 0..2 {
            with_cached(key(), || load().map(|()| 1u8), |_| Ok(())).unwrap();
            with_cached(key(), || load().map(|()| 2u16), |_| Ok(())).unwrap();
        }
        assert_eq!(loaded, 2);
    }
}
