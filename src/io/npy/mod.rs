//! An open `.npy` array, read a range of rows or values at a time.
//!
//! A row is one index of the first axis, in C order. Text embeddings have tens of gigabytes, so a file is never loaded
//! completely. Nor is it mapped: mapped pages count as this process's memory until the system reclaims them, and a file
//! that is truncated while mapped kills the process. Reading blocks costs about a tenth of the speed and keeps memory
//! constant. Values are converted to the requested type.
//! Format: NumPy enhancement proposal 1 (`numpy.lib.format`), little-endian.

pub mod header;
pub mod writer;

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use bytemuck::Pod;
use fs_err::os::unix::fs::FileExt as _;
use half::f16;
use half::slice::HalfFloatSliceExt as _;
use rayon::iter::{IntoParallelIterator as _, ParallelIterator as _};

pub use super::dtype::Dtype;
use super::dtype::{Float, index_of, not_finite};
pub use header::{Header, NpyError};

const _: () = assert!(cfg!(target_endian = "little"), "the files' bytes are used without conversion");

/// Bytes per read: they stay in the processor's cache until they are converted.
const BLOCK: usize = 256 << 10;

/// An open array. Threads can share it: reads do not move a file position.
#[derive(Debug)]
pub struct Npy {
    path: PathBuf,
    header: Header,
    file: fs_err::File,
}

