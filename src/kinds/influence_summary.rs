//! What tells whether the influences give a ranking: the query's own rise, and the spread of all scores.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::shared::tensors;
use super::unlearn::{PREDICTED_RISE, RISE};

/// The found rise may be so many times the predicted one: on the demo, rankings are good from 0.17 on and lost at 0.06.
const RATIO: std::ops::RangeInclusive<f64> = 0.1..=10.0;
/// The median influence may be this share of the query's own rise.
const MEDIAN: f64 = 0.5;

/// A summary of the influences on one query.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Summary {
    /// Number of images.
    pub images: usize,
    /// How much the loss of the query rose; `None` for weights that do not say.
    pub query_rise: Option<f64>,
    /// How much it should have risen to first order.
    pub query_rise_predicted: Option<f64>,
    /// The median of the influences.
    pub median: f64,
    /// Their standard deviation.
    pub standard_deviation: f64,
    /// What speaks against the ranking.
    pub warnings: Vec<String>,
}

impl Summary {
    /// Of influences, and of the weights in a file that gave them.
    pub fn of(weights: Option<&Path>, scores: &[f32]) -> anyhow::Result<Self> {
        let Some(weights) = weights else { return Ok(Self::new(None, None, scores)) };
        Ok(Self::new(tensors::number(weights, RISE)?, tensors::number(weights, PREDICTED_RISE)?, scores))
    }

    fn new(query_rise: Option<f64>, query_rise_predicted: Option<f64>, scores: &[f32]) -> Self {
        let count = scores.len().max(1) as f64;
        let mut sorted: Vec<f64> = scores.iter().map(|&score| f64::from(score)).collect();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median = match sorted.len() % 2 {
            _ if sorted.is_empty() => 0.0,
            0 => (sorted[middle - 1] + sorted[middle]) / 2.0,
            _ => sorted[middle],
        };
        let mean = sorted.iter().sum::<f64>() / count;
        let variance = sorted.iter().map(|score| (score - mean).powi(2)).sum::<f64>() / count;
        let mut warnings = Vec::new();
        if let Some((found, predicted)) = query_rise.zip(query_rise_predicted)
            && !RATIO.contains(&(found / predicted))
        {
            warnings.push(format!(
                "the loss of the query rose by {found:.3e}, {:.2} times the {predicted:.3e} that the step predicts: the step is too \
                 large for the ranking to follow from the gradient; a smaller `unlearn.rise` (or `unlearn.lr`) may help",
                found / predicted
            ));
        }
        if let Some(rise) = query_rise.filter(|rise| median > MEDIAN * rise) {
            warnings.push(format!(
                "half of the images rose by {median:.3e} or more, where the query itself rose by {rise:.3e}: the model as a whole \
                 became worse; a smaller `unlearn.rise` (or `unlearn.lr`) may help"
            ));
        }
        let standard_deviation = variance.sqrt();
        Self { images: scores.len(), query_rise, query_rise_predicted, median, standard_deviation, warnings }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_that_is_too_large_is_warned_of() {
        let of = |found, predicted, scores: &[f32]| Summary::new(Some(found), Some(predicted), scores);
        let fine = of(1.0, 0.9, &[0.1, 0.3, 0.2, 0.4]);
        assert!(fine.warnings.is_empty() && (fine.median - 0.25).abs() < 1e-7);
        assert!((fine.standard_deviation - 0.111_803_4).abs() < 1e-6, "numpy.std");
        assert!(of(12.0, 1.0, &[0.1]).warnings[0].contains("12.00 times"));
        assert!(of(0.09, 1.0, &[0.01]).warnings[0].contains("0.09 times"));
        assert!(of(0.17, 1.0, &[0.01]).warnings.is_empty() && of(2.6, 1.0, &[0.01]).warnings.is_empty());
        assert!(
            of(1.0, 1.0, &[0.7, 0.6, 0.1]).warnings[0].starts_with("half of the images rose by 6.000e-1")
        );
        assert_eq!(Summary::new(None, None, &[5.0]).warnings, Vec::<String>::new());
    }
}
