//! Element types of arrays and tensors, with their names in npy files and in pickles of torch.

use std::fmt::{self, Display, Formatter};

use half::{bf16, f16};

/// The element type of an array or a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// `torch.float64`
    F64,
    /// `torch.float32`
    F32,
    /// `torch.float16`
    F16,
    /// `torch.bfloat16`
    BF16,
    /// `torch.int64`
    I64,
    /// `torch.int32`
    I32,
    /// `torch.uint8`
    U8,
    /// `torch.bool`
    Bool,
}

/// Type, name, type of torch's storage, type in the header of a npy file, bytes per element.
type Row = (Dtype, &'static str, &'static str, Option<&'static str>, usize);

const TABLE: [Row; 8] = [
    (Dtype::F64, "float64", "DoubleStorage", Some("<f8"), 8),
    (Dtype::F32, "float32", "FloatStorage", Some("<f4"), 4),
    (Dtype::F16, "float16", "HalfStorage", Some("<f2"), 2),
    (Dtype::BF16, "bfloat16", "BFloat16Storage", None, 2),
    (Dtype::I64, "int64", "LongStorage", Some("<i8"), 8),
    (Dtype::I32, "int32", "IntStorage", Some("<i4"), 4),
    (Dtype::U8, "uint8", "ByteStorage", None, 1),
    (Dtype::Bool, "bool", "BoolStorage", None, 1),
];

impl Dtype {
    /// Whether it is a float type.
    pub fn is_float(self) -> bool {
        matches!(self, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16)
    }

    fn row(self) -> &'static Row {
        // The table has the order of the enum; a test checks that.
        &TABLE[self as usize]
    }

    /// Bytes of one element.
    pub fn size(self) -> usize {
        self.row().4
    }

    /// The storage type's name in the module `torch`.
    pub(super) fn storage(self) -> &'static str {
        self.row().2
    }

    pub(super) fn of_storage(name: &str) -> Option<Self> {
        TABLE.iter().find(|row| row.2 == name).map(|row| row.0)
    }

    /// The type in the header of a npy file, `None` if this program stores no such arrays.
    pub(super) fn descr(self) -> Option<&'static str> {
        self.row().3
    }

    pub(super) fn of_descr(descr: &str) -> Option<Self> {
        TABLE.iter().find(|row| row.3 == Some(descr)).map(|row| row.0)
    }
}

impl Display for Dtype {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(self.row().1)
    }
}

/// A float type in a file.
pub trait Float: Copy {
    /// Whether it is neither NaN nor infinite, nor so large that it would become infinite.
    fn is_finite(self) -> bool;
    /// The same value, in the type that holds all others.
    fn widened(self) -> f64;
}

impl Float for f64 {
    /// As float32, with which all computing is done.
    fn is_finite(self) -> bool {
        (self as f32).is_finite()
    }
    fn widened(self) -> f64 {
        self
    }
}

impl Float for f32 {
    fn is_finite(self) -> bool {
        self.is_finite()
    }
    fn widened(self) -> f64 {
        self.into()
    }
}

impl Float for f16 {
    fn is_finite(self) -> bool {
        self.to_bits() & 0x7c00 != 0x7c00
    }
    fn widened(self) -> f64 {
        self.into()
    }
}

impl Float for bf16 {
    fn is_finite(self) -> bool {
        self.to_bits() & 0x7f80 != 0x7f80
    }
    fn widened(self) -> f64 {
        self.into()
    }
}

/// The index, one number for each axis, of a value by its number in C order.
pub(super) fn index_of(shape: &[usize], mut number: usize) -> Vec<usize> {
    let mut index = vec![0; shape.len()];
    for (at, &length) in index.iter_mut().zip(shape).rev() {
        (*at, number) = (number % length, number / length);
    }
    index
}

/// The place and the value of the first number that is NaN or infinite.
pub fn not_finite<T: Float>(values: &[T]) -> Option<(usize, f64)> {
    // In two steps, for the first is one that compilers turn into wide instructions.
    if values.iter().fold(true, |all, value| all & value.is_finite()) {
        return None;
    }
    let place = values.iter().position(|value| !value.is_finite())?;
    Some((place, values[place].widened()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_value_that_is_not_finite_is_found_in_every_float_type() {
        fn check<T: Float>(convert: fn(f64) -> T) {
            let of = |values: &[f64]| values.iter().map(|&value| convert(value)).collect::<Vec<_>>();
            assert_eq!(not_finite(&of(&[0.0, -2.5, 6e4])), None);
            assert_eq!(not_finite(&of(&[1.0, f64::NEG_INFINITY, f64::NAN])), Some((1, f64::NEG_INFINITY)));
            assert!(not_finite(&of(&[f64::NAN])).unwrap().1.is_nan());
        }
        check(|value| value);
        check(|value| value as f32);
        check(f16::from_f64);
        check(bf16::from_f64);
    }

    #[test]
    fn the_table_has_the_order_of_the_enum() {
        for row in &TABLE {
            assert_eq!(row, row.0.row());
            assert_eq!(Dtype::of_storage(row.2), Some(row.0));
            assert!(row.3.is_none_or(|descr| Dtype::of_descr(descr) == Some(row.0)));
        }
        assert_eq!((Dtype::of_storage("ComplexFloatStorage"), Dtype::of_descr("<u2")), (None, None));
    }
}
