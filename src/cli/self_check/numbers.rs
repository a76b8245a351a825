//! The numbers of a run, held against those of the Python originals.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context as _;
use serde::Deserialize;

use crate::io::npy::{self, Npy};
use crate::io::tensor_file::TensorFile;
use crate::io::torch::Dtype;

/// What is compared: its name, and its file below the results.
pub(super) const ARRAYS: [(&str, &str); 8] = [
    ("latents", "latents/latents.npy"),
    ("text embeddings", "latents/text_embeddings.npy"),
    ("drawing", "generate/latents.npy"),
    ("losses", "pretrain_loss/pretrain_loss.npy"),
    ("Fisher information", "fisher/fisher.safetensors"),
    ("unlearned weights", "unlearn/unlearned.safetensors"),
    ("unlearned losses", "influence/unlearned_loss.npy"),
    ("influence", INFLUENCE),
];
/// The influences.
pub(super) const INFLUENCE: &str = "influence/influence.npy";

/// What a run must give, as `tests/golden/make_self_check.py` computed it.
#[derive(Debug, Deserialize)]
pub(super) struct Expected {
    /// By file, and by the name of a tensor in it; the array of an npy file has none.
    pub arrays: BTreeMap<String, BTreeMap<String, ArrayDigest>>,
    /// The images in descending order of influence.
    pub rank: Vec<i64>,
}

/// What is kept of an array.
#[derive(Debug, Deserialize)]
pub(super) struct ArrayDigest {
    count: usize,
    /// The largest absolute value.
    largest: f64,
    norm: f64,
    /// Values at even steps, each an odd number of values long, which does not meet the same channel each time.
    pub values: Vec<f64>,
}

impl Expected {
    /// That of this version.
    pub fn load() -> anyhow::Result<Self> {
        serde_json::from_str(include_str!("expected.json")).context("expected.json")
    }

    /// The largest error of the arrays of a file, relative to the largest value of each; or the first that is above a bound.
    pub fn compare(&self, results: &Path, file: &str, bound: f64) -> anyhow::Result<Result<f64, String>> {
        let expected = self.arrays.get(file).with_context(|| format!("no numbers of {file}"))?;
        let found = read(&results.join(file))?;
        if !found.keys().eq(expected.keys()) {
            let names = |names: Vec<&String>| format!("{names:?}");
            let (found, expected) = (names(found.keys().collect()), names(expected.keys().collect()));
            return Ok(Err(format!("{file} has {found}, expected {expected}")));
        }
        let mut largest: f64 = 0.0;
        for (name, digest) in expected {
            match digest.compare(&found[name], bound) {
                Ok(error) => largest = largest.max(error),
                Err(why) => return Ok(Err(format!("{}: {why}", [file, name].join(" ").trim_end()))),
            }
        }
        Ok(Ok(largest))
    }
}

impl ArrayDigest {
    /// The largest error, relative to the largest value; or what is further off than a bound.
    pub fn compare(&self, found: &[f64], bound: f64) -> Result<f64, String> {
        if found.len() != self.count {
            return Err(format!("{} values, expected {}", found.len(), self.count));
        }
        let step = (self.count / self.values.len().max(1)) | 1;
        let mut largest: f64 = 0.0;
        let norm = found.iter().map(|value| value * value).sum::<f64>().sqrt();
        let values = found.iter().enumerate().step_by(step).zip(&self.values);
        let values = values
            .map(|((place, found), expected)| (format!("value {place}"), *found, *expected, self.largest));
        for (what, found, expected, scale) in
            values.chain([("the norm".to_owned(), norm, self.norm, self.norm)])
        {
            let error = (found - expected).abs() / scale;
            // NaN is not within.
            if error.is_nan() || error > bound {
                return Err(format!(
                    "{what} is {found:e}, expected {expected:e}; the error is {error:.1e}, at most {bound:.0e} allowed"
                ));
            }
            largest = largest.max(error);
        }
        Ok(largest)
    }
}

