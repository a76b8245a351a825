//! The linear datamodeling score: how well the sums of an attribution's scores predict the losses of models that
//! were trained on subsets (Park et al. 2023, *TRAK: Attributing model behavior at scale*, arXiv 2303.14186).
//!
//! Tables have a row for each subset m and a column for each query q. `losses` holds `f[m][q]`, the loss of query q
//! under the model trained on subset m, or the mean over several seeds. `predictions` holds `g[m][q]`, see
//! [`prediction`]. A score needs two subsets and a query; otherwise it is `None`.
//!
//! All functions panic if the rows of two tables are not of the same number and length.

use crate::correlation::{is_constant, spearman};
use crate::interval::{Interval, percentile_interval};
use crate::mean;
use crate::random::Random;

/// The predicted loss of a query under a model that is trained on the kept images: minus the sum of their scores.
///
/// A score above zero means that the image lowers the query's loss.
///
/// # Panics
/// If the two are not of one length.
pub fn prediction(scores: &[f64], kept: &[bool]) -> f64 {
    assert_eq!(scores.len(), kept.len(), "an image has a score, and is kept or not");
    let sum: f64 = scores.iter().zip(kept).filter(|(_, kept)| **kept).map(|(score, _)| score).sum();
    0.0 - sum
}

/// By query: Spearman's correlation of losses and predictions over the subsets, `None` where one of them is constant.
pub fn by_query(losses: &[Vec<f64>], predictions: &[Vec<f64>]) -> Vec<Option<f64>> {
    let table = Table::of(losses, predictions);
    table.losses.iter().zip(&table.predictions).map(|(loss, prediction)| spearman(loss, prediction)).collect()
}

/// The linear datamodeling score: the mean over the queries of [`by_query`].
///
/// A query without a correlation counts as 0: constant predictions predict nothing.
pub fn score(losses: &[Vec<f64>], predictions: &[Vec<f64>]) -> Option<f64> {
    let found: Vec<f64> = by_query(losses, predictions).into_iter().map(Option::unwrap_or_default).collect();
    (losses.len() > 1 && !found.is_empty()).then(|| mean(&found))
}

/// One draw of a bootstrap, with replacement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resample {
    /// The subsets that are drawn. All queries and methods share them.
    pub subsets: Vec<usize>,
    /// The queries that are drawn.
    pub queries: Vec<usize>,
}

/// The draws of a bootstrap over subsets and queries.
///
/// Methods that are compared use the same draws, so what they share cancels in their difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resamples(Vec<Resample>);

impl Resamples {
    /// `count` draws, each of as many subsets and queries as there are.
    pub fn new(seed: u64, count: usize, subsets: usize, queries: usize) -> Self {
        let mut random = Random::new("lds bootstrap", seed);
        let mut draw = |n: usize| (0..n).map(|_| random.below(n)).collect();
        Self((0..count).map(|_| Resample { subsets: draw(subsets), queries: draw(queries) }).collect())
    }

    /// Draws that were made elsewhere.
    pub fn given(draws: Vec<Resample>) -> Self {
        Self(draws)
    }

    /// The draws.
    pub fn draws(&self) -> &[Resample] {
        &self.0
    }
}

/// The score and its percentile interval over the draws.
///
/// A draw repeats subsets. Repeated subsets are ties, which Spearman's correlation allows. They lower it a little,
/// so the interval reaches further below the score than above it.
pub fn interval(
    losses: &[Vec<f64>],
    predictions: &[Vec<f64>],
    resamples: &Resamples,
    level: f64,
) -> Option<Interval> {
    let own = score(losses, predictions)?;
    Some(percentile_interval(own, &Table::of(losses, predictions).scores(resamples), level))
}

/// The score of `a` less that of `b`, and the percentile interval of the difference over the same draws.
pub fn difference_interval(
    losses: &[Vec<f64>],
    predictions_a: &[Vec<f64>],
    predictions_b: &[Vec<f64>],
    resamples: &Resamples,
    level: f64,
) -> Option<Interval> {
    let own = score(losses, predictions_a)? - score(losses, predictions_b)?;
    let scores = |predictions| Table::of(losses, predictions).scores(resamples);
    let (a, b) = (scores(predictions_a), scores(predictions_b));
    let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    Some(percentile_interval(own, &differences, level))
}

