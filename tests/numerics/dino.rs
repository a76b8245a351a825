//! DINO's vision transformers against transformers (`tests/golden/make_dino.py`).

use attrflow::models::dino::VisionTransformer;
use attrflow::models::vision::PictureEncoder as _;
use image::RgbImage;
use tch::{Device, Tensor};

use crate::golden::{assert_close, load, path};

fn picture(pixels: &Tensor) -> RgbImage {
    let size = pixels.size();
    let bytes = Vec::<u8>::try_from(pixels.flatten(0, -1)).unwrap();
    RgbImage::from_raw(size[1] as u32, size[0] as u32, bytes).unwrap()
}

#[test]
fn vectors_are_transformers() {
    let golden = load("dino");
    for family in ["vit", "dinov2"] {
        let dino = VisionTransformer::load(&path("tests/golden/dino").join(family), Device::Cpu).unwrap();
        let prepared = ["images/0", "images/1"]
            .map(|image| dino.prepare(&picture(&golden[image])))
            .map(|x| x.unsqueeze(0));
        let prepared = Tensor::cat(&prepared, 0);
        assert_close("prepared", &prepared, &golden[&format!("{family}/prepared")]);
        assert_close(family, &dino.forward(&prepared), &golden[&format!("{family}/vectors")]);
    }
}

#[test]
fn what_makes_no_such_network_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let own = path("tests/golden/dino/dinov2");
    for name in ["config.json", "preprocessor_config.json", "model.safetensors"] {
        fs_err::copy(own.join(name), folder.path().join(name)).unwrap();
    }
    let refused = |name: &str, from: &str, to: &str, expected: &str| {
        let text = fs_err::read_to_string(own.join(name)).unwrap();
        assert!(text.contains(from), "{from}: {text}");
        fs_err::write(folder.path().join(name), text.replace(from, to)).unwrap();
        let error = VisionTransformer::load(folder.path(), Device::Cpu).err().unwrap().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
        fs_err::write(folder.path().join(name), text).unwrap();
    };
    let config = "config.json";
    refused(config, "\"model_type\": \"dinov2\"", "\"model_type\": \"clip\"", "`model_type` is");
    refused(config, "\"use_swiglu_ffn\": false", "\"use_swiglu_ffn\": true", "`use_swiglu_ffn` is");
    refused(config, "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1", "unexpected: encoder.layer.1.");
    refused(config, "\"patch_size\": 4", "\"patch_size\": 5", "`patch_size`");
    let preparing = "preprocessor_config.json";
    refused(
        preparing,
        "\"shortest_edge\": 22",
        "\"shortest_edge\": 19",
        "`crop_size` is 20, supported: at most",
    );
    refused(preparing, "\"resample\": 3", "\"resample\": 1", "`resample` is 1");
}