/// The tensors of a file by name, each flat; the array of an npy file has no name.
fn read(file: &Path) -> anyhow::Result<BTreeMap<String, Vec<f64>>> {
    if file.extension().is_some_and(|extension| extension == "npy") {
        let npy = Npy::open(file)?;
        let mut values = Vec::new();
        npy.read_f32(0..npy.rows(), &mut values)?;
        return Ok([(String::new(), values.into_iter().map(f64::from).collect())].into());
    }
    let file = TensorFile::open(file)?;
    let tensors = file.headers().iter().map(|header| {
        let bytes = file.bytes_as(header, Dtype::F64)?;
        let values = bytes.as_chunks::<8>().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect();
        Ok((header.name.clone(), values))
    });
    tensors.collect()
}

/// The ranking of a run.
pub(super) fn rank(results: &Path) -> Result<Vec<i64>, npy::NpyError> {
    let npy = Npy::open(results.join("influence/rank.npy"))?;
    let mut rank = Vec::new();
    npy.read_i64(0..npy.rows(), &mut rank)?;
    Ok(rank)
}

/// The influences of a run.
pub(super) fn influence(results: &Path) -> Result<Vec<f64>, npy::NpyError> {
    Ok(Npy::vector(results.join(INFLUENCE))?.into_iter().map(f64::from).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest() -> ArrayDigest {
        ArrayDigest { count: 4, largest: 2.0, norm: 3.0, values: vec![2.0, -1.0, 2.0, 0.0] }
    }

    #[test]
    fn the_error_is_relative_to_the_largest_value() {
        assert_eq!(digest().compare(&[2.0, -1.0, 2.0, 0.0], 1e-5), Ok(0.0));
        let error = digest().compare(&[2.0, -1.0, 2.0, 4e-6], 1e-5).unwrap();
        assert!((error - 2e-6).abs() < 1e-12, "{error}");
    }

    #[test]
    fn a_wrong_value_is_named() {
        let wrong = |found: &[f64]| digest().compare(found, 1e-5).unwrap_err();
        assert_eq!(
            wrong(&[2.0, -1.5, 2.0, 0.0]),
            "value 1 is -1.5e0, expected -1e0; the error is 2.5e-1, at most 1e-5 allowed"
        );
        assert!(wrong(&[2.0, -1.0, f64::NAN, 0.0]).starts_with("value 2 is NaN, expected 2e0"));
        assert_eq!(wrong(&[2.0, -1.0]), "2 values, expected 4");
        // Wrong where no value was kept.
        let sparse = ArrayDigest { values: vec![2.0], ..digest() };
        let error = sparse.compare(&[2.0, -1.0, 2.0, 1.0], 1e-5).unwrap_err();
        assert!(error.starts_with("the norm is 3.16"), "{error}");
    }

    #[test]
    fn what_is_expected_is_what_is_compared() {
        let Expected { arrays, rank } = Expected::load().unwrap();
        let mut files = ARRAYS.map(|(_, file)| file);
        files.sort_unstable();
        assert!(arrays.keys().eq(files.iter()));
        assert_eq!(arrays[INFLUENCE][""].values.len(), rank.len());
        // The ranks follow from the influences.
        let influence = &arrays[INFLUENCE][""].values;
        assert!(rank.windows(2).all(|pair| influence[pair[0] as usize] > influence[pair[1] as usize]));
    }

    #[test]
    fn a_file_with_other_numbers_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let (file, expected) = (INFLUENCE, Expected::load().unwrap());
        let values = &expected.arrays[file][""].values;
        let mut found: Vec<f32> = values.iter().map(|value| *value as f32).collect();
        let path = folder.path().join(file);
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        let compare = |found: &[f32]| {
            npy::writer::write_f32(&path, &[found.len()], found).unwrap();
            expected.compare(folder.path(), file, 1e-5).unwrap()
        };
        assert!(compare(&found).unwrap() < 1e-7);
        found[3] *= 1.001;
        let why = compare(&found).unwrap_err();
        assert!(why.starts_with("influence/influence.npy: value 3 is "), "{why}");
    }
}
