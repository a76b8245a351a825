//! What can be wrong with a `.npy` file.

use std::io;
use std::ops::Range;
use std::path::PathBuf;

use super::npy_header::Dtype;

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
