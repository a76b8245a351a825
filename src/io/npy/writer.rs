//! Writes a `.npy` array row by row, so that it need not fit into memory.
//!
//! Values are given as `f32` or `i64` in C order. The file is written in place: for an atomic write, the caller renames a
//! temporary file.

use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use half::f16;

use super::{Dtype, Npy, NpyError};

/// The alignment that NumPy gives to the first data byte.
const ALIGNMENT: usize = 64;

/// An array under construction. [`NpyWriter::finish`] must be called: only it detects missing rows.
#[derive(Debug)]
pub struct NpyWriter {
    path: PathBuf,
    file: BufWriter<fs_err::File>,
    dtype: Dtype,
    written: usize,
    expected: usize,
}

impl NpyWriter {
    /// Creates or replaces the file and writes the header for the whole array.
    pub fn create(path: impl AsRef<Path>, dtype: Dtype, shape: &[usize]) -> Result<Self, NpyError> {
        let path = path.as_ref();
        let unsupported = || NpyError::UnsupportedDtype { path: path.into(), found: dtype.to_string() };
        let descr = dtype.descr().ok_or_else(unsupported)?;
        let mut file = BufWriter::with_capacity(1 << 20, fs_err::File::create(path)?);
        file.write_all(&header(descr, shape))?;
        Ok(Self { path: path.into(), file, dtype, written: 0, expected: shape.iter().product() })
    }

    /// Appends float values, rounded to the file's float type. They may end anywhere in a row.
    pub fn write_f32(&mut self, values: &[f32]) -> Result<(), NpyError> {
        match self.dtype {
            Dtype::F16 => self.write(values, |x| f16::from_f32(x).to_le_bytes()),
            Dtype::F32 => self.write(values, f32::to_le_bytes),
            Dtype::F64 => self.write(values, |x| f64::from(x).to_le_bytes()),
            _ => Err(self.wrong_dtype("a float type")),
        }
    }

    /// Appends integer values; the file's type must be `i64`.
    pub fn write_i64(&mut self, values: &[i64]) -> Result<(), NpyError> {
        match self.dtype {
            Dtype::I64 => self.write(values, i64::to_le_bytes),
            _ => Err(self.wrong_dtype("int64")),
        }
    }

    /// Flushes, and fails unless exactly the expected number of values was written.
    pub fn finish(mut self) -> Result<(), NpyError> {
        self.file.flush()?;
        if self.written == self.expected { Ok(()) } else { Err(self.unfinished(self.written)) }
    }

    fn write<T: Copy, const SIZE: usize>(
        &mut self,
        values: &[T],
        convert: impl Fn(T) -> [u8; SIZE],
    ) -> Result<(), NpyError> {
        self.count(values.len())?;
        for &value in values {
            self.file.write_all(&convert(value))?;
        }
        Ok(())
    }

    /// Counts values before they are written, and refuses too many.
    fn count(&mut self, count: usize) -> Result<(), NpyError> {
        let written = self.written + count;
        if written > self.expected {
            return Err(self.unfinished(written));
        }
        self.written = written;
        Ok(())
    }

    fn unfinished(&self, found: usize) -> NpyError {
        NpyError::Unfinished { path: self.path.clone(), found, expected: self.expected }
    }

    fn wrong_dtype(&self, expected: &str) -> NpyError {
        NpyError::Dtype { path: self.path.clone(), found: self.dtype, expected: expected.into() }
    }
}

/// Writes a whole `f32` array.
pub fn write_f32(path: impl AsRef<Path>, shape: &[usize], values: &[f32]) -> Result<(), NpyError> {
    let mut writer = NpyWriter::create(path, Dtype::F32, shape)?;
    writer.write_f32(values)?;
    writer.finish()
}

/// Writes a whole `i64` array.
pub fn write_i64(path: impl AsRef<Path>, shape: &[usize], values: &[i64]) -> Result<(), NpyError> {
    let mut writer = NpyWriter::create(path, Dtype::I64, shape)?;
    writer.write_i64(values)?;
    writer.finish()
}

