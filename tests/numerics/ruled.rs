//! Weights by a rule, and digests of tensors too large to commit: the other half of `tests/golden/ruled.py`.

use std::collections::BTreeMap;
use std::path::Path;

use attrflow::method::noise::Generator;
use tch::{Device, Kind, Tensor};

use crate::golden::{Tensors, error};

/// A standard normal tensor, as `torch.randn` with a fresh generator draws it.
pub fn normal(shape: &[i64], seed: i64) -> Tensor {
    Generator::seeded(seed).normal(shape, Device::Cpu)
}

/// The weights of the rule for the shapes of `folder/shapes.json`, by name.
pub fn weights(folder: &Path) -> Tensors {
    let shapes = fs_err::read(folder.join("shapes.json")).unwrap();
    let shapes: BTreeMap<String, Vec<i64>> = serde_json::from_slice(&shapes).unwrap();
    let draw = |(place, (name, shape)): (usize, (String, Vec<i64>))| {
        let value = normal(&shape, 1000 + place as i64);
        let fan_in: i64 = shape.iter().skip(1).product();
        let value = match shape.len() {
            2.. => value / (fan_in as f64).sqrt(),
            _ if name.ends_with("weight") => value * 0.1 + 1.0,
            _ => value * 0.1,
        };
        (name, value)
    };
    shapes.into_iter().enumerate().map(draw).collect()
}

/// Compares found and expected values, and reports all differences at the end.
#[derive(Default)]
pub struct Report {
    off: Vec<String>,
}

impl Report {
    /// Notes a relative error.
    pub fn note(&mut self, what: &str, error: f64, tolerance: f64) {
        println!("{what}: relative error {error:.2e}");
        self.check(what, error, tolerance);
    }

    fn check(&mut self, what: &str, error: f64, tolerance: f64) {
        // NaN is not within.
        if error.is_nan() || error > tolerance {
            self.off.push(format!("{what}: relative error {error:.2e}, at most {tolerance:.0e} allowed"));
        }
    }

    /// Notes the relative error of one tensor.
    pub fn tensor(&mut self, what: &str, found: &Tensor, expected: &Tensor, tolerance: f64) {
        self.note(what, error(found, expected), tolerance);
    }

    /// Notes the errors of named tensors against a digest, `expected` being the golden tensors of all digests.
    ///
    /// Of each tensor: the samples, relative to the largest value of the whole tensor; the norm; and, relative to
    /// the norm, the projection, where a difference anywhere shows about as large as its own norm.
    pub fn digest(&mut self, what: &str, found: &Tensors, expected: &Tensors, tolerance: f64) {
        let of = |part: &str| &expected[&format!("{what}.{part}")];
        let (samples, peaks, norms) = (of("samples"), of("peaks"), of("norms"));
        assert_eq!(found.len() as i64, samples.size()[0], "{what}: another number of tensors");
        let mut worst = [0f64; 4];
        for (i, (name, tensor)) in found.iter().enumerate() {
            let at = |x: &Tensor| x.double_value(&[i as i64]);
            let flat = tensor.flatten(0, -1).to_kind(Kind::Double);
            let some = sampled(&flat, samples.size()[1]);
            let (peak, norm) = (at(peaks), at(norms));
            let cosines = Tensor::arange(flat.size()[0], (Kind::Double, Device::Cpu)).cos_();
            let errors = [
                (some - samples.get(i as i64)).abs().max().double_value(&[]) / peak,
                (flat.abs().max().double_value(&[]) - peak).abs() / peak,
                (flat.norm().double_value(&[]) - norm).abs() / norm,
                (flat.dot(&cosines).double_value(&[]) - at(of("projections"))).abs() / norm,
            ];
            for ((part, error), worst) in
                ["values", "peak", "norm", "projection"].iter().zip(errors).zip(&mut worst)
            {
                self.check(&format!("{what}, {name}, {part}"), error, tolerance);
                *worst = worst.max(error);
            }
        }
        let [values, peak, norm, projection] = worst.map(|error| format!("{error:.2e}"));
        println!(
            "{what}: relative errors: values {values}, peak {peak}, norm {norm}, projection {projection}"
        );
    }

    /// Fails if anything was off.
    #[track_caller]
    pub fn finish(self) {
        let count = self.off.len();
        assert!(count == 0, "{count} off:\n{}", self.off[..count.min(40)].join("\n"));
    }
}

/// `count` values at even steps through a flat tensor, or all of a small one and zeros.
pub fn sampled(flat: &Tensor, count: i64) -> Tensor {
    let length = flat.size()[0];
    let some = flat.slice(0, None, None, (length / count).max(1));
    let some = some.narrow(0, 0, count.min(some.size()[0]));
    let missing = count - some.size()[0];
    some.constant_pad_nd([0, missing])
}

/// Checks the drawn weights first: everything else would be off too.
pub fn check_weights(found: &Tensors, expected: &Tensors) {
    let mut report = Report::default();
    report.digest("weights", found, expected, 1e-6);
    let count = report.off.len();
    assert!(
        count == 0,
        "this libtorch draws other random numbers than the one that made the golden file, or rounds them \
         otherwise; {count} tensors' parts are off:\n{}",
        report.off[..count.min(10)].join("\n")
    );
}
