//! What is added to an estimate of the Fisher information, so that its inverse is finite.

use tch::{Kind, Tensor};

use super::error::MathError;
use crate::models::weights::first_place;

/// What is added to the information before it is inverted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Damping {
    /// In the unit of the information.
    pub absolute: f64,
    /// As a share of the mean: of each weight tensor's diagonal, or of each layer's eigenvalues.
    pub relative: f64,
}

impl Damping {
    /// Values plus the damping, in float64.
    pub(super) fn add_to(self, values: &Tensor) -> Tensor {
        let values = values.to_kind(Kind::Double);
        let relative = self.relative * values.mean(Kind::Double).double_value(&[]);
        values + (self.absolute + relative)
    }

    /// Whether zeros in values that are not all zero stay zeros.
    fn keeps_zeros(self, all: bool) -> bool {
        self.absolute == 0.0 && (self.relative == 0.0 || all)
    }

    /// Refuses information that no mean of squares can be, or that is zero where nothing is added.
    pub(super) fn check(self, parameter: &str, values: &Tensor) -> Result<(), MathError> {
        let possible = values.isfinite().logical_and(&values.ge(0.0));
        let parameter = parameter.to_owned();
        if let Some(index) = first_place(&possible.logical_not()) {
            let value = values.double_value(&index);
            return Err(MathError::FisherValue { parameter, index, value });
        }
        let count = values.numel() as i64;
        let zeros = count - values.count_nonzero(None).int64_value(&[]);
        if zeros > 0 && self.keeps_zeros(zeros == count) {
            return Err(MathError::ZeroFisher { parameter, zeros, count });
        }
        Ok(())
    }
}
