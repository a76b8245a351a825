//! The autoencoder against diffusers (`tests/golden/make_vae_clip.py`).

use std::path::Path;

use attrflow::models::vae::Vae;
use tch::Device;

use crate::golden::{self, assert_close};

#[track_caller]
fn compare(name: &str, folder: &Path) {
    let tensors = golden::load("vae_clip");
    let expected = |key: &str| &tensors[&format!("{name}/{key}")];
    let vae = Vae::load(folder, Device::Cpu).unwrap();
    let x = expected("x");
    let posterior = vae.encode(x);
    assert_close("mean", &posterior.mode(), expected("mean"));
    assert_close("logvar", &posterior.logvar, expected("logvar"));
    assert_close("sample", &posterior.sample(expected("eps")), expected("sample"));
    assert_close("decoded", &vae.decode(expected("mean")), expected("decoded"));
    assert_eq!(posterior.mean.size()[2..], [vae.latent_size(x.size()[2]), vae.latent_size(x.size()[3])]);
}

#[test]
fn four_resolutions_with_old_names() {
    compare("deep", &golden::path("tests/golden/vae/deep"));
}

#[test]
fn without_quant_convolutions_and_attention() {
    compare("plain", &golden::path("tests/golden/vae/plain"));
}

#[test]
fn the_demos() {
    let folder = Path::new("data/demo/model/vae");
    compare("demo", folder);
    assert_eq!(Vae::load(folder, Device::Cpu).unwrap().scaling_factor(), 0.79008);
}

#[test]
fn what_is_not_built_in_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let config = fs_err::read_to_string(golden::path("tests/golden/vae/plain/config.json")).unwrap();
    let load = |from: &str, to: &str| {
        assert!(config.contains(from), "{config}");
        fs_err::write(folder.path().join("config.json"), config.replacen(from, to, 1)).unwrap();
        Vae::load(folder.path(), Device::Cpu).err().unwrap().to_string()
    };
    let error = load("\"shift_factor\": null", "\"shift_factor\": 0.1");
    assert!(error.ends_with("config.json: `shift_factor` is 0.1, supported: null, 0"), "{error}");
    let error = load("\"UpDecoderBlock2D\"", "\"AttnUpDecoderBlock2D\"");
    assert!(error.contains("supported: 2 of UpDecoderBlock2D, one for each"), "{error}");
}
