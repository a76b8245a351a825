//! The autoencoder against diffusers (`tests/golden/make_vae_clip.py`).

use std::path::Path;

use attrflow::nn::vae::Vae;
use tch::Device;

use crate::support::{self, close};

#[track_caller]
fn compare(name: &str, folder: &Path) {
    let golden = support::tensors("vae_clip.safetensors");
    let expected = |key: &str| &golden[&format!("{name}/{key}")];
    let vae = Vae::load(folder, Device::Cpu).unwrap();
    let x = expected("x");
    let posterior = vae.encode(x);
    close(&posterior.mode(), expected("mean"), 1e-5);
    close(&posterior.logvar, expected("logvar"), 1e-5);
    close(&posterior.sample(expected("eps")), expected("sample"), 1e-5);
    close(&vae.decode(expected("mean")), expected("decoded"), 1e-5);
    assert_eq!(posterior.mean.size()[2..], [vae.latent_size(x.size()[2]), vae.latent_size(x.size()[3])]);
}

#[test]
fn four_resolutions_with_old_names() {
    compare("deep", &support::path("vae/deep"));
}

#[test]
fn without_quant_convolutions_and_attention() {
    compare("plain", &support::path("vae/plain"));
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
    let config = fs_err::read_to_string(support::path("vae/plain/config.json")).unwrap();
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
