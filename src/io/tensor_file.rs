//! Named tensors in a safetensors or `torch.save` file, or in the several files that an index names, mapped instead of loaded.
//!
//! The format is detected from the content: artifacts have no extension.

mod shards;

pub use shards::is_index;

use std::borrow::Cow;
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use memmap2::Mmap;
use rayon::iter::{IntoParallelRefIterator as _, ParallelIterator as _};
use safetensors::SafeTensors;
use safetensors::tensor::Metadata;

use super::dtype::{Dtype, Float, index_of, not_finite};
use super::mistaken::mistaken;
use super::torch::{TorchFile, TorchFileError};

/// Why a file of tensors could not be read. Every message names the file.
#[derive(Debug, thiserror::Error)]
pub enum TensorFileError {
    /// The operating system refused; fs-err puts the path into the message.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// An index of several files that cannot be followed.
    #[error("{}: {reason}", path.display())]
    Index {
        /// The index.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// An index is not JSON of its form.
    #[error(transparent)]
    Json(#[from] super::json::JsonError),
    /// A `torch.save` file cannot be read.
    #[error(transparent)]
    Torch(#[from] TorchFileError),
    /// Neither of the formats.
    #[error("{}: neither a safetensors nor a torch.save file: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What it is instead, or the error of the safetensors reader.
        reason: String,
    },
    /// An unsupported element type.
    #[error("{}: tensor `{tensor}` has the unsupported element type {found}", path.display())]
    Dtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its element type.
        found: String,
    },
    /// A value that is NaN or infinite.
    #[error("{}: tensor `{tensor}`: the value at {index:?} is {value}, expected finite values", path.display())]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its place in the tensor.
        index: Vec<usize>,
        /// The value.
        value: f64,
    },
    /// Not a float type.
    #[error("{}: tensor `{tensor}` is {found}, expected a float type", path.display())]
    NotFloat {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its element type.
        found: Dtype,
    },
}

/// The description of a tensor, without its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Its name.
    pub name: String,
    /// The element type.
    pub dtype: Dtype,
    /// Lengths of the axes.
    pub shape: Vec<usize>,
}

/// An open file, mapped into memory.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    headers: Vec<Header>,
    form: Form,
}

#[derive(Debug)]
enum Form {
    Torch(TorchFile),
    /// The header, and the offset of the bytes after it.
    Safetensors(Mmap, Metadata, usize),
    /// The files of an index.
    Shards(Vec<TensorFile>),
}

