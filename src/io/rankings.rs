//! Two rankings of the same images compared: how much of the top they share, and how alike their orders are.

use std::path::Path;

use serde::Serialize;

use super::npy::{Npy, NpyError};

/// The sizes of the tops that are compared.
const TOPS: [usize; 3] = [10, 50, 100];

/// How alike two rankings are.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Compared {
    /// For each size of a top that both have: the size, and how many images are in the top of both.
    pub top: Vec<(usize, usize)>,
    /// Spearman's rank correlation; 1 for equal orders.
    pub correlation: f64,
}

/// Compares two files of ranks, int64 [N]: image indices from the most influential on.
///
/// # Errors
/// A file that cannot be read; `None` for rankings of different images.
pub fn compare(a: &Path, b: &Path) -> Result<Option<Compared>, NpyError> {
    Ok(read(a)?.zip(read(b)?).and_then(|(a, b)| of(&a, &b)))
}

/// Reads a file of ranks, int64 [N]: image indices from the most influential on.
///
/// # Errors
/// A file that cannot be read; `None` for numbers that are no indices.
pub fn read(path: &Path) -> Result<Option<Vec<usize>>, NpyError> {
    let npy = Npy::open(path)?;
    npy.expect_shape(&[None])?;
    let mut ranks = Vec::new();
    npy.read_i64(0..npy.rows(), &mut ranks)?;
    Ok(ranks.into_iter().map(|index| usize::try_from(index).ok()).collect())
}

/// Compares two rankings; `None` if they are of different images.
pub fn of(a: &[usize], b: &[usize]) -> Option<Compared> {
    let (of_a, of_b) = places_in(a, b)?;
    let top = TOPS
        .into_iter()
        .filter(|top| *top < a.len())
        .map(|top| (top, b[..top].iter().filter(|image| of_a[**image] < top).count()));
    let count = a.len() as f64;
    let squares: f64 = of_a.iter().zip(&of_b).map(|(a, b)| (*a as f64 - *b as f64).powi(2)).sum();
    let correlation = if a.len() < 2 { 1.0 } else { 1.0 - 6.0 * squares / (count * (count * count - 1.0)) };
    Some(Compared { top: top.collect(), correlation })
}

/// Kendall's rank correlation: the share of pairs in the same order minus that of pairs in the other; `None` as [`of`].
pub fn kendall(a: &[usize], b: &[usize]) -> Option<f64> {
    let (_, of_b) = places_in(a, b)?;
    let mut order: Vec<usize> = a.iter().map(|image| of_b[*image]).collect();
    let pairs = a.len() as f64 * (a.len() as f64 - 1.0) / 2.0;
    Some(if a.len() < 2 { 1.0 } else { 1.0 - 2.0 * inversions(&mut order) as f64 / pairs })
}

/// How many of the other images are behind one of this rank, in percent: 100 for the first of them, 0 for the last.
pub fn percentile(rank: usize, images: usize) -> f64 {
    if images < 2 { 100.0 } else { 100.0 * (images - rank) as f64 / (images - 1) as f64 }
}

/// The place of each image in a ranking, from 0; `None` where it is no ranking of that many images.
pub fn places(ranks: &[usize]) -> Option<Vec<usize>> {
    let mut places = vec![None; ranks.len()];
    for (place, image) in ranks.iter().enumerate() {
        *places.get_mut(*image)? = Some(place);
    }
    places.into_iter().collect()
}

fn places_in(a: &[usize], b: &[usize]) -> Option<(Vec<usize>, Vec<usize>)> {
    places(a).zip(places(b)).filter(|_| a.len() == b.len())
}

/// The number of pairs in falling order; sorts the values.
fn inversions(values: &mut [usize]) -> u64 {
    let (mut from, mut to) = (values.to_vec(), values.to_vec());
    let (mut found, mut width) = (0, 1);
    while width < from.len() {
        for start in (0..from.len()).step_by(2 * width) {
            let middle = (start + width).min(from.len());
            let end = (start + 2 * width).min(from.len());
            let (mut left, mut right) = (start, middle);
            for out in &mut to[start..end] {
                if left < middle && (right >= end || from[left] <= from[right]) {
                    *out = from[left];
                    left += 1;
                } else {
                    *out = from[right];
                    right += 1;
                    found += (middle - left) as u64;
                }
            }
        }
        std::mem::swap(&mut from, &mut to);
        width *= 2;
    }
    values.copy_from_slice(&from);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tops_and_orders_are_compared() {
        let order: Vec<usize> = (0..60).collect();
        assert_eq!(of(&order, &order).unwrap(), Compared { top: vec![(10, 10), (50, 50)], correlation: 1.0 });
        let back: Vec<usize> = (0..60).rev().collect();
        let compared = of(&order, &back).unwrap();
        assert_eq!((compared.top, compared.correlation), (vec![(10, 0), (50, 40)], -1.0));
        // As scipy.stats.spearmanr([0, 1, 2, 3], [1, 0, 2, 3]).
        assert!((of(&[0, 1, 2, 3], &[1, 0, 2, 3]).unwrap().correlation - 0.8).abs() < 1e-12);
        assert_eq!(of(&[0, 1], &[0, 1, 2]), None);
        assert_eq!(of(&[0, 0], &[0, 1]), None, "no ranking");
    }

    #[test]
    fn percentiles_go_from_100_to_0() {
        assert_eq!([1, 2, 5].map(|rank| percentile(rank, 5)), [100.0, 75.0, 0.0]);
        assert_eq!(percentile(1, 1), 100.0);
    }

    #[test]
    fn kendalls_correlation_is_that_of_scipy() {
        // scipy.stats.kendalltau of [0, 1, 2, 3] and [1, 0, 2, 3].
        assert!((kendall(&[0, 1, 2, 3], &[1, 0, 2, 3]).unwrap() - 2.0 / 3.0).abs() < 1e-12);
        let order: Vec<usize> = (0..60).collect();
        let back: Vec<usize> = (0..60).rev().collect();
        assert_eq!(kendall(&order, &back), Some(-1.0));
        assert_eq!(kendall(&[0, 1], &[0, 1, 2]), None);
        assert_eq!(kendall(&[0, 0], &[0, 1]), None, "no ranking");
    }

    #[test]
    fn inversions_are_all_pairs_in_falling_order() {
        let values: Vec<usize> = (0..97).map(|number| number * 37 % 97).collect();
        let pairs = (0..97).flat_map(|a| (a + 1..97).map(move |b| (a, b)));
        let slow = pairs.filter(|(a, b)| values[*a] > values[*b]).count() as u64;
        let mut sorted = values.clone();
        assert_eq!(inversions(&mut sorted), slow);
        assert!(sorted.is_sorted());
    }
}
