//! The UNet against diffusers', and its own contracts.

use std::path::Path;

use attrflow::io::torch::{Dtype, Entry, write};
use attrflow::models::unet::conditioning::Conditioning;
use attrflow::models::unet::{ModelMode, Precision, UNet, UNetFiles};
use attrflow::models::weights::Weights;
use tch::{Device, Kind, Tensor};

use crate::golden::{assert_close, assert_within, conditioning, demo, load, path, tiny};

fn check(unet: &UNet, case: &str) {
    let case = load(case);
    let found = tch::no_grad(|| unet.forward(&case["xt"], &case["timesteps"], &conditioning(&case)));
    assert_close("output", &found, &case["output"]);
}

fn variant(name: &str) {
    let unet = UNet::load(&path(&format!("tests/golden/unet/{name}")), Device::Cpu).unwrap();
    check(&unet, &format!("unet/{name}/case"));
}

#[test]
fn forward_with_convolutions_around_transformers() {
    variant("conv");
}

#[test]
fn forward_with_linear_maps_a_list_of_heads_and_uneven_sizes() {
    variant("linear");
}

#[test]
fn forward_with_everything_as_a_list() {
    variant("lists");
}

#[test]
fn forward_with_pooled_texts_and_sizes() {
    variant("text_time");
}

#[test]
fn conditions_and_timesteps_of_rows_in_common_equal_those_of_each_row() {
    let unet = UNet::load(&path("tests/golden/unet/text_time"), Device::Cpu).unwrap();
    let case = load("unet/text_time/case");
    let denoise = |timesteps: &Tensor, conditioning: &Conditioning| {
        tch::no_grad(|| unet.forward(&case["xt"], timesteps, conditioning))
    };
    // Rows 0 to 5 have conditions 0, 0, 1, 1, 2, 2 and timesteps 3, 700, 3, 700, 3, 700.
    let two = Tensor::from_slice(&[3i64, 700]);
    let each = conditioning(&case).map(|x| x.repeat_interleave_self_int(2, 0, None));
    assert_within("shared", &denoise(&two, &conditioning(&case)), &denoise(&two.repeat([3]), &each), 1e-6);
}

#[test]
fn pooled_texts_need_their_widths() {
    let folder = tempfile::tempdir().unwrap();
    let config = fs_err::read_to_string(path("tests/golden/unet/text_time/config.json")).unwrap();
    let file = folder.path().join("config.json");
    fs_err::write(
        &file,
        config.replace(r#""addition_time_embed_dim": 6"#, r#""addition_time_embed_dim": null"#),
    )
    .unwrap();
    let error = UNet::new(&file, Weights::zeros()).err().unwrap().to_string();
    assert!(error.ends_with(r#"`addition_time_embed_dim` is null, supported: a positive number with addition_embed_type "text_time""#), "{error}");
}

#[test]
fn an_updated_parameter_is_used_at_once() {
    tch::set_num_threads(1); // where filters are kept in another form
    let (mut unet, case) = (demo(), load("unet/demo"));
    let forward =
        |unet: &UNet| tch::no_grad(|| unet.forward(&case["xt"], &case["timesteps"], &conditioning(&case)));
    let before = forward(&unet);
    let mut changed =
        unet.parameters().iter().map(|(name, tensor)| (name.clone(), (tensor * 1.01).contiguous()));
    let changed: Vec<(String, Tensor)> =
        changed.by_ref().filter(|(name, _)| name.contains("conv1.weight")).collect();
    for (name, tensor) in &changed {
        unet.update(name, tensor);
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("changed.safetensors");
    Tensor::write_safetensors(&changed, &file).unwrap();
    let loaded = with_changed("data/demo/model/unet", &file);
    assert_eq!(forward(&unet), forward(&loaded));
    assert_ne!(forward(&unet), before);
}

/// The network in a folder, with the tensors of a file in place of its own.
fn with_changed(folder: &str, changed: &Path) -> UNet {
    let folder = path(folder);
    let files = UNetFiles { changed: Some(changed), ..UNetFiles::new(&folder) };
    UNet::load_files(&files, Device::Cpu, ModelMode::Inference(Precision::Fp32)).unwrap()
}

#[test]
fn forward_of_the_demo_model() {
    check(&demo(), "unet/demo");
}

#[test]
fn sharing_a_text_equals_repeating_it() {
    let (unet, case) = (tiny(), load("unet/conv/case"));
    let repeated = case["text"].repeat_interleave_self_int(2, 0, None);
    let shared = tch::no_grad(|| unet.forward(&case["xt"], &case["timesteps"], &conditioning(&case)));
    let found = tch::no_grad(|| unet.forward(&case["xt"], &case["timesteps"], &repeated.into()));
    assert_within("repeated", &found, &shared, 1e-6);
}

#[test]
fn changed_tensors_replace_the_folders() {
    let folder = tempfile::tempdir().unwrap();
    let (plain, name) = (tiny(), "conv_out.bias");
    let changed = folder.path().join("changed.safetensors");
    Tensor::write_safetensors(&[(name, &plain.parameters()[name] + 1.0)], &changed).unwrap();
    let unet = with_changed("tests/golden/unet/conv", &changed);
    let case = load("unet/conv/case");
    let found = tch::no_grad(|| unet.forward(&case["xt"], &case["timesteps"], &conditioning(&case)));
    assert_close("shifted", &found, &(&case["output"] + 1.0));
}

#[test]
fn the_tape_records_chosen_layers_only_and_once() {
    let (unet, case) = (tiny(), load("unet/conv/case"));
    let forward = || unet.forward(&case["xt"], &case["timesteps"], &conditioning(&case));
    unet.tape().record(|name| name.contains("attn2.to_k"));
    let output = forward();
    let records = unet.tape().take();
    assert_eq!(records.len(), unet.parameters().keys().filter(|name| name.contains("attn2.to_k")).count());
    assert!(records.iter().all(|record| record.weight && !record.bias && record.output.requires_grad()));
    // Keys come from the text, which needs no gradient: they are leaves, with nothing kept below.
    assert!(records.iter().all(|record| record.output.is_leaf()));
    assert!(output.requires_grad());
    // Afterwards nothing is recorded, and no parameter was made to need a gradient.
    assert!(!forward().requires_grad());
    assert!(unet.tape().take().is_empty());
}

#[test]
fn the_latent_shape_comes_from_the_configuration() {
    assert_eq!(demo().config().latent_shape(), Some([4, 16, 16]));
    assert_eq!(demo().parameters()["conv_in.weight"].kind(), Kind::Float);
}

#[test]
fn a_torch_checkpoint_equals_one_in_safetensors() {
    let folder = tempfile::tempdir().unwrap();
    let plain = tiny();
    let stored: Vec<(&String, Vec<usize>, Vec<u8>)> = plain
        .parameters()
        .iter()
        .map(|(name, tensor)| {
            let mut bytes = vec![0; tensor.numel() * 4];
            tensor.copy_data_u8(&mut bytes, tensor.numel());
            (name, tensor.size().iter().map(|&size| size as usize).collect(), bytes)
        })
        .collect();
    let entries: Vec<Entry<'_>> =
        stored.iter().map(|(name, shape, bytes)| Entry { name, dtype: Dtype::F32, shape, bytes }).collect();
    write(folder.path().join("diffusion_pytorch_model.bin"), &entries).unwrap();
    fs_err::copy(path("tests/golden/unet/conv/config.json"), folder.path().join("config.json")).unwrap();
    check(&UNet::load(folder.path(), Device::Cpu).unwrap(), "unet/conv/case");
}
