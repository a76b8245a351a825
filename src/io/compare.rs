//! Compares two files of arrays value by value: the first difference, and the largest.

use std::io;
use std::path::{Path, PathBuf};

use fs_err::os::unix::fs::FileExt as _;
use half::{bf16, f16};
use serde::Serialize;

use super::dtype::Dtype;
use super::npy::{self, Npy, NpyError};
use super::tensor_file::{TensorFile, TensorFileError};

/// Bytes per comparison step; a multiple of every element's size.
const BLOCK: usize = 1 << 20;
/// The first bytes of a `.npy` file.
const NPY: &[u8] = b"\x93NUMPY";

/// How two files differ.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "form", rename_all = "snake_case")]
pub enum Compared {
    /// The same bytes.
    Same,
    /// Other arrays: the first difference of names, types or shapes.
    Form {
        /// A description for users.
        what: String,
    },
    /// The same arrays with other values.
    Values(Values),
    /// Files without arrays, or with equal arrays.
    Bytes {
        /// The first byte that differs, counted from 0.
        at: u64,
        /// Size of the first file.
        a: u64,
        /// Size of the second file.
        b: u64,
    },
}

/// The values that differ.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Values {
    /// The first array that differs; none in a file with a single array.
    pub array: Option<String>,
    /// The index of its first value that differs.
    pub index: Vec<usize>,
    /// That value in the first file, and in the second.
    pub first: (String, String),
    /// Arrays that differ.
    pub arrays: usize,
    /// Values with different bits, over all arrays.
    pub differing: u64,
    /// Compared values, over all arrays.
    pub values: u64,
    /// The largest absolute difference of two finite values.
    pub absolute: f64,
    /// The largest difference of two finite values, relative to the larger of their magnitudes.
    pub relative: f64,
    /// The largest difference in units in the last place; none for integers.
    pub ulps: Option<u64>,
    /// Pairs that differ with at least one infinity or NaN: not part of the largest differences.
    pub not_finite: u64,
}

/// Why a file cannot be compared. Every message names the file.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// The operating system refused.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A damaged `.npy` file.
    #[error(transparent)]
    Npy(#[from] NpyError),
    /// A damaged file of tensors.
    #[error(transparent)]
    Tensors(#[from] TensorFileError),
}

impl std::fmt::Display for Compared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let v = match self {
            Self::Same => return f.write_str("the same bytes"),
            Self::Form { what } => return f.write_str(what),
            Self::Bytes { at, a, b } if a != b => {
                return write!(f, "byte {at} differs first; {a} and {b} bytes");
            }
            Self::Bytes { at, .. } => return write!(f, "byte {at} differs first"),
            Self::Values(values) => values,
        };
        let array = v.array.as_ref().map(|name| format!("`{name}` ")).unwrap_or_default();
        let (a, b) = &v.first;
        write!(
            f,
            "{array}at {:?} differs first: {a} and {b}; {} of {} values differ",
            v.index, v.differing, v.values
        )?;
        write!(f, ", by {:.3e} at most, {:.3e} relative", v.absolute, v.relative)?;
        if let Some(ulps) = v.ulps {
            write!(f, ", {ulps} ulp")?;
        }
        match v.not_finite {
            0 => Ok(()),
            count => write!(f, "; {count} of the pairs are not finite"),
        }
    }
}

/// Compares two files: `.npy`, safetensors and `torch.save` files by their arrays, all others by their bytes.
///
/// # Errors
/// A file cannot be read, or is damaged.
pub fn compare(a: &Path, b: &Path) -> Result<Compared, CompareError> {
    let Some(bytes) = first_byte(a, b)? else { return Ok(Compared::Same) };
    let found = match (Arrays::open(a)?, Arrays::open(b)?) {
        (Some(a), Some(b)) => arrays(&a, &b)?,
        _ => None,
    };
    Ok(found.unwrap_or(bytes))
}

/// Whether two files have the same bytes.
///
/// # Errors
/// A file cannot be read.
pub fn same_bytes(a: &Path, b: &Path) -> io::Result<bool> {
    Ok(first_byte(a, b)?.is_none())
}

/// A file with arrays.
enum Arrays {
    Npy(PathBuf, npy::Header),
    Tensors(TensorFile),
}

/// The description of an array.
#[derive(PartialEq)]
struct Form {
    /// None in a file with a single array.
    name: Option<String>,
    dtype: Dtype,
    shape: Vec<usize>,
    fortran: bool,
}

