//! Confidence intervals of the mean over all timesteps, from the mean over some of them.
//!
//! The differences of an image at the visited timesteps are a sample without replacement of its T. The mean over images at
//! each timestep is subtracted first: it does not affect the order, and is most of the variance. Two or three timesteps
//! give a poor estimate of an image's own variance, so variances are shrunk towards the common one (Smyth 2004,
//! *Linear models and empirical Bayes methods for assessing differential expression*, section 6.2).

use attrflow_statistics::variance::Prior;

/// The visited part of a population: a row of differences per latent, all of one length.
pub struct Visited<'a> {
    /// Differences [latents, n].
    pub rows: &'a [&'a [f64]],
    /// T, of which n are visited.
    pub timesteps: usize,
}

/// Estimates of the latents' means over all timesteps, up to a constant that all of them share.
#[derive(Debug, Clone, PartialEq)]
pub struct Intervals {
    /// The mean over the visited timesteps less that of all latents.
    pub centers: Vec<f64>,
    /// The standard errors of the centers.
    pub errors: Vec<f64>,
    /// The half width of an interval, in standard errors.
    pub quantile: f64,
}

/// An estimate of the K-th best score.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Threshold {
    /// The estimate.
    pub score: f64,
    /// Its standard error.
    pub error: f64,
    /// The share of the variance of the images' scores that is not noise.
    pub reliability: f64,
}

impl Threshold {
    /// From the images' scores at the visited timesteps, and their standard errors.
    ///
    /// The K-th largest observed score overestimates the true one. Scores that are shrunk towards the mean by the root of
    /// their reliability have the spread of the true scores (Louis 1984, *Estimating a population of parameter
    /// values using Bayes and empirical Bayes methods*), and so about the same K-th largest.
    pub fn of(scores: &[f64], errors: &[f64], top: usize) -> Self {
        let count = scores.len() as f64;
        let mean = scores.iter().sum::<f64>() / count;
        let variance =
            scores.iter().map(|score| (score - mean).powi(2)).sum::<f64>() / (count - 1.0).max(1.0);
        let chance = errors.iter().map(|error| error * error).sum::<f64>() / count;
        let reliability = if variance > 0.0 { (1.0 - chance / variance).max(0.0) } else { 1.0 };
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        let last = order[top - 1];
        // Without noise this is exactly the K-th score. It is never above it, so at least K images remain.
        let drawn = scores[last] - (1.0 - reliability.sqrt()) * (scores[last] - mean);
        // Its error is that of the mean of all scores within one error of it.
        let near = scores.iter().filter(|score| (*score - scores[last]).abs() <= errors[last]).count();
        let error = errors[last] / (near.max(1) as f64).sqrt();
        Self { score: drawn.min(scores[last]), error, reliability }
    }
}

impl Visited<'_> {
    /// The intervals; a side fails with probability `error` where the residuals of the differences are normal.
    pub fn intervals(&self, error: f64) -> Intervals {
        let (latents, n) = (self.rows.len(), self.rows.first().map_or(0, |row| row.len()));
        let shared: Vec<f64> =
            (0..n).map(|t| self.rows.iter().map(|row| row[t]).sum::<f64>() / latents as f64).collect();
        let center = |row: &&[f64]| {
            row.iter().zip(&shared).map(|(value, shared)| value - shared).sum::<f64>() / n as f64
        };
        let centers: Vec<f64> = self.rows.iter().map(center).collect();
        let df = (n - 1) as f64;
        // The subtracted mean was estimated from the same rows; this corrects for it.
        let taken = if latents > 1 { latents as f64 / (latents - 1) as f64 } else { 1.0 };
        let variance = |(row, center): (&&[f64], &f64)| {
            let squares = row.iter().zip(&shared).map(|(value, shared)| (value - shared - center).powi(2));
            squares.sum::<f64>() * taken / df
        };
        let variances: Vec<f64> = self.rows.iter().zip(&centers).map(variance).collect();
        let prior = Prior::of(&variances, df);
        let quantile = prior.quantile(df, error);
        // The correction for a finite population: with n = T there is no error.
        let left = (1.0 - n as f64 / self.timesteps as f64) / n as f64;
        let errors = variances.iter().map(|own| (prior.shrink_variance(*own, df) * left).sqrt()).collect();
        Intervals { centers, errors, quantile }
    }
}
