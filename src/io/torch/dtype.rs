//! Element types, and the storage types of torch that stand for them in a pickle.

use std::fmt::{self, Display, Formatter};

/// The element type of a tensor.
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

/// Type, torch's name for it, its storage type, bytes of an element.
const TABLE: [(Dtype, &str, &str, usize); 8] = [
    (Dtype::F64, "float64", "DoubleStorage", 8),
    (Dtype::F32, "float32", "FloatStorage", 4),
    (Dtype::F16, "float16", "HalfStorage", 2),
    (Dtype::BF16, "bfloat16", "BFloat16Storage", 2),
    (Dtype::I64, "int64", "LongStorage", 8),
    (Dtype::I32, "int32", "IntStorage", 4),
    (Dtype::U8, "uint8", "ByteStorage", 1),
    (Dtype::Bool, "bool", "BoolStorage", 1),
];

impl Dtype {
    fn row(self) -> &'static (Dtype, &'static str, &'static str, usize) {
        // The table has the order of the enum; a test holds it to that.
        &TABLE[self as usize]
    }

    /// Bytes of one element.
    pub fn size(self) -> usize {
        self.row().3
    }

    /// The storage type's name within the module `torch`.
    pub(super) fn storage(self) -> &'static str {
        self.row().2
    }

    pub(super) fn of_storage(name: &str) -> Option<Self> {
        TABLE.iter().find(|row| row.2 == name).map(|row| row.0)
    }
}

impl Display for Dtype {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(self.row().1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_the_order_of_the_enum() {
        for row in &TABLE {
            assert_eq!(row, row.0.row());
            assert_eq!(Dtype::of_storage(row.2), Some(row.0));
        }
        assert_eq!(Dtype::of_storage("ComplexFloatStorage"), None);
    }
}
