//! The networks of Stable Diffusion at their sizes, with random weights, against diffusers and transformers
//! (`tests/golden/make_sizes.py`): every name and shape is taken, none is missing, and the outputs agree.
//!
//! All but the autoencoder take up to half a minute and 9 GB of memory, so they run on demand, one at a time:
//!
//! ```text
//! cargo nextest run --run-ignored only --test-threads 1 --no-capture -E 'test(sizes::)'
//! ```

use std::path::Path;

use attrflow::models::clip::text::TextEncoder;
use attrflow::models::unet::UNet;
use attrflow::models::vae::Vae;
use attrflow::models::weights::Weights;
use tch::{Device, Tensor};

use crate::golden::{Tensors, load, path};
use crate::ruled::{Report, check_weights, normal, sampled, weights};

/// The weights of one network, checked, and what is expected of it.
fn drawn(name: &str) -> (Tensors, Tensors) {
    let expected = load(&format!("sizes/{name}/expected"));
    let weights = weights(&path(&format!("tests/golden/sizes/{name}")));
    check_weights(&weights, &expected);
    (weights, expected)
}

fn compare(report: &mut Report, what: &str, found: &Tensor, expected: &Tensors) {
    let of = |part: &str| &expected[&format!("{what}.{part}")];
    assert_eq!(found.size(), Vec::<i64>::try_from(of("shape")).unwrap());
    let some = sampled(&found.flatten(0, -1), of("samples").size()[0]);
    let off = (some - of("samples")).abs().max().double_value(&[]);
    report.note(what, off / of("peak").double_value(&[]), 1e-5);
}

fn unet(name: &str, width: i64, parameters: usize) {
    let (weights, expected) = drawn(name);
    let config = path(&format!("tests/golden/sizes/{name}/config.json"));
    let unet = UNet::new(&config, Weights::new(weights)).unwrap();
    assert_eq!(unet.parameters().values().map(Tensor::numel).sum::<usize>(), parameters);
    let (xt, text) = (normal(&[2, 4, 24, 16], 1), normal(&[2, 77, width], 2));
    let output = tch::no_grad(|| unet.forward(&xt, &Tensor::from_slice(&[20i64, 900]), &text.into()));
    let mut report = Report::default();
    compare(&mut report, "output", &output, &expected);
    report.finish();
}

/// A model's folder as it is downloaded.
fn folder(name: &str, weights: &Tensors) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let tensors: Vec<(&str, &Tensor)> =
        weights.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    Tensor::write_safetensors(&tensors, folder.path().join("model.safetensors")).unwrap();
    let config = Path::new("tests/golden/sizes").join(name).join("config.json");
    fs_err::copy(path(config.to_str().unwrap()), folder.path().join("config.json")).unwrap();
    folder
}

#[test]
#[ignore = "860 M parameters: see the head of this file"]
fn unet_of_stable_diffusion_1() {
    unet("unet_sd1", 768, 859_520_964);
}

#[test]
#[ignore = "866 M parameters: see the head of this file"]
fn unet_of_stable_diffusion_2() {
    unet("unet_sd2", 1024, 865_910_724);
}

#[test]
fn autoencoder() {
    let (weights, expected) = drawn("vae");
    let vae = Vae::load(folder("vae", &weights).path(), Device::Cpu).unwrap();
    let mut report = Report::default();
    let posterior = tch::no_grad(|| vae.encode(&normal(&[2, 3, 64, 96], 1).clamp(-1.0, 1.0)));
    compare(&mut report, "mean", &posterior.mean, &expected);
    compare(&mut report, "logvar", &posterior.logvar, &expected);
    let decoded = tch::no_grad(|| vae.decode(&posterior.mean));
    compare(&mut report, "decoded", &decoded, &expected);
    report.finish();
}

#[test]
#[ignore = "340 M parameters: see the head of this file"]
fn text_encoder_of_stable_diffusion_2() {
    let (weights, expected) = drawn("clip");
    let encoder = TextEncoder::load(folder("clip", &weights).path(), None, Device::Cpu).unwrap();
    let mut report = Report::default();
    let hidden = tch::no_grad(|| encoder.forward(&expected["ids"]));
    compare(&mut report, "hidden", &hidden, &expected);
    report.finish();
}