/// Concatenates arrays of one dtype and row shape along the first axis.
///
/// # Errors
/// There is no array, one differs in dtype or row shape from the first, or is in Fortran order.
pub fn concat<P: AsRef<Path>>(paths: &[P], out: impl AsRef<Path>) -> Result<(), NpyError> {
    let headers = paths.iter().map(Npy::header).collect::<Result<Vec<_>, _>>()?;
    let none = || NpyError::Shape {
        path: out.as_ref().into(),
        found: vec![],
        expected: "at least one array to join".into(),
    };
    let first = headers.first().ok_or_else(none)?;
    let mut rows = 0;
    for (path, header) in paths.iter().zip(&headers) {
        let path = || path.as_ref().to_owned();
        if header.dtype != first.dtype {
            let expected = format!("{} like the first array", first.dtype);
            return Err(NpyError::Dtype { path: path(), found: header.dtype, expected });
        }
        let same_rows = header.shape.get(1..) == first.shape.get(1..) && !header.shape.is_empty();
        if !same_rows || header.fortran {
            let order = if header.fortran { " in C order" } else { "" };
            let expected = format!("rows like those of the first array, {:?}{order}", first.shape);
            return Err(NpyError::Shape { path: path(), found: header.shape.clone(), expected });
        }
        rows += header.shape[0];
    }
    let mut shape = first.shape.clone();
    shape[0] = rows;
    let mut writer = NpyWriter::create(out, first.dtype, &shape)?;
    for (path, header) in paths.iter().zip(&headers) {
        let mut file = fs_err::File::open(path.as_ref())?;
        file.seek(SeekFrom::Start(header.offset as u64))?;
        let bytes = std::io::copy(&mut file, &mut writer.file)?;
        writer.count(bytes as usize / first.dtype.size())?;
    }
    writer.finish()
}

/// A version 1.0 header, padded as NumPy pads it, so that equal arrays are equal files.
fn header(descr: &str, shape: &[usize]) -> Vec<u8> {
    let axes = match shape {
        [n] => format!("{n},"),
        _ => shape.iter().map(usize::to_string).collect::<Vec<_>>().join(", "),
    };
    let mut dict = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({axes}), }}");
    const BEFORE: usize = 10; // magic, version, length of the dictionary
    let unpadded = BEFORE + dict.len() + 1;
    dict.extend(std::iter::repeat_n(' ', unpadded.next_multiple_of(ALIGNMENT) - unpadded));
    dict.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((dict.len() as u16).to_le_bytes());
    bytes.extend(dict.bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_are_those_of_numpy() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npy");
        write_f32(&path, &[1], &[1.0]).unwrap();
        let bytes = fs_err::read(&path).unwrap();
        // numpy.save("a.npy", numpy.ones(1, "float32"))
        let mut expected = b"\x93NUMPY\x01\x00\x76\x00".to_vec();
        expected.extend(b"{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }");
        expected.resize(127, b' ');
        expected.extend(b"\n\x00\x00\x80\x3f");
        assert_eq!(bytes, expected);
    }

    #[test]
    fn half_precision_is_read_as_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npy");
        let mut writer = NpyWriter::create(&path, Dtype::F16, &[3, 2]).unwrap();
        writer.write_f32(&[1.0, 0.5, -0.25, 2048.0]).unwrap();
        writer.write_f32(&[0.1, 6.0]).unwrap();
        writer.finish().unwrap();
        let mut out = Vec::new();
        Npy::open(&path).unwrap().read_f32(0..3, &mut out).unwrap();
        assert_eq!(out, [1.0, 0.5, -0.25, 2048.0, f16::from_f32(0.1).to_f32(), 6.0]);
    }

    #[test]
    fn too_few_or_too_many_values_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npy");
        let mut writer = NpyWriter::create(&path, Dtype::F32, &[2, 2]).unwrap();
        writer.write_f32(&[1.0, 2.0]).unwrap();
        assert!(
            writer.write_f32(&[0.0; 3]).unwrap_err().to_string().contains("5 values written, expected 4")
        );
        assert!(writer.write_i64(&[0]).is_err());
        let error = NpyWriter::create(folder.path().join("b.npy"), Dtype::BF16, &[1]).unwrap_err();
        assert!(error.to_string().contains("b.npy: unsupported dtype bfloat16"), "{error}");
        assert!(writer.finish().unwrap_err().to_string().contains("a.npy: 2 values written, expected 4"));
    }

    #[test]
    fn concat_joins_rows_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let [a, b, c, out] = ["a", "b", "c", "out"].map(|name| folder.path().join(name));
        write_f32(&a, &[2, 2], &[0.0, 1.0, 2.0, 3.0]).unwrap();
        write_f32(&b, &[1, 2], &[4.0, 5.0]).unwrap();
        write_f32(&c, &[1, 3], &[4.0, 5.0, 6.0]).unwrap();
        concat(&[&a, &b, &a], &out).unwrap();
        let npy = Npy::open(&out).unwrap();
        assert_eq!(npy.shape(), [5, 2]);
        let mut values = Vec::new();
        npy.read_f32(1..4, &mut values).unwrap();
        assert_eq!(values, [2.0, 3.0, 4.0, 5.0, 0.0, 1.0]);
        assert!(
            concat(&[&a, &c], &out).unwrap_err().to_string().contains("shape [1, 3], expected rows like")
        );
        write_i64(&c, &[1, 2], &[4, 5]).unwrap();
        assert!(concat(&[&a, &c], &out).unwrap_err().to_string().contains("dtype int64, expected float32"));
        assert!(concat::<&Path>(&[], &out).is_err());
    }
}
