//! Checks of files to adopt as a stage's outputs: headers and values.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::parameters::Parameters;
use crate::io::captions::coco::Captions;
use crate::io::download;
use crate::io::dtype::not_finite;
use crate::io::image::load_rgb;
use crate::io::npy::{Dtype, Npy};
use crate::io::tensor_file::TensorFile;
use crate::method::selection::Selection;
use crate::models::unet::config::UNetConfig;
use attrflow_engine::kind::Inputs;

/// The files by output port.
pub(crate) type Outputs = BTreeMap<String, PathBuf>;

/// An array of this dtype, or of any float type, and of this shape, with `None` for any length.
pub(crate) fn array(path: &Path, dtype: Option<Dtype>, shape: &[Option<usize>]) -> anyhow::Result<Npy> {
    let npy = Npy::open(path)?;
    npy.expect_shape(shape)?;
    let found = npy.dtype();
    let (fits, expected) = match dtype {
        Some(dtype) => (found == dtype, dtype.to_string()),
        None => (matches!(found, Dtype::F16 | Dtype::F32 | Dtype::F64), "a float type".to_owned()),
    };
    anyhow::ensure!(fits, "{}: dtype {found}, expected {expected}", path.display());
    Ok(npy)
}

/// A float32 array [`length`] without NaN or infinity.
pub(crate) fn finite(path: &Path, length: usize) -> anyhow::Result<Vec<f32>> {
    let npy = array(path, Some(Dtype::F32), &[Some(length)])?;
    let mut values = Vec::new();
    npy.read_f32(0..length, &mut values)?;
    match not_finite(&values) {
        None => Ok(values),
        Some((at, value)) => Err(npy.not_finite(at, value).into()),
    }
}

/// The image indices in descending order of influence, int64 [N].
pub(crate) fn ranking(path: &Path, influence: &[f32]) -> anyhow::Result<()> {
    let npy = array(path, Some(Dtype::I64), &[Some(influence.len())])?;
    let mut ranks = Vec::new();
    npy.read_i64(0..influence.len(), &mut ranks)?;
    let mut seen = vec![false; influence.len()];
    for (place, &index) in ranks.iter().enumerate() {
        let fresh = usize::try_from(index).ok().and_then(|index| seen.get_mut(index));
        let fresh = fresh.is_some_and(|seen| !std::mem::replace(seen, true));
        let last = influence.len().saturating_sub(1);
        anyhow::ensure!(
            fresh,
            "{}: value {place} is {index}, expected each of 0..={last} once",
            path.display()
        );
    }
    let falls = |pair: &[i64]| influence[pair[0] as usize] >= influence[pair[1] as usize];
    match ranks.windows(2).position(|pair| !falls(pair)) {
        None => Ok(()),
        Some(at) => anyhow::bail!(
            "{}: image {} comes before {}, whose influence is higher: expected descending influence",
            path.display(),
            ranks[at],
            ranks[at + 1]
        ),
    }
}

/// Tensors with names and shapes of the network on `unet`, including all selected ones.
pub(crate) fn weights(
    path: &Path,
    inputs: &Inputs,
    selection: &Selection,
    dtypes: &[Dtype],
) -> anyhow::Result<()> {
    let network = Parameters::of(inputs, selection)?;
    let file = TensorFile::open(path)?;
    for tensor in file.headers() {
        let fault = |found: String, expected: String| {
            anyhow::anyhow!("{}: tensor `{}`: {found}, expected {expected}", path.display(), tensor.name)
        };
        let names = || dtypes.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ");
        anyhow::ensure!(dtypes.contains(&tensor.dtype), fault(tensor.dtype.to_string(), names()));
        let Some(own) = network.get(&tensor.name) else {
            let expected = format!("a name that {} has", network.path.display());
            return Err(fault("no such weight".into(), expected));
        };
        anyhow::ensure!(
            own.shape == tensor.shape,
            fault(format!("{:?}", tensor.shape), format!("{:?} as in {}", own.shape, network.path.display()))
        );
    }
    let selected: Vec<&String> = network.selected().map(|header| &header.name).collect();
    file.expect_finite()?;
    let missing: Vec<&&String> = selected.iter().filter(|name| file.header(name).is_none()).collect();
    if let Some(example) = missing.first() {
        anyhow::bail!(
            "{}: {} of the {} tensors that {selection} selects are missing, for instance `{example}`",
            path.display(),
            missing.len(),
            selected.len()
        );
    }
    Ok(())
}

