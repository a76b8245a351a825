//! The networks that stages work with: the ports that they stand on, and their loading.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::device;
use crate::models::unet::{ModelMode, UNet};
use crate::models::weights::config::ModelError;
use attrflow_engine::kind::{Device, Input, Inputs};

pub(crate) const UNET: Input = Input::new(
    "unet",
    "a folder with config.json and a checkpoint (safetensors or torch), or with config.json alone beside `checkpoint`",
);
pub(crate) const CHECKPOINT: Input = Input::new(
    "checkpoint",
    "the network's weights where they do not lie in the `unet` folder: a file (safetensors or torch)",
)
.optional();
pub(crate) const SCHEDULER: Input = Input::new("scheduler", "a folder with scheduler_config.json");
pub(crate) const VAE: Input =
    Input::new("vae", "a folder with config.json and a checkpoint (safetensors or torch)");
pub(crate) const TEXT_ENCODER: Input =
    Input::new("text_encoder", "a folder with config.json and a checkpoint (safetensors or torch)");
pub(crate) const TOKENIZER: Input = Input::new("tokenizer", "a folder with vocab.json and merges.txt");

/// The network on the ports `unet` and `checkpoint`, for whoever changes its parameters: nobody else gets it.
pub(crate) fn load_unet(inputs: &Inputs, device: Device, purpose: ModelMode) -> anyhow::Result<UNet> {
    load(inputs, None, device, purpose)
}

/// Lends the network on the ports `unet` and `checkpoint`, with the tensors of the file `changed` in place of its
/// own; one that was lent a moment ago is not loaded again. Its parameters must stay what they are.
///
/// # Errors
/// Files that make no network, and those of `work`.
pub(crate) fn with_unet<T>(
    inputs: &Inputs,
    changed: Option<&Path>,
    device: Device,
    purpose: ModelMode,
    work: impl FnOnce(&UNet) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let looks = Looks::of(inputs, changed, device, purpose)?;
    let kept = LENT.with_borrow_mut(|lent| {
        let place = lent.iter().position(|(known, _)| *known == looks)?;
        Some(lent.remove(place).1)
    });
    // Room is made before another is loaded, or there would be one more than fit.
    let unet = match kept {
        Some(unet) => unet,
        None => {
            LENT.with_borrow_mut(|lent| lent.truncate(MOST - 1));
            load(inputs, changed, device, purpose)?
        }
    };
    let suited = device::apply_mode(purpose);
    // Not put back where the work fails or panics: its tape may then be left recording.
    let result = work(&unet)?;
    drop(suited);
    LENT.with_borrow_mut(|lent| lent.insert(0, (looks, unet)));
    Ok(result)
}

/// Networks that are kept: a few queries' and the pretrained one.
const MOST: usize = 4;

thread_local! {
    /// The newest first. Tasks run on one thread, and a network belongs to the thread that loaded it.
    static LENT: RefCell<Vec<(Looks, UNet)>> = const { RefCell::new(Vec::new()) };
}

/// What tells a network from others without reading it: its files as the file system shows them.
#[derive(PartialEq)]
struct Looks {
    device: Device,
    purpose: ModelMode,
    files: Vec<(PathBuf, u64, SystemTime)>,
    /// How many of the files are those of the folder and of `checkpoint`.
    parts: [usize; 2],
}

impl Looks {
    fn of(
        inputs: &Inputs,
        changed: Option<&Path>,
        device: Device,
        purpose: ModelMode,
    ) -> anyhow::Result<Self> {
        let mut files = Vec::new();
        for entry in fs_err::read_dir(inputs.path("unet"))? {
            files.push(look(entry?.path())?);
        }
        files.sort();
        let folder = files.len();
        if let Some(checkpoint) = inputs.get("checkpoint") {
            files.push(look(checkpoint.to_path_buf())?);
        }
        let own = files.len();
        if let Some(changed) = changed {
            files.push(look(changed.to_path_buf())?);
        }
        Ok(Self { device, purpose, files, parts: [folder, own] })
    }
}

fn look(path: PathBuf) -> anyhow::Result<(PathBuf, u64, SystemTime)> {
    let found = fs_err::metadata(&path)?;
    Ok((path, found.len(), found.modified()?))
}

fn load(inputs: &Inputs, changed: Option<&Path>, device: Device, purpose: ModelMode) -> anyhow::Result<UNet> {
    let (folder, checkpoint) = (inputs.path("unet"), inputs.get("checkpoint"));
    let device = device::torch(device);
    UNet::load_parts(folder, checkpoint, changed, device, purpose).map_err(|error| match error {
        ModelError::NoCheckpoint { .. } => {
            anyhow::anyhow!("{error}; one that lies elsewhere belongs on the input `checkpoint`")
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

    /// Whether the network that is lent is one that was lent before, and marks it.
    fn again(inputs: &Inputs) -> bool {
        with_unet(inputs, None, Device::Cpu, ModelMode::Inference(Precision::Fp32), |unet| {
            let marked = marked(unet);
            let _ = tch::no_grad(|| unet.parameters()["conv_in.bias"].shallow_clone().fill_(MARK));
            Ok(marked)
        })
        .unwrap()
    }

    const MARK: f64 = 1234.0;

    fn marked(unet: &UNet) -> bool {
        unet.parameters()["conv_in.bias"].double_value(&[0]) == MARK
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
        let all: Vec<Inputs> = (0..=MOST).map(|n| copy(&folder.path().join(n.to_string()))).collect();
        assert!(all.iter().all(|inputs| !again(inputs)));
        assert!(all[1..].iter().all(again));
        assert!(!again(&all[0]));
        assert_eq!(LENT.with_borrow(Vec::len), MOST);
    }

    #[test]
    fn work_that_fails_keeps_nothing_and_a_network_to_be_changed_is_nobody_elses() {
        let folder = tempfile::tempdir().unwrap();
        let inputs = copy(folder.path());
        assert!(!again(&inputs));
        let failed = with_unet(&inputs, None, Device::Cpu, ModelMode::Inference(Precision::Fp32), |_| {
            anyhow::bail!("told to")
        });
        assert!(failed.map(|(): ()| ()).is_err());
        assert!(!again(&inputs));
        assert!(again(&inputs));
        assert!(!marked(&load_unet(&inputs, Device::Cpu, ModelMode::Gradients).unwrap()));
        assert!(again(&inputs));
    }
}