/// The reliability of losses of one seed: the mean over the queries of Spearman's correlation over the subsets
/// between the losses of two independent seeds.
///
/// A query without a correlation counts as 0, as in [`score`].
pub fn reliability(one: &[Vec<f64>], other: &[Vec<f64>]) -> Option<f64> {
    score(one, other)
}

/// The reliability of means over `seeds` seeds R, if that of one seed is `rho`: R rho / (1 + (R - 1) rho)
/// (Spearman 1910 and Brown 1910, both in the British Journal of Psychology 3). A negative one counts as 0.
pub fn spearman_brown(rho: f64, seeds: f64) -> f64 {
    let rho = rho.max(0.0);
    seeds * rho / (1.0 + (seeds - 1.0) * rho)
}

/// The largest score that is to be expected: the root of the reliability of the losses, and 0 if that is negative
/// (Spearman 1904, *The proof and measurement of association between two things*).
///
/// A measured value correlates with its own noiseless value by this much. For ranks it is approximate.
pub fn ceiling(reliability: f64) -> f64 {
    reliability.max(0.0).sqrt()
}

/// How much the loss of a query rises if the top K images are removed, by regression over the subsets: minus the
/// slope of least squares, times K.
///
/// `kept_of_top` says how many of the top K each subset keeps. `None` if that is constant.
///
/// # Panics
/// If the two are not of one length.
pub fn removal_effect(losses_of_query: &[f64], kept_of_top: &[f64], k: f64) -> Option<f64> {
    assert_eq!(losses_of_query.len(), kept_of_top.len(), "a subset has a loss and a count");
    if is_constant(kept_of_top) {
        return None;
    }
    let (center, level) = (mean(kept_of_top), mean(losses_of_query));
    let pairs = kept_of_top.iter().zip(losses_of_query);
    let both: f64 = pairs.map(|(kept, loss)| (kept - center) * (loss - level)).sum();
    Some(-both / crate::squares(kept_of_top) * k)
}

/// The mean over the queries of [`removal_effect`], and its percentile interval over the draws. All queries share the subsets, so that
/// their effects are not independent.
///
/// `kept` says by query and subset how many of the query's top K the subset keeps. `None` if no query has an effect.
pub fn removal_interval(
    losses: &[Vec<f64>],
    kept: &[Vec<f64>],
    k: f64,
    resamples: &Resamples,
    level: f64,
) -> Option<Interval> {
    let losses = columns(losses);
    let effects = |subsets: &[usize], queries: &[usize]| {
        let drawn = |column: &[f64]| subsets.iter().map(|&subset| column[subset]).collect::<Vec<_>>();
        let of = |&query: &usize| removal_effect(&drawn(&losses[query]), &drawn(&kept[query]), k);
        let found: Vec<f64> = queries.iter().filter_map(of).collect();
        (!found.is_empty()).then(|| mean(&found))
    };
    let all = |count: usize| (0..count).collect::<Vec<_>>();
    let own = effects(&all(losses.first().map_or(0, Vec::len)), &all(losses.len()))?;
    let draws = resamples.0.iter().filter_map(|draw| effects(&draw.subsets, &draw.queries));
    Some(percentile_interval(own, &draws.collect::<Vec<_>>(), level))
}

/// Losses and predictions by query and subset.
struct Table {
    losses: Vec<Vec<f64>>,
    predictions: Vec<Vec<f64>>,
}

impl Table {
    fn of(losses: &[Vec<f64>], predictions: &[Vec<f64>]) -> Self {
        assert_eq!(losses.len(), predictions.len(), "a subset has losses and predictions");
        let table = Self { losses: columns(losses), predictions: columns(predictions) };
        assert_eq!(table.losses.len(), table.predictions.len(), "a query has losses and predictions");
        table
    }

    /// The score in each draw.
    fn scores(&self, resamples: &Resamples) -> Vec<f64> {
        resamples.0.iter().map(|draw| self.resampled(draw)).collect()
    }

