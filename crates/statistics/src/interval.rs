//! Confidence intervals of means.

use serde::Serialize;

use crate::mean;
use crate::sample_variance;
use crate::special_functions::student;

/// An estimate between two bounds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Interval {
    /// The estimate.
    pub mean: f64,
    /// The lower bound.
    pub low: f64,
    /// The upper bound.
    pub high: f64,
}

impl Interval {
    /// The interval from `half` below the mean to `half` above it.
    pub fn around(mean: f64, half: f64) -> Self {
        Self { mean, low: mean - half, high: mean + half }
    }
}

/// Student's interval of the mean: mean ± t s / sqrt(n), with n - 1 degrees of freedom (Student 1908, *The probable
/// error of a mean*).
///
/// It holds with probability `level` where the values are independent and normal. `None` for fewer than two values.
pub fn t_interval(values: &[f64], level: f64) -> Option<Interval> {
    if values.len() < 2 {
        return None;
    }
    let count = values.len() as f64;
    let error = (sample_variance(values) / count).sqrt();
    Some(Interval::around(mean(values), student(count - 1.0, (1.0 + level) / 2.0) * error))
}

/// Hoeffding's interval of the mean of values in [0, 1]: half its width is sqrt(ln(2 / (1 - level)) / (2 n))
/// (Hoeffding 1963, *Probability inequalities for sums of bounded random variables*, theorem 2).
///
/// It holds with probability `level` at least for independent values of any distribution. It is wide, and keeps its
/// width if all values are equal. The bounds are clamped to [0, 1]. `None` for no values.
pub fn bounded_interval(values: &[f64], level: f64) -> Option<Interval> {
    if values.is_empty() {
        return None;
    }
    let half = ((2.0 / (1.0 - level)).ln() / (2.0 * values.len() as f64)).sqrt();
    let wide = Interval::around(mean(values), half);
    Some(Interval { low: wide.low.max(0.0), high: wide.high.min(1.0), ..wide })
}

/// The interval that holds the middle `level` of the samples of a bootstrap (Efron 1979, *Bootstrap methods:
/// another look at the jackknife*).
///
/// The mean is given: it is the estimate from the data itself. Both bounds are NaN for no samples.
pub fn percentile_interval(mean: f64, samples: &[f64], level: f64) -> Interval {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let tail = (1.0 - level) / 2.0;
    Interval { mean, low: quantile(&sorted, tail), high: quantile(&sorted, 1.0 - tail) }
}

/// The value below which a share `p` of the sorted values lies: linear between the values at both sides of place
/// p (n - 1), as numpy's `percentile`. NaN for no values.
pub fn quantile(sorted: &[f64], p: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let place = p.clamp(0.0, 1.0) * last as f64;
    let below = place.floor() as usize;
    let above = (below + 1).min(last);
    sorted[below] + (sorted[above] - sorted[below]) * place.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn students_interval_needs_two_values() {
        assert_eq!(t_interval(&[1.0], 0.95), None);
        let found = t_interval(&[1.0, 3.0], 0.95).unwrap();
        assert_eq!(found.mean, 2.0);
        assert!((found.high - 2.0 - 12.706_204_736).abs() < 1e-6, "{found:?}");
        assert_eq!(t_interval(&[2.0; 5], 0.95), Some(Interval::around(2.0, 0.0)));
    }

    #[test]
    fn hoeffdings_interval_is_not_degenerate() {
        let half = (40_f64.ln() / 40.0).sqrt();
        let found = bounded_interval(&[1.0; 20], 0.95).unwrap();
        assert_eq!((found.mean, found.high), (1.0, 1.0));
        assert!((found.low - (1.0 - half)).abs() < 1e-12, "{found:?}");
        let found = bounded_interval(&[0.0, 0.0, 1.0], 0.95).unwrap();
        assert_eq!((found.low, found.high), (0.0, 1.0));
        assert_eq!(bounded_interval(&[], 0.95), None);
    }

    #[test]
    fn quantiles_are_linear_between_values() {
        let sorted = [1.0, 2.0, 4.0];
        assert_eq!([0.0, 0.25, 0.5, 0.75, 1.0].map(|p| quantile(&sorted, p)), [1.0, 1.5, 2.0, 3.0, 4.0]);
        assert_eq!(quantile(&[5.0], 0.3), 5.0);
        assert!(quantile(&[], 0.3).is_nan());
    }

    #[test]
    fn samples_of_a_percentile_interval_need_no_order() {
        let found = percentile_interval(9.0, &[4.0, 1.0, 2.0], 0.5);
        assert_eq!(found, Interval { mean: 9.0, low: 1.5, high: 3.0 });
    }
}