impl Npy {
    /// Opens the file and checks header and length.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, NpyError> {
        let path = path.as_ref();
        let mut file = fs_err::File::open(path)?;
        let header = Header::read(path, &mut file)?;
        Ok(Self { path: path.into(), header, file })
    }

    /// Reads the header and checks the length.
    pub fn header(path: impl AsRef<Path>) -> Result<Header, NpyError> {
        let path = path.as_ref();
        Header::read(path, &mut fs_err::File::open(path)?)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Lengths of the axes.
    pub fn shape(&self) -> &[usize] {
        &self.header.shape
    }

    /// The element type in the file.
    pub fn dtype(&self) -> Dtype {
        self.header.dtype
    }

    /// Length of the first axis; a scalar has one row.
    pub fn rows(&self) -> usize {
        self.header.shape.first().copied().unwrap_or(1)
    }

    /// Elements of one row.
    pub fn row_len(&self) -> usize {
        self.header.shape.iter().skip(1).product()
    }

    /// Checks the shape; `None` is any length.
    pub fn expect_shape(&self, expected: &[Option<usize>]) -> Result<(), NpyError> {
        let found = self.shape();
        let fits = |(&n, want): (&usize, &Option<usize>)| want.is_none_or(|want| want == n);
        if found.len() == expected.len() && found.iter().zip(expected).all(fits) {
            return Ok(());
        }
        let axes: Vec<_> = expected.iter().map(|n| n.map_or("_".to_owned(), |n| n.to_string())).collect();
        let expected = format!("[{}]", axes.join(", "));
        Err(NpyError::Shape { path: self.path.clone(), found: found.to_vec(), expected })
    }

    /// Refuses an array without a value.
    pub fn expect_values(&self) -> Result<(), NpyError> {
        match self.shape().contains(&0) {
            true => Err(NpyError::Empty { path: self.path.clone(), found: self.shape().to_vec() }),
            false => Ok(()),
        }
    }

    /// Refuses an array with a value that is NaN or infinite: reads all of it, on all threads.
    pub fn expect_finite(&self) -> Result<(), NpyError> {
        match self.dtype() {
            Dtype::F16 => self.scan::<f16>(),
            Dtype::F32 => self.scan::<f32>(),
            Dtype::F64 => self.scan::<f64>(),
            _ => Ok(()),
        }
    }

    /// In the order of the file.
    fn scan<T: Pod + Float>(&self) -> Result<(), NpyError> {
        let count: usize = self.shape().iter().product();
        let length = BLOCK / size_of::<T>();
        let fault = (0..count.div_ceil(length)).into_par_iter().find_map_first(|block| {
            let start = block * length;
            let mut values = vec![T::zeroed(); length.min(count - start)];
            if let Err(error) = self.fill(&mut values, start) {
                return Some(error);
            }
            let (at, value) = not_finite(&values)?;
            let mut shape = self.shape().to_vec();
            // In Fortran order the first axis is the fastest.
            if self.header.fortran {
                shape.reverse();
            }
            let mut index = index_of(&shape, start + at);
            if self.header.fortran {
                index.reverse();
            }
            Some(NpyError::NotFinite { path: self.path.clone(), index, value })
        });
        fault.map_or(Ok(()), Err)
    }

    /// The error for a value that is not finite, by its number counted in C order.
    pub fn not_finite(&self, number: usize, value: f64) -> NpyError {
        NpyError::NotFinite { path: self.path.clone(), index: index_of(self.shape(), number), value }
    }

    /// Replaces the content of `out` with the rows, `[rows, row_len]` in C order, from any float type.
    pub fn read_f32(&self, rows: Range<usize>, out: &mut Vec<f32>) -> Result<(), NpyError> {
        let values = self.values(rows)?;
        out.clear();
        out.resize(values.len(), 0.0);
        self.read_f32_at(values.start, out)
    }

    /// Fills `out` with the values from number `start` on, counted in C order, from any float type.
    pub fn read_f32_at(&self, start: usize, out: &mut [f32]) -> Result<(), NpyError> {
        match self.dtype() {
            Dtype::F16 => self.read(start, out, |block: &[f16], out| block.convert_to_f32_slice(out)),
            Dtype::F32 => self.read(start, out, |block: &[f32], out| out.copy_from_slice(block)),
            Dtype::F64 => self.read(start, out, |block: &[f64], out| convert(block, out, |x| x as f32)),
            _ => Err(self.wrong_dtype("a float type")),
        }
    }

    /// Fills `out` with the values from number `start` on, counted in C order, of a float16 file.
    ///
    /// # Errors
    /// As [`Self::read_f32_at`]; or the file is of another type.
    pub fn read_f16_at(&self, start: usize, out: &mut [f16]) -> Result<(), NpyError> {
        match self.dtype() {
            Dtype::F16 => self.read(start, out, |block: &[f16], out| out.copy_from_slice(block)),
            _ => Err(self.wrong_dtype("float16")),
        }
    }

    /// Replaces the content of `out` with the rows, `[rows, row_len]` in C order, from any integer type.
    pub fn read_i64(&self, rows: Range<usize>, out: &mut Vec<i64>) -> Result<(), NpyError> {
        let values = self.values(rows)?;
        out.clear();
        out.resize(values.len(), 0);
        match self.dtype() {
            Dtype::I32 => self.read(values.start, out, |block: &[i32], out| convert(block, out, i64::from)),
            Dtype::I64 => self.read(values.start, out, |block: &[i64], out| out.copy_from_slice(block)),
            _ => Err(self.wrong_dtype("an integer type")),
        }
    }

    /// All values of a float array with one axis.
    ///
    /// # Errors
    /// The file cannot be read, or holds an array of another shape or type.
    pub fn vector(path: impl AsRef<Path>) -> Result<Vec<f32>, NpyError> {
        let npy = Self::open(path)?;
        npy.expect_shape(&[None])?;
        let mut values = Vec::new();
        npy.read_f32(0..npy.rows(), &mut values)?;
        Ok(values)
    }

    /// The bytes of consecutive values in the file; `None` in Fortran order, where they are not contiguous.
    pub fn place(&self, values: Range<usize>) -> Option<Range<u64>> {
        let byte = |value: usize| (self.header.offset + value * self.header.dtype.size()) as u64;
        (!self.header.fortran).then(|| byte(values.start)..byte(values.end))
    }

    fn wrong_dtype(&self, expected: &str) -> NpyError {
        NpyError::Dtype { path: self.path.clone(), found: self.dtype(), expected: expected.into() }
    }

    /// The indices of the rows' values.
    fn values(&self, rows: Range<usize>) -> Result<Range<usize>, NpyError> {
        if rows.start > rows.end || rows.end > self.rows() {
            return Err(NpyError::Rows { path: self.path.clone(), range: rows, rows: self.rows() });
        }
        Ok(rows.start * self.row_len()..rows.end * self.row_len())
    }

    /// Fills `out` from value `start` on, block by block.
    fn read<T: Pod, O>(
        &self,
        start: usize,
        out: &mut [O],
        convert: impl Fn(&[T], &mut [O]),
    ) -> Result<(), NpyError> {
        let (end, count): (usize, usize) = (start + out.len(), self.header.shape.iter().product());
        if end > count {
            let row = |value: usize| value / self.row_len().max(1);
            let range = row(start)..row(end - 1) + 1;
            return Err(NpyError::Rows { path: self.path.clone(), range, rows: self.rows() });
        }
        if self.header.fortran {
            convert(&self.gather(start..end)?, out);
            return Ok(());
        }
        let mut block = vec![T::zeroed(); out.len().min(BLOCK / size_of::<T>())];
        let mut next = start;
        for out in out.chunks_mut(block.len().max(1)) {
            let block = &mut block[..out.len()];
            self.fill(block, next)?;
            convert(block, out);
            next += out.len();
        }
        Ok(())
    }

    /// Reads consecutive values of the file.
    fn fill<T: Pod>(&self, values: &mut [T], index: usize) -> Result<(), NpyError> {
        let offset = (self.header.offset + index * size_of::<T>()) as u64;
        self.file.read_exact_at(bytemuck::cast_slice_mut(values), offset).map_err(|error| {
            if error.kind() != io::ErrorKind::UnexpectedEof {
                return error.into();
            }
            // The file was truncated after it was opened.
            let found = self.file.metadata().map_or(0, |metadata| metadata.len());
            self.header.wrong_length(&self.path, found)
        })
    }

    /// Values of a file in Fortran order, in C order. In the file, one column of consecutive rows is contiguous.
    fn gather<T: Pod>(&self, values: Range<usize>) -> Result<Vec<T>, NpyError> {
        let row_len = self.row_len();
        let mut out = vec![T::zeroed(); values.len()];
        let mut run = Vec::new();
        for within in 0..row_len {
            // The rows whose value `within` is requested.
            let row = |value: usize| value.saturating_sub(within).div_ceil(row_len);
            let rows = row(values.start)..row(values.end);
            if rows.is_empty() {
                continue;
            }
            run.resize(rows.len(), T::zeroed());
            self.fill(&mut run, self.fortran_index(rows.start, within))?;
            for (row, value) in rows.zip(&run) {
                out[row * row_len + within - values.start] = *value;
            }
        }
        Ok(out)
    }

    /// The index in the file of the `within`-th value of a row in C order.
    fn fortran_index(&self, row: usize, mut within: usize) -> usize {
        let mut stride: usize = self.header.shape.iter().product();
        let mut index = row;
        for &n in self.header.shape.iter().skip(1).rev() {
            stride /= n;
            index += within % n * stride;
            within /= n;
        }
        index
    }
}

fn convert<T: Copy, O>(block: &[T], out: &mut [O], convert: impl Fn(T) -> O) {
    for (out, value) in out.iter_mut().zip(block) {
        *out = convert(*value);
    }
}

#[cfg(test)]
mod tests;
