//! A memory-mapped `.npy` array, read a range of rows at a time.
//!
//! A row is everything behind the first axis, in C order. Text embeddings are tens of gigabytes, so a
//! file is mapped and never loaded whole; what is read is converted to the type asked for.
//! Format: NumPy enhancement proposal 1 (`numpy.lib.format`), little-endian.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use half::f16;
use memmap2::Mmap;

pub use super::npy_error::NpyError;
pub use super::npy_header::{Dtype, Header};

/// An open array. Cheap to share between threads; the pages belong to the operating system.
#[derive(Debug)]
pub struct Npy {
    path: PathBuf,
    header: Header,
    map: Mmap,
}

impl Npy {
    /// Maps the file, after checking header and length.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, NpyError> {
        let path = path.as_ref();
        let mut file = fs_err::File::open(path)?;
        let header = Header::read(path, &mut file)?;
        // SAFETY: the map is read-only and private to this value. A file changed by someone else while it
        // is mapped would change under us; the store keeps its objects read-only for that reason.
        let map = unsafe { Mmap::map(file.file()) }
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
        Ok(Self { path: path.into(), header, map })
    }

    /// Header and length check alone, without mapping the data.
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
        match self.dtype() {
            Dtype::F16 => self.read(rows, out, |bytes| f16::from_le_bytes(bytes).to_f32()),
            Dtype::F32 => self.read(rows, out, f32::from_le_bytes),
            Dtype::F64 => self.read(rows, out, |bytes| f64::from_le_bytes(bytes) as f32),
            Dtype::I32 | Dtype::I64 => Err(self.wrong_dtype("a float type")),
        }
    }

    /// Replaces the content of `out` by the rows, `[rows, row_len]` in C order, from any integer type.
    pub fn read_i64(&self, rows: Range<usize>, out: &mut Vec<i64>) -> Result<(), NpyError> {
        match self.dtype() {
            Dtype::I32 => self.read(rows, out, |bytes| i32::from_le_bytes(bytes).into()),
            Dtype::I64 => self.read(rows, out, i64::from_le_bytes),
            Dtype::F16 | Dtype::F32 | Dtype::F64 => Err(self.wrong_dtype("an integer type")),
        }
    }

    fn wrong_dtype(&self, expected: &str) -> NpyError {
        NpyError::Dtype { path: self.path.clone(), found: self.dtype(), expected: expected.into() }
    }

    fn read<T, const SIZE: usize>(
        &self,
        rows: Range<usize>,
        out: &mut Vec<T>,
        convert: impl Fn([u8; SIZE]) -> T,
    ) -> Result<(), NpyError> {
        if rows.start > rows.end || rows.end > self.rows() {
            return Err(NpyError::Rows { path: self.path.clone(), range: rows, rows: self.rows() });
        }
        out.clear();
        let (elements, _) = self.map[self.header.offset..].as_chunks::<SIZE>();
        if self.header.fortran {
            let row_len = self.row_len();
            out.reserve(rows.len() * row_len);
            for row in rows {
                out.extend((0..row_len).map(|i| convert(elements[self.fortran_index(row, i)])));
            }
        } else {
            let range = rows.start * self.row_len()..rows.end * self.row_len();
            out.extend(elements[range].iter().map(|bytes| convert(*bytes)));
        }
        Ok(())
    }

    /// Where the element stands in the file that C order calls the `within`-th of a row.
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
