//! Reads golden files and compares with them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use attrflow::method::curvature::Curvature;
use attrflow::method::loss::LossParams;
use attrflow::method::noise::{ImageNoise, Noise, Point};
use attrflow::method::sample::SampleParams;
use attrflow::method::selection::Selection;
use attrflow::method::unlearn::UnlearnParams;
use attrflow::models::unet::UNet;
use attrflow::models::unet::conditioning::Conditioning;
use attrflow::models::weights::read;
use tch::{Device, Kind, Tensor};

/// Float32 and other sums in another order: what one forward pass of torch differs by between two machines.
pub const TOLERANCE: f64 = 1e-5;

pub type Tensors = BTreeMap<String, Tensor>;

/// A path below the repository's root.
pub fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// The tensors of `tests/golden/{name}.safetensors`.
pub fn load(name: &str) -> Tensors {
    read(&path(&format!("tests/golden/{name}.safetensors")), Device::Cpu).unwrap()
}

/// The tiny network that the golden numbers of the method were made with.
pub fn tiny() -> UNet {
    UNet::load(&path("tests/golden/unet/conv"), Device::Cpu).unwrap()
}

/// The demo model's network.
pub fn demo() -> UNet {
    UNet::load(&path("data/demo/model/unet"), Device::Cpu).unwrap()
}

/// How losses are measured in float32; with noise per batch, in batches of `batch_size` rows.
pub fn loss_params(
    noise: Noise,
    batch_size: usize,
    [captions, time_samples]: [usize; 2],
    seed: u32,
) -> LossParams {
    let batch_size = (noise == Noise::PerBatch).then_some(batch_size);
    LossParams { time_samples, captions, seed, noise, batch_size, ..LossParams::default() }
}

/// How the query of the golden numbers is unlearned.
pub fn unlearn_params(steps: usize, grad_accum_steps: usize, batch_size: usize, lr: f64) -> UnlearnParams {
    let select = Selection::CrossAttnKv;
    UnlearnParams {
        steps,
        grad_accum_steps,
        batch_size,
        lr: Some(lr),
        seed: 4,
        select,
        ..UnlearnParams::default()
    }
}

/// A diagonal of the Fisher information as a step takes it.
pub fn diagonal(fisher: &Tensors) -> Curvature {
    Curvature::Diagonal(fisher.iter().map(|(name, x)| (name.clone(), x.shallow_clone())).collect())
}

/// How images are drawn with one stream of noise through all batches.
/// The noise of an image: [captions, points, C, H, W] for `shape` [captions, C, H, W].
pub fn image_noise(seed: i64, image: usize, points: &[impl Copy + Into<Point>], shape: &[i64]) -> Tensor {
    let noise = ImageNoise { noise: Noise::PerImage, seed, offset: 0.0 };
    noise.of(&[image], points, shape, Device::Cpu).squeeze_dim(0)
}

pub fn sample_params(steps: usize, guidance_scale: f64, batch_size: usize) -> SampleParams {
    SampleParams { steps, guidance_scale, batch_size, ..SampleParams::default() }
}

/// The texts of a case, as conditions.
pub fn conditioning(case: &Tensors) -> Conditioning {
    Conditioning {
        context: case["text"].shallow_clone(),
        pooled: case.get("pooled").map(Tensor::shallow_clone),
        size_ids: case.get("size_ids").map(Tensor::shallow_clone),
    }
}

/// The one text [L, D] of a query.
pub fn text(case: &Tensors) -> Conditioning {
    case["text"].unsqueeze(0).into()
}

/// The relative error: the largest absolute difference over the largest absolute value expected.
pub fn error(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.size(), expected.size());
    let (found, expected) = (found.to_kind(Kind::Double), expected.to_kind(Kind::Double));
    let largest = |x: Tensor| x.abs().max().double_value(&[]);
    let scale = largest(expected.shallow_clone());
    let difference = largest(found - expected);
    // NaN would compare as no error below.
    assert!(difference.is_finite(), "not finite");
    if difference == 0.0 { 0.0 } else { difference / scale }
}

#[track_caller]
pub fn assert_close(what: &str, found: &Tensor, expected: &Tensor) {
    assert_within(what, found, expected, TOLERANCE);
}

#[track_caller]
pub fn assert_within(what: &str, found: &Tensor, expected: &Tensor, tolerance: f64) {
    let error = error(found, expected);
    println!("{what}: relative error {error:.2e}");
    assert!(error <= tolerance, "{what}: relative error {error:.2e}, at most {tolerance:.0e} allowed");
}