impl TensorFile {
    /// Maps the file and finds its tensors, without reading their bytes.
    ///
    /// # Errors
    /// The file cannot be read, is in neither format, or has an unsupported element type.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, TensorFileError> {
        let path = path.as_ref();
        if let Some(files) = shards::files(path)? {
            let files = files.iter().map(|file| Self::single(file)).collect::<Result<Vec<_>, _>>()?;
            let headers = shards::headers(path, &files)?;
            return Ok(Self { path: path.into(), headers, form: Form::Shards(files) });
        }
        Self::single(path)
    }

    /// The same for a file that holds its tensors itself.
    fn single(path: &Path) -> Result<Self, TensorFileError> {
        if TorchFile::is_one(path)? {
            let file = TorchFile::open(path)?;
            let header = |t: &super::torch::TensorInfo| Header {
                name: t.name.clone(),
                dtype: t.dtype,
                shape: t.shape.clone(),
            };
            let headers = file.tensors().iter().map(header).collect();
            return Ok(Self { path: path.into(), headers, form: Form::Torch(file) });
        }
        let file = fs_err::File::open(path)?;
        // SAFETY: the map is read-only and private to this value. If another process truncates the file meanwhile, this
        // process is killed, as with any mapped file.
        let map = unsafe { Mmap::map(file.file()) }
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
        let (length, metadata) = SafeTensors::read_metadata(&map).map_err(|error| {
            let instead = mistaken(&map).map(|found| format!("it is {found}"));
            TensorFileError::Format { path: path.into(), reason: instead.unwrap_or(error.to_string()) }
        })?;
        let names = metadata.offset_keys();
        let headers = names.into_iter().filter_map(|name| {
            let info = metadata.info(&name)?;
            let dtype = dtype(info.dtype).ok_or_else(|| TensorFileError::Dtype {
                path: path.into(),
                tensor: name.clone(),
                found: format!("{:?}", info.dtype),
            });
            Some(dtype.map(|dtype| Header { name, dtype, shape: info.shape.clone() }))
        });
        let headers = headers.collect::<Result<_, _>>()?;
        Ok(Self { path: path.into(), headers, form: Form::Safetensors(map, metadata, length + 8) })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files that hold the tensors: itself, or those of an index.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        let parts: &[TensorFile] = match &self.form {
            Form::Shards(files) => files,
            Form::Torch(_) | Form::Safetensors(..) => std::slice::from_ref(self),
        };
        parts.iter().map(TensorFile::path)
    }

    /// All tensors, in the order of the file.
    pub fn headers(&self) -> &[Header] {
        &self.headers
    }

    /// The tensor of that name.
    pub fn header(&self, name: &str) -> Option<&Header> {
        self.headers.iter().find(|header| header.name == name)
    }

    /// An entry of the file's metadata, `None` if there is no such key; `torch.save` files have no metadata.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.entries()?.get(key).map(String::as_str)
    }

    /// All entries of the file's metadata, in no order.
    pub fn metadata_entries(&self) -> impl Iterator<Item = (&str, &str)> {
        self.entries().into_iter().flatten().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    fn entries(&self) -> Option<&HashMap<String, String>> {
        match &self.form {
            Form::Torch(_) | Form::Shards(_) => None,
            Form::Safetensors(_, metadata, _) => metadata.metadata().as_ref(),
        }
    }

    /// The elements of one of [`headers`](Self::headers) in C order, little-endian; copied only if they are stored otherwise.
    ///
    /// # Errors
    /// The bytes do not match the file's checksum.
    ///
    /// # Panics
    /// If the tensor is of another file.
    pub fn bytes(&self, header: &Header) -> Result<Cow<'_, [u8]>, TensorFileError> {
        match &self.form {
            Form::Torch(file) => {
                let tensor = file.tensors().iter().find(|tensor| tensor.name == header.name);
                Ok(file.read(tensor.expect("a header of this file"))?)
            }
            Form::Safetensors(map, metadata, start) => {
                let (from, to) = metadata.info(&header.name).expect("a header of this file").data_offsets;
                Ok(Cow::Borrowed(&map[start + from..start + to]))
            }
            Form::Shards(files) => {
                let file = files.iter().find(|file| file.header(&header.name).is_some());
                file.expect("a header of one of these files").bytes(header)
            }
        }
    }

    /// Refuses a file with a value that is NaN or infinite: reads all of it, on all threads.
    ///
    /// # Errors
    /// The tensor and the index of the value; as [`TensorFile::bytes`].
    pub fn expect_finite(&self) -> Result<(), TensorFileError> {
        self.headers.par_iter().try_for_each(|header| {
            let bytes = self.bytes(header)?;
            let found = match header.dtype {
                Dtype::F64 => not_finite_in(&bytes, f64::from_le_bytes),
                Dtype::F32 => not_finite_in(&bytes, f32::from_le_bytes),
                Dtype::F16 => not_finite_in(&bytes, f16::from_le_bytes),
                Dtype::BF16 => not_finite_in(&bytes, bf16::from_le_bytes),
                Dtype::I64 | Dtype::I32 | Dtype::U8 | Dtype::Bool => None,
            };
            let Some((number, value)) = found else { return Ok(()) };
            let (path, tensor) = (self.path.clone(), header.name.clone());
            Err(TensorFileError::NotFinite { path, tensor, index: index_of(&header.shape, number), value })
        })
    }

    /// The same as float32 or float64; copied only if they have another type.
    ///
    /// # Errors
    /// As [`TensorFile::bytes`], and elements that are not floats.
    ///
    /// # Panics
    /// If another type is requested.
    pub fn bytes_as(&self, header: &Header, wanted: Dtype) -> Result<Cow<'_, [u8]>, TensorFileError> {
        let bytes = self.bytes(header)?;
        if header.dtype == wanted {
            return Ok(bytes);
        }
        // All of them are exact in float64.
        let values = match header.dtype {
            Dtype::F64 => doubles(&bytes, f64::from_le_bytes),
            Dtype::F32 => doubles(&bytes, |bytes| f32::from_le_bytes(bytes).into()),
            Dtype::F16 => doubles(&bytes, |bytes| f16::from_le_bytes(bytes).into()),
            Dtype::BF16 => doubles(&bytes, |bytes| bf16::from_le_bytes(bytes).into()),
            found @ (Dtype::I64 | Dtype::I32 | Dtype::U8 | Dtype::Bool) => {
                let (path, tensor) = (self.path.clone(), header.name.clone());
                return Err(TensorFileError::NotFloat { path, tensor, found });
            }
        };
        Ok(Cow::Owned(match wanted {
            Dtype::F64 => values.into_iter().flat_map(f64::to_le_bytes).collect(),
            Dtype::F32 => values.into_iter().flat_map(|value| (value as f32).to_le_bytes()).collect(),
            other => panic!("{other} requested, expected float32 or float64"),
        }))
    }
}

