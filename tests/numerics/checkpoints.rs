//! A network's weights beside its configuration, and the form of the published network.

use std::collections::BTreeMap;
use std::path::Path;

use attrflow::io::torch::{self, Dtype, Entry};
use attrflow::method::schedule::NoiseSchedule;
use attrflow::method::selection::Selection;
use attrflow::models::unet::{ModelMode, Precision, UNet, UNetFiles};
use attrflow::models::weights::Weights;
use tch::{Device, Tensor};

use crate::golden::{path, tiny};

const FORM: &str = "tests/golden/unet/conv";

/// Writes tensors as `torch.save` does.
fn save(tensors: &BTreeMap<String, Tensor>, file: &Path) {
    let parts: Vec<(&String, Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, tensor)| {
            let values = Vec::<f32>::try_from(tensor.flatten(0, -1)).unwrap();
            let shape = tensor.size().iter().map(|&size| size as usize).collect();
            (name, shape, values.iter().flat_map(|value| value.to_le_bytes()).collect())
        })
        .collect();
    let entry = |(name, shape, bytes)| Entry { name, dtype: Dtype::F32, shape, bytes };
    let entries: Vec<Entry<'_>> = parts
        .iter()
        .map(|(name, shape, bytes)| entry((name.as_str(), shape.as_slice(), bytes.as_slice())))
        .collect();
    torch::write(file, &entries).unwrap();
}

fn copies(unet: &UNet) -> BTreeMap<String, Tensor> {
    unet.parameters().iter().map(|(name, tensor)| (name.clone(), tensor.copy())).collect()
}

#[test]
fn a_checkpoint_elsewhere_is_checked_against_the_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let form = folder.path().join("unet");
    fs_err::create_dir(&form).unwrap();
    fs_err::copy(path(FORM).join("config.json"), form.join("config.json")).unwrap();
    let (file, own) = (folder.path().join("model.bin"), tiny());
    let load = |checkpoint: Option<&Path>, changed: Option<&Path>| {
        UNet::load_files(
            &UNetFiles { checkpoint, changed, ..UNetFiles::new(&form) },
            Device::Cpu,
            ModelMode::Gradients(Precision::Fp32),
        )
        .map_err(|error| error.to_string())
    };
    let error = load(None, None).err().unwrap();
    assert!(
        error.starts_with(&format!("{}: no checkpoint, looked for diffusion_", form.display())),
        "{error}"
    );

    save(&copies(&own), &file);
    let loaded = load(Some(&file), None).unwrap();
    assert!(own.parameters().iter().all(|(name, tensor)| loaded.parameters()[name].equal(tensor)));

    let mut tensors = copies(&own);
    tensors.insert("extra.weight".into(), Tensor::zeros([2], tch::kind::FLOAT_CPU));
    tensors.retain(|name, _| !["conv_in.bias", "conv_out.bias"].contains(&name.as_str()));
    save(&tensors, &file);
    assert_eq!(
        load(Some(&file), None).err().unwrap(),
        format!(
            "{}: the tensors do not fit the configuration; 2 missing: conv_in.bias, conv_out.bias; \
             1 unexpected: extra.weight",
            file.display()
        )
    );

    // Changed weights that the checkpoint does not have are the change's fault, not the checkpoint's.
    save(&copies(&own), &file);
    let changed = folder.path().join("changed.pt");
    save(
        &BTreeMap::from([
            ("conv_in.biass".to_owned(), own.parameters()["conv_in.bias"].copy()),
            ("conv_out.bias".to_owned(), Tensor::zeros([7], tch::kind::FLOAT_CPU)),
        ]),
        &changed,
    );
    assert_eq!(
        load(Some(&file), Some(&changed)).err().unwrap(),
        format!(
            "{}: the tensors do not fit the configuration; 1 of another shape: conv_out.bias [7], expected [4]; \
             1 unexpected: conv_in.biass",
            changed.display()
        )
    );
    save(&BTreeMap::from([("conv_out.bias".to_owned(), &own.parameters()["conv_out.bias"] + 1.0)]), &changed);
    let loaded = load(Some(&file), Some(&changed)).unwrap();
    let rise = &loaded.parameters()["conv_out.bias"] - &own.parameters()["conv_out.bias"];
    assert!((rise - 1.0).abs().max().double_value(&[]) < 1e-6);
}

