//! Named tensors in safetensors files, with the element types that they have.

use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;

use anyhow::Context as _;
use safetensors::tensor::{Dtype, TensorView};
use tch::{Device, Kind, Tensor};

use crate::io::tensor_file::TensorFile;
use crate::models::weights::checkpoint;

/// Writes float32 or float64 tensors and metadata, in the order of their keys.
pub(crate) fn write(
    path: &Path,
    tensors: &BTreeMap<String, Tensor>,
    metadata: &[(&str, String)],
) -> anyhow::Result<()> {
    let bytes: Vec<(&String, Dtype, Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, tensor)| {
            let tensor = tensor.to_device(Device::Cpu).contiguous();
            let dtype = match tensor.kind() {
                Kind::Float => Dtype::F32,
                Kind::Double => Dtype::F64,
                kind => anyhow::bail!("`{name}` is {kind:?}, expected float32 or float64"),
            };
            let mut data = vec![0; tensor.numel() * dtype.bitsize() / 8];
            tensor.f_copy_data_u8(&mut data, tensor.numel())?;
            Ok((name, dtype, tensor.size().iter().map(|&size| size as usize).collect(), data))
        })
        .collect::<anyhow::Result<_>>()?;
    let views: Vec<(&String, TensorView<'_>)> = bytes
        .iter()
        .map(|(name, dtype, shape, data)| Ok((*name, TensorView::new(*dtype, shape.clone(), data)?)))
        .collect::<anyhow::Result<_>>()?;
    let written = || -> anyhow::Result<()> {
        let bytes = safetensors::serialize(views, None)?;
        Ok(fs_err::write(path, with_metadata(&bytes, metadata)?)?)
    };
    written().with_context(|| path.display().to_string())
}

/// A file without metadata, with these entries added. The library keeps them in a hash map, whose order differs from run
/// to run; equal content must give equal bytes.
fn with_metadata(bytes: &[u8], metadata: &[(&str, String)]) -> anyhow::Result<Vec<u8>> {
    if metadata.is_empty() {
        return Ok(bytes.to_vec());
    }
    let (length, rest) = bytes.split_first_chunk::<8>().context("no header")?;
    let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    let entries: BTreeMap<&str, &str> = metadata.iter().map(|(key, value)| (*key, value.as_str())).collect();
    let tensors = std::str::from_utf8(header)?.trim_end().strip_prefix('{').context("no header")?;
    let comma = if tensors.starts_with('}') { "" } else { "," };
    let mut header = format!("{{\"__metadata__\":{}{comma}{tensors}", serde_json::to_string(&entries)?);
    // The data begin at a multiple of eight bytes.
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    Ok([&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat())
}

/// Reads float32 or float64 tensors, as they are, to the CPU; also from a file that `torch.save` wrote.
pub(crate) fn read(path: &Path) -> anyhow::Result<BTreeMap<String, Tensor>> {
    let tensors = checkpoint::read(path)?;
    for (name, tensor) in &tensors {
        let kind = tensor.kind();
        anyhow::ensure!(
            matches!(kind, Kind::Float | Kind::Double),
            "{}: `{name}` is {kind:?}, expected float32 or float64",
            path.display()
        );
    }
    Ok(tensors)
}

/// Reads one metadata entry, `None` where the file has no such key; a file of torch has none at all.
pub(crate) fn metadata(path: &Path, key: &str) -> anyhow::Result<Option<String>> {
    Ok(TensorFile::open(path)?.metadata(key).map(str::to_owned))
}

/// Reads one metadata entry that is a number, `None` where the file has no such key.
///
/// # Errors
/// The file, the key and its value, if that is no number of the type.
pub(crate) fn number<T: FromStr>(path: &Path, key: &str) -> anyhow::Result<Option<T>> {
    let Some(text) = metadata(path, key)? else { return Ok(None) };
    match text.parse() {
        Ok(number) => Ok(Some(number)),
        Err(_) => anyhow::bail!("{}: `{key}` in the metadata is {text:?}, expected a number", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn golden(name: &str) -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/torch").join(name)
    }

    #[test]
    fn published_fisher_information_is_read_like_our_own() {
        let published = read(&golden("fisher.pt")).unwrap();
        assert_eq!(published["0.weight"].size(), [3, 5]);
        assert_eq!(published["0.weight"].kind(), Kind::Double);
        assert_eq!(metadata(&golden("fisher.pt"), "images").unwrap(), None);
        let folder = tempfile::tempdir().unwrap();
        let own = folder.path().join("fisher");
        write(&own, &published, &[("images", "7".to_owned()), ("a", "\"é".to_owned())]).unwrap();
        assert_eq!(metadata(&own, "a").unwrap().as_deref(), Some("\"é"));
        assert_eq!(metadata(&own, "images").unwrap().as_deref(), Some("7"));
        assert_eq!(number(&own, "images").unwrap(), Some(7));
        assert_eq!(number::<u32>(&own, "none").unwrap(), None);
        let error = number::<f64>(&own, "a").unwrap_err().to_string();
        assert!(error.ends_with(r#"fisher: `a` in the metadata is "\"é", expected a number"#), "{error}");
        let again = read(&own).unwrap();
        assert!(published.iter().all(|(name, tensor)| again[name].equal(tensor)));
    }

    #[test]
    fn other_element_types_are_named() {
        let error = read(&golden("kinds.pt")).unwrap_err().to_string();
        assert!(error.ends_with("kinds.pt: `bfloat16` is BFloat16, expected float32 or float64"), "{error}");
    }
}