fn doubles<const SIZE: usize>(bytes: &[u8], convert: impl Fn([u8; SIZE]) -> f64) -> Vec<f64> {
    bytes.as_chunks::<SIZE>().0.iter().map(|bytes| convert(*bytes)).collect()
}

/// The first value that is NaN or infinite, by its number; a block is converted at a time.
fn not_finite_in<T: Float, const SIZE: usize>(
    bytes: &[u8],
    convert: fn([u8; SIZE]) -> T,
) -> Option<(usize, f64)> {
    const BLOCK: usize = 4096;
    let mut values = Vec::with_capacity(BLOCK);
    bytes.as_chunks::<SIZE>().0.chunks(BLOCK).enumerate().find_map(|(block, bytes)| {
        values.clear();
        values.extend(bytes.iter().map(|bytes| convert(*bytes)));
        not_finite(&values).map(|(place, value)| (block * BLOCK + place, value))
    })
}

fn dtype(dtype: safetensors::Dtype) -> Option<Dtype> {
    Some(match dtype {
        safetensors::Dtype::F64 => Dtype::F64,
        safetensors::Dtype::F32 => Dtype::F32,
        safetensors::Dtype::F16 => Dtype::F16,
        safetensors::Dtype::BF16 => Dtype::BF16,
        safetensors::Dtype::I64 => Dtype::I64,
        safetensors::Dtype::I32 => Dtype::I32,
        safetensors::Dtype::U8 => Dtype::U8,
        safetensors::Dtype::BOOL => Dtype::Bool,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use safetensors::tensor::TensorView;

    use super::*;

    fn golden(name: &str) -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/torch").join(name)
    }

    #[test]
    fn both_formats_are_read_alike() {
        let torch = TensorFile::open(golden("fisher.pt")).unwrap();
        let bytes: Vec<_> = torch.headers().iter().map(|header| torch.bytes(header).unwrap()).collect();
        let views = torch.headers().iter().zip(&bytes).map(|(header, bytes)| {
            assert_eq!(header.dtype, Dtype::F64);
            let view = TensorView::new(safetensors::Dtype::F64, header.shape.clone(), bytes).unwrap();
            (header.name.clone(), view)
        });
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("same");
        safetensors::serialize_to_file(views, None, &path).unwrap();
        let same = TensorFile::open(&path).unwrap();
        assert_eq!(same.headers().len(), torch.headers().len());
        for header in torch.headers() {
            assert_eq!(same.header(&header.name), Some(header));
            assert_eq!(same.bytes(header).unwrap(), torch.bytes(header).unwrap());
        }
    }

    #[test]
    fn floats_are_converted_and_integers_refused() {
        let file = TensorFile::open(golden("kinds.pt")).unwrap();
        let values = |name: &str| {
            let bytes = file.bytes_as(file.header(name).unwrap(), Dtype::F32).unwrap().into_owned();
            bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect::<Vec<_>>()
        };
        for name in ["float64", "float32", "float16", "bfloat16"] {
            let found = values(name);
            assert_eq!(found[..3], [0.0, 1.0, -2.5], "{name}");
            assert!(
                (found[3] - 1e-3).abs() < 1e-5 && found[4] == 300.0 && found[5] == f32::INFINITY,
                "{name}"
            );
        }
        let error = file.bytes_as(file.header("int64").unwrap(), Dtype::F64).unwrap_err().to_string();
        assert!(error.ends_with("kinds.pt: tensor `int64` is int64, expected a float type"), "{error}");
    }

    #[test]
    fn a_file_of_another_format_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs_err::write(&path, "neither").unwrap();
        let error = TensorFile::open(&path).unwrap_err().to_string();
        assert!(error.contains("a: neither a safetensors nor a torch.save file"), "{error}");
    }
}