/// Numbers as diffusers 0.42 counts them for the same config.json.
#[test]
fn the_published_network_has_its_size() {
    let unet = UNet::new(&path("configs/mscoco/unet/config.json"), Weights::zeros()).unwrap();
    let count = |selection: Selection| {
        let names = selection.of(unet.parameters().keys()).unwrap();
        (names.len(), names.iter().map(|name| unet.parameters()[name].numel()).sum::<usize>())
    };
    assert_eq!(count(Selection::All), (684, 57_373_316));
    assert_eq!(count(Selection::CrossAttnKv), (32, 7_077_888));
    assert_eq!(unet.config().latent_shape(), Some([4, 16, 16]));
    let schedule = NoiseSchedule::load(&path("configs/mscoco/scheduler")).unwrap();
    assert_eq!(schedule.train_timesteps(), 1000);
    assert_eq!(schedule.timesteps(1000).unwrap()[999], 0);
}

#[test]
fn a_network_in_several_files_and_in_half_precision_is_the_same_network() {
    let whole = UNet::load(&path("tests/golden/single_file/diffusers/unet"), Device::Cpu).unwrap();
    for folder in ["sharded", "fp16", "sharded_fp16"] {
        let other = UNet::load(&path(&format!("tests/golden/single_file/{folder}")), Device::Cpu).unwrap();
        assert!(
            whole.parameters().iter().all(|(name, tensor)| other.parameters()[name].equal(tensor)),
            "{folder}"
        );
        assert_eq!(whole.parameters().len(), other.parameters().len());
    }
}

#[test]
fn an_index_that_cannot_be_followed_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let from = path("tests/golden/single_file/sharded");
    for entry in fs_err::read_dir(&from).unwrap() {
        let entry = entry.unwrap();
        fs_err::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    let index = folder.path().join("diffusion_pytorch_model.safetensors.index.json");
    let text = fs_err::read_to_string(&index).unwrap();
    let load = |text: &str| {
        fs_err::write(&index, text).unwrap();
        UNet::load(folder.path(), Device::Cpu).err().unwrap().to_string()
    };
    let first = "diffusion_pytorch_model-00001-of-00003.safetensors";
    let second = "diffusion_pytorch_model-00002-of-00003.safetensors";
    for (changed, expected) in [
        (
            text.replace(first, "elsewhere.safetensors"),
            "it names the file `elsewhere.safetensors`, which is not beside it",
        ),
        (
            text.replace(first, "../x.safetensors"),
            "it names the file `../x.safetensors`, expected one beside it",
        ),
        (text.replacen(first, second, 1), "is not in `diffusion_pytorch_model-00002-of-00003.safetensors`"),
        (r#"{"weight_map": {}}"#.to_owned(), "it names no file"),
        (r#"{"weight": {}}"#.to_owned(), "missing field `weight_map`"),
        (
            text.replacen(first, "diffusion_pytorch_model.safetensors.index.json", 1),
            "neither a safetensors nor a torch.save file",
        ),
    ] {
        let error = load(&changed);
        assert!(error.starts_with(&index.display().to_string()) && error.contains(expected), "{error}");
    }
    // As a file alone it stands for bytes that would not count.
    let files = UNetFiles { checkpoint: Some(&index), ..UNetFiles::new(folder.path()) };
    let error = UNet::load_files(&files, Device::Cpu, ModelMode::Gradients(Precision::Fp32))
        .err()
        .unwrap()
        .to_string();
    assert!(error.ends_with("connect the folder that has them, without `checkpoint`"), "{error}");
    fs_err::copy(folder.path().join(first), folder.path().join(second)).unwrap();
    let error = load(&text);
    assert!(error.contains("the tensor `") && error.contains(" and in "), "{error}");
}
