//! The header of a `.npy` file: element type, shape and order.

use std::io::{self, Read as _};
use std::ops::Range;
use std::path::{Path, PathBuf};

use ndarray_npy::npy::header::{Header as RawHeader, ReadHeaderError};

use crate::io::dtype::Dtype;
use crate::io::mistaken::mistaken;

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
        /// The error of the parser.
        reason: String,
    },
    /// The element type is not supported.
    #[error("{}: unsupported dtype {found}, expected one of '<f2', '<f4', '<f8', '<i4', '<i8'", path.display())]
    UnsupportedDtype {
        /// The file.
        path: PathBuf,
        /// The type in the header.
        found: String,
    },
    /// The file's length does not match shape and dtype.
    #[error("{}: {} file: {found} bytes, expected {expected} for {dtype} {shape:?}",
        path.display(), if found < expected { "truncated" } else { "overlong" })]
    Length {
        /// The file.
        path: PathBuf,
        /// Bytes in the file.
        found: u64,
        /// Bytes according to header, shape and dtype.
        expected: u64,
        /// The element type.
        dtype: Dtype,
        /// The shape.
        shape: Vec<usize>,
    },
    /// The shape is not the expected one.
    #[error("{}: shape {found:?}, expected {expected}", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The shape of the file, or of the data to be written.
        found: Vec<usize>,
        /// The expected shape, `_` for any length.
        expected: String,
    },
    /// The call cannot convert the element type.
    #[error("{}: dtype {found}, expected {expected}", path.display())]
    Dtype {
        /// The file.
        path: PathBuf,
        /// The type of the file.
        found: Dtype,
        /// The expected types.
        expected: String,
    },
    /// A value that is NaN or infinite.
    #[error("{}: the value at {index:?} is {value}, expected finite values", path.display())]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// Its place in the array.
        index: Vec<usize>,
        /// The value.
        value: f64,
    },
    /// An axis of the array has no entry.
    #[error("{}: shape {found:?} has no values", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
        /// The shape.
        found: Vec<usize>,
    },
    /// The array does not have the requested rows.
    #[error("{}: rows {}..{} requested, but it has {rows}", path.display(), range.start, range.end)]
    Rows {
        /// The file.
        path: PathBuf,
        /// The requested rows.
        range: Range<usize>,
        /// The rows of the array.
        rows: usize,
    },
    /// Too few or too many values were written.
    #[error("{}: {found} values written, expected {expected}", path.display())]
    Unfinished {
        /// The file.
        path: PathBuf,
        /// Values written, including those that were refused.
        found: usize,
        /// Values of the shape.
        expected: usize,
    },
}

/// The header of a npy file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Lengths of the axes.
    pub shape: Vec<usize>,
    /// The element type.
    pub dtype: Dtype,
    /// Whether the file is in Fortran order: the first axis, not the last, varies fastest.
    pub fortran: bool,
    /// Bytes before the data.
    pub offset: usize,
}

/// The first bytes of a file without a valid header, unless they are those of a npy file.
fn first_bytes(path: &Path) -> Option<Vec<u8>> {
    let mut start = Vec::new();
    fs_err::File::open(path).ok()?.take(512).read_to_end(&mut start).ok()?;
    (!start.starts_with(b"\x93NUMPY")).then_some(start)
}

impl Header {
    /// Reads the header and checks the file's length; the data are not read.
    pub(super) fn read(path: &Path, file: &mut fs_err::File) -> Result<Self, NpyError> {
        let mut counted = Counted { inner: &mut *file, bytes: 0 };
        let raw = RawHeader::from_reader(&mut counted).map_err(|error| {
            let instead = first_bytes(path).and_then(|start| mistaken(&start));
            let reason = instead.map_or_else(|| reason(&error), |found| format!("it is {found}"));
            NpyError::Header { path: path.into(), reason }
        })?;
        let offset = counted.bytes;
        let dtype = raw.type_descriptor.as_string().and_then(|descr| Dtype::of_descr(descr));
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

    /// The error for a file whose length does not match the header.
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

/// Counts the bytes read, since the parser does not return where the data begin.
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
