//! The statistics that judge an attribution.
//!
//! An attribution gives each training image a score for each query. This crate says how good the scores are, and how
//! sure that is: [`lds`] and [`retrieval`] measure, [`paired`] compares retrained models, [`interval`] bounds means,
//! [`error_bars`] and [`ranks`] say how much of a score and of its rank is noise.
//!
//! It reads and writes no file and knows no tensor. All numbers are `f64` unless said otherwise. Numbers that are not
//! finite are the caller's fault: a function that is given one returns some number or NaN.

pub mod correlation;
pub mod error_bars;
pub mod interval;
pub mod lds;
pub mod paired;
pub mod random;
pub mod ranks;
pub mod retrieval;
pub mod special_functions;
pub mod variance;

/// The mean; of no values, NaN.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The sum of squared distances to the mean.
fn squares(values: &[f64]) -> f64 {
    let center = mean(values);
    values.iter().map(|value| (value - center).powi(2)).sum()
}

/// The sample variance, of at least two values.
fn sample_variance(values: &[f64]) -> f64 {
    squares(values) / (values.len() - 1) as f64
}
