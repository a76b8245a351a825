//! An open `.npy` array, read a range of rows or values at a time.
//!
//! A row is everything behind the first axis, in C order. Text embeddings are tens of gigabytes, so a file
//! is never loaded whole. Nor is it mapped: the pages of a map count as this process's memory until the system takes
//! them back, and a file that is cut short under a map ends the process. Blocks read at their place cost about a tenth
//! of the speed and keep memory flat. What is read is converted to the type asked for.
//! Format: NumPy enhancement proposal 1 (`numpy.lib.format`), little-endian.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use bytemuck::Pod;
use fs_err::os::unix::fs::FileExt as _;
use half::f16;
use half::slice::HalfFloatSliceExt as _;

pub use super::npy_error::NpyError;
pub use super::npy_header::{Dtype, Header};

const _: () = assert!(cfg!(target_endian = "little"), "the files' bytes are taken as they are");

/// Bytes that are read at once and stay in the processor's cache until they are converted.
const BLOCK: usize = 256 << 10;

/// An open array. Threads can share it: reading moves no position.
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

    /// Header and length check alone.
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

    /// Refuses an array of another shape; `None` stands for any length.
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

    /// Replaces the content of `out` by the rows, `[rows, row_len]` in C order, from any float type.
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
            Dtype::I32 | Dtype::I64 => Err(self.wrong_dtype("a float type")),
        }
    }

    /// Replaces the content of `out` by the rows, `[rows, row_len]` in C order, from any integer type.
    pub fn read_i64(&self, rows: Range<usize>, out: &mut Vec<i64>) -> Result<(), NpyError> {
        let values = self.values(rows)?;
        out.clear();
        out.resize(values.len(), 0);
        match self.dtype() {
            Dtype::I32 => self.read(values.start, out, |block: &[i32], out| convert(block, out, i64::from)),
            Dtype::I64 => self.read(values.start, out, |block: &[i64], out| out.copy_from_slice(block)),
            Dtype::F16 | Dtype::F32 | Dtype::F64 => Err(self.wrong_dtype("an integer type")),
        }
    }

    fn wrong_dtype(&self, expected: &str) -> NpyError {
        NpyError::Dtype { path: self.path.clone(), found: self.dtype(), expected: expected.into() }
    }

    /// The numbers of the values of some rows.
    fn values(&self, rows: Range<usize>) -> Result<Range<usize>, NpyError> {
        if rows.start > rows.end || rows.end > self.rows() {
            return Err(NpyError::Rows { path: self.path.clone(), range: rows, rows: self.rows() });
        }
        Ok(rows.start * self.row_len()..rows.end * self.row_len())
    }

    /// Fills `out` from value `start` on, a block of the file's type at a time.
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
            // The length was right when the file was opened.
            let found = self.file.metadata().map_or(0, |metadata| metadata.len());
            self.header.wrong_length(&self.path, found)
        })
    }

    /// Values of a file in Fortran order, in C order. There, the same place in consecutive rows is consecutive.
    fn gather<T: Pod>(&self, values: Range<usize>) -> Result<Vec<T>, NpyError> {
        let row_len = self.row_len();
        let mut out = vec![T::zeroed(); values.len()];
        let mut run = Vec::new();
        for within in 0..row_len {
            // The rows whose value `within` is among those asked for.
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

    /// Where the value stands in the file that C order calls the `within`-th of a row.
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
mod tests {
    use super::*;
    use crate::io::npy_writer::{write_f32, write_i64};

    /// A file as NumPy writes it, with any type and order.
    fn npy_file(descr: &str, fortran: &str, shape: &str, data: &[u8]) -> tempfile::NamedTempFile {
        let dict = format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}\n");
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((dict.len() as u16).to_le_bytes());
        bytes.extend(dict.as_bytes());
        bytes.extend(data);
        let file = tempfile::NamedTempFile::new().unwrap();
        fs_err::write(file.path(), bytes).unwrap();
        file
    }

    #[test]
    fn reads_a_range_of_rows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npy");
        let values: Vec<f32> = (0..24).map(|i| i as f32 / 8.0).collect();
        write_f32(&path, &[4, 2, 3], &values).unwrap();
        let npy = Npy::open(&path).unwrap();
        assert_eq!((npy.shape(), npy.dtype(), npy.rows(), npy.row_len()), (&[4, 2, 3][..], Dtype::F32, 4, 6));
        let mut out = vec![9.0];
        npy.read_f32(1..3, &mut out).unwrap();
        assert_eq!(out, values[6..18]);
        npy.read_f32(4..4, &mut out).unwrap();
        assert!(out.is_empty());
        let error = npy.read_f32(3..5, &mut out).unwrap_err().to_string();
        assert!(error.ends_with("a.npy: rows 3..5 asked for, but it has 4"), "{error}");
    }

    #[test]
    fn converts_half_double_and_integers() {
        let half: Vec<u8> = [0.5f32, -2.0].iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect();
        let double: Vec<u8> = [0.1f64, 3.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        let int: Vec<u8> = [-7i32, 8].iter().flat_map(|x| x.to_le_bytes()).collect();
        let mut floats = Vec::new();
        Npy::open(npy_file("<f2", "False", "(2,)", &half)).unwrap().read_f32(0..2, &mut floats).unwrap();
        assert_eq!(floats, [0.5, -2.0]);
        Npy::open(npy_file("<f8", "False", "(2,)", &double)).unwrap().read_f32(0..2, &mut floats).unwrap();
        assert_eq!(floats, [0.1, 3.0]);
        let npy = Npy::open(npy_file("<i4", "False", "(2,)", &int)).unwrap();
        let mut integers = Vec::new();
        npy.read_i64(0..2, &mut integers).unwrap();
        assert_eq!(integers, [-7, 8]);
        let error = npy.read_f32(0..2, &mut floats).unwrap_err().to_string();
        assert!(error.ends_with("dtype int32, expected a float type"), "{error}");
    }

    #[test]
    fn fortran_order_reads_like_c_order() {
        // Element (i, j, k) of shape (2, 3, 4) is 100 i + 10 j + k; Fortran lets i run fastest.
        let mut data = Vec::new();
        for k in 0..4 {
            for j in 0..3 {
                for i in 0..2 {
                    data.extend(((100 * i + 10 * j + k) as f32).to_le_bytes());
                }
            }
        }
        let npy = Npy::open(npy_file("<f4", "True", "(2, 3, 4)", &data)).unwrap();
        let mut out = Vec::new();
        npy.read_f32(1..2, &mut out).unwrap();
        let expected: Vec<f32> =
            (0..3).flat_map(|j| (0..4).map(move |k| (100 + 10 * j + k) as f32)).collect();
        assert_eq!(out, expected);
    }

    #[test]
    fn any_stretch_of_values_is_read_in_either_order() {
        let numbers: Vec<f32> = (0..24).map(|i| i as f32).collect();
        let c: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        // Value (i, j, k) of shape (3, 2, 4) is 8 i + 4 j + k; Fortran lets i run fastest.
        let places = (0..24).map(|at| (at % 3, at / 3 % 2, at / 6));
        let fortran: Vec<u8> =
            places.flat_map(|(i, j, k)| ((8 * i + 4 * j + k) as f32).to_le_bytes()).collect();
        for (order, data) in [("False", c), ("True", fortran)] {
            let file = npy_file("<f4", order, "(3, 2, 4)", &data);
            let npy = Npy::open(&file).unwrap();
            for (start, end) in [(0, 24), (0, 0), (3, 7), (5, 20), (8, 16), (23, 24)] {
                let mut out = vec![-1.0; end - start];
                npy.read_f32_at(start, &mut out).unwrap();
                assert_eq!(out, numbers[start..end], "{order} {start}..{end}");
            }
            let error = npy.read_f32_at(20, &mut [0.0; 5]).unwrap_err().to_string();
            assert!(error.ends_with("rows 2..4 asked for, but it has 3"), "{error}");
        }
    }

    #[test]
    fn blocks_follow_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npy");
        let values: Vec<f32> = (0..3 * 70_000).map(|i| i as f32).collect();
        write_f32(&path, &[3, 70_000], &values).unwrap();
        let mut out = Vec::new();
        Npy::open(&path).unwrap().read_f32(0..3, &mut out).unwrap();
        assert!(out == values);
    }

    #[test]
    fn a_file_cut_short_while_it_is_open_is_an_error() {
        let file = npy_file("<f4", "False", "(4,)", &[0; 16]);
        let npy = Npy::open(&file).unwrap();
        let length = file.as_file().metadata().unwrap().len();
        file.as_file().set_len(length - 3).unwrap();
        let error = npy.read_f32(2..4, &mut Vec::new()).unwrap_err().to_string();
        let expected = format!("truncated file: {} bytes, expected {length} for float32 [4]", length - 3);
        assert!(error.ends_with(&expected), "{error}");
        npy.read_f32(0..3, &mut Vec::new()).unwrap();
    }

    #[test]
    fn scalars_and_empty_arrays_have_rows_too() {
        let scalar = Npy::open(npy_file("<f4", "False", "()", &1.5f32.to_le_bytes())).unwrap();
        let mut out = Vec::new();
        scalar.read_f32(0..1, &mut out).unwrap();
        assert_eq!(out, [1.5]);
        let empty = Npy::open(npy_file("<f4", "False", "(0, 3)", &[])).unwrap();
        assert_eq!((empty.rows(), empty.row_len()), (0, 3));
        empty.read_f32(0..0, &mut out).unwrap();
        assert!(out.is_empty());
    }

    #[test]
    fn a_damaged_file_is_named_with_its_sizes() {
        let short = npy_file("<f4", "False", "(2,)", &[0; 7]);
        let error = Npy::open(short.path()).unwrap_err().to_string();
        let header = fs_err::read(short.path()).unwrap().len() - 7;
        let expected =
            format!("truncated file: {} bytes, expected {} for float32 [2]", header + 7, header + 8);
        assert_eq!(error, format!("{}: {expected}", short.path().display()));
        let long = npy_file("<f4", "False", "(2,)", &[0; 9]);
        assert!(Npy::header(long.path()).unwrap_err().to_string().contains("overlong file"));
        let huge = npy_file("<f4", "False", "(9223372036854775807, 9)", &[]);
        assert!(Npy::open(huge.path()).unwrap_err().to_string().contains("too large"));
        let other = npy_file("|u1", "False", "(2,)", &[0; 2]);
        assert!(Npy::open(other.path()).unwrap_err().to_string().contains("unsupported dtype '|u1'"));
        for bytes in [&b""[..], b"\x93NUM", b"PK\x03\x04 something else"] {
            fs_err::write(other.path(), bytes).unwrap();
            assert!(Npy::open(other.path()).unwrap_err().to_string().contains("not a npy file"));
        }
        assert!(Npy::open("/nowhere/x.npy").unwrap_err().to_string().contains("/nowhere/x.npy"));
    }

    #[test]
    fn shapes_can_be_demanded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npy");
        write_i64(&path, &[2, 3], &[0; 6]).unwrap();
        let npy = Npy::open(&path).unwrap();
        npy.expect_shape(&[None, Some(3)]).unwrap();
        let error = npy.expect_shape(&[None, Some(4), Some(16)]).unwrap_err().to_string();
        assert!(error.ends_with("a.npy: shape [2, 3], expected [_, 4, 16]"), "{error}");
    }
}
