//! The text encoder against transformers (`tests/golden/make_vae_clip.py`).

use attrflow::models::clip::text::TextEncoder;
use tch::Device;

use crate::golden::{self, assert_close, assert_within};

#[test]
fn gelu_with_prefixed_names() {
    let expected = golden::load("vae_clip");
    let encoder = TextEncoder::load(&golden::path("tests/golden/clip"), None, Device::Cpu).unwrap();
    let ids = &expected["gelu/ids"];
    assert_close("hidden", &encoder.forward(ids), &expected["gelu/hidden"]);
    assert_close("short", &encoder.forward(&ids.narrow(1, 0, 7)), &expected["gelu/short"]);
}

#[test]
fn quick_gelu_of_the_demo() {
    let expected = golden::load("vae_clip");
    let encoder =
        TextEncoder::load(&golden::path("data/demo/model/text_encoder"), None, Device::Cpu).unwrap();
    assert_close("hidden", &encoder.forward(&expected["quick_gelu/ids"]), &expected["quick_gelu/hidden"]);
}

#[test]
fn a_token_does_not_see_those_after_it() {
    let encoder = TextEncoder::load(&golden::path("tests/golden/clip"), None, Device::Cpu).unwrap();
    let ids = &golden::load("vae_clip")["gelu/ids"];
    let changed = ids.copy();
    let _ = changed.narrow(1, 8, 4).fill_(5);
    let (a, b) = (encoder.forward(ids), encoder.forward(&changed));
    assert_within("before the change", &a.narrow(1, 0, 8), &b.narrow(1, 0, 8), 1e-6);
    assert!((a - b).narrow(1, 8, 4).abs().max().double_value(&[]) > 0.01);
}

#[test]
fn another_models_folder_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs_err::copy(golden::path("tests/golden/clip").join(name), folder.path().join(name)).unwrap();
    }
    let config = fs_err::read_to_string(folder.path().join("config.json")).unwrap();
    let load = |config: String| {
        fs_err::write(folder.path().join("config.json"), config).unwrap();
        TextEncoder::load(folder.path(), None, Device::Cpu).err().unwrap().to_string()
    };
    let error = load(config.replace("\"num_hidden_layers\": 3", "\"num_hidden_layers\": 2"));
    assert!(error.contains("16 unexpected: encoder.layers.2."), "{error}");
    let error = load(config.replace("\"gelu\"", "\"relu\""));
    assert!(error.contains("unknown variant `relu`, expected `gelu` or `quick_gelu`"), "{error}");
}
