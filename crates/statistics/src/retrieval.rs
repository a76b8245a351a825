//! How early the relevant images of a query come in a ranking, and how early by chance.
//!
//! Ranks count from 1. A query without relevant images has no such score.

/// The share of the relevant images among the first `k`. `None` without relevant images.
pub fn recall_at(ranks: &[usize], k: usize) -> Option<f64> {
    let found = ranks.iter().filter(|&&rank| rank <= k).count();
    (!ranks.is_empty()).then(|| found as f64 / ranks.len() as f64)
}

/// Average precision: the mean of j / r_j, where r_j is the rank of the j-th relevant image (Manning, Raghavan,
/// Schütze 2008, *Introduction to Information Retrieval*, section 8.4). `None` without relevant images.
///
/// The ranks need no order. They are those of all relevant images.
pub fn average_precision(ranks: &[usize]) -> Option<f64> {
    let mut sorted = ranks.to_vec();
    sorted.sort_unstable();
    let sum: f64 = sorted.iter().zip(1..).map(|(&rank, j)| f64::from(j) / rank as f64).sum();
    (!sorted.is_empty()).then(|| sum / sorted.len() as f64)
}

/// One over the rank of the first relevant image.
pub fn reciprocal_rank(best_rank: usize) -> f64 {
    1.0 / best_rank as f64
}

/// The mean reciprocal rank of a single relevant image in a random order of `n`: H_n / n.
pub fn expected_reciprocal_rank(n: usize) -> f64 {
    harmonic(n) / n as f64
}

/// The mean recall at `k` of a random order of `n`: k / n, at most 1.
pub fn expected_recall(k: usize, n: usize) -> f64 {
    k.min(n) as f64 / n as f64
}

/// The mean average precision of `relevant` images in a random order of `n`:
/// (H_n + (relevant - 1) (n - H_n) / (n - 1)) / n.
///
/// It follows from the definition: two given places both hold relevant images with probability
/// relevant (relevant - 1) / (n (n - 1)).
pub fn expected_average_precision(relevant: usize, n: usize) -> f64 {
    let (count, first) = (n as f64, harmonic(n));
    let others = if n > 1 { (relevant as f64 - 1.0) / (count - 1.0) } else { 0.0 };
    (first + others * (count - first)) / count
}

/// The n-th harmonic number, smallest terms first.
fn harmonic(n: usize) -> f64 {
    (1..=n).rev().map(|i| 1.0 / i as f64).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The mean of a score over all orders: all sets of ranks of `relevant` images among `n`.
    fn by_enumeration(relevant: u32, n: usize, score: impl Fn(&[usize]) -> f64) -> f64 {
        let sets = (0..1_u32 << n).filter(|set| set.count_ones() == relevant);
        let ranks = |set: u32| (1..=n).filter(|rank| set >> (rank - 1) & 1 == 1).collect::<Vec<_>>();
        let scores: Vec<f64> = sets.map(|set| score(&ranks(set))).collect();
        crate::mean(&scores)
    }

    #[test]
    fn scores_are_those_of_the_definitions() {
        assert_eq!(recall_at(&[1, 5, 3, 9], 3), Some(0.5));
        assert_eq!(recall_at(&[], 3), None);
        let expected = (1.0 + 2.0 / 3.0 + 3.0 / 5.0) / 3.0;
        assert!((average_precision(&[5, 1, 3]).unwrap() - expected).abs() < 1e-15);
        assert_eq!(average_precision(&[]), None);
        assert_eq!(reciprocal_rank(4), 0.25);
    }

    #[test]
    fn expected_scores_are_the_means_over_all_orders() {
        for n in 1..=8 {
            let found = by_enumeration(1, n, |ranks| reciprocal_rank(ranks[0]));
            assert!((found - expected_reciprocal_rank(n)).abs() < 1e-12);
            for relevant in 1..=n {
                let found = by_enumeration(relevant as u32, n, |ranks| average_precision(ranks).unwrap());
                assert!((found - expected_average_precision(relevant, n)).abs() < 1e-12);
                let found = by_enumeration(relevant as u32, n, |ranks| recall_at(ranks, 3).unwrap());
                assert!((found - expected_recall(3, n)).abs() < 1e-12);
            }
        }
    }
}
