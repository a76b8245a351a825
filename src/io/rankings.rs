//! Two rankings of the same images compared: how much of the top they share, and how alike their orders are.

use std::collections::HashSet;
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
    let read = |path: &Path| {
        let npy = Npy::open(path)?;
        npy.expect_shape(&[None])?;
        let mut ranks = Vec::new();
        npy.read_i64(0..npy.rows(), &mut ranks)?;
        Ok::<_, NpyError>(ranks)
    };
    Ok(of(&read(a)?, &read(b)?))
}

fn of(a: &[i64], b: &[i64]) -> Option<Compared> {
    let places = |ranks: &[i64]| {
        let mut places = vec![None; ranks.len()];
        for (place, image) in ranks.iter().enumerate() {
            *places.get_mut(usize::try_from(*image).ok()?)? = Some(place as f64);
        }
        places.into_iter().collect::<Option<Vec<f64>>>()
    };
    let (of_a, of_b) = (places(a)?, places(b)?);
    if a.len() != b.len() {
        return None;
    }
    let top = TOPS.into_iter().filter(|top| *top < a.len()).map(|top| {
        let first: HashSet<&i64> = a[..top].iter().collect();
        (top, b[..top].iter().filter(|image| first.contains(image)).count())
    });
    let count = a.len() as f64;
    let squares: f64 = of_a.iter().zip(&of_b).map(|(a, b)| (a - b).powi(2)).sum();
    let correlation = if a.len() < 2 { 1.0 } else { 1.0 - 6.0 * squares / (count * (count * count - 1.0)) };
    Some(Compared { top: top.collect(), correlation })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tops_and_orders_are_compared() {
        let order: Vec<i64> = (0..60).collect();
        assert_eq!(of(&order, &order).unwrap(), Compared { top: vec![(10, 10), (50, 50)], correlation: 1.0 });
        let back: Vec<i64> = (0..60).rev().collect();
        let compared = of(&order, &back).unwrap();
        assert_eq!((compared.top, compared.correlation), (vec![(10, 0), (50, 40)], -1.0));
        // As scipy.stats.spearmanr([0, 1, 2, 3], [1, 0, 2, 3]).
        assert!((of(&[0, 1, 2, 3], &[1, 0, 2, 3]).unwrap().correlation - 0.8).abs() < 1e-12);
        assert_eq!(of(&[0, 1], &[0, 1, 2]), None);
        assert_eq!(of(&[0, 0], &[0, 1]), None, "no ranking");
    }
}