/// The outputs of `latents`: N from the captions file, and the first `captions` embeddings of each image.
pub(crate) fn training_set(
    inputs: &Inputs,
    captions: usize,
    text: Dtype,
    outputs: &Outputs,
) -> anyhow::Result<()> {
    let images = Captions::read(inputs.path("captions"), captions)?.items.len();
    array(&outputs["latents"], None, &[Some(2 * images), None, None, None])
        .context("latents of the images and their mirror images")?
        .expect_finite()?;
    let texts = [Some(images), Some(captions), None, None];
    Ok(array(&outputs["text_embeddings"], Some(text), &texts)?.expect_finite()?)
}

/// The outputs of `generate`, `count` of each: latents and texts that match the network, and readable images.
pub(crate) fn queries(inputs: &Inputs, count: usize, outputs: &Outputs) -> anyhow::Result<()> {
    let config = UNetConfig::read(&inputs.path("unet").join("config.json"))?;
    let [channels, width] = [config.in_channels, config.cross_attention_dim].map(|size| Some(size as usize));
    let [height, side] = match config.latent_shape() {
        Some([_, height, side]) => [height, side].map(|size| Some(size as usize)),
        None => [None, None],
    };
    let float = Some(Dtype::F32);
    array(&outputs["latents"], float, &[Some(count), channels, height, side])?.expect_finite()?;
    array(&outputs["text_embeddings"], float, &[Some(count), Some(1), None, width])?.expect_finite()?;
    for index in 0..count {
        load_rgb(outputs["images"].join(format!("{index}.png")))?;
    }
    Ok(())
}

/// A file that is not empty.
pub(crate) fn some_file(path: &Path) -> anyhow::Result<()> {
    let found = fs_err::metadata(path)?;
    anyhow::ensure!(found.is_file() && found.len() > 0, "{}: expected a file with content", path.display());
    Ok(())
}

/// A folder with a file or folder at `name`, with this SHA-256 if it is given.
pub(crate) fn below(folder: &Path, name: &str, sha256: Option<&str>) -> anyhow::Result<()> {
    let path = folder.join(name);
    anyhow::ensure!(
        path.exists(),
        "{}: not found, expected the file or folder that the stage downloads",
        path.display()
    );
    let Some(expected) = sha256 else { return Ok(()) };
    let (found, _) = download::sha256(&path)?;
    anyhow::ensure!(
        found.eq_ignore_ascii_case(expected),
        "{}: SHA-256 {found}, expected {expected}",
        path.display()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::npy::writer::{write_f32, write_i64};

    #[test]
    fn a_ranking_has_every_image_once_in_descending_order() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("rank.npy");
        let check = |ranks: &[i64]| {
            write_i64(&file, &[ranks.len()], ranks).unwrap();
            ranking(&file, &[0.5, -1.0, 2.0]).map_err(|error| error.to_string())
        };
        assert_eq!(check(&[2, 0, 1]), Ok(()));
        let error = check(&[2, 2, 1]).unwrap_err();
        assert!(error.ends_with("rank.npy: value 1 is 2, expected each of 0..=2 once"), "{error}");
        assert!(check(&[2, -1, 1]).unwrap_err().contains("value 1 is -1"));
        assert!(check(&[3, 0, 1]).unwrap_err().contains("value 0 is 3"));
        let error = check(&[2, 1, 0]).unwrap_err();
        assert!(error.contains("rank.npy: image 1 comes before 0, whose influence is higher"), "{error}");
        assert!(check(&[2, 0]).unwrap_err().ends_with("shape [2], expected [3]"));
    }

    #[test]
    fn values_are_checked() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.npy");
        write_f32(&file, &[3], &[1.0, f32::NEG_INFINITY, f32::NAN]).unwrap();
        let error = finite(&file, 3).unwrap_err().to_string();
        assert!(error.ends_with("a.npy: the value at [1] is -inf, expected finite values"), "{error}");
        write_f32(&file, &[2], &[1.0, 2.0]).unwrap();
        assert_eq!(finite(&file, 2).unwrap(), [1.0, 2.0]);
    }

    #[test]
    fn a_file_matches_its_sha256() {
        let folder = tempfile::tempdir().unwrap();
        fs_err::write(folder.path().join("a"), "abc").unwrap();
        // Of "abc", from FIPS 180-2.
        let digest = "BA7816BF8F01CFEA414140DE5DAE2223B00361A396177A9CB410FF61F20015AD";
        below(folder.path(), "a", Some(digest)).unwrap();
        fs_err::write(folder.path().join("a"), "abd").unwrap();
        let error = below(folder.path(), "a", Some(digest)).unwrap_err().to_string();
        assert!(error.contains("/a: SHA-256 ") && error.ends_with(&format!("expected {digest}")), "{error}");
        let error = below(folder.path(), "b", None).unwrap_err().to_string();
        assert!(
            error.ends_with("/b: not found, expected the file or folder that the stage downloads"),
            "{error}"
        );
    }
}
