//! Golden files: found, read, compared.

use std::collections::BTreeMap;
use std::path::PathBuf;

use tch::{Kind, Tensor};

/// A file of `tests/golden/`.
pub fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// The tensors of a golden safetensors file, by name.
pub fn tensors(name: &str) -> BTreeMap<String, Tensor> {
    Tensor::read_safetensors(path(name)).unwrap().into_iter().collect()
}

/// Demands max|found - expected| / max|expected| below `tolerance`.
#[track_caller]
pub fn close(found: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(found.size(), expected.size(), "shape");
    let double = |x: &Tensor| x.to_kind(Kind::Double);
    let scale = double(expected).abs().max().double_value(&[]);
    let error = (double(found) - double(expected)).abs().max().double_value(&[]) / scale;
    assert!(error < tolerance, "relative error {error:.2e}, expected below {tolerance:.0e}");
}
