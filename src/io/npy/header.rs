//! What a `.npy` file says about itself: element type, shape and order.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use ndarray_npy::npy::header::{Header as RawHeader, ReadHeaderError};

/// Why an array could not be read or written. Every message names the file.
#[derive(Debug, thiserror::Error)]
pub enum NpyError {
    /// The operating system refused; fs-err puts the path into the message.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The file does not begin with a complete and valid header.
    #[error("{}: not a npy file: {reason}", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What the parser met.
        reason: String,
    },
    /// The element type is none of those in [`Dtype`].
    #[error("{}: unsupported dtype {found}, expected one of '<f2', '<f4', '<f8', '<i4', '<i8'", path.display())]
    UnsupportedDtype {
        /// The file.
        path: PathBuf,
        /// The type as the header states it.
        found: String,
    },
    /// The bytes behind the header are not as many as shape and dtype ask for.
    #[error("{}: {} file: {found} bytes, expected {expected} for {dtype} {shape:?}",
        path.display(), if found < expected { "truncated" } else { "overlong" })]
    Length {
        /// The file.
        path: PathBuf,
        /// Bytes in the file.
        found: u64,
        /// Bytes that header, shape and dtype add up to.
        expected: u64,
        /// The element type.
        dtype: Dtype,
        /// The shape.
        shape: Vec<usize>,
    },
    /// The shape is not the one the caller needs.
    #[error("{}: shape {found:?}, expected {expected}", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The shape of the file, or of the data to be written.
        found: Vec<usize>,
        /// The shape wanted, `_` for any length.
        expected: String,
    },
    /// The element type is not one that the call can convert.
    #[error("{}: dtype {found}, expected {expected}", path.display())]
    Dtype {
        /// The file.
        path: PathBuf,
        /// The type of the file.
        found: Dtype,
        /// The types wanted.
        expected: String,
    },
    /// Rows were asked for that the array does not have.
    #[error("{}: rows {}..{} asked for, but it has {rows}", path.display(), range.start, range.end)]
    Rows {
        /// The file.
        path: PathBuf,
        /// The rows asked for.
        range: Range<usize>,
        /// The rows there are.
        rows: usize,
    },
    /// A writer was closed, or fed beyond its end, with another number of values than promised.
    #[error("{}: {found} values written, expected {expected}", path.display())]
    Unfinished {
        /// The file.
        path: PathBuf,
        /// Values written, including those that were refused.
        found: usize,
        /// Values promised by the shape.
        expected: usize,
    },
}

/// The element types that attrflow stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// IEEE half precision.
    F16,
    /// IEEE single precision.
    F32,
    /// IEEE double precision.
    F64,
    /// Signed 32-bit integer.
    I32,
    /// Signed 64-bit integer.
    I64,
}

impl Dtype {
    const ALL: [Self; 5] = [Self::F16, Self::F32, Self::F64, Self::I32, Self::I64];

    /// The type as a npy header states it.
    pub fn descr(self) -> &'static str {
        match self {
            Self::F16 => "<f2",
            Self::F32 => "<f4",
            Self::F64 => "<f8",
            Self::I32 => "<i4",
            Self::I64 => "<i8",
        }
    }

    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::F16 => 2,
            Self::F32 | Self::I32 => 4,
            Self::F64 | Self::I64 => 8,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F16 => "float16",
            Self::F32 => "float32",
            Self::F64 => "float64",
            Self::I32 => "int32",
            Self::I64 => "int64",
        })
    }
}

/// What a npy file says about itself before the data begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Lengths of the axes.
    pub shape: Vec<usize>,
    /// The element type.
    pub dtype: Dtype,
    /// Whether the first axis, not the last, runs fastest in the file.
    pub fortran: bool,
    /// Bytes before the data.
    pub offset: usize,
}

impl Header {
    /// Reads the header and checks the file's length against it; the data stay untouched.
    pub(super) fn read(path: &Path, file: &mut fs_err::File) -> Result<Self, NpyError> {
        let mut counted = Counted { inner: &mut *file, bytes: 0 };
        let raw = RawHeader::from_reader(&mut counted)
            .map_err(|error| NpyError::Header { path: path.into(), reason: reason(&error) })?;
        let offset = counted.bytes;
        let descr = raw.type_descriptor.as_string().cloned();
        let dtype = Dtype::ALL.into_iter().find(|dtype| descr.as_deref() == Some(dtype.descr()));
        let dtype = dtype.ok_or_else(|| NpyError::UnsupportedDtype {
            path: path.into(),
            found: raw.type_descriptor.to_string(),
        })?;
        let header = Self { shape: raw.shape, dtype, fortran: raw.layout.is_fortran(), offset };
        let found = file.metadata()?.len();
        let expected = header.file_len().ok_or_else(|| NpyError::Header {
            path: path.into(),
            reason: format!("shape {:?} is too large", header.shape),
        })?;
        if found != expected {
            return Err(header.wrong_length(path, found));
        }
        Ok(header)
    }

    /// The error for a file of another length than the header asks for.
    pub(super) fn wrong_length(&self, path: &Path, found: u64) -> NpyError {
        let (dtype, shape) = (self.dtype, self.shape.clone());
        NpyError::Length {
            path: path.into(),
            found,
            expected: self.file_len().unwrap_or(u64::MAX),
            dtype,
            shape,
        }
    }

    fn file_len(&self) -> Option<u64> {
        let elements = self.shape.iter().try_fold(1usize, |product, &n| product.checked_mul(n))?;
        let bytes = elements.checked_mul(self.dtype.size())?.checked_add(self.offset)?;
        u64::try_from(bytes).ok()
    }
}

fn reason(error: &ReadHeaderError) -> String {
    match error {
        ReadHeaderError::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            "it ends before its header does".to_owned()
        }
        error => error.to_string(),
    }
}

/// Counts what passes, since the parser does not say where the data begin.
struct Counted<R> {
    inner: R,
    bytes: usize,
}

impl<R: io::Read> io::Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.bytes += n;
        Ok(n)
    }
}
