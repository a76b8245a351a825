//! A checkpoint file's tensors as they are stored, and where a model's folder keeps its checkpoint.
//!
//! The content decides the format: the store's files have no extension.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tch::{Device, Kind, Tensor};

use super::config::ModelError;
use crate::io::tensor_file::{Header, TensorFile};
use crate::io::torch::Dtype;

/// What diffusers, transformers and the published scripts call a model's checkpoint, the preferred one first: those
/// in half precision only where there is no other.
pub const FILES: [&str; 9] = [
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.bin",
    "model.safetensors",
    "model.bin",
    "pytorch_model.bin",
    "diffusion_pytorch_model.fp16.safetensors",
    "diffusion_pytorch_model.fp16.bin",
    "model.fp16.safetensors",
    "pytorch_model.fp16.bin",
];

/// The checkpoint in a model's folder: the first of [`FILES`] that is there.
///
/// # Errors
/// None of them is.
pub fn find(folder: &Path) -> Result<PathBuf, ModelError> {
    let found = FILES.iter().map(|name| folder.join(name)).find(|file| file.is_file());
    found.ok_or_else(|| ModelError::NoCheckpoint { folder: folder.to_owned(), names: FILES.join(", ") })
}

/// The checkpoint of a network: the file that is named, or else the one in the network's folder.
///
/// # Errors
/// See [`find`].
pub fn of(folder: &Path, named: Option<&Path>) -> Result<PathBuf, ModelError> {
    named.map_or_else(|| find(folder), |file| Ok(file.to_owned()))
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
        for name in FILES.iter().rev() {
            fs_err::write(folder.path().join(name), "").unwrap();
            assert_eq!(find(folder.path()).unwrap(), folder.path().join(name));
        }
    }
}
