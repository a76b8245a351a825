//! Correlations.
//!
//! Non-finite values are the caller's fault: the results are then without meaning.

use crate::mean;

/// The ranks of values from 1. Equal values share the mean of their ranks.
pub fn average_ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_unstable_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut before = 0;
    for equal in order.chunk_by(|&a, &b| values[a] == values[b]) {
        let rank = before as f64 + (equal.len() + 1) as f64 / 2.0;
        equal.iter().for_each(|&place| ranks[place] = rank);
        before += equal.len();
    }
    ranks
}

/// Pearson's correlation. `None` where one of the two is constant or there are fewer than two values.
///
/// # Panics
/// If the two are not of one length.
pub fn pearson(a: &[f64], b: &[f64]) -> Option<f64> {
    assert_eq!(a.len(), b.len(), "values come in pairs");
    if is_constant(a) || is_constant(b) {
        return None;
    }
    let centers = (mean(a), mean(b));
    let (mut both, mut first, mut second) = (0.0, 0.0, 0.0);
    for (a, b) in a.iter().zip(b) {
        let (a, b) = (a - centers.0, b - centers.1);
        both += a * b;
        first += a * a;
        second += b * b;
    }
    // Exactly 1 for equal ranks. The product of two small sums could be zero, their ratio is not.
    Some((both / first * (first / second).sqrt()).clamp(-1.0, 1.0))
}

/// Spearman's correlation: Pearson's of the average ranks. `None` where one of the two is constant or there are fewer
/// than two values.
///
/// # Panics
/// If the two are not of one length.
pub fn spearman(a: &[f64], b: &[f64]) -> Option<f64> {
    pearson(&average_ranks(a), &average_ranks(b))
}

/// Whether all values are equal, as a single one is.
pub(crate) fn is_constant(values: &[f64]) -> bool {
    values.windows(2).all(|pair| pair[0] == pair[1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_share_their_mean_rank() {
        assert_eq!(average_ranks(&[3.0, 1.0, 3.0, -2.0, 3.0]), [4.0, 2.0, 4.0, 1.0, 4.0]);
        assert_eq!(average_ranks(&[0.0, -0.0]), [1.5, 1.5]);
        assert!(average_ranks(&[]).is_empty());
    }

    #[test]
    fn constants_and_single_values_have_no_correlation() {
        assert_eq!(pearson(&[], &[]), None);
        assert_eq!(spearman(&[1.0], &[2.0]), None);
        assert_eq!(spearman(&[1.0, 2.0], &[2.0, 2.0]), None);
        // The mean of these is not exactly 0.1.
        assert_eq!(pearson(&[0.1; 3], &[1.0, 2.0, 3.0]), None);
    }

    #[test]
    fn only_the_order_matters_to_spearman() {
        let values = [0.1, 4.0, -3.0, 2.0];
        let cubes = values.map(|value: f64| value.powi(3));
        assert_eq!(spearman(&values, &cubes), Some(1.0));
        assert_eq!(spearman(&values, &cubes.map(|cube| -cube)), Some(-1.0));
        assert!(pearson(&values, &cubes).is_some_and(|found| found < 0.99));
    }
}
