//! Variances of many images, each from few values: they are shrunk towards the common one.
//!
//! Two or three values give a poor estimate of an image's own variance. The variances of all images say how much they
//! differ (Smyth 2004, *Linear models and empirical Bayes methods for assessing differential expression*,
//! section 6.2).

use crate::special_functions::{digamma, inverse_trigamma, student, trigamma};

/// The prior of one image's variance, from the variances of all images.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prior {
    /// Degrees of freedom; infinite if the variances do not differ more than by chance.
    pub df: f64,
    /// The common variance of the images.
    pub variance: f64,
}

impl Prior {
    /// From sample variances with `df` degrees of freedom each, by the moments of their logarithms.
    pub fn of(variances: &[f64], df: f64) -> Self {
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len().max(1) as f64;
        let common = Self { df: f64::INFINITY, variance: mean(variances) };
        let mut sorted = variances.to_vec();
        sorted.sort_by(f64::total_cmp);
        // A variance of zero has no logarithm; such a small one is rounding error.
        let floor = sorted.get(sorted.len() / 2).map_or(0.0, |median| median * 1e-5);
        if floor <= 0.0 || variances.len() < 3 {
            return common;
        }
        let log = |variance: &f64| variance.max(floor).ln() - digamma(df / 2.0) + (df / 2.0).ln();
        let logs: Vec<f64> = variances.iter().map(log).collect();
        let center = mean(&logs);
        let spread = logs.iter().map(|log| (log - center).powi(2)).sum::<f64>() / (logs.len() - 1) as f64;
        let excess = spread - trigamma(df / 2.0);
        if excess <= 0.0 {
            return common;
        }
        let half = inverse_trigamma(excess);
        Self { df: 2.0 * half, variance: (center + digamma(half) - half.ln()).exp() }
    }

    /// An image's variance, with `df` degrees of freedom, shrunk towards the common one.
    pub fn shrink_variance(&self, own: f64, df: f64) -> f64 {
        if self.df.is_infinite() {
            return self.variance;
        }
        (self.df * self.variance + df * own) / (self.df + df)
    }

    /// The half width, in standard errors, of an interval that each side misses with probability `error`.
    pub fn quantile(&self, df: f64, error: f64) -> f64 {
        student(self.df + df, 1.0 - error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    /// Sample variances with 4 degrees of freedom, of values whose variance is that of the prior over chi-squared.
    fn variances(prior: Prior, count: usize) -> Vec<f64> {
        let mut random = Random::new("variances", 1);
        let mut chi = |df: usize| (0..df).map(|_| random.normal().powi(2)).sum::<f64>();
        let df = prior.df as usize;
        (0..count).map(|_| prior.variance * prior.df / chi(df) * chi(4) / 4.0).collect()
    }

    #[test]
    fn the_prior_is_found_again() {
        let prior = Prior::of(&variances(Prior { df: 8.0, variance: 2.0 }, 20_000), 4.0);
        assert!((prior.df - 8.0).abs() < 1.0 && (prior.variance - 2.0).abs() < 0.1, "{prior:?}");
    }

    #[test]
    fn equal_variances_have_an_infinite_prior() {
        let prior = Prior::of(&[0.0; 9], 2.0);
        assert_eq!(prior, Prior { df: f64::INFINITY, variance: 0.0 });
        assert_eq!(prior.shrink_variance(3.0, 2.0), 0.0);
        assert!((prior.quantile(2.0, 0.025) - 1.959_964).abs() < 1e-5);
    }

    #[test]
    fn the_shrunk_variance_weighs_by_degrees_of_freedom() {
        let prior = Prior { df: 6.0, variance: 1.0 };
        assert_eq!(prior.shrink_variance(5.0, 2.0), 2.0);
        assert_eq!(prior.quantile(2.0, 0.05), student(8.0, 0.95));
    }
}
