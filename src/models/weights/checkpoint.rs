//! A checkpoint file's tensors as they are stored, and where a model's folder keeps its checkpoint.
//!
//! The content decides the format: the store's files have no extension.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tch::{Device, Kind, Tensor};

use super::config::ModelError;
use crate::io::tensor_file::{Header, TensorFile, is_index};
use crate::io::torch::Dtype;

/// What diffusers, transformers and the published scripts call a model's checkpoint, the preferred one first, each with the name of
/// the index where it is in several files. Those in half precision count only where there is no other.
pub const FILES: [(&str, &str); 9] = [
    ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors.index.json"),
    ("diffusion_pytorch_model.bin", "diffusion_pytorch_model.bin.index.json"),
    ("model.safetensors", "model.safetensors.index.json"),
    ("model.bin", "model.bin.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
    ("diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.safetensors.index.fp16.json"),
    ("diffusion_pytorch_model.fp16.bin", "diffusion_pytorch_model.bin.index.fp16.json"),
    ("model.fp16.safetensors", "model.safetensors.index.fp16.json"),
    ("pytorch_model.fp16.bin", "pytorch_model.bin.index.fp16.json"),
];

/// The checkpoint in a model's folder, or its index: the first of [`FILES`] that is there.
///
/// # Errors
/// None of them is; or a file and an index of the same name are, one of which must be left over from another save.
pub fn find(folder: &Path) -> Result<PathBuf, ModelError> {
    for (file, index) in FILES {
        let [file, index] = [folder.join(file), folder.join(index)];
        match [file.is_file(), index.is_file()] {
            [true, true] => return Err(ModelError::TwoCheckpoints { file, index }),
            [true, false] => return Ok(file),
            [false, true] => return Ok(index),
            [false, false] => {}
        }
    }
    let names = FILES.map(|(file, _)| file).join(", ");
    Err(ModelError::NoCheckpoint { folder: folder.to_owned(), names })
}

/// The checkpoint of a network: the file that is named, or else the one in the network's folder.
///
/// # Errors
/// See [`find`]; and a named file that is an index of others.
pub fn of(folder: &Path, named: Option<&Path>) -> Result<PathBuf, ModelError> {
    match named {
        Some(file) if is_index(file) => Err(ModelError::IndexAlone { file: file.to_owned() }),
        Some(file) => Ok(file.to_owned()),
        None => find(folder),
    }
}

/// The tensors of a file in the safetensors format, or of a dict that `torch.save` wrote, on the CPU.
///
/// # Errors
/// The file can't be read, is in neither format, or holds an element type that torch lacks.
pub fn read(file: &Path) -> Result<BTreeMap<String, Tensor>, ModelError> {
    let open = TensorFile::open(file)?;
    open.headers().iter().map(|header| Ok((header.name.clone(), tensor(&open, header)?))).collect()
}

/// One tensor of an open file, on the CPU.
///
/// # Errors
/// The bytes do not match the file's checksum.
pub fn tensor(file: &TensorFile, header: &Header) -> Result<Tensor, ModelError> {
    let shape: Vec<i64> = header.shape.iter().map(|&size| size as i64).collect();
    let copied = Tensor::from_data_size(&file.bytes(header)?, &shape, kind(header.dtype));
    Ok(copied.to_device(Device::Cpu))
}

fn kind(dtype: Dtype) -> Kind {
    match dtype {
        Dtype::F64 => Kind::Double,
        Dtype::F32 => Kind::Float,
        Dtype::F16 => Kind::Half,
        Dtype::BF16 => Kind::BFloat16,
        Dtype::I64 => Kind::Int64,
        Dtype::I32 => Kind::Int,
        Dtype::U8 => Kind::Uint8,
        Dtype::Bool => Kind::Bool,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn golden(name: &str) -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/torch").join(name)
    }

    #[test]
    fn a_file_of_torch_gives_the_tensors_that_libtorch_would() {
        for file in ["kinds.pt", "kinds.legacy.pt"] {
            let tensors = read(&golden(file)).unwrap();
            let kinds: Vec<Kind> = tensors.values().map(Tensor::kind).collect();
            let expected = [
                Kind::BFloat16,
                Kind::Bool,
                Kind::Half,
                Kind::Float,
                Kind::Double,
                Kind::Int,
                Kind::Int64,
                Kind::Uint8,
            ];
            assert_eq!(kinds, expected);
            for name in ["bfloat16", "float16", "float32"] {
                let found = tensors[name].to_kind(Kind::Double);
                assert_eq!(found.size(), [2, 3]);
                let values = Vec::<f64>::try_from(found.flatten(0, -1)).unwrap();
                assert_eq!(values[..3], [0.0, 1.0, -2.5]);
                assert!(values[5].is_infinite());
            }
        }
        let views = read(&golden("views.pt")).unwrap();
        assert!(views["transposed"].equal(&views["base"].tr()));
        assert_eq!(f64::try_from(&views["scalar"]).unwrap(), 7.25);
        assert_eq!(views["empty"].size(), [0, 3]);
    }

    #[test]
    fn the_preferred_name_wins_and_an_error_lists_all_names() {
        let folder = tempfile::tempdir().unwrap();
        let error = find(folder.path()).unwrap_err().to_string();
        assert_eq!(
            error,
            format!(
                "{}: no checkpoint, looked for diffusion_pytorch_model.safetensors, diffusion_pytorch_model.bin, \
                 model.safetensors, model.bin, pytorch_model.bin, diffusion_pytorch_model.fp16.safetensors, \
                 diffusion_pytorch_model.fp16.bin, model.fp16.safetensors, pytorch_model.fp16.bin",
                folder.path().display()
            )
        );
        for (name, index) in FILES.iter().rev() {
            let index = folder.path().join(index);
            fs_err::write(&index, "").unwrap();
            assert_eq!(find(folder.path()).unwrap(), index);
            fs_err::write(folder.path().join(name), "").unwrap();
            let error = find(folder.path()).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("expected one of them"), "{error}");
            fs_err::remove_file(&index).unwrap();
            assert_eq!(find(folder.path()).unwrap(), folder.path().join(name));
        }
    }
}