    fn resampled(&self, draw: &Resample) -> f64 {
        // A query that is drawn twice is computed once.
        let mut known = vec![None; self.losses.len()];
        let mut of = |&query: &usize| *known[query].get_or_insert_with(|| self.query(query, &draw.subsets));
        mean(&draw.queries.iter().map(&mut of).collect::<Vec<_>>())
    }

    fn query(&self, query: usize, subsets: &[usize]) -> f64 {
        let drawn = |column: &[f64]| subsets.iter().map(|&subset| column[subset]).collect::<Vec<_>>();
        spearman(&drawn(&self.losses[query]), &drawn(&self.predictions[query])).unwrap_or_default()
    }
}

/// The columns of a table of rows.
fn columns(rows: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let width = rows.first().map_or(0, Vec::len);
    assert!(rows.iter().all(|row| row.len() == width), "a table has rows of one length");
    (0..width).map(|query| rows.iter().map(|row| row[query]).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(columns: &[&[f64]]) -> Vec<Vec<f64>> {
        (0..columns[0].len()).map(|row| columns.iter().map(|column| column[row]).collect()).collect()
    }

    #[test]
    fn a_prediction_is_minus_the_sum_of_the_kept() {
        assert_eq!(prediction(&[1.0, -2.0, 4.0], &[true, false, true]), -5.0);
        assert_eq!(prediction(&[1.0], &[false]).to_bits(), 0.0_f64.to_bits());
    }

    #[test]
    fn a_query_without_a_correlation_counts_as_zero() {
        let losses = rows(&[&[1.0, 2.0, 3.0], &[1.0, 2.0, 3.0]]);
        let predictions = rows(&[&[1.0, 5.0, 9.0], &[2.0, 2.0, 2.0]]);
        assert_eq!(by_query(&losses, &predictions), [Some(1.0), None]);
        assert_eq!(score(&losses, &predictions), Some(0.5));
    }

    #[test]
    fn a_score_needs_two_subsets_and_a_query() {
        let table = rows(&[&[1.0], &[2.0]]);
        assert_eq!(score(&table, &table), None);
        assert_eq!(score(&[], &[]), None);
        assert_eq!(score(&[vec![], vec![]], &[vec![], vec![]]), None);
        assert_eq!(interval(&table, &table, &Resamples::new(1, 2, 1, 2), 0.9), None);
    }

    #[test]
    fn draws_are_shared_and_repeatable() {
        let draws = Resamples::new(3, 50, 6, 4);
        assert_eq!(draws, Resamples::new(3, 50, 6, 4));
        assert_ne!(draws, Resamples::new(4, 50, 6, 4));
        assert_eq!(Resamples::given(draws.draws().to_vec()), draws);
        let valid =
            |draw: &Resample| draw.subsets.iter().all(|&m| m < 6) && draw.queries.iter().all(|&q| q < 4);
        assert!(draws.draws().iter().all(valid));
    }

    #[test]
    fn a_method_does_not_differ_from_itself() {
        let losses = rows(&[&[1.0, 2.0, 3.0, 0.0], &[5.0, 2.0, 3.0, 1.0]]);
        let predictions = rows(&[&[1.0, 4.0, 3.0, 2.0], &[5.0, 2.0, 7.0, 1.0]]);
        let draws = Resamples::new(1, 100, 4, 2);
        let found = difference_interval(&losses, &predictions, &predictions, &draws, 0.95);
        assert_eq!(found, Some(Interval { mean: 0.0, low: 0.0, high: 0.0 }));
    }

    #[test]
    fn reliability_grows_with_seeds() {
        assert_eq!(spearman_brown(0.5, 1.0), 0.5);
        assert!((spearman_brown(0.5, 2.0) - 2.0 / 3.0).abs() < 1e-15);
        assert_eq!((ceiling(0.25), ceiling(-0.1)), (0.5, 0.0));
    }

    #[test]
    fn a_removal_raises_the_loss_by_the_slope() {
        let losses = [7.0, 5.0, 3.0, 5.0];
        assert_eq!(removal_effect(&losses, &[0.0, 1.0, 2.0, 1.0], 10.0), Some(20.0));
        assert_eq!(removal_effect(&losses, &[1.0; 4], 10.0), None);
    }
}
