//! The text encoder against transformers (`tests/golden/make_vae_clip.py`).

use attrflow::nn::clip::TextEncoder;
use tch::Device;

use crate::support::{self, close};

#[test]
fn gelu_with_prefixed_names() {
    let golden = support::tensors("vae_clip.safetensors");
    let encoder = TextEncoder::load(support::path("clip"), Device::Cpu).unwrap();
    let ids = &golden["gelu/ids"];
    close(&encoder.forward(ids), &golden["gelu/hidden"], 1e-5);
    close(&encoder.forward(&ids.narrow(1, 0, 7)), &golden["gelu/short"], 1e-5);
}

#[test]
fn quick_gelu_of_the_demo() {
    let golden = support::tensors("vae_clip.safetensors");
    let encoder = TextEncoder::load("data/demo/model/text_encoder", Device::Cpu).unwrap();
    close(&encoder.forward(&golden["quick_gelu/ids"]), &golden["quick_gelu/hidden"], 1e-5);
}

#[test]
fn a_token_does_not_see_those_after_it() {
    let encoder = TextEncoder::load(support::path("clip"), Device::Cpu).unwrap();
    let ids = &support::tensors("vae_clip.safetensors")["gelu/ids"];
    let changed = ids.copy();
    let _ = changed.narrow(1, 8, 4).fill_(5);
    let (a, b) = (encoder.forward(ids), encoder.forward(&changed));
    close(&a.narrow(1, 0, 8), &b.narrow(1, 0, 8), 1e-6);
    assert!((a - b).narrow(1, 8, 4).abs().max().double_value(&[]) > 0.01);
}

#[test]
fn another_models_folder_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs_err::copy(support::path("clip").join(name), folder.path().join(name)).unwrap();
    }
    let config = fs_err::read_to_string(folder.path().join("config.json")).unwrap();
    let load = |config: String| {
        fs_err::write(folder.path().join("config.json"), config).unwrap();
        TextEncoder::load(folder.path(), Device::Cpu).err().unwrap().to_string()
    };
    let error = load(config.replace("\"num_hidden_layers\": 3", "\"num_hidden_layers\": 2"));
    assert!(error.contains("16 unexpected: encoder.layers.2."), "{error}");
    let error = load(config.replace("\"gelu\"", "\"relu\""));
    assert!(error.contains("unknown variant `relu`, expected `gelu` or `quick_gelu`"), "{error}");
}