impl Arrays {
    fn open(path: &Path) -> Result<Option<Self>, CompareError> {
        let mut start = [0; NPY.len()];
        let file = fs_err::File::open(path)?;
        if file.read_at(&mut start, 0)? == start.len() && start == *NPY {
            return Ok(Some(Self::Npy(path.into(), Npy::header(path)?)));
        }
        match TensorFile::open(path) {
            Ok(file) => Ok(Some(Self::Tensors(file))),
            // A file without arrays.
            Err(TensorFileError::Format { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The arrays, by name.
    fn forms(&self) -> Vec<Form> {
        match self {
            Self::Npy(_, header) => {
                let npy::Header { shape, dtype, fortran, .. } = header.clone();
                vec![Form { name: None, dtype, shape, fortran }]
            }
            Self::Tensors(file) => {
                let form = |header: &super::tensor_file::Header| Form {
                    name: Some(header.name.clone()),
                    dtype: header.dtype,
                    shape: header.shape.clone(),
                    fortran: false,
                };
                let mut forms: Vec<Form> = file.headers().iter().map(form).collect();
                forms.sort_by(|a, b| a.name.cmp(&b.name));
                forms
            }
        }
    }
}

/// How the arrays differ; `None` if they are equal and only other bytes differ.
fn arrays(a: &Arrays, b: &Arrays) -> Result<Option<Compared>, CompareError> {
    let (forms, others) = (a.forms(), b.forms());
    if let Some(what) = other_form(&forms, &others) {
        return Ok(Some(Compared::Form { what }));
    }
    let mut sum = Sum::default();
    for form in &forms {
        sum.begin();
        match (a, b) {
            (Arrays::Npy(a, header), Arrays::Npy(b, other)) => {
                let (a, b) = (fs_err::File::open(a)?, fs_err::File::open(b)?);
                let bytes = form.shape.iter().product::<usize>() * form.dtype.size();
                let (mut left, mut right) = (vec![0; BLOCK.min(bytes)], vec![0; BLOCK.min(bytes)]);
                for start in (0..bytes).step_by(BLOCK) {
                    let length = BLOCK.min(bytes - start);
                    a.read_exact_at(&mut left[..length], (header.offset + start) as u64)?;
                    b.read_exact_at(&mut right[..length], (other.offset + start) as u64)?;
                    sum.block(form, &left[..length], &right[..length]);
                }
            }
            (Arrays::Tensors(a), Arrays::Tensors(b)) => {
                let name = form.name.as_deref().unwrap_or_default();
                let bytes = |file: &'_ TensorFile| {
                    let header = file.header(name).expect("the forms are those of both files").clone();
                    file.bytes(&header).map(std::borrow::Cow::into_owned)
                };
                sum.block(form, &bytes(a)?, &bytes(b)?);
            }
            _ => unreachable!("only tensors have names, so equal forms have one format"),
        }
    }
    Ok(sum.found.map(|found| Compared::Values(Values { values: sum.values, ..found })))
}

/// The first difference of names, types or shapes.
fn other_form(a: &[Form], b: &[Form]) -> Option<String> {
    let describe = |form: &Form| {
        let name = form.name.as_ref().map_or("an array".to_owned(), |name| format!("`{name}`"));
        let order = if form.fortran { " in Fortran order" } else { "" };
        format!("{name}, {} {:?}{order}", form.dtype, form.shape)
    };
    let pairs = a.iter().zip(b).find(|(a, b)| a != b);
    let extra = || a.get(b.len()).or(b.get(a.len()));
    match (pairs, extra()) {
        (Some((a, b)), _) => Some(format!("{} against {}", describe(a), describe(b))),
        (None, Some(form)) => {
            Some(format!("{} and {} arrays: only one has {}", a.len(), b.len(), describe(form)))
        }
        (None, None) => None,
    }
}

/// The differences so far.
#[derive(Default)]
struct Sum {
    found: Option<Values>,
    values: u64,
    /// Compared values of the current array, and whether any differs.
    done: usize,
    differs: bool,
}

impl Sum {
    /// Begins the next array.
    fn begin(&mut self) {
        (self.done, self.differs) = (0, false);
    }

    /// Compares the next values of an array, in the order of the files.
    fn block(&mut self, form: &Form, a: &[u8], b: &[u8]) {
        match form.dtype {
            Dtype::F64 => self.floats(form, a, b, f64::from_le_bytes, |x| x, |x| ordered(x.to_bits() as i64)),
            Dtype::F32 => self.floats(form, a, b, f32::from_le_bytes, f64::from, |x| {
                ordered(i64::from(x.to_bits() as i32) << 32) >> 32
            }),
            Dtype::F16 => self.floats(form, a, b, f16::from_le_bytes, f64::from, |x| {
                ordered(i64::from(x.to_bits() as i16) << 48) >> 48
            }),
            Dtype::BF16 => self.floats(form, a, b, bf16::from_le_bytes, f64::from, |x| {
                ordered(i64::from(x.to_bits() as i16) << 48) >> 48
            }),
            Dtype::I64 => self.integers(form, a, b, i64::from_le_bytes),
            Dtype::I32 => self.integers(form, a, b, |bytes| i32::from_le_bytes(bytes).into()),
            Dtype::U8 | Dtype::Bool => self.integers(form, a, b, |[byte]: [u8; 1]| byte.into()),
        }
    }

    fn floats<const SIZE: usize, T: Copy + std::fmt::Display>(
        &mut self,
        form: &Form,
        a: &[u8],
        b: &[u8],
        read: impl Fn([u8; SIZE]) -> T,
        double: impl Fn(T) -> f64,
        step: impl Fn(T) -> i64,
    ) {
        self.pairs(form, a, b, |a, b| {
            let (a, b) = (read(a), read(b));
            let (x, y) = (double(a), double(b));
            let finite = (x.is_finite() && y.is_finite()).then(|| {
                let absolute = (x - y).abs();
                // The two zeros are equal but have different bits.
                let relative = if absolute == 0.0 { 0.0 } else { absolute / x.abs().max(y.abs()) };
                (absolute, relative, Some(step(a).abs_diff(step(b))))
            });
            (a.to_string(), b.to_string(), finite)
        });
    }

    fn integers<const SIZE: usize>(
        &mut self,
        form: &Form,
        a: &[u8],
        b: &[u8],
        read: impl Fn([u8; SIZE]) -> i64,
    ) {
        self.pairs(form, a, b, |a, b| {
            let (a, b) = (read(a), read(b));
            let absolute = a.abs_diff(b) as f64;
            let finite = (absolute, absolute / a.unsigned_abs().max(b.unsigned_abs()) as f64, None);
            (a.to_string(), b.to_string(), Some(finite))
        });
    }

    /// Compares the pairs with different bits.
    fn pairs<const SIZE: usize>(
        &mut self,
        form: &Form,
        a: &[u8],
        b: &[u8],
        compare: impl Fn([u8; SIZE], [u8; SIZE]) -> (String, String, Option<(f64, f64, Option<u64>)>),
    ) {
        let (a, b) = (a.as_chunks::<SIZE>().0, b.as_chunks::<SIZE>().0);
        self.values += a.len() as u64;
        let pairs = a.iter().zip(b).enumerate();
        for (place, (a, b)) in pairs.filter(|(_, (a, b))| a != b) {
            let (first, second, finite) = compare(*a, *b);
            let done = self.done;
            let found = self.found.get_or_insert_with(|| Values {
                array: form.name.clone(),
                index: index(done + place, &form.shape, form.fortran),
                first: (first, second),
                arrays: 0,
                differing: 0,
                values: 0,
                absolute: 0.0,
                relative: 0.0,
                ulps: None,
                not_finite: 0,
            });
            found.differing += 1;
            found.arrays += usize::from(!self.differs);
            self.differs = true;
            match finite {
                Some((absolute, relative, ulps)) => {
                    found.absolute = found.absolute.max(absolute);
                    found.relative = found.relative.max(relative);
                    found.ulps = found.ulps.max(ulps);
                }
                None => found.not_finite += 1,
            }
        }
        self.done += a.len();
    }
}

/// The bits of a float as an integer that grows by one from each float to the next.
fn ordered(bits: i64) -> i64 {
    if bits < 0 { i64::MIN.wrapping_sub(bits) } else { bits }
}

/// The index of a value in an array, by its position in the file.
fn index(mut place: usize, shape: &[usize], fortran: bool) -> Vec<usize> {
    let mut index = vec![0; shape.len()];
    let axes: Vec<usize> =
        if fortran { (0..shape.len()).collect() } else { (0..shape.len()).rev().collect() };
    for axis in axes {
        index[axis] = place % shape[axis];
        place /= shape[axis];
    }
    index
}

/// The first byte that differs, `None` where none does.
fn first_byte(a: &Path, b: &Path) -> io::Result<Option<Compared>> {
    let (left, right) = (fs_err::File::open(a)?, fs_err::File::open(b)?);
    let (a, b) = (left.metadata()?.len(), right.metadata()?.len());
    let (mut first, mut second) = (vec![0; BLOCK], vec![0; BLOCK]);
    let shared = a.min(b);
    for start in (0..shared).step_by(BLOCK) {
        let length = BLOCK.min((shared - start) as usize);
        left.read_exact_at(&mut first[..length], start)?;
        right.read_exact_at(&mut second[..length], start)?;
        if let Some(place) = first[..length].iter().zip(&second[..length]).position(|(a, b)| a != b) {
            return Ok(Some(Compared::Bytes { at: start + place as u64, a, b }));
        }
    }
    Ok((a != b).then_some(Compared::Bytes { at: shared, a, b }))
}

#[cfg(test)]
#[path = "compare_tests.rs"]
mod tests;
